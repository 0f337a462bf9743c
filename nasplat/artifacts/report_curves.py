"""How a search came along: what the report page draws under Progress."""

from __future__ import annotations

import numpy as np

from nasplat.artifacts.report import ReportData
from nasplat.core.front import front_indices, hypervolume, losses

_HYPERVOLUME_GOALS = 3  # more make it slow, and say little


def best_so_far(data: ReportData) -> list[tuple[int, float]]:
    """Trial number and the best value of the first goal by then, wherever it improved, and at the end."""
    goal = data.goals[0]
    better = max if goal.direction == "maximize" else min
    curve: list[tuple[int, float]] = []
    for trial in data.complete:
        value = trial.metrics[goal.metric]
        best = better(value, curve[-1][1]) if curve else value
        if not curve or best != curve[-1][1] or trial is data.complete[-1]:
            curve.append((trial.number, best))
    return curve


def hypervolume_curve(data: ReportData, *, by_time: bool = False) -> list[tuple[float, float]]:
    """Where the search stood, and the share of the volume that was dominated by then.

    Every goal (the first three) is scaled to 0..1 over all trials, by its logarithm where it is positive and spans more
    than a factor of 20; the reference point lies at 1.1.

    Args:
        data: of the run.
        by_time: against the wall time of the search in seconds, in the order in which trials ended; otherwise against
            the trials' numbers.
    """
    goals = list(data.goals)[:_HYPERVOLUME_GOALS]
    complete = data.complete
    if by_time:
        complete = sorted((one for one in complete if one.finished is not None), key=lambda one: one.finished or 0.0)
    if len(goals) < 2 or len(complete) < 2:
        return []
    raw = losses([trial.metrics for trial in complete], goals)
    for column in raw.T:
        if column.min() > 0 and column.max() > 20 * column.min():
            column[:] = np.log(column)
    span = raw.max(axis=0) - raw.min(axis=0)
    scaled = (raw - raw.min(axis=0)) / np.where(span > 0, span, 1.0)
    reference = [1.1] * len(goals)
    curve: list[tuple[float, float]] = []
    kept = np.empty((0, len(goals)))
    for trial, row in zip(complete, scaled, strict=True):
        at = float(trial.finished or 0.0) if by_time else trial.number
        dominated = len(kept) and bool((kept <= row).all(axis=1).any())
        if not dominated:
            together = np.vstack([kept, row])
            kept = together[front_indices(together)]
            curve.append((at, hypervolume(kept, reference) / 1.1 ** len(goals)))
        elif trial is complete[-1]:
            curve.append((at, curve[-1][1]))
    return curve
