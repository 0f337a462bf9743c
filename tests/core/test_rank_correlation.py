"""Rank correlation of scores with the truth, held against counting pairs by hand."""

from __future__ import annotations

import math
import subprocess
import sys
from itertools import combinations

import numpy as np
import pytest

from nasplat.core.errors import NasplatError
from nasplat.core.rank_correlation import kendall, rank_intervals, rank_report, spearman

Values = list[float] | np.ndarray


def sign(value: float) -> int:
    return int(value > 0) - int(value < 0)


def counted_tau(a: Values, b: Values) -> float:
    """Kendall's tau-b by its definition, pair by pair."""
    pairs = list(combinations(range(len(a)), 2))
    one = [sign(a[i] - a[j]) for i, j in pairs]
    two = [sign(b[i] - b[j]) for i, j in pairs]
    agreement = sum(x * y for x, y in zip(one, two, strict=True))
    return agreement / math.sqrt(sum(x * x for x in one) * sum(y * y for y in two))


def counted_rho(a: Values, b: Values) -> float:
    """Pearson's correlation of mean ranks, which are counted."""

    def ranks(values: Values) -> list[float]:
        return [sum(v < x for v in values) + (sum(v == x for v in values) - 1) / 2 for x in values]

    one, two = ranks(a), ranks(b)
    x = [value - sum(one) / len(one) for value in one]
    y = [value - sum(two) / len(two) for value in two]
    inner = sum(p * q for p, q in zip(x, y, strict=True))
    return inner / math.sqrt(sum(p * p for p in x) * sum(q * q for q in y))


def test_correlations_equal_their_definitions() -> None:
    """A wrong correlation would make a user trust a proxy that ranks nothing."""
    rng = np.random.default_rng(0)
    for size in (3, 4, 17, 40):
        a, b = rng.integers(0, 6, size).astype(float), rng.integers(0, 6, size).astype(float)
        a[:2], b[:2] = (0, 1), (1, 0)  # neither side is constant
        assert kendall(a, b) == pytest.approx(counted_tau(a, b), abs=1e-12)
        assert spearman(a, b) == pytest.approx(counted_rho(a, b), abs=1e-12)
    assert kendall([1, 2, 3], [10, 20, 30]) == spearman([1, 2, 3], [10, 20, 30]) == pytest.approx(1)
    assert kendall([1, 2, 3], [3, 2, 1]) == spearman([1, 2, 3], [3, 2, 1]) == pytest.approx(-1)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("correlate", [kendall, spearman])
def test_what_cannot_be_ranked_is_nan(correlate) -> None:  # type: ignore[no-untyped-def]
    """A number from two rows or from a constant score would look like knowledge; a warning would clutter the screen."""
    for a, b in (([], []), ([1, 2], [1, 2]), ([1, 1, 1, 1], [1, 2, 3, 4]), ([1, 2, 3], [5, 5, 5])):
        assert math.isnan(correlate(a, b))
    assert math.isnan(correlate([1, 2, math.nan], [1, 2, 3]))  # two rows are left


def test_missing_values_are_left_out_and_infinities_rank() -> None:
    """A candidate whose score failed must not spoil the correlation of all others."""
    a = [1.0, math.nan, 3.0, 2.0, -math.inf, 5.0]
    b = [1.0, 9.0, 2.0, 4.0, 0.5, math.nan]
    assert kendall(a, b) == pytest.approx(counted_tau([1, 3, 2, -9], [1, 2, 4, 0.5]))
    assert spearman(a, b) == pytest.approx(counted_rho([1, 3, 2, -9], [1, 2, 4, 0.5]))


def test_report_tells_all_from_the_best_tenth() -> None:
    """A proxy that only tells bad from good must show that it is blind among the good, where the search ends."""
    rng = np.random.default_rng(1)
    truth = rng.permutation(200) / 2
    blind = np.where(truth >= 90, 200 - truth, truth)  # right below the best tenth, upside down within it
    [good, bad] = rank_report({"good": truth * 3 + 1, "blind": blind}, truth)
    assert [good.kendall, good.spearman, good.kendall_best, good.spearman_best] == pytest.approx([1] * 4)
    assert (good.name, good.count, good.count_best) == ("good", 200, 20)
    best = truth >= 90
    assert best.sum() == 20
    assert bad.kendall == pytest.approx(counted_tau(blind.tolist(), truth.tolist()))
    assert 0.9 < bad.kendall < 1
    assert bad.kendall_best == pytest.approx(-1) == bad.spearman_best
    order = rng.permutation(200)
    assert rank_report({"good": (truth * 3 + 1)[order], "blind": blind[order]}, truth[order]) == [good, bad]


