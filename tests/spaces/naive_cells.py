"""Cells run exactly as they are written down, without any canonical form: the oracle for the rewriting rules.

Every edge owns its weights, whatever else reads the same tensor, and an edge runs only when something asks for it.
Nothing here comes from the code under test.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

Weights = dict[object, Tensor]


def operate(operation: str, x: Tensor | None, key: object, weights: Weights, stride: int = 1) -> Tensor | None:
    """One edge on `(N, C, H, W)`; the sum of nothing is None. Records in `weights` the keys that were used."""
    if x is None or operation == "none":
        return None
    if operation == "skip_connect" and stride == 1:
        return x
    if operation.startswith("max_pool"):
        size = int(operation[-1])
        return F.max_pool2d(x, size, stride, size // 2)
    if operation.startswith("avg_pool"):
        return F.avg_pool2d(x, 3, stride, 1, count_include_pad=False)
    if operation == "sine":
        return torch.sin(x)
    weight = weights[key]
    size = weight.shape[-1]
    # Unlike a ReLU, tanh of a doubled input is not a doubled output: networks that differ are seen to differ.
    return F.conv2d(torch.tanh(x), weight, stride=stride, padding=size // 2)


def total(parts: list[Tensor | None]) -> Tensor | None:
    there = [part for part in parts if part is not None]
    return torch.stack(there).sum(0) if there else None


def nasbench201(
    operations: dict[tuple[int, int], str], x: Tensor, weights: Weights, used: set[object]
) -> Tensor | None:
    """The output of a cell whose edge (source, target) carries `operations[source, target]`."""

    def node(number: int) -> Tensor | None:
        if number == 0:
            return x
        parts = []
        for source in range(number):
            operation = operations[source, number]
            # Ask for the source only where the edge would pass something on.
            value = None if operation == "none" else node(source)
            if value is not None and operation.startswith("conv"):
                used.add((source, number))
            parts.append(operate(operation, value, (source, number), weights))
        return total(parts)

    return node(3)
