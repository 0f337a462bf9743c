import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from nasplat.core.channel_cost import WidthCost, graph_cost
from nasplat.core.channel_graph import ChannelGraph
from nasplat.core.errors import NasplatError
from nasplat.core.problem import classification
from nasplat.networks.channel_labels import BY_NATURE, FIXED, Labels
from nasplat.networks.channel_tracer import trace_channels
from nasplat.networks.channel_views import fixed, regroup
from nasplat.networks.counter import count
from nasplat.networks.pruning_proof import prove, randomise
from nasplat.networks.surgery import prune
from nasplat.spaces.families import make_space
from tests.networks import zoo

# What cannot be pruned in the published networks, and why that is so.
KNOWN_FROZEN = {
    # The shuffle interleaves two halves and the next block cuts the result in two halves again: over the blocks of a
    # stage this ties all its channels to one another. The widths inside the branches are free.
    "shufflenet_v2_x1_0": {"stage2.0.branch1.2", "stage3.0.branch1.2"},
}


def keep_some(graph: ChannelGraph, share: float = 0.7, seed: int = 0) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    counts = {group.name: min(max(1, round(group.size * share)), group.size - 1) for group in graph.groups}
    return {name: np.sort(rng.permutation(graph.group(name).size)[:count]) for name, count in counts.items()}


def random_network(make: Any) -> nn.Module:
    torch.manual_seed(0)
    network = make().eval()
    randomise(network, torch.Generator().manual_seed(1))
    return network


def prune_and_prove(network: nn.Module, inputs: tuple[Tensor, ...]) -> ChannelGraph:
    """Every group loses about a third; the result is proved, and costs what the closed form says."""
    graph = trace_channels(network, inputs)
    keep = keep_some(graph)
    pruned, _ = prune(network, graph, keep)
    assert type(pruned) is type(network)
    differences = prove(network, pruned, graph, keep, inputs)
    assert differences["float64"] < 1e-9 and differences["random weights"] < 1e-9
    counted = count(pruned, inputs=inputs)
    assert graph_cost(graph, keep) == (counted.macs, counted.params)
    macs, params = WidthCost(graph).cost(np.array([len(keep[group.name]) for group in graph.groups]))
    assert (macs, params) == (counted.macs, counted.params)
    return graph


@pytest.mark.parametrize("name", zoo.SMALL)
def test_all_groups_of_a_small_network_are_pruned_and_proved(name: str) -> None:
    """A person's network of this kind would be refused, or silently compute something else once pruned."""
    make, inputs = zoo.SMALL[name]
    graph = prune_and_prove(random_network(make), inputs)
    assert graph.groups and not graph.frozen


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", zoo.PUBLISHED)
def test_all_groups_of_a_published_network_are_pruned_and_proved(name: str) -> None:
    """The networks that most checkpoints are of would be refused, or pruned in part only."""
    network = random_network(lambda: getattr(zoo.torchvision.models, name)(weights=None))
    graph = prune_and_prove(network, zoo.image(zoo.PUBLISHED[name]))
    assert {frozen.name for frozen in graph.frozen} == KNOWN_FROZEN.get(name, set())


