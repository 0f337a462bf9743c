"""Hard constraints on metrics."""

from __future__ import annotations

from collections.abc import Mapping

from nasplat.core.errors import NasplatError
from nasplat.core.experiment import Bounds
from nasplat.core.space import SearchSpace

Constraints = Mapping[str, Bounds]


def violations(metrics: Mapping[str, float], constraints: Constraints) -> dict[str, float]:
    """By how much each constraint on these metrics is exceeded, as a share of its bound; 0 or less is met."""
    found = {}
    for name, bounds in constraints.items():
        if name not in metrics:
            continue
        if bounds.max is not None:
            found[f"{name}.max"] = (metrics[name] - bounds.max) / max(abs(bounds.max), 1.0)
        if bounds.min is not None:
            found[f"{name}.min"] = (bounds.min - metrics[name]) / max(abs(bounds.min), 1.0)
    return found


def absolute(constraints: Constraints, space: SearchSpace) -> dict[str, Bounds]:
    """The constraints with numbers in place of shares.

    Where a space has a largest network, bounds of up to 1 on its costs are shares of what that network costs.

    Raises:
        NasplatError: a bound is above the other.
    """
    whole: Mapping[str, float] = getattr(space, "whole", {})

    def number(name: str, bound: float | None) -> float | None:
        return bound * whole[name] if bound is not None and name in whole and 0 < bound <= 1 else bound

    found = {}
    for name, bounds in constraints.items():
        low, high = number(name, bounds.min), number(name, bounds.max)
        if low is not None and high is not None and low > high:
            raise NasplatError(
                f"search.constraints: {name} is to be at least {low:,.6g} and at most {high:,.6g}",
                "bounds of up to 1 are shares of the original's, others are numbers",
            )
        found[name] = Bounds(min=low, max=high)
    return found


def excess(found: Mapping[str, float]) -> float:
    """The sum of what is too much; 0 where every constraint is met."""
    return sum(max(0.0, value) for value in found.values())


def describe(metrics: Mapping[str, float], found: Mapping[str, float], constraints: Constraints) -> str:
    """The violated constraints in words: `params 512,000 is above 300,000`."""
    parts = []
    for key, value in found.items():
        name, _, side = key.rpartition(".")
        if value > 0:
            bound = getattr(constraints[name], side)
            parts.append(f"{name} {metrics[name]:,.6g} is {'above' if side == 'max' else 'below'} {bound:,.6g}")
    return ", ".join(parts)
