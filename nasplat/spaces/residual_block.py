"""The blocks of a resnet space (He et al., Deep Residual Learning for Image Recognition, 2016)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from nasplat.core.graph import GraphBuilder
from nasplat.spaces.chain import by

BLOCKS = ("basic", "bottleneck")
SHORTCUTS = ("projection", "padded")


class Block(NamedTuple):
    """One block: its kernel, its inner channels, and how it changes shapes."""

    name: str
    kernel: int
    inner: int
    in_channels: int
    out_channels: int
    stride: int


@dataclass(frozen=True, slots=True)
class BlockKind:
    """What all blocks of a space have in common, and how one becomes operations.

    Args:
        block: basic (two convolutions of the block's kernel) or bottleneck (that convolution between two 1×1).
        shortcut: what replaces the identity where a block changes shape, see `ResNetSpace`.
        activation: after every sum and every batch norm but the last.
    """

    block: str
    shortcut: str
    activation: str

    @property
    def published_expansion(self) -> float:
        """Inner channels by output channels, in ResNets."""
        return 1.0 if self.block == "basic" else 0.25

    def append(self, builder: GraphBuilder, node: int, block: Block) -> int:
        """Appends the convolutions, the shortcut, their sum and the activation."""
        convolutions = self._convolutions(block)
        branch = node
        for number, (channels, kernel, stride) in enumerate(convolutions, 1):
            branch = builder.conv2d(branch, channels, kernel, stride=stride, name=f"{block.name}.conv{number}")
            branch = builder.batch_norm(branch, name=f"{block.name}.norm{number}")
            if number < len(convolutions):
                branch = builder.activation(branch, self.activation)
        return builder.activation(
            builder.add([builder.drop_path(branch), self._shortcut(builder, node, block)]), self.activation
        )

    def label(self, block: Block) -> str:
        """Its convolutions in a drawing."""
        words = [f"{kernel}×{kernel} → {channels}" for channels, kernel, _ in self._convolutions(block)]
        return ", ".join(words) + by(block.stride)

    def _convolutions(self, block: Block) -> list[tuple[int, int, int]]:
        """Channels, kernel and stride of each; the stride is that of the first whose kernel is the block's."""
        _, kernel, inner, _, channels, stride = block
        if self.block == "basic":
            return [(inner, kernel, stride), (channels, kernel, 1)]
        return [(inner, 1, 1), (inner, kernel, stride), (channels, 1, 1)]

    def _shortcut(self, builder: GraphBuilder, node: int, block: Block) -> int:
        _, _, _, in_channels, out_channels, stride = block
        if stride == 1 and in_channels == out_channels:
            return node
        if self.shortcut == "projection" or out_channels < in_channels:
            node = builder.conv2d(node, out_channels, 1, stride=stride, name=f"{block.name}.shortcut.conv")
            return builder.batch_norm(node, name=f"{block.name}.shortcut.norm")
        if stride > 1:
            node = builder.pool(node, "max_pool", 1, stride)  # of single pixels: it leaves out the others
        if out_channels > in_channels:
            _, height, width = builder.shape(node)
            node = builder.concat([node, builder.zeros(node, (out_channels - in_channels, height, width))])
        return node
