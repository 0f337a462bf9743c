"""The table of strategies."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from pydantic import ValidationError, validate_call

from nasplat.core.choice import Values
from nasplat.core.errors import NasplatError, nearest
from nasplat.core.front import Goal
from nasplat.core.space import SearchSpace
from nasplat.search.evolution import regularised_evolution
from nasplat.search.expansion import expansion
from nasplat.search.gp import gp
from nasplat.search.history import History
from nasplat.search.local_search import local_search
from nasplat.search.optuna_strategies import nsga2, optuna_gp, tpe
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
}


def make_strategy(name: str, options: Mapping[str, Any] | None = None) -> Strategy:
    """A strategy by its name in the experiment file, with `search.options` as parameters.

    Raises:
        NasplatError: no such strategy or option, or a value that it does not take.
    """
    options = dict(options or {})
    if name not in STRATEGIES:
        raise NasplatError(
            f"there is no strategy {name!r}", f"{nearest(name, STRATEGIES)}there are {', '.join(STRATEGIES)}"
        )
    make = STRATEGIES[name]
    known = inspect.signature(make).parameters
    for option in options:
        if option not in known:
            allowed = ", ".join(known) or "none"
            raise NasplatError(
                f"search.options: the strategy {name!r} has no option {option!r}",
                f"{nearest(option, known)}its options: {allowed}",
            )
    try:
        return validate_call(make)(**options)
    except ValidationError as error:
        first = error.errors()[0]
        option = ".".join(str(part) for part in first["loc"])
        reason = first["msg"].removeprefix("Value error, ").replace("Input should be", "it must be")
        where = f"search.options.{option}" if option else "search.options"
        raise NasplatError(f"{where} of the strategy {name!r} cannot be {first['input']!r}: {reason}") from error
    except ValueError as error:
        raise NasplatError(f"search.options of the strategy {name!r}: {error}") from error
