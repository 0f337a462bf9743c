"""What a strategy is, and what it returns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from nasplat.core.choice import Values
from nasplat.core.front import Goal
from nasplat.core.space import SearchSpace
from nasplat.search.history import History


@dataclass(frozen=True)
class Suggestion:
    """What a strategy proposes.

    Args:
        values: for the choices of the space.
        notes: what the strategy finds again with the proposal in the history (JSON-plain).
        why: it was chosen, for people.
        again: evaluate it with a new seed, although it was evaluated before.
    """

    values: Values
    notes: Mapping[str, Any] = field(default_factory=dict)
    why: str = ""
    again: bool = False


class Strategy(Protocol):
    """Decides which architecture comes next, from the history alone.

    A pure function: what it keeps between calls may save time but never changes what it proposes. It returns values
    for the choices of the space, or a `Suggestion`. De-duplication and hard constraints are wrapped around it.
    """

    def __call__(
        self, history: History, space: SearchSpace, goals: Sequence[Goal], rng: np.random.Generator, /
    ) -> Values | Suggestion: ...
