"""Operation graphs as tensors, and the vectors that the encoder makes of them."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from nasplat.core.cost import cost_of
from nasplat.core.errors import NasplatError
from nasplat.core.graph import GraphBuilder, Operation, OperationGraph
from nasplat.core.problem import classification
from nasplat.networks.graph_encoder import NODE_FEATURES, GraphEncoder, batch_graphs, split_batch
from nasplat.spaces.families import make_space

PROBLEM = classification((3, 16, 16), 4)
FAMILIES = ("nasnet", "darts", "nasbench201", "mbconv")


def sampled(family: str, count: int, seed: int = 0) -> list[OperationGraph]:
    space, rng = make_space({"family": family}, PROBLEM), np.random.default_rng(seed)
    return [space.graph(space.sample(rng)) for _ in range(count)]


def encoder(seed: int = 0) -> GraphEncoder:
    return GraphEncoder(generator=torch.Generator().manual_seed(seed))


def reordered(graph: OperationGraph, rng: np.random.Generator) -> OperationGraph:
    """The same graph with its operations in another order in which they can run."""
    left = set(range(len(graph.operations)))
    order: list[int] = []
    while left:
        ready = sorted(one for one in left if not set(graph.operations[one].inputs) & left)
        order.append(ready[int(rng.integers(len(ready)))])
        left.remove(order[-1])
    place = {old: new for new, old in enumerate(order)}
    operations = []
    for old in order:
        one = graph.operations[old]
        inputs = tuple(place[source] for source in one.inputs)
        operations.append(Operation(one.kind, inputs, one.shape, one.name, one.attributes))
    return OperationGraph(tuple(operations), {name: place[at] for name, at in graph.outputs.items()})


@pytest.mark.parametrize("family", FAMILIES)
def test_the_order_in_which_operations_are_listed_does_not_matter(family: str) -> None:
    """Otherwise one network would get two predictions, depending on how its family happens to write it down."""
    rng = np.random.default_rng(1)
    graphs = sampled(family, 3)
    others = [reordered(graph, rng) for graph in graphs]
    if family != "mbconv":  # a chain may have one order only
        assert any(one.operations != other.operations for one, other in zip(graphs, others, strict=True))
    with torch.no_grad():
        torch.testing.assert_close(
            encoder()(batch_graphs(graphs)), encoder()(batch_graphs(others)), atol=1e-4, rtol=1e-4
        )


@pytest.mark.parametrize("family", FAMILIES)
def test_a_graph_is_encoded_alike_alone_and_among_others(family: str) -> None:
    """Otherwise a prediction would depend on which other candidates were asked about in the same call."""
    graphs = sampled(family, 3) + sampled("mbconv", 2, seed=5)
    whole = batch_graphs(graphs)
    with torch.no_grad():
        together = encoder()(whole)
        alone = torch.cat([encoder()(batch_graphs([graph])) for graph in graphs])
        rows = torch.tensor([4, 0, 2])
        some = encoder()(split_batch(whole, rows))
    torch.testing.assert_close(together, alone, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(some, together[rows], atol=1e-4, rtol=1e-4)


def test_different_networks_have_different_vectors() -> None:
    """Otherwise networks that differ in one operation, one connection or their size could never be told apart."""

    def small(kernel: int = 3, channels: int = 8, depth: int = 1, skip: bool = False, shuffled: bool = False):  # type: ignore[no-untyped-def]
        builder = GraphBuilder((3, 8, 8))
        node = first = builder.conv2d(builder.input, channels, 3, name="stem")
        kinds = ("relu", "sigmoid") if shuffled else ("sigmoid", "relu")
        for number in range(depth):
            node = builder.activation(node, kinds[0])
            node = builder.activation(builder.conv2d(node, channels, kernel, name=f"body{number}"), kinds[1])
        if skip:
            node = builder.add([node, first])
        node = builder.flatten(builder.global_avg_pool(node))
        return builder.finish({"logits": builder.linear(node, 4, name="head")}, {})

    graphs = [small(), small(kernel=5), small(channels=9), small(depth=2), small(skip=True), small(shuffled=True)]
    with torch.no_grad():
        vectors = encoder()(batch_graphs(graphs))
    distances = torch.cdist(vectors, vectors) + torch.eye(len(graphs))
    assert distances.min() > 1e-3
    assert torch.isfinite(vectors).all()


def test_features_hold_the_costs_of_the_network() -> None:
    """Otherwise the encoder would learn from numbers that are not those of the network."""
    graph = sampled("mbconv", 1)[0]
    nodes = batch_graphs([graph]).nodes.double()
    assert nodes.shape == (len(graph.operations), NODE_FEATURES)
    macs, params = ((2 ** (16 * nodes[:, column]) - 1).sum() for column in (-4, -3))
    cost = cost_of(graph)
    assert float(macs) == pytest.approx(cost.macs, rel=1e-4)
    assert float(params) == pytest.approx(cost.params, rel=1e-4)


def test_weights_come_from_the_generator_alone() -> None:
    """Otherwise two searches with one seed would rank candidates differently."""
    torch.manual_seed(1)
    first = encoder(3).state_dict()
    torch.manual_seed(2)
    second = encoder(3).state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first["enter.weight"], encoder(4).state_dict()["enter.weight"])


def test_an_unknown_kind_of_operation_is_named() -> None:
    """Otherwise a traced network with an operation that has no features would fail without a reason."""
    graph = OperationGraph((Operation("input", (), (3, 8, 8), "input"), Operation("fft", (0,), (3, 8, 8), "odd")), {})
    with pytest.raises(NasplatError, match="'odd' is of unknown kind 'fft'"):
        batch_graphs([graph])
