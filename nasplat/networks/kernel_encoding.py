"""A network as the tensor that a convolutional hypernetwork reads: one cell for every few weights that it is to make.

What SMASH writes down of memory banks (Brock et al., 2017: indicators of ±1 for what a layer reads and writes, where it
stands, its kernel, dilation and groups) is here taken from an operation graph, so that it serves every space: which
operations the input channels of a convolution come from, and which read its output.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache, lru_cache
from hashlib import sha256
from math import prod, sqrt

import numpy as np
import torch
from torch import Tensor

from nasplat.core.graph import Operation, OperationGraph, Shape
from nasplat.networks.graph_run import parameter_shapes
from nasplat.networks.same import Same

NAME = 18  # indicators that tell operations of different names apart
KINDS = ("conv2d", "linear", "max_pool", "avg_pool", "shift")  # all others pass on what they read
SIGNAL = NAME + len(KINDS) + 9  # indicators of an operation
PLACE = 8  # binary digits of a position
COLUMN = SIGNAL + 2 * PLACE
FADES = 0.5  # of what an operation reads, or of who reads it, beside what it is itself
BAND = 4  # cells, one above the other, before a kernel goes on to the right


@dataclass(frozen=True, slots=True)
class Kernel:
    """Where a kernel lies: from which column of its size on, and how many columns each of its bands has."""

    name: str
    shape: Shape
    first: int
    columns: int
    bands: int


@dataclass(frozen=True, slots=True)
class Encoding:
    """A network as bands of cells: a cell stands for `unit` output channels times `unit` input channels of a kernel.

    Args:
        network: `(3 · SIGNAL,)` means over all operations.
        layers: `(L, 2 · SIGNAL)` of every convolution: itself, and who reads its output.
        columns: `(W, COLUMN)` where the input channels come from, and where in the kernel the column lies.
        owner: `(W,)` the convolution of every column.
        scales: `(W, 1)` standard deviation that a kernel is initialised with.
        kernels: those of equal height and width together.
        sizes: height and width of kernels, and how many columns are of that size, in the order of the columns.
    """

    network: Tensor
    layers: Tensor
    columns: Tensor
    owner: Tensor
    scales: Tensor
    kernels: tuple[Kernel, ...]
    sizes: Mapping[Shape, int]


def encode(graph: OperationGraph, generated: Callable[[Operation], bool], unit: int, device: str = "cpu") -> Encoding:
    """The encoding of a network; the same graph is encoded once.

    Args:
        generated: which of its convolutions.
        unit: channels along the edge of a cell.
    """
    return _encode(Same(graph), generated, unit, device)


@lru_cache(maxsize=1024)
def _encode(key: Same[OperationGraph], generated: Callable[[Operation], bool], unit: int, device: str) -> Encoding:
    graph, shapes = key.thing, parameter_shapes(key.thing)
    own = [indicators(operation) for operation in graph.operations]
    origins, readers = _origins(graph, own), _readers(graph, own)
    chosen = [place for place, operation in enumerate(graph.operations) if generated(operation)]
    chosen.sort(key=lambda place: tuple(graph.operations[place].attributes["kernel"]))  # stable: else in their order
    columns, owner, scales, kernels = [np.zeros((0, COLUMN))], [], [], []
    sizes: dict[Shape, int] = {}
    for layer, place in enumerate(chosen):
        operation = graph.operations[place]
        name = f"{operation.name}.weight"
        shape, size = shapes[name], shapes[name][2:]
        origin = origins[operation.inputs[0]].reshape(-1, shape[1], SIGNAL).mean(0)  # over the groups
        starts = np.arange(0, shape[1], unit)
        origin = np.add.reduceat(origin, starts, axis=0) / np.diff(starts, append=shape[1])[:, None]
        count, bands = len(starts), -(-shape[0] // (unit * BAND))
        kernels.append(Kernel(name, shape, sizes.get(size, 0), count, bands))
        across = _digits(np.arange(count))
        for band in range(bands):
            down = np.broadcast_to(_digits(np.array([band])), (count, PLACE))
            columns.append(np.concatenate([origin, across, down], 1))
        owner += [layer] * (count * bands)
        scales += [sqrt(2 / (prod(shape[2:]) * (1 if shape[1] == 1 else shape[0])))] * (count * bands)
        sizes[size] = sizes.get(size, 0) + count * bands
    read = [origins[operation.inputs[0] if operation.inputs else 0].mean(0) for operation in graph.operations]
    layers = [np.concatenate([own[place], readers[place]]) for place in chosen]

    def tensor(array: object) -> Tensor:
        return torch.tensor(np.asarray(array), dtype=torch.float32, device=device)

    return Encoding(
        tensor(np.concatenate([np.mean(part, 0) for part in (own, read, readers)])),
        tensor(np.array(layers).reshape(-1, 2 * SIGNAL)),
        tensor(np.concatenate(columns)),
        torch.tensor(owner, dtype=torch.long, device=device),
        tensor(scales)[:, None],
        tuple(kernels),
        sizes,
    )


def indicators(operation: Operation) -> np.ndarray:
    """`(SIGNAL,)` of ±1: which operation it is, by its name, and what it is."""
    attributes = operation.attributes
    kernel, stride, dilation = (tuple(attributes.get(name, (1, 1))) for name in ("kernel", "stride", "dilation"))
    return _indicators(
        operation.name or operation.kind, operation.kind, kernel, stride, dilation, attributes.get("groups", 1)
    )


@lru_cache(maxsize=1 << 14)
def _indicators(name: str, kind: str, kernel: Shape, stride: Shape, dilation: Shape, groups: int) -> np.ndarray:
    digits = np.frombuffer(sha256(name.encode()).digest(), np.uint8)
    facts = [kind == one for one in KINDS]
    facts += [max(kernel) >= size for size in (3, 5, 7)] + [kernel[0] > kernel[-1]]
    facts += [max(dilation) >= size for size in (2, 3)] + [max(stride) > 1] + [groups >= size for size in (2, 5)]
    return np.concatenate([2.0 * np.unpackbits(digits)[:NAME] - 1, 2.0 * np.array(facts) - 1])


def _origins(graph: OperationGraph, own: list[np.ndarray]) -> list[np.ndarray]:
    """`(C, SIGNAL)` for the channels of every operation's output: what they are made by, and from what."""
    found: list[np.ndarray] = []
    for operation, itself in zip(graph.operations, own, strict=True):
        inputs = [found[source] for source in operation.inputs]
        channels = operation.shape[0]
        if operation.kind == "input":
            made = np.broadcast_to(itself, (channels, SIGNAL))
        elif operation.kind in ("conv2d", "linear"):
            made = np.broadcast_to(_levelled(itself + FADES * inputs[0].mean(0)), (channels, SIGNAL))
        elif operation.kind in KINDS:
            made = inputs[0] * itself
        elif operation.kind == "concat":
            made = np.concatenate(inputs)
        elif operation.kind == "zeros":
            made = np.zeros((channels, SIGNAL))
        else:
            made = inputs[0] if len(inputs) == 1 else _levelled(inputs[0] + inputs[1])
        found.append(made)
    return found


def _readers(graph: OperationGraph, own: list[np.ndarray]) -> list[np.ndarray]:
    """`(SIGNAL,)` of every operation: what reads its output, and who reads that."""
    heard = [np.zeros(SIGNAL) for _ in own]
    for place in range(len(own) - 1, 0, -1):
        operation = graph.operations[place]
        heard[place] = said = _levelled(heard[place])
        if operation.kind in KINDS:
            said = _levelled(own[place] + FADES * said)
        for source in operation.inputs:
            heard[source] = heard[source] + said
    return heard


def _levelled(signals: np.ndarray) -> np.ndarray:
    """Of the norm that indicators have, so that what is generated does not grow with the number of connections."""
    norms = np.sqrt(np.square(signals).sum(-1, keepdims=True))
    return signals * (sqrt(SIGNAL) / np.maximum(norms, 1e-6))


@cache
def _all_digits() -> np.ndarray:
    return 2.0 * (np.arange(1 << PLACE)[:, None] >> np.arange(PLACE) & 1) - 1


def _digits(positions: np.ndarray) -> np.ndarray:
    return _all_digits()[positions % (1 << PLACE)]
