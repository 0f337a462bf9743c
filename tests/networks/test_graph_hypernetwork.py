"""Weights of any network from its graph."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from nasplat.core.errors import NasplatError
from nasplat.core.graph import GraphBuilder, Operation, OperationGraph
from nasplat.networks.graph_hypernetwork import GraphHyperNetwork, _levels, _tiled
from nasplat.networks.graph_run import GraphRun, parameter_shapes
from nasplat.networks.primitive_graph import primitives
from nasplat.networks.same import Same
from nasplat.spaces.families import make_space
from nasplat.training.initialisation import initialise_from, problem_of
from tests.networks.test_shared_weights import PROBLEM, SPACES, images, sampled


@pytest.fixture(params=SPACES)
def space(request: pytest.FixtureRequest) -> Any:
    return make_space(SPACES[request.param], PROBLEM)


def hypernetwork(space: Any, **options: Any) -> GraphHyperNetwork:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return GraphHyperNetwork(space, **{"width": 16, "channels": 8, "kernel": 3, **options})


def test_every_network_of_every_space_gets_weights_that_train(space: Any) -> None:
    """A parameter without a gradient would never learn, and nobody would see it."""
    source = hypernetwork(space)
    graphs = [space.graph(one) for one in sampled(space, 6)]
    total: Any = 0
    for graph, weights in zip(graphs, source(graphs), strict=True):
        assert {name: tuple(one.shape) for name, one in weights.items()} == dict(parameter_shapes(graph))
        total = total + GraphRun(graph, weights)(images()).square().sum()  # type: ignore[union-attr]
    total.backward()
    assert all(one.grad is not None and one.grad.isfinite().all() for one in source.parameters())


def test_weights_depend_on_the_whole_network() -> None:
    """A generator that sees single layers is a table of layers."""
    space = make_space(SPACES["nasbench201"], PROBLEM)
    source = hypernetwork(space)
    values = dict.fromkeys(space.choices, "conv_3x3")
    one, other = (space.graph(space.canonical({**values, "edge_2_3": last})) for last in ("conv_3x3", "skip_connect"))
    first, second = source([one, other])
    for name in ("stem.conv.weight", "cells.0.edge_0_1.conv.weight"):
        assert not torch.equal(first[name], second[name])
    again = source([one])[0]
    assert all(torch.equal(first[name], again[name]) for name in first)


def test_weights_are_as_large_as_their_fan_in_asks() -> None:
    """Without it wide layers explode and narrow ones die, as the paper's ablation shows."""
    builder = GraphBuilder((3, 8, 8))
    wide = builder.conv2d(builder.conv2d(builder.input, 64, 3, name="narrow"), 64, 3, name="wide")
    node = builder.linear(builder.flatten(builder.global_avg_pool(wide)), 5, name="head")
    graph = builder.finish({"logits": node}, {})
    with torch.no_grad():
        source = hypernetwork(make_space(SPACES["nasbench201"], PROBLEM), channels=16)
        source.kernels.weight.zero_()
        source.kernels.bias.normal_(generator=torch.Generator().manual_seed(0))
        weights = source([graph])[0]
    deviations = {name: float(weights[f"{name}.weight"].std()) for name in ("narrow", "wide")}
    assert deviations["narrow"] == pytest.approx((2 / 27) ** 0.5, rel=0.3)
    assert deviations["wide"] == pytest.approx((2 / (64 * 9)) ** 0.5, rel=0.3)


