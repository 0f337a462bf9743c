"""A branching tree as an SVG: branches as thick as what they cost, and a colour for each task."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from nasplat.core.branching import CostedTree, Part, Partition, branches

# One a task, in turn; readable on light and on dark paper.
COLOURS = (
    "#2f6fde",
    "#d17a10",
    "#0f9f73",
    "#d13b64",
    "#8b4fd0",
    "#b0930c",
    "#1593b5",
    "#a65628",
    "#6b8e23",
    "#c2579b",
)
_FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"
_STYLE = (
    "<style>.bt-paper{fill:#ffffff}.bt-ink{fill:#1d2530}.bt-soft{fill:#64707f}.bt-edge{fill:none;stroke:#1d2530}"
    "@media (prefers-color-scheme: dark){.bt-paper{fill:#12161d}.bt-ink{fill:#e4e8ee}.bt-soft{fill:#98a3b3}"
    ".bt-edge{stroke:#e4e8ee}}</style>"
)
_LETTER = 6.4  # pixels
_TOP, _BOTTOM, _MARGIN = 48.0, 34.0, 16.0
_THIN = 3.0  # the least height of a branch, so that what costs next to nothing is still seen


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a branch is: its left and right end, its top, the height of a stripe, and its tasks from top to bottom."""

    left: float
    right: float
    top: float
    stripe: float
    tasks: tuple[int, ...]

    def stripe_of(self, task: int) -> tuple[float, float]:
        top = self.top + self.stripe * self.tasks.index(task)
        return top, top + self.stripe


def tree_svg(costed: CostedTree, width: int = 860) -> str:
    """The tree from the image at the left to the heads at the right; it follows the reader's light or dark theme.

    The height of a branch is its multiply-accumulates, on one scale for the whole picture and for every tree of the
    same layers, and 3 pixels at least. A branch that several tasks share has a stripe for each.

    Args:
        width: in pixels.
    """
    body, height = tree_body(costed, width)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height:.0f}" '
        f'viewBox="0 0 {width} {height:.0f}" role="img" font-family="{_FONT}" font-size="12">'
        f"<title>{escape(summary(costed))}</title>"
        f'<rect class="bt-paper" width="{width}" height="{height:.0f}"/>{body}</svg>'
    )


def tree_body(costed: CostedTree, width: int = 860) -> tuple[str, float]:
    """What is within the picture, to be put into another, and its height in pixels."""
    tree, layers, heads = costed.tree, costed.layers, costed.heads
    tasks = range(len(heads))
    # Tasks that share for long lie next to each other, so that no branches cross.
    order = sorted(tasks, key=lambda task: (*(partition[task] for partition in tree), task))
    row = 34.0 if len(heads) <= 12 else 22.0
    middle = {task: _TOP + row * (place + 0.5) for place, task in enumerate(order)}
    left = _MARGIN + 44
    right = width - _MARGIN - max(66.0, 12 + _LETTER * max(len(head.name) for head in heads))
    step = (right - left) / len(tree)
    most = max((layer.macs for layer in layers), default=0) or 1
    places: list[list[_Place]] = [[_Place(left - 38, left - 12, 0, 0, tuple(order))]]
    for number, (partition, layer) in enumerate(zip(tree, layers, strict=True)):
        x = left + step * number
        found = []
        for members in branches(partition).values():
            inside = tuple(sorted(members, key=order.index))
            stripe = max(_THIN, (row - 8) * layer.macs / most) / len(inside)
            centre = sum(middle[task] for task in inside) / len(inside)
            found.append(_Place(x + step * 0.3, x + step * 0.88, centre - stripe * len(inside) / 2, stripe, inside))
        places.append(found)
    image = _image(places[0][0], places[1], middle)
    places[0] = [image]
    dots = [_Place(right + 4, right + 4, middle[task] - 2.5, 5, (task,)) for task in tasks]
    height = _TOP + row * len(heads) + _BOTTOM
    parts = [_STYLE]
    for before, after in zip(places, [*places[1:], dots], strict=True):
        parts += [_ribbon(task, _holding(before, task), _holding(after, task)) for task in order]
    for number, column in enumerate(places):
        parts += [_branch(place, heads, layers[number - 1] if number else None) for place in column]
    parts += [_title(layer, len(column), column[0]) for layer, column in zip(layers, places[1:], strict=True)]
    middle_of_image = (image.left + image.right) / 2
    parts.append(f'<text class="bt-soft" x="{middle_of_image:.1f}" y="32" text-anchor="middle">image</text>')
    parts += [
        f'<circle cx="{right + 8:.1f}" cy="{middle[task]:.1f}" r="4.5" fill="{_colour(task)}">'
        f"<title>{_cost(heads[task])}</title></circle>"
        f'<text class="bt-ink" x="{right + 18:.1f}" y="{middle[task] + 4:.1f}">'
        f"{escape(heads[task].name)}</text>"
        for task in tasks
    ]
    note = f"{_total(costed)}. Heights, and the numbers above, are MACs."
    parts.append(f'<text class="bt-soft" x="{_MARGIN:g}" y="{height - 12:.1f}">{escape(note)}</text>')
    return "".join(parts), height


