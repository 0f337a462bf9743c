"""What a source of images hands over before anything is split: the same for files, folders, arrays and torchvision."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass

from torch import Tensor

from nasplat.data.images import Images


@dataclass(frozen=True)
class Part:
    """Images with one label each, or without."""

    images: Tensor | Images
    labels: Tensor | None


@dataclass(frozen=True)
class Source:
    """All images of a data set, by the parts that it comes in.

    Args:
        where: what to call it in an error.
        train: also the images to hold out from, where a part below is None.
        classes: their names; None where nobody has named them.
        content: a digest of the images, the same however they are held.
    """

    where: str
    train: Part
    validation: Part | None
    test: Part | None
    classes: tuple[str, ...] | None
    content: str


def digest(parts: Iterable[Part | None]) -> str:
    """SHA-256 of the pixels of images that are held in memory."""
    sha = hashlib.sha256()
    for part in parts:
        if part is not None and isinstance(part.images, Tensor):
            sha.update(repr(tuple(part.images.shape)).encode())
            sha.update(part.images.contiguous().numpy().data)
    return sha.hexdigest()
