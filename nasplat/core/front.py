"""Scores of candidates on several axes, and the candidates that no other beats."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from nasplat.core.architecture import Architecture
from nasplat.core.errors import NasplatError

Direction = Literal["maximize", "minimize"]


@dataclass(frozen=True, slots=True)
class Goal:
    """One axis: the name of a metric and whether more of it is better."""

    metric: str
    direction: Direction


@dataclass(frozen=True, slots=True)
class Score:
    """A candidate: an architecture with what was measured of it."""

    architecture: Architecture
    metrics: Mapping[str, float]
    notes: Mapping[str, Any] = field(default_factory=dict)


def losses(metrics: Sequence[Mapping[str, float]], goals: Sequence[Goal]) -> np.ndarray:
    """`(N, M)` matrix in which less is better on every axis.

    Raises:
        NasplatError: a candidate lacks one of the metrics.
    """
    signs = {"maximize": -1.0, "minimize": 1.0}
    try:
        rows = [[signs[goal.direction] * float(row[goal.metric]) for goal in goals] for row in metrics]
    except KeyError as error:
        raise NasplatError(f"a candidate has no metric {error.args[0]!r}") from error
    return np.array(rows, dtype=float).reshape(len(metrics), len(goals))


def front_indices(matrix: np.ndarray) -> list[int]:
    """Rows to which no other row is at least as good on all axes and better on one, in their order.

    Args:
        matrix: `(N, M)`, less is better. Rows with NaN are never on the front.
    """
    left = np.flatnonzero(~np.isnan(matrix).any(axis=1))
    left = left[np.lexsort(matrix[left].T[::-1])]  # what beats a row comes before it
    if matrix.shape[1] == 2 and len(left):
        return sorted(left[_front_of_two(matrix[left])].tolist())
    kept: list[int] = []
    while len(left):
        row = matrix[left[0]]
        equal = (matrix[left] == row).all(axis=1)
        kept += left[equal].tolist()
        left = left[(matrix[left] < row).any(axis=1)]
    return sorted(kept)


def _front_of_two(rows: np.ndarray) -> np.ndarray:
    """`(N,)` which of the sorted rows `(N, 2)` are on the front: those below all before them, and their equals."""
    new = np.r_[True, (rows[1:] != rows[:-1]).any(axis=1)]
    below = np.r_[True, rows[1:, 1] < np.minimum.accumulate(rows[:-1, 1])]
    first_equal = np.maximum.accumulate(np.where(new, np.arange(len(rows)), 0))
    found: np.ndarray = below[first_equal]
    return found


def fronts(matrix: np.ndarray) -> Iterator[list[int]]:
    """The rows of the front, of the front behind it, and so on (non-dominated ranks); rows with NaN come last."""
    if matrix.shape[1] == 2:
        yield from _fronts_of_two(matrix)
        return
    left = np.arange(len(matrix))
    while len(left):
        best = front_indices(matrix[left]) or list(range(len(left)))
        yield left[best].tolist()
        left = np.delete(left, best)


def _fronts_of_two(matrix: np.ndarray) -> Iterator[list[int]]:
    """The same for two axes, in one walk: sorted, a row is behind a front whose last row is below it or at its left."""
    missing = np.isnan(matrix).any(axis=1)
    rows = np.flatnonzero(~missing)
    rows = rows[np.lexsort(matrix[rows].T[::-1])]
    last: list[tuple[float, float]] = []  # of each front: (second value, first value), ascending over the fronts
    found: list[list[int]] = []
    for row, first, second in zip(rows.tolist(), *matrix[rows].T.tolist(), strict=True):
        place = bisect_left(last, (second, first))
        if place == len(last):
            last.append((second, first))
            found.append([row])
        else:
            last[place] = (second, first)
            found[place].append(row)
    yield from (sorted(one) for one in found)
    if missing.any():
        yield np.flatnonzero(missing).tolist()


def front(scores: Sequence[Score], goals: Sequence[Goal]) -> list[Score]:
    """The Pareto front, best on the first axis first; of candidates equal on all axes the first is kept."""
    matrix = losses([score.metrics for score in scores], goals)
    seen: set[tuple[float, ...]] = set()
    kept = []
    for index in sorted(front_indices(matrix), key=lambda row: tuple(matrix[row])):
        point = tuple(matrix[index])
        if point not in seen:
            seen.add(point)
            kept.append(scores[index])
    return kept


def hypervolume(matrix: np.ndarray, reference: Sequence[float]) -> float:
    """The volume that the rows dominate, up to a reference point (less is better), exactly, by slicing.

    Args:
        matrix: `(N, M)` with M of at least 1.
        reference: `(M,)`; rows that are not better on every axis add nothing.
    """
    bound = np.asarray(reference, dtype=float)
    rows = matrix[(matrix < bound).all(axis=1)] if len(matrix) else matrix
    return _volume(rows, bound) if len(rows) else 0.0


def _volume(rows: np.ndarray, bound: np.ndarray) -> float:
    if rows.shape[1] == 1:
        return float(bound[0] - rows.min())
    rows = rows[np.argsort(rows[:, 0], kind="stable")]
    edges = np.append(rows[1:, 0], bound[0])
    total = 0.0
    for index, width in enumerate(edges - rows[:, 0]):
        if width > 0:
            total += width * _volume(rows[: index + 1, 1:], bound[1:])
    return total
