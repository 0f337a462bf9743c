"""Which images train, which validate, which test. Deterministic; with labels, each class is split alike."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

# Of the test images that a source without its own gets: the same always, whatever an experiment says.
TEST_SHARE, TEST_SEED = 0.2, 2020


def hold_out(labels: Tensor | None, count: int, held: int, seed: int) -> tuple[Tensor, Tensor]:
    """Rows that stay and rows that are held out, each ascending.

    Args:
        labels: `(count,)` int64; each class gives its share of the rows that are held out, to within one image, but
            keeps one where it has any. None splits without regard to classes.
        held: how many; at least one row is held out and one stays, where there are two.
    """
    held = min(max(held, 1), count - 1)
    rng = np.random.Generator(np.random.PCG64(seed))
    order = rng.permutation(count)
    if labels is None:
        out = np.zeros(count, dtype=bool)
        out[order[:held]] = True
    else:
        out = _stratified(labels.numpy(), order, held)
        if not out.any():  # every class has one image
            out[order[:held]] = True
    rows = torch.arange(count)
    chosen = torch.from_numpy(out)
    return rows[~chosen], rows[chosen]


def _stratified(labels: np.ndarray, order: np.ndarray, held: int) -> np.ndarray:
    counts = np.bincount(labels)
    exact = counts * (held / len(labels))
    quota = np.floor(exact).astype(np.int64)
    quota = np.minimum(quota, np.maximum(counts - 1, 0))
    # The largest remainders get one more until the number is right; ties go to the lower class.
    for index in np.argsort(-(exact - quota), kind="stable"):
        if quota.sum() >= held:
            break
        quota[index] += quota[index] < counts[index] - 1
    shuffled = labels[order]
    by_class = order[np.argsort(shuffled, kind="stable")]
    starts = np.cumsum(counts) - counts
    out = np.zeros(len(labels), dtype=bool)
    for start, taken in zip(starts, quota, strict=True):
        out[by_class[start : start + taken]] = True
    return out
