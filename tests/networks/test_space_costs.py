from typing import Any

import numpy as np
import pytest
import torch

from nasplat.core.cost import Cost
from nasplat.core.problem import classification
from nasplat.networks.counter import count
from nasplat.networks.tracer import trace_run
from nasplat.spaces.families import FAMILIES, make_space

SPECS: dict[str, dict[str, Any]] = {
    "nasnet": {"cells": [1, 1], "channels": 4},
    "darts": {"cells": [1, 1], "channels": 4},
    "nasbench201": {"cells": 1, "channels": 4},
    "mbconv": {"widths": [0.5, 1.0], "depths": [1, 2], "squeeze_excite": True},
    "resnet": {
        "stages": [{"channels": 32, "stride": 1, "blocks": 1}, {"channels": 24, "stride": 2, "blocks": 2}],
        "stem": "imagenet",
        "stem_channels": 8,
        "block": "bottleneck",
        "expansions": [0.25, 0.5],
        "shortcut": "padded",
    },
    "diverse": {"channels": [4, 6], "cells": [1, 2]},
    "memory_bank": {"blocks": [{"channels": [4, 8], "banks": 4, "layers": 3}] * 2},
}
PROBLEM = classification((3, 9, 8), 10)


def test_every_family_of_ours_is_tested() -> None:
    """A user's own space has no cost but the counter's; two more are held to it in tests/spaces."""
    assert SPECS.keys() | {"user", "tabular", "pruning", "branching"} == FAMILIES.keys()


@pytest.mark.parametrize("family", SPECS)
def test_costs_are_those_of_the_network_that_runs(family: str) -> None:
    """The search would optimise another number than that of the networks it hands back.

    50 architectures, run on real tensors; the peak is that of the traced run's live tensors.
    """
    space = make_space({"family": family, **SPECS[family]}, PROBLEM)
    rng = np.random.default_rng(0)
    for _ in range(50):
        architecture = space.sample(rng)
        network = space.build(architecture).eval()
        trace = trace_run(network, (torch.zeros(1, *PROBLEM.input_shape),))
        params = sum(parameter.numel() for parameter in network.parameters())
        assert space.cost(architecture) == Cost(sum(trace.macs.values()), params, trace.peak_bytes())


@pytest.mark.parametrize("family", SPECS)
def test_the_counter_agrees_at_full_size(family: str) -> None:
    space = make_space({"family": family}, classification((3, 32, 32), 10))
    rng = np.random.default_rng(1)
    for _ in range(3):
        architecture = space.sample(rng)
        assert space.cost(architecture) == count(space.build(architecture), (3, 32, 32)).cost
