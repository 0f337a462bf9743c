"""Early stopping for several metrics: which trial is trained on, and which is left as it is.

A trial is trained to a rung, a share of its budget, judged there, and paused. A promotion trains it on to the next rung
from its checkpoint, so no message to a worker is needed, and a search that was interrupted goes on from what was
judged. A rule decides from the judgements alone: it draws nothing, and ties go to the lower number.

The best of a rung are those of the lowest non-dominated rank, and of the largest crowding distance among equals (Deb et
al., NSGA-II, 2002), on all goals. So what is known before training counts as much as what training shows: a network
that is worse than another one but also smaller is on the front, and a network is compared, in effect, to those of its
own cost. With one goal this is the order by that goal.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Protocol

from nasplat.core.errors import NasplatError
from nasplat.core.front import Goal, losses
from nasplat.search.evolution import ranking

Judged = Mapping[int, Mapping[str, float]]
"""Trial number and metrics of all that are done with a rung; {} where a trial failed or turned out infeasible."""


class Rule(Protocol):
    """Decides which trial is promoted next."""

    def __call__(
        self,
        results: Sequence[Judged],
        begun: Sequence[Collection[int]],
        goals: Sequence[Goal],
        reduction: int,
        *,
        last: bool = False,
    ) -> tuple[int, int] | None:
        """The number of a trial and the rung, from 0, that it is to be trained to; None: a new trial is due.

        Args:
            results: for each rung what was judged there. Trials without a finite value on every goal count for
                nothing, and are never promoted; they are there so that nobody waits for them.
            begun: for each rung the numbers of the trials that were started towards it, whatever became of them.
            goals: what is better, for each metric.
            reduction: one of so many goes on.
            last: no new trial will be started any more.
        """


def rung_shares(reduction: int = 3, rungs: int = 3) -> tuple[float, ...]:
    """Shares of the budget at which trials are judged, ascending; the last is 1.

    Raises:
        NasplatError: fewer than one rung, or a reduction below two.
    """
    if reduction < 2:
        raise NasplatError(f"early stopping: reduction is {reduction}", "one of `reduction` goes on: 2 or more")
    if rungs < 1:
        raise NasplatError(f"early stopping: rungs is {rungs}", "one rung trains all to the end; 2 or more stop some")
    return tuple(1 / reduction**left for left in reversed(range(rungs)))


def promote(
    results: Sequence[Judged],
    begun: Sequence[Collection[int]],
    goals: Sequence[Goal],
    reduction: int,
    *,
    last: bool = False,
) -> tuple[int, int] | None:
    """ASHA (Li et al., A System for Massively Parallel Hyperparameter Tuning, 2020): whoever is now among the best.

    A trial is promoted as soon as it is among the best 1/reduction of what its rung has seen, highest rung first; none
    waits for another, and early ones may go on that would not have with all others known. Where no new trial comes any
    more, the best of a rung goes on even among fewer than `reduction`. See `Rule`.
    """
    for rung in reversed(range(len(results) - 1)):
        best = best_first(results[rung], goals, reduction)
        found = next((number for number in best if number not in begun[rung + 1]), None)
        if found is not None:
            return found, rung + 1
    # Or a small budget would end without anything that was trained to its end.
    for rung in range(len(results) - 1) if last else ():
        judged = all(number in results[at] for at in (rung, rung + 1) for number in begun[at])
        if judged and not best_first(results[rung + 1], goals):
            waiting = [number for number in best_first(results[rung], goals) if number not in begun[rung + 1]]
            if waiting:
                return waiting[0], rung + 1
    return None


def halve(results: Judged, goals: Sequence[Goal], reduction: int) -> list[int]:
    """The numbers that go on from a rung, best first: the best 1/reduction, and at least one where any can.

    Successive halving (Jamieson & Talwalkar, Non-stochastic Best Arm Identification, 2016).
    """
    order = best_first(results, goals)
    return order[: max(1, len(order) // reduction)]


def asha() -> Rule:
    """Asynchronous successive halving; see `promote`."""
    return promote


def halving(bracket: int = 27) -> Rule:
    """Successive halving: trials are taken in brackets, by number; a rung is halved when all of the bracket are judged.

    Nobody goes on by luck of coming early, but a bracket waits for its slowest trial; meanwhile, the next bracket is
    begun. A last bracket that is not full is halved as it is.

    Args:
        bracket: so many trials are compared with each other.

    Raises:
        NasplatError: an empty bracket.
    """
    if bracket < 1:
        raise NasplatError(f"early stopping: bracket is {bracket}", "so many trials are compared: 1 or more")

    def rule(
        results: Sequence[Judged],
        begun: Sequence[Collection[int]],
        goals: Sequence[Goal],
        reduction: int,
        *,
        last: bool = False,
    ) -> tuple[int, int] | None:
        found: tuple[int, int] | None = None
        numbers = sorted(begun[0])
        for start in range(0, len(numbers), bracket):
            members = numbers[start : start + bracket]
            if len(members) < bracket and not last:
                break
            for rung in range(len(results) - 1):
                if any(number not in results[rung] for number in members):
                    break
                members = halve({number: results[rung][number] for number in members}, goals, reduction)
                waiting = [number for number in members if number not in begun[rung + 1]]
                if waiting:
                    if found is None or rung + 1 > found[1]:
                        found = waiting[0], rung + 1
                    break
        return found

    return rule


RULES: dict[str, Callable[..., Rule]] = {"asha": asha, "halving": halving}


class Kept(dict[int, Mapping[str, float]]):
    """What was judged at a rung, with its order, which is worked out once as long as nothing else is judged there."""

    def __init__(self) -> None:
        super().__init__()
        self.orders: dict[tuple[tuple[Goal, ...], int], list[int]] = {}

    def __setitem__(self, number: int, metrics: Mapping[str, float]) -> None:
        self.orders.clear()
        super().__setitem__(number, metrics)

    def __delitem__(self, number: int) -> None:
        self.orders.clear()
        super().__delitem__(number)


def best_first(results: Judged, goals: Sequence[Goal], reduction: int = 1) -> list[int]:
    """Numbers of the trials of a rung by non-dominated rank, then crowding distance, then number.

    Args:
        reduction: only the best 1/reduction is wanted.
    """
    if not isinstance(results, Kept):
        return _ordered(results, goals, reduction)
    key = (tuple(goals), reduction)
    if key not in results.orders:
        results.orders[key] = _ordered(results, goals, reduction)
    return results.orders[key]


def _ordered(results: Judged, goals: Sequence[Goal], reduction: int) -> list[int]:
    def counts(metrics: Mapping[str, float]) -> bool:
        return all(math.isfinite(metrics.get(goal.metric, math.nan)) for goal in goals)

    # Backwards, since of equal rows `ranking` takes the later one first.
    numbers = sorted((number for number, metrics in results.items() if counts(metrics)), reverse=True)
    matrix = losses([results[number] for number in numbers], goals)
    return [numbers[row] for row in ranking(matrix, len(numbers) // reduction)]
