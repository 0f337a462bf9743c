"""The section of the page that tells how well the scores ranked by which candidates were chosen."""

from __future__ import annotations

from html import escape

from nasplat.artifacts import metric_names
from nasplat.artifacts.front_picture import scatter_svg
from nasplat.artifacts.ranking import Ranking, bounded, number, verdict
from nasplat.artifacts.report import ReportData
from nasplat.core.rank_correlation import FEWEST_BEST, RankInterval, RankRow


def section(data: ReportData) -> str:
    """Empty where no score chose candidates."""
    if not data.rankings:
        return ""
    shown = "".join(_ranking(one) for one in data.rankings)
    return f'<section id="ranking"><h2>How well the score ranks</h2>{shown}</section>'


def _ranking(found: Ranking) -> str:
    told = "".join(f"<p><b>{escape(sentence)}</b></p>" for sentence in verdict(found))
    lead = f'<h3>Ranking by {escape(found.by)}</h3><p class="lead">{escape(found.how)}</p>'
    if not found.rows:
        return f"{lead}{told}"
    heads = ["Kendall’s τ", "Spearman’s ρ", "ahead of it by τ", "ahead of it by ρ"]
    best = found.rows[0].count_best >= FEWEST_BEST
    heads += ["τ in the best tenth", "ρ in the best tenth"] if best else []
    columns = "".join(f'<th class="number">{head}</th>' for head in heads)
    rows = "".join(
        _row(row, interval, best, place > 0)
        for place, (row, interval) in enumerate(zip(found.rows, found.intervals, strict=True))
    )
    label = metric_names.label(found.metric)
    axes = (f"{label} by {found.by}" if found.score_metric == found.metric else metric_names.label(found.score), label)
    picture = scatter_svg(found.points, (found.score_metric, found.metric), axes)
    about = (
        "Brackets are 95 % intervals, made by drawing the networks again with replacement; what the first score is "
        "ahead by is of the same draws. Each network was trained once, and the luck of that lowers all correlations."
    )
    return (
        f'{lead}{told}<div class="card scroll"><table><thead><tr><th>Score</th>{columns}</tr></thead>'
        f'<tbody>{rows}</tbody></table></div><p class="soft">{about}</p><div class="card picture">{picture}</div>'
    )


def _row(row: RankRow, interval: RankInterval, best: bool, baseline: bool) -> str:
    cells = [bounded(interval.kendall), bounded(interval.spearman)]
    leads = (interval.kendall_lead, interval.spearman_lead)
    cells += [bounded(lead, signed=True) if baseline else "" for lead in leads]
    cells += [number(row.kendall_best), number(row.spearman_best)] if best else []
    shown = "".join(f'<td class="number">{cell}</td>' for cell in cells)
    return f"<tr><td>{escape(metric_names.label(row.name))}</td>{shown}</tr>"