@pytest.mark.parametrize("name", ["resnet", "densenet", "mobilenet_v2", "vgg", "convnext"])
def test_torch_pruning_finds_the_same_layers(name: str) -> None:
    """Where another tool is known to be right, we would remove other channels than it does."""
    other = pytest.importorskip("torch_pruning", reason="torch-pruning is an optional second opinion")
    make, inputs = zoo.SMALL[name]
    network = random_network(make)
    graph = trace_channels(network, inputs)
    dependencies = other.DependencyGraph().build_dependency(network, inputs)
    modules = dict(network.named_modules())
    names = {module: path for path, module in modules.items()}
    for group in graph.groups:
        atom = group.size // 2
        ours = set()
        for member in group.members:
            path, _, leaf = member.tensor.rpartition(".")
            layer = modules[path]
            if leaf == "weight" and isinstance(layer, nn.Conv2d | nn.Linear):
                ours |= {(path, member.dim, int(index)) for index in member.indices[atom]}
        producer = modules[group.members[0].tensor.rpartition(".")[0]]
        assert isinstance(producer, nn.Conv2d | nn.Linear)
        kind = "conv" if isinstance(producer, nn.Conv2d) else "linear"
        function = getattr(other, f"prune_{kind}_out_channels")
        theirs = set()
        for dependency, indices in dependencies.get_pruning_group(producer, function, idxs=[atom]):
            layer = dependency.target.module
            if isinstance(layer, nn.Conv2d | nn.Linear):
                dim = int("in_channels" in dependency.handler.__name__)
                depthwise = isinstance(layer, nn.Conv2d) and layer.groups > 1
                theirs |= {(names[layer], 0 if depthwise else dim, int(index)) for index in indices}
        assert ours == theirs


@pytest.mark.slow
@pytest.mark.parametrize("name", zoo.TIMM)
def test_all_groups_of_a_network_of_timm_are_pruned_and_proved(name: str) -> None:
    """The other large collection of checkpoints would be out of reach."""
    timm = pytest.importorskip("timm", reason="timm is an optional package")
    network = random_network(lambda: timm.create_model(name, pretrained=False, num_classes=10))
    assert not prune_and_prove(network, zoo.image(zoo.TIMM[name])).frozen


@pytest.mark.parametrize("family", ["nasbench201", "darts", "mbconv"])
def test_networks_of_our_own_spaces_are_pruned_and_proved(family: str) -> None:
    """What a search has found could not be made smaller."""
    sizes = {"mbconv": {}}.get(family, {"channels": 4, "cells": 1})
    space = make_space({"family": family, **sizes}, classification((3, 16, 16), 4))
    network = random_network(lambda: space.build(space.sample(np.random.default_rng(1))))
    graph = prune_and_prove(network, zoo.image(16))
    assert graph.groups and not graph.frozen


def test_the_checkpoint_s_resnet20_loses_padded_zeros_too() -> None:
    """The shortcuts of CIFAR ResNets would freeze half of the channels of each stage."""
    graph = trace_channels(zoo.CifarResNet(), zoo.image(32))
    assert not graph.frozen
    sizes = {group.name: (group.size, group.unit) for group in graph.groups}
    # 8 zeros before and after the 16 channels of the first stage: one number says both, so they go in pairs.
    assert sizes["conv1"] == (16, 1) and sizes["layer2.0.conv2"] == (8, 2) and sizes["layer3.0.conv2"] == (16, 2)
    reached = {(member.tensor, member.dim) for member in graph.group("conv1").members}
    assert ("linear.weight", 1) in reached and ("layer3.2.bn2.running_var", 0) in reached
    assert [(entry.module, entry.attribute) for entry in graph.attributes] == [
        ("layer2.0.shortcut", "function.planes"),
        ("layer3.0.shortcut", "function.planes"),
    ]


def test_members_name_every_index_of_a_residual_stream() -> None:
    """A layer that was left out of a group would get channels that belong to others."""
    graph = trace_channels(zoo.SMALL["resnet"][0](), zoo.image(32))
    group = graph.group("layer2.0.conv2")
    assert group.members[0].tensor == "layer2.0.conv2.weight" and group.size == 128 and group.role == "channels"
    assert {(member.tensor, member.dim) for member in group.members if member.tensor.endswith("weight")} == {
        ("layer2.0.conv2.weight", 0),
        ("layer2.0.bn2.weight", 0),
        ("layer2.0.downsample.0.weight", 0),
        ("layer2.0.downsample.1.weight", 0),
        ("layer3.0.conv1.weight", 1),
        ("layer3.0.downsample.0.weight", 1),
    }
    for member in group.members:
        assert member.indices.ravel().tolist() == list(range(128))


