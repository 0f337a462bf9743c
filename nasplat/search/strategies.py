"""The table of strategies."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from nasplat.core.choice import Values
from nasplat.core.front import Goal
from nasplat.core.space import SearchSpace
from nasplat.search.evolution import regularised_evolution
from nasplat.search.expansion import expansion
from nasplat.search.gp import gp
from nasplat.search.history import History
from nasplat.search.local_search import local_search
from nasplat.search.n2n import n2n
from nasplat.search.options import make_one
from nasplat.search.optuna_strategies import nsga2, optuna_gp, tpe
from nasplat.search.pruning_population import pruning_population
from nasplat.search.reinforce import reinforce
from nasplat.search.suggestion import Strategy


def random() -> Strategy:
    """Every proposal independent of all others: the baseline to beat."""

    def propose(history: History, space: SearchSpace, goals: Sequence[Goal], rng: np.random.Generator, /) -> Values:
        return space.sample(rng).values

    return propose


STRATEGIES: dict[str, Callable[..., Strategy]] = {
    "random": random,
    "gp": gp,
    "local_search": local_search,
    "evolution": regularised_evolution,
    "reinforce": reinforce,
    "expansion": expansion,
    "tpe": tpe,
    "nsga2": nsga2,
    "optuna_gp": optuna_gp,
    "n2n": n2n,
    "pruning_population": pruning_population,
}


def make_strategy(name: str, options: Mapping[str, Any] | None = None) -> Strategy:
    """A strategy by its name in the experiment file, with `search.options` as parameters.

    Raises:
        NasplatError: no such strategy or option, or a value that it does not take.
    """
    made: Strategy = make_one(STRATEGIES, name, options or {}, "strategy", "search.options")
    return made
