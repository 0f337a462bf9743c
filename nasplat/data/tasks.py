"""Images with the labels of several tasks, some of which may be missing."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor

from nasplat.core.errors import NasplatError
from nasplat.core.tasks import Task, check_tasks
from nasplat.data.augment import Augmentation
from nasplat.data.datasets import Split, statistics
from nasplat.data.images import HELD_BYTES, ImageReader, Images, read_all, select
from nasplat.data.loader import Batch, Loader
from nasplat.data.splits import TEST_SEED, TEST_SHARE, hold_out

PartName = Literal["train", "validation", "test"]
# Augmentations that move pixels, which would leave the labels of pixels behind.
_MOVING = ("crop", "flip", "resized_crop", "cutout", "rotation")


@dataclass(frozen=True)
class TaskPart:
    """Images, and the labels of each task by its name; `core.tasks.Task` tells their shapes.

    Args:
        images: uint8 `(N, C, H, W)`, or a reader that decodes them when asked.
        labels: int64 (classification), int8 (multi_label), float32 (regression) and int16 (dense), -1 or NaN where a
            label is missing. A pretext has none.
    """

    images: Tensor | Images
    labels: Mapping[str, Tensor]
    _split: list[Split] = field(default_factory=list, repr=False, compare=False)

    def __len__(self) -> int:
        return len(self.images)

    def select(self, rows: Tensor) -> TaskPart:
        """Only these rows, in this order."""
        return TaskPart(select(self.images, rows), {name: labels[rows] for name, labels in self.labels.items()})

    @property
    def split(self) -> Split:
        """The images alone; always the same one, which keeps its copies on devices."""
        if not self._split:
            self._split.append(Split(self.images))
        return self._split[0]


@dataclass(frozen=True)
class MultiTaskDataset:
    """Images with labels of several tasks, split; a search sees `train` and `validation` only.

    Args:
        input_shape: `(C, H, W)`.
        mean, std: of the training pixels, for each channel, of 0..1.
        fingerprint: a digest of the images, the labels and how they are split.
    """

    name: str
    tasks: tuple[Task, ...]
    train: TaskPart
    validation: TaskPart
    test: TaskPart
    input_shape: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    fingerprint: str

    def only(self, names: Sequence[str]) -> MultiTaskDataset:
        """The same images with some of the tasks; one alone is allowed here, for the networks to compare with.

        Raises:
            NasplatError: a name that is no task's.
        """
        known = {task.name: task for task in self.tasks}
        odd = next((name for name in names if name not in known), None)
        if odd is not None or not names:
            raise NasplatError(f"{self.name} has no task {odd!r}", f"there are {', '.join(known)}")

        def of(part: TaskPart) -> TaskPart:
            return replace(part, labels={name: part.labels[name] for name in names if name in part.labels})

        return replace(
            self,
            tasks=tuple(known[name] for name in names),
            train=of(self.train),
            validation=of(self.validation),
            test=of(self.test),
            fingerprint=f"{self.fingerprint} {list(names)}",
        )


def make_dataset(
    name: str,
    tasks: Sequence[Task],
    train: TaskPart,
    validation: TaskPart | None = None,
    test: TaskPart | None = None,
    *,
    content: str = "",
    train_size: int | None = None,
    validation_share: float = 0.2,
    split_seed: int = 0,
) -> MultiTaskDataset:
    """Checks, splits and scales; the same arguments give the same splits everywhere.

    Test images are those given, or a fixed fifth; `train_size` images are drawn from the others, and of these the
    share `validation_share` is held out where no validation images are given. Labels of regressions that have no
    scale yet are brought to mean 0 and deviation 1 over the training images that have them.

    Args:
        content: a digest of the images where they are not held in memory.

    Raises:
        NasplatError: fewer than two tasks, labels of the wrong kind, a task without a label in one of the parts.
    """
    check_tasks(tasks)
    for part, what in ((train, "training"), (validation, "validation"), (test, "test")):
        if part is not None:
            check_labels(part, tasks, f"{name}: {what} images")
    if test is None:
        train, test = _held_out(train, round(TEST_SHARE * len(train)), TEST_SEED, name)
    if train_size is not None and train_size > len(train):
        raise NasplatError(f"{name}: train_size {train_size} is more than the {len(train)} images there are")
    if train_size is not None and train_size < len(train):
        train = _held_out(train, train_size, split_seed, name)[1]
    if validation is None:
        train, validation = _held_out(train, round(validation_share * len(train)), split_seed, name)
    decoded = all(isinstance(part.images, Tensor) for part in (train, validation, test))
    size = sum(part.split.nbytes for part in (train, validation, test))
    mean, std = statistics(train.images, sample=isinstance(train.images, ImageReader))
    parts = [train, validation, test]
    if not decoded and size <= HELD_BYTES:
        parts = [TaskPart(read_all(part.images), part.labels) for part in parts]
    for part, what in zip(parts, ("training", "validation", "test"), strict=True):
        for task in tasks:
            if not task.pretext and not present(task, part.labels[task.name]).any():
                raise NasplatError(
                    f"{name}: task {task.name} has no label among the {len(part)} {what} images",
                    "label some of them, split otherwise, or leave the task out",
                )
    scaled = tuple(_scaled(task, parts[0].labels) for task in tasks)
    parts = [TaskPart(part.images, _rescaled(tasks, scaled, part.labels)) for part in parts]
    shape = parts[0].images.shape
    return MultiTaskDataset(
        name=name,
        tasks=scaled,
        train=parts[0],
        validation=parts[1],
        test=parts[2],
        input_shape=(int(shape[1]), int(shape[2]), int(shape[3])),
        mean=mean,
        std=std,
        fingerprint=_fingerprint(content, scaled, parts),
    )


def present(task: Task, labels: Tensor) -> Tensor:
    """Which labels there are: booleans of the shape of the labels."""
    return ~labels.isnan() if task.kind == "regression" else labels >= 0


def check_labels(part: TaskPart, tasks: Sequence[Task], where: str) -> None:
    """Raises:
    NasplatError: a task without labels, or labels that are not of its kind; the message names the task and the image.
    """
    count, shape = len(part), part.images.shape
    for task in tasks:
        if task.pretext:
            continue
        named = f"{where}: task {task.name}"
        labels = part.labels.get(task.name)
        if labels is None:
            raise NasplatError(f"{named} has no labels", "give labels by the name of the task")
        wanted = {
            "classification": (count,),
            "multi_label": (count, task.size),
            "regression": (count, task.size),
            "dense": (count, shape[2], shape[3]),
        }[task.kind]
        if tuple(labels.shape) != tuple(wanted):
            raise NasplatError(
                f"{named} is {task.kind}, and its labels have shape {tuple(labels.shape)}, not {tuple(wanted)}"
            )
        real = task.kind == "regression"
        if labels.is_floating_point() != real:
            advice = "real numbers, NaN where missing" if real else "whole numbers, -1 where missing"
            raise NasplatError(f"{named} is {task.kind}, and its labels are {labels.dtype}", f"labels are {advice}")
        if real:
            odd, advice = labels.isinf(), "labels are finite, or NaN where missing"
        else:
            top = 1 if task.kind == "multi_label" else task.size - 1
            odd, advice = (labels < -1) | (labels > top), f"labels run from 0 to {top}, and -1 is a missing one"
        if odd.any():
            place = odd.nonzero()[0]
            raise NasplatError(f"{named}: a label of image {int(place[0])} is {labels[tuple(place)].item()}", advice)


class TaskLoader:
    """Batches of a part; `labels` of a batch are then a mapping from tasks to labels on the device.

    Args:
        part: which one of the data set.
        augment: as of `Loader`; nothing that moves pixels where a task is dense.
        options: as of `Loader`.

    Raises:
        NasplatError: as of `Loader`; an augmentation that would move pixels away from their labels.
    """

    def __init__(
        self,
        dataset: MultiTaskDataset,
        part: PartName,
        *,
        batch_size: int,
        device: torch.device | str,
        augment: Sequence[str | Augmentation] = (),
        **options: Any,
    ) -> None:
        dense = next((task.name for task in dataset.tasks if task.kind == "dense"), None)
        moving = next((name for name in augment if name in _MOVING), None)
        if dense is not None and moving is not None:
            raise NasplatError(
                f"augment: {moving} moves pixels, but not their labels, which task {dense} has",
                "use augmentations of colour only (color_jitter, grey, blur), or none",
            )
        found: TaskPart = getattr(dataset, part)
        self._loader = Loader(
            found.split,
            batch_size=batch_size,
            device=device,
            mean=dataset.mean,
            std=dataset.std,
            augment=augment,
            **options,
        )
        self._labels = {name: labels.to(self._loader.device) for name, labels in found.labels.items()}

    def __len__(self) -> int:
        """Images, not batches."""
        return len(self._loader)

    @property
    def batches_per_epoch(self) -> int:
        return self._loader.batches_per_epoch

    def epoch(self, generator: torch.Generator) -> Iterator[Batch]:
        """As `Loader.epoch`."""
        return map(self._labelled, self._loader.epoch(generator))

    def ordered(self) -> Iterator[Batch]:
        """As `Loader.ordered`."""
        return map(self._labelled, self._loader.ordered())

    def _labelled(self, batch: Batch) -> Batch:
        labels: Any = {name: labels.index_select(0, batch.indices) for name, labels in self._labels.items()}
        return replace(batch, labels=labels)


def _held_out(part: TaskPart, count: int, seed: int, name: str) -> tuple[TaskPart, TaskPart]:
    """What stays, and what is held out."""
    if len(part) < 2:
        raise NasplatError(f"{name} has too few images to be split", "give it more images")
    stays, held = hold_out(None, len(part), count, seed)
    return part.select(stays), part.select(held)


def _scaled(task: Task, labels: Mapping[str, Tensor]) -> Task:
    """A regression with the scale of its labels."""
    if task.kind != "regression" or task.std:
        return task
    mean, std = [], []
    for column in labels[task.name].double().T:
        values = column[~column.isnan()]
        mean.append(values.mean().item() if len(values) else 0.0)
        deviation = values.std(correction=0).item() if len(values) else 0.0
        std.append(deviation or 1.0)  # all labels may be equal
    return replace(task, mean=tuple(mean), std=tuple(std))


def _rescaled(before: Sequence[Task], after: Sequence[Task], labels: Mapping[str, Tensor]) -> dict[str, Tensor]:
    found = {task.name: labels[task.name] for task in before if not task.pretext}
    for old, new in zip(before, after, strict=True):
        if old.std != new.std:
            mean, std = (torch.tensor(values, dtype=torch.float64) for values in (new.mean, new.std))
            found[new.name] = ((found[new.name].double() - mean) / std).float()
    return found


def _fingerprint(content: str, tasks: Sequence[Task], parts: Sequence[TaskPart]) -> str:
    sha = hashlib.sha256(content.encode())
    sha.update(json.dumps([task.to_json() for task in tasks]).encode())
    for part in parts:
        if not content and isinstance(part.images, Tensor):
            sha.update(part.images.contiguous().numpy().data)
        for name, labels in sorted(part.labels.items()):
            sha.update(f"{name} {tuple(labels.shape)} {labels.dtype}".encode())
            sha.update(labels.contiguous().numpy().data)
    return sha.hexdigest()
