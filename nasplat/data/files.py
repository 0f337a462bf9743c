"""Images from files of arrays: `.npz` archives and the IDX files of MNIST and its kin."""

from __future__ import annotations

import gzip
import hashlib
import io
import struct
import zipfile
import zlib
from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from nasplat.core.errors import NasplatError
from nasplat.data.arrays import as_images, as_labels
from nasplat.data.images import ImageReader, is_grey, naming
from nasplat.data.source import Part, Source, digest

_PREFIXES = {"train": ("train",), "validation": ("validation", "valid", "val"), "test": ("test",)}
_IMAGES = ("images", "image", "x", "data")
_LABELS = ("labels", "label", "y", "targets", "target")
_IDX_TYPES = {8: ">u1", 9: ">i1", 11: ">i2", 12: ">i4", 13: ">f4", 14: ">f8"}


def read_npz(path: Path, image_size: int | None) -> Source:
    """An `.npz` with arrays as `from_arrays` takes them.

    Raises:
        NasplatError: not such a file, or not such arrays.
    """
    if not zipfile.is_zipfile(path):
        raise NasplatError(f"{path} is not a readable .npz file", "write it with numpy.savez")
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {key: archive[key] for key in archive.files}
    except (OSError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise NasplatError(f"{path} is not a readable .npz file: {error}", "write it with numpy.savez") from error
    except ValueError as error:  # an array of objects: pickled, and never read
        advice = "all images need one size, and text in labels must be numbers"
        raise NasplatError(f"{path} holds arrays of mixed shapes or types: {error}", advice) from error
    return from_arrays(arrays, str(path), image_size)


def from_arrays(arrays: Mapping[str, Any], where: str, image_size: int | None) -> Source:
    """Images and labels by name.

    `images` and `labels`, or `train_images` and `train_labels` (and the same with `validation_` and `test_`, where
    there are such); `image`, `x`, `label`, `y`, `x_train` and the like will do; `classes` may name the classes. Coded
    images: `train_jpeg` (the bytes of all files end to end) and `train_offset` (N + 1 places in them).
    """
    parts: dict[str, Part | None] = {}
    used: set[str] = set()
    coded = hashlib.sha256()
    for split, prefixes in _PREFIXES.items():
        images_key = _find(arrays, prefixes, _IMAGES, plain=split == "train")
        jpeg_key = _find(arrays, prefixes, ("jpeg", "png"), plain=split == "train")
        labels_key = _find(arrays, prefixes, _LABELS, plain=split == "train")
        if images_key is not None:
            images: Any = as_images(arrays[images_key], f"{where}: {images_key}")
        elif jpeg_key is not None:
            images = _coded(arrays, jpeg_key, where, image_size)
            coded.update(np.asarray(arrays[jpeg_key]).tobytes())
        else:
            parts[split] = None
            continue
        labels = None
        if labels_key is not None:
            labels = as_labels(arrays[labels_key], len(images), f"{where}: {labels_key}")
        parts[split] = Part(images, labels)
        used |= {key for key in (images_key, jpeg_key, labels_key) if key is not None}
    if parts["train"] is None:
        found = ", ".join(arrays) or "nothing"
        raise NasplatError(
            f"{where} has no array of training images; it holds {found}",
            "name the arrays images and labels, or train_images, train_labels, test_images …",
        )
    names = arrays.get("classes")
    classes = None if names is None else tuple(str(name) for name in np.asarray(names).tolist())
    content = coded.hexdigest() + digest(parts.values())
    return Source(where, parts["train"], parts["validation"], parts["test"], classes, content)


def _find(arrays: Mapping[str, Any], prefixes: tuple[str, ...], kinds: tuple[str, ...], plain: bool) -> str | None:
    names = [f"{prefix}_{kind}" for prefix in prefixes for kind in kinds]
    names += [f"{kind}_{prefix}" for prefix in prefixes for kind in kinds]
    names += list(kinds) if plain else []
    return next((name for name in names if name in arrays), None)


def _coded(arrays: Mapping[str, Any], key: str, where: str, image_size: int | None) -> ImageReader:
    data = np.asarray(arrays[key])
    offsets_key = key[: -len(key.rpartition("_")[2])] + "offset"
    offsets = np.asarray(arrays.get(offsets_key, ()))
    if data.dtype != np.uint8 or data.ndim != 1 or offsets.ndim != 1 or len(offsets) < 2:
        advice = f"{key} is uint8, all files end to end; {offsets_key} has one more place than there are images"
        raise NasplatError(f"{where}: {key} and {offsets_key} are not coded images", advice)
    if offsets[0] < 0 or offsets[-1] > len(data) or (np.diff(offsets) <= 0).any():
        raise NasplatError(f"{where}: {offsets_key} does not fit {key}", "its places ascend, to the end of the bytes")

    def open_image(number: int) -> Image.Image:
        return Image.open(io.BytesIO(data[offsets[number] : offsets[number + 1]].tobytes()))

    def name(number: int) -> str:
        return f"{where}: {key} image {number}"

    with naming(lambda: name(0)):
        first = open_image(0)
    size = (image_size, image_size) if image_size else (first.height, first.width)
    numbers = torch.arange(len(offsets) - 1)
    return ImageReader(open_image, name, numbers, 1 if is_grey(first) else 3, size, image_size is not None)


def has_idx(folder: Path) -> bool:
    return folder.is_dir() and _idx_file(folder, ("train",), "images") is not None


def read_idx(folder: Path) -> Source:
    """A folder with IDX files (LeCun et al., MNIST, 1998), gzipped or not; those of the test images may be missing.

    Raises:
        NasplatError: files that are missing or broken.
    """
    train = _idx_part(folder, ("train",))
    if train is None:
        raise NasplatError(
            f"{folder} has no IDX file of training images",
            "it should hold train-images-idx3-ubyte, train-labels-idx1-ubyte and the same with t10k (.gz will do)",
        )
    test = _idx_part(folder, ("t10k", "test"))
    return Source(str(folder), train, None, test, None, digest((train, test)))


def _idx_part(folder: Path, prefixes: tuple[str, ...]) -> Part | None:
    images_file = _idx_file(folder, prefixes, "images")
    if images_file is None:
        return None
    images = as_images(read_idx_file(images_file), str(images_file))
    labels_file = _idx_file(folder, prefixes, "labels")
    labels = None
    if labels_file is not None:
        labels = as_labels(read_idx_file(labels_file), len(images), str(labels_file))
    return Part(images, labels)


def _idx_file(folder: Path, prefixes: tuple[str, ...], kind: str) -> Path | None:
    for prefix in prefixes:
        found = sorted(
            path for path in folder.glob(f"*{prefix}*{kind}*idx*") if path.is_file() and path.suffix in ("", ".gz")
        ) or sorted(folder.glob(f"*{prefix}*{kind}.idx*"))
        names = {path.name.removesuffix(".gz") for path in found}
        if len(names) > 1:
            raise NasplatError(f"{folder} has several IDX files of {prefix} {kind}: {', '.join(sorted(names))}")
        if found:
            return found[0]
    return None


def read_idx_file(path: Path) -> np.ndarray:
    """One array from an IDX file, gzipped or not."""
    try:
        data = path.read_bytes()
        if data[:2] == b"\x1f\x8b":
            data = gzip.decompress(data)
    except (OSError, EOFError, zlib.error) as error:
        raise NasplatError(f"{path} cannot be read: {error}", "download it again") from error
    if len(data) < 4 or data[:2] != b"\0\0" or data[2] not in _IDX_TYPES:
        raise NasplatError(f"{path} is not an IDX file", "its first bytes are 0, 0, a type and a number of dimensions")
    start = 4 + 4 * data[3]
    kind = np.dtype(_IDX_TYPES[data[2]])
    shape = struct.unpack(f">{data[3]}I", data[4:start]) if len(data) >= start else (0,)
    expected = start + prod(shape) * kind.itemsize
    if len(data) != expected:
        raise NasplatError(f"{path} has {len(data)} bytes, its header tells of {expected}", "download it again")
    return np.frombuffer(data, dtype=kind, offset=start).reshape(shape).astype(kind.newbyteorder("="))
