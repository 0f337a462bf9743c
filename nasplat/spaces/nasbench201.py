"""The cell space of NAS-Bench-201 (Dong and Yang, 2020).

Four nodes in a row; each edge from an earlier to a later node carries one operation, and a node is the sum of its
edges. Node 0 is the input of the cell, node 3 its output. Three stages of cells, with a residual block of stride 2
between two stages.

Of the 15,625 tables 5,260 are distinct networks by the rewriting of `cell_terms`. (The string rule of the benchmark's
authors counts 6,466; 430 of its classes hold networks with different numbers of convolutions.)
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property, lru_cache
from itertools import product
from typing import TYPE_CHECKING, Any

from nasplat.core.architecture import Architecture
from nasplat.core.choice import Choice, Option, Values
from nasplat.core.cost import Cost, cost_of
from nasplat.core.drawing import Drawing, Edge, Node, kind_of
from nasplat.core.errors import NasplatError
from nasplat.core.graph import GraphBuilder, OperationGraph, Shape
from nasplat.core.problem import Problem
from nasplat.core.space import SearchSpace
from nasplat.spaces import cell_program
from nasplat.spaces.cell_network import NORMAL, Stack
from nasplat.spaces.cell_operations import IDENTITY, NONE, WEIGHTLESS, check_operations
from nasplat.spaces.cell_program import LAST, Frame, Program, ProgramBuilder
from nasplat.spaces.cell_terms import Sum, Terms, plus
from nasplat.spaces.heads import finish_with_heads

if TYPE_CHECKING:
    from torch import nn

OPERATIONS = ("none", "skip_connect", "conv_1x1", "conv_3x3", "avg_pool_3x3")
NODES = 4
EDGES = tuple((source, target) for target in range(1, NODES) for source in range(target))
CHANNELS = "channels"


class NasBench201Space(SearchSpace):
    """One cell of six edges, stacked.

    Args:
        problem: what is to be learned.
        operations: what an edge can be.
        cells: a stage: a number for each of three stages, or a list. The benchmark has 5.
        channels: of the first stage; each stage doubles them. The benchmark has 16. A list of several makes them a
            choice, so that a supernet holds the networks of all widths, the narrower ones within the wider.
    """

    def __init__(
        self,
        problem: Problem,
        *,
        operations: tuple[str, ...] = OPERATIONS,
        cells: int | tuple[int, ...] = 5,
        channels: int | Sequence[int] = 16,
    ) -> None:
        self.problem = problem
        self.operations = check_operations(tuple(operations))
        if len(self.operations) ** len(EDGES) > 300_000:
            raise NasplatError(f"operations: {len(self.operations)} are too many for six edges", "list at most eight")
        widths = (channels,) if isinstance(channels, int) else tuple(channels)
        if not widths:
            raise NasplatError("channels: an empty list makes no network", "give a number, or several to choose from")
        self.stacks = {width: Stack.of(cells, width, stem_multiplier=1) for width in widths}
        self._first_width = widths[0]
        table = [Choice(_name(edge), self.operations) for edge in EDGES]
        if len(widths) > 1:
            table.append(Choice(CHANNELS, widths, ordered=True))
        self.choices: Mapping[str, Choice] = {choice.name: choice for choice in table}
        self.identity: Mapping[str, Any] = {
            "family": "nasbench201",
            "operations": list(self.operations),
            "cells": list(self.stacks[self._first_width].cells),
            "channels": list(widths) if len(widths) > 1 else widths[0],
            "problem": problem.to_json(),
        }

    def settle(self, values: Values) -> Values:
        chosen = tuple(str(values[_name(edge)]) for edge in EDGES)
        settled = _first_of_class(self.operations)[canonical_form(chosen)]
        cell = {_name(edge): operation for edge, operation in zip(EDGES, settled, strict=True)}
        return {name: cell.get(name, values[name]) for name in self.choices}

    def enumerate(self) -> Iterator[Architecture]:
        for chosen in _first_of_class(self.operations).values():
            for width in self.stacks:
                values: dict[str, Option] = dict(zip(map(_name, EDGES), chosen, strict=True))
                values[CHANNELS] = width
                yield Architecture(self.fingerprint, {name: values[name] for name in self.choices})

    def stack_of(self, values: Values) -> Stack:
        """The stack of the width that values choose."""
        return self.stacks[int(values.get(CHANNELS, self._first_width))]

    @cached_property
    def _stems(self) -> dict[int, tuple[Cost, Shape]]:
        return {width: self._stem(width) for width in self.stacks}

    def _stem(self, channels: int) -> tuple[Cost, Shape]:
        builder = GraphBuilder(self.problem.input_shape)
        node = _emit_stem(builder, channels)
        return cost_of(builder.finish({"stem": node}, {})), builder.shape(node)

    def program(self, values: Values) -> Program:
        """The steps of the cell. Edges from which no way leads to the output are left out."""
        live = _live_nodes([values[_name(edge)] != NONE for edge in EDGES])
        builder = ProgramBuilder(reduction=False, align=False)
        nodes: list[int | None] = [builder.input(LAST)]
        for target in range(1, NODES):
            parts = [
                builder.apply(
                    str(values[_name((source, target))]), nodes[source], _name((source, target)), from_input=False
                )
                for source in range(target)
                if target in live
            ]
            nodes.append(builder.add(parts))
        return builder.finish([nodes[-1]])

    def drawings(self, architecture: Architecture) -> dict[str, Drawing]:
        """The cell: nodes as boxes, operations on the arrows."""
        labels = [("input", "input"), *((str(node), "combine") for node in range(1, NODES - 1)), ("output", "output")]
        nodes = [Node(str(number), label, kind) for number, (label, kind) in enumerate(labels)]
        edges = [
            Edge(str(source), str(target), operation.replace("_", " "), kind_of(operation))
            for source, target in EDGES
            if (operation := str(architecture.values[_name((source, target))])) != NONE
        ]
        return {"cell": Drawing(tuple(nodes), tuple(edges))}

    def graph(self, architecture: Architecture) -> OperationGraph:
        program, stack = self.program(architecture.values), self.stack_of(architecture.values)
        builder = GraphBuilder(self.problem.input_shape)
        node = _emit_stem(builder, stack.channels)
        taps: dict[str, int] = {}
        channels = stack.channels
        for position, kind in enumerate(stack.kinds):
            if kind == NORMAL:
                frame = Frame(channels, builder.shape(node)[1:])
                node = cell_program.emit(program, builder, None, node, frame, f"cells.{position}")
            else:
                channels *= 2
                node = _residual_reduction(builder, node, channels, f"cells.{position}")
                taps["auxiliary"] = node
        return _finish(builder, node, self.problem, taps)

    def cost(self, architecture: Architecture) -> Cost:
        plan = cell_program.plan(self.program(architecture.values))
        stack = self.stack_of(architecture.values)
        channels = stack.channels
        stem, shape = self._stems[channels]
        macs, params, peak = stem.macs, stem.params, stem.peak_bytes
        for stage, count in enumerate(stack.cells):
            if stage > 0:
                channels *= 2
                reduction, shape = _reduction_cost(shape, channels)
                macs, params = macs + reduction.macs, params + reduction.params
                peak = max(peak, reduction.peak_bytes)
            if count:
                frame = Frame(channels, shape[1:])
                cell = cell_program.cost(plan, None, shape, frame, reduction=False, same=False, keep_last=False)
                macs, params = macs + count * cell.macs, params + count * cell.params
                peak = max(peak, cell.peak_bytes)
        head = _head_cost(shape, self.problem)
        return Cost(macs + head.macs, params + head.params, max(peak, head.peak_bytes))

    def build(self, architecture: Architecture) -> nn.Module:
        from nasplat.networks.graph_network import build_network

        return build_network(self.graph(architecture))


def _emit_stem(builder: GraphBuilder, channels: int) -> int:
    node = builder.conv2d(builder.input, channels, 3, name="stem.conv")
    return builder.batch_norm(node, name="stem.norm")


def _name(edge: tuple[int, int]) -> str:
    return f"edge_{edge[0]}_{edge[1]}"


def _live_nodes(there: Sequence[bool]) -> set[int]:
    """Nodes that the output reads, given which edges are there."""
    live = {NODES - 1}
    for edge, present in sorted(zip(EDGES, there, strict=True), reverse=True, key=lambda item: item[0][1]):
        if present and edge[1] in live:
            live.add(edge[0])
    return live


def canonical_form(operations: Sequence[str]) -> tuple[Any, ...]:
    """The cell with the given operation on each of `EDGES`, as terms: equal for equal networks."""
    terms = Terms()
    nodes: list[Sum] = [terms.input(0)]
    chosen = dict(zip(EDGES, operations, strict=True))
    for target in range(1, NODES):
        parts = []
        for source in range(target):
            operation = chosen[source, target]
            if operation == IDENTITY:
                parts.append(nodes[source])
            elif operation != NONE:
                parts.append(terms.apply(operation, nodes[source], weightless=operation in WEIGHTLESS))
        nodes.append(plus(*parts))
    return terms.canonical_form([nodes[-1]])


@lru_cache(maxsize=8)
def _first_of_class(operations: tuple[str, ...]) -> dict[tuple[Any, ...], tuple[str, ...]]:
    """For every network the first table that stands for it: half a second, once a process."""
    first: dict[tuple[Any, ...], tuple[str, ...]] = {}
    for chosen in product(operations, repeat=len(EDGES)):
        first.setdefault(canonical_form(chosen), chosen)
    return first


def _residual_reduction(builder: GraphBuilder, node: int, channels: int, name: str) -> int:
    """A basic residual block of stride 2 (He et al., 2016), its shortcut pooled and projected.

    Images of odd size are pooled by 3x3 instead of 2x2, which leaves the size that the convolution leaves.
    """
    even = all(side % 2 == 0 for side in builder.shape(node)[1:])
    shortcut = builder.pool(node, "avg_pool", 2 if even else 3, 2)
    shortcut = builder.conv2d(shortcut, channels, name=f"{name}.shortcut")
    for position, stride in enumerate((2, 1)):
        node = builder.conv2d(builder.activation(node), channels, 3, name=f"{name}.{position}.conv", stride=stride)
        node = builder.batch_norm(node, name=f"{name}.{position}.norm")
    return builder.add([shortcut, node])


@lru_cache(maxsize=256)
def _reduction_cost(shape: Shape, channels: int) -> tuple[Cost, Shape]:
    builder = GraphBuilder(shape)
    node = _residual_reduction(builder, builder.input, channels, "reduction")
    return cost_of(builder.finish({"reduction": node}, {})), builder.shape(node)


def _finish(builder: GraphBuilder, node: int, problem: Problem, taps: Mapping[str, int]) -> OperationGraph:
    node = builder.activation(builder.batch_norm(node, name="last.norm"))
    return finish_with_heads(builder, node, problem, taps)


@lru_cache(maxsize=256)
def _head_cost(shape: Shape, problem: Problem) -> Cost:
    builder = GraphBuilder(shape)
    return cost_of(_finish(builder, builder.input, problem, {}))
