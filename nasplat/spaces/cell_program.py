"""A cell as the steps that compute it, from which come both its operation graph and, without one, its cost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import prod
from typing import NamedTuple

from nasplat.core.cost import BYTES_PER_ELEMENT, cost_of, peak_bytes_of
from nasplat.core.graph import GraphBuilder, Shape
from nasplat.spaces.cell_operations import ALIGN, IDENTITY, NONE, OPERATIONS, REDUCE, SQUEEZE, WEIGHTLESS

# Tensors of a program: the outputs of the two cells before come first; what the steps make follows.
BEFORE_LAST, LAST = 0, 1


class Step(NamedTuple):
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


class Frame(NamedTuple):
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
    *,
    drop_path: float = 1.0,
    drops_strided_identity: bool = True,
) -> int:
    """Appends the operations of a cell to a graph.

    Args:
        before_last, last: nodes of the outputs of the two cells before; None where the program does not read it.
        drop_path: fraction of the scheduled drop path probability that the operations of this cell get.
        drops_strided_identity: whether those that stand for the identity in a reduction cell get it too.

    Returns:
        the node of the cell's output.
    """
    tensors = {tensor: node for tensor, node in ((BEFORE_LAST, before_last), (LAST, last)) if node is not None}
    size = frame.output_size(program.reduction)
    undropped = {ALIGN, SQUEEZE} if drops_strided_identity else {ALIGN, SQUEEZE, REDUCE}
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
            if step.operation not in undropped:
                graph.drop_path(node, drop_path)
        tensors[step.result] = node
    return tensors[program.output]


class Entry(NamedTuple):
    """MACs, parameters, output shape, and the peak bytes besides the source where it is kept and where it is freed."""

    macs: int
    params: int
    shape: Shape
    kept: int
    freed: int


@lru_cache(maxsize=16384)
def _entry(operation: str, source: Shape, channels: int, stride: int) -> Entry:
    graph = GraphBuilder(source)
    node = OPERATIONS[operation](graph, graph.input, channels, stride, "operation")
    cost = cost_of(graph.finish({"result": node}, {}))
    kept = peak_bytes_of(graph.finish({"result": node, "source": graph.input}, {}))
    size = prod(source) * BYTES_PER_ELEMENT
    return Entry(cost.macs, cost.params, graph.shape(node), kept - size, cost.peak_bytes - size)


# A step of a plan, as a tuple that is quick to take apart:
#   what its cost in a frame depends on (operation, stride, width of the source, whether that is wide) unless it reads
#     an input of the cell; None for sums, concatenations and zeros,
#   the source, and whether nothing reads it later,
#   width of the result in multiples of the channels of the cell, and whether it is wide,
#   summed widths of the tensors that are freed, the wide ones apart, and the inputs of the cell among them.
# Tensors made in a cell have one of two sizes: wide ones have the height and width that the cell reads, the others
# those of its output; they are the same but in a reduction cell.
Key = tuple[str, int, int, bool]
_Planned = tuple[Key | None, int, bool, int, bool, int, int, tuple[int, ...]]


class Plan(NamedTuple):
    """How a program runs, wherever its cell stands: its steps, the inputs that it reads, its output."""

    steps: list[_Planned]
    inputs: tuple[int, ...]
    output: int
    output_width: int
    output_wide: bool


def plan(program: Program) -> Plan:
    """What each step frees, and of which size tensors are."""
    steps = program.steps
    last_use: dict[int, int] = {}
    for position, step in enumerate(steps):
        for source in step.sources:
            last_use[source] = position
    output = program.output
    if steps and steps[-1].operation == "concat" and len(steps[-1].sources) == 1:
        # The output is an earlier tensor under another number, and stays.
        output = steps[-1].sources[0]
    last_use[output] = len(steps)
    widths = [0, 0]
    wide_ones = [False, False]
    planned: list[_Planned] = []
    for position, (operation, sources, result, _, width, stride) in enumerate(steps):
        if operation == "concat" and len(sources) == 1:
            continue
        wide = operation == ALIGN
        widths.append(width)
        wide_ones.append(wide)
        frees = frees_wide = 0
        frees_inputs: tuple[int, ...] = ()
        for tensor in sources if len(sources) == 1 else set(sources):
            if last_use[tensor] == position:
                if tensor < 2:
                    frees_inputs += (tensor,)
                elif wide_ones[tensor]:
                    frees_wide += widths[tensor]
                else:
                    frees += widths[tensor]
        if result not in last_use:  # nothing reads it
            frees, frees_wide = (frees, frees_wide + width) if wide else (frees + width, frees_wide)
        source = sources[0]
        key = None if operation in _PLAIN else (operation, stride, widths[source], wide_ones[source])
        planned.append((key, source, last_use[source] == position, width, wide, frees, frees_wide, frees_inputs))
    inputs = tuple(tensor for tensor in (BEFORE_LAST, LAST) if tensor in last_use)
    return Plan(planned, inputs, output, widths[output], wide_ones[output])


_PLAIN = frozenset({"add", "concat", "zeros"})


class CellCost(NamedTuple):
    """MACs and parameters of a cell, the peak of bytes while it runs, and the shape of its output."""

    macs: int
    params: int
    peak_bytes: int
    shape: Shape


def cost(
    plan: Plan,
    before_last: Shape | None,
    last: Shape | None,
    frame: Frame,
    *,
    reduction: bool,
    same: bool,
    keep_last: bool,
) -> CellCost:
    """What `emit` would cost, from a table of operations: no graph is made.

    Args:
        before_last, last: shapes of the outputs of the two cells before; None where the program does not read it.
        same: both are one tensor (the stem, before the first cell).
        keep_last: the next cell reads `last` too.
    """
    given = (before_last, last)
    input_bytes = (_bytes(before_last), _bytes(last))
    table, wide_bytes, unit_bytes, output_size = _place(frame, reduction)
    channels, size = frame
    # How many still read each input: the stem goes when both names of it are done with.
    readers = [0, 0]
    for tensor in plan.inputs:
        readers[LAST if same else tensor] += 1
    readers[LAST] += keep_last
    live = peak = (input_bytes[0] if readers[0] else 0) + (input_bytes[1] if readers[1] else 0)
    macs = params = 0
    for key, source, is_last, width, wide, frees, frees_wide, frees_inputs in plan.steps:
        made = width * (wide_bytes if wide else unit_bytes)
        if key is None:
            extra = made
        else:
            if source < 2:
                # An input that is larger than what the cell reads is halved by a factorised reduction.
                shape = given[source]
                assert shape is not None
                halved = key[0] == ALIGN and shape[1:] != size
                entry = _entry(REDUCE if halved else key[0], shape, channels, 2 if halved else key[1])
                is_last = is_last and readers[LAST if same else source] == 1
            elif (found := table.get(key)) is not None:
                entry = found
            else:
                shape = (channels * key[2], *(size if key[3] else output_size))
                entry = table[key] = _entry(key[0], shape, channels, key[1])
            macs += entry[0]
            params += entry[1]
            extra = entry[4] if is_last else entry[3]
        if live + extra > peak:
            peak = live + extra
        live += made - frees * unit_bytes - frees_wide * wide_bytes
        for tensor in frees_inputs:
            name = LAST if same else tensor
            readers[name] -= 1
            if not readers[name]:
                live -= input_bytes[name]
    if plan.output < 2:
        shape = given[plan.output]
        assert shape is not None
        return CellCost(macs, params, peak, shape)
    return CellCost(macs, params, peak, (channels * plan.output_width, *(size if plan.output_wide else output_size)))


@lru_cache(maxsize=4096)
def _place(frame: Frame, reduction: bool) -> tuple[dict[Key, Entry], int, int, Shape]:
    """The costs of operations on tensors made in a cell there (filled as they are met), the bytes of a wide tensor and
    of another one of the cell's channels, and height and width of the cell's output."""
    output_size = frame.output_size(reduction)
    return {}, _bytes((frame.channels, *frame.size)), _bytes((frame.channels, *output_size)), output_size


@lru_cache(maxsize=4096)
def _bytes(shape: Shape | None) -> int:
    return 0 if shape is None else prod(shape) * BYTES_PER_ELEMENT
