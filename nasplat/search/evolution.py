"""Regularised evolution (Real et al., Regularized Evolution for Image Classifier Architecture Search, 2019)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from nasplat.core.front import Goal, fronts, losses
from nasplat.core.space import SearchSpace
from nasplat.search.history import History, Proposal
from nasplat.search.options import AtLeast1, AtLeast2, Share
from nasplat.search.suggestion import Strategy, Suggestion


def regularised_evolution(
    population: AtLeast2 = 30, tournament: AtLeast1 = 6, startup: AtLeast1 = 10, crossover: Share = 0.0
) -> Strategy:
    """Mutates the winner of a tournament among the youngest; the oldest die, however good they are.

    With several goals the winner is the one of lowest non-dominated rank, and of the largest crowding distance among
    equals (Deb et al., NSGA-II, 2002).

    Args:
        population: how many of the last evaluated candidates are alive.
        tournament: how many of them are drawn for each proposal.
        startup: random candidates before the first mutation.
        crossover: probability that a child has two parents before it is mutated (the paper: 0).
    """
    if not 1 <= tournament <= population:
        raise ValueError(f"tournament must lie between 1 and the population ({population}), not {tournament}")

    def propose(history: History, space: SearchSpace, goals: Sequence[Goal], rng: np.random.Generator, /) -> Suggestion:
        if len(history.complete) < max(startup, 1):
            return Suggestion(space.sample(rng).values, why="random, to begin with")
        alive = history.complete[-population:]
        order = ranking(losses([proposal.metrics for proposal in alive], goals))
        place = {row: position for position, row in enumerate(order)}

        def winner() -> Proposal:
            drawn = rng.choice(len(alive), size=min(tournament, len(alive)), replace=False)
            return alive[min(drawn.tolist(), key=place.__getitem__)]

        parent = winner()
        child, why = space.canonical(parent.values), f"a mutation of trial {parent.number}"
        if crossover and rng.random() < crossover:
            other = winner()
            child = space.crossover(child, space.canonical(other.values), rng)
            why += f" crossed with trial {other.number}"
        mutated = space.mutate(child, rng)
        if mutated is None:
            return Suggestion(space.sample(rng).values, why="random: the space has nothing to mutate")
        return Suggestion(mutated.values, why=f"{why}, the winner of a tournament of {min(tournament, len(alive))}")

    return propose


def ranking(matrix: np.ndarray, most: int | None = None) -> list[int]:
    """Rows from the best to the worst: by non-dominated rank, then by crowding distance, then by age (youngest first).

    Args:
        matrix: `(N, M)`, less is better.
        most: no more than so many rows are wanted; by default all.
    """
    order: list[int] = []
    for best in fronts(matrix) if most != 0 else ():
        crowding = dict(zip(best, crowding_distance(matrix[best]), strict=True))
        order += sorted(best, key=lambda row: (-crowding[row], -row))
        if most is not None and len(order) >= most:
            return order[:most]
    return order


def crowding_distance(matrix: np.ndarray) -> np.ndarray:
    """How alone each row is among the rows of one front: the sum over axes of the gap between its neighbours.

    Args:
        matrix: `(N, M)`.

    Returns:
        `(N,)`; infinite at both ends of an axis.
    """
    count = len(matrix)
    distance = np.zeros(count)
    for axis in range(matrix.shape[1]):
        order = np.argsort(matrix[:, axis], kind="stable")
        column = matrix[order, axis]
        width = column[-1] - column[0]
        if width == 0:
            continue
        distance[order[[0, -1]]] = np.inf
        distance[order[1:-1]] += (column[2:] - column[:-2]) / width
    return distance