def test_report_says_what_it_rests_on() -> None:
    """Correlations of five rows and of five hundred must not look alike, and few rows make no number at all."""
    truth = list(range(60))
    missing = [math.nan if value >= 58 else float(value) for value in truth]
    [full, part] = rank_report({"full": truth, "part": missing}, truth)
    assert (full.count, full.count_best, part.count, part.count_best) == (60, 6, 58, 4)
    assert full.kendall_best == pytest.approx(1)
    assert math.isnan(part.kendall_best) and math.isnan(part.spearman_best)
    assert part.kendall == pytest.approx(1)
    [few] = rank_report({"few": truth[:30]}, truth[:30])  # a tenth is exactly 3
    assert few.count_best == 3 and math.isnan(few.kendall_best)
    [tied] = rank_report({"tied": truth[:40]}, [0.0] * 30 + [1.0] * 10)
    assert tied.count_best == 10  # all candidates that are as good as the fourth
    [unknown] = rank_report({"unknown": truth}, [math.nan] * 60)
    assert (unknown.count, unknown.count_best) == (0, 0) and math.isnan(unknown.kendall)
    [half] = rank_report({"half": truth}, truth, best=0.5)
    assert half.count_best == 30
    [one] = rank_report({"one": truth}, truth, best=1e-12)
    assert one.count_best == 1


@pytest.mark.parametrize(
    ("scores", "truth", "best", "message"),
    [
        ({"a": [1, 2]}, [1, 2, 3], 0.1, "score 'a'.* 2 rows against 3"),
        ({"a": ["x", "y", "z"]}, [1, 2, 3], 0.1, "score 'a' cannot be ranked"),
        ({"a": [1, 2, 3]}, [[1, 2, 3]], 0.1, "shape"),
        ({"a": [1, 2, 3]}, [1, 2, 3], 0, "fraction"),
        ({"a": [1, 2, 3]}, [1, 2, 3], 1.1, "fraction"),
        ({"a": [1, 2, 3]}, [1, 2, 3], math.nan, "fraction"),
    ],
)
def test_wrong_input_is_named(scores, truth, best, message) -> None:  # type: ignore[no-untyped-def]
    """Rows that do not belong together must not be correlated silently."""
    with pytest.raises(NasplatError, match=message):
        rank_report(scores, truth, best)
    with pytest.raises(NasplatError, match="3 rows against 2"):
        kendall([1, 2, 3], [1, 2])
    with pytest.raises(NasplatError, match="3 rows against 2"):
        spearman([1, 2, 3], [1, 2])


def looped(score: np.ndarray, other: np.ndarray, truth: np.ndarray, draws: np.ndarray, which: int) -> list[float]:
    """The interval of a correlation and of its difference to another's, by scipy, one draw after the other."""
    from scipy.stats import kendalltau, spearmanr

    def correlated(a: np.ndarray, b: np.ndarray) -> float:
        return float((kendalltau, spearmanr)[which](a, b).statistic)

    own, ahead = [], []
    for counts in draws:
        rows = np.repeat(np.arange(len(truth)), counts)
        here = rows[~np.isnan(score[rows])]
        both = here[~np.isnan(other[here])]
        own.append(correlated(score[here], truth[here]))
        ahead.append(correlated(other[both], truth[both]) - correlated(score[both], truth[both]))
    return [*np.quantile(own, [0.025, 0.975]), *np.quantile(ahead, [0.025, 0.975])]


