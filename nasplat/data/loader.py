"""Batches for training and for scoring: one interface, whether images live on the device or are streamed to it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from nasplat.core.errors import NasplatError
from nasplat.data.augment import Augmentation, compose
from nasplat.data.datasets import Split
from nasplat.data.streaming import resident_batches, streamed_batches

_SHARE_OF_DEVICE = 0.5  # of the memory that is free; the rest is for training


@dataclass(frozen=True, slots=True)
class Batch:
    """Images on the device, normalised.

    Args:
        views: float `(N, C, H, W)` each, the same images under different augmentations; where the loader was asked
            for it, the first is not augmented.
        labels: `(N,)` int64, or None.
        indices: `(N,)` int64, the rows of the images in their split.
        task_labels: of several tasks, by name.
    """

    views: tuple[Tensor, ...]
    labels: Tensor | None
    indices: Tensor
    task_labels: Mapping[str, Tensor] = field(default_factory=dict)


class Loader:
    """Makes batches of a split.

    Args:
        mean, std: of each channel, of 0..1; images come as (image - mean) / std.
        augment: names of augmentations, a function of (images, generator), or nothing.
        views: how many views of each image a training batch has.
        first_plain: the first view is the image as it is, and only the others are augmented.
        channels_last: the memory format of the views.
        dtype: of the views.
        resident: hold the images on the `device`, `stream` them, or what the memory allows (`auto`).
        rank, world: of the `world` equal parts of every training batch, the one that this loader gives.

    Raises:
        NasplatError: no images, statistics of other channels, or a batch that cannot be divided.
    """

    def __init__(
        self,
        split: Split,
        *,
        batch_size: int,
        device: torch.device | str,
        mean: Sequence[float],
        std: Sequence[float],
        augment: Sequence[str | Augmentation] | Augmentation | None = (),
        views: int = 1,
        first_plain: bool = False,
        channels_last: bool = False,
        dtype: torch.dtype = torch.float32,
        resident: Literal["auto", "device", "stream"] = "auto",
        rank: int = 0,
        world: int = 1,
    ) -> None:
        if len(split) == 0:
            raise NasplatError("there are no images to load")
        if len(mean) != split.images.shape[1] or len(std) != len(mean):
            raise NasplatError(f"mean and std are for {len(mean)} channels, the images have {split.images.shape[1]}")
        self.device = torch.device(device)
        self.batch_size = min(batch_size, len(split))
        if self.batch_size % world:
            raise NasplatError(
                f"a batch of {self.batch_size} images cannot be divided among {world} processes",
                f"choose a batch_size that is a multiple of {world}",
            )
        self._rank, self._world = rank, world
        self.views = views
        self._first_plain = first_plain
        self.resident = _resident(split, self.device, resident)
        self._split = split
        self._labels = None if split.labels is None else split.labels.to(self.device)
        self._task_labels = {name: labels.to(self.device) for name, labels in split.task_labels.items()}
        self._augment: Callable[[Tensor, torch.Generator], Tensor] | None = None
        if augment is not None:
            self._augment = augment if callable(augment) else compose(augment)
        self._dtype = dtype
        self._format = torch.channels_last if channels_last else torch.contiguous_format
        # (image - mean) / std, for images in 0..255 and in 0..1.
        of_255 = torch.tensor([*mean, *std], dtype=torch.float64).view(2, 1, -1, 1, 1) * 255
        self._of_255 = _normaliser(of_255, self.device)
        self._of_1 = _normaliser(of_255 / 255, self.device)

    def __len__(self) -> int:
        """Images, not batches."""
        return len(self._split)

    @property
    def batches_per_epoch(self) -> int:
        """Of training: the last, partial batch is left out, but there is always one."""
        return len(self._split) // self.batch_size

    def epoch(self, generator: torch.Generator) -> Iterator[Batch]:
        """This loader's part of all images in random order, augmented; the last, partial batch is left out.

        Args:
            generator: on the CPU. The order is drawn from it, and a seed for all that is drawn on the device, before
                the first batch; so it is in the same state however far the epoch was followed.
        """
        order = torch.randperm(len(self._split), generator=generator)
        # Not .item(), which tests forbid everywhere here, so that none can slip into a step.
        seed = int(torch.randint(2**62, (1,), generator=generator).numpy()[0])
        on_device = torch.Generator(self.device).manual_seed(seed + self._rank)
        order = order[: self.batches_per_epoch * self.batch_size]
        order = order.view(-1, self.batch_size)[:, self._rank :: self._world].flatten()
        for rows, images in self._batches(order, self.batch_size // self._world):
            plain = (self._normalised(images),) * self._first_plain
            augmented = (self._normalised(self._augmented(images, on_device)) for _ in range(self.views - len(plain)))
            yield self._batch((*plain, *augmented), rows)

    def ordered(self) -> Iterator[Batch]:
        """All images in their order, none left out, one view, not augmented."""
        for rows, images in self._batches(torch.arange(len(self._split)), self.batch_size):
            yield self._batch((self._normalised(images),), rows)

    def _batches(self, order: Tensor, size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Rows and images, both on the device; the order is copied there once."""
        rows = order.to(self.device).split(size)
        if self.resident:
            images = resident_batches(self._split.on(self.device), iter(rows))
        else:
            images = streamed_batches(self._split.images, iter(order.split(size)), self.device)
        return zip(rows, images, strict=True)

    def _augmented(self, images: Tensor, generator: torch.Generator) -> Tensor:
        return images if self._augment is None else self._augment(images, generator)

    def _normalised(self, images: Tensor) -> Tensor:
        mean, scale = self._of_1 if images.is_floating_point() else self._of_255
        # In this order the memory format changes while pixels are still bytes, and no input is written to.
        images = images.contiguous(memory_format=self._format)
        return torch.sub(images, mean).mul_(scale).to(self._dtype)

    def _batch(self, views: tuple[Tensor, ...], rows: Tensor) -> Batch:
        labels = None if self._labels is None else self._labels.index_select(0, rows)
        return Batch(views, labels, rows, {name: one.index_select(0, rows) for name, one in self._task_labels.items()})


def _normaliser(mean_and_std: Tensor, device: torch.device) -> tuple[Tensor, Tensor]:
    mean, std = mean_and_std
    return mean.to(device, torch.float32), (1 / std).to(device, torch.float32)


def _resident(split: Split, device: torch.device, asked: str) -> bool:
    if asked != "auto":
        return asked == "device"
    if not isinstance(split.images, Tensor):
        return False
    if device.type != "cuda" or str(device) in split._copies:
        return True
    return split.nbytes <= _SHARE_OF_DEVICE * torch.cuda.mem_get_info(device)[0]
