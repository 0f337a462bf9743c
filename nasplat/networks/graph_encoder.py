"""Operation graphs as tensors, and a small network that turns each graph into one vector.

The vector is what a performance predictor, a graph hypernetwork or a retrieval of similar networks reads. It works for
every space, for it sees primitive operations with their shapes and nothing else (as AIO-P does, Mills et al. 2023).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import log2, prod

import torch
from torch import Tensor, nn
from torch.nn.functional import relu

from nasplat.core.cost import KINDS, macs_of, params_of
from nasplat.core.errors import NasplatError
from nasplat.core.graph import Operation, OperationGraph, Shape

_KIND_INDEX = {kind: index for index, kind in enumerate(sorted(KINDS))}
# After the kind's one-hot: log channels, log height times width, log kernel area, log stride, log dilation,
# log groups, log MACs, log parameters, distance from the input and to the end as shares of the longest path.
_NUMBERS = 10
NODE_FEATURES = len(_KIND_INDEX) + _NUMBERS


@dataclass(frozen=True, slots=True)
class GraphBatch:
    """Graphs side by side, as one graph of several parts.

    Args:
        nodes: `(V, NODE_FEATURES)` of the operations of all graphs.
        sources: `(E,)` for every edge the row of the operation that is read.
        targets: `(E,)` and the row of the one that reads it.
        graph: `(V,)` to which graph, 0 to `count - 1`, a row belongs.
        count: number of graphs, N.
    """

    nodes: Tensor
    sources: Tensor
    targets: Tensor
    graph: Tensor
    count: int

    def to(self, device: torch.device | str) -> GraphBatch:
        parts = (self.nodes, self.sources, self.targets, self.graph)
        nodes, sources, targets, graph = (part.to(device) for part in parts)
        return GraphBatch(nodes, sources, targets, graph, self.count)


def batch_graphs(graphs: Sequence[OperationGraph]) -> GraphBatch:
    """The tensors of several graphs, in their order.

    Raises:
        NasplatError: an operation is of a kind that has no features, as traced graphs may hold.
    """
    sources: list[int] = []
    targets: list[int] = []
    offset = 0
    for graph in graphs:
        for position, operation in enumerate(graph.operations):
            sources += [offset + source for source in operation.inputs]
            targets += [offset + position] * len(operation.inputs)
        offset += len(graph.operations)
    sizes = torch.tensor([len(graph.operations) for graph in graphs], dtype=torch.long)
    return GraphBatch(
        torch.cat([torch.zeros(0, NODE_FEATURES), *map(node_features, graphs)]),
        torch.tensor(sources, dtype=torch.long),
        torch.tensor(targets, dtype=torch.long),
        torch.arange(len(graphs)).repeat_interleave(sizes),
        len(graphs),
    )


def node_features(graph: OperationGraph) -> Tensor:
    """`(V, NODE_FEATURES)` of a graph's operations.

    Raises:
        NasplatError: an operation is of a kind that has no features, as traced graphs may hold.
    """
    kinds: list[int] = []
    numbers: list[list[float]] = []
    depths, heights = _distances(graph.operations)
    longest = max(depths) or 1
    for position, operation in enumerate(graph.operations):
        kinds.append(_kind(operation))
        shapes = [graph.operations[source].shape for source in operation.inputs]
        numbers.append([*_numbers(operation, shapes), depths[position] / longest, heights[position] / longest])
    one_hot = nn.functional.one_hot(torch.tensor(kinds, dtype=torch.long), len(_KIND_INDEX)).float()
    return torch.cat([one_hot, torch.tensor(numbers, dtype=torch.float32)], 1)


def split_batch(batch: GraphBatch, rows: Tensor) -> GraphBatch:
    """Some graphs of a batch, in the order of `rows`, `(M,)` distinct numbers of graphs."""
    device = batch.graph.device
    place = torch.full((batch.count,), -1, device=device)
    place[rows] = torch.arange(len(rows), device=device)
    kept = (place[batch.graph] >= 0).nonzero()[:, 0]
    moved = torch.full((len(batch.nodes),), -1, device=device)
    moved[kept] = torch.arange(len(kept), device=device)
    edges = moved[batch.targets] >= 0
    sources, targets = moved[batch.sources[edges]], moved[batch.targets[edges]]
    return GraphBatch(batch.nodes[kept], sources, targets, place[batch.graph[kept]], len(rows))


class GraphEncoder(nn.Module):
    """Message passing along and against the edges, with means over neighbours, then one vector a graph.

    The order in which operations are listed does not matter. Width and means are those of AIO-P (2023).

    Args:
        width: of the state of an operation.
        layers: rounds of messages; each lets an operation see one step farther in both directions.
        size: D, of a graph's vector.
        generator: of the initial weights.
    """

    def __init__(self, *, width: int = 32, layers: int = 5, size: int = 32, generator: torch.Generator) -> None:
        super().__init__()
        self.size = size
        self.settings = {"width": width, "layers": layers, "size": size}
        self.enter = nn.Linear(NODE_FEATURES, width)
        self.rounds = nn.ModuleList(nn.Linear(3 * width, width) for _ in range(layers))
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(layers))
        self.leave = nn.Linear(2 * width, size)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.kaiming_uniform_(module.weight, nonlinearity="relu", generator=generator)
                nn.init.zeros_(module.bias)

    def forward(self, batch: GraphBatch) -> Tensor:
        """Vectors `(N, D)` of the graphs of a batch."""
        states = self.node_states(batch)
        means = _mean(states, torch.arange(len(states), device=states.device), batch.graph, batch.count)
        sizes = torch.bincount(batch.graph, minlength=batch.count).clamp(min=1)
        # A mean forgets how many operations there are, and a sum would let large graphs drown small ones.
        return self.leave(torch.cat([means, means * torch.log2(sizes)[:, None] / 8], 1))

    def node_states(self, batch: GraphBatch) -> Tensor:
        """States `(V, width)` of all operations, after the last round."""
        states = relu(self.enter(batch.nodes))
        count = len(states)
        for linear, norm in zip(self.rounds, self.norms, strict=True):
            before = _mean(states, batch.sources, batch.targets, count)
            after = _mean(states, batch.targets, batch.sources, count)
            states = states + relu(linear(_side_by_side(norm, states, before, after)))
        return states


def nearest(embeddings: Tensor, query: Tensor, k: int) -> Tensor:
    """The networks that are most like another, by the cosine of their vectors, most alike first.

    Args:
        embeddings: `(N, D)` of an encoder's vectors, or `GraphHyperNetwork.embedding`.
        query: `(D,)`.
        k: how many; all where there are fewer.

    Returns:
        Their rows, `(min(k, N),)`.
    """
    likeness = nn.functional.cosine_similarity(embeddings, query[None], 1)
    return likeness.topk(min(k, len(embeddings))).indices


def _side_by_side(norm: nn.Module, *parts: Tensor) -> Tensor:
    """Parts of equal width, each normalised alike, side by side."""
    return torch.cat([norm(part) for part in parts], 1)


def _mean(states: Tensor, sources: Tensor, targets: Tensor, count: int) -> Tensor:
    """For each of `count` targets the mean of the states of its sources; zero where it has none."""
    sums = states.new_zeros(count, states.shape[1]).index_add(0, targets, states[sources])
    numbers = torch.bincount(targets, minlength=count).clamp(min=1)
    return sums / numbers[:, None]


def _kind(operation: Operation) -> int:
    try:
        return _KIND_INDEX[operation.kind]
    except KeyError:
        raise NasplatError(f"operation {operation.name!r} is of unknown kind {operation.kind!r}") from None


def _numbers(operation: Operation, shapes: list[Shape]) -> list[float]:
    """What is known of an operation besides its kind and its place, on scales of about one."""
    attributes = operation.attributes
    kernel, stride, dilation = (attributes.get(name, (1, 1)) for name in ("kernel", "stride", "dilation"))
    return [
        log2(operation.shape[0]) / 8,
        log2(prod(operation.shape[1:])) / 8,
        log2(prod(kernel)) / 4,
        log2(prod(stride)) / 2,
        log2(prod(dilation)) / 2,
        log2(attributes.get("groups", 1)) / 8,
        log2(1 + macs_of(operation, shapes)) / 16,
        log2(1 + params_of(operation, shapes)) / 16,
    ]


def _distances(operations: Iterable[Operation]) -> tuple[list[int], list[int]]:
    """The longest path from the input to each operation, and from each to an end."""
    listed = list(operations)
    depths = [0] * len(listed)
    heights = [0] * len(listed)
    for position, operation in enumerate(listed):
        depths[position] = max((depths[source] + 1 for source in operation.inputs), default=0)
    for position in range(len(listed) - 1, -1, -1):
        for source in listed[position].inputs:
            heights[source] = max(heights[source], heights[position] + 1)
    return depths, heights
