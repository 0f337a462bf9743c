"""Cells stacked into a network, as in NASNet and DARTS: every cell reads the outputs of the two cells before it.

A stem, then stages of normal cells with a reduction cell between two stages; a reduction cell halves height and width
and doubles the channels.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, NamedTuple

from nasplat.core.cost import Cost, cost_of
from nasplat.core.errors import NasplatError
from nasplat.core.graph import GraphBuilder, OperationGraph, Shape
from nasplat.core.problem import Problem
from nasplat.spaces import cell_program
from nasplat.spaces.cell_program import BEFORE_LAST, LAST, CellCost, Frame, Program
from nasplat.spaces.heads import finish_with_heads

if TYPE_CHECKING:
    from collections.abc import Sequence

NORMAL, REDUCTION = "normal", "reduction"


@dataclass(frozen=True)
class Style:
    """What NASNet and DARTS do differently around their cells.

    Args:
        final_relu: a ReLU before the global pooling.
        deeper_drops_more: drop path grows with the depth of a cell, or is the same in all.
        drops_strided_identity: drop path takes what a reduction cell makes of the identity, or spares it too.
        auxiliary_after: the auxiliary head reads the last reduction cell, or the cell before that.
    """

    final_relu: bool
    deeper_drops_more: bool
    drops_strided_identity: bool
    auxiliary_after: bool


NASNET = Style(final_relu=True, deeper_drops_more=True, drops_strided_identity=False, auxiliary_after=False)
DARTS = Style(final_relu=False, deeper_drops_more=False, drops_strided_identity=True, auxiliary_after=True)


@dataclass(frozen=True)
class Stack:
    """How cells become a network.

    Args:
        cells: normal cells in each stage; a reduction cell stands between two stages.
        channels: of the first cell, "F" or "C" of the papers.
        stem_multiplier: channels of the stem, in multiples of `channels`.
        style: of NASNet or of DARTS.
    """

    cells: tuple[int, ...]
    channels: int
    stem_multiplier: int = 3
    style: Style = DARTS

    @staticmethod
    def of(cells: int | Sequence[int], channels: int, *, stem_multiplier: int, style: Style = DARTS) -> Stack:
        """`cells` is a number for each of three stages, or a list with a number a stage.

        Raises:
            NasplatError: no cell at all, a negative number of cells, or fewer than one channel.
        """
        stages = (cells,) * 3 if isinstance(cells, int) else tuple(cells)
        if not stages or min(stages) < 0 or sum(stages) + len(stages) - 1 < 1:
            raise NasplatError(f"cells: {cells} makes no network", "give the number of normal cells a stage, such as 2")
        if channels < 1 or stem_multiplier < 1:
            raise NasplatError(f"channels: {channels} with stem multiplier {stem_multiplier} makes no network")
        return Stack(stages, channels, stem_multiplier, style)

    @cached_property
    def kinds(self) -> tuple[str, ...]:
        kinds: list[str] = []
        for stage, count in enumerate(self.cells):
            kinds += [REDUCTION] * (stage > 0) + [NORMAL] * count
        return tuple(kinds)

    @cached_property
    def auxiliary(self) -> int:
        """Position of the cell that the auxiliary head reads; -1 where there is none."""
        reductions = [position for position, kind in enumerate(self.kinds) if kind == REDUCTION]
        return reductions[-1] - (not self.style.auxiliary_after) if reductions else -1


class Placed(NamedTuple):
    """One live cell of a stack, where it stands, and whether the next live cell reads its last input too."""

    position: int
    kind: str
    program: Program
    frame: Frame
    keep_last: bool


def place(stack: Stack, programs: Mapping[str, Program], size: Shape) -> list[Placed]:
    """The cells from which there is a way to the output, in order. `size` is the height and width of the stem."""
    kinds = stack.kinds
    live = [False] * len(kinds)
    live[-1] = True
    reads = {kind: (program.reads(BEFORE_LAST), program.reads(LAST)) for kind, program in programs.items()}
    for position in range(len(kinds) - 1, 0, -1):
        if live[position]:
            before_last, last = reads[kinds[position]]
            live[position - 1] |= last
            if position >= 2:
                live[position - 2] |= before_last
    placed = []
    for position, (kind, frame) in enumerate(zip(kinds, _frames(stack, size), strict=True)):
        if live[position]:
            following = position + 1 < len(kinds) and live[position + 1] and reads[kinds[position + 1]][0]
            placed.append(Placed(position, kind, programs[kind], frame, following))
    return placed


@lru_cache(maxsize=256)
def _frames(stack: Stack, size: Shape) -> list[Frame]:
    frames = []
    channels = stack.channels
    for kind in stack.kinds:
        channels *= 2 if kind == REDUCTION else 1
        frames.append(Frame(channels, size))
        size = frames[-1].output_size(kind == REDUCTION)
    return frames


def graph(stack: Stack, programs: Mapping[str, Program], problem: Problem) -> OperationGraph:
    """The whole network. Dead cells are left out.

    The auxiliary head reads the last live cell up to `stack.auxiliary`: where that one is dead, one before it, for a
    search that trains with the head trains every candidate with it.
    """
    builder = GraphBuilder(problem.input_shape)
    stem = _stem(builder, stack)
    outputs = {-2: stem, -1: stem}
    taps: dict[str, int] = {}
    for cell in place(stack, programs, problem.input_shape[1:]):
        position = cell.position
        outputs[position] = cell_program.emit(
            cell.program,
            builder,
            outputs.get(position - 2),
            outputs.get(position - 1),
            cell.frame,
            f"cells.{position}",
            drop_path=(position + 1) / len(stack.kinds) if stack.style.deeper_drops_more else 1.0,
            drops_strided_identity=stack.style.drops_strided_identity,
        )
        if position <= stack.auxiliary:
            taps["auxiliary"] = outputs[position]
    return _head(builder, outputs[max(outputs)], stack.style.final_relu, problem, taps)


def _stem(builder: GraphBuilder, stack: Stack) -> int:
    channels = stack.channels * stack.stem_multiplier
    return builder.batch_norm(builder.conv2d(builder.input, channels, 3, name="stem.conv"), name="stem.norm")


def _head(
    builder: GraphBuilder, node: int, final_relu: bool, problem: Problem, taps: Mapping[str, int]
) -> OperationGraph:
    if final_relu:
        node = builder.activation(node)
    return finish_with_heads(builder, node, problem, taps)


@lru_cache(maxsize=256)
def _stem_cost(stack: Stack, problem: Problem) -> tuple[Cost, Shape]:
    builder = GraphBuilder(problem.input_shape)
    node = _stem(builder, stack)
    return cost_of(builder.finish({"stem": node}, {})), builder.shape(node)


@lru_cache(maxsize=1024)
def _head_cost(shape: Shape, final_relu: bool, problem: Problem) -> Cost:
    builder = GraphBuilder(shape)
    return cost_of(_head(builder, builder.input, final_relu, problem, {}))


def cost(stack: Stack, programs: Mapping[str, Program], problem: Problem) -> Cost:
    """Equal to `cost_of(graph(…))`, without making the graph: each distinct placing of a cell is counted once."""
    stem, stem_shape = _stem_cost(stack, problem)
    macs, params, peak = stem.macs, stem.params, stem.peak_bytes
    shapes = {-2: stem_shape, -1: stem_shape}
    known: dict[tuple[object, ...], CellCost] = {}
    plans = {kind: cell_program.plan(program) for kind, program in programs.items()}
    for cell in place(stack, programs, problem.input_shape[1:]):
        before_last, last = shapes.get(cell.position - 2), shapes.get(cell.position - 1)
        signature = (cell.kind, cell.frame, before_last, last, cell.position == 0, cell.keep_last)
        if signature not in known:
            known[signature] = cell_program.cost(
                plans[cell.kind],
                before_last,
                last,
                cell.frame,
                reduction=cell.kind == REDUCTION,
                same=cell.position == 0,
                keep_last=cell.keep_last,
            )
        found = known[signature]
        macs += found.macs
        params += found.params
        peak = max(peak, found.peak_bytes)
        shapes[cell.position] = found.shape
    head = _head_cost(shapes[max(shapes)], stack.style.final_relu, problem)
    return Cost(macs + head.macs, params + head.params, max(peak, head.peak_bytes))
