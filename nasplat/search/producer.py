"""What a producer is: it proposes architectures before the strategy does, from a look or from a training of its own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from nasplat.core.architecture import Architecture
from nasplat.core.errors import NasplatError
from nasplat.core.experiment import Bounds, Experiment
from nasplat.core.space import SearchSpace
from nasplat.search.constraints import excess, violations
from nasplat.spaces.branching import BranchingSpace
from nasplat.spaces.pruning import PruningSpace


@dataclass(frozen=True)
class Brief:
    """What a producer works with.

    Args:
        experiment: with constraints in numbers.
        folder: its own, for what it wants to find again.
        say: is told in words what is going on.
        root: of the run.
    """

    experiment: Experiment
    space: SearchSpace
    folder: Path
    say: Callable[[str], None]
    root: Path

    def pruning_space(self, name: str) -> PruningSpace:
        if not isinstance(self.space, PruningSpace):
            raise NasplatError(
                f"search.produce: {name} is for networks that are pruned", "use a space of family pruning"
            )
        if not self.budget:
            raise NasplatError(
                f"search.produce: {name} needs a budget", "search.constraints: {macs: {max: 0.5}}, or params"
            )
        return self.space

    def branching_space(self, name: str) -> BranchingSpace:
        if not isinstance(self.space, BranchingSpace):
            raise NasplatError(
                f"search.produce: {name} is for networks of several tasks", "use a space of family branching"
            )
        return self.space

    def too_much(self, architecture: Architecture) -> float:
        """By how much it exceeds the budget; 0 where it meets it."""
        return excess(violations(self.space.known(architecture), self.budget))

    @property
    def budget(self) -> dict[str, Bounds]:
        found = {name: one for name, one in self.experiment.search.constraints.items() if name in ("macs", "params")}
        return {name: Bounds(max=one.max) for name, one in found.items() if one.max is not None}


Produced = Mapping[str, Architecture]
Producer = Callable[[Brief], Produced]
