"""The parts of the report page as HTML. Everything that comes from a run is escaped."""

from __future__ import annotations

import re
from collections.abc import Mapping
from html import escape
from typing import Any

from nasplat.artifacts import metric_names, report_confirmed, report_ranking
from nasplat.artifacts.drawing import draw_svg
from nasplat.artifacts.front_picture import PicturePoint, front_svg
from nasplat.artifacts.report import FrontMember, ReportData, ReportTrial
from nasplat.artifacts.report_parts import column, digest, fact, listing, metric_column, number, plot
from nasplat.artifacts.run_directory import short
from nasplat.core.drawing import Bars
from nasplat.core.front import Goal

_OPEN_MEMBERS = 3


def title(data: ReportData) -> str:
    return escape(f"{data.name} · nasplat")


def body(data: ReportData) -> str:
    """Everything between the page's head and its scripts."""
    sections = [_head(data), _tiles(data), *(f'<p class="note">{escape(note)}</p>' for note in data.notes)]
    if data.complete:
        sections += [_pareto(data), report_confirmed.section(data), _progress(data), report_ranking.section(data)]
    else:
        sections.append('<p class="note">No trial is complete yet, so there is no front to show.</p>')
    if data.front:
        sections.append(_front(data))
    sections += [_table(data), _unfinished(data), _settings(data), _footer(data)]
    return "\n".join(section for section in sections if section)


def _head(data: ReportData) -> str:
    counts = {state: sum(trial.state == state for trial in data.trials) for state in _STATES}
    told = ", ".join(f"{count} {state}" for state, count in counts.items() if count)
    parts = [
        data.status,
        metric_names.counted(len(data.trials), "trial") + (f": {told}" if told else ""),
    ]
    if data.seconds:
        parts.append(f"{metric_names.text('seconds', data.seconds)} of search")
    links = {"pareto-front": "Front", "progress": "Progress"} if data.complete else {}
    links |= {"confirmed": "Trained again"} if data.confirmed else {}
    links |= {"ranking": "Ranking"} if data.complete and data.rankings else {}
    links |= {"architectures": "Architectures"} if data.front else {}
    links |= {"all-trials": "Trials", "settings": "Settings and versions"}
    shown = "".join(f'<a href="#{name}">{text}</a>' for name, text in links.items())
    return (
        f'<header><h1>{escape(data.name)}</h1><p class="soft">{escape(" · ".join(part for part in parts if part))}</p>'
        f"<nav>{shown}</nav></header>"
    )


def _tiles(data: ReportData) -> str:
    complete = data.complete
    if not complete:
        return ""
    # Of the front: the least of one goal alone may belong to a network that another beats on all the others.
    candidates = [(one.metrics, one.trial) for one in data.front] or [(one.metrics, one.number) for one in complete]
    tiles = []
    for goal in data.goals:
        values = [(metrics[goal.metric], trial) for metrics, trial in candidates]
        value, trial = (max if goal.direction == "maximize" else min)(values, key=lambda pair: pair[0])
        which = "best" if goal.direction == "maximize" else "least"
        about = f"{which} {metric_names.label(goal.metric)}, trial {trial}"
        tiles.append((metric_names.text(goal.metric, value), about))
    tiles.append(_count(len(data.front), "on the front"))
    if data.confirmed:
        tiles.append(_count(len(data.confirmed), "trained again"))
    cells = "".join(
        f'<div class="card tile"><b>{escape(big)}</b><span>{escape(text)}</span></div>' for big, text in tiles
    )
    return f'<div class="tiles">{cells}</div>'


def _count(networks: int, which: str) -> tuple[str, str]:
    return str(networks), f"{'network' if networks == 1 else 'networks'} {which}"


def _pareto(data: ReportData) -> str:
    x, y = _axes(data)
    points = [
        PicturePoint(trial.metrics[x.metric], trial.metrics[y.metric], landmark=trial.landmark)
        for trial in data.complete
        if x.metric in trial.metrics and y.metric in trial.metrics
    ]
    goals = ", ".join(
        f"{metric_names.label(goal.metric)} {'up' if goal.direction == 'maximize' else 'down'}" for goal in data.goals
    )
    return (
        '<section id="pareto-front"><h2>Pareto front</h2>'
        f'<p class="lead">One dot a network, as the search measured it; those on the front of all goals '
        f"({escape(goals)}) stand out. The line is the front of the two axes that are shown. Click a dot of the front "
        "to see its architecture; double-click the plot for those that are far worse than most, too.</p>"
        f"{plot('pareto', data.metrics, x.metric, y.metric, front_svg(points, x, y))}"
        "</section>"
    )


