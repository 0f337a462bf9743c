"""The front itself: what is handed to the user depends on it."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as some

from nasplat.core.front import front_indices, fronts


def on_front(matrix: np.ndarray) -> list[int]:
    """By the definition: no other row is at least as good everywhere and better somewhere."""
    rows = [row for row in range(len(matrix)) if not np.isnan(matrix[row]).any()]
    beaten = {
        row
        for row in rows
        for other in rows
        if (matrix[other] <= matrix[row]).all() and (matrix[other] < matrix[row]).any()
    }
    return [row for row in rows if row not in beaten]


@pytest.mark.parametrize("axes", [1, 2, 3])
@given(seed=some.integers(0, 10_000), count=some.integers(0, 14))
def test_front_is_what_the_definition_says(axes: int, seed: int, count: int) -> None:
    """With equal rows, ties on one axis and missing values, as metrics of real candidates have them."""
    rng = np.random.default_rng(seed)
    matrix = rng.integers(0, 4, (count, axes)).astype(float)
    matrix[rng.random(matrix.shape) < 0.05] = np.nan
    assert front_indices(matrix) == on_front(matrix)


def test_fronts_take_every_row_once() -> None:
    """A strategy that selects by rank would lose those that are left out."""
    matrix = np.random.default_rng(0).integers(0, 6, (40, 2)).astype(float)
    ranked = [row for front in fronts(matrix) for row in front]
    assert sorted(ranked) == list(range(40))


@pytest.mark.parametrize("seed", range(20))
def test_fronts_of_two_axes_are_those_that_peeling_finds(seed: int) -> None:
    """Early stopping of thousands of trials would train others on than the best."""
    rng = np.random.default_rng(seed)
    matrix = rng.integers(0, 6, (40, 2)).astype(float)  # many ties and equals
    matrix[rng.random(40) < 0.05] = np.nan
    left, expected = list(range(40)), []
    while left:
        best = [
            row
            for row in left
            if not np.isnan(matrix[row]).any()
            and not any((matrix[o] <= matrix[row]).all() and (matrix[o] < matrix[row]).any() for o in left)
        ]
        expected.append(best or left)
        left = [row for row in left if row not in expected[-1]]
    assert list(fronts(matrix)) == expected
