"""The space of elastic ResNets: published networks are points of it, one name for one network, nested operations.

What a user would lose: comparability with every published ResNet, and trials spent on the same network twice.
"""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import pytest
import torch

from nasplat.core.choice import Values
from nasplat.core.cost import cost_of
from nasplat.core.errors import NasplatError
from nasplat.core.problem import Output, Problem, classification
from nasplat.data.torchvision_import import torchvision
from nasplat.networks.counter import count
from nasplat.networks.graph_network import build_network
from nasplat.networks.graph_run import parameter_shapes
from nasplat.spaces.families import make_space
from nasplat.spaces.known import known_network, known_networks
from nasplat.spaces.resnet import ResNetSpace

CIFAR = classification((3, 32, 32), 10)
IMAGENET = classification((3, 224, 224), 1000)
SMALL = classification((1, 8, 8), 3)


def stages(channels: tuple[int, ...], blocks: tuple[int, ...]) -> list[dict[str, int]]:
    places = enumerate(zip(channels, blocks, strict=True))
    return [{"channels": width, "stride": 2 if place else 1, "blocks": most} for place, (width, most) in places]


BASIC, BOTTLENECK = (64, 128, 256, 512), (256, 512, 1024, 2048)
# Elastic around the published: largest and smallest options besides.
AROUND: dict[str, Any] = {"widths": [0.5, 1.0, 1.5], "kernels": [3, 5]}
IMAGENET_SPACES: dict[str, dict[str, Any]] = {
    "basic": {"stages": stages(BASIC, (4, 5, 7, 4)), "depths": [2, 3, 4, 6], "expansions": [0.5, 1.0]},
    "bottleneck": {"stages": stages(BOTTLENECK, (3, 4, 23, 3)), "depths": [2, 6], "expansions": [0.125, 0.25]},
}


@pytest.mark.parametrize(("name", "block"), [("resnet18", "basic"), ("resnet34", "basic"), ("resnet50", "bottleneck")])
def test_costs_are_those_of_torchvision(name: str, block: str) -> None:
    space = ResNetSpace(IMAGENET, block=block, stem="imagenet", **AROUND, **IMAGENET_SPACES[block])
    with torch.device("meta"):
        published = torchvision.models.get_model(name, weights=None)
    theirs = count(published, IMAGENET.input_shape).cost
    mine = space.cost(known_network(space, name))
    assert (mine.macs, mine.params) == (theirs.macs, theirs.params)
    assert mine.macs / 1e9 == pytest.approx(
        {"resnet18": 1.8141, "resnet34": 3.6637, "resnet50": 4.0892}[name], abs=1e-4
    )


@pytest.mark.parametrize(("name", "millions"), [("resnet20", 40.55), ("resnet56", 125.49), ("resnet110", 252.89)])
def test_costs_are_those_of_the_resnets_for_cifar(name: str, millions: float) -> None:
    space = ResNetSpace(CIFAR, stages=stages((16, 32, 64), (18, 18, 18)), depths=[3, 9], shortcut="padded", **AROUND)
    assert space.cost(known_network(space, name)).macs / 1e6 == pytest.approx(millions, abs=0.005)


def test_the_network_of_torchvision_computes_the_same() -> None:
    """The same numbers of weights in another order would be another network."""
    spec: dict[str, Any] = {"stages": stages((256, 512), (2, 2)), "widths": [1], "depths": [], "stem": "imagenet"}
    space = ResNetSpace(classification((3, 32, 32), 512), block="bottleneck", **spec)
    mine = space.build(space.canonical({})).eval()
    with torch.device("meta"):
        models = torchvision.models.resnet
        theirs = models.ResNet(models.Bottleneck, [2, 2, 1, 1])
        theirs.layer3, theirs.layer4, theirs.fc = torch.nn.Identity(), torch.nn.Identity(), torch.nn.Linear(512, 512)
    theirs.to_empty(device="cpu")
    generator = torch.Generator().manual_seed(0)
    for tensor in theirs.state_dict().values():
        tensor.copy_(torch.rand(tensor.shape, generator=generator) / 10)
    names: dict[str, str] = {"conv1": "stem.conv", "bn1": "stem.norm", "fc": "heads.logits"}
    renamed = {}
    for key, tensor in theirs.state_dict().items():
        *path, leaf = key.split(".")
        if path[0].startswith("layer"):
            inside = {"downsample": "shortcut"}.get(path[2], path[2].replace("bn", "norm"))
            tail = [{"0": "conv", "1": "norm"}[one] for one in path[3:]]
            place = [f"stage{path[0][5:]}", f"block{int(path[1]) + 1}", inside, *tail]
        else:
            place = [names[path[0]]]
        renamed[".".join([*place, leaf])] = tensor
    mine.load_state_dict(renamed)
    images = torch.randn(2, 3, 32, 32, generator=generator)
    torch.testing.assert_close(mine(images), theirs.eval()(images))


