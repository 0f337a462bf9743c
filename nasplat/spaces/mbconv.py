"""A chain of layers, each nothing or an inverted residual of its own kernel and expansion.

The space of MobileNet-like searches (MnasNet, Tan et al. 2019; ProxylessNAS, Cai et al. 2019) with the block of
MobileNetV2 (Sandler et al. 2018). NAS-Bench-Macro (Su et al., Prioritized Architecture Sampling with Monto-Carlo Tree
Search, 2021) is one instance: `search_spaces/nas_bench_macro.yaml`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from nasplat.core.architecture import Architecture
from nasplat.core.choice import Choice, Option, Values
from nasplat.core.cost import Cost, cost_of
from nasplat.core.drawing import Drawing, Edge, Node
from nasplat.core.errors import NasplatError
from nasplat.core.graph import GraphBuilder, OperationGraph, Shape
from nasplat.core.problem import Problem
from nasplat.core.space import SearchSpace
from nasplat.spaces.heads import finish_with_heads
from nasplat.spaces.inverted_residual import IDENTITY, Block, Layer, kernel_and_expansion, rounded

if TYPE_CHECKING:
    from torch import nn

OPERATIONS = (IDENTITY, *(f"mb_k{kernel}_e{expansion}" for kernel in (3, 5, 7) for expansion in (3, 6)))
STAGES = (
    {"channels": 16, "stride": 1, "layers": 1},
    {"channels": 24, "stride": 2, "layers": 3},
    {"channels": 40, "stride": 2, "layers": 3},
    {"channels": 80, "stride": 2, "layers": 3},
)
ACTIVATIONS = ("relu", "relu6", "silu", "hard_swish")


@dataclass(frozen=True, slots=True)
class Stage:
    """Layers of one width; the first of them changes height and width by `stride`, and the channels."""

    channels: int
    stride: int
    layers: int


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
        places = [_stage(stage, number) for number, stage in enumerate(_list("stages", stages), 1)]
        operations, depths = _list("operations", operations), _list("depths", depths, may_be_empty=True)
        widths = tuple(float(width) for width in _list("widths", widths))
        for operation in operations:
            if operation != IDENTITY:
                kernel_and_expansion(str(operation))
        for depth in depths:
            _whole("a depth", depth)
        if min(widths) <= 0:
            raise NasplatError(f"widths are {list(widths)}", "each must be a number above 0")
        if activation not in ACTIVATIONS:
            raise NasplatError(f"unknown activation {activation!r}", f"choose one of {', '.join(ACTIVATIONS)}")
        self.operations = operations
        self.stem_channels = _whole("stem_channels", stem_channels)
        self.stem_stride = _whole("stem_stride", stem_stride)
        self.last_channels = _whole("last_channels", last_channels, 0)
        if not isinstance(squeeze_excite, bool):
            raise NasplatError(f"squeeze_excite is {squeeze_excite!r}", "it must be true or false")
        self.block = Block(activation, squeeze_excite, _whole("divisor", divisor))
        self.identity = {
            "family": "mbconv",
            "stages": [asdict(stage) for stage in places],
            "operations": list(operations),
            "widths": list(widths),
            "depths": list(depths),
            "stem_channels": stem_channels,
            "stem_stride": stem_stride,
            "last_channels": last_channels,
            "activation": activation,
            "squeeze_excite": squeeze_excite,
            "divisor": divisor,
            "problem": problem.to_json(),
        }
        self._places = [
            _Place.of(f"stage{number}", stage, widths, depths, divisor) for number, stage in enumerate(places, 1)
        ]
        self.choices = {choice.name: choice for place in self._places for choice in place.choices(operations)}
        self._layer_costs: dict[tuple[Any, ...], Cost] = {}
        self._head_costs: dict[tuple[int, ...], Cost] = {}

    def layers(self, values: Values) -> list[Layer]:
        """The live layers that values stand for, in order."""
        chain = []
        channels = self.stem_channels
        for place in self._places:
            out_channels = place.channels[values.get(place.width, place.first_width)]
            depth = int(values.get(place.depth, place.first_depth))
            stride = place.stride
            for name in place.layers[:depth]:
                operation = values[name]
                if operation != IDENTITY or stride != 1 or channels != out_channels:
                    chain.append(Layer(name, operation, channels, out_channels, stride))  # type: ignore[arg-type]
                channels, stride = out_channels, 1
        return chain

    def settle(self, values: Values) -> Values:
        spelled = self._spell(self.layers(values), 0, self.stem_channels)
        assert spelled is not None  # the values themselves spell it
        return {name: spelled[name] for name in self.choices}

    def _spell(self, chain: list[Layer], stage: int, channels: int) -> dict[str, Option] | None:
        """The first assignment of the stages from `stage` on that yields exactly these layers, if there is one."""
        if stage == len(self._places):
            return None if chain else {}
        place = self._places[stage]
        for width, out_channels in place.channels.items():
            changes_shape = place.stride != 1 or out_channels != channels
            if changes_shape and not (chain and chain[0].changes(channels, out_channels, place.stride)):
                continue
            least = most = int(changes_shape)
            while most < min(len(chain), len(place.layers)) and chain[most].changes(out_channels, out_channels, 1):
                most += 1
            for used in range(most, least - 1, -1):
                depth = self._depth(place, used)
                rest = None if depth is None else self._spell(chain[used:], stage + 1, out_channels)
                if depth is not None and rest is not None:
                    chosen = [layer.operation for layer in chain[:used]] + [IDENTITY] * (depth - used)
                    chosen += [self.operations[0]] * (len(place.layers) - depth)
                    layers = dict(zip(place.layers, chosen, strict=True))
                    return {place.width: width, place.depth: depth, **layers, **rest}
        return None

    def _depth(self, place: _Place, used: int) -> int | None:
        """The smallest depth that holds so many layers, if any; what it holds besides must be able to be nothing."""
        fitting = (depth for depth in place.depths if depth == used or (depth > used and IDENTITY in self.operations))
        return min(fitting, default=None)

    def graph(self, architecture: Architecture) -> OperationGraph:
        builder = GraphBuilder(self.problem.input_shape)
        node = self._stem(builder)
        taps: dict[str, int] = {}
        for layer in self.layers(architecture.values):
            if len(self._places) > 1 and layer.name in self._places[-1].layers:
                # What the last stage reads: the output of the stages before it.
                taps.setdefault("auxiliary", node)
            node = self.block.append(builder, node, layer)
        return self._head(builder, node, taps)

    def cost(self, architecture: Architecture) -> Cost:
        """Equal to `cost_of(graph(…))`, as a sum over the layers; each distinct layer is counted once in a lifetime.

        Between two layers one tensor is live, so that the peak of the chain is the largest peak of its parts.
        """
        part, (_, height, width) = self._stem_cost
        macs, params, peak = part.macs, part.params, part.peak_bytes
        channels = self.stem_channels
        costs = self._layer_costs
        for layer in self.layers(architecture.values):
            _, operation, channels_before, channels, stride = layer
            key = (operation, channels_before, channels, stride, height, width)
            if key not in costs:
                builder = GraphBuilder((channels_before, height, width))
                costs[key] = cost_of(builder.finish({"": self.block.append(builder, builder.input, layer)}, {}))
            part = costs[key]
            macs += part.macs
            params += part.params
            if part.peak_bytes > peak:
                peak = part.peak_bytes
            height, width = (height - 1) // stride + 1, (width - 1) // stride + 1
        part = self._head_cost(channels, height, width)
        return Cost(macs + part.macs, params + part.params, max(peak, part.peak_bytes))

    def drawings(self, architecture: Architecture) -> dict[str, Drawing]:
        """The network as one row of boxes, a layer each."""
        nodes = [Node("input", "input " + "×".join(map(str, self.problem.input_shape)), "input")]
        nodes.append(Node("stem", f"conv 3×3 → {self.stem_channels}" + _by(self.stem_stride), "convolution"))
        for layer in self.layers(architecture.values):
            label, kind = "conv 1×1", "convolution"
            if layer.operation != IDENTITY:
                kernel, expansion = kernel_and_expansion(layer.operation)
                label, kind = f"MB {kernel}×{kernel}, expand {expansion}", "separable"
            nodes.append(Node(layer.name, f"{label} → {layer.out_channels}{_by(layer.stride)}", kind))
        if self.last_channels:
            nodes.append(Node("last", f"conv 1×1 → {self.last_channels}", "convolution"))
        nodes.append(Node("pool", "global avg pool", "pooling"))
        edges = [Edge(before.id, after.id) for before, after in pairwise(nodes)]
        for output in self.problem.outputs:
            nodes.append(Node(f"output {output.name}", output.name, "output"))
            edges.append(Edge("pool", f"output {output.name}"))
        return {"network": Drawing(tuple(nodes), tuple(edges))}

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

    @cached_property
    def _stem_cost(self) -> tuple[Cost, Shape]:
        builder = GraphBuilder(self.problem.input_shape)
        node = self._stem(builder)
        return cost_of(builder.finish({"": node}, {})), builder.shape(node)

    def _head_cost(self, *shape: int) -> Cost:
        if shape not in self._head_costs:
            builder = GraphBuilder(shape)
            self._head_costs[shape] = cost_of(self._head(builder, builder.input, {}))
        return self._head_costs[shape]


@dataclass(frozen=True, slots=True)
class _Place:
    """A stage in the table: the names of its choices and what they mean."""

    width: str
    depth: str
    layers: tuple[str, ...]
    channels: Mapping[Option, int]
    depths: tuple[int, ...]
    stride: int
    first_width: float
    first_depth: int

    def choices(self, operations: tuple[str, ...]) -> list[Choice]:
        """A width or depth that cannot be chosen is no choice."""
        sizes = {self.width: tuple(self.channels), self.depth: self.depths}
        return [
            *(Choice(name, options, ordered=True) for name, options in sizes.items() if len(options) > 1),
            *(Choice(name, operations) for name in self.layers),
        ]

    @staticmethod
    def of(name: str, stage: Stage, widths: tuple[float, ...], depths: tuple[int, ...], divisor: int) -> _Place:
        possible = tuple(sorted({*(depth for depth in depths if depth < stage.layers), stage.layers}))
        # The channels as written where nothing multiplies them.
        channels: dict[Option, int] = {
            width: stage.channels if width == 1 else rounded(stage.channels * width, divisor) for width in widths
        }
        return _Place(
            f"{name}.width",
            f"{name}.depth",
            tuple(f"{name}.layer{number}" for number in range(1, stage.layers + 1)),
            channels,
            possible,
            stage.stride,
            widths[0],
            possible[0],
        )


def _by(stride: int) -> str:
    return f", /{stride}" if stride > 1 else ""


def _stage(data: Any, number: int) -> Stage:
    keys = ("channels", "stride", "layers")
    if not isinstance(data, Mapping) or set(data) != set(keys):
        raise NasplatError(f"stage {number} is {data!r}", "write {channels: 64, stride: 2, layers: 3}")
    return Stage(*(_whole(f"{key} of stage {number}", data[key]) for key in keys))


def _whole(name: str, value: Any, least: int = 1) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise NasplatError(f"{name} is {value!r}", f"it must be a whole number of at least {least}")
    return value


def _list(name: str, value: Any, *, may_be_empty: bool = False) -> tuple[Any, ...]:
    if isinstance(value, str) or not isinstance(value, Sequence) or not (value or may_be_empty):
        raise NasplatError(f"{name} is {value!r}", "it must be a list with something in it")
    return tuple(value)
