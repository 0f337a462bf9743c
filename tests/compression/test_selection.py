from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from nasplat.compression.selection import block_of, select
from nasplat.core.channel_cost import graph_cost
from nasplat.core.channel_graph import ChannelGraph
from nasplat.core.errors import NasplatError
from nasplat.core.pruning_groups import chosen_groups, structure_of
from nasplat.data.torchvision_import import torchvision
from nasplat.networks.channel_tracer import trace_channels
from nasplat.networks.counter import count
from nasplat.networks.surgery import prune

mobilenet_v2, resnet18 = torchvision.models.mobilenet_v2, torchvision.models.resnet18
vit_b_16 = torchvision.models.vit_b_16
IMAGES = (torch.zeros(1, 3, 64, 64),)


def random_scores(graph: ChannelGraph, seed: int = 0) -> dict[str, np.ndarray]:
    random = np.random.default_rng(seed)
    return {group.name: random.random(group.size) for group in graph.groups}


@pytest.fixture(scope="module")
def resnet() -> tuple[nn.Module, ChannelGraph]:
    network = resnet18(num_classes=10).eval()
    return network, trace_channels(network, IMAGES)


@pytest.mark.parametrize("scope", ["global", "local", "block"])
@pytest.mark.parametrize("limits", [{"macs": 0.5}, {"params": 0.3}, {"macs": 0.6, "params": 0.5}])
def test_budgets_are_met_within_one_percent(resnet: Any, scope: Any, limits: dict[str, float]) -> None:
    """A network twice as large as asked for would not fit the device it was pruned for."""
    network, graph = resnet
    whole = dict(zip(("macs", "params"), graph_cost(graph, {}), strict=True))
    absolute = {name: share * whole[name] for name, share in limits.items()}
    found = select(graph, random_scores(graph), absolute, scope=scope)
    pruned = count(prune(network, graph, found.keep)[0], (3, 64, 64))  # the counter knows nothing of the closed form
    assert (pruned.macs, pruned.params) == (found.macs, found.params)
    shares = {"macs": pruned.macs / absolute["macs"]} if "macs" in limits else {}
    shares |= {"params": pruned.params / absolute["params"]} if "params" in limits else {}
    assert max(shares.values()) <= 1 and max(shares.values()) >= 0.99 and found.met


def test_the_least_important_go(resnet: Any) -> None:
    """The ranking would be computed for nothing."""
    _, graph = resnet
    scores = random_scores(graph)
    macs = graph_cost(graph, {})[0]
    kept = select(graph, scores, {"macs": 0.5 * macs}).keep
    for name, stays in kept.items():
        gone = sorted(set(range(len(scores[name]))) - set(stays))
        assert scores[name][list(stays)].min() >= scores[name][gone].max()
    best_gone = max(np.delete(scores[name], list(stays)).max() for name, stays in kept.items())
    worst_kept = min(scores[name][list(stays)].min() for name, stays in kept.items() if len(stays) > 1)
    assert best_gone < worst_kept + 0.05  # over all groups, up to what fills the budget


def test_local_takes_the_same_share_of_every_group(resnet: Any) -> None:
    _, graph = resnet
    macs = graph_cost(graph, {})[0]
    kept = select(graph, random_scores(graph), {"macs": 0.5 * macs}, scope="local").keep
    shares = [len(stays) / graph.group(name).size for name, stays in kept.items()]
    assert len(kept) == len(graph.groups) and max(shares) - min(shares) < 0.03


def test_block_takes_the_same_share_of_every_block(resnet: Any) -> None:
    _, graph = resnet
    scores = {name: (1 + len(name)) * one for name, one in random_scores(graph).items()}
    kept = select(graph, scores, {"macs": 0.5 * graph_cost(graph, {})[0]}, scope="block").keep
    by_block: dict[str, list[tuple[int, int]]] = {}
    for group in graph.groups:
        pair = (len(kept.get(group.name, range(group.size))), group.size)
        by_block.setdefault(block_of(group.name), []).append(pair)
    shares = [sum(left for left, _ in pairs) / sum(size for _, size in pairs) for pairs in by_block.values()]
    assert {"layer1", "layer4"} <= by_block.keys() and max(shares) - min(shares) < 0.04


