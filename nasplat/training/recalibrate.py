"""Statistics of batch norm measured anew, for a network whose channels are not those that they were measured on."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from nasplat.training.features import device_of, evaluating

if TYPE_CHECKING:
    from nasplat.data.datasets import Dataset

IMAGES = 2048
BATCH = 128


def recalibrate_on(network: nn.Module, dataset: Dataset, device: torch.device, seed: int, images: int = IMAGES) -> None:
    """Measures the statistics anew on about so many training images, not augmented, in place, on the device."""
    from nasplat.data.loader import Loader

    size = min(BATCH, len(dataset.train), images)
    loader = Loader(dataset.train, batch_size=size, device=device, mean=dataset.mean, std=dataset.std)
    batches = islice(loader.epoch(torch.Generator().manual_seed(seed % 2**63)), max(1, round(images / size)))
    recalibrate(network.to(device), (batch.views[0] for batch in batches))


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
