"""Cells as they are written down, run or drawn as graphs, without canonical form: the oracle for the rewriting rules.

Every edge owns its weights, whatever else reads the same tensor, and an edge runs only when something asks for it.
Nothing here comes from the code under test.
"""

from __future__ import annotations

from collections.abc import Mapping

import networkx
import torch
import torch.nn.functional as F
from torch import Tensor

Weights = dict[object, Tensor]
Multiset = tuple[int, ...]

WEIGHTLESS = {"max_pool_3x3", "avg_pool_3x3", "max_pool_5x5", "max_pool_7x7"}


def operate(operation: str, x: Tensor | None, key: object, weights: Weights, stride: int = 1) -> Tensor | None:
    """One edge on `(N, C, H, W)`; the sum of nothing is None. Records in `weights` the keys that were used."""
    if x is None or operation == "none":
        return None
    if operation == "skip_connect" and stride == 1:
        return x
    if operation.startswith("max_pool"):
        size = int(operation[-1])
        return F.max_pool2d(x, size, stride, size // 2)
    if operation.startswith("avg_pool"):
        return F.avg_pool2d(x, 3, stride, 1, count_include_pad=False)
    if operation == "sine":
        return torch.sin(x)
    weight = weights[key]
    size = weight.shape[-1]
    # Unlike a ReLU, tanh of a doubled input is not a doubled output: networks that differ are seen to differ.
    return F.conv2d(torch.tanh(x), weight, stride=stride, padding=size // 2)


def total(parts: list[Tensor | None]) -> Tensor | None:
    there = [part for part in parts if part is not None]
    return torch.stack(there).sum(0) if there else None


def nasbench201(
    operations: dict[tuple[int, int], str], x: Tensor, weights: Weights, used: set[object]
) -> Tensor | None:
    """The output of a cell whose edge (source, target) carries `operations[source, target]`."""

    def node(number: int) -> Tensor | None:
        if number == 0:
            return x
        parts = []
        for source in range(number):
            operation = operations[source, number]
            # Ask for the source only where the edge would pass something on.
            value = None if operation == "none" else node(source)
            if value is not None and operation.startswith("conv"):
                used.add((source, number))
            parts.append(operate(operation, value, (source, number), weights))
        return total(parts)

    return node(3)


def darts(values: Mapping[str, object], inputs: list[Tensor], weights: Weights) -> list[Tensor | None]:
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


def nasnet(values: Mapping[str, object], inputs: list[Tensor], weights: Weights) -> list[Tensor | None]:
    """The inputs and blocks of a normal cell that no block reads, run as the table says and nothing else."""
    tensors: list[Tensor | None] = list(inputs)
    read = set()
    for block in range(sum(name.endswith("_combine") for name in values)):
        parts = []
        for edge in (1, 2):
            source = int(str(values[f"normal_block{block}_input{edge}"]))
            read.add(source)
            operation = str(values[f"normal_block{block}_op{edge}"])
            parts.append(operate(operation, tensors[source], (block, edge), weights))
        if values[f"normal_block{block}_combine"] == "add":
            tensors.append(total(parts))
        else:
            # Which half comes first is a matter of the order of the squeeze's input channels; in a sum it is none.
            halves = [part for part in parts if part is not None]
            tensors.append(torch.tanh(weights[block, "squeeze"].mean() * (halves[0] + halves[1])))
    return [tensor for number, tensor in enumerate(tensors) if number not in read]


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


def darts_graph(values: Mapping[str, object], kind: str, nodes: int) -> networkx.MultiDiGraph:
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


def nasnet_graph(values: Mapping[str, object], kind: str, blocks: int) -> networkx.MultiDiGraph:
    oracle = Oracle()
    tensors = [oracle.term("input0", shared=True), oracle.term("input1", shared=True)]
    read = set()
    for block in range(blocks):
        parts = []
        for edge in (1, 2):
            source = int(str(values[f"{kind}_block{block}_input{edge}"]))
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
    if kind == "reduction":
        # An input that no block reads is halved on its way to the output.
        tensors[:2] = [
            tensor if n in read else oracle.term("skip_connectTrue", tensor) for n, tensor in enumerate(tensors[:2])
        ]
    return oracle.output([tensor for number, tensor in enumerate(tensors) if number not in read])
