"""Residual networks (He et al. 2016) whose widths, depths, inner widths and kernels are chosen.

The space that Once-for-All (Cai et al. 2020) and SortedNet (Valipour et al. 2023) train as one supernet: operations are
named by their place, so that a narrower or shallower network is the first channels and blocks of a larger one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from nasplat.core.architecture import Architecture
from nasplat.core.choice import Choice, Option, Values
from nasplat.core.cost import Cost
from nasplat.core.drawing import Drawing, Node
from nasplat.core.errors import NasplatError
from nasplat.core.graph import GraphBuilder, OperationGraph
from nasplat.core.problem import Problem
from nasplat.core.space import SearchSpace
from nasplat.spaces.chain import (
    ACTIVATIONS,
    ChainNetwork,
    ElasticStage,
    elastic_stages,
    listed,
    one_of,
    spell,
    times,
    whole,
)
from nasplat.spaces.heads import finish_with_heads
from nasplat.spaces.residual_block import BLOCKS, SHORTCUTS, Block, BlockKind

if TYPE_CHECKING:
    from torch import nn

STAGES = (
    {"channels": 16, "stride": 1, "blocks": 3},
    {"channels": 32, "stride": 2, "blocks": 3},
    {"channels": 64, "stride": 2, "blocks": 3},
)
STEMS = ("cifar", "imagenet")


class ResNetSpace(SearchSpace):
    """Stem, stages of residual blocks, pooling, classifier.

    Choices: for each stage its width (`stage1.width`) and its number of blocks (`stage1.depth`), for each block its
    inner channels as a share of the stage's (`stage1.block1.expansion`) and its kernel (`stage1.block1.kernel`); each
    where there is more than one option.

    Canonical form: a network is its chain of live blocks, and of all assignments that spell one chain the same one
    stands for it. So blocks beyond the depth take their default; of two widths with equal channels the first is meant,
    and of two expansions with equal inner channels; blocks also move across neighbouring stages of equal channels and
    stride 1.

    Args:
        problem: what is to be learned.
        stages: mappings of `channels`, `stride` (of the first block) and `blocks` (at most so many). Of bottlenecks,
            the channels are those of the output: 256 in the first stage of ResNet-50.
        block: basic or bottleneck, with the stride in its 3×3 convolution.
        widths: multipliers of a stage's channels, which are rounded to a multiple of `divisor`.
        depths: numbers of blocks that a stage may have besides all; larger ones than that are left out.
        expansions: inner channels of a block as shares of the stage's, rounded likewise; by default those of ResNets,
            1 in basic and 0.25 in bottleneck blocks.
        kernels: odd sizes from 3 on; of both convolutions of a basic block, and of the middle one of a bottleneck.
        shortcut: where a block changes shape, a 1×1 convolution with batch norm (projection), or every other pixel
            and zeros for channels that there were not (padded), without parameters. Where a stage is narrower than
            the one before, it is a projection in both.
        stem: cifar is a 3×3 convolution; imagenet one of 7×7 with stride 2, and max pooling.
        stem_channels: of that convolution; by default 16 and 64.
        activation: relu, relu6, silu or hard_swish.
        divisor: channels that follow from a multiplier are a multiple of it.

    Raises:
        NasplatError: a parameter makes no network.
    """

    def __init__(
        self,
        problem: Problem,
        *,
        stages: Sequence[Mapping[str, int]] = STAGES,
        block: str = "basic",
        widths: Sequence[float] = (0.5, 0.75, 1.0),
        depths: Sequence[int] = (1, 2),
        expansions: Sequence[float] | None = None,
        kernels: Sequence[int] = (3,),
        shortcut: str = "projection",
        stem: str = "cifar",
        stem_channels: int | None = None,
        activation: str = "relu",
        divisor: int = 8,
    ) -> None:
        self.problem = problem
        self.kind = BlockKind(
            one_of("block", block, BLOCKS),
            one_of("shortcut", shortcut, SHORTCUTS),
            one_of("activation", activation, ACTIVATIONS),
        )
        self.stem = one_of("stem", stem, STEMS)
        self.stem_channels = whole(
            "stem_channels", {"cifar": 16, "imagenet": 64}[stem] if stem_channels is None else stem_channels
        )
        self.divisor = divisor
        self.kernels = tuple(whole("a kernel", kernel, 3) for kernel in listed("kernels", kernels))
        if any(kernel % 2 == 0 for kernel in self.kernels):
            raise NasplatError(f"kernels are {list(kernels)}", "each must be an odd number")
        shares = [self.kind.published_expansion] if expansions is None else listed("expansions", expansions)
        self.expansions = tuple(float(share) for share in shares)
        if min(self.expansions) <= 0:
            raise NasplatError(f"expansions are {list(self.expansions)}", "each must be a number above 0")
        plain, self._stages = elastic_stages(stages, widths, depths, divisor, "block")
        self.identity = {
            "family": "resnet",
            **plain,
            "block": block,
            "expansions": list(self.expansions),
            "kernels": list(self.kernels),
            "shortcut": shortcut,
            "stem": stem,
            "stem_channels": self.stem_channels,
            "activation": activation,
            "problem": problem.to_json(),
        }
        self.choices = {choice.name: choice for stage in self._stages for choice in self._choices(stage)}
        last_stage = self._stages[-1].layers if len(self._stages) > 1 else ()
        self._network = ChainNetwork(problem, last_stage, self._stem, self.kind.append, self._head)

    def _choices(self, stage: ElasticStage) -> list[Choice]:
        options = {"expansion": self.expansions, "kernel": self.kernels}
        blocks = [
            Choice(f"{name}.{what}", ones, ordered=True)
            for name in stage.layers
            for what, ones in options.items()
            if len(ones) > 1
        ]
        return [*stage.choices(), *blocks]

    def blocks(self, values: Values) -> list[Block]:
        """The live blocks that values stand for, in order."""
        chain = []
        in_channels = self.stem_channels
        for stage in self._stages:
            channels, names = stage.size(values)
            stride = stage.stride
            for name in names:
                expansion = values.get(f"{name}.expansion", self.expansions[0])
                kernel = values.get(f"{name}.kernel", self.kernels[0])
                inner = times(channels, float(expansion), self.divisor)
                chain.append(Block(name, int(kernel), inner, in_channels, channels, stride))
                in_channels, stride = channels, 1
        return chain

    def spelled(self, blocks: Sequence[Block]) -> Values | None:
        """The values that stand for a chain of blocks, whatever these are called; None where the space lacks it."""
        spelled = spell(blocks, self._stages, self.stem_channels)
        if spelled is None:
            return None
        found: dict[str, Option] = {}
        chain = iter(blocks)
        for stage, one in zip(self._stages, spelled, strict=True):
            found |= {stage.width: one.width, stage.depth: one.depth}
            for number, name in enumerate(stage.layers):
                expansion, kernel = self.expansions[0], self.kernels[0]
                if number < one.used:
                    block = next(chain)
                    inner = {times(block.out_channels, share, self.divisor): share for share in self.expansions[::-1]}
                    if block.inner not in inner or block.kernel not in self.kernels:
                        return None
                    expansion, kernel = inner[block.inner], block.kernel
                found |= {f"{name}.expansion": expansion, f"{name}.kernel": kernel}
        return {name: found[name] for name in self.choices}

    def settle(self, values: Values) -> Values:
        spelled = self.spelled(self.blocks(values))
        assert spelled is not None  # the values themselves spell it
        return spelled

    def graph(self, architecture: Architecture) -> OperationGraph:
        return self._network.graph(self.blocks(architecture.values))

    def cost(self, architecture: Architecture) -> Cost:
        return self._network.cost(self.blocks(architecture.values))

    def drawings(self, architecture: Architecture) -> dict[str, Drawing]:
        """The network as one row of boxes, a block each, with the convolutions that it sums to its input."""
        if self.stem == "cifar":
            stem = [Node("stem", f"conv 3×3 → {self.stem_channels}", "convolution")]
        else:
            stem = [
                Node("stem", f"conv 7×7 → {self.stem_channels}, /2", "convolution"),
                Node("stem pool", "max pool 3×3, /2", "pooling"),
            ]
        blocks = self.blocks(architecture.values)
        return {
            "network": self._network.drawing(
                stem, [Node(block.name, self.kind.label(block), "convolution") for block in blocks]
            )
        }

    def build(self, architecture: Architecture) -> nn.Module:
        from nasplat.networks.graph_network import build_network

        return build_network(self.graph(architecture))

    def _stem(self, builder: GraphBuilder) -> int:
        kernel, stride = (3, 1) if self.stem == "cifar" else (7, 2)
        node = builder.conv2d(builder.input, self.stem_channels, kernel, stride=stride, name="stem.conv")
        node = builder.activation(builder.batch_norm(node, name="stem.norm"), self.kind.activation)
        return node if self.stem == "cifar" else builder.pool(node, "max_pool", 3, 2)

    def _head(self, builder: GraphBuilder, node: int, taps: Mapping[str, int]) -> OperationGraph:
        return finish_with_heads(builder, node, self.problem, taps)
