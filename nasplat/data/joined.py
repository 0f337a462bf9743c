"""Two parts of a data set as one: for the full training, after the search has chosen."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from nasplat.data.datasets import Split
from nasplat.data.images import Images


@dataclass(frozen=True)
class Joined:
    """Images of two readers, one after the other; they stay where they are until they are asked for.

    Args:
        first, second: readers of images of one shape.
        rows: `(N,)` int64, which of them these are; those of the second count on from the first's.
    """

    first: Images
    second: Images
    rows: Tensor = field(repr=False)

    @property
    def shape(self) -> tuple[int, ...]:
        return (len(self.rows), *self.first.shape[1:])

    def __len__(self) -> int:
        return len(self.rows)

    def select(self, rows: Tensor) -> Joined:
        return Joined(self.first, self.second, self.rows[rows])

    def read(self, rows: Tensor) -> Tensor:
        """The images `(B, C, H, W)`, uint8, of the given rows `(B,)`."""
        wanted = self.rows[rows]
        in_first = wanted < len(self.first)
        images = torch.empty((len(rows), *self.shape[1:]), dtype=torch.uint8)
        images[in_first] = self.first.read(wanted[in_first])
        images[~in_first] = self.second.read(wanted[~in_first] - len(self.first))
        return images


def join(first: Split, second: Split) -> Split:
    """The images of both, those of the first before those of the second; labels where both have them."""
    labels = None
    if first.labels is not None and second.labels is not None:
        labels = torch.cat([first.labels, second.labels])
    by_task = {name: torch.cat([one, second.task_labels[name]]) for name, one in first.task_labels.items()}
    if isinstance(first.images, Tensor) and isinstance(second.images, Tensor):
        return Split(torch.cat([first.images, second.images]), labels, by_task)
    readers = [_Held(part.images) if isinstance(part.images, Tensor) else part.images for part in (first, second)]
    return Split(Joined(readers[0], readers[1], torch.arange(len(first) + len(second))), labels, by_task)


@dataclass(frozen=True)
class _Held:
    """Images in memory, with the manners of a reader."""

    images: Tensor

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.images.shape)

    def __len__(self) -> int:
        return len(self.images)

    def read(self, rows: Tensor) -> Tensor:
        return self.images[rows]

    def select(self, rows: Tensor) -> _Held:
        return _Held(self.images[rows])
