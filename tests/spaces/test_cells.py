"""Cells of NASNet and DARTS: the same network has one name, and costs what its graph costs.

What a user would lose: trials spent on networks that were trained already, and wrong axes on the front.
"""

from __future__ import annotations

from collections import defaultdict
from itertools import permutations

import networkx
import numpy as np
import pytest
import torch
from torch import Tensor

from nasplat.core.choice import Option, Values
from nasplat.core.cost import cost_of
from nasplat.core.errors import NasplatError
from nasplat.core.problem import classification
from nasplat.spaces.darts import DartsSpace
from nasplat.spaces.nasnet import NasnetSpace
from tests.spaces.naive_cells import operate, total

PROBLEM = classification((3, 16, 16), 5)
SMALL = ("none", "skip_connect", "max_pool_3x3", "sep_conv_3x3")
WEIGHTLESS = {"max_pool_3x3", "avg_pool_3x3", "max_pool_5x5", "max_pool_7x7"}

Multiset = tuple[int, ...]


class Oracle:
    """The rewriting rules once more, as a graph for networkx: vertices are terms and sums, told apart by labels."""

    def __init__(self) -> None:
        self.graph = networkx.MultiDiGraph()
        self.pools: dict[object, int] = {}
        self.sums: dict[Multiset, str] = {}

    def term(self, label: str, *sources: Multiset, shared: bool = False, edge: object = None) -> Multiset:
        if shared and (label, sources) in self.pools:
            return (self.pools[label, sources],)
        number = self.graph.number_of_nodes()
        self.graph.add_node(number, label=label, edge=edge)
        for source in sources:
            self.graph.add_edge(self.vertex(source), number)
        if shared:
            self.pools[label, sources] = number
        return (number,)

    def vertex(self, total: Multiset) -> str:
        if total not in self.sums:
            name = f"sum{len(self.sums)}"
            self.sums[total] = name
            self.graph.add_node(name, label="sum")
            for number in total:
                self.graph.add_edge(number, name)
        return self.sums[total]

    def output(self, totals: list[Multiset]) -> networkx.MultiDiGraph:
        self.graph.add_node("output", label="output")
        for one in totals:
            self.graph.add_edge(self.vertex(one), "output")
        keep = networkx.ancestors(self.graph, "output") | {"output"}
        return self.graph.subgraph(keep).copy()


def darts_graph(values: Values, kind: str, nodes: int) -> networkx.MultiDiGraph:
    oracle = Oracle()
    tensors = [oracle.term("input0", shared=True), oracle.term("input1", shared=True)]
    for node in range(nodes):
        sources = [int(source) for source in str(values[f"{kind}_node{node}_inputs"]).split(",")]
        total: list[int] = []
        for edge, source in enumerate(sources, start=1):
            operation = str(values[f"{kind}_node{node}_op{edge}"])
            strided = kind == "reduction" and source < 2
            if operation == "none" or not tensors[source]:
                continue
            if operation == "skip_connect" and not strided:
                total += tensors[source]
            else:
                shared = operation in WEIGHTLESS
                total += oracle.term(f"{operation}{strided}", tensors[source], shared=shared, edge=(node, edge))
        tensors.append(tuple(sorted(total)))
    return oracle.output(tensors[2:])


def nasnet_graph(values: Values, kind: str, blocks: int) -> networkx.MultiDiGraph:
    oracle = Oracle()
    tensors = [oracle.term("input0", shared=True), oracle.term("input1", shared=True)]
    read = set()
    for block in range(blocks):
        parts = []
        for edge in (1, 2):
            source = int(values[f"{kind}_block{block}_input{edge}"])
            operation = str(values[f"{kind}_block{block}_op{edge}"])
            read.add(source)
            strided = kind == "reduction" and source < 2
            if operation == "skip_connect" and not strided:
                parts.append(tensors[source])
            else:
                shared = operation in WEIGHTLESS
                parts.append(oracle.term(f"{operation}{strided}", tensors[source], shared=shared, edge=(block, edge)))
        if values[f"{kind}_block{block}_combine"] == "add":
            tensors.append(tuple(sorted(parts[0] + parts[1])))
        else:
            tensors.append(oracle.term("concat", *parts, edge=(block, "squeeze")))
    return oracle.output([tensor for number, tensor in enumerate(tensors) if number >= 2 and number not in read])


