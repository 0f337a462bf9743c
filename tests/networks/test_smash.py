"""Kernels generated from the encoding of a whole network, beside shared weights."""

from __future__ import annotations

from functools import cache
from itertools import combinations
from typing import Any

import numpy as np
import pytest
import torch

from nasplat.core.errors import NasplatError
from nasplat.core.graph import GraphBuilder
from nasplat.networks.graph_run import GraphRun, parameter_shapes
from nasplat.networks.kernel_encoding import BAND, SIGNAL, encode, indicators
from nasplat.networks.smash import SmashHyperNetwork
from nasplat.spaces.families import make_space
from tests.networks.test_shared_weights import PROBLEM, SPACES, images, sampled

BANKS = SPACES["memory_bank"]
ALL: dict[str, dict[str, Any]] = {
    "nasbench201": {**SPACES["nasbench201"], "operations": ["none", "skip_connect", "conv_1x1", "conv_3x3"]},
    "nasnet": {
        **SPACES["nasnet"],
        "blocks": 1,
        "operations": ["skip_connect", "avg_pool_3x3", "conv_1x1", "sep_conv_3x3"],
    },
    "darts": {**SPACES["darts"], "nodes": 2},
    "mbconv": SPACES["mbconv"],
    "memory_bank": BANKS,
}


@pytest.fixture(params=ALL, scope="module")
def space(request: pytest.FixtureRequest) -> Any:
    return make_space(ALL[request.param], PROBLEM)


@cache
def source_of(space: Any, **options: Any) -> SmashHyperNetwork:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return SmashHyperNetwork(space, **{"width": 12, "growth": 6, "depth": 2, **options})


def own_parameters(source: SmashHyperNetwork) -> dict[str, torch.nn.Parameter]:
    return {name: one for name, one in source.named_parameters() if not name.startswith("shared.")}


@pytest.mark.parametrize(("generated", "base"), [("pointwise", True), ("all", False)])
def test_gradients_reach_the_hypernetwork_and_what_is_shared(space: Any, generated: Any, base: bool) -> None:
    """What has no gradient never learns, and nobody would see it."""
    source = source_of(space, generated=generated, base=base).train()
    graphs = [space.graph(one) for one in sampled(space, 3)]
    total: Any = 0
    used: set[str] = set()
    for graph, weights in zip(graphs, source(graphs), strict=True):
        assert {name: tuple(one.shape) for name, one in weights.items()} == dict(parameter_shapes(graph))
        total = total + GraphRun(graph, weights)(images()).square().sum()  # type: ignore[union-attr]
        kernels = source.kernels(graph)
        assert kernels
        used |= {key for name, key in source.shared._keys(graph).items() if name in weights and name not in kernels}
    total.backward()
    shared = source.shared.parameters_by_key
    for parameter in (*own_parameters(source).values(), *(shared[key] for key in used)):
        assert parameter.grad is not None and parameter.grad.isfinite().all() and parameter.grad.abs().sum() > 0


def test_networks_that_differ_anywhere_get_different_kernels(space: Any) -> None:
    """A generator that does not see the difference ranks two networks by one set of weights, as a supernet does."""
    source = source_of(space, generated="pointwise", base=True).eval()
    architectures = set(sampled(space, 10))
    with torch.no_grad():
        found = [source.kernels(space.graph(one)) for one in architectures]
        again = [source.kernels(space.graph(one)) for one in architectures]
    for one, other in combinations(found, 2):
        for name in one.keys() & other.keys():
            assert one[name].shape != other[name].shape or not torch.equal(one[name], other[name])
    for one, other in zip(found, again, strict=True):
        assert all(torch.equal(one[name], other[name]) for name in one)


def test_an_identity_more_is_seen_by_kernels_elsewhere() -> None:
    """It has no weights and no name: only what is added to what tells that it is there."""
    space = make_space({**SPACES["nasbench201"], "operations": ["none", "skip_connect", "conv_3x3"]}, PROBLEM)
    source = source_of(space).eval()
    values = {**dict.fromkeys(space.choices, "none"), "edge_0_1": "conv_3x3", "edge_1_3": "conv_3x3"}
    with_and_without = [space.canonical({**values, "edge_0_3": last}) for last in ("none", "skip_connect")]
    one, other = (source.kernels(space.graph(architecture)) for architecture in with_and_without)
    assert list(one) == list(other) == ["cells.1.shortcut.weight", "cells.3.shortcut.weight"]
    assert all(not torch.equal(one[name], other[name]) for name in one)


def test_noise_is_drawn_in_training_alone() -> None:
    """A ranking with noise in it could not be repeated; a training without is not that of the paper."""
    space = make_space(BANKS, PROBLEM)
    source = source_of(space)
    graph = space.graph(sampled(space, 1)[0])
    name = "last.conv.weight"
    torch.manual_seed(3)
    first, second = source([graph])[0][name], source([graph])[0][name]
    torch.manual_seed(3)
    again = source([graph])[0][name]
    assert not torch.equal(first, second) and torch.equal(first, again)
    source.eval()
    assert torch.equal(source([graph])[0][name], source([graph])[0][name])


