"""Where the boxes and arrows of a drawing go: a layered layout from left to right.

Ranks by longest paths, order within a rank by barycentres (Sugiyama et al., Methods for Visual Understanding of
Hierarchical System Structures, 1981), heights by repeated least squares under the order. An arrow with a label is laid
out as two arrows with a box between them. A long chain is folded into rows.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from nasplat.core.drawing import Drawing
from nasplat.core.errors import NasplatError

Point = tuple[float, float]

BOX_HEIGHT = 28.0
LETTER = 6.7  # average width of a letter at the size of a label
_PADDING = 22.0
_COLUMN_GAP = 36.0
_ROW_GAP = 14.0
_DUMMY_HEIGHT = 4.0
_SWEEPS = 12
_WIDEST_ROW = 1080.0


@dataclass(frozen=True, slots=True)
class Box:
    """A box by its centre. `on_edge` tells that it stands for an arrow's label."""

    label: str
    kind: str
    x: float
    y: float
    width: float
    height: float
    on_edge: bool = False


@dataclass(frozen=True, slots=True)
class Layout:
    """Boxes, and arrows as the points that they pass: leaving a box, between ranks, entering a box."""

    boxes: tuple[Box, ...]
    routes: tuple[tuple[Point, ...], ...]
    width: float
    height: float


@dataclass
class _Graph:
    """Boxes first, then the dummies by which long arrows are led through the ranks between."""

    labels: list[tuple[str, str, bool]]
    edges: list[tuple[int, int]]
    ranks: list[int]


def layout(drawing: Drawing) -> Layout:
    """Places a drawing.

    Raises:
        NasplatError: an arrow names a box that is not there, or arrows go round in a circle.
    """
    graph = _ranked(drawing)
    if not graph.labels:
        return Layout((), (), 0.0, 0.0)
    chain = _chain(graph)
    if chain:
        return _folded(graph, chain)
    boxes_count = len(graph.labels)
    paths, segments, ranks = _with_dummies(graph)
    layers: list[list[int]] = [[] for _ in range(max(ranks) + 1)]
    for vertex, rank in enumerate(ranks):
        layers[rank].append(vertex)
    layers = _ordered(layers, segments)
    sizes = [BOX_HEIGHT if vertex < boxes_count else _DUMMY_HEIGHT for vertex in range(len(ranks))]
    heights = _heights(layers, segments, sizes)
    lefts, widths = _columns(layers, graph)
    boxes = []
    for vertex, (label, kind, on_edge) in enumerate(graph.labels):
        x = lefts[ranks[vertex]] + widths[ranks[vertex]] / 2
        boxes.append(Box(label, kind, x, heights[vertex], _width(label), BOX_HEIGHT, on_edge))
    routes = []
    for path in paths:
        first, last = boxes[path[0]], boxes[path[-1]]
        points = [(first.x + first.width / 2, first.y)]
        for vertex in path[1:-1]:
            left = lefts[ranks[vertex]]
            points += [(left, heights[vertex]), (left + widths[ranks[vertex]], heights[vertex])]
        routes.append((*points, (last.x - last.width / 2, last.y)))
    bottom = max(heights[vertex] + sizes[vertex] / 2 for vertex in range(len(ranks)))
    return Layout(tuple(boxes), tuple(routes), lefts[-1] + widths[-1], bottom)


def _ranked(drawing: Drawing) -> _Graph:
    """Boxes and arrows by position, labels on arrows turned into boxes, with ranks."""
    position = {node.id: index for index, node in enumerate(drawing.nodes)}
    labels = [(node.label, node.kind, False) for node in drawing.nodes]
    edges = []
    for edge in drawing.edges:
        if edge.source not in position or edge.target not in position:
            raise NasplatError(f"a drawing has an arrow from {edge.source!r} to {edge.target!r}, but not both boxes")
        source, target = position[edge.source], position[edge.target]
        if edge.label:
            labels.append((edge.label, edge.kind or "other", True))
            middle = len(labels) - 1
            edges += [(source, middle), (middle, target)]
        else:
            edges.append((source, target))
    return _Graph(labels, edges, _ranks(labels, edges))


