"""One training for all networks of a space, and what it says of each."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from nasplat.core.errors import NasplatError
from nasplat.core.experiment import Data, Train
from nasplat.core.rank_correlation import kendall
from nasplat.data.datasets import load_dataset
from nasplat.networks.shared_weights import SharedWeights, extremes
from nasplat.search.weight_sources import graph_hypernetwork, make
from nasplat.search.weights import source_settings
from nasplat.spaces.families import make_space
from nasplat.training.evaluate import accuracy, evaluation_loader
from nasplat.training.fit import fit
from nasplat.training.objectives import make_objective
from nasplat.training.weight_source import (
    SourceObjective,
    accuracies,
    calibration,
    sandwich,
    uniform,
    with_weights,
)

CPU = torch.device("cpu")
WIDTHS = {
    "family": "mbconv",
    "stem_channels": 8,
    "stages": [{"channels": 16, "stride": 1, "layers": 1}, {"channels": 32, "stride": 2, "layers": 2}],
    "operations": ["identity", "mb_k3_e3", "mb_k5_e3"],
    "widths": [0.5, 1.0],
    "last_channels": 32,
}


@pytest.fixture(scope="module")
def digits() -> Any:
    return load_dataset(Data(source="digits"))


@pytest.fixture(scope="module")
def space(digits: Any) -> Any:
    return make_space(WIDTHS, digits.problem)


def trained(space: Any, dataset: Any, rule: Any, checkpoint: Path | None = None, **changes: Any) -> tuple[Any, Any]:
    settings = Train(**{"epochs": 6, "batch_size": 64, "lr": 0.1, **changes})
    bank = SharedWeights(space, "sliced", torch.Generator().manual_seed(0))
    inner = make_objective(settings, dataset.problem, len(dataset.train))
    objective = SourceObjective(space, rule, inner)
    until = 0.4 if checkpoint is not None else 1.0
    result = fit(bank, dataset, settings, device=CPU, seed=0, objective=objective, checkpoint=checkpoint, until=until)
    return bank, result


def validation(dataset: Any) -> list[Any]:
    return list(evaluation_loader(dataset, "validation", CPU).ordered())


@pytest.mark.parametrize(("rule", "paths"), [(uniform, 1), (sandwich, 3)])
def test_one_training_serves_every_network(space: Any, digits: Any, rule: Any, paths: int) -> None:
    """A supernet that does not learn ranks by noise; chance is 10 %."""
    bank, result = trained(space, digits, rule(space, paths), epochs=12)
    assert result.losses[-1] < 0.8 * result.losses[0]
    largest, smallest = accuracies(bank, space, extremes(space), validation(digits), calibration(digits, CPU))
    assert largest > 0.5 and smallest > 0.15


def test_what_leaves_the_supernet_scores_as_it_was_ranked(space: Any, digits: Any) -> None:
    """A person would deploy something else than what was chosen."""
    bank, _ = trained(space, digits, uniform(space, 1), epochs=2)
    images = calibration(digits, CPU)
    architecture = space.sample(np.random.default_rng(5))
    (ranked,) = accuracies(bank, space, [architecture], validation(digits), images)
    network = with_weights(bank, space, architecture, images)
    assert accuracy(network, evaluation_loader(digits, "validation", CPU), CPU) == ranked
    before = {name: tensor.clone() for name, tensor in bank.state_dict().items()}
    next(network.parameters()).data.add_(1)
    assert all(torch.equal(before[name], tensor) for name, tensor in bank.state_dict().items())


def test_wide_networks_rank_above_narrow_ones(space: Any, digits: Any) -> None:
    """Of widths and depths alone, more is better on these images; a ranking that disagrees is upside down."""
    bank, _ = trained(space, digits, sandwich(space, 3), epochs=10)
    rng = np.random.default_rng(0)
    architectures = [*extremes(space), *(space.sample(rng) for _ in range(30))]
    scores = list(accuracies(bank, space, architectures, validation(digits), calibration(digits, CPU)))
    assert kendall(scores, [space.cost(one).params for one in architectures]) > 0.2


def test_an_interrupted_training_goes_on_as_if_it_had_not_been(space: Any, digits: Any, tmp_path: Path) -> None:
    """The networks of every step must be drawn again as they would have been."""
    rule = uniform(space, 2)
    whole, _ = trained(space, digits, rule, epochs=2)
    trained(space, digits, rule, tmp_path, epochs=2)
    settings = Train(epochs=2, batch_size=64, lr=0.1)
    bank = SharedWeights(space, "sliced", torch.Generator().manual_seed(0))
    objective = SourceObjective(space, rule, make_objective(settings, digits.problem, len(digits.train)))
    fit(bank, digits, settings, device=CPU, seed=0, objective=objective, checkpoint=tmp_path)
    assert all(torch.equal(one, two) for one, two in zip(whole.parameters(), bank.parameters(), strict=True))


def test_a_supernet_learns_without_labels(space: Any, digits: Any) -> None:
    """The mission promises self-supervised search on shared weights too."""
    _, result = trained(space, digits, uniform(space, 1), objective="simclr", epochs=4)
    assert result.losses[-1] < result.losses[0]


def test_the_sandwich_teaches_with_the_largest(space: Any, digits: Any) -> None:
    """In-place distillation is the whole of the rule: without it small networks learn from labels like any other."""
    settings = Train(epochs=1, batch_size=32)
    bank = SharedWeights(space, "sliced", torch.Generator().manual_seed(0))
    batch = validation(digits)[0]
    objective = SourceObjective(space, sandwich(space, 2), make_objective(settings, digits.problem, 100))
    torch.manual_seed(0)
    loss = objective.loss(bank, None, batch, torch.Generator())

    from nasplat.networks.graph_run import GraphRun

    large, small = (GraphRun(space.graph(one), *bank([space.graph(one)]))(batch.views[0]) for one in extremes(space))
    soft = large.softmax(1).detach()
    expected = torch.nn.functional.cross_entropy(large, batch.labels) - (soft * small.log_softmax(1)).sum(1).mean()
    torch.testing.assert_close(loss, expected / 2)


def test_bad_rules_and_spaces_are_told(space: Any, digits: Any) -> None:
    """Weights of another space would rank by chance."""
    with pytest.raises(NasplatError, match="sandwich"):
        sandwich(space, 1)
    other = make_space({**WIDTHS, "stem_channels": 16}, digits.problem)
    bank = SharedWeights(other)
    with pytest.raises(NasplatError, match="made for the space"):
        list(accuracies(bank, space, extremes(space), validation(digits), []))
    with pytest.raises(NasplatError, match="made for the space"):
        with_weights(bank, space, extremes(space)[0], [])


def test_generated_weights_read_digits(digits: Any) -> None:
    """A graph hypernetwork that ranks must first of all make networks that work; chance is 10 %."""
    cells = make_space({"family": "nasbench201", "cells": [1, 1], "channels": 8}, digits.problem)
    source = graph_hypernetwork(networks=1, channels=16, kernel=3)
    settings = source_settings(Train(epochs=25, batch_size=64), source, {"lr": 3e-3})
    module = make(source, cells, 0)
    objective = SourceObjective(cells, source.rule(cells), make_objective(settings, digits.problem, len(digits.train)))
    result = fit(module, digits, settings, device=CPU, seed=0, objective=objective)
    assert result.losses[-1] < 0.7 * result.losses[0]
    rng = np.random.default_rng(9)
    unseen = [cells.sample(rng) for _ in range(10)]
    found = list(accuracies(module, cells, unseen, validation(digits), calibration(digits, CPU)))
    assert np.median(found) > 0.4
