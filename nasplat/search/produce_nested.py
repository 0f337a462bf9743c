"""What proposes networks of a supernet without a search: the largest that each budget allows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from nasplat.core.architecture import Architecture
from nasplat.core.errors import NasplatError
from nasplat.core.space import SearchSpace
from nasplat.search.constraints import describe, excess, violations
from nasplat.search.options import Positive
from nasplat.search.producer import Brief, Produced, Producer

ENUMERATED = 5_000  # assignments, up to which all networks of a space are looked at
STARTS = 4  # of climbs in larger spaces, besides the smallest network

Budgets = Annotated[tuple[Positive, ...], Field(min_length=1)]
Worth = Callable[[Architecture], tuple[float, ...]]


def largest(budgets: Budgets = (0.3, 0.5, 0.8), cost: Literal["macs", "params"] = "macs") -> Producer:
    """For each budget the largest network within it, found from the costs alone.

    Where the larger of nested networks is the better one, a trained supernet gives the whole front so (Valipour et al.,
    SortedNet, 2023). It is the network of the highest cost that the budget and `search.constraints` allow, and of those
    the one of the highest other cost. Up to 5,000 assignments all networks are looked at. In a larger space climbs
    begin at the smallest network and at four random ones: each goes to the best of the networks that differ in one
    choice, first by what is beyond the limits, then by cost, until none is better, and the best of their ends is taken.
    The same space and limits always give the same network.

    Args:
        budgets: up to 1 they are shares of the cost of the largest network of the space, others are numbers.
        cost: what is limited, `macs` or `params`.
    """

    def find(brief: Brief) -> Produced:
        space, constraints = brief.space, brief.experiment.search.constraints
        if not {"macs", "params"} <= space.known(space.canonical({})).keys():
            raise NasplatError(
                "search.produce: largest goes by macs and params, which nothing tells of these networks",
                "use a space that knows its costs",
            )
        other = "params" if cost == "macs" else "macs"

        def size(one: Architecture) -> tuple[float, ...]:
            known = space.known(one)
            return known[cost], known[other]

        networks = list(space.enumerate()) if space.count() <= ENUMERATED else None
        smallest = _best(space, networks, [space.canonical({})], lambda one: tuple(-value for value in size(one)))
        rng = np.random.default_rng(0)
        starts = [smallest, *(space.sample(rng) for _ in range(STARTS))]
        whole = size(_best(space, networks, starts, size))[0]
        found: dict[str, Architecture] = {}
        for budget in budgets:
            limit = budget * whole if budget <= 1 else budget

            def worth(one: Architecture, limit: float = limit) -> tuple[float, ...]:
                beyond = excess(violations(space.known(one), constraints)) + max(0.0, size(one)[0] / limit - 1)
                return -beyond, *size(one)

            best = _best(space, networks, starts, worth)
            known = space.known(best)
            if known[cost] > limit:
                raise NasplatError(
                    f"search.produce: no network has at most {limit:,.6g} {cost}, the budget {budget:g} of largest",
                    f"the smallest within search.constraints has {known[cost]:,.6g}"
                    if constraints
                    else f"the smallest has {known[cost]:,.6g}, {known[cost] / whole:.2g} of the largest",
                )
            broken = violations(known, constraints)
            if excess(broken) > 0:
                raise NasplatError(
                    f"search.produce: largest finds no network of at most {limit:,.6g} {cost} within "
                    f"search.constraints: {describe(known, broken, constraints)} of the nearest",
                    "allow more, or give another budget",
                )
            brief.say(f"largest {budget:g}: {known[cost]:,.0f} {cost} of at most {limit:,.0f}")
            found[f"largest {budget:g}"] = best
        return found

    return find


def _best(
    space: SearchSpace, networks: Sequence[Architecture] | None, starts: Sequence[Architecture], worth: Worth
) -> Architecture:
    """The network that is worth most: of all, or of where climbs from the starts end."""
    return max((_climbed(space, one, worth) for one in starts) if networks is None else networks, key=worth)


def _climbed(space: SearchSpace, here: Architecture, worth: Worth) -> Architecture:
    """Where no change of one choice is worth more."""
    while True:
        better = max(space.neighbours(here), key=worth, default=here)
        if worth(better) <= worth(here):
            return here
        here = better
