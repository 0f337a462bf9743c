"""Blocks of layers that read and write memory banks: one name for one network, and networks that do what banks say."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import networkx as nx
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from nasplat.artifacts.drawing import draw_svg, draw_text
from nasplat.core.errors import NasplatError
from nasplat.core.problem import classification
from nasplat.networks.graph_run import parameter_shapes
from nasplat.spaces.bank_patterns import Pattern, dense, fractal, residual
from nasplat.spaces.bank_rows import Banked, Row, banks_of, canonical
from nasplat.spaces.families import make_space
from nasplat.spaces.memory_bank import MemoryBankSpace

PROBLEM = classification((2, 8, 6), 3)
SPEC: dict[str, Any] = {
    "family": "memory_bank",
    "blocks": [{"channels": [2, 4], "banks": 4, "layers": 4}, {"channels": 4, "banks": 3, "layers": 3}],
    "kernels": [3, 5],
    "dilations": [1, 2],
    "groups": [1, 2],
    "last_channels": 6,
}
seeds = st.integers(0, 2**32 - 1)


def space_of(**changes: Any) -> MemoryBankSpace:
    space = make_space({**SPEC, **changes}, PROBLEM)
    assert isinstance(space, MemoryBankSpace)
    return space


SPACE = space_of()


def raw(rng: np.random.Generator, banks: int = 4, layers: int = 5) -> Banked:
    masks = rng.integers(1, 1 << banks, (layers + 1, 2))
    rows = tuple(Row(int(w), int(r), (int(rng.integers(2)),)) for w, r in masks[1:])
    return Banked(rows, int(masks[0, 0]))


def connections(block: Banked) -> nx.DiGraph:
    """What is read of what, by the contents of banks; nothing in it has the number of a bank or of a layer."""
    graph = nx.DiGraph()
    graph.add_node("input", kind="input")
    banks: dict[int, frozenset[Any]] = {0: frozenset(["input"])}

    def read(reader: Any, mask: int) -> None:
        for content in {banks[bank] for bank in banks_of(mask) if bank in banks} or {banks[0]}:
            graph.add_edge(("sum", content), reader)
            graph.nodes["sum", content]["kind"] = "sum"
            graph.add_edges_from((writer, ("sum", content)) for writer in content)

    for number, row in enumerate(block.rows):
        graph.add_node(number, kind=row.options)
        read(number, row.reads)
        for bank in banks_of(row.writes):
            banks[bank] = banks.get(bank, frozenset()) | {number}
    graph.add_node("output", kind="output")
    read("output", block.output)
    return graph.subgraph({"output", "input"} | nx.ancestors(graph, "output"))


def scrambled(block: Banked, banks: int, rng: np.random.Generator) -> Banked:
    """The same network otherwise written: banks renumbered, layers that do not meet exchanged, dead ones added."""
    order = [0, *(1 + rng.permutation(banks - 1))]

    def one(mask: int) -> int:
        return sum(1 << int(order[bank]) for bank in banks_of(mask))

    rows = [Row(one(row.writes), one(row.reads), row.options) for row in block.rows]
    for _ in range(10):
        place = int(rng.integers(max(len(rows) - 1, 1)))
        if place + 1 < len(rows):
            first, second = rows[place], rows[place + 1]
            if not (first.writes & second.reads or first.reads & second.writes):
                rows[place : place + 2] = [second, first]
    output = one(block.output)
    unread = [bank for bank in range(banks) if not output >> bank & 1]
    if unread:  # nothing reads it after the last layer
        rows.append(Row(1 << unread[int(rng.integers(len(unread)))], 1, (0,)))
    return Banked(tuple(rows), output)


@settings(max_examples=60, deadline=None)
@given(seed=seeds)
def test_the_canonical_form_is_the_same_network(seed: int) -> None:
    """A search would evaluate another network than it proposed."""
    block = raw(np.random.default_rng(seed))
    settled = canonical(block)
    assert canonical(settled) == settled
    match = nx.algorithms.isomorphism.categorical_node_match("kind", None)
    assert nx.is_isomorphic(connections(block), connections(settled), match)


@settings(max_examples=60, deadline=None)
@given(seed=seeds)
def test_one_network_has_one_digest(seed: int) -> None:
    """Trials would be spent on the same network twice."""
    rng = np.random.default_rng(seed)
    block = canonical(raw(rng))  # where no layer reads an empty bank, which another one might fill
    assert canonical(scrambled(block, 4, rng)) == block


def test_what_nobody_reads_is_left_out() -> None:
    """Dead layers would count as depth, and as parameters that train nothing."""
    values = {"block1.layers": 3, "block1.output": "1,4", "block1.layer1.writes": "2", "block1.layer2.reads": "3"}
    dead = SPACE.canonical({**values, "block1.layer2.writes": "3", "block1.layer3.writes": "4"})
    assert dead.values["block1.layers"] == 1 and dead.values["block1.output"] == "1,2"
    assert all(value == SPACE.choices[name].default for name, value in dead.values.items() if "layer2" in name)
    twice = SPACE.canonical({"block1.layers": 1, "block1.layer1.writes": "2,3", "block1.output": "2,3"})
    once = SPACE.canonical({"block1.layers": 1, "block1.layer1.writes": "4", "block1.output": "4"})
    assert twice == once


def weights_of(network: Any) -> Callable[[str], Callable[[Tensor], Tensor]]:
    state = network.state_dict()

    def layer(name: str) -> Callable[[Tensor], Tensor]:
        def convolve(images: Tensor, part: str, dilation: int = 1, groups: int = 1) -> Tensor:
            weight = state[f"{part}.weight"]
            return F.conv2d(images, weight, None, 1, dilation * (weight.shape[-1] // 2), dilation, groups)

        def apply(images: Tensor, dilation: int = 1, groups: int = 1) -> Tensor:
            norm = f"{name}.norm"
            images = convolve(images, f"{name}.conv")
            statistics = (state[f"{norm}.running_mean"], state[f"{norm}.running_var"])
            images = F.relu(F.batch_norm(images, *statistics, state[f"{norm}.weight"], state[f"{norm}.bias"]))
            if not name.endswith(".bottleneck"):
                return images
            return convolve(images, f"{name.removesuffix('.bottleneck')}.conv", dilation, groups)

        return apply

    return layer


def reference(space: MemoryBankSpace, values: Mapping[str, Any], network: Any, images: Tensor) -> Tensor:
    """Banks as a list of tensors, straight from the table."""
    layer = weights_of(network)
    for block in ("block1", "block2"):
        if block == "block2":
            images = F.avg_pool2d(images, 2)
        banks: dict[str, Tensor] = {"1": layer(f"{block}.entry")(images)}
        for number in range(1, values[f"{block}.layers"] + 1):
            name = f"{block}.layer{number}"
            read = torch.cat([banks[bank] for bank in values[f"{name}.reads"].split(",")], 1)
            made = layer(f"{name}.bottleneck")(read, values[f"{name}.dilation"], values[f"{name}.groups"])
            for bank in values[f"{name}.writes"].split(","):
                banks[bank] = banks[bank] + made if bank in banks else made
        images = torch.cat([banks[bank] for bank in values[f"{block}.output"].split(",")], 1)
    features = layer("last")(images).mean((2, 3))
    return F.linear(features, network.heads.label.weight, network.heads.label.bias)


def test_networks_compute_what_their_banks_say() -> None:
    """Wiring that is not that of the table would be found by nobody else."""
    images = torch.randn(2, *PROBLEM.input_shape, generator=torch.Generator().manual_seed(0))
    rng = np.random.default_rng(0)
    name = PROBLEM.outputs[0].name
    for _ in range(12):
        architecture = SPACE.sample(rng)
        network: Any = SPACE.build(architecture).eval()
        network.heads.label = getattr(network.heads, name)
        torch.testing.assert_close(network(images), reference(SPACE, architecture.values, network, images))


def block_of(pattern: Pattern, banks: int, layers: int) -> tuple[Any, Callable[[str], Callable[..., Tensor]]]:
    space = space_of(blocks=[{"channels": 4, "banks": banks, "layers": layers}])
    network: Any = space.build(space.canonical(space.following(pattern))).eval()
    return network, weights_of(network)


def features(network: Any, images: Tensor) -> Tensor:
    found: Tensor = network.forward_taps(images, ("features",))["features"]
    return found


@pytest.mark.parametrize("pattern", [residual, dense, fractal])
def test_published_networks_are_points_of_the_space(pattern: Pattern) -> None:
    """A space of which ResNet, DenseNet and FractalNet are no points is not that of the paper: their formulas."""
    network, layer = block_of(pattern, 5, 7)
    images = torch.randn(2, *PROBLEM.input_shape, generator=torch.Generator().manual_seed(0))
    x = layer("block1.entry")(images)

    def f(number: int, *inputs: Tensor) -> Tensor:
        return layer(f"block1.layer{number}.bottleneck")(torch.cat(inputs, 1))

    if pattern is residual:
        for number in range(1, 8):
            x = x + f(number, x)
    elif pattern is dense:
        parts = [x]
        for number in range(1, 5):
            parts.append(f(number, *parts))
        x = torch.cat(parts, 1)
    else:  # which of the layers is which follows from the canonical order, in which the sum is the same
        rows = [(row.reads, row.writes) for row in canonical(fractal(5, 7, (3, 1, 1))).rows]
        x = by_columns(x, rows, f)
    torch.testing.assert_close(features(network, images), layer("last")(x).mean((2, 3)))


def by_columns(x: Tensor, rows: Sequence[tuple[int, int]], f: Callable[..., Tensor]) -> Tensor:
    """Three columns: c(x) + g(g(x)) where g(x) = c(x) + c(c(x)), each c a layer of its own."""
    place = {row: number for number, row in enumerate(rows, 1)}
    (end,) = {writes for _, writes in rows} - {reads for reads, _ in rows}

    def g(source: int, target: int, x: Tensor) -> Tensor:
        (middle,) = {w for r, w in rows if r == source} & {r for r, w in rows if w == target} - {halfway}
        return f(place[source, target], x) + f(place[middle, target], f(place[source, middle], x))

    halfway = 0
    halfway = next(
        bank for bank in {writes for _, writes in rows} - {end} if sum(writes == bank for _, writes in rows) == 2
    )
    return f(place[1, end], x) + g(halfway, end, g(1, halfway, x))


def test_no_network_is_larger_than_the_largest() -> None:
    """A supernet would lack weights for a network that comes up after hours."""
    for space in (SPACE, space_of(blocks=[{"channels": [2, 4], "banks": 5, "layers": 3}])):
        largest, smallest = space.extremes()
        shapes = parameter_shapes(space.graph(largest))
        rng = np.random.default_rng(1)
        for _ in range(200):
            architecture = space.sample(rng)
            assert space.cost(smallest).macs <= space.cost(architecture).macs <= space.cost(largest).macs
            for name, shape in parameter_shapes(space.graph(architecture)).items():
                assert all(size <= most for size, most in zip(shape, shapes[name], strict=True)), name


def test_a_drawing_names_the_banks() -> None:
    """Who cannot see what a layer reads cannot learn from what was found."""
    architecture = SPACE.canonical({**SPACE.following(dense), "block1.layer2.kernel": 5, "block1.layer2.groups": 2})
    drawings = SPACE.drawings(architecture)
    assert list(drawings) == ["block1, 2 channels a bank", "block2, 4 channels a bank"]
    text = draw_text(drawings["block1, 2 channels a bank"])
    assert "1×1, 5×5, groups 2" in text and "bank 3 (" in text
    added = draw_text(SPACE.drawings(SPACE.canonical(SPACE.following(residual)))["block2, 4 channels a bank"])
    assert added.count("+") >= 3
    assert draw_svg(drawings).startswith("<svg")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"blocks": []}, "blocks"),
        ({"blocks": 3}, "blocks"),
        ({"blocks": [{"channels": 8, "banks": 2}]}, "block 1"),
        ({"blocks": [{"channels": 8, "banks": 2, "layers": 2, "depth": 1}]}, "block 1"),
        ({"blocks": [{"channels": [], "banks": 2, "layers": 2}]}, "channels of block 1"),
        ({"blocks": [{"channels": [8, 0], "banks": 2, "layers": 2}]}, "channels of block 1"),
        ({"blocks": [{"channels": 8, "banks": 7, "layers": 6}]}, "7 banks"),
        ({"blocks": [{"channels": 8, "banks": 4, "layers": 2}]}, "4 banks for 2 layers"),
        ({"blocks": [{"channels": 8, "banks": 0, "layers": 2}]}, "banks of block 1"),
        ({"blocks": [{"channels": 8, "banks": 1, "layers": -1}]}, "layers"),
        ({"kernels": [4]}, "kernels: 4"),
        ({"kernels": [1]}, "kernels: 1"),
        ({"kernels": "3"}, "kernels"),
        ({"dilations": [0]}, "dilations"),
        ({"groups": [3]}, "cannot be split into 3 groups"),
        ({"bottleneck": 0}, "bottleneck"),
        ({"last_channels": True}, "last_channels"),
        ({"banks": 3}, "no parameter 'banks'"),
    ],
)
def test_bad_parameters_are_told(changes: dict[str, Any], message: str) -> None:
    """What cannot be built is said before anything is trained."""
    with pytest.raises(NasplatError) as caught:
        space_of(**changes)
    assert message in caught.value.message and (caught.value.advice or "no parameter" in message)


def test_layers_of_another_space_are_refused() -> None:
    """A bank that is not there would be found out in the middle of a search."""
    with pytest.raises(NasplatError, match="no option '1,5'"):
        SPACE.canonical({"block1.output": "1,5"})
    with pytest.raises(NasplatError, match=r"no choice 'block3\.layers'"):
        SPACE.canonical({"block3.layers": 1})
