"""What images are here: uint8 tensors `(N, C, H, W)`, or a reader that decodes them when they are asked for."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from nasplat.core.errors import NasplatError

# At most so many bytes of decoded images are held in memory where a data set may choose.
HELD_BYTES = 2 * 2**30
_CHUNK = 1024


@runtime_checkable
class Images(Protocol):
    """Images that are decoded when they are asked for. `shape` is `(N, C, H, W)`."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    def __len__(self) -> int: ...

    def read(self, rows: Tensor) -> Tensor:
        """The images `(B, C, H, W)`, uint8, of the given rows `(B,)`; called from a background thread."""
        ...

    def select(self, rows: Tensor) -> Images:
        """Only these rows, in this order."""
        ...


@dataclass(frozen=True)
class ImageReader:
    """Images that Pillow decodes, by a pool of threads (it lets go of Python's lock while it decodes).

    Args:
        open: the image of a number, as Pillow opens it.
        name: what to call that image in an error, such as its file.
        numbers: `(N,)` int64, the numbers of these images.
        channels: 1 (grey) or 3 (RGB).
        size: height and width.
        resize: whether to resize to `size`; otherwise an image of another size is an error.
    """

    open: Callable[[int], Image.Image] = field(repr=False)
    name: Callable[[int], str] = field(repr=False)
    numbers: Tensor = field(repr=False)
    channels: int
    size: tuple[int, int]
    resize: bool

    @property
    def shape(self) -> tuple[int, int, int, int]:
        return (len(self.numbers), self.channels, *self.size)

    def __len__(self) -> int:
        return len(self.numbers)

    def select(self, rows: Tensor) -> ImageReader:
        return replace(self, numbers=self.numbers[rows])

    def read(self, rows: Tensor) -> Tensor:
        """Decodes some images.

        Raises:
            NasplatError: one of them is corrupt or of another size; the message names it.
        """
        images = np.empty((len(rows), self.channels, *self.size), dtype=np.uint8)

        def decode(slot: int, number: int) -> None:
            images[slot] = self._decode(number)

        list(_pool().map(decode, range(len(rows)), self.numbers[rows].tolist()))
        return torch.from_numpy(images)

    def _decode(self, number: int) -> np.ndarray:
        height, width = self.size
        with naming(lambda: self.name(number)), self.open(number) as opened:
            image = opened.convert(mode_of(opened, self.channels, self.name(number)))
            if image.size != (width, height):
                if not self.resize:
                    raise wrong_size(self.name(number), image.size, (width, height))
                image = image.resize((width, height), Image.Resampling.BILINEAR)
            pixels = np.asarray(image)
        return pixels[None] if self.channels == 1 else pixels.transpose(2, 0, 1)


def read_all(images: Tensor | Images) -> Tensor:
    """All of them, in memory."""
    if isinstance(images, Tensor):
        return images
    chunks = [images.read(rows) for rows in torch.arange(len(images)).split(_CHUNK)]
    return torch.cat(chunks) if chunks else torch.empty(images.shape, dtype=torch.uint8)


def select(images: Tensor | Images, rows: Tensor) -> Tensor | Images:
    """Only these rows, in this order."""
    return images.index_select(0, rows) if isinstance(images, Tensor) else images.select(rows)


def resize(images: Tensor, size: int) -> Tensor:
    """uint8 `(N, C, H, W)` to `(N, C, size, size)`, bilinear with antialiasing."""
    if tuple(images.shape[2:]) == (size, size):
        return images
    resized = [
        torch.nn.functional.interpolate(chunk.float(), (size, size), mode="bilinear", antialias=True)
        .round_()
        .clamp_(0, 255)
        .to(torch.uint8)
        for chunk in images.split(_CHUNK)
    ]
    return torch.cat(resized)


class naming:
    """Turns what Pillow raises on a bad file into a NasplatError that names the file."""

    def __init__(self, name: Callable[[], str]) -> None:
        self.name = name

    def __enter__(self) -> None: ...

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if isinstance(error, NasplatError) or not isinstance(error, Exception):
            return
        advice = "remove this file, or replace it by an intact one"
        if isinstance(error, Image.DecompressionBombError):
            raise NasplatError(f"{self.name()} has too many pixels to be decoded safely", "shrink it first") from error
        if isinstance(error, FileNotFoundError | PermissionError):
            raise NasplatError(f"{self.name()} cannot be read: {error.strerror}") from error
        if isinstance(error, UnidentifiedImageError):
            raise NasplatError(f"{self.name()} is not an image that can be decoded", advice) from error
        if isinstance(error, OSError | SyntaxError | ValueError | EOFError):
            raise NasplatError(f"{self.name()} is corrupt: {error}", advice) from error


def mode_of(image: Image.Image, channels: int, name: str) -> str:
    """The mode to convert an image to, after a check that nothing but colour is lost."""
    if image.mode.startswith(("I", "F")):
        raise NasplatError(f"{name} has more than 8 bits a channel ({image.mode})", "convert the images to 8 bits")
    return "L" if channels == 1 else "RGB"


def is_grey(image: Image.Image) -> bool:
    return image.mode in ("1", "L", "LA", "La")


def wrong_size(name: str, found: tuple[int, int], expected: tuple[int, int]) -> NasplatError:
    """Both sizes as width and height."""
    return NasplatError(
        f"{name} is {found[0]} × {found[1]} pixels (width × height), images before it {expected[0]} × {expected[1]}",
        f"all images need one size; `image_size: {min(expected)}` in the section data resizes them",
    )


@lru_cache(maxsize=1)
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(max_workers=min(16, os.cpu_count() or 1), thread_name_prefix="decode")
