"""Statistics of batch norm measured anew, for a network whose channels are not those that they were measured on."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from nasplat.training.features import device_of, evaluating


def recalibrate(network: nn.Module, batches: Iterable[Tensor]) -> None:
    """Replaces running means and variances by the means over these batches; nothing else of the network changes.

    Yu and Huang, Universally Slimmable Networks, 2019. A network without batch norm, or no batches, is left as it is.

    Args:
        batches: images `(N, C, H, W)`, normalised as for training.
    """
    norms = [
        module
        for module in network.modules()
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.track_running_stats
    ]
    if not norms:
        return
    device = device_of(network)
    momenta = [norm.momentum for norm in norms]
    with evaluating(network), torch.no_grad():
        try:
            first = True
            for images in batches:
                for norm in norms if first else ():
                    norm.reset_running_stats()
                    norm.momentum = None  # a plain mean over all batches
                    norm.train()
                first = False
                network(images.to(device))
        finally:
            for norm, momentum in zip(norms, momenta, strict=True):
                norm.momentum = momentum