def tree_text(costed: CostedTree) -> str:
    """The tree as lines of text: a layer each, with its branches and what they cost, and the whole."""
    names = [layer.name for layer in costed.layers]
    costs = [_copies(layer, len(set(one))) for layer, one in zip(costed.layers, costed.tree, strict=True)]
    rows = [
        f"{name:<{max(map(len, names))}}  {cost:>{max(map(len, costs))}}  {_shared(partition, costed.heads)}"
        for name, cost, partition in zip(names, costs, costed.tree, strict=True)
    ]
    return "\n".join([*rows, _total(costed)])


def summary(costed: CostedTree) -> str:
    """The picture in words: `a+b+c > a+b | c`, a layer after each `>`, and the cost."""
    words = " > ".join(_shared(partition, costed.heads) for partition in costed.tree)
    return f"Branching tree of {len(costed.heads)} tasks and {len(costed.layers)} layers: {words}. {_total(costed)}"


def _shared(partition: Partition, heads: Sequence[Part]) -> str:
    return " | ".join("+".join(heads[task].name for task in members) for members in branches(partition).values())


def _total(costed: CostedTree) -> str:
    """The whole cost, and its share of that of separate networks."""
    tree, layers, heads = costed.tree, costed.layers, costed.heads
    numbers = [len(set(partition)) for partition in tree]

    def macs(copies: Sequence[int]) -> int:
        parts = sum(number * layer.macs for number, layer in zip(copies, layers, strict=True))
        return parts + sum(head.macs for head in heads)

    own, separate = macs(numbers), macs([len(heads)] * len(layers)) or 1
    params = sum(number * layer.params for number, layer in zip(numbers, layers, strict=True))
    params += sum(head.params for head in heads)
    shared = macs([1] * len(layers)) / separate
    return (
        f"{_amount(own)} MACs, {_amount(params)} parameters: {own / separate:.0%} of the MACs of separate networks "
        f"(all shared: {shared:.0%})"
    )


def _image(box: _Place, first: Sequence[_Place], middle: dict[int, float]) -> _Place:
    """The image, as high as all that reads it, in the middle."""
    order = tuple(task for place in sorted(first, key=lambda place: place.top) for task in place.tasks)
    high = max(24.0, min(60.0, sum(place.stripe * len(place.tasks) for place in first)))
    centre = sum(middle.values()) / len(middle)
    return _Place(box.left, box.right, centre - high / 2, high / len(order), order)


def _holding(column: Sequence[_Place], task: int) -> _Place:
    return next(place for place in column if task in place.tasks)


def _ribbon(task: int, before: _Place, after: _Place) -> str:
    """A task's way from one branch to the next."""
    (top, bottom), (next_top, next_bottom) = before.stripe_of(task), after.stripe_of(task)
    x, next_x = before.right, after.left
    bend = (x + next_x) / 2
    return (
        f'<path d="M{x:.1f} {top:.1f}C{bend:.1f} {top:.1f} {bend:.1f} {next_top:.1f} {next_x:.1f} {next_top:.1f}'
        f'V{next_bottom:.1f}C{bend:.1f} {next_bottom:.1f} {bend:.1f} {bottom:.1f} {x:.1f} {bottom:.1f}Z" '
        f'fill="{_colour(task)}" fill-opacity=".38"/>'
    )


def _branch(place: _Place, heads: Sequence[Part], layer: Part | None) -> str:
    """A stripe for each task, and a frame; what it is and costs is read by pointing at it."""
    names = ", ".join(heads[task].name for task in sorted(place.tasks))
    words = "image" if layer is None else f"{escape(names)}: {_cost(layer)}"
    wide = place.right - place.left
    stripes = "".join(
        f'<rect x="{place.left:.1f}" y="{place.stripe_of(task)[0]:.2f}" width="{wide:.1f}" '
        f'height="{place.stripe:.2f}" fill="{_colour(task)}"/>'
        for task in place.tasks
    )
    high = place.stripe * len(place.tasks)
    if layer is None:
        stripes = (
            f'<rect class="bt-soft" x="{place.left:.1f}" y="{place.top:.1f}" width="{wide:.1f}" height="{high:.1f}"/>'
        )
    return (
        f"<g><title>{words}</title>{stripes}"
        f'<rect class="bt-edge" x="{place.left:.1f}" y="{place.top:.1f}" width="{wide:.1f}" height="{high:.1f}" '
        f'stroke-width=".7" rx="1.5"/></g>'
    )


def _title(layer: Part, number: int, place: _Place) -> str:
    centre = (place.left + place.right) / 2
    fitting = max(4, int((place.right - place.left) * 1.5 / _LETTER))
    name = layer.name if len(layer.name) <= fitting else "…" + layer.name[1 - fitting :]
    return (
        f'<text class="bt-ink" x="{centre:.1f}" y="18" text-anchor="middle" font-weight="600">{escape(name)}</text>'
        f'<text class="bt-soft" x="{centre:.1f}" y="34" text-anchor="middle">'
        f"{_copies(layer, number)}</text>"
    )


def _copies(layer: Part, number: int) -> str:
    return f"{f'{number} × ' * (number > 1)}{_amount(layer.macs)}"


def _cost(layer: Part) -> str:
    return f"{escape(layer.name)}, {_amount(layer.macs)} MACs, {_amount(layer.params)} parameters"


def _colour(task: int) -> str:
    return COLOURS[task % len(COLOURS)]


def _amount(number: float) -> str:
    """A number in three digits, with k, M or G."""
    for unit, name in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
        if number >= 0.9995 * unit:
            return f"{number / unit:.3g}{name}"
    return f"{number:.0f}"
