"""Separable maps of whole batches: each output row a weighted sum of input rows, each column of columns.

Cropping with resizing, and blurring, are such maps. With one small matrix an image and axis, two batched matrix
products do a batch, each image with its own parameters.
"""

from __future__ import annotations

import torch
from torch import Tensor


def resample(images: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Applies one map an axis to each image.

    Args:
        images: `(N, C, H, W)`, uint8 or float.
        rows: `(N, H', H)`.
        columns: `(N, W', W)`.

    Returns:
        Float `(N, C, H', W')`.
    """
    count, channels, height, width = images.shape
    out_height, out_width = rows.shape[1], columns.shape[1]
    # With rows outermost, a product does all channels at once, without a copy of the matrix for each.
    tall = images.permute(0, 2, 1, 3).to(rows.dtype).reshape(count, height, channels * width)
    tall = torch.bmm(rows, tall).view(count, out_height * channels, width)
    wide = torch.bmm(tall, columns.transpose(1, 2)).view(count, out_height, channels, out_width)
    return wide.permute(0, 2, 1, 3).contiguous()


def crop_matrices(start: Tensor, length: Tensor, size: int, out_size: int) -> Tensor:
    """Maps `(N, out_size, size)` that cut out an interval and resize it, bilinear with antialiasing.

    Args:
        start, length: `(N,)`, of the interval, in pixels.
    """
    start, length = start.to(torch.float32)[:, None, None], length.to(torch.float32)[:, None, None]
    scale = length / out_size
    out_centres = torch.arange(out_size, device=start.device)[None, :, None] + 0.5
    pixels = torch.arange(size, device=start.device)[None, None, :]
    distance = (pixels + 0.5) - (start + out_centres * scale)
    weights = (1 - distance.abs_() / scale.clamp(min=1)).clamp_(min=0)
    weights.mul_((pixels >= start) & (pixels < start + length))
    return weights.div_(weights.sum(2, keepdim=True))


def blur_matrices(sigma: Tensor, size: int, kernel_size: int) -> Tensor:
    """Maps `(N, size, size)` that convolve with a Gaussian, reflecting at the border.

    Args:
        sigma: `(N,)`, in pixels; 0 changes nothing.
        kernel_size: odd, less than twice the size.
    """
    half = kernel_size // 2
    offsets = torch.arange(-half, half + 1, device=sigma.device)
    kernel = torch.exp(-0.5 * (offsets / sigma.clamp(min=1e-3)[:, None]).square())
    kernel = kernel / kernel.sum(1, keepdim=True)
    sources = torch.arange(size, device=sigma.device)[:, None] + offsets
    sources = (size - 1) - ((size - 1) - sources.abs()).abs()
    index = sources.flatten().expand(len(sigma), -1) + _row_starts(size, kernel_size, sigma.device)
    weights = torch.zeros(len(sigma), size * size, device=sigma.device)
    weights.scatter_add_(1, index, kernel.repeat(1, size))
    return weights.view(len(sigma), size, size)


def _row_starts(size: int, kernel_size: int, device: torch.device) -> Tensor:
    return (torch.arange(size, device=device) * size).repeat_interleave(kernel_size, output_size=size * kernel_size)
