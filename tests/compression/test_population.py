"""Populations of pruned networks: comparisons that a person can redo by hand."""

from __future__ import annotations

import numpy as np
import pytest

from nasplat.compression.population import (
    best_band,
    bucket_ratio,
    compare,
    error_distribution,
    in_band,
    ratios_around,
    sample_population,
    uniform_ratios,
)
from nasplat.core.errors import NasplatError


def test_members_meet_the_budget() -> None:
    """Otherwise populations of different budgets would be compared."""
    rng = np.random.default_rng(0)
    found = sample_population(lambda n: uniform_ratios(n, 3, rng), lambda r: r.sum(axis=1), 1.5, 60)
    assert found.shape == (60, 3) and np.all(np.abs(found.sum(axis=1) - 1.5) <= 0.015)
    around = ratios_around(np.array([0.2, 1.0]), 100, rng)
    assert around.min() >= 0.1 and around.max() <= 1.0


def test_impossible_budget() -> None:
    """The user would wait for ever."""
    rng = np.random.default_rng(0)
    with pytest.raises(NasplatError, match="only 0 of 5"):
        sample_population(lambda n: uniform_ratios(n, 3, rng), lambda r: r.sum(axis=1), 9, 5, tries=2)


def test_distribution_and_comparison_by_hand() -> None:
    """A wrong function would name the worse space."""
    assert error_distribution([1, 2, 4], [1, 1.5, 2, 3, 5]).tolist() == pytest.approx([0, 1 / 3, 1 / 3, 2 / 3, 1])
    result = compare([1, 2], [2, 3])
    assert (result.area, result.dominance, result.everywhere) == (1.0, 0.875, True)
    assert not compare([1, 5], [2, 3]).everywhere
    with pytest.raises(NasplatError, match="numbers"):
        compare([1, float("nan")], [1])


def test_buckets_and_refined_band() -> None:
    """The refined space would hold other members than those of the good band."""
    assert bucket_ratio(np.array([30, 30]), np.array([12, 18]), 10).tolist() == [2, 2]
    assert bucket_ratio(np.array([30]), np.array([12]), 0).tolist() == [2.5]
    ratios = np.array([[0.2, 0.5], [0.4, 0.7], [0.9, 0.1], [0.3, 0.6]])
    band = best_band(ratios, np.array([1, 2, 9, 8]), 0.5)
    assert band[0].tolist() == [0.2, 0.5] and band[1].tolist() == [0.4, 0.7]
    assert in_band(ratios, band).tolist() == [True, True, False, True]
    alone = best_band(np.array([1.0, 3.0, 5.0]), np.array([2, 1, 9]), 0.1)  # of one member nothing new could be drawn
    assert alone[0] == 1.0 and alone[1] == 3.0
