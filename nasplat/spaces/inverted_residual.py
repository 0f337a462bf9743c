"""The layers of an mbconv space: the inverted residual of MobileNetV2 (Sandler et al. 2018), and how it is named."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import NamedTuple

from nasplat.core.errors import NasplatError
from nasplat.core.graph import GraphBuilder
from nasplat.spaces.chain import rounded

IDENTITY = "identity"


class Layer(NamedTuple):
    """A layer that computes something; the chain of them is all there is to a network of this space."""

    name: str
    operation: str
    in_channels: int
    out_channels: int
    stride: int


@dataclass(frozen=True, slots=True)
class Block:
    """What all layers of a space have in common, and how one becomes operations."""

    activation: str
    squeeze_excite: bool
    divisor: int

    def append(self, builder: GraphBuilder, node: int, layer: Layer) -> int:
        """Appends a layer: a 1×1 projection for identity, or an inverted residual, with its sum where shapes agree."""
        name, operation, in_channels, out_channels, stride = layer
        if operation == IDENTITY:
            node = builder.conv2d(node, out_channels, 1, stride=stride, name=f"{name}.conv")
            return builder.batch_norm(node, name=f"{name}.norm")
        kernel, expansion = kernel_and_expansion(operation)
        source = node
        if expansion != 1:
            node = self._convolve(builder, node, in_channels * expansion, 1, f"{name}.expand")
        hidden = builder.shape(node)[0]
        node = self._convolve(builder, node, hidden, kernel, f"{name}.depthwise", stride=stride, groups=hidden)
        if self.squeeze_excite:
            node = self._excite(builder, node, f"{name}.excite")
        node = builder.conv2d(node, out_channels, 1, name=f"{name}.project.conv")
        node = builder.batch_norm(node, name=f"{name}.project.norm")
        if stride == 1 and in_channels == out_channels:
            node = builder.add([builder.drop_path(node), source])
        return node

    def _convolve(
        self,
        builder: GraphBuilder,
        node: int,
        channels: int,
        kernel: int,
        name: str,
        *,
        stride: int = 1,
        groups: int = 1,
    ) -> int:
        node = builder.conv2d(node, channels, kernel, stride=stride, groups=groups, name=f"{name}.conv")
        return builder.activation(builder.batch_norm(node, name=f"{name}.norm"), self.activation)

    def _excite(self, builder: GraphBuilder, node: int, name: str) -> int:
        channels = builder.shape(node)[0]
        scale = builder.global_avg_pool(node)
        scale = builder.conv2d(scale, rounded(channels / 4, self.divisor), 1, name=f"{name}.reduce", bias=True)
        scale = builder.conv2d(builder.activation(scale), channels, 1, name=f"{name}.restore", bias=True)
        return builder.multiply(node, builder.activation(scale, "hard_sigmoid"))


def kernel_and_expansion(operation: str) -> tuple[int, int]:
    """Of `mb_k5_e6`: (5, 6).

    Raises:
        NasplatError: the name does not read so.
    """
    match = re.fullmatch(r"mb_k(\d+)_e(\d+)", operation)
    kernel, expansion = (int(number) for number in match.groups()) if match else (0, 0)
    if kernel % 2 == 0 or expansion < 1:
        raise NasplatError(
            f"unknown operation {operation!r}",
            "write identity, or mb_k3_e6 for an inverted residual of (odd) kernel 3 and expansion 6",
        )
    return kernel, expansion
