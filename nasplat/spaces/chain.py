"""Chains of layers in stages whose width and depth are chosen: what the families mbconv and resnet have in common."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any, Protocol

from nasplat.core.choice import Choice, Option, Values
from nasplat.core.cost import Cost, cost_of
from nasplat.core.drawing import Drawing, Edge, Node
from nasplat.core.errors import NasplatError
from nasplat.core.graph import GraphBuilder, OperationGraph, Shape
from nasplat.core.problem import Problem

ACTIVATIONS = ("relu", "relu6", "silu", "hard_swish")


class Link(Protocol):
    """One layer of a chain, a named tuple whose first field is its name."""

    @property
    def name(self) -> str: ...

    @property
    def in_channels(self) -> int: ...

    @property
    def out_channels(self) -> int: ...

    @property
    def stride(self) -> int: ...

    def __getitem__(self, part: slice, /) -> tuple[Any, ...]: ...


@dataclass(frozen=True, slots=True)
class ElasticStage:
    """Layers of one width; the first of them changes height and width by `stride`, and the channels.

    Args:
        width, depth: names of its choices.
        layers: names of as many layers as it may have.
        channels: by multiplier.
        depths: how many layers it may have, the fewest first.
    """

    width: str
    depth: str
    layers: tuple[str, ...]
    channels: Mapping[Option, int]
    depths: tuple[int, ...]
    stride: int

    def choices(self) -> list[Choice]:
        """A width or depth that cannot be chosen is no choice."""
        sizes = {self.width: tuple(self.channels), self.depth: self.depths}
        return [Choice(name, options, ordered=True) for name, options in sizes.items() if len(options) > 1]

    def size(self, values: Values) -> tuple[int, tuple[str, ...]]:
        """The channels that values choose, and the names of the layers that they leave."""
        width = values.get(self.width, next(iter(self.channels)))
        return self.channels[width], self.layers[: int(values.get(self.depth, self.depths[0]))]


@dataclass(frozen=True, slots=True)
class Spelled:
    """A stage's part of a chain: its width and depth, and how many of the layers are there to compute something."""

    width: Option
    depth: int
    used: int


def spell(
    chain: Sequence[Link], stages: Sequence[ElasticStage], channels: int, *, spare: bool = False
) -> list[Spelled] | None:
    """The first widths and depths of stages that yield exactly these layers, if there are any.

    Layers also move across neighbouring stages of equal channels and stride 1: as many as fit stand in the first.

    Args:
        channels: before the first stage.
        spare: whether a stage may be deeper than the layers that it is used for.
    """
    if not stages:
        return None if chain else []
    stage = stages[0]
    for width, out_channels in stage.channels.items():
        changes_shape = stage.stride != 1 or out_channels != channels
        if changes_shape and not (chain and _changes(chain[0], channels, out_channels, stage.stride)):
            continue
        least = most = int(changes_shape)
        while most < min(len(chain), len(stage.layers)) and _changes(chain[most], out_channels, out_channels, 1):
            most += 1
        for used in range(most, least - 1, -1):
            depth = min((one for one in stage.depths if one == used or (spare and one > used)), default=None)
            rest = None if depth is None else spell(chain[used:], stages[1:], out_channels, spare=spare)
            if depth is not None and rest is not None:
                return [Spelled(width, depth, used), *rest]
    return None


def _changes(layer: Link, *shape: int) -> bool:
    return (layer.in_channels, layer.out_channels, layer.stride) == shape


