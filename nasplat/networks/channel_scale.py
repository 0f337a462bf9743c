"""Finds the rows of a weight that a scaled tensor comes from."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import fx

from nasplat.networks.channel_step import operation_name

# Operations that move elements about and so commute with scaling.
_VIEWS = frozenset(["view", "reshape", "_unsafe_view", "flatten", "unflatten"])
_COPIES = frozenset(["contiguous", "clone", "alias", "dropout"])
_MOVES = frozenset(
    ["permute", "transpose", "swapaxes", "movedim", "squeeze", "unsqueeze", "select", "expand", "chunk", "split"]
) | frozenset(["split_with_sizes", "unbind", "getitem", "slice", "narrow"])
_PRODUCTS = frozenset(["matmul", "bmm", "einsum"])


def factor_of(value: Any) -> fx.Node | None:
    """The tensor to scale instead of a product of tensors: its first factor."""
    while isinstance(value, fx.Node) and operation_name(value) in _PRODUCTS:
        value = value.all_input_nodes[0]
    return value if isinstance(value, fx.Node) else None


def rows_of(node: fx.Node) -> tuple[tuple[fx.Node, ...], np.ndarray] | None:
    """The weight and bias, and the rows of them, that alone a tensor is made of; None where that is not so.

    Args:
        node: a tensor that is scaled.
    """
    chain: list[fx.Node] = []
    while operation_name(node) in _MOVES | _VIEWS | _COPIES:
        chain.append(node)
        if not isinstance(node.args[0], fx.Node):
            return None
        node = node.args[0]
    if operation_name(node) != "linear" or any(source.op != "placeholder" for source in node.args[1:]):  # type: ignore[union-attr]
        return None
    shape = node.meta["val"].shape
    value: Any = torch.arange(shape[-1]).expand(shape)
    for step in reversed(chain):
        name = operation_name(step)
        if name in _VIEWS:
            value = value.reshape(step.meta["val"].shape)  # a view would ask for other strides
        elif name not in _COPIES:
            value = step.target(value, *step.args[1:], **step.kwargs)  # type: ignore[operator]
    weights = tuple(source for source in node.args[1:] if isinstance(source, fx.Node))
    return weights, torch.unique(value).numpy()
