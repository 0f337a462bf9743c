"""A picture of a front as a small SVG: for a README, a run's folder, a page without scripts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from math import ceil, floor, isfinite, log10
from statistics import quantiles

from nasplat.artifacts import metric_names
from nasplat.core.front import Goal, front_indices, losses

_FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"
_STYLE = (
    "<style>.fp-paper{fill:#ffffff}.fp-ink{fill:#1d2530}.fp-soft{fill:#64707f}.fp-grid{stroke:#e6e9ee}"
    ".fp-dot{fill:#9aa5b4}.fp-front{fill:#2f6fde}.fp-line,.fp-bar{stroke:#2f6fde}.fp-ring{stroke:#ffffff}.fp-known{fill:#c2571a}"
    "@media (prefers-color-scheme: dark){.fp-paper{fill:#12161d}.fp-ink{fill:#e4e8ee}.fp-soft{fill:#98a3b3}"
    ".fp-grid{stroke:#262d38}.fp-dot{fill:#66717f}.fp-front{fill:#6ea0ff}.fp-line,.fp-bar{stroke:#6ea0ff}"
    ".fp-ring{stroke:#12161d}.fp-known{fill:#ff9a5c}}</style>"
)


@dataclass(frozen=True, slots=True)
class PicturePoint:
    """A candidate: its values on the two axes, the interval of its confirmation on the vertical one, and its name
    where it is a known network."""

    x: float
    y: float
    low: float | None = None
    high: float | None = None
    landmark: str = ""


@dataclass(frozen=True, slots=True)
class _Axis:
    """Maps values to pixels, by their logarithm where they span more than a factor of 20."""

    low: float
    high: float
    start: float
    end: float
    log: bool

    def __call__(self, value: float) -> float:
        within = min(max(value, self.low), self.high)
        low, high, at = (log10(each) if self.log else each for each in (self.low, self.high, within))
        return self.start + (at - low) / (high - low) * (self.end - self.start)


def front_svg(
    points: Sequence[PicturePoint], x: Goal, y: Goal, *, title: str = "", width: int = 760, height: int = 440
) -> str:
    """All candidates as dots, the Pareto front of the two axes as a line in steps, intervals as bars.

    A candidate that failed to learn would press all others together: one that is far worse than most stands at the
    edge, as a triangle. Known networks are diamonds with their names.

    Args:
        points: of the candidates that were measured on both axes.
        x, y: the metrics of the axes, and which way is better.
        title: above the picture.
        width, height: in pixels.
    """
    points = [point for point in points if isfinite(point.x) and isfinite(point.y)]
    left, right, top, bottom = 74.0, width - 24.0, 54.0 if title else 24.0, height - 54.0
    matrix = losses(
        [{"x": point.x, "y": point.y} for point in points], (Goal("x", x.direction), Goal("y", y.direction))
    )
    best = sorted(front_indices(matrix), key=lambda index: (points[index].x, points[index].y))
    across = _axis([point.x for point in points], left, right, x.metric)
    bounds = [bound for point in points for bound in (point.low, point.high) if bound is not None]
    heights = [*_usual([point.y for point in points], y), *(points[index].y for index in best), *bounds]
    up = _axis(heights, bottom, top, y.metric)
    parts = _frame(across, up, (x.metric, y.metric), (metric_names.label(x.metric), metric_names.label(y.metric)))
    if title:
        parts.append(_text(left, 30, title, 'class="fp-ink" font-size="16" font-weight="600"'))
    if len(best) > 1:
        route = _steps([(across(points[index].x), up(points[index].y)) for index in best], x)
        parts.append(f'<path class="fp-line" d="{route}" fill="none" stroke-width="2" stroke-opacity=".55"/>')
    on_front = set(best)
    for index in sorted(range(len(points)), key=lambda index: index in on_front):
        parts.append(_dot(points[index], across, up, index in on_front))
    parts += [_landmark(point, across, up, right) for point in points if point.landmark]
    summary = f"{metric_names.label(y.metric)} against {metric_names.label(x.metric)}"
    summary += f", {metric_names.counted(len(points), 'network')}"
    return _svg(parts, width, height, summary)


def scatter_svg(
    points: Sequence[tuple[float, float]],
    metrics: tuple[str, str],
    labels: tuple[str, str],
    *,
    width: int = 520,
    height: int = 340,
) -> str:
    """Two values of every network against each other, without a front.

    Args:
        points: values across and up; those that are no finite numbers are left out.
        metrics: what the axes are measured in, across and up.
        labels: what they are called.
        width, height: in pixels.
    """
    points = [(x, y) for x, y in points if isfinite(x) and isfinite(y)]
    across = _axis([x for x, _ in points], 74.0, width - 24.0, metrics[0])
    up = _axis([y for _, y in points], height - 54.0, 24.0, metrics[1])
    dots = [
        f'<circle class="fp-front fp-ring" cx="{across(x):.1f}" cy="{up(y):.1f}" r="4.5" stroke-width="1"/>'
        for x, y in points
    ]
    summary = f"{labels[1]} against {labels[0]}, {metric_names.counted(len(points), 'network')}"
    return _svg([*_frame(across, up, metrics, labels), *dots], width, height, summary)


def _svg(parts: Sequence[str], width: int, height: int, summary: str) -> str:
    paper = f'<rect class="fp-paper" width="{width}" height="{height}" rx="8"/>'
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}" '
        f'role="img" font-family="{_FONT}" font-size="12"><title>{escape(summary)}</title>{_STYLE}{paper}'
        f"{''.join(parts)}</svg>\n"
    )


def _frame(across: _Axis, up: _Axis, metrics: tuple[str, str], labels: tuple[str, str]) -> list[str]:
    """Grid, numbers and names of two axes."""
    left, right, top, bottom = across.start, across.end, up.end, up.start
    parts = []
    for value in _ticks(across):
        at = across(value)
        parts.append(f'<line class="fp-grid" x1="{at:.1f}" y1="{top:g}" x2="{at:.1f}" y2="{bottom:g}"/>')
        parts.append(_text(at, bottom + 18, _short(metrics[0], value), 'class="fp-soft" text-anchor="middle"'))
    for value in _ticks(up):
        at = up(value)
        parts.append(f'<line class="fp-grid" x1="{left:g}" y1="{at:.1f}" x2="{right:g}" y2="{at:.1f}"/>')
        parts.append(_text(left - 8, at + 4, _short(metrics[1], value), 'class="fp-soft" text-anchor="end"'))
    middle = 'class="fp-ink" text-anchor="middle" font-size="13"'
    parts.append(_text((left + right) / 2, bottom + 40, labels[0], middle))
    turned = f'{middle} transform="rotate(-90 18 {(top + bottom) / 2:g})"'
    parts.append(_text(18, (top + bottom) / 2, labels[1], turned))
    return parts


def _text(x: float, y: float, text: str, attributes: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" {attributes}>{escape(text)}</text>'


def _dot(point: PicturePoint, across: _Axis, up: _Axis, on_front: bool) -> str:
    x, y = across(point.x), up(point.y)
    bar = ""
    if point.low is not None and point.high is not None:
        low, high = up(point.low), up(point.high)
        bar = (
            f'<path class="fp-bar" d="M{x:.1f} {low:.1f}V{high:.1f}M{x - 4:.1f} {low:.1f}h8M{x - 4:.1f} {high:.1f}h8" '
            'fill="none" stroke-width="1.5"/>'
        )
    if point.y < up.low or point.y > up.high:
        tip = 5 if point.y < up.low else -5
        return f'<path class="fp-dot" d="M{x - 4:.1f} {y - 2 * tip:.1f}h8l-4 {1.4 * tip:.1f}z" fill-opacity=".75"/>'
    if on_front:
        return f'{bar}<circle class="fp-front fp-ring" cx="{x:.1f}" cy="{y:.1f}" r="5.5" stroke-width="1.5"/>'
    return f'{bar}<circle class="fp-dot" cx="{x:.1f}" cy="{y:.1f}" r="3.6" fill-opacity=".75"/>'


def _landmark(point: PicturePoint, across: _Axis, up: _Axis, right: float) -> str:
    """A diamond over the dot, and the network's name on the side where there is room."""
    x, y = across(point.x), up(point.y)
    room = x + 12 + 6.5 * len(point.landmark) < right
    place = 'text-anchor="start"' if room else 'text-anchor="end"'
    name = _text(x + (9 if room else -9), y + 14, point.landmark, f'class="fp-known" {place}')
    return f'<path class="fp-known fp-ring" d="M{x:.1f} {y - 7:.1f}l7 7-7 7-7-7z" stroke-width="1.5"/>{name}'