def isomorphic(one: networkx.MultiDiGraph, two: networkx.MultiDiGraph) -> bool:
    return networkx.is_isomorphic(
        one,
        two,
        node_match=lambda a, b: a["label"] == b["label"],
        edge_match=lambda a, b: len(a) == len(b),
    )


def random_values(space: DartsSpace | NasnetSpace, rng: np.random.Generator) -> dict[str, Option]:
    return {name: choice.options[int(rng.integers(len(choice.options)))] for name, choice in space.choices.items()}


CASES = [
    pytest.param(
        DartsSpace(PROBLEM, operations=SMALL, nodes=2, cells=(1,), channels=4), darts_graph, "normal", 2, id="darts"
    ),
    pytest.param(
        DartsSpace(PROBLEM, operations=SMALL, nodes=2, cells=(0, 0), channels=4),
        darts_graph,
        "reduction",
        2,
        id="darts-reduction",
    ),
    pytest.param(
        NasnetSpace(PROBLEM, operations=("skip_connect", "max_pool_3x3", "conv_1x1"), blocks=2, cells=(1,), channels=4),
        nasnet_graph,
        "normal",
        2,
        id="nasnet",
    ),
]


@pytest.mark.parametrize(("space", "graph", "kind", "size"), CASES)
def test_one_digest_is_one_network_and_two_digests_are_two(space, graph, kind, size) -> None:
    """Against networkx, both ways: a merged pair would share a score, a split pair would be trained twice."""
    rng = np.random.default_rng(0)
    classes: dict[str, networkx.MultiDiGraph] = {}
    shapes: dict[tuple[int, int], list[str]] = {}
    for _ in range(250):
        values = random_values(space, rng)
        architecture = space.canonical(values)
        written = graph(values, kind, size)
        assert isomorphic(written, graph(architecture.values, kind, size)), values
        if architecture.digest in classes:
            assert isomorphic(written, classes[architecture.digest]), values
            continue
        shape = (written.number_of_nodes(), written.number_of_edges())
        for other in shapes.get(shape, []):
            assert not isomorphic(written, classes[other]), (values, other)
        classes[architecture.digest] = written
        shapes.setdefault(shape, []).append(architecture.digest)
    assert 50 < len(classes) < 250


@pytest.mark.parametrize("size", [3, 4])
def test_nodes_of_a_darts_cell_may_be_renumbered(size: int) -> None:
    """A raw table and the same cell with its nodes in another order have one digest."""
    space = DartsSpace(PROBLEM, nodes=size, cells=(1,), channels=4)
    rng = np.random.default_rng(size)
    moved = 0
    for _ in range(60):
        values = random_values(space, rng)
        digest = space.canonical(values).digest
        edges = [
            [
                (int(source), values[f"normal_node{node}_op{edge}"])
                for edge, source in enumerate(str(values[f"normal_node{node}_inputs"]).split(","), start=1)
            ]
            for node in range(size)
        ]
        for order in permutations(range(size)):
            place = {0: 0, 1: 1, **{2 + node: 2 + position for position, node in enumerate(order)}}
            renamed: dict[str, Option] = {}
            for position, node in enumerate(order):
                (a, first), (b, second) = sorted((place[source], operation) for source, operation in edges[node])
                renamed[f"normal_node{position}_inputs"] = f"{a},{b}"
                renamed[f"normal_node{position}_op1"] = first
                renamed[f"normal_node{position}_op2"] = second
            try:
                renumbered = space.canonical(renamed)
            except NasplatError:
                continue  # this order would read a node before it is there
            moved += order != tuple(range(size))
            assert renumbered.digest == digest, (values, order)
    assert moved > 50


