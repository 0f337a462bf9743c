"""How well a score ranks candidates: rank correlation with what they truly reach, over all and among the best.

And how surely: intervals of the correlations, and of how far one score is ahead of another on the same candidates.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from nasplat.core.errors import NasplatError

FEWEST_ROWS = 3  # of a correlation; of two rows it is always 1 or -1
FEWEST_BEST = 5  # of a correlation among the best
FEWEST_BOUNDED = 10  # of an interval; one that is resampled from fewer is too narrow
CONFIDENCE = 0.95
RESAMPLES = 2000
LARGEST = 2e8  # resamples times rows times rows: a second or two


@dataclass(frozen=True, slots=True)
class RankRow:
    """How one score ranks.

    Args:
        name: of the score.
        kendall, spearman: rank correlations in [-1, 1] with the true values, over all candidates.
        kendall_best, spearman_best: the same over the truly best candidates only.
        count, count_best: of candidates that have both values, among all and among the best.
    """

    name: str
    kendall: float
    spearman: float
    kendall_best: float
    spearman_best: float
    count: int
    count_best: int


@dataclass(frozen=True, slots=True)
class Bounded:
    """A correlation, or a difference of two, and its 95 % interval; the bounds are NaN where too few rows give none."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class RankInterval:
    """How surely one score ranks.

    Args:
        name: of the score.
        kendall, spearman: rank correlations with the true values, over all candidates.
        kendall_lead, spearman_lead: those of the first score minus those of this one, over the candidates that have
            both; of the first score itself 0.
    """

    name: str
    kendall: Bounded
    spearman: Bounded
    kendall_lead: Bounded
    spearman_lead: Bounded


def kendall(a: Sequence[float] | np.ndarray, b: Sequence[float] | np.ndarray) -> float:
    """Kendall's tau-b, which corrects for ties (Kendall, The Treatment of Ties in Ranking Problems, 1945).

    Args:
        a, b: `(N,)`. Rows in which either is NaN are left out; infinities rank as the largest and the smallest.

    Returns:
        In [-1, 1]; NaN where fewer than three rows are left or one side is constant.

    Raises:
        NasplatError: the two are not rows of numbers of one length.
    """
    from scipy.stats import kendalltau

    one, two = _known(a, b)
    return float(kendalltau(one, two).statistic) if _can_rank(one, two) else math.nan


def spearman(a: Sequence[float] | np.ndarray, b: Sequence[float] | np.ndarray) -> float:
    """Spearman's rho, ties at their mean rank (Spearman, 1904); arguments, NaN and errors as in `kendall`."""
    from scipy.stats import rankdata

    one, two = _known(a, b)
    # Of ranks and not of values, because infinities have ranks.
    return float(np.corrcoef(rankdata(one), rankdata(two))[0, 1]) if _can_rank(one, two) else math.nan


def rank_report(
    scores: Mapping[str, Sequence[float] | np.ndarray], truth: Sequence[float] | np.ndarray, best: float = 0.1
) -> list[RankRow]:
    """Rank correlation of every score with the true values, over all candidates and over the truly best.

    A score that separates bad networks from good ones may say nothing among the good ones, where a search spends its
    time; therefore both are told. Among the best, fewer than five rows make no number (NaN).

    Args:
        scores: by name, `(N,)` each, more is better; NaN where a candidate has none.
        truth: `(N,)`, more is better; candidates with NaN are left out.
        best: fraction of the candidates that counts as the best, in (0, 1], rounded up; ties of the last one belong
            to it, so that the order of the rows does not matter.

    Raises:
        NasplatError: a score of another length than the truth, no numbers, or a fraction outside (0, 1].
    """
    if not 0 < best <= 1:
        raise NasplatError(f"the best {best} of the candidates is no fraction", "give a number in (0, 1], such as 0.1")
    true = _numbers(truth, "the true values")
    known = np.sort(true[~np.isnan(true)])[::-1]
    # 0.1 * 30 is a little more than 3 in binary; without the rounding its ceiling would be 4.
    last = max(math.ceil(round(best * len(known), 9)), 1)
    threshold = known[last - 1] if len(known) else math.inf
    top = true >= threshold
    rows = []
    for name, values in scores.items():
        score = _paired(values, true, f"the values of score {name!r}")
        count = int((~np.isnan(score) & ~np.isnan(true)).sum())
        count_best = int((~np.isnan(score) & top).sum())
        among_best = (
            (kendall(score[top], true[top]), spearman(score[top], true[top]))
            if count_best >= FEWEST_BEST
            else (math.nan, math.nan)
        )
        rows.append(RankRow(name, kendall(score, true), spearman(score, true), *among_best, count, count_best))
    return rows


