"""The section "Trained again" of the report: what was measured of the rebuilt networks, beside what those cost."""

from __future__ import annotations

from html import escape

from nasplat.artifacts import metric_names
from nasplat.artifacts.front_picture import PicturePoint, front_svg
from nasplat.artifacts.report import ReportData, TrainedAgain, interval_text
from nasplat.artifacts.report_parts import column, digest, fact, metric_column, number, plot
from nasplat.artifacts.run_directory import short
from nasplat.core.front import Goal


def section(data: ReportData) -> str:
    """A plot and a table; empty where nothing was trained again."""
    if not data.confirmed:
        return ""
    axes = _axes(data)
    shown = plot("again", data.confirmed_metrics, axes[0].metric, axes[1].metric, picture(data)) if axes else ""
    return (
        '<section id="confirmed"><h2>Trained again</h2><p class="lead">Architectures of the front, rebuilt at their '
        "final size and trained from scratch with new seeds on the full schedule. Costs are those of the rebuilt "
        "networks, which may be larger than the searched ones. Brackets and bars are 95 % intervals of the mean; a "
        f"single seed has none.</p>{shown}{_table(data)}</section>"
    )


def summary(row: TrainedAgain) -> str:
    """What became of an architecture of the front, in a line."""
    facts = [fact("trained again as", short(row.final_digest)), fact("new seeds", str(row.seeds))]
    facts += [fact(metric_names.label(name), interval_text(name, each)) for name, each in row.metrics.items()]
    facts += [fact(metric_names.label(name), metric_names.text(name, value)) for name, value in row.costs.items()]
    return f'<div class="again">{"".join(facts)}</div>'


def picture(data: ReportData, title: str = "") -> str:
    """The networks that were trained again as an SVG, with error bars; empty where nothing was measured."""
    axes = _axes(data)
    if axes is None:
        return ""
    across, up = axes
    points = []
    for row in data.confirmed:
        x, y = row.value(across.metric), row.metrics.get(up.metric)
        if x is not None and y is not None:
            points.append(PicturePoint(x, y.mean, y.low, y.high))
    return front_svg(points, across, up, title=title)


def _axes(data: ReportData) -> tuple[Goal, Goal] | None:
    """The first cost among the goals across, the first merit up, as they were measured of the rebuilt networks."""
    measured = list(dict.fromkeys(name for row in data.confirmed for name in row.metrics))
    if not measured:
        return None
    known = data.confirmed_metrics
    merits = [goal.metric for goal in data.goals if goal.direction == "maximize"]
    up = next((name for goal in merits for name in (f"test_{goal}", goal) if name in measured), measured[0])
    costs = [goal.metric for goal in data.goals if goal.direction == "minimize" and goal.metric in known]
    across = next((name for name in (*costs, "macs", *known) if name in known and name != up), up)
    return Goal(across, data.direction(across)), Goal(up, data.direction(up))


def _table(data: ReportData) -> str:
    heads = [column("Trial", "number"), column("Rebuilt as"), column("Seeds", "number")]
    heads += [metric_column(name, data.direction(name)) for name in data.confirmed_metrics]
    rows = "".join(_row(data, row) for row in data.confirmed)
    return (
        '<div class="card scroll"><table id="trained-again"><thead><tr>'
        f"{''.join(heads)}</tr></thead><tbody>{rows}</tbody></table></div>"
    )


def _row(data: ReportData, row: TrainedAgain) -> str:
    cells = [
        f'<td class="number" data-value="{row.trial}"><a href="#member-{escape(row.digest)}">{row.trial}</a></td>',
        digest(row.final_digest, short(row.final_digest)),
        f'<td class="number" data-value="{row.seeds}">{row.seeds or "all failed"}</td>',
    ]
    for name in data.confirmed_metrics:
        text = interval_text(name, row.metrics[name]) if name in row.metrics else ""
        cells.append(number(name, row.value(name), text))
    return f"<tr>{''.join(cells)}</tr>"
