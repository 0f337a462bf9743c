"""Augmentation of whole batches on their device: each image draws its own parameters, no loop runs over images.

An augmentation is a function of images `(N, C, H, W)`, uint8 or float in 0..1, and a generator on their device; it
returns images of the same shape, and waits for nothing. `crop`, `flip` and `cutout` keep uint8, which is a quarter
of the memory to move; so they come first. In an experiment file they are named: `train: {augment: [crop, flip]}`; one
of your own is `module:function`:

    # my_augment.py                   experiment file:  train: {augment: [flip, "my_augment:dim"]}
    import torch
    from nasplat.data.augment import as_float

    def dim(images, generator):
        factor = 0.5 + 0.5 * torch.rand(len(images), 1, 1, 1, generator=generator, device=images.device)
        return as_float(images) * factor
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import log, pi

import torch
from torch import Tensor
from torch.nn import functional as F

from nasplat.core.errors import NasplatError, nearest
from nasplat.core.user_function import load_function
from nasplat.data import colour
from nasplat.data.resampling import blur_matrices, crop_matrices, resample

Augmentation = Callable[[Tensor, torch.Generator], Tensor]


def as_float(images: Tensor) -> Tensor:
    """Images in 0..1: uint8 as float32, float as they are."""
    return images if images.is_floating_point() else images.to(torch.float32).div_(255)


def crop(images: Tensor, generator: torch.Generator, padding: int | None = None) -> Tensor:
    """Pads with black by an eighth of the size, or by `padding`, and cuts out an image of the old size anywhere."""
    count, _, height, width = images.shape
    padding = max(1, min(height, width) // 8) if padding is None else padding
    top, left = (_integers(count, 2 * padding + 1, generator) for _ in range(2))
    return crop_at(images, top, left, padding)


def crop_at(images: Tensor, top: Tensor, left: Tensor, padding: int) -> Tensor:
    """Pads with black on all sides and cuts out images of the old size whose corners are at `top`, `left` `(N,)`."""
    count, channels, height, width = images.shape
    padded = F.pad(images, (padding, padding, padding, padding))
    tall, wide = padded.shape[2:]
    # Every row of the result is a run of memory in the padded images: one gather of runs, at the speed of copying.
    runs = padded.as_strided((padded.numel() - width + 1, width), (1, 1))
    planes = torch.arange(count * channels, device=images.device).view(count, channels, 1) * (tall * wide)
    lines = (torch.arange(height, device=images.device) + top[:, None]) * wide + left[:, None]
    return runs.index_select(0, (planes + lines[:, None, :]).flatten()).view(images.shape)


def flip(images: Tensor, generator: torch.Generator) -> Tensor:
    """Mirrors half of the images left to right."""
    mirrored = torch.cat([images, images.flip(3)])
    rows = torch.arange(len(images), device=images.device)
    return mirrored.index_select(0, rows + _integers(len(images), 2, generator) * len(images))


def resized_crop(
    images: Tensor,
    generator: torch.Generator,
    scale: tuple[float, float] = (0.2, 1.0),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
) -> Tensor:
    """Cuts out a part of the image's area and resizes it to the old size, bilinear with antialiasing.

    Of "Going Deeper with Convolutions" (Szegedy et al., 2015). A side that would be too long is cut to the image's.

    Args:
        scale: least and greatest share of the area.
        ratio: least and greatest width over height; its logarithm is uniform.
    """
    count, _, height, width = images.shape
    area = _uniform(count, scale[0] * height * width, scale[1] * height * width, generator)
    root = (0.5 * _uniform(count, log(ratio[0]), log(ratio[1]), generator)).exp()
    tall = (area.sqrt() / root).round().clamp(1, height)
    wide = (area.sqrt() * root).round().clamp(1, width)
    top = (_uniform(count, 0, 1, generator) * (height - tall + 1)).floor()
    left = (_uniform(count, 0, 1, generator) * (width - wide + 1)).floor()
    return resized_crop_at(images, top, left, tall, wide)


def resized_crop_at(images: Tensor, top: Tensor, left: Tensor, tall: Tensor, wide: Tensor) -> Tensor:
    """Cuts out rectangles, given `(N,)` each in pixels, and resizes them to the old size."""
    height, width = images.shape[2:]
    rows = crop_matrices(top, tall, height, height)
    if not images.is_floating_point():
        rows = rows / 255
    return resample(images, rows, crop_matrices(left, wide, width, width))


def color_jitter(images: Tensor, generator: torch.Generator, strength: float = 0.5, share: float = 0.8) -> Tensor:
    """Changes brightness, contrast, saturation and hue of a share of the images, in a random order.

    As in SimCLR (Chen et al., 2020); `strength` is its s, 0.5 for small images.
    """
    count, device = len(images), images.device
    chosen = _uniform(count, 0, 1, generator) < share
    reach = 0.8 * strength
    factors = [torch.where(chosen, _uniform(count, 1 - reach, 1 + reach, generator), 1.0) for _ in range(3)]
    hue = chosen * _uniform(count, -0.2 * strength, 0.2 * strength, generator)
    order = torch.rand(count, 4, generator=generator, device=device).argsort(1)
    return colour.jitter(as_float(images), factors[0], factors[1], factors[2], hue, order)


def grey(images: Tensor, generator: torch.Generator, share: float = 0.2) -> Tensor:
    """Takes the colour out of a share of the images."""
    return colour.grey(as_float(images), _uniform(len(images), 0, 1, generator) < share)


def blur(
    images: Tensor, generator: torch.Generator, share: float = 0.5, sigma: tuple[float, float] = (0.1, 2.0)
) -> Tensor:
    """Blurs a share of the images with a Gaussian a tenth as wide as the image (SimCLR, Chen et al., 2020)."""
    count, _, height, width = images.shape
    chosen = _uniform(count, 0, 1, generator) < share
    return blur_by(
        images, chosen * _uniform(count, sigma[0], sigma[1], generator), max(3, min(height, width) // 10 | 1)
    )


def blur_by(images: Tensor, sigma: Tensor, kernel_size: int) -> Tensor:
    """Blurs each image by its own `sigma` `(N,)`, in pixels, 0 for not at all; reflects at the border."""
    height, width = images.shape[2:]
    return resample(
        as_float(images), blur_matrices(sigma, height, kernel_size), blur_matrices(sigma, width, kernel_size)
    )


def cutout(images: Tensor, generator: torch.Generator, size: int | None = None) -> Tensor:
    """Covers a square, half as wide as the image or `size` wide, with the image's mean colour (DeVries & Taylor, 2017).

    The square's centre may be anywhere, so part of it may lie outside. There the paper fills with zeros after
    normalisation, which is the mean of all images.
    """
    count, _, height, width = images.shape
    size = max(1, min(height, width) // 2) if size is None else size
    spans = []
    for length in (height, width):
        start = _integers(count, length, generator)[:, None] - size // 2
        pixels = torch.arange(length, device=images.device)
        spans.append((pixels >= start) & (pixels < start + size))
    covered = spans[0][:, None, :, None] & spans[1][:, None, None, :]
    mean = images.mean((2, 3), keepdim=True, dtype=torch.float32)
    return torch.where(covered, mean.to(images.dtype), images)


def rotation(images: Tensor, generator: torch.Generator, degrees: float = 15.0) -> Tensor:
    """Turns each image about its centre by up to so many degrees, bilinear, with black around it."""
    return rotate_by(images, _uniform(len(images), -degrees, degrees, generator))


def rotate_by(images: Tensor, degrees: Tensor) -> Tensor:
    """Turns each image by its own angle `(N,)`, counter-clockwise."""
    count, _, height, width = images.shape
    angle = degrees * (pi / 180)
    cos, sin, none = angle.cos(), angle.sin(), torch.zeros_like(angle)
    across, down = sin * (height / width), sin * (width / height)
    theta = torch.stack([torch.stack([cos, -across, none], 1), torch.stack([down, cos, none], 1)], 1)
    grid = F.affine_grid(theta, [count, 1, height, width], align_corners=False)
    return F.grid_sample(as_float(images), grid, align_corners=False)


AUGMENTATIONS: dict[str, Augmentation] = {
    "crop": crop,
    "flip": flip,
    "resized_crop": resized_crop,
    "color_jitter": color_jitter,
    "grey": grey,
    "blur": blur,
    "cutout": cutout,
    "rotation": rotation,
}


def default_augmentations(objective: str, input_shape: tuple[int, int, int]) -> tuple[str, ...]:
    """The augmentations that suit an objective. Grey images are not flipped: many are characters, which it changes.

    Contrastive objectives get SimCLR's, without blur below 64 pixels, as published for CIFAR-10 (Chen et al., 2020).
    """
    channels, height, width = input_shape
    flips = ("flip",) if channels > 1 else ()
    if objective not in ("simclr", "memory_bank"):
        return ("crop", *flips)
    colours = ("color_jitter", "grey") if channels == 3 else ("color_jitter",)
    return (*flips, "resized_crop", *colours, *(("blur",) if min(height, width) >= 64 else ()))


def compose(names: Sequence[str | Augmentation]) -> Augmentation:
    """Several augmentations in order as one: names of the table, `module:function`, or functions.

    Raises:
        NasplatError: a name that does not exist.
    """
    steps = [_named(name) if isinstance(name, str) else name for name in names]

    def apply(images: Tensor, generator: torch.Generator) -> Tensor:
        for step in steps:
            images = step(images, generator)
        return images

    return apply


def _named(name: str) -> Augmentation:
    if ":" in name:
        return load_function(name, "augmentation", ("images", "generator"))
    if name not in AUGMENTATIONS:
        known = f"there are {', '.join(AUGMENTATIONS)}, and module:function of your own"
        raise NasplatError(f"there is no augmentation {name!r}", nearest(name, AUGMENTATIONS) + known)
    return AUGMENTATIONS[name]


def _uniform(count: int, low: float, high: float, generator: torch.Generator) -> Tensor:
    return torch.rand(count, generator=generator, device=generator.device).mul_(high - low).add_(low)


def _integers(count: int, end: int, generator: torch.Generator) -> Tensor:
    return torch.randint(end, (count,), generator=generator, device=generator.device)
