"""Arrays of a user's or of a file, checked and brought into the one form: images uint8 `(N, C, H, W)`, labels int64."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from nasplat.core.errors import NasplatError


def as_images(array: Any, where: str) -> Tensor:
    """Images as a uint8 tensor `(N, C, H, W)`.

    Args:
        array: `(N, H, W)`, `(N, H, W, C)` or `(N, C, H, W)`; uint8, other integers in 0..255, booleans, or floats in
            0..1. Where four dimensions could be read either way, channels are last.
        where: what to call the array in an error.

    Raises:
        NasplatError: another shape or other values.
    """
    array = _numpy(array, where)
    if array.ndim not in (3, 4) or 0 in array.shape[1:]:
        shapes = "(N, H, W), (N, H, W, C) or (N, C, H, W)"
        raise NasplatError(f"{where} has shape {array.shape}, which are not images", f"images are {shapes}")
    if len(array) == 0:
        raise NasplatError(f"{where} holds no images")
    array = _as_uint8(array, where)
    if array.ndim == 3:
        array = array[:, None]
    elif _channels_last(array.shape):
        array = array.transpose(0, 3, 1, 2)
    return torch.from_numpy(np.require(array, requirements=["C", "W"]))


def as_labels(array: Any, count: int, where: str) -> Tensor:
    """Labels as an int64 tensor `(N,)`, one for each of `count` images, none of them negative.

    Raises:
        NasplatError: another number of labels, or labels that are not whole numbers from 0.
    """
    array = _numpy(array, where)
    if array.ndim == 2 and array.shape[1] == 1:
        array = array[:, 0]
    if array.ndim != 1:
        advice = "one whole number an image names its class"
        raise NasplatError(f"{where} has shape {array.shape}, which is not one label an image", advice)
    if len(array) != count:
        raise NasplatError(f"{where} has {len(array)} labels for {count} images", "there must be one label an image")
    if array.dtype.kind not in "biuf" or (array.dtype.kind == "f" and not np.array_equal(array, np.round(array))):
        odd = array[0] if array.dtype.kind not in "f" else array[array != np.round(array)][0]
        raise NasplatError(
            f"{where} has labels that are not whole numbers, such as {odd!s}", "number the classes from 0"
        )
    if count and array.min() < 0:
        row = int(np.argmin(array))
        raise NasplatError(f"{where}: the label of image {row} is {array[row]}", "classes are numbered from 0")
    return torch.from_numpy(array.astype(np.int64))


def class_names(labels: list[Tensor], names: tuple[str, ...] | None, where: str) -> tuple[str, ...]:
    """The names of the classes, after a check that every label has one.

    Args:
        labels: of each split, training first.
        names: None where nobody has named them; then each class must have an image.

    Raises:
        NasplatError: labels out of range, or with gaps.
    """
    counts = torch.bincount(torch.cat(labels).clamp(max=10**7), minlength=1)
    highest = len(counts) - 1
    if highest == 0 and (names is None or len(names) < 2):
        raise NasplatError(f"{where}: all images have one label", "there is nothing to tell apart: use `labels: false`")
    if names is not None:
        if highest >= len(names):
            raise NasplatError(
                f"{where}: a label is {highest}, but there are {len(names)} classes", f"labels run to {len(names) - 1}"
            )
        return names
    missing = (counts == 0).nonzero().flatten().tolist()
    if missing:
        raise NasplatError(
            f"{where}: labels run to {highest}, but no image has label {missing[0]}",
            "number the classes from 0 without gaps, or name all of them (`classes`)",
        )
    return tuple(str(index) for index in range(highest + 1))


def _numpy(array: Any, where: str) -> np.ndarray:
    if isinstance(array, Tensor):
        array = array.detach().cpu().numpy()
    try:
        array = np.asarray(array)
    except ValueError as error:  # ragged nested sequences
        raise NasplatError(f"{where} mixes shapes: {error}", "all images need one size") from error
    if array.dtype == object:
        shapes = {np.shape(item) for item in array.flat}
        some = " and ".join(str(shape) for shape in sorted(shapes, key=str)[:2])
        raise NasplatError(f"{where} mixes shapes or types: {some}", "all images need one size, and labels one type")
    return array


def _as_uint8(array: np.ndarray, where: str) -> np.ndarray:
    if array.dtype == np.uint8:
        return array
    if array.dtype == np.bool_:
        return array.astype(np.uint8) * 255
    if array.dtype.kind not in "iuf":
        raise NasplatError(f"{where} holds {array.dtype}, not pixels", "pixels are uint8, or floats in 0..1")
    low, high = array.min(), array.max()
    top = 1.0 if array.dtype.kind == "f" else 255
    if not (low >= 0 and high <= top):  # true of NaN as well
        raise NasplatError(
            f"{where} has pixels from {low} to {high}", "pixels are whole numbers in 0..255, or floats in 0..1"
        )
    if array.dtype.kind == "f":
        return np.round(array * 255).astype(np.uint8)
    return array.astype(np.uint8)


def _channels_last(shape: tuple[int, ...]) -> bool:
    if shape[3] in (1, 3) or shape[1] in (1, 3):
        return shape[3] in (1, 3)
    return shape[3] < shape[1]
