"""The contract of a search space: a table of choices, bound to a problem."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from itertools import product
from math import prod
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from nasplat.core.architecture import Architecture, fingerprint
from nasplat.core.choice import Choice, Option, Values
from nasplat.core.cost import COSTS, Cost
from nasplat.core.drawing import Picture, drawing_of_graph
from nasplat.core.errors import NasplatError
from nasplat.core.graph import OperationGraph
from nasplat.core.problem import Problem

if TYPE_CHECKING:
    from torch import nn


class SearchSpace(Protocol):
    """What a family provides; the members with a body are defaults over the table that it may replace.

    Attributes:
        problem: what is to be learned.
        choices: every decision and its options, in a fixed order.
        identity: JSON-plain: the family, its parameters, the problem. Equal identities mean equal spaces.
    """

    problem: Problem
    choices: Mapping[str, Choice]
    identity: Mapping[str, Any]

    def settle(self, values: Values) -> Values:
        """The family's rewrites: values that are all valid, to the values that stand for the same network."""
        ...

    def graph(self, architecture: Architecture) -> OperationGraph:
        """The network as operations with shapes and named parameters, without torch."""
        ...

    def cost(self, architecture: Architecture) -> Cost:
        """MACs, parameters, peak activation bytes of what is deployed, without torch."""
        ...

    def build(self, architecture: Architecture) -> nn.Module:
        """A freshly initialised network (from torch's default generator). Torch is imported here, not before."""
        ...

    def original(self, architecture: Architecture) -> tuple[nn.Module, Mapping[str, Sequence[int]]] | None:
        """The trained network that the built one is a part of, and by module which of its channels that kept.

        It teaches its part where nobody else does. By default None: weights are fresh, and no part of anything.
        """
        return None

    def extremes(self) -> tuple[Architecture, Architecture] | None:
        """The networks of the most and of the fewest MACs, where the family knows them; by default None.

        No operation of any network is larger than that of its name in the first.
        """
        return None

    def known(self, architecture: Architecture) -> Mapping[str, float]:
        """The metrics that are known before anything trains, exactly. By default the cost."""
        cost = self.cost(architecture)
        return {name: float(getattr(cost, name)) for name in COSTS}

    def drawings(self, architecture: Architecture) -> Mapping[str, Picture]:
        """Pictures by name: what a person wants to see of an architecture. By default its operation graph."""
        return {"network": drawing_of_graph(self.graph(architecture))}

    @cached_property
    def fingerprint(self) -> str:
        return fingerprint(self.identity)

    def canonical(self, values: Mapping[str, Any]) -> Architecture:
        """The architecture that an assignment stands for.

        Args:
            values: an option for any of the choices; missing ones take their default.

        Raises:
            NasplatError: an unknown choice, or an option that a choice does not have.
        """
        unknown = [name for name in values if name not in self.choices]
        if unknown:
            raise NasplatError(f"the space has no choice {unknown[0]!r}", f"its choices are {', '.join(self.choices)}")
        complete = {
            name: choice.options[choice.index(values[name])] if name in values else choice.default
            for name, choice in self.choices.items()
        }
        return Architecture(self.fingerprint, self.settle(complete))

    def sample(self, rng: np.random.Generator) -> Architecture:
        """A random architecture: every choice uniform and independent."""
        values = {name: _pick(choice.options, rng) for name, choice in self.choices.items()}
        return self.canonical(values)

    def neighbours(self, architecture: Architecture) -> list[Architecture]:
        """All other architectures that one changed choice reaches, each once, in a fixed order."""
        found: dict[str, Architecture] = {}
        for name, choice in self.choices.items():
            for option in choice.options:
                if option != architecture.values[name]:
                    neighbour = self.canonical({**architecture.values, name: option})
                    if neighbour.digest != architecture.digest:
                        found.setdefault(neighbour.digest, neighbour)
        return list(found.values())

    def mutate(self, architecture: Architecture, rng: np.random.Generator) -> Architecture | None:
        """A random neighbour, or None where the space has no other architecture within one change."""
        names = list(self.choices)
        for position in rng.permutation(len(names)):
            choice = self.choices[names[position]]
            for index in rng.permutation(len(choice.options)):
                neighbour = self.canonical({**architecture.values, choice.name: choice.options[index]})
                if neighbour.digest != architecture.digest:
                    return neighbour
        return None

    def crossover(self, first: Architecture, second: Architecture, rng: np.random.Generator) -> Architecture:
        """Every choice from one of the two parents, by a fair coin."""
        parents = (first, second)
        values = {name: parents[int(rng.integers(2))].values[name] for name in self.choices}
        return self.canonical(values)

    def count(self) -> int:
        """The number of assignments of the table, an upper bound of the number of architectures."""
        return prod(len(choice.options) for choice in self.choices.values())

    def enumerate(self) -> Iterator[Architecture]:
        """Every architecture once, in the order of the table."""
        seen: set[str] = set()
        for options in product(*(choice.options for choice in self.choices.values())):
            architecture = self.canonical(dict(zip(self.choices, options, strict=True)))
            if architecture.digest not in seen:
                seen.add(architecture.digest)
                yield architecture


def _pick(options: tuple[Option, ...], rng: np.random.Generator) -> Option:
    return options[int(rng.integers(len(options)))]