def test_intervals_are_those_of_resampling_candidate_by_candidate() -> None:
    """Two scores must be compared on the same draws: apart, the luck of the candidates would hide every lead."""
    rng = np.random.default_rng(3)
    truth = rng.integers(0, 9, 14).astype(float)  # with ties
    first, second = truth + rng.normal(0, 2, 14), rng.integers(0, 4, 14).astype(float)
    first[4], second[9], second[0] = math.nan, math.nan, math.inf
    rows = rank_intervals({"first": first, "second": second}, truth, np.random.default_rng(5), 40)
    draws = np.random.default_rng(5).multinomial(14, np.full(14, 1 / 14), 40)
    for row, score in zip(rows, (first, second), strict=True):
        assert row.kendall.value == pytest.approx(kendall(score, truth), abs=1e-12)
        assert row.spearman.value == pytest.approx(spearman(score, truth), abs=1e-12)
        for which, (own, lead) in enumerate(((row.kendall, row.kendall_lead), (row.spearman, row.spearman_lead))):
            wanted = looped(score, first, truth, draws, which)
            assert [own.low, own.high, lead.low, lead.high] == pytest.approx(wanted, abs=1e-12)
    both = [place for place in range(14) if place not in (4, 9)]
    ahead = kendall(first[both], truth[both]) - kendall(second[both], truth[both])
    assert rows[1].kendall_lead.value == pytest.approx(ahead)
    assert rows[0].kendall_lead.value == rows[0].spearman_lead.high == 0
    missing = truth.copy()
    missing[[2, 7]] = math.nan
    some = [place for place in range(14) if place not in (2, 7)]
    assert rank_intervals({"a": first}, missing, np.random.default_rng(5)) == rank_intervals(
        {"a": first[some]}, truth[some], np.random.default_rng(5)
    )


def test_intervals_hold_what_they_promise() -> None:
    """Of candidates of a space whose true correlation is known, 95 of 100 intervals hold it; narrower ones would call
    a supernet better than counting parameters when it is luck."""
    rng = np.random.default_rng(0)
    tau, sets = 2 / math.pi * math.asin(0.7), 150
    own = lead = told = 0
    for _ in range(sets):
        truth = rng.normal(size=20)
        noise = rng.normal(size=(3, 20)) * math.sqrt(1 - 0.7**2)
        one, alike, worse = 0.7 * truth + noise[0], 0.7 * truth + noise[1], noise[2]
        rows = rank_intervals({"one": one, "alike": alike, "worse": worse}, truth, rng, 200)
        own += rows[0].kendall.low <= tau <= rows[0].kendall.high
        lead += rows[1].kendall_lead.low <= 0 <= rows[1].kendall_lead.high
        told += rows[2].kendall_lead.low > 0
    assert 0.9 * sets < own <= sets and 0.9 * sets < lead <= sets
    assert told > 0.4 * sets  # and they are not so wide that nothing is ever found out


@pytest.mark.filterwarnings("error")
def test_too_few_or_equal_candidates_have_no_interval() -> None:
    """Three candidates in the right order are luck one time in six: an interval [1, 1] would be a lie."""
    rng = np.random.default_rng(0)
    few = list(range(9))
    [row] = rank_intervals({"few": few}, few, rng)
    assert row.kendall.value == pytest.approx(1) and math.isnan(row.kendall.low) and math.isnan(row.spearman.high)
    many = list(range(12))
    [good, flat, gone] = rank_intervals({"good": many, "flat": [1] * 12, "gone": [math.nan] * 12}, many, rng)
    assert good.kendall.low == pytest.approx(1)
    for row in (flat, gone):
        assert all(math.isnan(each) for each in (row.kendall.value, row.spearman.low, row.kendall_lead.high))
    assert math.isnan(rank_intervals({"none": []}, [], rng)[0].kendall.value)
    assert rank_intervals({}, many, rng) == []


def test_intervals_name_wrong_input() -> None:
    """A row too few would shift every score by one candidate."""
    rng = np.random.default_rng(0)
    with pytest.raises(NasplatError, match=r"score 'a'.* 2 rows against 3"):
        rank_intervals({"a": [1, 2]}, [1, 2, 3], rng)
    with pytest.raises(NasplatError, match="0 resamples"):
        rank_intervals({"a": [1, 2, 3]}, [1, 2, 3], rng, 0)


def test_importing_needs_neither_scipy_nor_torch() -> None:
    """`nasplat --help` must stay quick."""
    code = "import sys, nasplat.core.rank_correlation; print([m for m in ('scipy', 'torch') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
