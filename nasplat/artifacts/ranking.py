"""How well a score ranked the candidates of a search, held against what training told, and what to think of it."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isnan
from pathlib import Path

import numpy as np

from nasplat.artifacts import metric_names
from nasplat.artifacts.files import write_text
from nasplat.core.front import Goal
from nasplat.core.rank_correlation import (
    FEWEST_BOUNDED,
    FEWEST_ROWS,
    Bounded,
    RankInterval,
    RankRow,
    rank_intervals,
    rank_report,
)

USUAL_CHECK = 20  # networks trained alone, at least, before a ranking by shared weights is trusted


@dataclass(frozen=True, slots=True)
class Ranking:
    """A score beside baselines that cost nothing, on the same networks.

    Args:
        score: its name, such as `supernet` or `naswot`.
        by: the same in words that stand behind "ranking by".
        how: sentences: which networks it was held against, and how these were trained.
        more: how to have more such networks, as the end of a sentence that begins with "more networks must be".
        metric: what training told, better when larger or as the goal says.
        score_metric: what the score is measured in.
        rows: correlations of the score first, then of the baselines; none where nothing was checked.
        intervals: of the same scores.
        points: the score and the metric of every network.
    """

    score: str
    by: str
    how: str
    more: str = ""
    metric: str = ""
    score_metric: str = ""
    rows: Sequence[RankRow] = ()
    intervals: Sequence[RankInterval] = ()
    points: Sequence[tuple[float, float]] = ()


def ranking(
    scores: Mapping[str, Sequence[float]],
    truth: Sequence[float],
    goal: Goal,
    rng: np.random.Generator,
    *,
    score_metric: str,
    score_sign: int = 1,
    by: str,
    how: str,
    more: str,
) -> Ranking:
    """The ranking of some networks.

    Args:
        scores: by name, `(N,)` each; of the score that is judged first, then of the baselines; NaN where there is none.
            More is better for all but the first, for which `score_sign` says so.
        truth: `(N,)`, the goal's metric.
        goal: what training told.
        rng: of the intervals.
        score_metric: what the score is measured in.
        score_sign: 1 where more of the first score is better, -1 where less is.
        by, how, more: see `Ranking`.

    Returns:
        One without rows where fewer than three networks are known.
    """
    name = next(iter(scores))
    points = [pair for pair in zip(scores[name], truth, strict=True) if not any(map(isnan, pair))]
    if len(points) < FEWEST_ROWS:
        return Ranking(name, by, f"{how} Of fewer than {FEWEST_ROWS} networks nothing can be told.", more)
    sign = 1 if goal.direction == "maximize" else -1
    true = sign * np.asarray(truth, dtype=float)
    better = {each: np.asarray(values, dtype=float) for each, values in scores.items()}
    better[name] = score_sign * better[name]
    rows, intervals = rank_report(better, true), rank_intervals(better, true, rng)
    return Ranking(name, by, how, more, goal.metric, score_metric, rows, intervals, points)


def verdict(found: Ranking) -> list[str]:
    """What to think of a ranking, in sentences.

    A score is ahead of a baseline where the 95 % interval of the difference of their Kendall correlations lies above
    zero, behind where it lies below.
    """
    if not found.rows:
        return [f"Nothing tells how well ranking by {found.by} does: do not trust it."]
    own, count = found.intervals[0].kendall, found.rows[0].count
    if isnan(own.value):
        return [f"Ranking by {found.by} tells nothing: all {count} networks have one score, or did equally well."]
    if isnan(own.low):
        few = f"{metric_names.counted(count, 'network')} {'is' if count == 1 else 'are'} too few to tell"
        return [
            f"{few} how well ranking by {found.by} does: no interval is made of fewer than {FEWEST_BOUNDED}, and "
            f"{USUAL_CHECK} are usual. More networks must be {found.more}, or the ranking not be trusted."
        ]
    others = found.intervals[1:]
    ahead = [one for one in others if one.kendall_lead.low > 0]
    behind = sorted((one for one in others if one.kendall_lead.high < 0), key=lambda one: -one.kendall.value)
    undecided = [one for one in others if one.kendall_lead.low <= 0 <= one.kendall_lead.high]
    sentences = []
    if ahead:
        sentences.append(f"Ranking by {found.by} is ahead of {_listed(ahead)}.")
    if behind:
        best = _called(behind[0].name)
        better = "which ranks better" if len(behind) == 1 else f"of which {best} ranks best"
        sentences.append(
            f"Ranking by {found.by} does not beat {_listed(behind)}, {better}: rank by {best}, it costs no training."
        )
    if undecided:
        subject = "It" if sentences else f"Ranking by {found.by}"
        sentences.append(
            f"{subject} cannot be told apart from {_listed(undecided)}: more networks must be {found.more}, or the "
            "ranking not be trusted."
        )
    if own.high < 0:
        sentences.append("It ranks upside down: its τ is below 0.")
    elif own.low <= 0:
        sentences.append("It may rank no better than chance: the interval of its τ holds 0.")
    return sentences


def number(value: float) -> str:
    """A correlation as people read it."""
    return "–" if isnan(value) else f"{value:.2f}"


def bounded(found: Bounded, signed: bool = False) -> str:
    """A correlation with its interval; a difference has its sign."""
    if isnan(found.value):
        return "–"
    value, low, high = (f"{each:+.2f}" if signed else f"{each:.2f}" for each in (found.value, found.low, found.high))
    return value if isnan(found.low) else f"{value} [{low}, {high}]"


def write_rankings(found: Sequence[Ranking], path: Path) -> None:
    """One line a score and ranking; what is no number is empty.

    Raises:
        NasplatError: the disk is full or cannot be written to.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    names = ("kendall", "spearman", "kendall_lead", "spearman_lead")
    bounds = [f"{name}{part}" for name in names for part in ("", "_low", "_high")]
    writer.writerow(["ranking", "score", "networks", *bounds, "kendall_best", "spearman_best", "best_networks"])
    for one in found:
        for row, interval in zip(one.rows, one.intervals, strict=True):
            each = [getattr(interval, name) for name in names]
            numbers = [number for each_of in each for number in (each_of.value, each_of.low, each_of.high)]
            best = [row.kendall_best, row.spearman_best]
            cells = ["" if isnan(value) else repr(value) for value in (*numbers, *best)]
            writer.writerow([one.score, row.name, row.count, *cells, row.count_best])
    write_text(path, text.getvalue())


def _listed(found: Sequence[RankInterval]) -> str:
    *first, last = [_called(one.name) for one in found]
    return f"{', '.join(first)} and {last}" if first else last


def _called(name: str) -> str:
    return "parameter count" if name == "params" else metric_names.label(name)
