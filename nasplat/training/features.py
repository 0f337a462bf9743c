"""The pooled features of any network, before its classifier."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from nasplat.core.errors import NasplatError


def features(network: nn.Module, images: Tensor) -> Tensor:
    """What a network knows about images before its classifier: `(N, C, H, W)` to `(N, F)`.

    In this order: the tap `features` of a network with `forward_taps`; a method `forward_features` or `features`; what
    the last linear layer reads; the network's output. Feature maps are averaged over height and width.
    """
    taps = getattr(network, "forward_taps", None)
    if taps is not None:
        return _pooled(taps(images, ("features",))["features"])
    for name in ("forward_features", "features"):
        method = getattr(network, name, None)
        # torchvision has submodules called `features`, which are not all there is before the classifier.
        if inspect.ismethod(method):
            return _pooled(method(images))
    linears = [module for module in network.modules() if isinstance(module, nn.Linear)]
    if not linears:
        return _pooled(network(images))
    read: list[Tensor] = []

    def keep(module: nn.Module, inputs: tuple[Any, ...]) -> None:
        read.append(inputs[0])

    hook = linears[-1].register_forward_pre_hook(keep)
    try:
        network(images)
    finally:
        hook.remove()
    if not read:
        raise NasplatError(
            f"the features of {type(network).__name__} cannot be found: its last linear layer is not called",
            "give the network a method forward_features(images)",
        )
    return _pooled(read[-1])


def _pooled(tensor: Any) -> Tensor:
    if not isinstance(tensor, Tensor):
        raise NasplatError(
            f"a network's features must be one tensor, not {type(tensor).__name__}",
            "give the network a method forward_features(images) that returns (N, F)",
        )
    return tensor.mean((2, 3)) if tensor.dim() == 4 else tensor.flatten(1)


def measured_shape(
    network: nn.Module, input_shape: tuple[int, int, int], function: Callable[[Tensor], Tensor]
) -> tuple[int, ...]:
    """The shape, without the batch, of what `function` makes of one image of zeros while the network is in eval."""
    with evaluating(network):
        images = torch.zeros(1, *input_shape, device=device_of(network))
        return tuple(function(images).shape[1:])


@contextmanager
def evaluating(network: nn.Module) -> Iterator[None]:
    """Eval mode and no gradients for the while; every module then gets back the mode that it had."""
    modes = [(module, module.training) for module in network.modules()]
    network.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, mode in modes:
            module.training = mode


def device_of(network: nn.Module) -> torch.device:
    """Where a network's weights are."""
    for tensor in (*network.parameters(), *network.buffers()):
        return tensor.device
    return torch.device("cpu")
