"""One step of training."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from nasplat.core.errors import NasplatError
from nasplat.training.devices import Placement
from nasplat.training.objectives import Objective

if TYPE_CHECKING:
    from nasplat.data.loader import Batch


def training_step(
    network: nn.Module,
    objective: Objective,
    extra: nn.Module | None,
    batch: Batch,
    optimiser: torch.optim.Optimizer,
    parameters: list[nn.Parameter],
    placement: Placement,
    clip_norm: float | None,
    generator: torch.Generator,
) -> Tensor:
    """One step of the optimiser. The loss comes back on the device: nothing in here waits for it."""
    optimiser.zero_grad(set_to_none=True)
    with placement.autocast():
        loss = objective.loss(network, extra, batch, generator)
    if not isinstance(loss, Tensor) or loss.dim():
        raise NasplatError("the loss of an objective must be one number, a tensor of no dimensions", "take its mean")
    loss.backward()  # type: ignore[no-untyped-call]
    if clip_norm is not None:
        nn.utils.clip_grad_norm_(parameters, clip_norm, foreach=True)
    optimiser.step()
    return loss.detach()


def set_drop_path(network: nn.Module, probability: float, generator: torch.Generator | None) -> None:
    """Sets the drop path of a network that has one; of others nothing is asked."""
    current = getattr(network, "drop_path_probability", None)
    if current is None:
        return
    if isinstance(current, Tensor):
        current.fill_(probability)
    else:
        network.drop_path_probability = probability  # type: ignore[assignment]
    network.drop_path_generator = generator  # type: ignore[assignment]