class ChainNetwork:
    """How a chain of layers becomes a network, and what that costs.

    Args:
        problem: what is to be learned.
        last_stage: the names of its layers; the tap `auxiliary` is what they read.
        stem: appends what comes before the chain.
        layer: appends one layer of it.
        head: appends what comes after it, and ends the graph with the taps that it is given.
    """

    def __init__(
        self,
        problem: Problem,
        last_stage: Sequence[str],
        stem: Callable[[GraphBuilder], int],
        layer: Callable[[GraphBuilder, int, Any], int],
        head: Callable[[GraphBuilder, int, Mapping[str, int]], OperationGraph],
    ) -> None:
        self.problem, self.last_stage = problem, last_stage
        self._stem, self._layer, self._head = stem, layer, head
        self._layer_costs: dict[tuple[Any, ...], Cost] = {}
        self._head_costs: dict[tuple[int, ...], Cost] = {}

    def graph(self, chain: Sequence[Link]) -> OperationGraph:
        builder = GraphBuilder(self.problem.input_shape)
        node = self._stem(builder)
        taps: dict[str, int] = {}
        for layer in chain:
            if layer.name in self.last_stage:
                taps.setdefault("auxiliary", node)
            node = self._layer(builder, node, layer)
        return self._head(builder, node, taps)

    def cost(self, chain: Sequence[Link]) -> Cost:
        """Equal to `cost_of(graph(…))`, as a sum over the layers; each distinct layer is counted once in a lifetime.

        Between two layers one tensor is live, so that the peak of the chain is the largest peak of its parts.
        """
        part, (channels, height, width) = self._stem_cost
        macs, params, peak = part.macs, part.params, part.peak_bytes
        costs = self._layer_costs
        for layer in chain:
            key = (layer[1:], height, width)
            if key not in costs:
                builder = GraphBuilder((layer.in_channels, height, width))
                costs[key] = cost_of(builder.finish({"": self._layer(builder, builder.input, layer)}, {}))
            part = costs[key]
            macs += part.macs
            params += part.params
            if part.peak_bytes > peak:
                peak = part.peak_bytes
            channels, stride = layer.out_channels, layer.stride
            height, width = (height - 1) // stride + 1, (width - 1) // stride + 1
        part = self._head_cost(channels, height, width)
        return Cost(macs + part.macs, params + part.params, max(peak, part.peak_bytes))

    def drawing(self, stem: Sequence[Node], layers: Sequence[Node], last: Sequence[Node] = ()) -> Drawing:
        """The network as one row of boxes, a layer each."""
        nodes = [Node("input", "input " + "×".join(map(str, self.problem.input_shape)), "input"), *stem, *layers, *last]
        nodes.append(Node("pool", "global avg pool", "pooling"))
        edges = [Edge(before.id, after.id) for before, after in pairwise(nodes)]
        for output in self.problem.outputs:
            nodes.append(Node(f"output {output.name}", output.name, "output"))
            edges.append(Edge("pool", f"output {output.name}"))
        return Drawing(tuple(nodes), tuple(edges))

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


def elastic_stages(
    stages: Sequence[Mapping[str, int]], widths: Sequence[float], depths: Sequence[int], divisor: int, layer: str
) -> tuple[dict[str, Any], list[ElasticStage]]:
    """Stages from the parameters of a family: the part of its identity that they are, and as choices.

    Args:
        stages: mappings of `channels`, `stride` and at most how many layers, under the plural of `layer`.
        widths: multipliers of the channels, which are rounded to a multiple of `divisor`.
        depths: numbers of layers that a stage may have besides all; larger ones than that are left out.
        layer: what a layer is called.

    Raises:
        NasplatError: they make no stages.
    """
    stages, depths = listed("stages", stages), listed("depths", depths, may_be_empty=True)
    widths = tuple(float(width) for width in listed("widths", widths))
    whole("divisor", divisor)
    for depth in depths:
        whole("a depth", depth)
    if min(widths) <= 0:
        raise NasplatError(f"widths are {list(widths)}", "each must be a number above 0")
    if len(set(widths)) < len(widths):
        raise NasplatError(f"widths list one twice: {list(widths)}", "list each once")
    plain, elastic = [], []
    for number, stage in enumerate(stages, 1):
        keys = ("channels", "stride", f"{layer}s")
        if not isinstance(stage, Mapping) or set(stage) != set(keys):
            raise NasplatError(f"stage {number} is {stage!r}", f"write {{channels: 64, stride: 2, {layer}s: 3}}")
        channels, stride, most = (whole(f"{key} of stage {number}", stage[key]) for key in keys)
        plain.append(dict(zip(keys, (channels, stride, most), strict=True)))
        elastic.append(
            ElasticStage(
                f"stage{number}.width",
                f"stage{number}.depth",
                tuple(f"stage{number}.{layer}{place}" for place in range(1, most + 1)),
                {width: times(channels, width, divisor) for width in widths},
                tuple(sorted({*(depth for depth in depths if depth < most), most})),
                stride,
            )
        )
    return {"stages": plain, "widths": list(widths), "depths": list(depths), "divisor": divisor}, elastic


def times(channels: int, multiplier: float, divisor: int) -> int:
    """Channels as written where nothing multiplies them, else rounded."""
    return channels if multiplier == 1 else rounded(channels * multiplier, divisor)


def rounded(channels: float, divisor: int) -> int:
    """The multiple of `divisor` that is nearest to a number of channels, at least one times."""
    return max(divisor, int(channels / divisor + 0.5) * divisor)


def by(stride: int) -> str:
    """What a drawing says of a stride."""
    return f", /{stride}" if stride > 1 else ""


def one_of(name: str, value: Any, known: Sequence[str]) -> str:
    """A parameter that is one of a few words."""
    if value not in known:
        raise NasplatError(f"unknown {name} {value!r}", f"choose one of {', '.join(known)}")
    return str(value)


def whole(name: str, value: Any, least: int = 1) -> int:
    """A parameter that is a whole number."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise NasplatError(f"{name} is {value!r}", f"it must be a whole number of at least {least}")
    return value


def listed(name: str, value: Any, *, may_be_empty: bool = False) -> tuple[Any, ...]:
    """A parameter that is a list."""
    if isinstance(value, str) or not isinstance(value, Sequence) or not (value or may_be_empty):
        raise NasplatError(f"{name} is {value!r}", "it must be a list with something in it")
    return tuple(value)
