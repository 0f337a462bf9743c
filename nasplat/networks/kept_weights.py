"""Generated weights that are kept, and whether they still hold."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_post_hook


class _Steps:
    """Counts the steps of all optimisers: what fused ones change, torch does not count as a change of the tensor."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, *arguments: Any) -> None:
        self.count += 1


_STEPS = _Steps()
register_optimizer_step_post_hook(_STEPS)


@dataclass(frozen=True, slots=True)
class KeptWeights:
    """Weights by name, and what they were generated from; see `keep`."""

    weights: dict[str, Tensor]
    condition: Tensor | None  # a copy: the one that was given may be written to
    versions: list[tuple[Tensor, int]]
    steps: int

    def hold(self, condition: Tensor | None, learned: Iterable[Tensor]) -> bool:
        """Whether they are what would be generated now.

        They are not after a step of any optimiser, nor after a change that torch has counted. What is written through
        `.data` it does not count.
        """
        now = _versions(learned)
        if self.steps != _STEPS.count or len(now) != len(self.versions):
            return False
        for (tensor, version), (then, old) in zip(now, self.versions, strict=True):
            if tensor is not then or version != old:
                return False
        return self._is_same(condition)

    def _is_same(self, condition: Tensor | None) -> bool:
        if condition is None or self.condition is None:
            return condition is None and self.condition is None
        alike = (condition.dtype, condition.device) == (self.condition.dtype, self.condition.device)
        return alike and torch.equal(condition, self.condition)


def keep(weights: dict[str, Tensor], condition: Tensor | None, learned: Iterable[Tensor]) -> KeptWeights:
    """Weights with what they were generated from: the condition, and the parameters and buffers of the generator."""
    twin = None if condition is None else condition.clone()
    return KeptWeights(weights, twin, _versions(learned), _STEPS.count)


def _versions(tensors: Iterable[Tensor]) -> list[tuple[Tensor, int]]:
    return [(tensor, 0 if tensor.is_inference() else tensor._version) for tensor in tensors]
