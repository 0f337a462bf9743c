"""How well the score ranked by which a search screened its candidates, and the section of the page that tells."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from math import isnan, nan

from nasplat.artifacts import metric_names
from nasplat.artifacts.report import ReportData
from nasplat.core.cost import COSTS
from nasplat.core.front import Goal
from nasplat.core.rank_correlation import FEWEST_BEST, FEWEST_ROWS, RankRow, rank_report

_BASELINES = ("params", "macs")  # a score that is not ahead of these is not worth its time


def ranking(metrics: Sequence[Mapping[str, float]], goals: Sequence[Goal], score: str) -> list[RankRow]:
    """Rank correlation of a score with the first goal that only training tells.

    Args:
        metrics: of every candidate that was trained to its end.
        goals: of the search.
        score: by which candidates were screened; parameters and MACs stand beside it as baselines.

    Returns:
        One row a score; none where fewer than three candidates have it.
    """
    goal = next((goal for goal in goals if goal.metric not in COSTS), goals[0])
    rows = [one for one in metrics if score in one and goal.metric in one]
    if len(rows) < FEWEST_ROWS:
        return []
    sign = 1 if goal.direction == "maximize" else -1
    names = list(dict.fromkeys((score, *_BASELINES)))
    scores = {name: [one.get(name, nan) for one in rows] for name in names}
    return rank_report(scores, [sign * one[goal.metric] for one in rows])


def section(data: ReportData) -> str:
    """Empty where no candidate was screened."""
    if not data.ranking:
        return ""
    all_of, best_of = data.ranking[0].count, data.ranking[0].count_best
    told = f"{metric_names.counted(all_of, 'candidate')} trained to the end, {best_of} in the best tenth"
    told += " (too few to tell)" if best_of < FEWEST_BEST else ""
    rows = "".join(_row(row) for row in data.ranking)
    heads = "".join(
        f'<th class="number">{head}</th>'
        for head in ("Kendall’s τ", "Spearman’s ρ", "τ in the best tenth", "ρ in the best tenth")
    )
    return (
        '<section id="ranking"><h2>How well the score ranks</h2><p class="lead">Rank correlation with what training '
        f"found, beside parameters and MACs: {told}. What the score dropped was not trained, so this is how it ranks "
        "among those that it let pass.</p>"
        f'<div class="card scroll"><table><thead><tr><th>Score</th>{heads}</tr></thead><tbody>{rows}</tbody></table>'
        "</div></section>"
    )


def _row(row: RankRow) -> str:
    numbers = (row.kendall, row.spearman, row.kendall_best, row.spearman_best)
    cells = "".join(f'<td class="number">{"–" if isnan(value) else f"{value:.2f}"}</td>' for value in numbers)
    return f"<tr><td>{escape(metric_names.label(row.name))}</td>{cells}</tr>"