def _axes(data: ReportData) -> tuple[Goal, Goal]:
    """The first cost against the first merit; where there are not both, the first two metrics."""
    up = next((goal for goal in data.goals if goal.direction == "maximize"), data.goals[0])
    others = [Goal(name, data.direction(name)) for name in data.metrics if name != up.metric] or [up]
    down = next((goal for goal in others if goal.direction == "minimize"), others[0])
    return down, up


def _progress(data: ReportData) -> str:
    first = metric_names.label(data.goals[0].metric)
    charts = f'<div class="card"><h3>Best {escape(first)} so far</h3><div id="best" class="plot"></div></div>'
    if len(data.goals) > 1:
        names = ", ".join(metric_names.label(goal.metric) for goal in data.goals[:3])
        charts += (
            f'<div class="card"><h3>Hypervolume of {escape(names)}, as a share</h3>'
            '<div class="controls"><label>against <select id="hypervolume-x"><option value="trials">trials</option>'
            '<option value="seconds">time</option></select></label></div>'
            '<div id="hypervolume" class="plot"></div></div>'
        )
    return (
        '<section id="progress"><h2>Progress</h2><p class="lead">How the search came along, trial by trial.</p>'
        f'<div class="{"pair" if len(data.goals) > 1 else ""}">{charts}</div></section>'
    )


def _front(data: ReportData) -> str:
    members = "\n".join(_member(data, member, index < _OPEN_MEMBERS) for index, member in enumerate(data.front))
    networks = metric_names.counted(len(data.front), "network")
    bars = any(isinstance(drawing, Bars) for member in data.front for drawing in member.drawings.values())
    how = (
        "Filled is what is left of each group of channels that go together, and of the blocks of each stage."
        if bars
        else "Arrows lead from a cell's inputs to its output; boxes are operations."
    )
    return (
        f'<section id="architectures"><h2>Architectures of the front</h2><p class="lead">{networks}, '
        f"the best {escape(metric_names.label(data.goals[0].metric))} first. {how}</p>{members}</section>"
    )


def _member(data: ReportData, member: FrontMember, is_open: bool) -> str:
    names = [goal.metric for goal in data.goals if goal.metric in member.metrics]
    shown = "".join(fact(metric_names.label(name), metric_names.text(name, member.metrics[name])) for name in names)
    again = "".join(report_confirmed.summary(row) for row in data.confirmed if row.digest == member.digest)
    drawings = "".join(
        f'<div><h3>{escape(name)}</h3><div class="drawing">{draw_svg(drawing)}</div></div>'
        for name, drawing in member.drawings.items()
    )
    files = "".join(f'<a href="{escape(path)}">{escape(name)}</a>' for name, path in member.files.items())
    values = listing(member.values)
    parts = [
        again,
        f'<div class="drawings">{drawings}</div>' if drawings else "",
        f'<div class="files">{files}</div>' if files else "",
        f'<details><summary class="soft">choices</summary>{values}</details>' if values else "",
    ]
    return (
        f'<details class="card member" id="member-{escape(member.digest)}"{" open" if is_open else ""}><summary>'
        f'<span class="rank">#{member.rank}</span><span class="digest" title="{escape(member.digest)}">'
        f'{escape(short(member.digest))}</span><span class="metric">trial <b>{member.trial}</b></span>{shown}</summary>'
        f'<div class="body">{"".join(parts)}</div></details>'
    )


_STATES = ("complete", "running", "stopped", "screened", "failed", "infeasible", "repeat")


def _table(data: ReportData) -> str:
    heads = [column("Trial", "number"), column("Architecture"), column("State")]
    heads += [metric_column(name, data.direction(name)) for name in data.metrics]
    heads.append(column("Time", "number"))
    on_front = {member.digest for member in data.front}
    rows = "\n".join(_row(data, trial, trial.digest in on_front) for trial in data.trials)
    there = [state for state in _STATES if any(trial.state == state for trial in data.trials)]
    options = '<option value="">all</option>' + ('<option value="front">on the front</option>' if on_front else "")
    options += "".join(f'<option value="{state}">{state}</option>' for state in there)
    return (
        '<section id="all-trials"><h2>All trials</h2><p class="lead">Click a heading to sort.</p>'
        f'<div class="controls" style="margin-bottom:10px"><label>show <select id="state">{options}</select></label>'
        '<label>find <input type="search" id="search" placeholder="number or digest" size="16"></label>'
        '<span id="shown"></span></div>'
        f'<div class="card scroll"><table id="trials"><thead><tr>{"".join(heads)}</tr></thead>'
        f"<tbody>{rows}</tbody></table></div></section>"
    )


