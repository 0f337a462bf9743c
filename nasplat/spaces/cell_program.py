"""A cell as the steps that compute it, from which come both its operation graph and, without one, its cost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import prod

from nasplat.core.cost import BYTES_PER_ELEMENT, cost_of, peak_bytes_of
from nasplat.core.graph import GraphBuilder, Shape
from nasplat.spaces.cell_operations import ALIGN, IDENTITY, NONE, OPERATIONS, REDUCE, SQUEEZE, WEIGHTLESS

# Tensors of a program: the outputs of the two cells before come first; what the steps make follows.
BEFORE_LAST, LAST = 0, 1


@dataclass(frozen=True, slots=True)
class Step:
    """One step: an operation of `cell_operations.OPERATIONS`, or `add`, `concat`, `zeros`.

    Args:
        width: of the result, in multiples of the channels of the cell.
        stride: 2 where an operation of a reduction cell reads an input of the cell.
    """

    operation: str
    sources: tuple[int, ...]
    result: int
    name: str
    width: int = 1
    stride: int = 1


@dataclass(frozen=True, slots=True)
class Program:
    """The steps of a cell; the last one makes its output, of `width` times the channels of the cell."""

    steps: tuple[Step, ...]
    width: int
    reduction: bool

    @property
    def output(self) -> int:
        return self.steps[-1].result if self.steps else LAST

    def reads(self, tensor: int) -> bool:
        if not self.steps:
            return tensor == LAST
        return any(tensor in step.sources for step in self.steps)


class ProgramBuilder:
    """Writes the steps of one cell. Handles are tensors; None is the sum of nothing."""

    def __init__(self, *, reduction: bool, align: bool) -> None:
        self.reduction = reduction
        self._align = align
        self._steps: list[Step] = []
        self._inputs: dict[int, int] = {}
        self._pools: dict[tuple[str, int], int] = {}

    def _make(self, operation: str, sources: tuple[int, ...], name: str, width: int = 1, stride: int = 1) -> int:
        result = 2 + len(self._steps)
        self._steps.append(Step(operation, sources, result, name, width, stride))
        return result

    def input(self, number: int) -> int:
        """Input 0 or 1 of the cell at the width of the cell; brought there at first use."""
        if not self._align:
            return number
        if number not in self._inputs:
            self._inputs[number] = self._make(ALIGN, (number,), f"input{number}")
        return self._inputs[number]

    def apply(self, operation: str, tensor: int | None, name: str, *, from_input: bool) -> int | None:
        """One operation of the table on one tensor; pools of one tensor are computed once."""
        if tensor is None or operation == NONE:
            return None
        stride = 2 if self.reduction and from_input else 1
        if operation == IDENTITY:
            if stride == 1:
                return tensor
            operation = REDUCE
        if operation in WEIGHTLESS:
            if (operation, tensor) not in self._pools:
                self._pools[operation, tensor] = self._make(operation, (tensor,), name, stride=stride)
            return self._pools[operation, tensor]
        return self._make(operation, (tensor,), name, stride=stride)

    def add(self, parts: Sequence[int | None]) -> int | None:
        """The sum of what is there."""
        there = [part for part in parts if part is not None]
        if not there:
            return None
        total = there[0]
        for part in there[1:]:
            total = self._make("add", (total, part), "")
        return total

    def concat_and_squeeze(self, first: int, second: int, name: str) -> int:
        """Both along channels, then back to the width of the cell."""
        both = self._make("concat", (first, second), "", width=2)
        return self._make(SQUEEZE, (both,), name)

    def finish(self, outputs: Sequence[int | None]) -> Program:
        """The output is the concatenation of the given tensors, in their order; a missing one is zeros."""
        tensors = []
        zeros: int | None = None
        for output in outputs:
            if output is None and zeros is None:
                zeros = self._make("zeros", (LAST,), "")
            tensors.append(zeros if output is None else output)
        complete = tuple(tensor for tensor in tensors if tensor is not None)
        if len(complete) > 1 or complete[0] != 1 + len(self._steps):
            # A cell whose output is an earlier tensor says so by a concatenation of one, which is no operation.
            self._make("concat", complete, "", width=len(complete))
        return Program(tuple(self._steps), len(complete), self.reduction)


@dataclass(frozen=True, slots=True)
class Frame:
    """Where a cell stands: its channels, and the height and width that it reads (of the last cell's output)."""

    channels: int
    size: Shape

    def output_size(self, reduction: bool) -> Shape:
        return tuple((side - 1) // 2 + 1 for side in self.size) if reduction else self.size

    def fitted(self, step: Step, source: Shape) -> tuple[str, int]:
        """An input of the cell that is larger than what it reads is halved by a factorised reduction."""
        if step.operation == ALIGN and source[1:] != self.size:
            return REDUCE, 2
        return step.operation, step.stride


def emit(
    program: Program,
    graph: GraphBuilder,
    before_last: int | None,
    last: int | None,
    frame: Frame,
    name: str,
    drop_path: float = 1.0,
) -> int:
    """Appends the operations of a cell to a graph.

    Args:
        before_last, last: nodes of the outputs of the two cells before; None where the program does not read it.
        drop_path: fraction of the scheduled drop path probability that the operations of this cell get.

    Returns:
        the node of the cell's output.
    """
    tensors = {tensor: node for tensor, node in ((BEFORE_LAST, before_last), (LAST, last)) if node is not None}
    size = frame.output_size(program.reduction)
    for step in program.steps:
        sources = [tensors[source] for source in step.sources]
        if step.operation == "add":
            node = graph.add(sources)
        elif step.operation == "concat":
            node = graph.concat(sources)
        elif step.operation == "zeros":
            node = graph.zeros(sources[0], (frame.channels, *size))
        else:
            operation, stride = frame.fitted(step, graph.shape(sources[0]))
            node = OPERATIONS[operation](graph, sources[0], frame.channels, stride, f"{name}.{step.name}")
            if step.operation not in (ALIGN, SQUEEZE):
                graph.drop_path(node, drop_path)
        tensors[step.result] = node
    return tensors[program.output]


@lru_cache(maxsize=4096)
def _entry(operation: str, shape: Shape, channels: int, stride: int) -> tuple[int, int, Shape, int, int]:
    """MACs, parameters, output shape, and the peak bytes where the source is kept and where it may be freed."""
    graph = GraphBuilder(shape)
    node = OPERATIONS[operation](graph, graph.input, channels, stride, "operation")
    cost = cost_of(graph.finish({"result": node}, {}))
    kept = peak_bytes_of(graph.finish({"result": node, "source": graph.input}, {}))
    return cost.macs, cost.params, graph.shape(node), kept, cost.peak_bytes


@dataclass(frozen=True, slots=True)
class CellCost:
    """MACs and parameters of a cell, the peak of bytes while it runs, and the shape of its output."""

    macs: int
    params: int
    peak_bytes: int
    shape: Shape


def cost(
    program: Program, before_last: Shape | None, last: Shape | None, frame: Frame, *, same: bool, keep_last: bool
) -> CellCost:
    """What `emit` would cost, from a table of operations: no graph is made.

    Args:
        before_last, last: shapes of the outputs of the two cells before; None where the program does not read it.
        same: both are one tensor (the stem, before the first cell).
        keep_last: the next cell reads `last` too.
    """
    alias = {BEFORE_LAST: LAST} if same else {}
    last_use: dict[int, int] = {}
    for position, step in enumerate(program.steps):
        for source in step.sources:
            last_use[alias.get(source, source)] = position
    if keep_last:
        last_use[LAST] = len(program.steps)
    last_use[program.output] = len(program.steps)
    given = {BEFORE_LAST: before_last, LAST: last}
    shapes: dict[int, Shape] = {
        tensor: shape for tensor, shape in given.items() if tensor in last_use and shape is not None
    }
    bytes_of = {tensor: prod(shape) * BYTES_PER_ELEMENT for tensor, shape in shapes.items()}
    live = peak = sum(bytes_of.values())
    size = frame.output_size(program.reduction)
    macs = params = 0
    for position, step in enumerate(program.steps):
        sources = [alias.get(source, source) for source in step.sources]
        if step.operation == "concat" and len(sources) == 1:
            # The output is an earlier tensor under another number, and stays.
            shapes[step.result] = shapes[sources[0]]
            continue
        if step.operation in ("add", "concat", "zeros"):
            shape: Shape = (frame.channels * step.width, *size)
            made = prod(shape) * BYTES_PER_ELEMENT
            peak = max(peak, live + made)
        else:
            source = sources[0]
            operation, stride = frame.fitted(step, shapes[source])
            step_macs, step_params, shape, kept, freed = _entry(operation, shapes[source], frame.channels, stride)
            macs += step_macs
            params += step_params
            made = prod(shape) * BYTES_PER_ELEMENT
            peak = max(peak, live - bytes_of[source] + (freed if last_use[source] == position else kept))
        shapes[step.result] = shape
        bytes_of[step.result] = made
        live += made
        for tensor in {*sources, step.result}:
            if last_use.get(tensor, position) == position:
                live -= bytes_of[tensor]
    return CellCost(macs, params, peak, shapes[program.output])