def _steps(points: Sequence[tuple[float, float]], x: Goal) -> str:
    """Where the front's guarantee ends: a candidate of one cost is there for every larger budget."""
    path = f"M{points[0][0]:.1f} {points[0][1]:.1f}"
    for next_x, next_y in points[1:]:
        path += f"H{next_x:.1f}V{next_y:.1f}" if x.direction == "minimize" else f"V{next_y:.1f}H{next_x:.1f}"
    return path


def _usual(values: Sequence[float], goal: Goal) -> list[float]:
    """Without those that are worse than the worse quartile by more than five times the distance of the quartiles."""
    if len(values) < 8:
        return list(values)
    sign = -1 if goal.direction == "maximize" else 1
    low, _, high = quantiles((sign * value for value in values), n=4)
    return [value for value in values if sign * value <= high + 5 * (high - low)]


def _axis(values: Sequence[float], start: float, end: float, metric: str) -> _Axis:
    low, high = min(values, default=0.0), max(values, default=1.0)
    log = low > 0 and high / low > 20
    if log:
        margin = (high / low) ** 0.06
        return _Axis(low / margin, high * margin, start, end, True)
    margin = 0.07 * (high - low) or 0.05 * abs(high) or 1.0
    lowest, highest = low - margin, high + margin
    if metric_names.unit(metric) == "percent" and 0 <= low <= high <= 1:
        edge = 0.02 * (highest - lowest)  # nothing is above 100 %, but a dot there must not be cut
        lowest, highest = max(lowest, -edge), min(highest, 1 + edge)
    return _Axis(lowest, highest, start, end, False)


def _ticks(axis: _Axis) -> list[float]:
    """Round numbers within the axis: 1, 2 and 5 times powers of ten, four to eight of them."""
    if axis.log:
        powers = range(floor(log10(axis.low)), ceil(log10(axis.high)) + 1)
        factors = (1, 2, 5) if len(powers) < 5 else (1,)
        ticks = [factor * 10.0**power for power in powers for factor in factors]
    else:
        rough = (axis.high - axis.low) / 5
        unit = 10.0 ** floor(log10(rough))
        step = next(factor * unit for factor in (1, 2, 5, 10) if factor * unit >= rough)
        ticks = [index * step for index in range(ceil(axis.low / step), floor(axis.high / step) + 1)]
    return [tick for tick in ticks if axis.low <= tick <= axis.high]


def _short(metric: str, value: float) -> str:
    """A tick's number, without zeros that say nothing."""
    if metric_names.unit(metric) in ("percent", "change"):
        return f"{round(100 * value, 4):g} %"
    number, _, suffix = metric_names.text(metric, value).partition(" ")
    if "." in number:
        number = number.rstrip("0").rstrip(".")
    return f"{number} {suffix}".strip()
