"""The cell space of NASNet (Zoph et al., "Learning Transferable Architectures", 2018).

A cell is a row of blocks. A block takes two earlier tensors (outputs of the two cells before, or earlier blocks; the
same one twice is allowed), applies an operation to each, and adds or concatenates the results; a concatenation is
brought back to the width of the cell by a 1x1 convolution. Blocks that no later block reads are concatenated to the
output of the cell. "N @ F" of the paper is `cells: N` and F channels after the last cell.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any

from nasplat.core.architecture import Architecture
from nasplat.core.choice import Choice, Option, Values
from nasplat.core.cost import Cost
from nasplat.core.drawing import Drawing, Edge, Node, kind_of
from nasplat.core.errors import NasplatError
from nasplat.core.graph import OperationGraph
from nasplat.core.problem import Problem
from nasplat.core.space import SearchSpace
from nasplat.spaces import cell_network
from nasplat.spaces.cell_network import NORMAL, REDUCTION, Stack
from nasplat.spaces.cell_operations import IDENTITY, NONE, WEIGHTLESS, check_operations
from nasplat.spaces.cell_program import Program, ProgramBuilder
from nasplat.spaces.cell_terms import Sum, Terms, minus, plus

if TYPE_CHECKING:
    from torch import nn

OPERATIONS = (
    "skip_connect",
    "conv_1x3_3x1",
    "conv_1x7_7x1",
    "dilated_3x3",
    "avg_pool_3x3",
    "max_pool_3x3",
    "max_pool_5x5",
    "max_pool_7x7",
    "conv_1x1",
    "conv_3x3",
    "sep_conv_3x3",
    "sep_conv_5x5",
    "sep_conv_7x7",
)
COMBINERS = ("add", "concat")

# (source, index of operation) of both edges, and the index of the combiner.
Block = tuple[tuple[int, int], tuple[int, int], int]


class NasnetSpace(SearchSpace):
    """Normal and reduction cells of `blocks` blocks, stacked.

    Args:
        problem: what is to be learned.
        operations: what is applied to a tensor that a block reads.
        combiners: `add`, `concat` or both.
        blocks: in a cell.
        cells: normal cells a stage: a number for each of three stages, or a list.
        channels: of the first cell.
        stem_multiplier: channels of the stem, in multiples of `channels`.
    """

    def __init__(
        self,
        problem: Problem,
        *,
        operations: tuple[str, ...] = OPERATIONS,
        combiners: tuple[str, ...] = COMBINERS,
        blocks: int = 5,
        cells: int | tuple[int, ...] = 2,
        channels: int = 16,
        stem_multiplier: int = 3,
    ) -> None:
        if blocks < 1:
            raise NasplatError(f"blocks: {blocks}; a cell needs at least one")
        if NONE in operations:
            raise NasplatError("a block of nasnet always reads two tensors: 'none' is no operation here")
        if not combiners or set(combiners) - set(COMBINERS):
            raise NasplatError(f"combiners: {list(combiners)}", f"the known ones are {', '.join(COMBINERS)}")
        self.problem = problem
        self.blocks = blocks
        self.operations = check_operations(tuple(operations))
        self.combiners = tuple(combiners)
        self.stack = Stack.of(cells, channels, stem_multiplier=stem_multiplier, final_relu=True, deeper_drops_more=True)
        self.kinds = tuple(kind for kind in (NORMAL, REDUCTION) if kind in self.stack.kinds)
        self.identity: Mapping[str, Any] = {
            "family": "nasnet",
            "operations": list(self.operations),
            "combiners": list(self.combiners),
            "blocks": blocks,
            "cells": list(self.stack.cells),
            "channels": channels,
            "stem_multiplier": stem_multiplier,
            "problem": problem.to_json(),
        }

    @cached_property
    def choices(self) -> Mapping[str, Choice]:  # type: ignore[override]
        choices: list[Choice] = []
        for kind in self.kinds:
            for block in range(self.blocks):
                for edge in (1, 2):
                    choices.append(Choice(f"{kind}_block{block}_input{edge}", tuple(range(block + 2))))
                    choices.append(Choice(f"{kind}_block{block}_op{edge}", self.operations))
                choices.append(Choice(f"{kind}_block{block}_combine", self.combiners))
        return {choice.name: choice for choice in choices}

    def settle(self, values: Values) -> Values:
        settled: dict[str, Option] = {}
        for kind in self.kinds:
            for number, (first, second, combiner) in enumerate(self._settle_cell(kind, self._read(kind, values))):
                for edge, (source, operation) in enumerate((first, second), start=1):
                    settled[f"{kind}_block{number}_input{edge}"] = source
                    settled[f"{kind}_block{number}_op{edge}"] = self.operations[operation]
                settled[f"{kind}_block{number}_combine"] = self.combiners[combiner]
        return settled

    def _read(self, kind: str, values: Values) -> list[Block]:
        blocks: list[Block] = []
        for number in range(self.blocks):
            edges = [
                (int(values[f"{kind}_block{number}_input{edge}"]), self._operation(kind, number, edge, values))
                for edge in (1, 2)
            ]
            combiner = self.combiners.index(str(values[f"{kind}_block{number}_combine"]))
            blocks.append((edges[0], edges[1], combiner))
        return blocks

    def _operation(self, kind: str, number: int, edge: int, values: Values) -> int:
        return self.operations.index(str(values[f"{kind}_block{number}_op{edge}"]))

    def _settle_cell(self, kind: str, blocks: list[Block]) -> list[Block]:
        terms = Terms()
        tensors = [terms.input(0), terms.input(1)]
        for first, second, combiner in blocks:
            if self.combiners[combiner] == "add":
                parts = [self._apply(terms, kind, *edge, tensors) for edge in (first, second)]
                tensors.append(plus(*parts))
            else:
                (label, one), (other_label, two) = sorted(
                    ((self._label(kind, *edge), tensors[edge[0]]) for edge in (first, second)),
                    key=lambda edge: (edge[0], terms.key(edge[1]), edge[1]),
                )
                tensors.append(terms.new(f"concat {label} {other_label}", (one, two)))
        outputs = Counter(tensors[2 + number] for number in _unread(blocks))
        # Of all orders of the blocks that the network itself does not tell apart, the one with the smallest table.
        codes = (next(self._write(terms, kind, order, outputs, []), None) for order in terms.orders(tensors[2:]))
        return min(code for code in codes if code is not None)

    def _label(self, kind: str, source: int, operation: int) -> str:
        # What reads an input of a reduction cell has stride 2, and is another operation.
        return self.operations[operation] + ("/2" if kind == REDUCTION and source < 2 else "")

    def _apply(self, terms: Terms, kind: str, source: int, operation: int, tensors: list[Sum]) -> Sum:
        label = self._label(kind, source, operation)
        if label == IDENTITY:
            return tensors[source]
        return terms.apply(label, tensors[source], weightless=self.operations[operation] in WEIGHTLESS)

    def _write(
        self, terms: Terms, kind: str, order: tuple[Sum, ...], outputs: Counter[Sum], written: list[Block]
    ) -> Iterator[list[Block]]:
        """The tables whose blocks are the given sums in this order and whose outputs are right, smallest first."""
        if len(written) == len(order):
            if Counter(order[number] for number in _unread(written)) == outputs:
                yield written
            return
        tensors = [terms.input(0), terms.input(1), *order[: len(written)]]
        for block in self._writings(terms, kind, tensors, order[len(written)]):
            yield from self._write(terms, kind, order, outputs, [*written, block])

    def _writings(self, terms: Terms, kind: str, tensors: list[Sum], total: Sum) -> list[Block]:
        """Every block on the given tensors that is a sum, in order."""
        owned = {number for tensor in tensors for number in tensor}
        edges = [(source, operation) for source in range(len(tensors)) for operation in range(len(self.operations))]
        found: list[Block] = []
        for combiner, name in enumerate(self.combiners):
            if name == "add":
                parts = [
                    (edge, part) for edge in edges for part in self._parts(terms, kind, *edge, tensors, total, owned)
                ]
                found += [
                    (edge, other, combiner)
                    for edge, part in parts
                    for other, rest in parts
                    if edge <= other and minus(total, part) == rest
                ]
            elif len(total) == 1 and total[0] not in owned:
                term = terms.terms[total[0]]
                label = term.operation.removeprefix("concat ")
                if label == term.operation:
                    continue
                halves = [
                    [edge for edge in edges if (self._label(kind, *edge), tensors[edge[0]]) == (half, source)]
                    for half, source in zip(label.split(" "), term.sources, strict=True)
                ]
                pairs = {(min(one, two), max(one, two)) for one in halves[0] for two in halves[1]}
                found += [(one, two, combiner) for one, two in pairs]
        return sorted(set(found))

    def _parts(
        self, terms: Terms, kind: str, source: int, operation: int, tensors: list[Sum], total: Sum, owned: set[int]
    ) -> list[Sum]:
        """What one operation on one tensor can stand for within a sum."""
        label = self._label(kind, source, operation)
        if label == IDENTITY:
            return [tensors[source]] if minus(total, tensors[source]) is not None else []
        # A term with weights belongs to the first block that it stands in.
        shared = self.operations[operation] in WEIGHTLESS
        return [
            (number,)
            for number in sorted(set(total))
            if terms.terms[number].operation == label
            and terms.terms[number].sources == (tensors[source],)
            and (shared or number not in owned)
        ]

    def programs(self, values: Values) -> dict[str, Program]:
        """The steps of each kind of cell, as the values say them."""
        programs = {}
        for kind in self.kinds:
            builder = ProgramBuilder(reduction=kind == REDUCTION, align=True)
            blocks = self._read(kind, values)
            tensors: list[int] = []
            for number, (first, second, combiner) in enumerate(blocks):
                parts = []
                for edge, (source, operation) in enumerate((first, second), start=1):
                    tensor = builder.input(source) if source < 2 else tensors[source - 2]
                    name = f"block{number}.op{edge}"
                    part = builder.apply(self.operations[operation], tensor, name, from_input=source < 2)
                    assert part is not None  # there is no operation `none` here
                    parts.append(part)
                if self.combiners[combiner] == "add":
                    total = builder.add(parts)
                    assert total is not None
                    tensors.append(total)
                else:
                    tensors.append(builder.concat_and_squeeze(parts[0], parts[1], f"block{number}.squeeze"))
            programs[kind] = builder.finish([tensors[number] for number in _unread(blocks)])
        return programs

    def drawings(self, architecture: Architecture) -> dict[str, Drawing]:
        """Each kind of cell: blocks as boxes, operations on the arrows."""
        drawings = {}
        for kind in self.kinds:
            blocks = self._read(kind, architecture.values)
            nodes = [Node("0", "c[k-2]", "input"), Node("1", "c[k-1]", "input")]
            edges = []
            for number, (first, second, combiner) in enumerate(blocks, start=2):
                nodes.append(Node(str(number), self.combiners[combiner], "combine"))
                for source, operation in (first, second):
                    name = self.operations[operation]
                    edges.append(Edge(str(source), str(number), name.replace("_", " "), kind_of(name)))
            nodes.append(Node("output", "c[k]", "output"))
            edges += [Edge(str(number + 2), "output") for number in _unread(blocks)]
            drawings[kind] = Drawing(tuple(nodes), tuple(edges))
        return drawings

    def graph(self, architecture: Architecture) -> OperationGraph:
        return cell_network.graph(self.stack, self.programs(architecture.values), self.problem)

    def cost(self, architecture: Architecture) -> Cost:
        return cell_network.cost(self.stack, self.programs(architecture.values), self.problem)

    def build(self, architecture: Architecture) -> nn.Module:
        from nasplat.networks.graph_network import build_network

        return build_network(self.graph(architecture))


def _unread(blocks: list[Block]) -> list[int]:
    """Numbers of the blocks that no block reads."""
    read = {source - 2 for first, second, _ in blocks for source, _ in (first, second)}
    return [number for number in range(len(blocks)) if number not in read]