def _ranks(labels: Sequence[tuple[str, str, bool]], edges: Sequence[tuple[int, int]]) -> list[int]:
    """Longest paths from the sources; a label goes to the middle of its arrow, a late source before what it feeds."""
    sources, targets = defaultdict(list), defaultdict(list)
    for source, target in edges:
        sources[target].append(source)
        targets[source].append(target)
    waiting = [len(sources[vertex]) for vertex in range(len(labels))]
    ready = [vertex for vertex, count in enumerate(waiting) if not count]
    order = []
    while ready:
        vertex = ready.pop(0)
        order.append(vertex)
        for target in targets[vertex]:
            waiting[target] -= 1
            if not waiting[target]:
                ready.append(target)
    if len(order) < len(labels):
        raise NasplatError("a drawing goes round in a circle", "arrows must lead from inputs to outputs")
    ranks = [0] * len(labels)
    for vertex in order:
        ranks[vertex] = max((ranks[source] + 1 for source in sources[vertex]), default=0)
    last = max(ranks, default=0)
    for vertex in order:
        if labels[vertex][1] == "output" and not targets[vertex]:
            ranks[vertex] = last
    for vertex in reversed(order):
        if not targets[vertex]:
            continue
        latest = min(ranks[target] for target in targets[vertex]) - 1
        if not sources[vertex] and labels[vertex][1] != "input":
            ranks[vertex] = latest
        elif labels[vertex][2]:
            ranks[vertex] = (ranks[vertex] + latest) // 2
    return ranks


def _with_dummies(graph: _Graph) -> tuple[list[list[int]], list[tuple[int, int]], list[int]]:
    """Arrows as paths of vertices one rank apart, the segments of all paths, and the ranks with those of dummies."""
    ranks = list(graph.ranks)
    paths, segments = [], []
    for source, target in graph.edges:
        path = [source]
        for rank in range(ranks[source] + 1, ranks[target]):
            ranks.append(rank)
            path.append(len(ranks) - 1)
        path.append(target)
        paths.append(path)
        segments += list(pairwise(path))
    return paths, segments, ranks


def _ordered(layers: list[list[int]], segments: Sequence[tuple[int, int]]) -> list[list[int]]:
    """The order within the layers with the fewest crossings that sweeping to and fro by barycentres comes upon."""
    before, after = _neighbours(segments)
    best, fewest = layers, _crossings(layers, after)
    for sweep in range(_SWEEPS):
        if not fewest:
            break
        layers = [list(layer) for layer in layers]
        forward = sweep % 2 == 0
        indices = range(1, len(layers)) if forward else range(len(layers) - 2, -1, -1)
        for index in indices:
            place = {vertex: at for at, vertex in enumerate(layers[index - 1 if forward else index + 1])}
            near = before if forward else after
            own = {vertex: at for at, vertex in enumerate(layers[index])}
            centre = {
                vertex: sum(place[other] for other in near[vertex]) / len(near[vertex]) if near[vertex] else own[vertex]
                for vertex in layers[index]
            }
            layers[index].sort(key=lambda vertex, centre=centre: centre[vertex])  # type: ignore[misc]
        crossings = _crossings(layers, after)
        if crossings < fewest:
            best, fewest = layers, crossings
    return best


def _neighbours(segments: Sequence[tuple[int, int]]) -> tuple[dict[int, list[int]], dict[int, list[int]]]:
    before, after = defaultdict(list), defaultdict(list)
    for source, target in segments:
        before[target].append(source)
        after[source].append(target)
    return before, after


def _crossings(layers: Sequence[Sequence[int]], after: dict[int, list[int]]) -> int:
    total = 0
    for layer, following in pairwise(layers):
        place = {vertex: at for at, vertex in enumerate(following)}
        ends = [sorted(place[target] for target in after[vertex]) for vertex in layer]
        for index, upper in enumerate(ends):
            for lower in ends[index + 1 :]:
                total += sum(1 for first in upper for second in lower if first > second)
    return total


