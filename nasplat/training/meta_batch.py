"""One step on several networks whose weights come from one source: each alone in memory, and what fails is left out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from nasplat.core.errors import Infeasible
from nasplat.training.devices import memory_guard


class MetaBatch:
    """The mean loss of the networks of a step.

    The gradient of each network with respect to its weights is taken at once, so that its activations are freed before
    the next one runs. A network whose loss or gradient is not finite counts neither in the mean nor in the gradient,
    and so does one for which the memory does not suffice; the device is never waited for. Where no loss is finite, the
    mean is not either. Knyazev et al. (2021) leave such batches out of the training of a graph hypernetwork.

    Args:
        extra: parameters that all networks share beside their weights, such as those of a projector.

    Attributes:
        left_out: `()` on the device, the number of networks so far that count for nothing.
    """

    def __init__(self, extra: nn.Module | None) -> None:
        self._extra = [] if extra is None else [one for one in extra.parameters() if one.requires_grad]
        self._losses: list[Tensor] = []
        self._finite: list[Tensor] = []
        self._gradients: list[tuple[list[Tensor], Tensor]] = []  # what they are of, and all of them in a row
        self._failure: Infeasible | None = None
        self.left_out: Any = 0

    def add(self, weights: Mapping[str, Tensor], loss_of: Callable[[Mapping[str, Tensor]], Tensor]) -> None:
        """Runs a network.

        Args:
            weights: from the source, differentiable.
            loss_of: gets these weights.
        """
        leaves = {name: weight.detach().requires_grad_(weight.requires_grad) for name, weight in weights.items()}
        pairs = [(weights[name], leaf) for name, leaf in leaves.items() if leaf.requires_grad]
        pairs += [(parameter, parameter) for parameter in self._extra]
        try:
            with memory_guard("training one of several networks"):
                loss = loss_of(leaves).mean()
                of, gradient = _gradient(loss, pairs)
        except Infeasible as failure:
            self._failure = failure
            self.left_out = self.left_out + 1
            return
        finite = loss.detach().isfinite() & gradient.isfinite().all()
        self._losses.append(loss.detach())
        self._finite.append(finite)
        self._gradients.append((of, gradient))
        self.left_out = self.left_out + ~finite

    def mean(self) -> Tensor:
        """The mean of what is finite, `()`; its gradient flows into the source and the shared parameters.

        Raises:
            Infeasible: the memory sufficed for none of them.
        """
        if not self._losses:
            raise self._failure or Infeasible("there is no network to train")
        finite = torch.stack(self._finite)
        count = finite.sum()
        tensors: list[Tensor] = []
        gradients: list[Tensor] = []
        for (of, row), is_finite in zip(self._gradients, self._finite, strict=True):
            parts = torch.where(is_finite, row / count, 0).split([one.numel() for one in of])
            tensors += of
            gradients += [part.view(one.shape) for part, one in zip(parts, of, strict=True)]
        value = torch.where(finite, torch.stack(self._losses), 0).sum() / count
        mean: Tensor = _WithGradients.apply(value, gradients, *tensors)
        return mean


def _gradient(loss: Tensor, pairs: Sequence[tuple[Tensor, Tensor]]) -> tuple[list[Tensor], Tensor]:
    """The first of each pair whose second the loss depends on, and the gradients of these in a row."""
    nothing = loss.new_zeros(0)
    if not loss.requires_grad:
        return [], nothing
    with torch.autocast(loss.device.type, enabled=False):  # as a backward pass outside of the forward's context
        found = torch.autograd.grad(loss, [leaf for _, leaf in pairs], allow_unused=True)
    there = [(tensor, one) for (tensor, _), one in zip(pairs, found, strict=True) if one is not None]
    return [tensor for tensor, _ in there], torch.cat([nothing, *(one.reshape(-1) for _, one in there)])


class _WithGradients(torch.autograd.Function):
    """A number whose gradients are known."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, gradients: list[Tensor], *tensors: Tensor) -> Tensor:
        ctx.gradients = gradients
        return value.clone()

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> Any:
        return (None, None, *torch._foreach_mul(ctx.gradients, upstream[0]))
