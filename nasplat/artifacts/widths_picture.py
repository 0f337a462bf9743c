"""Widths of layers before and after a pruning, as a small SVG."""

from __future__ import annotations

from html import escape

from nasplat.core.drawing import Bars

_FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"
_STYLE = (
    "<style>.wp-ink{fill:#1d2530}.wp-soft{fill:#64707f}.wp-before{fill:none;stroke:#9aa5b4}.wp-after{fill:#2f6fde}"
    "@media (prefers-color-scheme: dark){.wp-ink{fill:#e4e8ee}.wp-soft{fill:#98a3b3}.wp-before{stroke:#66717f}"
    ".wp-after{fill:#6ea0ff}}</style>"
)
_ROW = 18.0
_LABEL = 6.6  # pixels a letter


def bars_svg(drawing: Bars, width: int = 860) -> str:
    """A row a layer: its name, a bar for each width, and the numbers. Rows need no more space however many they are.

    Args:
        width: in pixels.
    """
    body, height = bars_body(drawing, width)
    bars = drawing.bars
    summary = f"{len(bars)} layers, {sum(bar.after for bar in bars):,} of {sum(bar.before for bar in bars):,} "
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height:.0f}" '
        f'viewBox="0 0 {width} {height:.0f}" role="img" font-family="{_FONT}" font-size="11">'
        f"<title>{escape(summary + drawing.unit)}</title>{body}</svg>"
    )


def bars_body(drawing: Bars, width: int = 860) -> tuple[str, float]:
    """The inside of that picture, and its height, to stand within another one."""
    bars = drawing.bars
    left = 12 + _LABEL * max((len(bar.name) for bar in bars), default=0)
    right = width - 130
    most = max((bar.before for bar in bars), default=1)
    parts = [_STYLE]
    for place, bar in enumerate(bars):
        top = 6 + _ROW * place
        long, short = ((right - left) * value / most for value in (bar.before, bar.after))
        numbers = f"{bar.after:,} of {bar.before:,}"
        numbers += f" ({bar.after / bar.before:.0%})" if bar.after != bar.before else ""
        parts += [
            f'<text class="wp-ink" x="{left - 6:.1f}" y="{top + 12:.1f}" text-anchor="end">{escape(bar.name)}</text>',
            f'<rect class="wp-before" x="{left:.1f}" y="{top + 2.5:.1f}" width="{long:.1f}" height="13" rx="2"/>',
            f'<rect class="wp-after" x="{left:.1f}" y="{top + 2.5:.1f}" width="{short:.1f}" height="13" rx="2"/>',
            f'<text class="wp-soft" x="{left + long + 6:.1f}" y="{top + 12:.1f}">{numbers}</text>',
        ]
    return "".join(parts), _ROW * len(bars) + 12