@pytest.mark.parametrize("shape", [(3, 2, 3, 3), (8, 8, 3, 3), (20, 17, 3, 3), (5, 1, 7, 7), (9, 4, 1, 1), (6,), (30,)])
def test_tiles_are_repeated_along_channels_and_padded_around(shape: tuple[int, ...]) -> None:
    """Against a loop over every element."""
    tensor = torch.randn(8, 8, 3, 3) if len(shape) == 4 else torch.randn(8)
    if len(shape) == 4 and shape[2] < 3:
        tensor = tensor[:, :, 1:2, 1:2]
    found = _tiled(tensor, shape)
    assert tuple(found.shape) == shape
    for place in np.ndindex(*shape):
        if len(shape) == 1:
            assert found[place] == tensor[place[0] % 8]
            continue
        side = tensor.shape[2]
        row, column = (at - (shape[2] - side) // 2 for at in place[2:])
        inside = 0 <= row < side and 0 <= column < side
        expected = tensor[place[0] % 8, place[1] % 8, row, column] if inside else 0
        assert found[place] == expected


def test_messages_go_by_shortest_paths() -> None:
    """A chain with a short cut: what is two steps away speaks half as loud, what is one step away is a neighbour."""
    builder = GraphBuilder((1, 4, 4))
    first = builder.activation(builder.input)
    second = builder.activation(first)
    total = builder.add([first, second])
    graph = builder.finish({"y": builder.activation(total)}, {})
    levels = _levels(Same(graph), Same(parameter_shapes(graph)), "cpu")
    assert levels.near.nonzero().tolist() == [[1, 0], [2, 1], [3, 1], [3, 2], [4, 3]]
    assert levels.far[3, 0] == 0.5 and levels.far[4, 0] == pytest.approx(1 / 3) and levels.far[2, 0] == 0.5
    assert [rows.tolist() for rows in levels.order] == [[0], [1], [2], [3], [4]]


def test_unknown_operations_are_passed_over() -> None:
    """A traced network holds operations of torch's own; what stands behind one must still hear what stands before."""
    operations = (
        Operation("input", (), (3, 4, 4), "input"),
        Operation("conv2d", (0,), (4, 4, 4), "conv", {"kernel": (1, 1)}),
        Operation("aten.permute_copy", (1,), (4, 4, 4)),
        Operation("aten.native_layer_norm", (2,), (4, 4, 4), "norm"),
        Operation("aten.nothing", (3, 1), (4, 4, 4)),
        Operation("relu", (4,), (4, 4, 4)),
    )
    found = primitives(OperationGraph(operations, {"y": 5}))
    assert [one.kind for one in found.operations] == ["input", "conv2d", "batch_norm", "relu"]
    assert [one.inputs for one in found.operations] == [(), (0,), (1,), (2, 1)] and found.outputs == {"y": 3}


def test_networks_of_others_are_initialised() -> None:
    """Any module is an input: its convolutions, linear and normalising layers get weights, and other parts stay."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Sequential(nn.Conv2d(2, 12, 5, padding=2), nn.GroupNorm(3, 12), nn.GELU())
            self.scale = nn.Parameter(torch.full((12, 1, 1), 0.7))
            self.head = nn.Linear(12, 5)

        def forward(self, batch: torch.Tensor) -> torch.Tensor:
            return self.head((self.body(batch) * self.scale).mean((2, 3)))

    network = Net()
    before = {name: one.clone() for name, one in network.state_dict().items()}
    source = hypernetwork(make_space(SPACES["nasbench201"], PROBLEM))
    left = initialise_from(source, network, problem_of(network, (2, 12, 12)), torch.Generator().manual_seed(0))
    assert left == ("scale",) and torch.equal(network.scale, before["scale"])
    after = network.state_dict()
    assert all(not torch.equal(after[name], before[name]) for name in before if name != "scale")
    rows = after["body.0.weight"].flatten(1)
    assert len(torch.unique(rows, dim=0)) == 12  # tiles would stay equal through all of training
    assert network(torch.randn(4, 2, 12, 12)).isfinite().all() and network.training


def test_weights_of_five_dimensions_are_refused_by_name() -> None:
    """An error deep inside a decoder tells nobody which layer it was."""
    space = make_space(SPACES["nasbench201"], PROBLEM)
    graph = space.graph(sampled(space, 1)[0])
    source = hypernetwork(space)
    with pytest.raises(NasplatError, match=r"stem.conv.weight has 5 dimensions"):
        source.weights(graph, {"stem.conv.weight": (4, 2, 3, 3, 3)})
    with pytest.raises(NasplatError, match="belongs to no operation"):
        source.weights(graph, {"elsewhere.weight": (4, 2)})