def run_darts(values: Values, inputs: list[Tensor], weights: dict[object, Tensor]) -> list[Tensor | None]:
    """The nodes of a normal cell, run as the table says and nothing else."""
    tensors: list[Tensor | None] = list(inputs)
    for node in range(sum(name.endswith("_inputs") for name in values)):
        sources = [int(source) for source in str(values[f"normal_node{node}_inputs"]).split(",")]
        parts = [
            operate(str(values[f"normal_node{node}_op{edge}"]), tensors[source], (node, edge), weights)
            for edge, source in enumerate(sources, start=1)
        ]
        tensors.append(total(parts))
    return tensors[2:]


def run_nasnet(values: Values, inputs: list[Tensor], weights: dict[object, Tensor]) -> list[Tensor | None]:
    """The unread blocks of a normal cell, run as the table says and nothing else."""
    tensors: list[Tensor | None] = list(inputs)
    read = set()
    for block in range(sum(name.endswith("_combine") for name in values)):
        parts = []
        for edge in (1, 2):
            source = int(values[f"normal_block{block}_input{edge}"])
            read.add(source)
            operation = str(values[f"normal_block{block}_op{edge}"])
            parts.append(operate(operation, tensors[source], (block, edge), weights))
        if values[f"normal_block{block}_combine"] == "add":
            tensors.append(total(parts))
        else:
            # Which half comes first is a matter of the order of the squeeze's input channels; in a sum it is none.
            halves = [part for part in parts if part is not None]
            tensors.append(torch.tanh(weights[block, "squeeze"].mean() * (halves[0] + halves[1])))
    return [tensor for number, tensor in enumerate(tensors) if number >= 2 and number not in read]


@pytest.mark.parametrize(
    ("space", "graph", "run"),
    [
        pytest.param(
            DartsSpace(
                PROBLEM, operations=("none", "skip_connect", "max_pool_3x3", "conv_1x1"), cells=(1,), channels=4
            ),
            lambda values: darts_graph(values, "normal", 4),
            run_darts,
            id="darts",
        ),
        pytest.param(
            NasnetSpace(PROBLEM, operations=("skip_connect", "max_pool_3x3", "conv_1x1"), cells=(1,), channels=4),
            lambda values: nasnet_graph(values, "normal", 5),
            run_nasnet,
            id="nasnet",
        ),
    ],
)
def test_a_raw_table_and_its_canonical_one_run_naively_give_equal_outputs(space, graph, run) -> None:
    """Weights go from edge to edge, one to one; so both run equally many operations of each kind, and cost the same."""
    rng = np.random.default_rng(2)
    generator = torch.Generator().manual_seed(2)
    changed = 0
    for _ in range(60):
        values = random_values(space, rng)
        settled = space.canonical(values).values
        changed += dict(settled) != values
        matcher = networkx.isomorphism.MultiDiGraphMatcher(
            graph(values),
            graph(settled),
            node_match=lambda a, b: a["label"] == b["label"],
            edge_match=lambda a, b: len(a) == len(b),
        )
        assert matcher.is_isomorphic()
        raw, canonical = defaultdict(lambda: torch.zeros(3, 3, 1, 1).double()), {}
        for one, two in matcher.mapping.items():
            edge = matcher.G1.nodes[one].get("edge")
            if edge is not None:
                raw[edge] = torch.randn(3, 3, 1, 1, generator=generator, dtype=torch.float64)
                canonical[matcher.G2.nodes[two]["edge"]] = raw[edge]
        unused = defaultdict(lambda: torch.zeros(3, 3, 1, 1).double(), canonical)
        inputs = [torch.randn(1, 3, 4, 4, generator=generator, dtype=torch.float64) for _ in range(2)]
        expected, found = run(values, inputs, raw), run(settled, inputs, unused)
        flat = [
            torch.stack([torch.zeros(1, 3, 4, 4).double() if t is None else t for t in tensors]).flatten(1)
            for tensors in (expected, found)
        ]
        order = [rows[torch.argsort(rows.sum(1))] for rows in flat]
        torch.testing.assert_close(order[0], order[1], rtol=1e-9, atol=1e-9)
    assert changed > 30


