"""SMASH: a convolutional hypernetwork reads a whole architecture as one tensor, and writes its 1×1 kernels.

Brock, Lim, Ritchie & Weston, SMASH: One-Shot Model Architecture Search through HyperNetworks, 2017. All else is shared
and sliced. Differences: see `SmashHyperNetwork`.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod, sqrt
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nasplat.core.graph import Operation, OperationGraph, Shape
from nasplat.networks.graph_run import parameter_shapes
from nasplat.networks.kernel_encoding import BAND, COLUMN, SIGNAL, Encoding, encode
from nasplat.networks.shared_weights import Kernels, SharedWeights, sliced
from nasplat.networks.weight_conditions import MIP

if TYPE_CHECKING:
    from nasplat.core.space import SearchSpace

Generated = Literal["pointwise", "all"]
SLOPE = 0.1


class SmashHyperNetwork(nn.Module):
    """The weights of all networks of a space: kernels from the encoding of the whole network, others shared.

    A fully convolutional, densely connected network maps the encoding (`nasplat.networks.kernel_encoding`) to the
    weights of kernels, `unit`² × height × width of them a cell. In training a channel of the encoding is Gaussian
    noise; in evaluation it is zero, and a network has the same weights every time.

    Beyond the paper, what is generated is added to shared weights (`base`), with an encoding of constant norm (Ortiz et
    al., 2023, see `nasplat.networks.weight_conditions`), where the authors' code has weight normalisation; and every
    layer also reads means over all cells, so that no kernel is too far from a difference elsewhere to depend on it.

    Args:
        space: one whose graphs `nasplat.networks.graph_run` can run.
        generated: the kernels of 1×1 convolutions, or of all.
        base: whether what is generated is added to shared weights, or is all there is, as in the paper.
        kernels: of `nasplat.networks.shared_weights.SharedWeights`; the paper slices.
        unit: channels along the edge of a cell: their square is the depth compression of the paper.
        width: of the first layer.
        growth, depth: channels that each layer adds, and how many of them there are.

    Attributes:
        space_fingerprint: of the space.
        shared: the shared weights.

    Raises:
        NasplatError: a space without graphs of its own.
    """

    def __init__(
        self,
        space: SearchSpace,
        generated: Generated = "pointwise",
        base: bool = True,
        kernels: Kernels = "sliced",
        unit: int = 4,
        width: int = 32,
        growth: int = 16,
        depth: int = 3,
    ) -> None:
        super().__init__()
        self.space_fingerprint, self.unit = space.fingerprint, unit
        self.generated = _convolutions if generated == "all" else _pointwise
        self.base = base
        self.shared = SharedWeights(space, kernels)
        made = {
            key: one.shape[2:]
            for key, one in self.shared.parameters_by_key.items()
            if one.dim() == 4 and (generated == "all" or tuple(one.shape[2:]) == (1, 1))
        }
        for key in () if base else made:
            del self.shared.parameters_by_key[key]
        self.largest = tuple(max((size[axis] for size in made.values()), default=1) for axis in (0, 1))
        self.network = nn.Linear(3 * SIGNAL, width)
        self.layers = nn.Linear(2 * SIGNAL, width, bias=False)
        self.columns = nn.Linear(COLUMN, width, bias=False)
        self.rows = nn.Parameter(torch.randn(BAND, 1, width))
        self.noise = nn.Parameter(torch.randn(width))
        sizes = [width + step * growth for step in range(depth + 1)]
        self.near = nn.ModuleList(nn.Conv2d(size, growth, 3, padding=1) for size in sizes[:-1])
        self.far = nn.ModuleList(nn.Linear(size, growth, bias=False) for size in sizes[:-1])
        # Of three dimensions: the loop brings those of four and five into a memory format of images.
        self.head = nn.Parameter(torch.empty(sizes[-1], unit**2, prod(self.largest)))
        for module in (self.network, self.layers, self.columns, *self.far):
            nn.init.kaiming_normal_(module.weight, nonlinearity="linear")
        for convolution in self.near:
            nn.init.kaiming_normal_(convolution.get_parameter("weight"), a=SLOPE)
            nn.init.zeros_(convolution.get_parameter("bias"))
        nn.init.zeros_(self.network.bias)
        # With it what is generated has a standard deviation of 1, before it is scaled as kernels are initialised.
        nn.init.normal_(self.head, 0, sqrt(2 / (1 + SLOPE**2) / sizes[-1]))

    def forward(self, graphs: Sequence[OperationGraph]) -> list[dict[str, Tensor]]:
        """The weights of networks, by the names of their state dicts.

        Raises:
            NasplatError: a network that is not of the space.
        """
        return [self._weights(graph) for graph in graphs]

    def _weights(self, graph: OperationGraph) -> dict[str, Tensor]:
        names = parameter_shapes(graph)
        kernels = self.kernels(graph)
        if not self.base:
            weights = kernels | self.shared.weights(graph, [name for name in names if name not in kernels])
            return {name: weights[name] for name in names}
        weights = self.shared.weights(graph, names)
        for name, kernel in kernels.items():
            weights[name] = weights[name] + MIP.spread * kernel
        return weights

    def kernels(self, graph: OperationGraph) -> dict[str, Tensor]:
        """What is generated for a network, by name; see `forward`."""
        code = encode(graph, self.generated, self.unit, str(self.rows.device))
        if not code.kernels:
            return {}
        features, unit = self._features(code), self.unit
        wholes: dict[Shape, Tensor] = {}  # (BAND · unit, columns · unit, height, width)
        first = 0
        for size, count in code.sizes.items():
            head = sliced(self.head.unflatten(2, self.largest), (*self.head.shape[:2], *size))
            cells = features[:, :, first : first + count].permute(1, 2, 0) @ head.flatten(1)
            cells = (cells * code.scales[first : first + count]).unflatten(2, (unit, unit, *size))
            wholes[size] = cells.transpose(1, 2).flatten(0, 1).flatten(1, 2)
            first += count
        found: dict[str, Tensor] = {}
        for kernel in code.kernels:
            columns = kernel.columns * unit
            part = wholes[kernel.shape[2:]].narrow(1, kernel.first * unit, columns * kernel.bands)
            if kernel.bands > 1:
                part = part.unflatten(1, (kernel.bands, columns)).transpose(0, 1).flatten(0, 1)
            found[kernel.name] = part[: kernel.shape[0], : kernel.shape[1]]
        return found

    def _features(self, code: Encoding) -> Tensor:
        """`(features, BAND, W)` of the cells."""
        # A 1×1 convolution of the encoding, whose channels are the same along a layer, a column or a row.
        columns = self.columns(code.columns) + self.layers(code.layers)[code.owner] + self.network(code.network)
        states = columns + self.rows
        if self.training:
            drawn = torch.randn(BAND, len(columns), 1)  # on the CPU, where the loop keeps the generator's state
            states = states + drawn.to(states.device) * self.noise
        states = states.permute(2, 0, 1)[None] / sqrt(5)
        for near, far in zip(self.near, self.far, strict=True):
            active = F.leaky_relu(states, SLOPE)
            new = near(active) + far(active.mean((2, 3)))[:, :, None, None]
            states = torch.cat([states, new], 1)
        return F.leaky_relu(states, SLOPE)[0]


def _pointwise(operation: Operation) -> bool:
    return operation.kind == "conv2d" and prod(operation.attributes["kernel"]) == 1


def _convolutions(operation: Operation) -> bool:
    return operation.kind == "conv2d"