def _row(data: ReportData, trial: ReportTrial, on_front: bool) -> str:
    front = on_front and trial.state == "complete"
    badge, state = ("front", "on the front") if front else (trial.state, trial.state)
    cells = [
        f'<td class="number">{trial.number}</td>',
        digest(trial.digest, short(trial.digest)),
        f'<td><span class="badge {escape(badge)}" title="{escape(trial.reason or trial.why)}">{escape(state)}</span>'
        + (f' <span class="soft">{escape(trial.landmark)}</span></td>' if trial.landmark else "</td>"),
    ]
    cells += [number(name, trial.metrics.get(name)) for name in data.metrics]
    cells.append(number("seconds", trial.seconds or None))
    marks = f'data-state="{escape(trial.state)}" data-number="{trial.number}" data-digest="{escape(trial.digest)}"'
    marks += ' data-front="1"' if front else ""
    return f"<tr {marks}>{''.join(cells)}</tr>"


_DROPPED = ("failed", "infeasible", "screened", "stopped")


def _unfinished(data: ReportData) -> str:
    groups: dict[tuple[str, str], list[ReportTrial]] = {}
    for trial in data.trials:
        if trial.state in _DROPPED:
            alike = re.sub(r"\d[\d.,_]*", "0", trial.reason)  # the same reason, whatever its numbers
            groups.setdefault((trial.state, alike), []).append(trial)
    if not groups:
        return ""
    rows = "".join(
        f'<tr><td><span class="badge {state}">{state}</span></td><td class="number">{len(alike)}</td>'
        f'<td class="reason">{escape(_reason(alike))}</td><td class="reason">{escape(_listed(alike))}</td></tr>'
        for (state, _), alike in sorted(groups.items(), key=lambda item: -len(item[1]))
    )
    return (
        '<section id="reasons"><h2>Why trials did not end</h2>'
        '<p class="lead">Infeasible ones break a constraint or do not fit into memory; failed ones went wrong; '
        "screened ones had too low a score to be trained; stopped ones were behind others after part of it.</p>"
        '<div class="card scroll"><table><thead><tr><th>State</th><th class="number">Trials</th><th>Reason</th>'
        f"<th>Which</th></tr></thead><tbody>{rows}</tbody></table></div></section>"
    )


def _reason(alike: list[ReportTrial]) -> str:
    """The first trial's reason, and whether the others' differ in their numbers."""
    first = alike[0].reason or "no reason was recorded"
    others = any(trial.reason != alike[0].reason for trial in alike)
    return f"{first} (trial {alike[0].number}; the others alike)" if others else first


def _listed(trials: list[ReportTrial], most: int = 12) -> str:
    shown = ", ".join(str(trial.number) for trial in trials[:most])
    return shown + (f" and {len(trials) - most} more" if len(trials) > most else "")


def _settings(data: ReportData) -> str:
    top = {key: value for key, value in data.experiment.items() if not isinstance(value, Mapping)}
    cards: list[tuple[str, Mapping[str, Any]]] = [("experiment", top)] if top else []
    cards += [(key, value) for key, value in data.experiment.items() if isinstance(value, Mapping)]
    cards += [("versions", data.versions), ("machine", data.machine)]
    shown = "".join(
        f'<div class="card"><h3>{escape(str(name))}</h3>{listed}</div>'
        for name, values in cards
        if (listed := listing(values))
    )
    return (
        '<section id="settings"><h2>Settings and versions</h2><p class="lead">The experiment as it was carried out, '
        f'defaults included.</p><div class="settings">{shown}</div></section>'
    )


def _footer(data: ReportData) -> str:
    version = f" {data.versions['nasplat']}" if "nasplat" in data.versions else ""
    made = f"Made {data.made} by nasplat{version}. " if data.made else f"Made by nasplat{version}. "
    return (
        f"<footer>{escape(made)}MACs are multiply-accumulates at batch 1 of convolutions, linear layers and matrix "
        "products (what the literature calls “FLOPs”); peak activations are at batch 1 in float32. "
        "This page loads nothing from the network.</footer>"
    )