SPACES = [
    DartsSpace(PROBLEM, cells=(1, 0, 0), channels=4),
    DartsSpace(PROBLEM, cells=2, channels=4, operations=SMALL),
    DartsSpace(classification((1, 7, 5), 3), cells=(0, 1, 1), channels=3, operations=SMALL),
    NasnetSpace(PROBLEM, cells=1, channels=4),
    NasnetSpace(classification((1, 9, 9), 3), cells=(2, 2), channels=3, operations=("skip_connect", "max_pool_3x3")),
]


@pytest.mark.parametrize("space", SPACES, ids=lambda space: f"{space.identity['family']}-{space.identity['cells']}")
def test_the_fast_cost_is_the_cost_of_the_graph(space) -> None:
    rng = np.random.default_rng(0)
    for _ in range(200):
        architecture = space.sample(rng)
        assert space.cost(architecture) == cost_of(space.graph(architecture)), dict(architecture.values)


@pytest.mark.parametrize("space", SPACES, ids=lambda space: f"{space.identity['family']}-{space.identity['cells']}")
def test_canonical_values_are_a_fixed_point(space) -> None:
    rng = np.random.default_rng(1)
    for _ in range(100):
        architecture = space.sample(rng)
        assert dict(space.canonical(architecture.values).values) == dict(architecture.values)


def test_cells_that_read_only_the_cell_before_the_last_leave_half_the_cells_out() -> None:
    """A cell that nothing reads is neither built nor counted."""
    space = DartsSpace(PROBLEM, operations=("none", "sep_conv_3x3"), nodes=1, cells=(4,), channels=4)
    both = space.canonical({"normal_node0_op1": "sep_conv_3x3", "normal_node0_op2": "sep_conv_3x3"})
    skipping = space.canonical({"normal_node0_op1": "sep_conv_3x3", "normal_node0_op2": "none"})
    names = {
        operation.name.split(".")[1] for operation in space.graph(skipping).operations if "cells" in operation.name
    }
    assert names == {"1", "3"}
    assert len({op.name.split(".")[1] for op in space.graph(both).operations if "cells" in op.name}) == 4


def test_a_cell_of_nothing_is_a_network_too() -> None:
    space = DartsSpace(PROBLEM, cells=(1, 1), channels=4)
    nothing = space.canonical(dict.fromkeys([name for name in space.choices if "_op" in name], "none"))
    assert space.cost(nothing) == cost_of(space.graph(nothing))
    assert space.build(nothing)(torch.zeros(2, 3, 16, 16)).shape == (2, 5)


@pytest.mark.parametrize(
    ("family", "parameters", "message"),
    [
        (DartsSpace, {"operations": ("sep_conv_9x9",)}, "unknown cell operation 'sep_conv_9x9'"),
        (DartsSpace, {"nodes": 0}, "nodes: 0"),
        (DartsSpace, {"cells": ()}, "makes no network"),
        (DartsSpace, {"cells": (0,)}, "makes no network"),
        (DartsSpace, {"channels": 0}, "channels: 0"),
        (NasnetSpace, {"operations": ("none", "conv_1x1")}, "no operation here"),
        (NasnetSpace, {"combiners": ("multiply",)}, "combiners"),
        (NasnetSpace, {"blocks": 0}, "blocks: 0"),
    ],
)
def test_impossible_parameters_are_refused(family, parameters, message: str) -> None:
    with pytest.raises(NasplatError, match=message):
        family(PROBLEM, **parameters)
