"""How well a score ranks candidates: rank correlation with what they truly reach, over all and among the best."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from nasplat.core.errors import NasplatError

FEWEST_ROWS = 3  # of a correlation; of two rows it is always 1 or -1
FEWEST_BEST = 5  # of a correlation among the best


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


def table_text(rows: Sequence[RankRow]) -> list[str]:
    """The rows as lines of an aligned table for people, its header first; `-` stands where there is no number."""
    lines = [["score", "kendall", "spearman", "rows", "kendall of best", "spearman of best", "best rows"]]
    for row in rows:
        numbers = [row.kendall, row.spearman, row.count, row.kendall_best, row.spearman_best, row.count_best]
        lines.append([row.name, *map(_cell, numbers)])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return ["  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])]) for line in lines]


def _cell(number: float) -> str:
    if isinstance(number, int):
        return str(number)
    return "-" if math.isnan(number) else f"{number:.3f}"


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
