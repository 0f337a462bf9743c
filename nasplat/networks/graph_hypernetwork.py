"""A graph hypernetwork: reads a network as a graph of primitives, and writes all of its weights in one pass.

GHN-2 of Knyazev et al., Parameter Prediction for Unseen Deep Architectures, 2021, after Zhang et al., Graph
HyperNetworks for Neural Architecture Search, 2019.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import prod, sqrt
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nasplat.core.errors import NasplatError
from nasplat.core.graph import OperationGraph, Shape
from nasplat.networks.graph_encoder import NODE_FEATURES, node_features
from nasplat.networks.graph_run import parameter_shapes
from nasplat.networks.same import Same

if TYPE_CHECKING:
    from nasplat.core.space import SearchSpace

Outside = Literal["refuse", "warn"]
FARTHEST = 50  # operations that are more steps away send no message
SIZES = 9  # of the shape encoding: sizes 1, 2, 4, … 256 and more
NORMS = frozenset({"batch_norm", "aten.native_layer_norm", "aten.native_group_norm"})


@dataclass(frozen=True, slots=True)
class Levels:
    """A graph as the encoder walks it.

    Args:
        features: `(V, NODE_FEATURES)` of the operations.
        shapes: `(V, 4)` classes of the sizes of each operation's weight: out, in, height, width; 0 where it has none.
        near: `(V, V)` ones where the operation of the row reads that of the column.
        far: `(V, V)` one over the number of steps from column to row, of two and more.
        order: rows of equal longest distance from the input, nearest first.
    """

    features: Tensor
    shapes: Tensor
    near: Tensor
    far: Tensor
    order: tuple[Tensor, ...]


class GraphHyperNetwork(nn.Module):
    """The weights of any network, from its graph.

    Operations pass messages along the edges, then against them, in topological order: from neighbours, and through
    virtual edges weighted by one over the distance; a GRU takes them in. A decoder makes of every state a kernel of up
    to `channels` × `channels` × `kernel` × `kernel`, which is sliced, and tiled where the layer is wider; layers that
    give an output of the problem have a decoder of their own. Weights are scaled by fan-in; scales of normalisation
    lie around 1, shifts and biases around 0.

    Args:
        space: that it is trained on.
        width: of the state of an operation.
        channels, kernel: the largest that is decoded without tiling or padding by zeros.
        outside: whether a search may ask for networks of other spaces, with a warning.

    Attributes:
        space_fingerprint: of the space.
        input_shape: `(C, H, W)` of the images that its networks are trained on.
    """

    def __init__(
        self, space: SearchSpace, width: int = 32, channels: int = 32, kernel: int = 7, outside: Outside = "refuse"
    ) -> None:
        super().__init__()
        self.space_fingerprint, self.outside = space.fingerprint, outside
        self.input_shape = space.problem.input_shape
        self.channels, self.kernel = channels, kernel
        classes = max(output.size for output in space.problem.outputs)
        self.enter = nn.Linear(NODE_FEATURES, width)
        self.sizes = nn.ModuleList(nn.Embedding(SIZES + 1, width // 4) for _ in range(4))
        self.joined = nn.Linear(2 * width, width)
        self.near, self.far = _perceptron(width, width, width), _perceptron(width, width, width)
        self.cell = nn.GRUCell(width, width)
        self.norm = nn.LayerNorm(width)
        self.spread = nn.Linear(width, 2 * width * kernel**2)
        self.mix = nn.Linear(2 * width, 4 * width)
        self.kernels = nn.Linear(4 * width, channels**2)
        self.classes = nn.Linear(4 * width, classes * channels)
        self.vectors = _perceptron(width, 2 * width, 2 * channels)
        # States have unit variance, and so have what is decoded of them before it is scaled by fan-in: the networks of
        # the first step are as large as those of He et al. (2015), without batch norm too.
        for layer, gain in ((self.spread, 1), (self.mix, 2), (self.kernels, 2), (self.classes, 2)):
            nn.init.normal_(layer.weight, std=sqrt(gain / layer.in_features))
            nn.init.zeros_(layer.bias)

    def forward(self, graphs: Sequence[OperationGraph]) -> list[dict[str, Tensor]]:
        """The weights of networks, by the names of their state dicts.

        Raises:
            NasplatError: a weight of more than four dimensions.
        """
        return [self.weights(graph, parameter_shapes(graph)) for graph in graphs]

    def weights(self, graph: OperationGraph, shapes: Mapping[str, Shape]) -> dict[str, Tensor]:
        """The parameters of these names and shapes; an operation's are those whose names begin with its own.

        Raises:
            NasplatError: a parameter of no operation of the graph, or of more than four dimensions.
        """
        places = {operation.name: place for place, operation in enumerate(graph.operations) if operation.name}
        heads = set(graph.outputs.values())
        kernels: dict[str, tuple[int, Shape]] = {}
        vectors: dict[str, tuple[int, Shape]] = {}
        for name, shape in shapes.items():
            place = places.get(name.rpartition(".")[0])
            if place is None or not 1 <= len(shape) <= 4:
                why = f"has {len(shape)} dimensions" if place is not None else "belongs to no operation of the graph"
                raise NasplatError(f"the parameter {name} {why}", "weights of one to four dimensions can be generated")
            (vectors if len(shape) == 1 else kernels)[name] = (place, shape)
        states = self.node_states(graph, shapes)
        found = dict(self._vectors(graph, states, vectors)) | dict(self._kernels(states, kernels, heads))
        return {name: found[name] for name in shapes}

    def node_states(self, graph: OperationGraph, shapes: Mapping[str, Shape] | None = None) -> Tensor:
        """States `(V, width)` of all operations."""
        shapes = parameter_shapes(graph) if shapes is None else shapes
        walk = _levels(Same(graph), Same(shapes), str(self.enter.weight.device))
        sizes = torch.cat([embed(walk.shapes[:, axis]) for axis, embed in enumerate(self.sizes)], 1)
        states = self.joined(torch.cat([self.enter(walk.features), sizes], 1))
        for near, far, order in (
            (walk.near, walk.far, walk.order),
            (walk.near.T, walk.far.T, walk.order[::-1]),
        ):
            states = self._walked(states, near, far, order)
        normed: Tensor = self.norm(states)
        return normed

    def embedding(self, graphs: Sequence[OperationGraph]) -> Tensor:
        """One vector a network, `(N, width)`: the mean of the states of its operations.

        Of networks that are traced and not of a space, `nasplat.networks.primitive_graph.primitives` makes graphs.
        """
        return torch.stack([self.node_states(graph).mean(0) for graph in graphs])

    def _walked(self, states: Tensor, near: Tensor, far: Tensor, order: Sequence[Tensor]) -> Tensor:
        """Every operation takes in what those before it have become; all of one depth at once."""
        by_near, by_far = torch.zeros_like(states), torch.zeros_like(states)
        for rows in order:
            heard = near[rows] @ by_near + far[rows] @ by_far
            new = self.cell(heard, states[rows])
            states = states.index_copy(0, rows, new)
            by_near = by_near.index_copy(0, rows, self.near(new))
            by_far = by_far.index_copy(0, rows, self.far(new))
        return states

    def _vectors(
        self, graph: OperationGraph, states: Tensor, wanted: Mapping[str, tuple[int, Shape]]
    ) -> Iterator[tuple[str, Tensor]]:
        if not wanted:
            return
        rows = torch.tensor([place for place, _ in wanted.values()], device=states.device)
        decoded = self.vectors(states[rows]).unflatten(1, (2, -1))
        for (name, (place, shape)), (scale, shift) in zip(wanted.items(), decoded, strict=True):
            normalises = graph.operations[place].kind in NORMS and name.endswith(".weight")
            vector = 2 * torch.sigmoid(scale / 2) if normalises else torch.tanh(0.2 * shift)
            yield name, _tiled(vector, shape)

    def _kernels(
        self, states: Tensor, wanted: Mapping[str, tuple[int, Shape]], heads: set[int]
    ) -> Iterator[tuple[str, Tensor]]:
        """Kernels of equal height and width, and heads apart, are decoded together."""
        groups: dict[tuple[bool, Shape], list[str]] = {}
        for name, (place, shape) in wanted.items():
            groups.setdefault((place in heads, (*shape[2:], 1, 1)[:2]), []).append(name)
        for (head, area), names in groups.items():
            rows = torch.tensor([wanted[name][0] for name in names], device=states.device)
            maps = self.spread(states[rows]).unflatten(1, (-1, self.kernel, self.kernel))
            maps = F.relu(_centre(maps, area)).flatten(2).transpose(1, 2)  # (n, height · width, 2 · width)
            last = self.classes if head else self.kernels
            decoded = last(F.relu(self.mix(maps))).unflatten(2, (-1, self.channels))
            decoded = decoded.permute(0, 2, 3, 1).unflatten(3, tuple(min(side, self.kernel) for side in area))
            for name, kernel in zip(names, decoded, strict=True):
                shape = wanted[name][1]
                kernel = kernel.squeeze((2, 3)) if len(shape) == 2 else kernel[..., 0] if len(shape) == 3 else kernel
                gain = 1.0 if head else 2.0  # after the last layer there is no ReLU
                yield name, _tiled(kernel, shape) * sqrt(gain / prod(shape[1:]))


def _perceptron(inside: int, hidden: int, outside: int) -> nn.Module:
    return nn.Sequential(nn.Linear(inside, hidden), nn.ReLU(), nn.Linear(hidden, outside))


def _centre(maps: Tensor, area: Shape) -> Tensor:
    """Of `(…, H, W)` the middle of at most so many."""
    for axis, size in zip((-2, -1), area, strict=True):
        most = maps.shape[axis]
        if size < most:
            maps = maps.narrow(axis, (most - size) // 2, size)
    return maps


def _tiled(tensor: Tensor, shape: Shape) -> Tensor:
    """Sliced to a shape, and repeated along channels; along height and width zeros stand around."""
    for axis, size in enumerate(shape):
        have = tensor.shape[axis]
        if size < have:
            tensor = tensor.narrow(axis, 0, size)
        elif size > have and axis < 2:
            repeats = [1] * tensor.dim()
            repeats[axis] = -(-size // have)
            tensor = tensor.repeat(repeats).narrow(axis, 0, size)
        elif size > have:
            around = [0, 0] * (tensor.dim() - 1 - axis) + [(size - have) // 2, (size - have + 1) // 2]
            tensor = F.pad(tensor, around)
    return tensor


@lru_cache(maxsize=256)  # of a thousand operations each holds 8 MB
def _levels(key: Same[OperationGraph], shapes_of: Same[Mapping[str, Shape]], device: str) -> Levels:
    from scipy.sparse import csr_matrix
    from scipy.sparse.csgraph import shortest_path

    operations = key.thing.operations
    count = len(operations)
    edges = [(place, source) for place, operation in enumerate(operations) for source in set(operation.inputs)]
    rows, columns = np.array(edges, dtype=int).reshape(-1, 2).T
    steps = shortest_path(csr_matrix((np.ones(len(edges)), (rows, columns)), (count, count)), unweighted=True)
    near = (steps == 1).astype(np.float32)
    reached = np.isfinite(steps) & (steps > 1) & (steps <= FARTHEST)
    far = np.where(reached, 1 / np.where(reached, steps, 1), 0).astype(np.float32)
    depths = np.zeros(count, dtype=int)
    for place, operation in enumerate(operations):
        depths[place] = max((depths[source] + 1 for source in operation.inputs), default=0)
    shapes = np.zeros((count, 4), dtype=int)
    places = {operation.name: place for place, operation in enumerate(operations) if operation.name}
    for name, shape in shapes_of.thing.items():
        if name.endswith(".weight"):
            sizes = [min(int(np.log2(size)), SIZES - 1) + 1 for size in shape]
            shapes[places[name.removesuffix(".weight")], : len(sizes)] = sizes
    order = tuple(torch.tensor(np.flatnonzero(depths == depth), device=device) for depth in range(depths.max() + 1))
    return Levels(
        node_features(key.thing).to(device),
        torch.tensor(shapes, device=device),
        torch.tensor(near, device=device),
        torch.tensor(far, device=device),
        order,
    )
