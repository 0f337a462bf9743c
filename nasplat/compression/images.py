"""What a pruning needs of a data set: images to score channels by, the accuracy, and statistics for batch norm."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from nasplat.core.errors import NasplatError
from nasplat.training.evaluate import accuracy, evaluation_loader
from nasplat.training.recalibrate import recalibrate_on

if TYPE_CHECKING:
    from nasplat.data.datasets import Dataset

BATCH = 128


def batches(
    dataset: Dataset, count: int, device: torch.device, seed: int, size: int = BATCH
) -> Iterator[tuple[Tensor, Tensor | None]]:
    """About so many training images in random order, not augmented, with their labels where there are any."""
    from nasplat.data.loader import Loader

    size = min(size, len(dataset.train), count)
    loader = Loader(dataset.train, batch_size=size, device=device, mean=dataset.mean, std=dataset.std)
    for batch in islice(loader.epoch(torch.Generator().manual_seed(seed)), max(1, round(count / size))):
        yield batch.views[0], batch.labels


def labelled(dataset: Dataset, count: int, device: torch.device, seed: int) -> list[tuple[Tensor, Tensor]]:
    """The same, of those that have labels."""
    return [(images, labels) for images, labels in batches(dataset, count, device, seed) if labels is not None]


def recalibrated(network: nn.Module, dataset: Dataset, device: torch.device, seed: int) -> None:
    """Measures the statistics of batch norm anew, in place; the network is on the CPU before and after."""
    recalibrate_on(network, dataset, device, seed)
    network.cpu()


def test_accuracy(network: nn.Module, dataset: Dataset, device: torch.device) -> float:
    """Of the network's classifier on the test images; the network is on the CPU before and after."""
    found = accuracy(network.to(device), evaluation_loader(dataset, "test", device), device)
    network.cpu()
    return found


def why_not_judged(network: nn.Module, dataset: Dataset | None) -> str | None:
    """Why the accuracy of a network cannot be measured on these data; None where it can.

    Raises:
        NasplatError: the images do not fit the network, or the data have another number of classes.
    """
    if dataset is None:
        return "there are no images"
    images = next(batches(dataset, 2, torch.device("cpu"), 0))[0]
    try:
        with torch.no_grad():
            outputs = network(images)
    except RuntimeError as error:
        shape = " × ".join(map(str, images.shape[1:]))
        raise NasplatError(
            f"the network cannot take these images of {shape}: {str(error).splitlines()[0]}",
            "data.image_size resizes images; grey images need a network for one channel",
        ) from error
    if not dataset.classes:
        return "the images have no labels"
    if not isinstance(outputs, Tensor):
        return "the network has several outputs"
    if outputs.dim() != 2 or outputs.shape[1] != len(dataset.classes):
        raise NasplatError(
            f"the data have {len(dataset.classes)} classes, and the network answers with "
            f"{' × '.join(map(str, outputs.shape[1:]))} numbers",
            "give the data that the network was trained for, or its classifier as many outputs (arguments)",
        )
    return None
