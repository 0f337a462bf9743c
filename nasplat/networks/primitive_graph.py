"""Traced networks as graphs of the primitives that encoders know."""

from __future__ import annotations

from nasplat.core.cost import KINDS
from nasplat.core.graph import Operation, OperationGraph

# Of torch's operations those that act like one of ours, as far as an encoder is concerned.
_LIKE = {
    "aten.native_layer_norm": "batch_norm",
    "aten.native_group_norm": "batch_norm",
    "aten.gelu": "silu",
    "aten.elu": "relu",
    "aten.leaky_relu": "relu",
    "aten.tanh": "sigmoid",
    "aten._softmax": "sigmoid",
    "aten.bmm": "multiply",
    "aten.addmm": "linear",
    "aten.mm": "linear",
}


def primitives(graph: OperationGraph) -> OperationGraph:
    """The same network without operations that are of no known kind; who reads them reads what they read.

    Layer and group normalisation count as batch norm, smooth activations as SiLU, products of two activations as
    multiplication. Names stay, so parameters find their operation.
    """
    kept: list[Operation] = []
    stands: list[tuple[int, ...]] = []  # for every old position what it is now
    for operation in graph.operations:
        sources = tuple(dict.fromkeys(new for old in operation.inputs for new in stands[old]))
        kind = _LIKE.get(operation.kind, operation.kind)
        if kind == "input" or (kind in KINDS and operation.shape and sources):
            kept.append(Operation(kind, sources, operation.shape, operation.name, operation.attributes))
            stands.append((len(kept) - 1,))
        else:
            stands.append(sources or (0,))
    outputs = {name: stands[place][0] for name, place in graph.outputs.items()}
    return OperationGraph(tuple(kept), outputs, {name: stands[place][0] for name, place in graph.taps.items()})