def _heights(layers: list[list[int]], segments: Sequence[tuple[int, int]], sizes: Sequence[float]) -> list[float]:
    """The vertical centre of every vertex: near its neighbours, in the order of its layer, without overlaps."""
    before, after = _neighbours(segments)
    heights = [0.0] * len(sizes)
    for layer in layers:
        offset = 0.0
        for vertex in layer:
            heights[vertex] = offset + sizes[vertex] / 2
            offset += sizes[vertex] + _ROW_GAP
        for vertex in layer:
            heights[vertex] -= (offset - _ROW_GAP) / 2
    for sweep in range(2 * _SWEEPS):
        near = [before, after][sweep % 2]
        for layer in layers if sweep % 2 == 0 else reversed(layers):
            wanted, weights = [], []
            for vertex in layer:
                others = near[vertex] if sweep < _SWEEPS else before[vertex] + after[vertex]
                mean = sum(heights[other] for other in others) / len(others) if others else heights[vertex]
                wanted.append(mean)
                weights.append(1.0 if sizes[vertex] > _DUMMY_HEIGHT else 3.0)  # long arrows should be straight
            for vertex, height in zip(layer, _separated(wanted, weights, [sizes[v] for v in layer]), strict=True):
                heights[vertex] = height
    top = min(height - size / 2 for height, size in zip(heights, sizes, strict=True))
    return [height - top for height in heights]


def _separated(wanted: Sequence[float], weights: Sequence[float], sizes: Sequence[float]) -> list[float]:
    """The positions nearest to the wanted ones, in least squares, that keep order and distance (pooling violators)."""
    offsets = [0.0]
    for size, following in pairwise(sizes):
        offsets.append(offsets[-1] + (size + following) / 2 + _ROW_GAP)
    pools: list[tuple[float, float, int]] = []  # mean, weight, number of members
    for value, weight, offset in zip(wanted, weights, offsets, strict=True):
        pool = (value - offset, weight, 1)
        while pools and pools[-1][0] > pool[0]:
            mean, total, count = pools.pop()
            joint = total + pool[1]
            pool = ((mean * total + pool[0] * pool[1]) / joint, joint, count + pool[2])
        pools.append(pool)
    means = [mean for mean, _, count in pools for _ in range(count)]
    return [mean + offset for mean, offset in zip(means, offsets, strict=True)]


def _columns(layers: Sequence[Sequence[int]], graph: _Graph) -> tuple[list[float], list[float]]:
    """Left edge and width of every rank."""
    lefts, widths, x = [], [], 0.0
    for layer in layers:
        widths.append(max((_width(graph.labels[v][0]) for v in layer if v < len(graph.labels)), default=0.0))
        lefts.append(x)
        x += widths[-1] + _COLUMN_GAP
    return lefts, widths


def _width(label: str) -> float:
    return max(BOX_HEIGHT, len(label) * LETTER + _PADDING)


def _chain(graph: _Graph) -> list[int]:
    """The boxes in order where the drawing is one chain that is too long for a row; empty otherwise."""
    order = sorted(range(len(graph.labels)), key=lambda vertex: graph.ranks[vertex])
    is_chain = sorted(graph.edges) == sorted(pairwise(order))
    width = sum(_width(label) + _COLUMN_GAP for label, _, _ in graph.labels)
    return order if is_chain and width > _WIDEST_ROW else []


def _folded(graph: _Graph, chain: Sequence[int]) -> Layout:
    """A chain in rows that are read like text."""
    boxes: list[Box] = []
    routes: list[tuple[Point, ...]] = []
    x, y, widest = 0.0, BOX_HEIGHT / 2, 0.0
    for vertex in chain:
        label, kind, on_edge = graph.labels[vertex]
        width = _width(label)
        folds = x > 0 and x + width > _WIDEST_ROW
        if folds:
            x, y = 0.0, y + BOX_HEIGHT + 2.2 * _ROW_GAP
        box = Box(label, kind, x + width / 2, y, width, BOX_HEIGHT, on_edge)
        if folds:  # down from the box before, back along the gap between the rows, down into this one
            above = boxes[-1]
            between = y - BOX_HEIGHT / 2 - 1.1 * _ROW_GAP
            start = (above.x, above.y + BOX_HEIGHT / 2)
            routes.append((start, (above.x, between), (box.x, between), (box.x, y - BOX_HEIGHT / 2)))
        elif boxes:
            routes.append(((boxes[-1].x + boxes[-1].width / 2, y), (x, y)))
        boxes.append(box)
        widest = max(widest, x + width)
        x += width + _COLUMN_GAP
    return Layout(tuple(boxes), tuple(routes), widest, y + BOX_HEIGHT / 2)
