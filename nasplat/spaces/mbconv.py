"""A chain of layers, each nothing or an inverted residual of its own kernel and expansion.

The space of MobileNet-like searches (MnasNet, Tan et al. 2019; ProxylessNAS, Cai et al. 2019) with the block of
MobileNetV2 (Sandler et al. 2018). NAS-Bench-Macro (Su et al., Prioritized Architecture Sampling with Monto-Carlo Tree
Search, 2021) is one instance: `search_spaces/nas_bench_macro.yaml`.
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
from nasplat.spaces.chain import ACTIVATIONS, ChainNetwork, by, elastic_stages, listed, one_of, spell, whole
from nasplat.spaces.heads import finish_with_heads
from nasplat.spaces.inverted_residual import IDENTITY, Block, Layer, kernel_and_expansion

if TYPE_CHECKING:
    from torch import nn

OPERATIONS = (IDENTITY, *(f"mb_k{kernel}_e{expansion}" for kernel in (3, 5, 7) for expansion in (3, 6)))
STAGES = (
    {"channels": 16, "stride": 1, "layers": 1},
    {"channels": 24, "stride": 2, "layers": 3},
    {"channels": 40, "stride": 2, "layers": 3},
    {"channels": 80, "stride": 2, "layers": 3},
)


class MBConvSpace(SearchSpace):
    """Stem, stages of layers, a last 1×1 convolution, pooling, classifier.

    Choices: for each layer its operation (`stage1.layer1`), and for each stage its width (`stage1.width`, where there
    is more than one multiplier) and its number of layers (`stage1.depth`, where there is more than one).

    A layer that must change shape cannot be nothing: where it chooses `identity` it is a 1×1 convolution with the
    stage's stride and batch norm, without activation, as NAS-Bench-Macro has it. Everywhere else `identity` is no
    operation at all.

    Canonical form: a network is its chain of live layers, and of all assignments that spell one chain the same one
    stands for it. So layers stand before identities within a stage (an identity has no position), the depth is the
    smallest that holds the layers, layers beyond the depth take their default, and of two widths with equal channels
    the first is meant; layers also move across neighbouring stages of equal channels and stride 1.

    Args:
        problem: what is to be learned.
        stages: mappings of `channels`, `stride` (of the first layer) and `layers` (at most so many).
        operations: what a layer chooses from: `identity`, or `mb_k<kernel>_e<expansion>`.
        widths: multipliers of a stage's channels, which are rounded to a multiple of `divisor`.
        depths: numbers of layers that a stage may have besides all of its `layers`; larger ones than that are left out.
        stem_channels: of the 3×3 convolution at the start.
        stem_stride: of that convolution.
        last_channels: of the 1×1 convolution at the end; 0 leaves it out.
        activation: relu, relu6, silu or hard_swish.
        squeeze_excite: squeeze-and-excitation after the depthwise convolution, at a quarter of its channels
            (MobileNetV3, Howard et al. 2019).
        divisor: channels that follow from a multiplier are a multiple of it.

    Raises:
        NasplatError: a parameter makes no network.
    """

    def __init__(
        self,
        problem: Problem,
        *,
        stages: Sequence[Mapping[str, int]] = STAGES,
        operations: Sequence[str] = OPERATIONS,
        widths: Sequence[float] = (1.0,),
        depths: Sequence[int] = (),
        stem_channels: int = 16,
        stem_stride: int = 1,
        last_channels: int = 320,
        activation: str = "relu6",
        squeeze_excite: bool = False,
        divisor: int = 8,
    ) -> None:
        self.problem = problem
        operations = listed("operations", operations)
        for operation in operations:
            if operation != IDENTITY:
                kernel_and_expansion(str(operation))
        plain, self._stages = elastic_stages(stages, widths, depths, divisor, "layer")
        self.operations = operations
        self.stem_channels = whole("stem_channels", stem_channels)
        self.stem_stride = whole("stem_stride", stem_stride)
        self.last_channels = whole("last_channels", last_channels, 0)
        if not isinstance(squeeze_excite, bool):
            raise NasplatError(f"squeeze_excite is {squeeze_excite!r}", "it must be true or false")
        self.block = Block(one_of("activation", activation, ACTIVATIONS), squeeze_excite, divisor)
        self.identity = {
            "family": "mbconv",
            **plain,
            "operations": list(operations),
            "stem_channels": stem_channels,
            "stem_stride": stem_stride,
            "last_channels": last_channels,
            "activation": activation,
            "squeeze_excite": squeeze_excite,
            "problem": problem.to_json(),
        }
        self.choices = {
            choice.name: choice
            for stage in self._stages
            for choice in (*stage.choices(), *(Choice(name, operations) for name in stage.layers))
        }
        last_stage = self._stages[-1].layers if len(self._stages) > 1 else ()
        self._network = ChainNetwork(problem, last_stage, self._stem, self.block.append, self._head)

    def layers(self, values: Values) -> list[Layer]:
        """The live layers that values stand for, in order."""
        chain = []
        channels = self.stem_channels
        for stage in self._stages:
            out_channels, names = stage.size(values)
            stride = stage.stride
            for name in names:
                operation = values[name]
                if operation != IDENTITY or stride != 1 or channels != out_channels:
                    chain.append(Layer(name, operation, channels, out_channels, stride))  # type: ignore[arg-type]
                channels, stride = out_channels, 1
        return chain

    def settle(self, values: Values) -> Values:
        chain = self.layers(values)
        spelled = spell(chain, self._stages, self.stem_channels, spare=IDENTITY in self.operations)
        assert spelled is not None  # the values themselves spell it
        found: dict[str, Option] = {}
        for stage, one in zip(self._stages, spelled, strict=True):
            chosen = [layer.operation for layer in chain[: one.used]] + [IDENTITY] * (one.depth - one.used)
            chosen += [self.operations[0]] * (len(stage.layers) - one.depth)
            found |= {stage.width: one.width, stage.depth: one.depth, **dict(zip(stage.layers, chosen, strict=True))}
            chain = chain[one.used :]
        return {name: found[name] for name in self.choices}

    def graph(self, architecture: Architecture) -> OperationGraph:
        return self._network.graph(self.layers(architecture.values))

    def cost(self, architecture: Architecture) -> Cost:
        return self._network.cost(self.layers(architecture.values))

    def drawings(self, architecture: Architecture) -> dict[str, Drawing]:
        """The network as one row of boxes, a layer each."""
        stem = [Node("stem", f"conv 3×3 → {self.stem_channels}" + by(self.stem_stride), "convolution")]
        layers = []
        for layer in self.layers(architecture.values):
            label, kind = "conv 1×1", "convolution"
            if layer.operation != IDENTITY:
                kernel, expansion = kernel_and_expansion(layer.operation)
                label, kind = f"MB {kernel}×{kernel}, expand {expansion}", "separable"
            layers.append(Node(layer.name, f"{label} → {layer.out_channels}{by(layer.stride)}", kind))
        last = [Node("last", f"conv 1×1 → {self.last_channels}", "convolution")] if self.last_channels else []
        return {"network": self._network.drawing(stem, layers, last)}

    def build(self, architecture: Architecture) -> nn.Module:
        from nasplat.networks.graph_network import build_network

        return build_network(self.graph(architecture))

    def _stem(self, builder: GraphBuilder) -> int:
        node = builder.conv2d(builder.input, self.stem_channels, 3, stride=self.stem_stride, name="stem.conv")
        return builder.activation(builder.batch_norm(node, name="stem.norm"), self.block.activation)

    def _head(self, builder: GraphBuilder, node: int, taps: Mapping[str, int]) -> OperationGraph:
        if self.last_channels:
            node = builder.conv2d(node, self.last_channels, 1, name="last.conv")
            node = builder.activation(builder.batch_norm(node, name="last.norm"), self.block.activation)
        return finish_with_heads(builder, node, self.problem, taps)
