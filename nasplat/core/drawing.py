"""A cell or a network as boxes and arrows: plain data, drawn by `nasplat.artifacts.drawing`."""

from __future__ import annotations

from dataclasses import dataclass

from nasplat.core.branching import CostedTree
from nasplat.core.graph import Operation, OperationGraph

# Categories of operations, each with a colour of its own in a picture. Any other string is drawn as "other".
KINDS = (
    "input",
    "output",
    "convolution",
    "separable",
    "dilated",
    "pooling",
    "identity",
    "none",
    "combine",
    "linear",
    "activation",
    "other",
)

# Words of operations' names, the telling ones first.
_WORDS = {
    "dil": "dilated",
    "sep": "separable",
    "depthwise": "separable",
    "mbconv": "separable",
    "inverted": "separable",
    "pool": "pooling",
    "conv": "convolution",
    "skip": "identity",
    "identity": "identity",
    "none": "none",
    "zero": "none",
    "add": "combine",
    "concat": "combine",
    "sum": "combine",
    "multiply": "combine",
    "linear": "linear",
    "relu": "activation",
    "silu": "activation",
    "sigmoid": "activation",
    "swish": "activation",
}


@dataclass(frozen=True, slots=True)
class Node:
    """A box: an id that is unique in its drawing, what is written on it, and one of `KINDS` for its colour."""

    id: str
    label: str
    kind: str = "other"


@dataclass(frozen=True, slots=True)
class Edge:
    """An arrow between two nodes' ids, what is written on it, and one of `KINDS` where it is an operation itself."""

    source: str
    target: str
    label: str = ""
    kind: str = ""


@dataclass(frozen=True, slots=True)
class Drawing:
    """Boxes and arrows without cycles; where they go on paper is worked out when they are drawn."""

    nodes: tuple[Node, ...]
    edges: tuple[Edge, ...]


@dataclass(frozen=True, slots=True)
class Bar:
    """A layer, and its width before and after."""

    name: str
    before: int
    after: int


@dataclass(frozen=True, slots=True)
class Bars:
    """What is left of the widths of a network, from its first layer to its last; `unit` is theirs, in words."""

    bars: tuple[Bar, ...]
    unit: str


Picture = Drawing | Bars | CostedTree


def kind_of(name: str) -> str:
    """The category of an operation by its usual name, such as `sep_conv_3x3` or `skip_connect`."""
    lowered = name.lower()
    return next((kind for word, kind in _WORDS.items() if word in lowered), "other")


def drawing_of_graph(graph: OperationGraph) -> Drawing:
    """A network by its convolutions, poolings, linear layers and joins.

    Normalisation, activations and reshaping are folded into the box before them, and a chain of binary sums is one box.
    """
    operations = graph.operations
    uses = [0] * len(operations)
    for operation in operations:
        for source in operation.inputs:
            uses[source] += 1
    for position in graph.outputs.values():
        uses[position] += 1
    box = list(range(len(operations)))
    for position, operation in enumerate(operations):
        if operation.kind in _FOLDED and operations[box[operation.inputs[0]]].kind != "input":
            box[position] = box[operation.inputs[0]]
    for position in range(len(operations) - 1, -1, -1):
        if operations[position].kind == "add":
            for source in operations[position].inputs:
                if operations[source].kind == "add" and uses[source] == 1:
                    box[source] = box[position]
    for position in range(len(operations)):  # what was folded into a sum that went into another follows it
        while box[box[position]] != box[position]:
            box[position] = box[box[position]]
    nodes = [
        Node(str(position), _label(operation, operations), _kind(operation, operations))
        for position, operation in enumerate(operations)
        if box[position] == position
    ]
    pairs = {
        (box[source], box[position]): None
        for position, operation in enumerate(operations)
        for source in operation.inputs
        if box[source] != box[position]
    }
    edges = [Edge(str(source), str(target)) for source, target in pairs]
    for name, position in graph.outputs.items():
        nodes.append(Node(f"output {name}", name, "output"))
        edges.append(Edge(str(box[position]), f"output {name}"))
    return Drawing(tuple(nodes), tuple(edges))


_FOLDED = frozenset({"batch_norm", "relu", "relu6", "silu", "hard_swish", "hard_sigmoid", "sigmoid", "flatten"})


def _depthwise(operation: Operation, operations: tuple[Operation, ...]) -> bool:
    groups = operation.attributes.get("groups", 1)
    return groups > 1 and groups == operations[operation.inputs[0]].shape[0]


def _kind(operation: Operation, operations: tuple[Operation, ...]) -> str:
    if operation.kind == "input":
        return "input"
    if operation.kind == "conv2d":
        if max(operation.attributes.get("dilation", (1, 1))) > 1:
            return "dilated"
        return "separable" if _depthwise(operation, operations) else "convolution"
    return kind_of(operation.kind)


def _label(operation: Operation, operations: tuple[Operation, ...]) -> str:
    size = "×".join(str(side) for side in operation.shape)
    if operation.kind == "input":
        return f"input {size}"
    words = [operation.kind.replace("_", " ")]
    if operation.kind == "conv2d":
        words = ["depthwise" if _depthwise(operation, operations) else "conv"]
    if "kernel" in operation.attributes:
        words.append("×".join(str(side) for side in operation.attributes["kernel"]))
    if max(operation.attributes.get("stride", (1,))) > 1:
        words.append(f"/{max(operation.attributes['stride'])}")
    if operation.kind in {"conv2d", "linear"}:
        words.append(f"→ {operation.shape[0]}")
    return " ".join(words)