def test_what_keeps_a_published_network_out_is_said() -> None:
    space = ResNetSpace(CIFAR)
    with pytest.raises(NasplatError, match="shortcut is projection, and not padded"):
        known_network(space, "resnet20")
    with pytest.raises(NasplatError, match="stem is cifar"):
        known_network(space, "resnet18")
    with pytest.raises(NasplatError, match="other networks"):
        known_network(ResNetSpace(CIFAR, shortcut="padded"), "resnet32")
    assert list(known_networks(ResNetSpace(CIFAR, shortcut="padded"))) == ["resnet20"]


def test_a_space_of_one_network_has_no_choices_and_knows_its_name() -> None:
    space = ResNetSpace(CIFAR, shortcut="padded", widths=[1], depths=[])
    assert not space.choices and known_network(space, "resnet20") == space.canonical({})


# Two stages of equal channels and stride 1 after a stem of the same: blocks can stand in either.
TANGLED: dict[str, Any] = {
    "stages": [
        {"channels": 8, "stride": 1, "blocks": 2},
        {"channels": 8, "stride": 1, "blocks": 2},
        {"channels": 12, "stride": 2, "blocks": 1},
    ],
    "stem_channels": 8,
    "widths": [0.9, 1.0],
    "depths": [1],
    "expansions": [0.4, 0.5],
    "divisor": 4,
}


def chain(space: ResNetSpace, values: Values) -> tuple[tuple[Any, ...], ...]:
    """A network of the space without the names of its blocks."""
    return tuple(tuple(block)[1:] for block in space.blocks(values))


def test_two_assignments_are_one_architecture_exactly_if_their_blocks_are_the_same() -> None:
    space = ResNetSpace(SMALL, **TANGLED)
    digests: dict[object, set[str]] = {}
    names = list(space.choices)
    for options in product(*(choice.options for choice in space.choices.values())):
        values = dict(zip(names, options, strict=True))
        architecture = space.canonical(values)
        assert chain(space, architecture.values) == chain(space, values)
        digests.setdefault(chain(space, values), set()).add(architecture.digest)
    assert all(len(found) == 1 for found in digests.values())
    assert len(set.union(*digests.values())) == len(digests) < space.count() / 4


def test_dead_blocks_and_equal_widths_change_nothing() -> None:
    space = ResNetSpace(
        SMALL, stages=stages((8,), (2,)), widths=[0.9, 1.0], depths=[1], expansions=[0.5, 0.6], kernels=[3, 5]
    )
    dead = space.canonical({"stage1.depth": 1, "stage1.block2.kernel": 5, "stage1.block2.expansion": 0.6})
    assert dead == space.canonical({"stage1.width": 1.0})
    assert dead.values["stage1.block2.kernel"] == 3


def test_every_choice_changes_the_cost_and_is_ordered() -> None:
    space = ResNetSpace(CIFAR, expansions=[0.5, 1.0], kernels=[3, 5])
    assert len(space.choices) == 3 * (2 + 3 * 2) and all(choice.ordered for choice in space.choices.values())
    here = space.canonical({})
    for name in ("stage2.width", "stage2.depth", "stage2.block1.expansion", "stage2.block1.kernel"):
        larger = space.cost(space.canonical({name: space.choices[name].options[-1]}))
        assert larger.macs > space.cost(here).macs and larger.params > space.cost(here).params


@pytest.mark.parametrize("block", ["basic", "bottleneck"])
@pytest.mark.parametrize("shortcut", ["projection", "padded"])
@pytest.mark.parametrize("stem", ["cifar", "imagenet"])
def test_cost_is_that_of_the_graph_with_every_extra(block: str, shortcut: str, stem: str) -> None:
    """The sum over blocks knows odd sizes, both stems, shortcuts that grow and that shrink."""
    extras: dict[str, Any] = {"expansions": (0.3, 0.8), "kernels": (3, 5), "activation": "silu", "divisor": 4}
    space = ResNetSpace(classification((1, 13, 9), 3), block=block, shortcut=shortcut, stem=stem, **extras)
    rng = np.random.default_rng(0)
    for _ in range(60):
        architecture = space.sample(rng)
        assert space.cost(architecture) == cost_of(space.graph(architecture))