def rank_intervals(
    scores: Mapping[str, Sequence[float] | np.ndarray],
    truth: Sequence[float] | np.ndarray,
    rng: np.random.Generator,
    resamples: int = RESAMPLES,
) -> list[RankInterval]:
    """Correlation of every score with the true values, and how far the first is ahead, with 95 % intervals.

    Candidates are drawn again with replacement, and the interval lies between quantiles of what the draws give (Efron,
    Bootstrap Methods: Another Look at the Jackknife, 1979). All scores are judged on the same draws, so that what a
    draw does to both of two scores is not in the interval of their difference.

    Args:
        scores: by name, `(N,)` each, more is better; NaN where a candidate has none.
        truth: `(N,)`, more is better; candidates with NaN are left out.
        rng: draws the candidates.
        resamples: draws at most; of more than 300 candidates fewer, since the work grows with their square.

    Returns:
        One row a score. Values are NaN as in `kendall`; bounds are also where fewer than ten candidates have both.

    Raises:
        NasplatError: a score of another length than the truth, no numbers, or no resamples.
    """
    if resamples < 1:
        raise NasplatError(f"intervals cannot be made of {resamples} resamples", f"use {RESAMPLES}")
    true = _numbers(truth, "the true values")
    known = ~np.isnan(true)
    columns = {name: _paired(values, true, f"the values of score {name!r}")[known] for name, values in scores.items()}
    true = true[known]
    size = len(true)
    draws = min(resamples, max(200, int(LARGEST / max(size, 1) ** 2)))
    drawn = rng.multinomial(size, np.full(size, 1 / size), draws) if size else np.empty((draws, 0))
    counts = np.vstack([np.ones(size), drawn])  # the first row is of all candidates once
    first = next(iter(columns.values()), true)
    done: dict[tuple[bytes, bytes], tuple[np.ndarray, np.ndarray]] = {}  # mostly no value is missing

    def correlations(score: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        key = (score.tobytes(), rows.tobytes())
        if key not in done:
            done[key] = _correlations(score[rows], true[rows], counts[:, rows])
        return done[key]

    found: list[RankInterval] = []
    for name, score in columns.items():
        own, both = ~np.isnan(score), ~(np.isnan(score) | np.isnan(first))
        pairs = zip(correlations(first, both), correlations(score, both), strict=True)
        leads = [_interval(one - other, int(both.sum())) for one, other in pairs]
        found.append(
            RankInterval(name, *(_interval(each, int(own.sum())) for each in correlations(score, own)), *leads)
        )
    return found


def _interval(values: np.ndarray, rows: int) -> Bounded:
    """Of the correlations of all rows, which come first, and of the draws."""
    value, drawn = float(values[0]), values[1:][~np.isnan(values[1:])]
    if math.isnan(value) or rows < FEWEST_BOUNDED or not len(drawn):
        return Bounded(value, math.nan, math.nan)
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(drawn, [tail, 1 - tail])
    return Bounded(value, float(low), float(high))


def _correlations(score: np.ndarray, true: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Kendall's tau-b and Spearman's rho of many draws at once.

    Args:
        score, true: `(N,)`.
        counts: `(R, N)`, how often each draw holds each row.

    Returns:
        `(R,)` each; NaN where a draw holds fewer than three rows, or one side of it is constant.
    """
    one, two = (
        np.unique(side, return_inverse=True)[1].astype(float) for side in (score, true)
    )  # infinities have ranks
    enough = counts.sum(1) >= FEWEST_ROWS
    signs = [np.sign(side[:, None] - side[None, :]) for side in (one, two)]

    def pairs(matrix: np.ndarray) -> np.ndarray:
        """The sum over all pairs of rows of each draw; two draws of one row are a tie on both sides."""
        total: np.ndarray = ((counts @ matrix) * counts).sum(1)
        return total

    tau = _ratio(pairs(signs[0] * signs[1]), pairs(signs[0] ** 2), pairs(signs[1] ** 2))
    # Twice a row's distance from the middle of the ranks of its draw: rows below it less those above.
    ranks = [counts @ sign.T for sign in signs]
    rho = _ratio(*((counts * a * b).sum(1) for a, b in ((ranks[0], ranks[1]), (ranks[0],) * 2, (ranks[1],) * 2)))
    return np.where(enough, tau, math.nan), np.where(enough, rho, math.nan)


def _ratio(inner: np.ndarray, one: np.ndarray, two: np.ndarray) -> np.ndarray:
    varied = (one > 0) & (two > 0)
    root = np.sqrt(np.where(varied, one, 1.0)) * np.sqrt(np.where(varied, two, 1.0))
    return np.where(varied, np.clip(inner / root, -1, 1), math.nan)


def _numbers(values: Sequence[float] | np.ndarray, what: str) -> np.ndarray:
    try:
        numbers = np.asarray(values, dtype=float)
    except (TypeError, ValueError) as error:
        raise NasplatError(f"{what} cannot be ranked: {error}", "give one number a candidate, NaN for none") from error
    if numbers.ndim != 1:
        raise NasplatError(f"{what} have shape {numbers.shape}", "give one number a candidate")
    return numbers


def _paired(values: Sequence[float] | np.ndarray, others: np.ndarray, what: str) -> np.ndarray:
    numbers = _numbers(values, what)
    if len(numbers) != len(others):
        raise NasplatError(f"{what} cannot be correlated: {len(numbers)} rows against {len(others)}")
    return numbers


def _known(a: Sequence[float] | np.ndarray, b: Sequence[float] | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    two = _numbers(b, "the values")
    one = _paired(a, two, "the values")
    rows = ~(np.isnan(one) | np.isnan(two))
    return one[rows], two[rows]


def _can_rank(one: np.ndarray, two: np.ndarray) -> bool:
    return len(one) >= FEWEST_ROWS and bool((one != one[0]).any()) and bool((two != two[0]).any())
