"""Without these a trial that is paused at a rung and trained on would be another network than one that never paused:
early stopping would change what it is to choose from."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from nasplat.core.errors import NasplatError
from nasplat.core.experiment import Data, Train
from nasplat.data.datasets import Dataset, load_dataset
from nasplat.search.early_stopping import rung_shares
from nasplat.search.evaluate import build
from nasplat.spaces.families import make_space
from nasplat.training import checkpoint as files
from nasplat.training.evaluate import accuracy, evaluation_loader
from nasplat.training.fit import fit
from nasplat.training.loop import Progress, TrainResult, train
from nasplat.training.objectives import make_objective
from tests.training.toys import PROBLEM, ToyLoader, ToyNetwork, same, settings, weights

CPU = torch.device("cpu")
SETTINGS = Train(epochs=3, batch_size=64, lr=0.1, drop_path=0.1, mixup=0.2, augment=("crop",))


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return load_dataset(Data())


def cell(digits: Dataset) -> nn.Module:
    space = make_space({"family": "nasbench201", "cells": 1, "channels": 4}, digits.problem)
    return build(space, space.sample(np.random.default_rng(8)), 3)


def toy(
    until: float = 1.0, checkpoint: Path | None = None, reports: list[Progress] | None = None, **changes: object
) -> tuple[nn.Module, TrainResult]:
    chosen = settings(**{"epochs": 5, **changes})  # 4 steps an epoch
    network, loader, objective = ToyNetwork(dropout=0.2), ToyLoader(), make_objective(chosen, PROBLEM, 128)
    listen = None if reports is None else reports.append
    result = train(
        network,
        objective,
        loader,  # type: ignore[arg-type]
        chosen,
        device=CPU,
        seed=0,
        checkpoint=checkpoint,
        on_progress=listen,
        until=until,
    )
    return network, result


# 1/9 of the 51 steps ends within the first epoch, 1/3 at the end of it.
def test_two_rungs_on_digits_end_as_a_training_that_never_paused(tmp_path: Path, digits: Dataset) -> None:
    whole = cell(digits)
    expected = fit(whole, digits, SETTINGS, device=CPU, seed=5)
    for share, steps in zip(rung_shares(3, 3), (6, 17, 51), strict=True):
        network = cell(digits)  # anew each time, as in another process
        torch.manual_seed(steps)  # what happens to the default generator in between is none of its business
        result = fit(network, digits, SETTINGS, device=CPU, seed=5, checkpoint=tmp_path, until=share)
        assert (result.steps, result.finished) == (steps, share == 1)
        accuracy(network, evaluation_loader(digits, "validation", CPU), CPU)
    assert same(weights(network), weights(whole))
    assert result.losses == expected.losses


@pytest.mark.parametrize("shares", [(0.2, 1.0), (0.13, 0.15, 0.8, 1.0), (0.05, 0.5, 0.4, 1.0), (0.6, 0.6, 1.0)])
def test_any_shares_end_as_a_training_that_never_paused(tmp_path: Path, shares: tuple[float, ...]) -> None:
    whole, expected = toy(mixup=0.3, drop_path=0.2)
    for share in shares:
        network, result = toy(share, tmp_path, mixup=0.3, drop_path=0.2)
    assert same(weights(network), weights(whole))
    assert (result.losses, result.steps, result.finished) == (expected.losses, 20, True)


def test_a_pause_is_on_the_way_of_the_whole_training_and_not_a_shorter_one(tmp_path: Path) -> None:
    """A learning rate that had come down by the rung would favour other networks than the full budget does."""
    paused, result = toy(0.2, tmp_path)
    assert (result.steps, result.finished) == (4, False)
    stopped, left = ToyNetwork(dropout=0.2), [4]

    def stop() -> bool:
        left[0] -= 1
        return left[0] == 0

    chosen = settings(epochs=5)
    train(stopped, make_objective(chosen, PROBLEM, 128), ToyLoader(), chosen, device=CPU, seed=0, stop=stop)  # type: ignore[arg-type]
    assert same(weights(paused), weights(stopped))
    assert not same(weights(paused), weights(toy(epochs=1)[0]))


def test_the_same_rung_again_trains_nothing_and_gives_the_same_network(tmp_path: Path) -> None:
    """A trial that was killed between its pause and its record is judged again, not trained again."""
    for share in (0.4, 0.5):  # at the end of an epoch, and within one
        first, before = toy(share, tmp_path / str(share))
        again, after = toy(share, tmp_path / str(share))
        assert same(weights(first), weights(again))
        assert (before.losses, before.steps) == (after.losses, after.steps)


def test_a_pause_within_an_epoch_has_a_loss(tmp_path: Path) -> None:
    """A search with the loss among its metrics would find none at a rung below one epoch."""
    _, result = toy(0.1, tmp_path)
    assert len(result.losses) == 1 and result.losses[0] > 0
    found = files.read(tmp_path)
    assert found is not None and found[1]["losses"] == []


def test_progress_is_of_the_whole_budget_and_the_time_left_of_the_rung(tmp_path: Path) -> None:
    reports: list[Progress] = []
    toy(0.5, tmp_path, reports)
    assert reports[-1].share == 0.5 and reports[-1].seconds_left == 0


def test_a_budget_in_seconds_pauses_and_goes_on(tmp_path: Path) -> None:
    _, first = toy(0.5, tmp_path, epochs=None, seconds=0.3)
    _, second = toy(1.0, tmp_path, epochs=None, seconds=0.3)
    assert not first.finished and 0 < first.steps < second.steps and second.finished


@pytest.mark.parametrize("until", [0.0, -0.1, 1.5])
def test_a_share_that_is_none_is_refused(until: float) -> None:
    with pytest.raises(NasplatError, match="until"):
        toy(until)
