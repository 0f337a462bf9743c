"""How much a network needs each of its residual blocks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from nasplat.core.errors import NasplatError, nearest


def block_importance(
    model: nn.Module,
    blocks: Sequence[str],
    batches: Iterable[tuple[Tensor, Tensor]] | None,
    loss: Callable[[Tensor, Tensor], Tensor],
) -> dict[str, float]:
    """By block, the increase of the loss when the block returns its input (lesion study, Veit et al. 2016).

    Without batches it is the mean, over the block's weights of two and more dimensions, of their mean absolute value
    times the square root of the inputs of one output: 1 / sqrt(inputs) is the scale that keeps variance, so that
    wide and narrow blocks compare.

    Args:
        model: it is evaluated in evaluation mode, and left in the mode it was in.
        blocks: paths of submodules that take one tensor and return one of the same shape.
        batches: inputs and targets, on the model's device.
        loss: the mean loss of a batch, of outputs and targets.

    Raises:
        NasplatError: there is no such submodule, or the batches are empty.
    """
    modules = dict(model.named_modules())
    for name in blocks:
        if not name or name not in modules:
            raise NasplatError(f"there is no block {name!r}", nearest(name, modules).strip())
    if batches is None:
        return {name: _scaled_weight(modules[name]) for name in blocks}
    kept = list(batches)
    if not kept:
        raise NasplatError("the importance of blocks needs at least one batch", "leave out the batches to use weights")
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with torch.no_grad():
            whole = _mean_loss(model, kept, loss)
            result = {}
            for name in blocks:
                handle = modules[name].register_forward_hook(_skip, with_kwargs=True)
                try:
                    result[name] = _mean_loss(model, kept, loss) - whole
                finally:
                    handle.remove()
            return result
    finally:
        for module, mode in modes.items():
            module.training = mode


def _skip(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
    return args[0] if args else next(iter(kwargs.values()))


def _mean_loss(
    model: nn.Module, batches: Sequence[tuple[Tensor, Tensor]], loss: Callable[[Tensor, Tensor], Tensor]
) -> float:
    samples = sum(len(inputs) for inputs, _ in batches)
    return sum(float(loss(model(inputs), targets)) * len(inputs) for inputs, targets in batches) / samples


def _scaled_weight(block: nn.Module) -> float:
    weights = [weight.detach() for weight in block.parameters() if weight.dim() >= 2]
    if not weights:
        return 0.0
    return sum(float(weight.abs().mean()) * weight[0].numel() ** 0.5 for weight in weights) / len(weights)
