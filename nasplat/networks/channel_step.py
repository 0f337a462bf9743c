"""What the rules of the channel tracer read and write: one operation of an exported graph, and the growing record."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn

from nasplat.networks.channel_labels import BLOCKS, BY_NATURE, MADE, Labels
from nasplat.networks.channel_views import Dims
from nasplat.networks.module_numbers import numbers, size_attributes


@dataclass(slots=True)
class Record:
    """What the tracer has found out so far; every array is of labels."""

    labels: Labels
    modules: dict[str, nn.Module]
    values: dict[fx.Node, Any] = field(default_factory=dict)  # Dims, or a list of them for several results
    parameters: set[fx.Node] = field(default_factory=set)
    parameter_names: dict[fx.Node, str] = field(default_factory=dict)  # of parameters and buffers, in the state dict
    producers: list[tuple[str, np.ndarray]] = field(default_factory=list)  # module path, what its weight makes
    # Sizes that forward may read from attributes: the modules on the way, the constant, what it counts.
    demands: list[tuple[tuple[str, ...], int, np.ndarray]] = field(default_factory=list)
    # The same where module and attribute are known: path, attribute, position, value, what it counts.
    attributes: list[tuple[str, str, int | None, int, np.ndarray]] = field(default_factory=list)
    cross: list[tuple[str, int, tuple[np.ndarray | None, ...], bool]] = field(default_factory=list)
    products: list[tuple[str, int, tuple[np.ndarray, ...]]] = field(default_factory=list)
    uncounted: list[str] = field(default_factory=list)  # operations that may multiply matrices and have no rule
    scales: list[tuple[fx.Node, float, np.ndarray]] = field(default_factory=list)  # what is scaled, exponent, axis
    # Sizes that forward must adapt by itself or by an attribute, which only a trial can tell.
    assumptions: list[tuple[str, str, np.ndarray]] = field(default_factory=list)  # node, module path, labels
    viewed: list[tuple[str, np.ndarray]] = field(default_factory=list)  # module path, what it splits or merges


class Step:
    """One operation: its arguments by name, labels of its tensors, and where it stands in the user's source."""

    def __init__(self, node: fx.Node, record: Record) -> None:
        self.node = node
        self.record = record
        self.labels = record.labels
        self.path, self.stack = module_stack(node)
        self._reasons: dict[str, int] = {}

    @property
    def name(self) -> str:
        return operation_name(self.node)

    def arg(self, name: str, default: Any = None) -> Any:
        """An argument by its name in the operation's schema."""
        for place, argument in enumerate(self.node.target._schema.arguments):  # type: ignore[union-attr]
            if argument.name == name:
                if place < len(self.node.args):
                    return self.node.args[place]
                return self.node.kwargs.get(name, argument.default_value)
        return default

    def dims(self, node: Any) -> Dims:
        """The labels of a tensor; a list of its dimensions, that may be changed."""
        return list(self.record.values[node])

    @property
    def input(self) -> Dims:
        """The labels of the first argument."""
        return self.dims(self.node.args[0])

    def tensors(self) -> Iterator[fx.Node]:
        """All tensors among the arguments."""
        for node in self.node.all_input_nodes:
            if isinstance(node.meta.get("val"), Tensor):
                yield node

    @property
    def shape(self) -> list[int]:
        """Of the result."""
        return [int(size) for size in self.node.meta["val"].shape]

    def is_parameter(self, node: Any) -> bool:
        return node in self.record.parameters

    def reason(self, text: str) -> int:
        """A reason for freezing, with the operation and its place in the source."""
        if text not in self._reasons:
            self._reasons[text] = self.labels.reason(f"{self.name}: {text}", self.where)
        return self._reasons[text]

    @property
    def where(self) -> str:
        return f"{self.path or 'the network itself'}{source_line(self.node)}"

    def unite(self, first: np.ndarray, second: np.ndarray, text: str = "meets a size that forward sets") -> None:
        self.labels.unite(first, second, self.reason(text))

    def freeze(self, labels: np.ndarray, text: str) -> None:
        self.labels.freeze(labels, self.reason(text))

    def freeze_by_nature(self, labels: np.ndarray) -> None:
        self.labels.freeze(labels, BY_NATURE)

    def pick(self, labels: np.ndarray) -> None:
        """Some indices of a dimension are taken by position, so that none of them may go."""
        blocks = self.labels.role(labels) == BLOCKS
        self.freeze_by_nature(labels[blocks])
        self.freeze(labels[~blocks], "takes channels by position")

    def varies(self, labels: np.ndarray) -> bool:
        """Whether any of these labels can still be removed."""
        roots = self.labels.find(labels)
        return bool(((roots > MADE) & (self.labels.frozen(roots) == 0)).any())

    def cross(self, node: Any, dims: Dims, over: Sequence[int], restore: bool = False) -> None:
        """This operation computes across these dimensions of an argument."""
        marked = tuple(dim if place in over else None for place, dim in enumerate(dims))
        if any(dim is not None and self.varies(dim) for dim in marked):
            argument = self.node.all_input_nodes.index(node)
            self.record.cross.append((self.node.name, argument, marked, restore))

    def product(self, factor: int, axes: Sequence[np.ndarray]) -> None:
        """Counts multiply-accumulates: the factor times the sizes of the axes."""
        self.record.products.append((self.path or self.node.name, factor, tuple(axes)))

    def assume(self, *dims: np.ndarray) -> None:
        """Forward must adapt to other sizes of these, which a trial has to show."""
        for labels in dims:
            if self.varies(labels):
                self.record.assumptions.append((self.node.name, self.path, labels))

    def demand(self, size: Any, labels: np.ndarray) -> None:
        """A constant of this operation says the size of a dimension."""
        if isinstance(size, int) and size > 1 and self.varies(labels):
            self.record.demands.append((self.stack, size, labels))

    def attribute_like(self, size: int) -> bool:
        """Whether some attribute on the way here could say a size."""
        return any(size_attributes(self.record.modules, self.stack, size, exact) for exact in (True, False))

    def blocks_vary(self, blocks: int) -> bool:
        """Whether some attribute on the way here could be the number of blocks."""
        return any(
            blocks % value == 0
            for path in self.stack
            if path in self.record.modules
            for _, _, value in numbers(self.record.modules[path])
        )


def operation_name(node: fx.Node) -> str:
    """`conv2d` of `aten.conv2d.default`."""
    packet = getattr(node.target, "_overloadpacket", None)
    return packet.__name__ if packet is not None else getattr(node.target, "__name__", str(node.target))


def module_stack(node: fx.Node) -> tuple[str, tuple[str, ...]]:
    """The path of the module that runs an operation, and all modules round it, innermost first."""
    # A module that is called twice is told apart as `path@1`.
    paths = [path.partition("@")[0] for path, _ in node.meta.get("nn_module_stack", {}).values()]
    return (paths[-1] if paths else ""), tuple(reversed(paths))


def source_line(node: fx.Node) -> str:
    """` (file.py:12)`: the line of the user's code nearest to an operation, outside torch."""
    line = ""
    for frame in str(node.meta.get("stack_trace") or "").splitlines():
        frame = frame.strip()
        if frame.startswith("File ") and "/torch/nn/" not in frame:
            parts = frame.split(", ")
            line = f" ({parts[0][6:-1]}:{parts[1].removeprefix('line ')})"
    return line


def is_tensor(value: Any) -> bool:
    return isinstance(value, fx.Node) and isinstance(value.meta.get("val"), torch.Tensor)
