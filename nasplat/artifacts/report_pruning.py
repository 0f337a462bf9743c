"""The report page of a pruning: how wide every layer was and is, and what that cost and saved; one file, no network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import Any

from nasplat.artifacts.files import write_text
from nasplat.artifacts.metric_names import label, text
from nasplat.artifacts.report_parts import listing
from nasplat.artifacts.widths_picture import bars_svg
from nasplat.core.drawing import Bar, Bars


@dataclass(frozen=True, slots=True)
class LayerRow:
    """One layer with weights: output channels, multiply-accumulates and parameters before and after.

    After all is 0 where the layer was removed.
    """

    name: str
    kind: str
    width: tuple[int, int]
    macs: tuple[int, int]
    params: tuple[int, int]


@dataclass(frozen=True, slots=True)
class LatencyRow:
    """Milliseconds of a forward pass of so many images: median and spread, before and after."""

    batch: int
    before: tuple[float, float]
    after: tuple[float, float]


@dataclass(frozen=True, slots=True)
class PruningReport:
    """All that the page tells.

    Args:
        name: of the pruning.
        model: what was pruned, in words.
        stages: the columns `title`, `macs`, `params`, `metrics`, and `cut`, the metrics before fine-tuning, of the
            original, of every step, and of the result; what was not measured is empty.
        layers: in the order of the network.
        latencies: by batch size.
        untouched: groups of channels that stayed whole, how many they are, and why.
        warnings: sentences that a reader must see first.
        settings: as plain data.
        links: what to call a file, and its path relative to the page.
        versions, machine: as `nasplat.artifacts.environment` tells them.
    """

    name: str
    model: str
    stages: Sequence[Mapping[str, Any]]
    layers: Sequence[LayerRow]
    latencies: Sequence[LatencyRow]
    untouched: Sequence[tuple[str, int, str]] = ()
    warnings: Sequence[str] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)
    links: Mapping[str, str] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    machine: Mapping[str, str] = field(default_factory=dict)


def write_pruning_report(report: PruningReport, path: Path | str) -> None:
    """Writes the page, whole or not at all.

    Raises:
        NasplatError: the disk is full or cannot be written to.
    """
    css = (files("nasplat.artifacts") / "page" / "report.css").read_text(encoding="utf-8")
    sections = [_head(report), _tiles(report), *(f'<p class="note">{escape(one)}</p>' for one in report.warnings)]
    sections += [_widths(report), _stages(report), _latencies(report), _layers(report), _untouched(report)]
    sections += [_settings(report), _footer(report)]
    body = "\n".join(section for section in sections if section)
    page = (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(report.name)} · nasplat</title><style>{css}</style></head>"
        f"<body><main>{body}</main></body></html>\n"
    )
    write_text(Path(path), page)


def _head(report: PruningReport) -> str:
    links = "".join(f'<a href="{escape(path)}">{escape(name)}</a>' for name, path in report.links.items())
    return (
        f'<header><h1>{escape(report.name)}</h1><p class="soft">{escape(report.model)}</p><nav>{links}</nav></header>'
    )


def _tiles(report: PruningReport) -> str:
    first, last = report.stages[0], report.stages[-1]
    tiles = [
        (f"{last[name] / first[name]:.1%}", f"of the {words}: {text(name, last[name])}")
        for name, words in (("macs", "MACs"), ("params", "parameters"))
    ]
    tiles += [
        (text(name, value), f"{label(name).lower()}; it was {text(name, first['metrics'][name])}")
        for name, value in last["metrics"].items()
    ]
    tiles += [
        (f"{row.after[0] / row.before[0]:.0%}", f"of the time at batch {row.batch}: {row.after[0]:.2f} ms")
        for row in report.latencies
    ]
    cells = "".join(
        f'<div class="card tile"><b>{escape(big)}</b><span>{escape(small)}</span></div>' for big, small in tiles
    )
    return f'<div class="tiles">{cells}</div>'


def _widths(report: PruningReport) -> str:
    bars = tuple(Bar(row.name, row.width[0], row.width[1]) for row in report.layers)
    return (
        '<section id="widths"><h2>Widths</h2><p class="lead">Output channels of every layer, first to last: outlined '
        f'before, filled after.</p><div class="card scroll">{bars_svg(Bars(bars, "channels"))}</div></section>'
    )


def _stages(report: PruningReport) -> str:
    names = tuple(report.stages[0]["metrics"])
    rows = "".join(
        f"<tr><td>{escape(str(stage['title']))}</td>"
        + _cells(text("macs", stage["macs"]), text("params", stage["params"]))
        + _cells(
            *(" → ".join(text(name, one[name]) for one in (stage["cut"], stage["metrics"]) if one) for name in names)
        )
        + "</tr>"
        for stage in report.stages
    )
    lead = "On test images: when cut → after fine-tuning." if any(stage["cut"] for stage in report.stages) else ""
    return _table("steps", "Steps", lead, ("", "MACs", "Parameters", *map(label, names)), rows)


def _latencies(report: PruningReport) -> str:
    if not report.latencies:
        return ""
    rows = "".join(
        f"<tr><td>{row.batch}</td>"
        + _cells(*(f"{median:.2f} ± {spread:.2f} ms" for median, spread in (row.before, row.after)))
        + _cells(f"{row.after[0] / row.before[0]:.0%}")
        + "</tr>"
        for row in report.latencies
    )
    lead = "One forward pass on this machine, both networks in turns: the median, and the interquartile range."
    return _table("latency", "Latency", lead, ("Batch", "Before", "After", "After / before"), rows)


def _layers(report: PruningReport) -> str:
    rows = "".join(
        f"<tr><td>{escape(row.name)}</td><td>{escape(row.kind)}</td>"
        + _cells(*(f"{before:,} → {after:,}" if after != before else f"{before:,}" for before, after in _pairs(row)))
        + "</tr>"
        for row in report.layers
    )
    return _table("layers", "Layers", "", ("Layer", "Kind", "Channels", "MACs", "Parameters"), rows, left=2)


def _pairs(row: LayerRow) -> tuple[tuple[int, int], ...]:
    return row.width, row.macs, row.params


def _untouched(report: PruningReport) -> str:
    if not report.untouched:
        return ""
    rows = "".join(
        f'<tr><td>{escape(name)}</td>{_cells(f"{size:,}")}<td class="reason">{escape(reason)}</td></tr>'
        for name, size, reason in report.untouched
    )
    lead = "Channels that could not be pruned, or about which the criterion says nothing."
    return _table("whole", "Left whole", lead, ("Group", "Channels", "Why"), rows)


def _table(name: str, title: str, lead: str, heads: Sequence[str], rows: str, left: int = 1) -> str:
    top = "".join(
        f'<th scope="col"{"" if place < left or head == "Why" else " class=number"}>{escape(head)}</th>'
        for place, head in enumerate(heads)
    )
    return (
        f'<section id="{name}"><h2>{escape(title)}</h2>'
        + (f'<p class="lead">{escape(lead)}</p>' if lead else "")
        + f'<div class="card scroll"><table><thead><tr>{top}</tr></thead><tbody>{rows}</tbody></table></div></section>'
    )


def _cells(*texts: str) -> str:
    return "".join(f'<td class="number">{escape(one)}</td>' for one in texts)


def _settings(report: PruningReport) -> str:
    cards = [("pruning", report.settings), ("versions", report.versions), ("machine", report.machine)]
    shown = "".join(
        f'<div class="card"><h3>{escape(name)}</h3>{listed}</div>'
        for name, values in cards
        if (listed := listing(values))
    )
    return f'<section id="settings"><h2>Settings and versions</h2><div class="settings">{shown}</div></section>'


def _footer(report: PruningReport) -> str:
    version = f" {report.versions['nasplat']}" if "nasplat" in report.versions else ""
    return (
        f"<footer>Made by nasplat{escape(version)}. MACs are multiply-accumulates at batch 1. This page loads nothing "
        "from the network.</footer>"
    )