def test_widths_are_multiples_of_what_the_hardware_likes(resnet: Any) -> None:
    _, graph = resnet
    macs = graph_cost(graph, {})[0]
    found = select(graph, random_scores(graph), {"macs": 0.5 * macs}, round_to=8)
    assert found.keep and all(len(stays) * graph.group(name).unit % 8 == 0 for name, stays in found.keep.items())
    assert 0.9 * 0.5 * macs < found.macs <= 0.5 * macs


def test_depthwise_channels_go_with_what_they_filter() -> None:
    network = mobilenet_v2(num_classes=10).eval()
    graph = trace_channels(network, IMAGES)
    found = select(graph, random_scores(graph), {"macs": 0.5 * graph_cost(graph, {})[0]}, round_to=8)
    pruned, _ = prune(network, graph, found.keep)
    assert count(pruned, (3, 64, 64)).macs == found.macs
    depthwise = [one for one in pruned.modules() if isinstance(one, nn.Conv2d) and one.groups > 1]
    assert all(one.groups == one.in_channels == one.out_channels for one in depthwise)


def test_structures_of_a_transformer_are_told_apart() -> None:
    """Who asks for narrower perceptrons would lose attention heads."""
    graph = trace_channels(vit_b_16(image_size=32, num_classes=10).eval(), (torch.zeros(1, 3, 32, 32),))
    kinds: dict[str, list[int]] = {}
    for group in graph.groups:
        kinds.setdefault(structure_of(group, graph), []).append(group.size)
    assert set(kinds["mlp"]) == {3072} and len(kinds["mlp"]) == 12
    # torch's own attention makes the stream as wide as all heads together: both go by whole heads, or by their width.
    assert kinds["heads"] == [12] and kinds["head_width"] == [64] and "channels" not in kinds
    chosen = chosen_groups(graph, ["mlp"], leave=["*layer_0*"])
    assert len(chosen) == 11 and {structure_of(group, graph) for group in chosen} == {"mlp"}
    heads = {group.name: np.arange(group.size, dtype=float) for group in chosen_groups(graph, ["heads"])}
    found = select(graph, heads, {"params": 0.9 * graph_cost(graph, {})[1]}, round_to=8)
    assert found.keep == {"conv_proj": tuple(range(1, 12))}


def test_a_share_of_every_group_stays(resnet: Any) -> None:
    """A layer of one channel would pass nothing on."""
    _, graph = resnet
    scores = random_scores(graph)
    scores["conv1"] = scores["conv1"] - 10
    least = {group.name: 0.25 * group.size for group in graph.groups}
    found = select(graph, scores, {"macs": 0.4 * graph_cost(graph, {})[0]}, least=least)
    assert len(found.keep["conv1"]) == 16
    assert all(len(stays) >= least[name] for name, stays in found.keep.items())


def test_a_budget_that_cannot_be_met_names_the_least_that_can(resnet: Any) -> None:
    _, graph = resnet
    macs = graph_cost(graph, {})[0]
    least = {group.name: 0.5 * group.size for group in graph.groups}
    with pytest.raises(NasplatError, match=r"asks for macs of .* \(10.0%\), and the least is [\d,]+ \(2\d\.\d%\)"):
        select(graph, random_scores(graph), {"macs": 0.1 * macs}, least=least)


def test_coarse_widths_that_miss_the_budget_say_so() -> None:
    network = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 4, 3)).eval()
    graph = trace_channels(network, IMAGES)
    macs = graph_cost(graph, {})[0]
    found = select(graph, random_scores(graph), {"macs": 0.7 * macs}, round_to=8)
    assert not found.met and len(found.keep["0"]) == 8 and found.macs == macs // 2


def test_patterns_that_match_nothing_are_errors(resnet: Any) -> None:
    _, graph = resnet
    with pytest.raises(NasplatError, match="layer9"):
        chosen_groups(graph, ["channels"], only=["layer9.*"])
    with pytest.raises(NasplatError, match="nothing of this network can be pruned"):
        chosen_groups(graph, ["heads"])
