"""Rules that draw networks by how far the training is, and SMASH trained by them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from nasplat.core.experiment import Data, Train
from nasplat.core.problem import classification
from nasplat.data.datasets import load_dataset
from nasplat.networks.shared_weights import SharedWeights
from nasplat.search.weight_sources import make, smash
from nasplat.search.weights import source_settings
from nasplat.spaces.families import make_space
from nasplat.training.evaluate import accuracy, evaluation_loader
from nasplat.training.fit import fit
from nasplat.training.objectives import make_objective
from nasplat.training.weight_source import (
    Drawn,
    SourceObjective,
    accuracies,
    calibration,
    growing,
    uniform,
    with_weights,
)

CPU = torch.device("cpu")
BANKS: dict[str, Any] = {
    "family": "memory_bank",
    "blocks": [{"channels": [4, 8], "banks": 3, "layers": 2}, {"channels": 8, "banks": 2, "layers": 1}],
    "kernels": [3, 5],
    "dilations": [1],
    "groups": [1],
    "last_channels": 32,
}


@pytest.fixture(scope="module")
def digits() -> Any:
    return load_dataset(Data(source="digits"))


@pytest.mark.parametrize("share", [0.0, 0.1, 0.3, 0.49, 0.5, 1.0])
def test_a_space_grows_during_the_first_half(share: float) -> None:
    """Deep networks of large kernels would be drawn from the start, which is what the schedule is there to avoid."""
    space = make_space({"family": "memory_bank"}, classification((1, 8, 8), 3))
    rule, rng = growing(space, 2), np.random.default_rng(0)
    drawn = [rule(rng, share) for _ in range(60)]
    assert all(len(one.architectures) == one.labelled == 2 for one in drawn)
    values = [architecture.values for one in drawn for architecture in one.architectures]
    deepest = max(int(one["block1.layers"]) for one in values)
    largest = max(int(one["block2.layer1.kernel"]) for one in values)
    open_to = {0.0: (0, 3), 0.1: (0, 3), 0.3: (2, 5)}.get(share, (4, 7))
    assert (deepest, largest) == open_to
    if share >= 0.5:  # then it is the whole space, drawn as without growing
        ours, theirs = (one(np.random.default_rng(1), share) for one in (rule, uniform(space, 2)))
        assert ours == theirs


def test_a_space_without_sizes_is_whole_from_the_start() -> None:
    """Cells have no order among their operations; none may be kept out."""
    space = make_space({"family": "nasbench201", "cells": 1, "channels": 2}, classification((1, 8, 8), 3))
    ours, theirs = (one(np.random.default_rng(1), 0.0) for one in (growing(space, 9), uniform(space, 9)))
    assert ours == theirs


def test_rules_know_how_far_the_training_is(digits: Any, tmp_path: Path) -> None:
    """A training that was interrupted would begin again with the smallest networks."""
    space = make_space(
        {"family": "nasbench201", "cells": [1], "channels": 2, "operations": ["conv_1x1"]}, digits.problem
    )
    shares: list[float] = []

    def rule(rng: np.random.Generator, share: float) -> Drawn:
        shares.append(share)
        return uniform(space, 1)(rng, share)

    settings = Train(steps=8, batch_size=32)
    bank = SharedWeights(space, generator=torch.Generator().manual_seed(0))
    for until in (0.5, 1.0):
        objective = SourceObjective(space, rule, make_objective(settings, digits.problem, len(digits.train)))
        fit(bank, digits, settings, device=CPU, seed=0, objective=objective, checkpoint=tmp_path, until=until)
    np.testing.assert_allclose(shares, (np.arange(8) + 0.5) / 8)


def test_generated_kernels_read_digits(digits: Any) -> None:
    """Networks that were never drawn must work with their weights, or the ranking is by chance, which is 10 %."""
    space = make_space(BANKS, digits.problem)
    source = smash()
    settings = source_settings(Train(epochs=18, batch_size=64), source, {"lr": 5e-3})
    assert settings.optimiser == "adam" and settings.momentum == 0.5
    module: Any = make(source, space, 0)
    objective = SourceObjective(space, source.rule(space), make_objective(settings, digits.problem, len(digits.train)))
    result = fit(module, digits, settings, device=CPU, seed=0, objective=objective)
    assert result.losses[-1] < 0.85 * result.losses[0]
    rng = np.random.default_rng(9)
    unseen = [space.sample(rng) for _ in range(10)]
    images = calibration(digits, CPU)
    validation = list(evaluation_loader(digits, "validation", CPU).ordered())
    found = list(accuracies(module, space, unseen, validation, images))
    assert np.median(found) > 0.25
    # The noise of training is no part of a ranking: what leaves the source scores as it was ranked.
    network = with_weights(module.train(), space, unseen[0], images)
    assert accuracy(network, evaluation_loader(digits, "validation", CPU), CPU) == found[0]
