"""Colour changes as one affine map an image: brightness, contrast, saturation and hue cost one product of matrices."""

from __future__ import annotations

from functools import lru_cache
from math import pi

import numpy as np
import torch
from torch import Tensor

LUMINANCE = (0.2989, 0.587, 0.114)  # ITU-R BT.601
_YIQ = ((0.299, 0.587, 0.114), (0.5959, -0.2746, -0.3213), (0.2115, -0.5227, 0.3112))


@lru_cache(maxsize=64)
def constant(values: tuple[float, ...], device: torch.device) -> Tensor:
    """A vector on a device. Kept, for a copy from the host would wait for the device in every step."""
    return torch.tensor(values, dtype=torch.float32, device=device)


def luminance_weights(channels: int, device: torch.device) -> Tensor:
    """`(C,)`: those of the eye for three channels, equal ones otherwise."""
    return constant(LUMINANCE if channels == 3 else (1 / channels,) * channels, device)


def jitter(
    images: Tensor, brightness: Tensor, contrast: Tensor, saturation: Tensor, hue: Tensor, order: Tensor
) -> Tensor:
    """Changes colours, each image by its own factors, in its own order; the result is clamped to 0..1 once, at the end.

    Brightness, contrast and saturation are torchvision's. Hue turns the colour's I and Q about its Y, which is linear
    where torchvision's HSV is not, and goes the same way. Other than three channels have neither
    saturation nor hue.

    Args:
        images: float `(N, C, H, W)` in 0..1.
        brightness, contrast, saturation: `(N,)`; 1 changes nothing.
        hue: `(N,)`, in turns; 0 changes nothing.
        order: `(N, 4)`, a permutation of 0..3 for each image: the order of the four, as they are listed here.
    """
    count, channels = images.shape[:2]
    pixels = images.reshape(count, channels, -1)
    maps, of_mean = _single_maps(channels, brightness, contrast, saturation, hue)
    # Contrast moves pixels towards the mean of the image as it is by then, so the mean is taken along.
    mean = pixels.mean(2, keepdim=True)
    whole = torch.eye(channels, device=images.device).expand(count, -1, -1)
    offset = torch.zeros_like(mean)
    image = torch.arange(count, device=images.device)
    for step in range(4):
        chosen = maps[order[:, step], image]
        shift = of_mean[order[:, step], image] @ mean
        whole = chosen @ whole
        offset = chosen @ offset + shift
        mean = chosen @ mean + shift
    return torch.baddbmm(offset, whole, pixels).clamp_(0, 1).view(images.shape)


def _single_maps(
    channels: int, brightness: Tensor, contrast: Tensor, saturation: Tensor, hue: Tensor
) -> tuple[Tensor, Tensor]:
    """For each of the four changes what a pixel and what the mean are multiplied by; both `(4, N, C, C)`."""
    device = brightness.device
    same = torch.eye(channels, device=device)
    to_grey = luminance_weights(channels, device).expand(channels, channels)
    none = torch.zeros(len(brightness), channels, channels, device=device)
    b, c, s = (factor[:, None, None] for factor in (brightness, contrast, saturation))
    if channels == 3:
        saturated, turned = s * same + (1 - s) * to_grey, hue_matrices(hue)
    else:
        saturated = turned = none + same
    maps = torch.stack([b * same, c * same, saturated, turned])
    return maps, torch.stack([none, (1 - c) * to_grey, none, none])


def hue_matrices(turns: Tensor) -> Tensor:
    """`(N, 3, 3)`: a turn about the Y axis of YIQ, which leaves greys as they are."""
    angle = turns * (2 * pi)
    parts = torch.stack([torch.ones_like(angle), angle.cos(), angle.sin()], dim=1)
    return (parts @ constant(_hue_basis(), turns.device).view(3, 9)).view(-1, 3, 3)


def _hue_basis() -> tuple[float, ...]:
    """What stays, what goes with the cosine, and what with the sine, as three 3 × 3 matrices in a row."""
    to_yiq = np.array(_YIQ)
    from_yiq = np.linalg.inv(to_yiq)
    turns = np.zeros((3, 3, 3))
    turns[0, 0, 0] = turns[1, 1, 1] = turns[1, 2, 2] = turns[2, 1, 2] = 1
    turns[2, 2, 1] = -1
    return tuple((from_yiq @ turns @ to_yiq).ravel().tolist())


def grey(images: Tensor, amount: Tensor) -> Tensor:
    """Takes the colour out of an image: `amount` `(N,)` is 1 for those to change, 0 for the others."""
    weights = luminance_weights(images.shape[1], images.device)
    flat = (images * weights[:, None, None]).sum(1, keepdim=True)
    return images.lerp(flat, amount[:, None, None, None].to(images.dtype))