def test_padded_shortcuts_have_no_parameters_and_keep_pixels() -> None:
    """He et al., option A: every other pixel, and zeros for the channels that there were not."""
    spec: dict[str, Any] = {"stages": stages((4, 8), (1, 1)), "widths": [1], "depths": [], "stem_channels": 4}
    space = ResNetSpace(SMALL, shortcut="padded", **spec)
    network = space.build(space.canonical({})).eval()
    assert not any("shortcut" in name for name, _ in network.named_parameters())
    graph = space.graph(space.canonical({}))
    before = graph.taps["auxiliary"]
    (padded,) = (place for place, one in enumerate(graph.operations) if one.kind == "concat")
    taps = {"before": before, "padded": padded}
    run = build_network(type(graph)(graph.operations, graph.outputs, taps)).eval()
    found = run.forward_taps(torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0)), tuple(taps))
    assert torch.equal(found["padded"][:, :4], found["before"][:, :, ::2, ::2])
    assert found["padded"].shape[1] == 8 and not found["padded"][:, 4:].any()


def test_a_narrower_stage_after_a_wider_one_is_projected() -> None:
    """Zeros cannot take channels away: without a shortcut that can, such a network could not be built."""
    space = ResNetSpace(SMALL, stages=stages((16, 16), (1, 1)), widths=[0.5, 1.0], shortcut="padded")
    narrowing = space.canonical({"stage1.width": 1.0, "stage2.width": 0.5})
    assert "stage2.block1.shortcut.conv.weight" in parameter_shapes(space.graph(narrowing))
    assert space.build(narrowing)(torch.zeros(2, 1, 8, 8)).shape == (2, 3)


@pytest.mark.parametrize("block", ["basic", "bottleneck"])
def test_smaller_networks_are_named_parts_of_larger_ones(block: str) -> None:
    """Of a supernet they would else take other weights than those that were trained for their place."""
    space = ResNetSpace(CIFAR, block=block, expansions=[0.25, 1.0], kernels=[3, 5])
    largest = parameter_shapes(space.graph(space.canonical({n: c.options[-1] for n, c in space.choices.items()})))
    rng = np.random.default_rng(0)
    for _ in range(20):
        for name, shape in parameter_shapes(space.graph(space.sample(rng))).items():
            if "stage1.block1.shortcut" not in name:  # of equal channels, the largest needs none there
                assert all(size <= most for size, most in zip(shape, largest[name], strict=True))


def test_an_unlabelled_problem_ends_in_its_features() -> None:
    space = ResNetSpace(Problem((3, 8, 8), (Output("embedding", "embedding", 1),)), widths=[1])
    network = space.build(space.canonical({}))
    assert network(torch.zeros(2, 3, 8, 8)).shape == (2, 64)
    assert not any(name.startswith("heads") for name, _ in network.named_parameters())


@pytest.mark.parametrize(
    ("parameters", "said"),
    [
        ({"stages": []}, "stages"),
        ({"stages": [{"channels": 8, "stride": 2, "layers": 2}]}, "blocks: 3"),
        ({"stages": [{"channels": 8, "stride": 1, "blocks": 0}]}, "blocks of stage 1"),
        ({"block": "basics"}, "block 'basics'"),
        ({"block": ["basic"]}, "block"),
        ({"shortcut": None}, "shortcut None"),
        ({"stem": "mnist"}, "stem 'mnist'"),
        ({"stem_channels": 0}, "stem_channels"),
        ({"widths": [-1]}, "widths"),
        ({"widths": [1, 1]}, "twice"),
        ({"depths": [1.5]}, "depth"),
        ({"expansions": [0]}, "expansions"),
        ({"expansions": []}, "expansions"),
        ({"expansions": ["half"]}, "half"),
        ({"kernels": [4]}, "kernels"),
        ({"kernels": [1, 3]}, "a kernel is 1"),
        ({"kernels": 3}, "kernels"),
        ({"activation": "gelu"}, "gelu"),
        ({"divisor": 0}, "divisor"),
        ({"bloc": "basic"}, "did you mean 'block'"),
    ],
)
def test_wrong_parameters_are_named(parameters: dict[str, Any], said: str) -> None:
    with pytest.raises(NasplatError) as caught:
        make_space({"family": "resnet", **parameters}, SMALL)
    assert said in f"{caught.value.message} {caught.value.advice}".replace("Did", "did")


def test_the_drawing_is_the_chain_of_blocks() -> None:
    space = ResNetSpace(
        IMAGENET, block="bottleneck", stages=stages(BOTTLENECK, (3, 4, 6, 3)), stem="imagenet", widths=[1]
    )
    labels = [node.label for node in space.drawings(known_network(space, "resnet50"))["network"].nodes]
    assert labels[1:3] == ["conv 7×7 → 64, /2", "max pool 3×3, /2"]
    assert "1×1 → 128, 3×3 → 128, 1×1 → 512, /2" in labels and len(labels) == 1 + 2 + 16 + 2
