"""What a network costs, known before training, from its operation graph alone.

`macs` counts one multiply-accumulate as one and covers convolutions, linear layers and matrix products, at batch 1,
without bias, normalisation, activation or pooling. "FLOPs" on any screen is this number. `peak_bytes` is the largest
sum of live activation tensors at batch 1 in float32: operations run in graph order, nothing is in place, and a tensor
is freed after its last use.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

from nasplat.core.errors import NasplatError
from nasplat.core.graph import Operation, OperationGraph

BYTES_PER_ELEMENT = 4
COSTS = ("macs", "params", "peak_bytes")  # the fields of `Cost`, as metrics


@dataclass(frozen=True, slots=True)
class Cost:
    """Multiply-accumulates, trainable parameters, and peak activation bytes."""

    macs: int
    params: int
    peak_bytes: int


def macs_of(operation: Operation, input_shapes: list[tuple[int, ...]]) -> int:
    """Multiply-accumulates of one operation at batch 1."""
    if operation.kind == "conv2d":
        kernel = operation.attributes["kernel"]
        in_channels = input_shapes[0][0]
        return prod(operation.shape) * (in_channels // operation.attributes.get("groups", 1)) * kernel[0] * kernel[1]
    if operation.kind == "linear":
        return prod(input_shapes[0]) * operation.shape[-1]
    return 0


def params_of(operation: Operation, input_shapes: list[tuple[int, ...]]) -> int:
    """Trainable parameters of one operation."""
    if operation.kind == "conv2d":
        kernel = operation.attributes["kernel"]
        out_channels = operation.shape[0]
        weights = out_channels * (input_shapes[0][0] // operation.attributes.get("groups", 1)) * kernel[0] * kernel[1]
        return weights + (out_channels if operation.attributes.get("bias", False) else 0)
    if operation.kind == "linear":
        bias = operation.shape[-1] if operation.attributes.get("bias", True) else 0
        return input_shapes[0][-1] * operation.shape[-1] + bias
    if operation.kind == "batch_norm":
        return 2 * operation.shape[0] if operation.attributes.get("affine", True) else 0
    return 0


def peak_bytes_of(graph: OperationGraph) -> int:
    """The largest sum of live tensors while the graph runs in its order."""
    last_use = list(range(len(graph.operations)))
    for position, operation in enumerate(graph.operations):
        for source in operation.inputs:
            last_use[source] = position
    for source in graph.outputs.values():
        last_use[source] = len(graph.operations)
    live: dict[int, int] = {}
    live_bytes = peak = 0
    for position, operation in enumerate(graph.operations):
        live[position] = prod(operation.shape) * BYTES_PER_ELEMENT
        live_bytes += live[position]
        peak = max(peak, live_bytes)
        for source in {*operation.inputs, position}:
            if last_use[source] == position:
                live_bytes -= live.pop(source)
    return peak


def cost_of(graph: OperationGraph) -> Cost:
    """The cost of any operation graph.

    Raises:
        NasplatError: the graph holds an operation whose kind has no defined cost.
    """
    macs = params = 0
    for operation in graph.operations:
        if operation.kind not in KINDS:
            raise NasplatError(f"operation {operation.name!r} is of unknown kind {operation.kind!r}")
        shapes = [graph.operations[source].shape for source in operation.inputs]
        macs += macs_of(operation, shapes)
        params += params_of(operation, shapes)
    return Cost(macs, params, peak_bytes_of(graph))


# Every kind that `nasplat.networks.graph_network` can run. All but conv2d and linear are free of multiply-accumulates
# by the definition above.
KINDS = frozenset(
    {
        "input",
        "conv2d",  # kernel, stride, padding, dilation: pairs; groups: int; bias: bool (default False)
        "linear",  # bias: bool (default True)
        "batch_norm",  # affine: bool (default True)
        "relu",
        "relu6",
        "silu",
        "hard_swish",
        "hard_sigmoid",
        "sigmoid",
        "add",  # exactly two inputs of equal shape
        "multiply",  # exactly two inputs; the second may be (C, 1, 1)
        "concat",  # along channels
        "max_pool",  # kernel, stride, padding: pairs
        "avg_pool",  # kernel, stride, padding: pairs; padding is not counted in the mean
        "global_avg_pool",  # (C, H, W) -> (C, 1, 1)
        "flatten",  # (C, 1, 1) -> (C,); a copy, so that it counts as a tensor of its own
        "shift",  # one pixel up and left, zeros enter below and at the right (factorised reduction)
        "zeros",  # a zero tensor of `shape`; reads one input for the batch size
    }
)
