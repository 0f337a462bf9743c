"""Tasks that need no labels: an image is changed in one of a few ways, and the network is to tell in which; or it is
changed freely, and the network is to tell from which image it came.

Each of the few ways is a rearrangement of an image's pixels, so that one gather on the device changes a whole batch.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from itertools import permutations

import torch
from torch import Tensor

from nasplat.core.errors import NasplatError, nearest
from nasplat.core.tasks import Task
from nasplat.data.augment import resized_crop

CONTRASTIVE = "contrastive"
_PROJECTION = 64  # dimensions of what a contrastive task compares
_JITTER = 0.4  # of contrast and of brightness, in deviations of the pixels
_JIGSAWS = 8  # of the 24 arrangements of 2 x 2 tiles: the hundreds of 3 x 3 need larger images and longer training

Shape = tuple[int, int, int]


def _places(shape: Shape) -> Tensor:
    return torch.arange(shape[0] * shape[1] * shape[2]).view(shape)


def _rotations(shape: Shape) -> Tensor:
    """By 0, 90, 180 and 270 degrees (Gidaris et al., Unsupervised Representation Learning by Predicting Image
    Rotations, 2018)."""
    if shape[1] != shape[2]:
        raise NasplatError(f"pretext rotation needs square images, not {shape[1]} x {shape[2]}", "resize them")
    return torch.stack([_places(shape).rot90(turns, (1, 2)) for turns in range(4)])


def _jigsaws(shape: Shape) -> Tensor:
    """Tiles rearranged (Noroozi & Favaro, 2016), as one image (Carlucci et al., Domain Generalization by Solving
    Jigsaw Puzzles, 2019). A last odd row or column stays where it is."""
    if min(shape[1:]) < 2:
        raise NasplatError(f"pretext jigsaw needs images of 2 x 2 pixels at least, not {shape[1]} x {shape[2]}")
    height, width = shape[1] // 2, shape[2] // 2
    tiles = [
        (slice(None), slice(row, row + height), slice(column, column + width))
        for row in (0, height)
        for column in (0, width)
    ]
    made = []
    for order in _far_apart(_JIGSAWS):
        places = _places(shape)
        found = places.clone()
        for target, source in zip(tiles, order, strict=True):
            found[target] = places[tiles[source]]
        made.append(found)
    return torch.stack(made)


def _colours(shape: Shape) -> Tensor:
    """All orders of red, green and blue (Lee et al., Self-supervised Label Augmentation via Input Transformations,
    2020)."""
    if shape[0] != 3:
        raise NasplatError(f"pretext colours needs images of 3 channels, not {shape[0]}", "use rotation or jigsaw")
    return torch.stack([_places(shape)[list(order)] for order in permutations(range(3))])


def _far_apart(count: int) -> list[tuple[int, ...]]:
    """Permutations of four tiles, beginning with none moved, each as far as can be from those before it."""
    remaining = list(permutations(range(4)))
    chosen = [remaining.pop(0)]
    while len(chosen) < count:
        distances = [min(sum(a != b for a, b in zip(one, other, strict=True)) for other in chosen) for one in remaining]
        chosen.append(remaining.pop(distances.index(max(distances))))
    return chosen


# Name -> from the shape (C, H, W) of an image, where each pixel of each way's image is taken from, (ways, C, H, W).
PRETEXTS: dict[str, Callable[[Shape], Tensor]] = {"rotation": _rotations, "jigsaw": _jigsaws, "colours": _colours}
PRETEXT_NAMES = (*PRETEXTS, CONTRASTIVE)


def pretext_task(name: str, input_shape: Shape) -> Task:
    """The task of a pretext of `PRETEXT_NAMES`, which bears its name.

    Raises:
        NasplatError: an unknown name, or images that the pretext cannot be made of.
    """
    if name == CONTRASTIVE:
        return Task(name, "contrastive", _PROJECTION, pretext=name)
    return Task(name, "classification", len(_table(name, input_shape, torch.device("cpu"))), pretext=name)


def change(name: str, images: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Changes each image of a batch in a way drawn for it.

    For `contrastive` that is another view of it: a resized crop with other contrast and brightness, which images of
    deviation 1 are meant for (after Chen et al., A Simple Framework for Contrastive Learning, 2020).

    Args:
        images: `(N, C, H, W)` of any type; for `contrastive` real, normalised.
        generator: on the device of the images.

    Returns:
        The changed images, and the way of each, `(N,)` int64; for `contrastive` the row of the image it came from.
    """
    if name == CONTRASTIVE:
        count, device = len(images), images.device
        shift = torch.empty(2, count, 1, 1, 1, device=device).uniform_(-_JITTER, _JITTER, generator=generator)
        return resized_crop(images, generator) * (1 + shift[0]) + shift[1], torch.arange(count, device=device)
    table = _table(name, (images.shape[1], images.shape[2], images.shape[3]), images.device)
    ways = torch.randint(len(table), (len(images),), generator=generator, device=images.device)
    changed = images.flatten(1).gather(1, table.flatten(1).index_select(0, ways)).view(images.shape)
    strided = images.is_contiguous(memory_format=torch.channels_last)
    return changed.contiguous(memory_format=torch.channels_last) if strided else changed, ways


@lru_cache(maxsize=32)
def _table(name: str, shape: Shape, device: torch.device) -> Tensor:
    if name not in PRETEXTS:
        raise NasplatError(
            f"there is no pretext {name!r}", nearest(name, PRETEXT_NAMES) + f"there are {', '.join(PRETEXT_NAMES)}"
        )
    return PRETEXTS[name](shape).to(device)
