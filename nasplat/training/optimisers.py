"""Optimisers, and the course of the learning rate."""

from __future__ import annotations

from collections.abc import Iterable
from math import cos, pi

import torch
from torch import nn

from nasplat.core.errors import TrialFailed
from nasplat.core.experiment import Train


def trainable(modules: Iterable[nn.Module | None]) -> list[nn.Parameter]:
    """The parameters that are trained, each once, in a fixed order."""
    found: dict[int, nn.Parameter] = {}
    for module in modules:
        for parameter in module.parameters() if module is not None else ():
            if parameter.requires_grad:
                found.setdefault(id(parameter), parameter)
    return list(found.values())


def make_optimiser(parameters: list[nn.Parameter], settings: Train) -> torch.optim.Optimizer:
    """The optimiser that the settings name, in its fused form: one pass over all parameters, on every device.

    `sgd` is with Nesterov's momentum; in `adam` and `adamw` the momentum is beta 1, and beta 2 is 0.999.
    Biases and the parameters of normalisation, which have one dimension at most, do not decay.

    Raises:
        TrialFailed: there is nothing to train.
    """
    if not parameters:
        raise TrialFailed("the network has no trainable parameters")
    decaying = [parameter for parameter in parameters if parameter.dim() > 1]
    others = [parameter for parameter in parameters if parameter.dim() <= 1]
    groups = [
        {"params": group, "weight_decay": decay}
        for group, decay in ((decaying, settings.weight_decay), (others, 0.0))
        if group
    ]
    if settings.optimiser == "sgd":
        sgd = torch.optim.SGD(
            groups, lr=settings.lr, momentum=settings.momentum, nesterov=settings.momentum > 0, fused=True
        )
        if settings.momentum:
            # The fused step cannot do with momenta that only some parameters have, as in a supernet, whose steps each
            # train a part; from zeros the first step is the same.
            for parameter in parameters:
                sgd.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
        return sgd
    if settings.optimiser == "adam":
        return torch.optim.Adam(groups, lr=settings.lr, betas=(settings.momentum, 0.999), fused=True)
    return torch.optim.AdamW(groups, lr=settings.lr, betas=(settings.momentum, 0.999), fused=True)


def learning_rate(settings: Train, progress: float) -> float:
    """The learning rate when the share `progress` of the budget, in [0, 1], is spent.

    It rises linearly over the first `warmup` of the budget and then stays (`constant`), or falls to zero along a line
    (`linear`) or half a cosine (`cosine`; Loshchilov & Hutter, SGDR, 2017, without restarts).
    """
    if progress < settings.warmup:
        return settings.lr * progress / settings.warmup
    if settings.schedule == "constant":
        return settings.lr
    remaining = (progress - settings.warmup) / (1 - settings.warmup)
    falling = 1 - remaining if settings.schedule == "linear" else (1 + cos(pi * remaining)) / 2
    return settings.lr * max(falling, 0.0)
