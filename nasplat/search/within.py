"""A space whose draws meet the hard constraints on what is known before training."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from nasplat.core.architecture import Architecture
from nasplat.core.choice import Values
from nasplat.core.cost import Cost
from nasplat.core.drawing import Picture
from nasplat.core.graph import OperationGraph
from nasplat.core.space import SearchSpace
from nasplat.search.constraints import Constraints, excess, violations

if TYPE_CHECKING:
    from torch import nn

DRAWS = 30
DESCENT = 2_000


def within(space: SearchSpace, constraints: Constraints) -> SearchSpace:
    """The space itself where nothing is constrained, otherwise a view of it.

    Samples, neighbours and mutations of the view meet every constraint on what `known` tells, as far as a bounded
    search finds such; so every strategy looks for feasible candidates without knowing of constraints.
    """
    return _Within(space, constraints) if constraints else space


def bounds_of(space: SearchSpace) -> Constraints:
    """The constraints of a view; none of any other space."""
    return space.constraints if isinstance(space, _Within) else {}


def inner_of(space: SearchSpace) -> SearchSpace:
    """The space that a view is of; any other space is itself."""
    return space._space if isinstance(space, _Within) else space


class _Within(SearchSpace):
    def __init__(self, space: SearchSpace, constraints: Constraints) -> None:
        self.problem, self.choices, self.identity = space.problem, space.choices, space.identity
        self._space = space
        self.constraints = constraints
        self._excess: dict[str, float] = {}

    def sample(self, rng: np.random.Generator) -> Architecture:
        nearest = self._space.sample(rng)
        for _ in range(DRAWS):
            if self._too_much(nearest) == 0:
                return nearest
            other = self._space.sample(rng)
            if self._too_much(other) < self._too_much(nearest):
                nearest = other
        return [nearest, *descent(self._space, nearest, self.constraints, rng)][-1]

    def neighbours(self, architecture: Architecture) -> list[Architecture]:
        found = self._space.neighbours(architecture)
        return [one for one in found if self._too_much(one) == 0] or found

    def mutate(self, architecture: Architecture, rng: np.random.Generator) -> Architecture | None:
        for _ in range(DRAWS):
            found = self._space.mutate(architecture, rng)
            if found is None or self._too_much(found) == 0:
                return found
        near = self.neighbours(architecture)
        return near[int(rng.integers(len(near)))] if near else None

    def crossover(self, first: Architecture, second: Architecture, rng: np.random.Generator) -> Architecture:
        for _ in range(DRAWS):
            found = self._space.crossover(first, second, rng)
            if self._too_much(found) == 0:
                break
        return found

    def canonical(self, values: Mapping[str, Any]) -> Architecture:
        return self._space.canonical(values)

    def settle(self, values: Values) -> Values:
        return self._space.settle(values)

    def known(self, architecture: Architecture) -> Mapping[str, float]:
        return self._space.known(architecture)

    def graph(self, architecture: Architecture) -> OperationGraph:
        return self._space.graph(architecture)

    def cost(self, architecture: Architecture) -> Cost:
        return self._space.cost(architecture)

    def build(self, architecture: Architecture) -> nn.Module:
        return self._space.build(architecture)

    def original(self, architecture: Architecture) -> tuple[nn.Module, Mapping[str, Sequence[int]]] | None:
        return self._space.original(architecture)

    def drawings(self, architecture: Architecture) -> Mapping[str, Picture]:
        return self._space.drawings(architecture)

    def count(self) -> int:
        return self._space.count()

    def enumerate(self) -> Iterator[Architecture]:
        return self._space.enumerate()

    def _too_much(self, architecture: Architecture) -> float:
        found = self._excess.get(architecture.digest)
        if found is None:
            found = excess(violations(self._space.known(architecture), self.constraints))
            self._excess[architecture.digest] = found
        return found


def descent(
    space: SearchSpace, start: Architecture, constraints: Constraints, rng: np.random.Generator
) -> Iterator[Architecture]:
    """Repairs step by step: downhill in what is too much, one choice after the other, in a bounded number of looks."""
    here, looks = start, 0
    least = excess(violations(space.known(start), constraints))
    improved = least > 0
    while improved and looks < DESCENT:
        improved = False
        for position in rng.permutation(len(space.choices)):
            choice = list(space.choices.values())[position]
            for option in choice.options:
                neighbour = space.canonical({**here.values, choice.name: option})
                looks += 1
                too_much = excess(violations(space.known(neighbour), constraints))
                if too_much < least:
                    here, least, improved = neighbour, too_much, True
                    yield neighbour
                if least == 0:
                    return
