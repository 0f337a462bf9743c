"""Weights shared by all networks of a space, and graphs that run with them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from nasplat.core.errors import NasplatError
from nasplat.core.problem import classification
from nasplat.networks.graph_network import build_network
from nasplat.networks.graph_run import GraphRun, parameter_shapes
from nasplat.networks.shared_weights import SharedWeights, extremes
from nasplat.spaces.families import make_space

PROBLEM = classification((2, 12, 12), 5)
SPACES: dict[str, dict[str, Any]] = {
    "nasbench201": {"family": "nasbench201", "cells": 1, "channels": 4},
    "darts": {"family": "darts", "cells": [1, 0], "channels": 4},
    "nasnet": {"family": "nasnet", "cells": [1, 0], "channels": 4, "blocks": 2},
    "mbconv": {
        "family": "mbconv",
        "stem_channels": 8,
        "stages": [{"channels": 16, "stride": 2, "layers": 2}, {"channels": 16, "stride": 2, "layers": 2}],
        "operations": ["identity", "mb_k3_e3", "mb_k5_e6"],
        "widths": [0.5, 1.0],
        "depths": [1],
        "last_channels": 0,
        "squeeze_excite": True,
    },
    "resnet": {
        "family": "resnet",
        "stages": [{"channels": 16, "stride": 2, "blocks": 2}, {"channels": 16, "stride": 2, "blocks": 2}],
        "stem_channels": 8,
        "widths": [0.5, 1.0],
        "depths": [1],
        "expansions": [0.5, 1.0],
        "kernels": [3, 5],
    },
    "bottleneck": {
        "family": "resnet",
        "block": "bottleneck",
        "stages": [{"channels": 32, "stride": 1, "blocks": 2}, {"channels": 64, "stride": 2, "blocks": 2}],
        "stem_channels": 8,
        "widths": [0.25, 1.0],
        "depths": [1],
        "expansions": [0.25, 0.5],
        "kernels": [3, 5],
        "shortcut": "padded",
    },
    "memory_bank": {
        "family": "memory_bank",
        "blocks": [{"channels": [4, 8], "banks": 3, "layers": 2}, {"channels": 6, "banks": 3, "layers": 2}],
        "kernels": [3, 5],
        "dilations": [1, 2],
        "groups": [1, 2],
        "last_channels": 20,
    },
}


@pytest.fixture(params=SPACES)
def space(request: pytest.FixtureRequest) -> Any:
    return make_space(SPACES[request.param], PROBLEM)


def images(count: int = 6) -> torch.Tensor:
    return torch.randn(count, *PROBLEM.input_shape, generator=torch.Generator().manual_seed(0))


def sampled(space: Any, count: int, seed: int = 1) -> list[Any]:
    rng = np.random.default_rng(seed)
    return [space.sample(rng) for _ in range(count)]


@pytest.mark.parametrize("kernels", ["own", "sliced"])
def test_a_network_that_leaves_the_supernet_computes_what_its_slice_does(space: Any, kernels: Any) -> None:
    """A person would deploy another network than the one that was ranked."""
    bank = SharedWeights(space, kernels, torch.Generator().manual_seed(0))
    for architecture in sampled(space, 4):
        graph = space.graph(architecture)
        run = GraphRun(graph, bank([graph])[0])
        network = space.build(architecture).train()
        network.load_state_dict(run.state_dict(), strict=False)
        torch.testing.assert_close(network(images()), run(images()), rtol=1e-4, atol=1e-5)
        run.calibrate([images(4), images(6)])
        network.load_state_dict(run.state_dict())
        with torch.no_grad():
            assert torch.equal(network.eval()(images()), run(images()))


def test_the_bank_has_all_that_any_network_needs(space: Any) -> None:
    """A training of hours would end at the first network that it has no weights for."""
    bank = SharedWeights(space)
    for architecture in sampled(space, 150, seed=3):
        graph = space.graph(architecture)
        (found,) = bank([graph])
        assert {name: tuple(found[name].shape) for name in parameter_shapes(graph)} == dict(parameter_shapes(graph))


def test_every_cell_of_a_whole_space_has_weights() -> None:
    """Of a space that can be enumerated nothing is left to chance."""
    problem = classification((1, 4, 4), 2)
    space = make_space({"family": "nasbench201", "cells": [1], "channels": 2}, problem)
    bank = SharedWeights(space)
    needed = set()
    for architecture in list(space.enumerate())[::7]:
        needed |= {key for name, key in bank._keys(space.graph(architecture)).items() if key in bank.parameters_by_key}
        bank([space.graph(architecture)])
    assert needed == set(bank.parameters_by_key)


def test_gradients_go_to_the_sampled_path_alone() -> None:
    """Weights of others would be changed by networks that they are not in."""
    space = make_space(SPACES["mbconv"], PROBLEM)
    bank = SharedWeights(space, "sliced")
    graph = space.graph(space.canonical({**extremes(space)[1].values, "stage1.layer1": "mb_k3_e3"}))
    GraphRun(graph, bank([graph])[0])(images()).square().sum().backward()  # type: ignore[union-attr]
    used = {key for key, one in bank.parameters_by_key.items() if one.grad is not None}
    assert used == {bank._keys(graph)[name] for name in parameter_shapes(graph)} < set(bank.parameters_by_key)
    narrow = bank.parameters_by_key["stage1/layer1/depthwise/conv/weight"]
    assert narrow.shape[2:] == (5, 5) and narrow.grad is not None
    outside = narrow.grad.clone()
    outside[: graph_channels(graph, "stage1.layer1.depthwise.conv"), :, 1:4, 1:4] = 0
    assert narrow.grad.abs().sum() > 0 and outside.abs().sum() == 0


def graph_channels(graph: Any, name: str) -> int:
    return next(one.shape[0] for one in graph.operations if one.name == name)


def test_narrow_networks_are_the_first_channels_of_wide_ones() -> None:
    """Without nesting, a supernet of widths would not order channels by importance."""
    space = make_space(SPACES["mbconv"], PROBLEM)
    bank = SharedWeights(space)
    wide, narrow = (space.graph(space.canonical({**extremes(space)[0].values, "stage1.width": w})) for w in (1.0, 0.5))
    large, small = (one["stage1.layer1.project.conv.weight"] for one in bank([wide, narrow]))
    assert small.shape[0] * 2 == large.shape[0]
    assert torch.equal(small, large[: small.shape[0], : small.shape[1]])
    assert small.untyped_storage().data_ptr() == large.untyped_storage().data_ptr()


def test_extremes_are_the_largest_and_the_smallest(space: Any) -> None:
    """The sandwich rule would train two networks of the middle."""
    largest, smallest = (space.cost(one) for one in extremes(space))
    assert all(smallest.macs <= space.cost(one).macs <= largest.macs for one in sampled(space, 100))


def test_networks_of_another_space_are_refused() -> None:
    """Weights of another space would be sliced into nonsense."""
    space = make_space(SPACES["mbconv"], PROBLEM)
    wider = make_space({**SPACES["mbconv"], "stem_channels": 24}, PROBLEM)
    with pytest.raises(NasplatError, match="no weights for"):
        SharedWeights(space)([wider.graph(extremes(wider)[0])])
    with pytest.raises(NasplatError, match="no weights for"):
        GraphRun(space.graph(extremes(space)[0]), {})


def test_statistics_are_those_of_a_built_network() -> None:
    """A network ranked with other statistics than it is deployed with is ranked by noise."""
    from nasplat.training.recalibrate import recalibrate

    space = make_space(SPACES["nasbench201"], PROBLEM)
    bank = SharedWeights(space)
    architecture = extremes(space)[0]
    graph = space.graph(architecture)
    run = GraphRun(graph, bank([graph])[0])
    network = build_network(graph)
    network.load_state_dict(run.state_dict(), strict=False)
    batches = [images(5), 2 * images(5) + 1, images(5) - 1]
    recalibrate(network, batches)
    run.calibrate(batches)
    torch.testing.assert_close(network.eval()(images()), run(images()), rtol=1e-4, atol=1e-5)
