"""Populations of pruned networks, compared by their errors (Network Pruning Spaces, He et al., 2023). No torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from nasplat.core.errors import NasplatError

Costs = Callable[[np.ndarray], np.ndarray]  # ratios (members, groups) -> cost (members,)
Rng = np.random.Generator


def uniform_ratios(count: int, groups: int, rng: Rng, low: float = 0.1, high: float = 1.0) -> np.ndarray:
    """Ratios `(count, groups)`, each uniform and independent."""
    return rng.uniform(low, high, (count, groups))


def ratios_around(centre: np.ndarray, count: int, rng: Rng, spread: float = 0.1, low: float = 0.1) -> np.ndarray:
    """Ratios `(count, groups)`: normal around a target `(groups,)`, cut to `low` … 1."""
    return np.clip(rng.normal(centre, spread, (count, len(centre))), low, 1.0)


def sample_population(
    draw: Callable[[int], np.ndarray], cost: Costs, target: float, size: int, tolerance: float = 0.01, tries: int = 200
) -> np.ndarray:
    """Members whose cost lies within a tolerance of the target, by rejection: ratios `(size, groups)`.

    Args:
        draw: so many ratio vectors.
        cost: FLOPs or parameters of many at once.
        target: of the cost, absolute.
        size: how many members.
        tolerance: as a share of the target.
        tries: batches of at least 1,000 that are drawn at most.

    Raises:
        NasplatError: too few of them meet the target.
    """
    found: list[np.ndarray] = []
    for _ in range(tries):
        batch = draw(max(1000, size))
        found.extend(batch[np.abs(cost(batch) - target) <= tolerance * target])
        if len(found) >= size:
            return np.array(found[:size])
    raise NasplatError(
        f"only {len(found)} of {size} members cost {target:,.0f} to within {tolerance:.1%}",
        "draw around the target's share, or allow a larger tolerance",
    )


def error_distribution(errors: Sequence[float] | np.ndarray, at: Sequence[float] | np.ndarray) -> np.ndarray:
    """F(e): the share of members whose error is below e, for every e of `at`."""
    ordered = np.sort(_numbers(errors))
    return np.searchsorted(ordered, np.asarray(at, dtype=float), side="left") / len(ordered)


@dataclass(frozen=True, slots=True)
class Comparison:
    """Of two populations' error distribution functions.

    Args:
        area: of the first above the second, which is the second's mean error minus the first's.
        dominance: the share of pairs where the first's error is lower; a tie is half a pair.
        everywhere: whether the first is nowhere below the second.
    """

    area: float
    dominance: float
    everywhere: bool


def compare(first: Sequence[float] | np.ndarray, second: Sequence[float] | np.ndarray) -> Comparison:
    """How much better the first population is than the second; both must be of the same cost.

    Raises:
        NasplatError: one is empty or holds something that is no number.
    """
    one, other = _numbers(first), _numbers(second)
    wins = (one[:, None] < other).mean() + 0.5 * (one[:, None] == other).mean()
    at = np.append(np.unique(np.concatenate([one, other])), np.inf)
    gap = error_distribution(one, at) - error_distribution(other, at)
    return Comparison(float(other.mean() - one.mean()), float(wins), bool((gap >= 0).all()))


def bucket_ratio(flops: np.ndarray, params: np.ndarray, bucket: float) -> np.ndarray:
    """FLOPs divided by the middle of the bucket of parameters that a member falls into.

    Args:
        flops, params: `(members,)`.
        bucket: width in parameters; 0 divides by the parameters themselves.
    """
    params = np.asarray(params, dtype=float)
    return np.asarray(flops, dtype=float) / (params if bucket <= 0 else (np.floor(params / bucket) + 0.5) * bucket)


def best_band(values: np.ndarray, errors: np.ndarray, share: float = 0.2) -> tuple[np.ndarray, np.ndarray]:
    """Least and greatest value among the share of members with the lowest errors: `(…)` each of `(members, …)`.

    Two members at least, where there are two: the band of one would hold only that one. Of ratio vectors it is the band
    of every group; of `bucket_ratio` that of the whole population.

    Raises:
        NasplatError: errors that are no numbers, or not one for each member.
    """
    found = _numbers(errors)
    if len(found) != len(values):
        raise NasplatError(f"there are {len(values)} members and {len(found)} errors")
    best = np.asarray(values)[np.argsort(found, kind="stable")[: max(2, round(share * len(found)))]]
    return best.min(axis=0), best.max(axis=0)


def in_band(values: np.ndarray, band: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    """Which members lie in a band in every place: booleans `(members,)`. The refined space holds only these."""
    inside = (values >= band[0]) & (values <= band[1])
    return np.asarray(inside.reshape(len(inside), -1).all(axis=1))


def _numbers(errors: Sequence[float] | np.ndarray) -> np.ndarray:
    found = np.asarray(errors, dtype=float)
    if not found.size or not np.isfinite(found).all():
        raise NasplatError("errors of a population must be numbers, at least one", "leave members that failed out")
    return found