def test_flattened_channels_take_all_their_pixels_with_them() -> None:
    """The classifier after a flatten would read other channels than it was trained on."""
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4 * 9, 2))
    member = trace_channels(network, (torch.zeros(1, 3, 5, 5),)).group("0").members[-1]
    assert (member.tensor, member.dim) == ("2.weight", 1)
    assert member.indices.tolist() == np.arange(36).reshape(4, 9).tolist()


def test_heads_and_their_width_are_groups_of_their_own() -> None:
    """Attention heads, which people most want to remove, could not be chosen."""
    graph = trace_channels(*zoo_case("free_transformer"))
    heads, width = graph.group("attention.0.q"), graph.group("attention.0.q/2")
    assert (heads.size, heads.role, width.size, width.role) == (2, "blocks", 6, "within")
    tables = {member.tensor: member.indices.tolist() for member in width.members}
    # The head width is one attribute for queries, keys and values, so it is one group.
    assert tables["attention.0.q.weight"] == tables["attention.0.v.weight"] == [[i, i + 6] for i in range(6)]


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (zoo.Sorts, "sort: an operation that nasplat cannot follow"),
        (zoo.Recurs, "gru: an operation that nasplat cannot follow"),
        (zoo.PicksTheLargest, "max: picks among channels"),
        (zoo.MeetsAConstant, "mul: meets a size that forward sets"),
        (zoo.WritesInPlace, "slice: a slice with fixed bounds"),
        (zoo.CountsItsChannels, "forward does not adapt to another size: div gets"),
    ],
)
def test_what_is_not_understood_is_frozen_with_its_place(make: Any, reason: str) -> None:
    """A person would not know which line of their network stands in the way, or would get wrong outputs."""
    network, inputs = random_network(make), zoo.image(12)
    graph = trace_channels(network, inputs)
    (frozen,) = graph.frozen
    assert (frozen.name, frozen.size) == ("bound", 6) and frozen.reason.startswith(reason)
    assert "zoo.py:" in frozen.where
    assert [group.name for group in graph.groups] == ["free"]
    pruned, _ = prune(network, graph, keep_some(graph))
    prove(network, pruned, graph, keep_some(graph), inputs)


def test_a_cost_that_is_not_known_is_no_zero() -> None:
    """A budget would be met by leaving the recurrent layers out of the count."""
    graph = trace_channels(zoo.Recurs(), zoo.image(12))
    with pytest.raises(NasplatError, match="cost of gru is not known"):
        graph_cost(graph, {})
    with pytest.raises(NasplatError, match="cost of gru is not known"):
        WidthCost(graph)


def test_sizes_that_stand_in_the_code_of_forward_are_frozen() -> None:
    """A view with a number in it would break the pruned network."""
    network = random_network(zoo.FixedViews)
    graph = prune_and_prove(network, zoo.image(12))
    # Of the slices [:3] and [3:], the first three channels are what cannot change.
    assert {(frozen.name, frozen.size) for frozen in graph.frozen} == {("viewed", 12), ("cut", 3)}
    assert all("zoo.py:" in frozen.where for frozen in graph.frozen)
    assert [(group.name, group.size) for group in graph.groups] == [("first", 12), ("cut", 7)]


def test_inputs_and_outputs_are_neither_groups_nor_failures() -> None:
    """A pruned network would take other images, or have fewer classes."""
    graph = trace_channels(nn.Sequential(nn.Linear(3, 8), nn.Linear(8, 5)), (torch.zeros(2, 3),))
    assert [group.name for group in graph.groups] == ["0"] and not graph.frozen


def test_the_model_stays_as_it_is() -> None:
    """Looking at a network would change its mode, its weights or where they are."""
    network = zoo.SMALL["several_heads"][0]().train()
    before = copy.deepcopy(network.state_dict())
    trace_channels(network, zoo.image(16))
    assert network.training and all(torch.equal(before[key], value) for key, value in network.state_dict().items())


