"""The cell space of DARTS (Liu et al., 2019) with its predecessors encoded explicitly.

A cell has nodes in a row; each adds two operations on two different earlier tensors (the outputs of the two cells
before, or earlier nodes), and the cell's output is the concatenation of all nodes. A normal cell keeps height and
width, a reduction cell halves them.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache, cached_property
from itertools import combinations
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
from nasplat.spaces.cell_terms import ZERO, Sum, Terms, minus, plus

if TYPE_CHECKING:
    from torch import nn

OPERATIONS = (
    "none",
    "max_pool_3x3",
    "avg_pool_3x3",
    "skip_connect",
    "sep_conv_3x3",
    "sep_conv_5x5",
    "dil_conv_3x3",
    "dil_conv_5x5",
)


class DartsSpace(SearchSpace):
    """Normal and reduction cells of `nodes` nodes, stacked.

    Args:
        problem: what is to be learned.
        operations: what an edge can be; any of `cell_operations.OPERATIONS`, `none`, `skip_connect`.
        nodes: in a cell.
        cells: normal cells a stage: a number for each of three stages, or a list.
        channels: of the first cell.
        stem_multiplier: channels of the stem, in multiples of `channels`.
    """

    def __init__(
        self,
        problem: Problem,
        *,
        operations: tuple[str, ...] = OPERATIONS,
        nodes: int = 4,
        cells: int | tuple[int, ...] = 2,
        channels: int = 16,
        stem_multiplier: int = 3,
    ) -> None:
        if nodes < 1:
            raise NasplatError(f"nodes: {nodes}; a cell needs at least one")
        self.problem = problem
        self.nodes = nodes
        self.operations = check_operations(tuple(operations))
        self.stack = Stack.of(cells, channels, stem_multiplier=stem_multiplier)
        # A space without a reduction cell has no choices for one.
        self.kinds = tuple(kind for kind in (NORMAL, REDUCTION) if kind in self.stack.kinds)
        self.identity: Mapping[str, Any] = {
            "family": "darts",
            "operations": list(self.operations),
            "nodes": nodes,
            "cells": list(self.stack.cells),
            "channels": channels,
            "stem_multiplier": stem_multiplier,
            "problem": problem.to_json(),
        }

    @cached_property
    def choices(self) -> Mapping[str, Choice]:  # type: ignore[override]
        choices: list[Choice] = []
        for kind in self.kinds:
            for node in range(self.nodes):
                pairs = tuple(f"{a},{b}" for a, b in combinations(range(node + 2), 2))
                choices.append(Choice(f"{kind}_node{node}_inputs", pairs))
                choices += [Choice(f"{kind}_node{node}_op{edge}", self.operations) for edge in (1, 2)]
        return {choice.name: choice for choice in choices}

    def settle(self, values: Values) -> Values:
        settled: dict[str, Option] = {}
        for kind in self.kinds:
            settled.update(self._settle_cell(kind, values))
        return settled

    def _settle_cell(self, kind: str, values: Values) -> dict[str, Option]:
        terms = Terms()
        tensors = [terms.input(0), terms.input(1)]
        for edges in _edges(kind, values, self.nodes):
            tensors.append(plus(*(self._apply(terms, kind, name, tensors, source) for source, name in edges)))
        # Of all orders of the nodes that the network itself does not tell apart, the one with the smallest table.
        codes = (self._write(terms, kind, order) for order in terms.orders(tensors[2:]))
        code = min(code for code in codes if code is not None)
        settled: dict[str, Option] = {}
        for node, (pair, first, second) in enumerate(code):
            settled[f"{kind}_node{node}_inputs"] = self.choices[f"{kind}_node{node}_inputs"].options[pair]
            settled[f"{kind}_node{node}_op1"] = self.operations[first]
            settled[f"{kind}_node{node}_op2"] = self.operations[second]
        return settled

    @staticmethod
    def _label(kind: str, operation: str, source: int) -> str:
        # What reads an input of a reduction cell has stride 2, and is another operation.
        return f"{operation}/2" if kind == REDUCTION and source < 2 else operation

    def _apply(self, terms: Terms, kind: str, operation: str, tensors: list[Sum], source: int) -> Sum:
        label = self._label(kind, operation, source)
        if operation == NONE:
            return ZERO
        if label == IDENTITY:
            return tensors[source]
        return terms.apply(label, tensors[source], weightless=operation in WEIGHTLESS)

    def _write(self, terms: Terms, kind: str, order: tuple[Sum, ...]) -> list[tuple[int, int, int]] | None:
        """The smallest table whose nodes are the given sums in this order, or None where there is none."""
        tensors = [terms.input(0), terms.input(1)]
        owned: set[int] = set()
        code = []
        for total in order:
            parts = [self._parts(terms, kind, tensors, source, total, owned) for source in range(len(tensors))]
            found = None
            for pair, (a, b) in enumerate(combinations(range(len(tensors)), 2)):
                for first, part in parts[a]:
                    rest = minus(total, part)
                    for second, other in parts[b]:
                        if rest == other:
                            found = (pair, first, second)
                            break
                    if found:
                        break
                if found:
                    break
            if found is None:
                return None
            code.append(found)
            tensors.append(total)
            owned.update(total)
        return code

    def _parts(
        self, terms: Terms, kind: str, tensors: list[Sum], source: int, total: Sum, owned: set[int]
    ) -> list[tuple[int, Sum]]:
        """Every operation on one tensor whose result is a part of a sum, with that part."""
        parts: list[tuple[int, Sum]] = []
        for index, operation in enumerate(self.operations):
            label = self._label(kind, operation, source)
            if operation == NONE or not tensors[source]:
                parts.append((index, ZERO))
            elif label == IDENTITY:
                if minus(total, tensors[source]) is not None:
                    parts.append((index, tensors[source]))
            else:
                # A term with weights belongs to the first node that it stands in.
                shared = operation in WEIGHTLESS
                for number in sorted(set(total)):
                    term = terms.terms[number]
                    if (
                        term.operation == label
                        and term.sources == (tensors[source],)
                        and (shared or number not in owned)
                    ):
                        parts.append((index, (number,)))
        return parts

    def programs(self, values: Values) -> dict[str, Program]:
        """The steps of each kind of cell, as the values say them."""
        programs = {}
        for kind in self.kinds:
            builder = ProgramBuilder(reduction=kind == REDUCTION, align=True)
            nodes = self.append_nodes(builder, kind, values)
            programs[kind] = builder.finish(nodes)
        return programs

    def append_nodes(self, builder: ProgramBuilder, kind: str, values: Values) -> list[int | None]:
        """The steps of all nodes of a cell; None for a node that is the sum of nothing."""
        nodes: list[int | None] = []
        for number, edges in enumerate(_edges(kind, values, self.nodes)):
            parts = []
            for edge, (source, operation) in enumerate(edges, start=1):
                if operation == NONE:
                    continue
                tensor = builder.input(source) if source < 2 else nodes[source - 2]
                parts.append(builder.apply(operation, tensor, f"node{number}.op{edge}", from_input=source < 2))
            nodes.append(builder.add(parts))
        return nodes

    def drawings(self, architecture: Architecture) -> dict[str, Drawing]:
        """Each kind of cell: nodes as boxes, operations on the arrows."""
        drawings = {}
        for kind in self.kinds:
            nodes = [Node("0", "c[k-2]", "input"), Node("1", "c[k-1]", "input")]
            edges = []
            for number, table in enumerate(_edges(kind, architecture.values, self.nodes), start=2):
                nodes.append(Node(str(number), str(number - 2), "combine"))
                edges += [
                    Edge(str(source), str(number), operation.replace("_", " "), kind_of(operation))
                    for source, operation in table
                    if operation != NONE
                ]
                edges.append(Edge(str(number), "output"))
            nodes.append(Node("output", "c[k]", "output"))
            drawings[kind] = Drawing(tuple(nodes), tuple(edges))
        return drawings

    def graph(self, architecture: Architecture) -> OperationGraph:
        return cell_network.graph(self.stack, self.programs(architecture.values), self.problem)

    def cost(self, architecture: Architecture) -> Cost:
        return cell_network.cost(self.stack, self.programs(architecture.values), self.problem)

    def build(self, architecture: Architecture) -> nn.Module:
        from nasplat.networks.graph_network import build_network

        return build_network(self.graph(architecture))


def _edges(kind: str, values: Values, nodes: int) -> list[list[tuple[int, str]]]:
    """For every node its two (source, operation)."""
    table = []
    for inputs, first, second in _names(kind, nodes):
        one, two = _pair(values[inputs])
        table.append([(one, values[first]), (two, values[second])])
    return table  # type: ignore[return-value]


@cache
def _names(kind: str, nodes: int) -> list[tuple[str, str, str]]:
    """Of the choices of every node."""
    return [tuple(f"{kind}_node{node}_{part}" for part in ("inputs", "op1", "op2")) for node in range(nodes)]  # type: ignore[misc]


@cache
def _pair(inputs: str) -> tuple[int, int]:
    first, second = inputs.split(",")
    return int(first), int(second)
