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

from nasplat.core.choice import Option, Values
from nasplat.core.cost import cost_of
from nasplat.core.errors import NasplatError
from nasplat.core.problem import classification
from nasplat.spaces.darts import DartsSpace
from nasplat.spaces.nasnet import NasnetSpace
from tests.spaces import naive_cells
from tests.spaces.naive_cells import darts_graph, nasnet_graph

PROBLEM = classification((3, 16, 16), 5)
SMALL = ("none", "skip_connect", "max_pool_3x3", "sep_conv_3x3")


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
    pytest.param(
        NasnetSpace(PROBLEM, operations=("skip_connect", "max_pool_3x3"), blocks=2, cells=(0, 0), channels=4),
        nasnet_graph,
        "reduction",
        2,
        id="nasnet-reduction",
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


@pytest.mark.parametrize(
    ("space", "graph", "run"),
    [
        pytest.param(
            DartsSpace(
                PROBLEM, operations=("none", "skip_connect", "max_pool_3x3", "conv_1x1"), cells=(1,), channels=4
            ),
            lambda values: darts_graph(values, "normal", 4),
            naive_cells.darts,
            id="darts",
        ),
        pytest.param(
            NasnetSpace(PROBLEM, operations=("skip_connect", "max_pool_3x3", "conv_1x1"), cells=(1,), channels=4),
            lambda values: nasnet_graph(values, "normal", 5),
            naive_cells.nasnet,
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
    NasnetSpace(PROBLEM, cells=(2, 1), channels=4, blocks=1),
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


def test_an_input_that_no_block_reads_is_part_of_the_output_of_a_nasnet_cell() -> None:
    """Zoph et al. concatenate all unused hidden states; without them a cell forgets one of the two before it."""
    space = NasnetSpace(PROBLEM, operations=("conv_1x1",), combiners=("add",), blocks=1, cells=(1, 0), channels=4)
    architecture = space.canonical({name: 1 for name in space.choices if "input" in name})
    graph = space.graph(architecture)
    assert graph.operations[graph.taps["features"]].shape == (2 * 8,)  # the input and the block
    assert {op.name for op in graph.operations if "unread" in op.name} == {
        f"cells.1.unread0.{part}" for part in ("even", "odd", "norm")
    }
    for drawing in space.drawings(architecture).values():
        assert [edge.source for edge in drawing.edges if edge.target == "output"] == ["0", "2"]


def test_a_sum_of_three_is_one_network_whatever_is_added_first() -> None:
    """Otherwise a search trains it once for each order in which its blocks can add."""
    space = NasnetSpace(PROBLEM, operations=("skip_connect", "conv_1x1", "conv_3x3"), blocks=2, cells=(1,), channels=4)
    digests = set()
    for first, second, third in permutations([(0, "conv_1x1"), (1, "conv_1x1"), (1, "conv_3x3")]):
        edges = (("block0", 1, first), ("block0", 2, second), ("block1", 1, third), ("block1", 2, (2, "skip_connect")))
        values: dict[str, Option] = {}
        for block, edge, (source, operation) in edges:
            values |= {f"normal_{block}_input{edge}": source, f"normal_{block}_op{edge}": operation}
        digests.add(space.canonical(values).digest)
    assert len(digests) == 1


def test_channels_of_a_nasnet_are_those_that_the_file_of_the_space_promises() -> None:
    """F = 4 * channels for each unread tensor, after two reduction cells."""
    space = NasnetSpace(PROBLEM, cells=1, channels=4)
    rng = np.random.default_rng(3)
    for _ in range(20):
        architecture = space.sample(rng)
        read = {architecture.values[f"normal_block{block}_input{edge}"] for block in range(5) for edge in (1, 2)}
        graph = space.graph(architecture)
        assert graph.operations[graph.taps["features"]].shape == (4 * (2 + 5 - len(read)) * 4,)


def test_darts_v2_has_the_published_number_of_parameters() -> None:
    """Liu et al., 2019, table 1: 3.3 M on CIFAR-10, with 20 cells of 36 channels, without the auxiliary head."""
    cells = {
        "normal": (
            ("0,1", "sep_conv_3x3", "sep_conv_3x3"),
            ("0,1", "sep_conv_3x3", "sep_conv_3x3"),
            ("0,1", "skip_connect", "sep_conv_3x3"),
            ("0,2", "skip_connect", "dil_conv_3x3"),
        ),
        "reduction": (
            ("0,1", "max_pool_3x3", "max_pool_3x3"),
            ("1,2", "max_pool_3x3", "skip_connect"),
            ("0,2", "max_pool_3x3", "skip_connect"),
            ("1,2", "max_pool_3x3", "skip_connect"),
        ),
    }
    values = {
        f"{kind}_node{node}_{name}": option
        for kind, nodes in cells.items()
        for node, options in enumerate(nodes)
        for name, option in zip(("inputs", "op1", "op2"), options, strict=True)
    }
    space = DartsSpace(classification((3, 32, 32), 10), cells=6, channels=36)
    assert space.cost(space.canonical(values)).params == 3_349_342


def tapped(space: DartsSpace | NasnetSpace, values: Values) -> int | None:
    """Position of the cell whose output the auxiliary head reads."""
    graph = space.graph(space.canonical(values))
    if "auxiliary" not in graph.taps:
        return None
    names = [operation.name for operation in graph.operations[: graph.taps["auxiliary"] + 1] if operation.name]
    return int(names[-1].split(".")[1])


@pytest.mark.parametrize(
    ("cells", "nasnet", "darts"),
    [((2, 2, 2), 4, 5), ((1, 0, 1), 1, 2), ((0, 1), None, 0), ((2,), None, None)],
)
def test_the_auxiliary_head_stands_where_the_authors_put_it(cells, nasnet, darts) -> None:
    """Before the last reduction cell in NASNet, after it in DARTS."""
    assert tapped(NasnetSpace(PROBLEM, operations=("conv_1x1",), cells=cells, channels=4), {}) == nasnet
    assert tapped(DartsSpace(PROBLEM, operations=("conv_1x1",), cells=cells, channels=4), {}) == darts


def test_the_auxiliary_head_of_a_dead_cell_moves_to_the_live_one_before() -> None:
    """A search that trains with the head would lose the candidate."""
    space = DartsSpace(PROBLEM, operations=("none", "conv_1x1"), nodes=1, cells=(1, 1), channels=4)
    # The last cell reads only the cell before the last, and passes the reduction cell by.
    assert tapped(space, {"normal_node0_op1": "conv_1x1", "normal_node0_op2": "none"}) == 0


@pytest.mark.parametrize("family", [NasnetSpace, DartsSpace])
def test_drop_path_takes_from_every_cell_what_the_authors_take(family) -> None:
    """More from deeper cells in NASNet, the same from all in DARTS; never an identity, or what fits widths."""
    space = family(PROBLEM, operations=("skip_connect", "conv_1x1"), cells=(2, 1), channels=4)

    def dropped(operation: str) -> dict[str, float]:
        architecture = space.canonical({name: operation for name in space.choices if "_op" in name})
        operations = space.graph(architecture).operations
        return {op.name: float(op.attributes["drop_path"]) for op in operations if "drop_path" in op.attributes}

    convolutions = dropped("conv_1x1")
    assert all(".op" in name for name in convolutions)
    found = {(int(name.split(".")[1]), fraction) for name, fraction in convolutions.items()}
    deeper = family is NasnetSpace
    assert found == {(position, (position + 1) / 4 if deeper else 1.0) for position in range(4)}
    # What a reduction cell makes of an identity has weights; DARTS drops it, NASNet does not.
    assert {name.split(".")[1] for name in dropped("skip_connect")} == (set() if deeper else {"2"})


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
