"""The operations of the cell families, each written once as primitive operations of a graph.

All convolutions follow the order activation, convolution, normalisation (NASNet, Zoph et al. 2018; DARTS, Liu et al.
2019; NAS-Bench-201, Dong and Yang 2020).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import gcd

from nasplat.core.errors import NasplatError
from nasplat.core.graph import GraphBuilder

# (builder, node, out_channels, stride, name) -> node
Emit = Callable[[GraphBuilder, int, int, int, str], int]

NONE = "none"
IDENTITY = "skip_connect"


def convolution(*kernels: int | tuple[int, int], dilation: int = 1, groups: int = 1) -> Emit:
    """ReLU, convolution, batch norm, once for every kernel; the first carries the stride.

    There are so many groups, or as many fewer as divide the channels.
    """

    def emit(builder: GraphBuilder, node: int, out_channels: int, stride: int, name: str) -> int:
        for position, kernel in enumerate(kernels):
            prefix = name if len(kernels) == 1 else f"{name}.{position}"
            node = builder.conv2d(
                builder.activation(node),
                out_channels,
                kernel,
                name=f"{prefix}.conv",
                stride=stride if position == 0 else 1,
                dilation=dilation,
                groups=gcd(groups, builder.shape(node)[0], out_channels),
            )
            node = builder.batch_norm(node, name=f"{prefix}.norm")
        return node

    return emit


def depthwise_separable(kernel: int, *, repeats: int, dilation: int = 1) -> Emit:
    """ReLU, depthwise and pointwise convolution, batch norm; applied `repeats` times, the first with the stride."""

    def emit(builder: GraphBuilder, node: int, out_channels: int, stride: int, name: str) -> int:
        for position in range(repeats):
            prefix = name if repeats == 1 else f"{name}.{position}"
            channels = builder.shape(node)[0]
            node = builder.conv2d(
                builder.activation(node),
                channels,
                kernel,
                name=f"{prefix}.depthwise",
                stride=stride if position == 0 else 1,
                dilation=dilation,
                groups=channels,
            )
            node = builder.conv2d(node, out_channels, name=f"{prefix}.pointwise")
            node = builder.batch_norm(node, name=f"{prefix}.norm")
        return node

    return emit


def pool(kind: str, kernel: int) -> Emit:
    def emit(builder: GraphBuilder, node: int, out_channels: int, stride: int, name: str) -> int:
        return builder.pool(node, kind, kernel, stride)

    return emit


def squeeze_excite(builder: GraphBuilder, node: int, out_channels: int, stride: int, name: str) -> int:
    """Every channel scaled by what the pooled image says (Hu et al., 2018); stride and width by a 1x1 convolution."""
    if stride > 1 or builder.shape(node)[0] != out_channels:
        node = convolution(1)(builder, node, out_channels, stride, f"{name}.project")
    scale = builder.conv2d(builder.global_avg_pool(node), max(1, out_channels // 4), name=f"{name}.reduce", bias=True)
    scale = builder.conv2d(builder.activation(scale), out_channels, name=f"{name}.restore", bias=True)
    return builder.multiply(node, builder.activation(scale, "hard_sigmoid"))


def factorised_reduction(builder: GraphBuilder, node: int, out_channels: int, stride: int, name: str) -> int:
    """Halves height and width without losing pixels: two strided 1x1 convolutions, one of them shifted by a pixel."""
    node = builder.activation(node)
    half = out_channels // 2
    parts = [builder.conv2d(node, out_channels - half, name=f"{name}.even", stride=stride)]
    if half:
        parts.append(builder.conv2d(builder.shift(node), half, name=f"{name}.odd", stride=stride))
    return builder.batch_norm(builder.concat(parts), name=f"{name}.norm")


# What a reduction cell makes of the identity, what aligns the inputs of a cell, and what brings a concatenation back to
# the width of the cell.
REDUCE = "factorised_reduction"
ALIGN = "align"
SQUEEZE = "squeeze"

OPERATIONS: Mapping[str, Emit] = {
    "max_pool_3x3": pool("max_pool", 3),
    "max_pool_5x5": pool("max_pool", 5),
    "max_pool_7x7": pool("max_pool", 7),
    "avg_pool_3x3": pool("avg_pool", 3),
    "conv_1x1": convolution(1),
    "conv_3x3": convolution(3),
    "conv_5x5": convolution(5),
    "group_conv_3x3": convolution(3, groups=8),
    "conv_1x3_3x1": convolution((1, 3), (3, 1)),
    "conv_1x7_7x1": convolution((1, 7), (7, 1)),
    "dil_conv_3x3": depthwise_separable(3, repeats=1, dilation=2),
    "dil_conv_5x5": depthwise_separable(5, repeats=1, dilation=2),
    "dilated_3x3": convolution(3, dilation=2),
    "sep_conv_3x3": depthwise_separable(3, repeats=2),
    "sep_conv_5x5": depthwise_separable(5, repeats=2),
    "sep_conv_7x7": depthwise_separable(7, repeats=2),
    "squeeze_excite": squeeze_excite,
    REDUCE: factorised_reduction,
    ALIGN: convolution(1),
    SQUEEZE: convolution(1),
}
WEIGHTLESS = frozenset(name for name in OPERATIONS if "pool" in name)


def check_operations(operations: tuple[str, ...]) -> tuple[str, ...]:
    """The operations of a space as they were given.

    Raises:
        NasplatError: one of them is not known.
    """
    known = [name for name in (NONE, IDENTITY, *OPERATIONS) if name not in (REDUCE, ALIGN, SQUEEZE)]
    for name in operations:
        if name not in known:
            raise NasplatError(f"unknown cell operation {name!r}", f"the known ones are {', '.join(known)}")
    return operations
