"""The cell space of NASNet (Zoph et al., "Learning Transferable Architectures", 2018).

A cell is a row of blocks. A block takes two earlier tensors (outputs of the two cells before, or earlier blocks; the
same one twice is allowed), applies an operation to each, and adds or concatenates the results; a concatenation is
brought back to the width of the cell by a 1x1 convolution. Tensors that no block reads are concatenated to the output
of the cell: blocks, and the inputs of the cell, which a reduction cell halves on the way. "N @ F" of the paper is
`cells: N` and F channels after the last cell.

Two deviations from the authors' code: an identity of stride 2 is a factorised reduction, as in DARTS, where theirs is
ReLU, a 1x1 convolution of stride 2 and batch norm; and a tensor that a block reads is never concatenated, where theirs
concatenates an input of the normal cell of NASNet-A that its blocks read too.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from functools import cached_property
from itertools import combinations_with_replacement, product
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
from nasplat.spaces.cell_network import NASNET, NORMAL, REDUCTION, Stack
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
        self.stack = Stack.of(cells, channels, stem_multiplier=stem_multiplier, style=NASNET)
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
        table = self._smallest(terms, kind, Counter(tensors[number] for number in _unread(blocks)))
        assert table is not None  # the given one is there, if no smaller one
        return table

    def _label(self, kind: str, source: int, operation: int) -> str:
        # What reads an input of a reduction cell has stride 2, and is another operation.
        return self.operations[operation] + ("/2" if kind == REDUCTION and source < 2 else "")

    def _apply(self, terms: Terms, kind: str, source: int, operation: int, tensors: list[Sum]) -> Sum:
        label = self._label(kind, source, operation)
        if label == IDENTITY:
            return tensors[source]
        return terms.apply(label, tensors[source], weightless=self.operations[operation] in WEIGHTLESS)

    def _smallest(self, terms: Terms, kind: str, outputs: Counter[Sum]) -> list[Block] | None:
        """The smallest of all tables that make these terms and outputs."""
        inputs = (terms.input(0), terms.input(1))
        # Sums that some block must make; other blocks are steps on the way to these, which sums do not tell apart.
        needed = outputs + Counter({source for term in terms.terms for source in term.sources})
        del needed[inputs[0]], needed[inputs[1]]
        dead: set[tuple[tuple[Sum, bool], ...]] = set()

        def complete(written: list[Block], tensors: set[tuple[Sum, ...]]) -> list[Block] | None:
            """`tensors` is what inputs and written blocks can stand for: terms that are alike may change places."""
            left, unread = self.blocks - len(written), _unread(written)
            if len(unread) - left > outputs.total():
                return None  # a block reads two tensors and makes one: these are too many ends to bring together
            if not left:
                return (
                    written if any(Counter(made[number] for number in unread) == outputs for made in tensors) else None
                )
            # What can follow does not depend on the order of what is there.
            states = {made: tuple(sorted((made[n], n in unread) for n in range(len(made)))) for made in tensors}
            following: defaultdict[Block, set[tuple[Sum, ...]]] = defaultdict(set)
            for made, state in states.items():
                if state not in dead:
                    missing = needed - Counter(made)
                    spare = left > missing.total()
                    for block, total in self._blocks(terms, kind, made):
                        if total in missing or (spare and any(minus(other, total) is not None for other in needed)):
                            following[block].add((*made, total))
            for block in sorted(following):
                if table := complete([*written, block], following[block]):
                    return table
            dead.update(states.values())
            return None

        return complete([], {inputs})

    def _blocks(self, terms: Terms, kind: str, tensors: tuple[Sum, ...]) -> Iterator[tuple[Block, Sum]]:
        """Every block on the given tensors that makes nothing but these terms, and its sum."""
        # A term with weights belongs to the first block that it stands in.
        owned = {number for tensor in tensors for number in tensor}
        edges: defaultdict[tuple[str, Sum], list[tuple[int, int]]] = defaultdict(list)
        for source, tensor in enumerate(tensors):
            for operation in range(len(self.operations)):
                edges[self._label(kind, source, operation), tensor].append((source, operation))
        parts = [
            (edge, source, True) for (label, source), found in edges.items() if label == IDENTITY for edge in found
        ]
        for number, term in enumerate(terms.terms):
            if len(term.sources) == 1:
                for edge in edges.get((term.operation, term.sources[0]), ()):
                    shared = self.operations[edge[1]] in WEIGHTLESS
                    if shared or number not in owned:
                        parts.append((edge, (number,), shared))
            elif term.sources and number not in owned:
                _, *labels = term.operation.split(" ")
                one, two = (edges.get(half, ()) for half in zip(labels, term.sources, strict=True))
                for first, second in product(one, two):
                    yield (min(first, second), max(first, second), self.combiners.index("concat")), (number,)
        if "add" in self.combiners:
            for (first, part, shared), (second, other, _) in combinations_with_replacement(sorted(parts), 2):
                if shared or part != other:
                    yield (first, second, self.combiners.index("add")), plus(part, other)

    def programs(self, values: Values) -> dict[str, Program]:
        """The steps of each kind of cell, as the values say them."""
        programs = {}
        for kind in self.kinds:
            builder = ProgramBuilder(reduction=kind == REDUCTION, align=True)
            blocks = self._read(kind, values)
            tensors: list[int | None] = [builder.input(0), builder.input(1)]
            for number, (first, second, combiner) in enumerate(blocks):
                parts = []
                for edge, (source, operation) in enumerate((first, second), start=1):
                    name = f"block{number}.op{edge}"
                    part = builder.apply(self.operations[operation], tensors[source], name, from_input=source < 2)
                    assert part is not None  # there is no operation `none` here
                    parts.append(part)
                if self.combiners[combiner] == "add":
                    tensors.append(builder.add(parts))
                else:
                    tensors.append(builder.concat_and_squeeze(parts[0], parts[1], f"block{number}.squeeze"))
            outputs = [
                builder.apply(IDENTITY, tensors[number], f"unread{number}", from_input=True)
                if number < 2
                else tensors[number]
                for number in _unread(blocks)
            ]
            programs[kind] = builder.finish(outputs)
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
            passed = (IDENTITY.replace("_", " "), kind_of(IDENTITY))
            edges += [Edge(str(number), "output", *(passed if number < 2 else ())) for number in _unread(blocks)]
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
    """The tensors that no block reads: inputs of the cell are 0 and 1, blocks follow."""
    read = {source for first, second, _ in blocks for source, _ in (first, second)}
    return [number for number in range(2 + len(blocks)) if number not in read]
