"""Expected hypervolume improvement where some metrics are predicted and the others are known exactly.

The volume that a candidate would add is an integral over thresholds `t` of its predicted loss: below `t` lies the part
of the known metrics' box that no candidate of the front with a loss of at most `t` dominates. So

    E[improvement] = integral of P(loss <= t) * free(t) dt,    free(t) = volume of the known box not dominated at t,

with the known metrics used as they are (a closed form of Emmerich, 2006, for one predicted axis). Without known metrics
it is the expected improvement (Mockus, 1975); a second predicted metric is sampled, and each sample taken as known.
"""

from __future__ import annotations

import numpy as np

MOST_CELLS = 2_500
_GRID = {0: 1, 1: 400, 2: 50, 3: 13, 4: 7}


def free_volume(
    known: np.ndarray, front_known: np.ndarray, front_loss: np.ndarray, at: np.ndarray, reference: np.ndarray
) -> np.ndarray:
    """The volume of the known metrics' box from each candidate to the reference that is free at every threshold.

    Exact while the front has at most 400 members for one known metric, 50 for two and 13 for three; beyond that the
    box is cut at so many quantiles of the front.

    Args:
        known: `(C, K)` of the candidates, less is better.
        front_known: `(F, K)`.
        front_loss: `(F,)`.
        at: `(G,)` thresholds of the loss, ascending.
        reference: `(K,)`.

    Returns:
        `(C, G)`.
    """
    count, axes = known.shape
    if axes == 0:
        best = front_loss.min(initial=np.inf)
        return np.broadcast_to((at < best).astype(float), (count, len(at)))
    edges = [_edges(front_known[:, axis], reference[axis], _GRID.get(axes, 5)) for axis in range(axes)]
    # The least loss of the front's members that dominate a cell; a cell is free at thresholds below it.
    least = np.full([len(edge) for edge in edges], np.inf)
    if len(front_loss):
        places = tuple(
            np.searchsorted(edge, front_known[:, axis]).clip(max=len(edge) - 1) for axis, edge in enumerate(edges)
        )
        inside = (front_known < reference).all(1)
        np.minimum.at(least, tuple(place[inside] for place in places), front_loss[inside])
        for axis in range(axes):
            least = np.minimum.accumulate(least, axis=axis)
    widths = np.ones((count, 1))
    for axis, edge in enumerate(edges):
        upper = np.append(edge[1:], reference[axis])
        width = np.maximum(upper - np.maximum(edge, known[:, axis, None]), 0.0)
        widths = (widths[:, :, None] * width[:, None, :]).reshape(count, -1)
    return widths @ (least.reshape(-1, 1) > at).astype(float)


def _edges(values: np.ndarray, reference: float, most: int) -> np.ndarray:
    """Where the axis is cut: from the far left at each member of the front, or at quantiles of them."""
    inside = np.unique(values[values < reference])
    if len(inside) > most:
        inside = np.unique(np.quantile(inside, np.linspace(0, 1, most), method="higher"))
    return np.concatenate([[-1e300], inside])
