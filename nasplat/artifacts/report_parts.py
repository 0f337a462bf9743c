"""What the sections of the report page are made of: plots, cells of tables, lists. Everything is escaped."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from html import escape
from typing import Any

from nasplat.artifacts import metric_names


def plot(name: str, metrics: Sequence[str], across: str, up: str, picture: str) -> str:
    """An interactive plot with its axes to choose, which the page's script fills; without scripts, a picture.

    Args:
        name: of the plot; the script finds its parts as `name`, `name-x`, `name-y` and `name-log`.
        metrics: to choose from.
        across, up: the metrics of the axes at first.
        picture: the same as an SVG.
    """
    return (
        '<div class="card"><div class="controls">'
        f"<label>across {_select(metrics, f'{name}-x', across)}</label>"
        f"<label>up {_select(metrics, f'{name}-y', up)}</label>"
        f'<label><input type="checkbox" id="{name}-log"> logarithmic</label></div>'
        f'<div id="{name}" class="plot"></div><noscript><div class="picture">{picture}</div></noscript></div>'
    )


def _select(metrics: Sequence[str], name: str, chosen: str) -> str:
    options = "".join(
        f'<option value="{escape(metric)}"{" selected" if metric == chosen else ""}>'
        f"{escape(metric_names.label(metric))}</option>"
        for metric in metrics
    )
    return f'<select id="{name}">{options}</select>'


def column(label: str, kind: str = "", more: str = "") -> str:
    """The heading of a column that can be sorted by."""
    return f'<th scope="col" class="{kind}"{more}><button type="button">{escape(label)}</button></th>'


def metric_column(metric: str, direction: str) -> str:
    """The heading of a metric's column; the first click shows the best first."""
    return column(metric_names.label(metric), "number", ' data-better="more"' if direction == "maximize" else "")


def number(metric: str, value: float | None, text: str = "") -> str:
    """A cell; what is missing or no number is empty."""
    if value is None or value != value:
        return '<td class="number" data-value=""></td>'
    shown = escape(text or metric_names.text(metric, value))
    return f'<td class="number" data-value="{value!r}">{shown}</td>'


def digest(full: str, short: str) -> str:
    """A cell with the first digits; the others show when the pointer rests on them."""
    return f'<td class="digest" title="{escape(full)}">{escape(short)}</td>'


def fact(name: str, text: str) -> str:
    """A name and what is known of it, to stand in a row with others."""
    return f'<span class="metric">{escape(name)} <b>{escape(text)}</b></span>'


def listing(values: Mapping[str, Any]) -> str:
    """Settings, one a line; what is not set is left out."""
    rows = "".join(f"<dt>{escape(key)}</dt><dd>{escape(text)}</dd>" for key, text in _flat(values))
    return f"<dl>{rows}</dl>" if rows else ""


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Settings as dotted keys and texts; of a list of mappings, such as the stages of a network, each has a line."""
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        elif isinstance(value, list | tuple) and any(isinstance(each, Mapping) for each in value):
            yield from ((f"{prefix}{key} {place}", _words(each)) for place, each in enumerate(value, 1))
        elif isinstance(value, list | tuple):
            yield f"{prefix}{key}", ", ".join(_words(each) for each in value) or "none"
        elif value is not None:
            yield f"{prefix}{key}", _words(value)


def _words(value: Any) -> str:
    match value:
        case bool():
            return "yes" if value else "no"
        case Mapping():
            return ", ".join(f"{key} {_words(each)}" for key, each in value.items())
        case list() | tuple():
            return f"[{', '.join(_words(each) for each in value)}]"
        case _:
            return str(value)
