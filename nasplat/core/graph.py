"""A network as a list of operations with shapes and named parameters: no torch, no weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from nasplat.core.errors import NasplatError

Shape = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Operation:
    """One operation.

    Args:
        kind: one of `nasplat.core.cost.KINDS` in graphs that are run; traced graphs also hold other kinds.
        inputs: positions of earlier operations in the graph.
        shape: of the output, without the batch: `(C, H, W)` or `(F,)`.
        name: dotted path, unique among operations with parameters; the prefix of its parameters' names.
        attributes: kernel, stride, groups and so on; JSON-plain.
    """

    kind: str
    inputs: tuple[int, ...]
    shape: Shape
    name: str = ""
    attributes: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class OperationGraph:
    """Operations in the order in which they run.

    Args:
        operations: the first is of kind `input`.
        outputs: name of each output of the problem, and the position of the operation that yields it.
        taps: positions that other parts read: `features` (pooled, before the classifier), `auxiliary` (where an
            auxiliary classifier may be attached in training).
    """

    operations: tuple[Operation, ...]
    outputs: Mapping[str, int]
    taps: Mapping[str, int] = field(default_factory=dict)

    def __deepcopy__(self, memo: dict[int, Any]) -> OperationGraph:
        # Nothing in it ever changes, and networks that hold it are copied often.
        return self


class GraphBuilder:
    """Appends operations one by one, and works out their shapes. A node is the position of an operation."""

    def __init__(self, input_shape: Shape) -> None:
        self.operations: list[Operation] = [Operation("input", (), tuple(input_shape), "input")]

    @property
    def input(self) -> int:
        return 0

    def shape(self, node: int) -> Shape:
        return self.operations[node].shape

    def _append(self, kind: str, inputs: tuple[int, ...], shape: Shape, name: str = "", **attributes: Any) -> int:
        self.operations.append(Operation(kind, inputs, shape, name, attributes))
        return len(self.operations) - 1

    def conv2d(
        self,
        node: int,
        out_channels: int,
        kernel: int | tuple[int, int] = 1,
        *,
        name: str,
        stride: int = 1,
        dilation: int = 1,
        groups: int = 1,
        bias: bool = False,
    ) -> int:
        """A convolution padded so that stride 1 keeps height and width. Kernels are odd."""
        kernel = (kernel, kernel) if isinstance(kernel, int) else kernel
        channels, height, width = self.shape(node)
        if channels % groups or out_channels % groups:
            raise NasplatError(f"{name}: {channels} -> {out_channels} channels cannot be split into {groups} groups")
        shape = (out_channels, (height - 1) // stride + 1, (width - 1) // stride + 1)
        padding = tuple(dilation * (size - 1) // 2 for size in kernel)
        return self._append(
            "conv2d",
            (node,),
            shape,
            name,
            kernel=kernel,
            stride=(stride, stride),
            padding=padding,
            dilation=(dilation, dilation),
            groups=groups,
            bias=bias,
        )

    def linear(self, node: int, out_features: int, *, name: str, bias: bool = True) -> int:
        return self._append("linear", (node,), (*self.shape(node)[:-1], out_features), name, bias=bias)

    def batch_norm(self, node: int, *, name: str, affine: bool = True) -> int:
        return self._append("batch_norm", (node,), self.shape(node), name, affine=affine)

    def activation(self, node: int, kind: str = "relu") -> int:
        return self._append(kind, (node,), self.shape(node))

    def pool(self, node: int, kind: str, kernel: int, stride: int = 1) -> int:
        """`kind` is `max_pool` or `avg_pool`; an odd kernel is padded by its half, an even one is not padded."""
        channels, *sides = self.shape(node)
        half = kernel // 2 if kernel % 2 else 0
        shape = (channels, *((side + 2 * half - kernel) // stride + 1 for side in sides))
        return self._append(
            kind, (node,), shape, kernel=(kernel, kernel), stride=(stride, stride), padding=(half, half)
        )

    def shift(self, node: int) -> int:
        return self._append("shift", (node,), self.shape(node))

    def zeros(self, node: int, shape: Shape) -> int:
        return self._append("zeros", (node,), shape)

    def add(self, nodes: list[int]) -> int:
        """A chain of binary sums; a single node is returned as it is."""
        total = nodes[0]
        for node in nodes[1:]:
            if self.shape(node) != self.shape(total):
                raise NasplatError(f"cannot add shapes {self.shape(total)} and {self.shape(node)}")
            total = self._append("add", (total, node), self.shape(total))
        return total

    def multiply(self, node: int, scale: int) -> int:
        return self._append("multiply", (node, scale), self.shape(node))

    def concat(self, nodes: list[int]) -> int:
        """Along channels; a single node is returned as it is."""
        if len(nodes) == 1:
            return nodes[0]
        channels = sum(self.shape(node)[0] for node in nodes)
        return self._append("concat", tuple(nodes), (channels, *self.shape(nodes[0])[1:]))

    def drop_path(self, node: int, fraction: float = 1.0) -> int:
        """Marks the last operation of an edge as one that scheduled drop path may drop in training.

        Args:
            fraction: of the scheduled probability that this edge gets.
        """
        operation = self.operations[node]
        attributes = {**operation.attributes, "drop_path": fraction}
        self.operations[node] = Operation(operation.kind, operation.inputs, operation.shape, operation.name, attributes)
        return node

    def global_avg_pool(self, node: int) -> int:
        return self._append("global_avg_pool", (node,), (self.shape(node)[0], 1, 1))

    def global_max_pool(self, node: int) -> int:
        channels, *sides = self.shape(node)
        size = tuple(sides)
        return self._append("max_pool", (node,), (channels, 1, 1), kernel=size, stride=size, padding=(0, 0))

    def flatten(self, node: int) -> int:
        return self._append("flatten", (node,), (self.shape(node)[0],))

    def finish(self, outputs: Mapping[str, int], taps: Mapping[str, int]) -> OperationGraph:
        return OperationGraph(tuple(self.operations), dict(outputs), dict(taps))