@pytest.mark.parametrize("change", [nn.DataParallel, torch.compile, nn.Module.half, nn.Module.train])
def test_wrapped_halved_and_training_networks_are_traced_alike(change: Any) -> None:
    """A checkpoint in another state than evaluation in float32 would be refused."""
    network = change(zoo.SMALL["several_heads"][0]())
    (images,) = zoo.image(16)
    graph = trace_channels(network, (images.to(next(network.parameters()).dtype),))
    assert [group.name for group in graph.groups] == ["encoder.0", "encoder.3", "gate.0", "detail.0"]


def test_a_network_that_cannot_be_exported_says_why() -> None:
    """A traceback of torch's internals would be all that a person sees."""

    class Branches(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x if x.sum() > 0 else -x

    with pytest.raises(NasplatError, match=r"Branches cannot be exported with inputs of shape \[\(1, 3\)\]"):
        trace_channels(Branches(), (torch.zeros(1, 3),))


def test_wrong_choices_are_refused() -> None:
    """A typing error would prune another layer, or nothing."""
    graph = trace_channels(nn.Sequential(nn.Linear(3, 8), nn.Linear(8, 5)), (torch.zeros(2, 3),))
    for keep, message in (({"O": [1]}, "no group"), ({"0": []}, "nothing would be left"), ({"0": [8]}, "has 8 atoms")):
        with pytest.raises(NasplatError, match=message):
            graph.masks(keep)


def test_many_widths_are_counted_at_once() -> None:
    """A budget solver would need minutes for what takes milliseconds, or miss its budget."""
    graph = trace_channels(*zoo_case("shuffle"))
    cost = WidthCost(graph)
    rng = np.random.default_rng(0)
    kept = rng.integers(1, cost.sizes + 1, size=(20, len(cost.sizes)))
    macs, params = cost.cost(kept)
    for row, expected in zip(kept, zip(macs, params, strict=True), strict=True):
        keep = {name: rng.permutation(size)[:n] for name, size, n in zip(cost.groups, cost.sizes, row, strict=True)}
        assert graph_cost(graph, keep) == expected


def zoo_case(name: str) -> tuple[nn.Module, tuple[Tensor, ...]]:
    make, inputs = zoo.SMALL[name]
    return make(), inputs


def test_labels_through_views_follow_the_elements() -> None:
    """Which label an index gets after a view is what torch does to an index there."""
    labels = Labels()
    channels = labels.fresh(12)
    shape, dims = [2, 12, 4], [*fixed([2]), channels, *fixed([4])]
    flat = regroup(labels, dims, [2, 48], lambda blocks: True, BY_NATURE)[1]
    moved = torch.arange(12).reshape(1, 12, 1).expand(*shape).reshape(2, 48)[0]
    assert labels.find(flat).tolist() == labels.find(channels)[moved.numpy()].tolist()
    split = regroup(labels, dims, [2, 3, 4, 4], lambda blocks: True, BY_NATURE)
    assert [len(dim) for dim in split] == [2, 3, 4, 4] and (split[0] == FIXED).all()
    for index, channel in enumerate(labels.find(channels).tolist()):
        assert labels.atoms(channel) == {int(split[1][index // 4]), int(split[2][index % 4])}


def test_what_meets_a_frozen_label_is_frozen_with_its_parts() -> None:
    """One index of a head that must stay would be removed with its head."""
    labels = Labels()
    rows, columns = labels.fresh(2), labels.fresh(3)
    pairs = labels.pair(np.repeat(rows, 3), np.tile(columns, 2))
    labels.unite(pairs[:1], np.array([FIXED]), BY_NATURE)
    assert labels.frozen(rows).tolist() == [BY_NATURE, 0] and labels.frozen(columns).tolist() == [BY_NATURE, 0, 0]
