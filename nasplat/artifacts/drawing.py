"""Drawings of cells and networks: as SVG for pages and files, as text for terminals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from itertools import pairwise

from nasplat.artifacts.layout import Box, Layout, Point, layout
from nasplat.artifacts.tree_picture import summary as tree_summary
from nasplat.artifacts.tree_picture import tree_body, tree_text
from nasplat.artifacts.widths_picture import bars_body
from nasplat.core.branching import CostedTree
from nasplat.core.drawing import Bars, Drawing, Edge, Picture

# Kind -> hue; boxes are filled with a tint of it, which reads on light and on dark paper.
COLOURS = {
    "input": "#64748b",
    "output": "#64748b",
    "convolution": "#2f6fde",
    "separable": "#0f9f73",
    "dilated": "#8b4fd0",
    "pooling": "#d17a10",
    "identity": "#8a94a3",
    "none": "#b3bac4",
    "combine": "#64748b",
    "linear": "#d13b64",
    "activation": "#b0930c",
    "other": "#7c8798",
}
_MARGIN = 16.0
_TITLE = 26.0
_ARROW = 6.0
_BLOCKS = 40
_FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"
_DARK = (
    "@media (prefers-color-scheme: dark) { .nd-paper { fill: #12161d } .nd-text { fill: #e4e8ee } "
    ".nd-line { stroke: #7f8a9a } .nd-head { fill: #7f8a9a } .nd-box { fill-opacity: .3 } }"
)


def draw_svg(drawings: Picture | Mapping[str, Picture]) -> str:
    """One drawing, or several with their names as titles below each other, as a self-contained SVG.

    It follows the reader's light or dark theme.

    Raises:
        NasplatError: an arrow names a box that is not there, or arrows go round in a circle.
    """
    named = {"": drawings} if isinstance(drawings, Drawing | Bars | CostedTree) else drawings
    parts = []
    y, widest = _MARGIN, 0.0
    for name, drawing in named.items():
        if name:
            parts.append(f'<text class="nd-text" x="{_MARGIN:g}" y="{y + 13:g}" {_TITLE_STYLE}>{escape(name)}</text>')
            y += _TITLE
        if isinstance(drawing, Bars):
            (body, height), wide = bars_body(drawing), 860.0
            body = f'<g font-size="11">{body}</g>'
        elif isinstance(drawing, CostedTree):
            (body, height), wide = tree_body(drawing), 860.0
            body = f'<g font-size="12">{body}</g>'
        else:
            placed = layout(_connected(drawing))
            body, height, wide = _body(placed), placed.height, placed.width
        parts.append(f'<g transform="translate({_MARGIN:g} {y:g})">{body}</g>')
        y += height + _MARGIN
        widest = max(widest, wide, 8.0 * len(name))
    width = round(widest + 2 * _MARGIN)
    summary = "; ".join(f"{name}: {_summary(drawing)}".lstrip(": ") for name, drawing in named.items())
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{round(y)}" '
        f'viewBox="0 0 {width} {round(y)}" role="img" font-family="{_FONT}">'
        f"<title>{escape(summary)}</title><style>{_DARK}</style>"
        f'<rect class="nd-paper" width="100%" height="100%" fill="#ffffff"/>{"".join(parts)}</svg>'
    )


def _connected(drawing: Drawing) -> Drawing:
    """Without the joins that nothing reaches and nothing reads: their arrows were settled away."""
    ends = {end for edge in drawing.edges for end in (edge.source, edge.target)}
    nodes = tuple(node for node in drawing.nodes if node.kind != "combine" or node.id in ends)
    return Drawing(nodes, drawing.edges)


_TITLE_STYLE = 'font-size="13" font-weight="600" fill="#1d2530"'


def _summary(drawing: Picture) -> str:
    if isinstance(drawing, Bars):
        return ", ".join(f"{bar.name} {bar.after} of {bar.before}" for bar in drawing.bars)
    if isinstance(drawing, CostedTree):
        return tree_summary(drawing)
    operations = [edge.label for edge in drawing.edges if edge.label]
    operations += [node.label for node in drawing.nodes if node.kind not in {"input", "output", "combine"}]
    return ", ".join(operations)


def _body(placed: Layout) -> str:
    return "".join([_arrow(route) for route in placed.routes] + [_box(box) for box in placed.boxes])


def _box(box: Box) -> str:
    colour = COLOURS.get(box.kind, COLOURS["other"])
    left, top = box.x - box.width / 2, box.y - box.height / 2
    radius = 6 if box.on_edge or box.kind not in {"input", "output", "combine"} else box.height / 2
    dashes = ' stroke-dasharray="3 3"' if box.kind in {"identity", "none"} else ""
    return (
        f'<rect class="nd-box" x="{left:.1f}" y="{top:.1f}" width="{box.width:.1f}" height="{box.height:g}" '
        f'rx="{radius:g}" fill="{colour}" fill-opacity=".14" stroke="{colour}" stroke-width="1.3"{dashes}/>'
        f'<text class="nd-text" x="{box.x:.1f}" y="{box.y + 4:.1f}" text-anchor="middle" font-size="12" '
        f'fill="#1d2530">{escape(box.label)}</text>'
    )


def _arrow(points: Sequence[Point]) -> str:
    """A smooth line through the points with a head at the end."""
    *_, before, end = points
    down = abs(end[0] - before[0]) < 0.5
    x, y = end
    if down:
        tip, head = (x, y - _ARROW), f"M{x:.1f} {y:.1f}l-3.2 -{_ARROW:g}h6.4z"
        line = _elbow([*points[:-1], tip])
    else:
        tip, head = (x - _ARROW, y), f"M{x:.1f} {y:.1f}l-{_ARROW:g} -3.2v6.4z"
        line = _curve([*points[:-1], tip])
    return (
        f'<path class="nd-line" d="{line}" fill="none" stroke="#8d97a5" stroke-width="1.3"/>'
        f'<path class="nd-head" d="{head}" fill="#8d97a5"/>'
    )


def _curve(points: Sequence[Point]) -> str:
    """Between ranks an S that leaves and arrives level; within a rank, where a long arrow passes, straight."""
    path = f"M{points[0][0]:.1f} {points[0][1]:.1f}"
    for (x, y), (next_x, next_y) in pairwise(points):
        if abs(next_y - y) < 0.5:
            path += f"L{next_x:.1f} {next_y:.1f}"
        else:
            middle = (x + next_x) / 2
            path += f"C{middle:.1f} {y:.1f} {middle:.1f} {next_y:.1f} {next_x:.1f} {next_y:.1f}"
    return path


def _elbow(points: Sequence[Point]) -> str:
    return "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in points)


def draw_text(drawing: Picture) -> str:
    """A drawing as lines of text: every box with what leads into it, in the order of the drawing.

    A box that follows the one above it and nothing else is marked by a down arrow. Bars are rows of blocks.
    """
    if isinstance(drawing, Bars):
        return _bars_text(drawing)
    if isinstance(drawing, CostedTree):
        return tree_text(drawing)
    drawing = _connected(drawing)
    labels = _unique_labels(drawing)
    incoming: dict[str, list[Edge]] = {node.id: [] for node in drawing.nodes}
    for edge in drawing.edges:
        incoming[edge.target].append(edge)
    width = max((len(label) for label in labels.values()), default=0)
    widest = max((len(edge.label) for edge in drawing.edges), default=0)
    lines: list[str] = []
    above = None
    for node in drawing.nodes:
        edges = incoming[node.id]
        plain = [labels[edge.source] for edge in edges if not edge.label]
        if len(edges) == 1 and not edges[0].label and edges[0].source == above:
            lines.append(f"↓ {labels[node.id]}")
        else:
            sources = [f"{edge.label:<{widest}} ({labels[edge.source]})" for edge in edges if edge.label]
            sources += [", ".join(plain)] if plain else []
            first, *others = sources or [""]
            lines.append(f"  {labels[node.id]:<{width}}  ← {first}" if first else f"  {labels[node.id]}")
            lines += [f"  {'':<{width}}  ← {other}" for other in others]
        above = node.id
    return "\n".join(lines)


def _bars_text(drawing: Bars) -> str:
    width = max((len(bar.name) for bar in drawing.bars), default=0)
    most = max((bar.before for bar in drawing.bars), default=1)
    lines = []
    for bar in drawing.bars:
        before, after = (max(1, round(_BLOCKS * value / most)) if value else 0 for value in (bar.before, bar.after))
        blocks = "█" * after + "░" * (before - after)
        lines.append(f"  {bar.name:<{width}}  {blocks:<{_BLOCKS}}  {bar.after:,} of {bar.before:,}")
    return "\n".join(lines)


def _unique_labels(drawing: Drawing) -> dict[str, str]:
    """Labels by id; where several boxes have the same, they are numbered."""
    all_labels = [node.label for node in drawing.nodes]
    seen: dict[str, int] = {}
    labels = {}
    for node in drawing.nodes:
        seen[node.label] = seen.get(node.label, 0) + 1
        labels[node.id] = f"{node.label} #{seen[node.label]}" if all_labels.count(node.label) > 1 else node.label
    return labels
