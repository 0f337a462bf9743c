"""The one way in for images: `load_dataset` turns the section `data` of an experiment into a data set.

Where images come from (`source`, `path`):

- `digits`: scikit-learn's, 1,797 real grey images of 8 × 8, there without a download; the default;
- every classification data set of torchvision by name (`cifar10`, `fashion_mnist`, `svhn` …);
- a `path` alone: an `.npz`, a folder with IDX files, a folder of class folders, or a folder of images without labels;
- `module:function` of your own, which returns images, or images and labels, as arrays, in a tuple or by name as in an
  `.npz`, or a whole `Dataset`. It is given the `path` where there is one:

      # my_data.py                      experiment file:  data: {source: "my_data:stripes"}
      import numpy as np

      def stripes():
          rng = np.random.default_rng(0)
          labels = rng.integers(2, size=1000)
          images = rng.integers(100, size=(1000, 16, 16, 3), dtype=np.uint8)
          images[labels == 0, ::4] += 100  # stripes across
          images[labels == 1, :, ::4] += 100  # stripes down
          return images, labels

Images without labels are as good as any: `labels: false` does not read labels even where there are some. `tasks` asks
for several tasks; see `nasplat.data.task_loading`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor

from nasplat.core.errors import NasplatError, nearest
from nasplat.core.experiment import Data
from nasplat.core.problem import Output, Problem, classification
from nasplat.core.tasks import Task
from nasplat.core.user_function import load_function
from nasplat.data.arrays import class_names
from nasplat.data.files import from_arrays, has_idx, read_idx, read_npz
from nasplat.data.folders import read_folder
from nasplat.data.images import HELD_BYTES, ImageReader, Images, read_all, resize, select
from nasplat.data.source import Part, Source
from nasplat.data.splits import TEST_SEED, TEST_SHARE, hold_out
from nasplat.data.torchvision_sets import TORCHVISION, read_torchvision

_BY_PATH = ("idx", "npz", "folder")
_STATISTICS_OF = 4096  # images that are decoded to find mean and deviation, where decoding them all takes long
_CHUNK = 1024


@dataclass(frozen=True)
class Split:
    """The images of one part.

    Args:
        images: uint8 `(N, C, H, W)` in memory, or a reader that decodes them when asked.
        labels: `(N,)` int64, or None.
        task_labels: of several tasks, by name; `nasplat.core.tasks.Task` tells their shapes, and which are missing.
    """

    images: Tensor | Images
    labels: Tensor | None = None
    task_labels: Mapping[str, Tensor] = field(default_factory=dict)
    _copies: dict[str, Tensor] = field(default_factory=dict, repr=False, compare=False)

    def __len__(self) -> int:
        return len(self.images)

    def select(self, rows: Tensor) -> Split:
        """Only these rows, in this order."""
        labels = None if self.labels is None else self.labels[rows]
        return Split(select(self.images, rows), labels, {name: one[rows] for name, one in self.task_labels.items()})

    @property
    def nbytes(self) -> int:
        """Of the decoded images."""
        return int(torch.Size(self.images.shape).numel())

    def on(self, device: torch.device) -> Tensor:
        """The images on a device; copied there once, for all who ask."""
        key = str(device)
        if key not in self._copies:
            self._copies[key] = read_all(self.images).to(device)
        return self._copies[key]


@dataclass(frozen=True)
class Dataset:
    """Images, split; the search sees `train` and `validation` only.

    Args:
        mean, std: of the training pixels, for each channel, of 0..1.
        classes: their names; empty without labels.
        fingerprint: a digest of the images and of how they are split.
        tasks: where there are several; the problem then has an output for each.
    """

    name: str
    train: Split
    validation: Split
    test: Split
    problem: Problem
    mean: tuple[float, ...]
    std: tuple[float, ...]
    classes: tuple[str, ...]
    fingerprint: str
    tasks: tuple[Task, ...] = ()


def load_dataset(spec: Data) -> Dataset:
    """Reads, checks and splits images; the same specification gives the same splits everywhere.

    Test images are those of the source, or a fixed fifth where it has none of its own. `train_size` images are drawn
    from the others, and of these the share `validation` is held out, unless the source has validation images.

    Raises:
        NasplatError: an unknown source, a missing path, images or labels that are not fit; it says which.
    """
    if spec.tasks is not None:
        from nasplat.data.task_loading import load_tasks

        found = load_tasks(spec)
    else:
        read = _read(spec)
        found = read if isinstance(read, Dataset) else _finish(read, spec)
    if spec.mean is None or spec.std is None:
        return found
    channels = found.problem.input_shape[0]
    if not len(spec.mean) == len(spec.std) == channels or min(spec.std) <= 0:
        raise NasplatError(
            f"data: mean {list(spec.mean)} and std {list(spec.std)} do not fit images of {channels} channel"
            + "s" * (channels > 1),
            "one number a channel, of pixels of 0..1; deviations are above 0",
        )
    fingerprint = hashlib.sha256(f"{found.fingerprint} {spec.mean} {spec.std}".encode()).hexdigest()
    return replace(found, mean=spec.mean, std=spec.std, fingerprint=fingerprint)


def _read(spec: Data) -> Source | Dataset:
    path = None if spec.path is None else Path(spec.path).expanduser()
    if path is not None and not path.exists():
        raise NasplatError(f"data: path {spec.path} does not exist", f"it is looked for at {path.absolute()}")
    if spec.source is not None and ":" in spec.source:
        return _from_function(spec.source, path, spec.image_size)
    name = None if spec.source is None else _known(spec.source)
    if path is None:
        if name == "digits":
            return _digits()
        if name is None or name in _BY_PATH:
            raise NasplatError(f"data: source {name} needs a path", "write `path:` with the file or folder")
        return read_torchvision(name, None, spec.image_size)
    if name == "digits":
        raise NasplatError("data: digits come with scikit-learn and have no path", "leave out `source` or `path`")
    if path.is_file():
        if path.suffix.lower() != ".npz":
            raise NasplatError(f"data: {path} is neither an .npz nor a folder", "give one of these as path")
        return read_npz(path, spec.image_size)
    if name == "idx" or (name != "folder" and has_idx(path)):
        return read_idx(path)
    if name in TORCHVISION:
        return read_torchvision(name, path, spec.image_size)
    return read_folder(path, spec.labels, spec.image_size)


def _known(source: str) -> str:
    """The name of a source as the tables have it: `Fashion-MNIST` and `fashionmnist` are one."""
    known = ("digits", *_BY_PATH, *TORCHVISION)
    plain = {name.replace("_", ""): name for name in known}
    wanted = source.lower().replace("-", "").replace(" ", "").replace("_", "")
    if wanted in plain:
        return plain[wanted]
    advice = f"known are digits, module:function of your own, and torchvision's {', '.join(TORCHVISION)}"
    raise NasplatError(f"data: there is no source {source!r}", nearest(source.lower(), known) + advice)


def _digits() -> Source:
    from sklearn.datasets import load_digits

    digits = load_digits()
    arrays = {"images": digits.images / 16.0, "labels": digits.target, "classes": digits.target_names}
    return from_arrays(arrays, "digits", None)


def _from_function(name: str, path: Path | None, image_size: int | None) -> Source | Dataset:
    function = load_function(name, "data", () if path is None else ("path",))
    found = function() if path is None else function(str(path))
    if isinstance(found, Dataset):
        return found
    if isinstance(found, tuple | list) and len(found) == 2:
        found = {"images": found[0], "labels": found[1]}
    elif not isinstance(found, Mapping):
        found = {"images": found}
    return from_arrays({key: array for key, array in found.items() if array is not None}, name, image_size)


def _finish(source: Source, spec: Data) -> Dataset:
    train, validation, test = (_prepared(part, spec) for part in (source.train, source.validation, source.test))
    assert train is not None
    classes: tuple[str, ...] = ()
    present = [part for part in (train, validation, test) if part is not None]
    if train.labels is not None:
        if any(part.labels is None for part in present):
            advice = "label all parts, or use `labels: false`"
            raise NasplatError(f"{source.where}: only some of the parts have labels", advice)
        classes = class_names(
            [part.labels for part in present if part.labels is not None], source.classes, source.where
        )
    _same_shape(source.where, present)
    if len(train.images) < 5:
        raise NasplatError(f"{source.where} has only {len(train.images)} images to train on", "give it more images")

    if test is None:
        train, test = _held_out(train, round(TEST_SHARE * len(train.images)), TEST_SEED)
    available = len(train.images)
    if spec.train_size is not None and spec.train_size < available:
        train = _held_out(train, spec.train_size, spec.split_seed)[1]
    elif spec.train_size is not None and spec.train_size > available:
        message = f"data: train_size {spec.train_size} is more than the {available} images of {source.where}"
        raise NasplatError(message, "leave train_size out to use all of them")
    if validation is None:
        if len(train.images) < 2:
            raise NasplatError("data: one training image cannot be split into training and validation")
        train, validation = _held_out(train, round(spec.validation * len(train.images)), spec.split_seed)

    held = _held(spec, source, (train, validation, test))
    splits = [Split(read_all(part.images) if held else part.images, part.labels) for part in (train, validation, test)]
    mean, std = statistics(splits[0].images, sample=isinstance(source.train.images, ImageReader))
    shape = (int(splits[0].images.shape[1]), int(splits[0].images.shape[2]), int(splits[0].images.shape[3]))
    problem = classification(shape, len(classes)) if classes else Problem(shape, (Output("embedding", "embedding", 1),))
    fingerprint = _fingerprint(source, spec, splits)
    return Dataset(spec.name, splits[0], splits[1], splits[2], problem, mean, std, classes, fingerprint)


def _prepared(part: Part | None, spec: Data) -> Part | None:
    if part is None:
        return None
    images = part.images
    if spec.image_size is not None and isinstance(images, Tensor):
        images = resize(images, spec.image_size)
    return Part(images, part.labels if spec.labels else None)


def _same_shape(where: str, parts: list[Part]) -> None:
    first = tuple(parts[0].images.shape[1:])
    for part in parts[1:]:
        shape = tuple(part.images.shape[1:])
        if shape != first:
            raise NasplatError(
                f"{where}: training images are (C, H, W) = {first}, others {shape}",
                f"all images need one shape; `image_size: {first[1]}` resizes them",
            )


def _held_out(part: Part, count: int, seed: int) -> tuple[Part, Part]:
    """What stays, and what is held out."""
    rows = hold_out(part.labels, len(part.images), count, seed)
    stays, held = (
        Part(select(part.images, chosen), None if part.labels is None else part.labels[chosen]) for chosen in rows
    )
    return stays, held


def _held(spec: Data, source: Source, parts: tuple[Part, ...]) -> bool:
    """Whether images that must be decoded are decoded now, once for all."""
    if spec.resident != "auto":
        return spec.resident == "device"
    return sum(int(torch.Size(part.images.shape).numel()) for part in parts) <= HELD_BYTES


def statistics(images: Tensor | Images, sample: bool) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel, of 0..1; exact sums, so the same on every machine."""
    rows = torch.arange(len(images))
    if sample and len(images) > _STATISTICS_OF:  # the same images whether they are held or streamed
        rows = rows[torch.linspace(0, len(images) - 1, _STATISTICS_OF).long()]
    channels = int(images.shape[1])
    total, squares = torch.zeros(channels, dtype=torch.int64), torch.zeros(channels, dtype=torch.int64)
    for chosen in rows.split(_CHUNK):
        chunk = images[chosen] if isinstance(images, Tensor) else images.read(chosen)
        pixels = chunk.to(torch.int32)
        total += pixels.sum((0, 2, 3))
        squares += pixels.square_().sum((0, 2, 3))
    count = len(rows) * int(images.shape[2]) * int(images.shape[3])
    mean = total.double() / count
    variance = (squares.double() / count - mean.square()).clamp(min=1.0)  # a channel may be constant
    return tuple((mean / 255).tolist()), tuple((variance.sqrt() / 255).tolist())


def _fingerprint(source: Source, spec: Data, splits: list[Split]) -> str:
    sha = hashlib.sha256(source.content.encode())
    sha.update(repr((spec.labels, spec.train_size, spec.validation, spec.split_seed, spec.image_size)).encode())
    for split in splits:
        sha.update(str(len(split)).encode())
        if split.labels is not None:
            sha.update(split.labels.numpy().tobytes())
    return sha.hexdigest()
