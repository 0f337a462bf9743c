"""Hard constraints as a view of a space, and the wrapper that gives any strategy new and feasible proposals."""

import numpy as np
import optuna
import pytest

from nasplat.core.experiment import Bounds
from nasplat.core.front import Goal
from nasplat.core.problem import classification
from nasplat.core.space import SearchSpace
from nasplat.search.constraints import excess, violations
from nasplat.search.gp import gp
from nasplat.search.optuna_strategies import tpe
from nasplat.search.propose import admissible
from nasplat.search.sampler import StrategySampler, suggest
from nasplat.search.strategies import STRATEGIES, make_strategy
from nasplat.search.within import within
from nasplat.spaces.families import make_space
from tests.search.toys import ToySpace, accuracy

GOALS = (Goal("accuracy", "maximize"), Goal("params", "minimize"))


def spaces() -> dict[str, SearchSpace]:
    problem = classification((3, 32, 32), 10)
    return {
        "toy": ToySpace(),
        "nasbench201": make_space({"family": "nasbench201", "cells": 1, "channels": 8}, problem),
        "mbconv": make_space({"family": "mbconv"}, problem),
    }


@pytest.mark.parametrize("name", ["toy", "nasbench201", "mbconv"])
def test_everything_drawn_within_constraints_meets_them(name: str) -> None:
    """A proposal against the constraints costs an ask, and with a tight budget nearly all would be."""
    space = spaces()[name]
    rng = np.random.default_rng(0)
    params = np.sort([space.known(space.sample(rng))["params"] for _ in range(200)])
    constraints = {"params": Bounds(max=float(params[6])), "macs": Bounds(min=1.0)}
    view = within(space, constraints)

    def met(architecture: object) -> bool:
        return excess(violations(space.known(architecture), constraints)) == 0  # type: ignore[arg-type]

    for _ in range(15):
        one, other = view.sample(rng), view.sample(rng)
        assert met(one) and met(other)
        mutated = view.mutate(one, rng)
        assert mutated is None or met(mutated)
        near = view.neighbours(one)
        assert all(met(each) for each in near) or not any(met(each) for each in space.neighbours(one))
        assert view.canonical(one.values) == space.canonical(one.values) == one
    assert view.fingerprint == space.fingerprint
    assert within(space, {}) is space


def test_any_optuna_user_gets_new_and_feasible_trials() -> None:
    """De-duplication and hard constraints must serve Optuna's samplers in a study that nasplat did not make."""
    space = ToySpace(layers=2)
    for strategy in (tpe(startup=3), gp(startup=3)):
        sampler = StrategySampler(admissible(strategy, {"params": Bounds(max=600)}), space, GOALS, seed=0)
        study = optuna.create_study(sampler=sampler, directions=["maximize", "minimize"])
        digests = []

        def objective(trial: optuna.Trial, seen: list[str] = digests) -> tuple[float, float]:
            architecture = suggest(trial, space)
            seen.append(architecture.digest)
            assert space.known(architecture)["params"] <= 600
            return accuracy(architecture, 0), space.known(architecture)["params"]

        study.optimize(objective, n_trials=25)
        assert len(set(digests)) == 25


@pytest.mark.parametrize("name", [name for name in STRATEGIES if name not in ("n2n", "pruning_population")])
def test_every_strategy_meets_a_tight_constraint(name: str) -> None:
    """One `params: {max: …}` in the experiment file, whatever the strategy."""
    from nasplat.search.history import History, Proposal
    from nasplat.search.seeds import ask_rng

    space, constraints = ToySpace(layers=3), {"params": Bounds(max=300)}
    strategy, found = admissible(make_strategy(name), constraints), []
    for number in range(12 if name == "optuna_gp" else 25):
        suggestion = strategy(History(found), space, GOALS, ask_rng(1, number))
        one = space.canonical(suggestion.values)  # type: ignore[union-attr]
        metrics = {**space.known(one), "accuracy": accuracy(one, 0)}
        assert metrics["params"] <= 300
        assert one.digest not in {other.digest for other in found}
        notes = suggestion.notes  # type: ignore[union-attr]
        found.append(Proposal(number, one.values, one.digest, "complete", metrics, notes=notes))