@pytest.mark.parametrize(("generated", "base"), [("pointwise", True), ("all", False)])
def test_a_network_that_leaves_the_source_computes_what_it_did_there(space: Any, generated: Any, base: bool) -> None:
    """A person would deploy another network than the one that was ranked."""
    source = source_of(space, generated=generated, base=base).eval()
    architecture = sampled(space, 1, seed=4)[0]
    graph = space.graph(architecture)
    with torch.no_grad():
        run = GraphRun(graph, *source([graph]))
    run.calibrate([images(6)])
    network = space.build(architecture)
    network.load_state_dict(run.state_dict())
    assert torch.equal(network.eval()(images()), run(images()))


@pytest.mark.parametrize("unit", [1, 3, 4])
def test_every_weight_lies_in_its_cell(unit: int) -> None:
    """Kernels cut at the wrong place would belong to other channels; held against a loop over every weight."""
    space = make_space({**BANKS, "blocks": [{"channels": 6, "banks": 2, "layers": 1}], "groups": [2]}, PROBLEM)
    source = source_of(space, generated="all", unit=unit).eval()
    graph = space.graph(space.extremes()[0])
    with torch.no_grad():
        kernels = source.kernels(graph)
        code = encode(graph, source.generated, unit)
        features = source._features(code)
    head = source.head.detach().unflatten(2, source.largest).unflatten(1, (unit, unit))
    first = {}
    for size, count in code.sizes.items():
        first[size] = sum(first_count for other, first_count in code.sizes.items() if other in first)
        assert count > 0
    shapes = parameter_shapes(graph)
    assert {kernel.name: kernel.shape for kernel in code.kernels} == {
        name: shape for name, shape in shapes.items() if len(shape) == 4
    }
    for kernel in code.kernels:
        size = kernel.shape[2:]
        edge = [(most - own) // 2 for most, own in zip(source.largest, size, strict=True)]
        for out, inside, row, column in np.ndindex(*kernel.shape):
            band, down = divmod(out // unit, BAND)
            across = first[size] + kernel.first + band * kernel.columns + inside // unit
            vector = head[:, out % unit, inside % unit, row + edge[0], column + edge[1]]
            expected = features[:, down, across] @ vector * code.scales[across, 0]
            assert kernels[kernel.name][out, inside, row, column] == pytest.approx(float(expected), abs=1e-5)


def test_columns_say_where_channels_come_from() -> None:
    """Without it a kernel cannot tell the banks that it reads."""
    builder = GraphBuilder((3, 4, 4))
    one, other = (builder.conv2d(builder.input, 4, 3, name=name) for name in ("one", "other"))
    first = builder.conv2d(builder.concat([one, builder.activation(other)]), 4, name="first")
    second = builder.conv2d(builder.add([one, other]), 4, name="second")
    pooled = builder.conv2d(builder.pool(one, "max_pool", 3), 4, name="third")
    graph = builder.finish({"y": builder.concat([first, second, pooled])}, {})
    code = encode(graph, lambda operation: operation.name in ("first", "second", "third"), 4)
    origin = code.columns[:, :SIGNAL]
    assert [kernel.name for kernel in code.kernels] == ["first.weight", "second.weight", "third.weight"]
    assert len(origin) == 4 and len(torch.unique(origin, dim=0)) == 4
    torch.testing.assert_close(origin.norm(dim=1), torch.full((4,), SIGNAL**0.5))
    alone = [torch.tensor(indicators(graph.operations[place]), dtype=torch.float32) for place in (one, other)]
    for row, itself, another in ((0, 0, 1), (1, 1, 0)):
        assert origin[row] @ alone[itself] > 0.7 * SIGNAL > origin[row] @ alone[another]
    assert all(origin[2] @ name > 0.3 * SIGNAL for name in alone)


def test_generated_kernels_are_as_large_as_initialised_ones() -> None:
    """Ten times larger they would drown the base and the gradients, ten times smaller they would say nothing."""
    space = make_space(BANKS, PROBLEM)
    source = source_of(space, base=False).eval()
    for architecture in sampled(space, 5):
        for kernel in source.kernels(space.graph(architecture)).values():
            assert 0.3 < float(kernel.detach().std()) * (kernel.shape[0] / 2) ** 0.5 < 3


@pytest.mark.parametrize("base", [True, False])
def test_networks_of_another_space_are_refused(base: bool) -> None:
    """Their kernels would be generated all the same, and rank by chance."""
    source = source_of(make_space(BANKS, PROBLEM), base=base)
    for spec in ({**BANKS, "last_channels": 32}, SPACES["nasbench201"]):
        other = make_space(spec, PROBLEM)
        with pytest.raises(NasplatError, match="no weights for"):
            source([other.graph(sampled(other, 1)[0])])
