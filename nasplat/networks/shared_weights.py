"""A supernet: one bank of weights from which every network of a space takes its own, by name and by slicing.

Operations of one name are one operation, of which a narrower network has the first channels (Cai et al., Once-for-All,
2020; Valipour et al., SortedNet, 2023), and a shallower one the first layers. Kernels of different sizes at one place
are different operations (Guo et al., Single Path One-Shot, 2020), or a small one is the centre of the large one
(Once-for-All, without its transformation matrices).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import combinations, product
from math import prod, sqrt
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from torch import Tensor, nn

from nasplat.core.errors import NasplatError
from nasplat.core.graph import Operation, OperationGraph, Shape
from nasplat.networks.graph_run import parameter_shapes

if TYPE_CHECKING:
    from nasplat.core.architecture import Architecture
    from nasplat.core.space import SearchSpace

Kernels = Literal["own", "sliced"]
PAIRS = 2000  # of choices, up to which all of them are looked at together
SAMPLES = 200


class SharedWeights(nn.Module):
    """The weights of all networks of a space.

    Args:
        space: one whose graphs `nasplat.networks.graph_run` can run.
        kernels: whether kernels of different sizes are `own` weights, or `sliced` from the largest.
        generator: draws the initial weights.

    Raises:
        NasplatError: a space without graphs of its own.
    """

    def __init__(self, space: SearchSpace, kernels: Kernels = "own", generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.space_fingerprint, self.kernels = space.fingerprint, kernels
        largest: dict[str, Shape] = {}
        for architecture in covering(space):
            graph = space.graph(architecture)
            keys = self._keys(graph)
            for name, shape in parameter_shapes(graph).items():
                key = keys[name]
                largest[key] = tuple(map(max, largest.get(key, shape), shape))
        self.parameters_by_key = nn.ParameterDict(
            {key: nn.Parameter(_drawn(key, shape, generator)) for key, shape in sorted(largest.items())}
        )

    def forward(self, graphs: Sequence[OperationGraph]) -> list[dict[str, Tensor]]:
        """The weights of networks, by the names of their state dicts; views of the bank.

        Raises:
            NasplatError: a network that is not of the space.
        """
        return [self.weights(graph, parameter_shapes(graph)) for graph in graphs]

    def weights(self, graph: OperationGraph, names: Iterable[str]) -> dict[str, Tensor]:
        """Those of a network that have these names.

        Raises:
            NasplatError: a network that is not of the space.
        """
        keys, shapes = self._keys(graph), parameter_shapes(graph)
        found: dict[str, Tensor] = {}
        for name in names:
            key, shape = keys[name], shapes[name]
            whole = self.parameters_by_key.get(key)
            if whole is None or any(size > most for size, most in zip(shape, whole.shape, strict=True)):
                raise NasplatError(
                    f"there are no weights for {name} of shape {shape}",
                    "the source was made for another space; train one for this space",
                )
            found[name] = whole if tuple(whole.shape) == shape else sliced(whole, shape)
        return found

    def _keys(self, graph: OperationGraph) -> dict[str, str]:
        """The key in the bank of each parameter of a graph."""
        keys: dict[str, str] = {}
        for operation in graph.operations:
            kind = "" if self.kernels == "sliced" else _kernel(operation)
            for part in ("weight", "bias"):
                name = f"{operation.name}.{part}"
                keys[name] = f"{name}{kind}".replace(".", "/")
        return keys


def covering(space: SearchSpace) -> Iterator[Architecture]:
    """Architectures of a space that together have all that any of its networks has.

    Every option of every choice on top of the costliest ones, of two sizes of one layer (a kernel and its dilation) all
    pairs, and a few hundred at random; of small tables every two options together, on top of the first and of the last
    ones too: what dead choices hide in one is there in another.
    """
    names = list(space.choices)
    known = space.extremes()
    bases: list[dict[str, object]] = [dict((known[0] if known else _climbed(space, 1)).values)]
    pairs = list(combinations(names, 2))
    together = sum(prod(len(space.choices[name].options) for name in pair) for pair in pairs) <= PAIRS
    changes: list[tuple[str, ...]] = [(name,) for name in names]
    changes += [(one, other) for one, other in pairs if _sizes_of_one_layer(space, one, other)]
    if together:
        changes = list(pairs)
        bases += [{name: choice.options[end] for name, choice in space.choices.items()} for end in (0, -1)]
    seen: set[str] = set()
    for base in bases:
        for changed in changes:
            for options in product(*(space.choices[name].options for name in changed)):
                architecture = space.canonical({**base, **dict(zip(changed, options, strict=True))})
                if architecture.digest not in seen:
                    seen.add(architecture.digest)
                    yield architecture
    rng = np.random.default_rng(0)
    for _ in range(SAMPLES):
        architecture = space.sample(rng)
        if architecture.digest not in seen:
            seen.add(architecture.digest)
            yield architecture


def _sizes_of_one_layer(space: SearchSpace, one: str, other: str) -> bool:
    layer = one.rpartition(".")[0]
    return layer == other.rpartition(".")[0] != "" and space.choices[one].ordered and space.choices[other].ordered


def extremes(space: SearchSpace) -> tuple[Architecture, Architecture]:
    """The largest and the smallest network by MACs, then by parameters, as far as changes of one choice lead."""
    return space.extremes() or (_climbed(space, 1), _climbed(space, -1))


def _climbed(space: SearchSpace, sign: int) -> Architecture:
    """From the best of a few hundred at random to where no change of one choice is better."""

    def size(architecture: Architecture) -> tuple[int, int]:
        cost = space.cost(architecture)
        return sign * cost.macs, sign * cost.params

    rng = np.random.default_rng(0)
    best = max((space.sample(rng) for _ in range(SAMPLES)), key=size)
    while True:
        better = max(space.neighbours(best), key=size, default=best)
        if size(better) <= size(best):
            return best
        best = better


def _kernel(operation: Operation) -> str:
    kernel = operation.attributes.get("kernel")
    if operation.kind != "conv2d" or kernel is None:
        return ""
    dilation = tuple(operation.attributes.get("dilation", (1, 1)))
    return f".{'x'.join(map(str, kernel))}" + (f"d{dilation[0]}" if dilation != (1, 1) else "")


def sliced(whole: Tensor, shape: Shape) -> Tensor:
    """The first channels, and of kernels the centre."""
    for axis, (size, most) in enumerate(zip(shape, whole.shape, strict=True)):
        if size < most:
            whole = whole.narrow(axis, (most - size) // 2 if axis >= 2 else 0, size)
    return whole


def _drawn(key: str, shape: Shape, generator: torch.Generator | None) -> Tensor:
    """As `nasplat.networks.graph_network.initialise` draws: normal by fan-out, uniform by fan-in, ones and zeros."""
    if len(shape) == 4:
        depthwise = shape[1] == 1
        fan_out = prod(shape[2:]) * (1 if depthwise else shape[0])
        return torch.randn(shape, generator=generator) * sqrt(2 / fan_out)
    if len(shape) == 2:
        return (2 * torch.rand(shape, generator=generator) - 1) / sqrt(shape[1])
    return torch.zeros(shape) if "/bias" in key else torch.ones(shape)
