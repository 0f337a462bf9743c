"""Images with the labels of several tasks, some of which may be missing."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from nasplat.core.errors import NasplatError
from nasplat.core.problem import Output, Problem
from nasplat.core.tasks import Task, check_tasks
from nasplat.data.augment import Augmentation
from nasplat.data.datasets import Dataset, Split, statistics
from nasplat.data.images import HELD_BYTES, ImageReader, read_all
from nasplat.data.splits import TEST_SEED, TEST_SHARE, hold_out

# Augmentations that move pixels, which would leave the labels of pixels behind.
_MOVING = ("crop", "flip", "resized_crop", "cutout", "rotation")


def only_tasks(dataset: Dataset, names: Sequence[str]) -> Dataset:
    """The same images with some of the tasks; one alone is allowed here, for the networks to compare with.

    Raises:
        NasplatError: a name that is no task's.
    """
    known = {task.name: task for task in dataset.tasks}
    odd = next((name for name in names if name not in known), None)
    if odd is not None or not names:
        raise NasplatError(f"{dataset.name} has no task {odd!r}", f"there are {', '.join(known)}")

    def of(split: Split) -> Split:
        kept = {name: split.task_labels[name] for name in names if name in split.task_labels}
        return replace(split, task_labels=kept)

    tasks = tuple(known[name] for name in names)
    return replace(
        dataset,
        tasks=tasks,
        problem=problem_of(tasks, dataset.problem.input_shape),
        train=of(dataset.train),
        validation=of(dataset.validation),
        test=of(dataset.test),
        fingerprint=f"{dataset.fingerprint} {list(names)}",
    )


def problem_of(tasks: Sequence[Task], input_shape: tuple[int, int, int]) -> Problem:
    """An output for each task, of its name, kind and size."""
    return Problem(input_shape, tuple(Output(task.name, task.kind, task.size) for task in tasks))


def check_augmentations(tasks: Sequence[Task], augment: Iterable[str | Augmentation]) -> None:
    """Raises:
    NasplatError: an augmentation that would move pixels away from their labels.
    """
    dense = next((task.name for task in tasks if task.kind == "dense"), None)
    moving = next((name for name in augment if name in _MOVING), None)
    if dense is not None and moving is not None:
        raise NasplatError(
            f"augment: {moving} moves pixels, but not their labels, which task {dense} has",
            "use augmentations of colour only (color_jitter, grey, blur), or none: augment: []",
        )


def make_dataset(
    name: str,
    tasks: Sequence[Task],
    train: Split,
    validation: Split | None = None,
    test: Split | None = None,
    *,
    content: str = "",
    train_size: int | None = None,
    validation_share: float = 0.2,
    split_seed: int = 0,
) -> Dataset:
    """Checks, splits and scales; the same arguments give the same splits everywhere.

    Test images are those given, or a fixed fifth; `train_size` images are drawn from the others, and of these the
    share `validation_share` is held out where no validation images are given. Labels of regressions that have no
    scale yet are brought to mean 0 and deviation 1 over the training images that have them.

    Args:
        content: a digest of the images where they are not held in memory.

    Raises:
        NasplatError: two tasks of one name, labels of the wrong kind, a task without a label in one of the parts.
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
    size = sum(part.nbytes for part in (train, validation, test))
    mean, std = statistics(train.images, sample=isinstance(train.images, ImageReader))
    parts = [train, validation, test]
    if not decoded and size <= HELD_BYTES:
        parts = [replace(part, images=read_all(part.images)) for part in parts]
    for part, what in zip(parts, ("training", "validation", "test"), strict=True):
        for task in tasks:
            if not task.pretext and not present(task, part.task_labels[task.name]).any():
                raise NasplatError(
                    f"{name}: task {task.name} has no label among the {len(part)} {what} images",
                    "label some of them, split otherwise, or leave the task out",
                )
    scaled = tuple(_scaled(task, parts[0].task_labels) for task in tasks)
    parts = [replace(part, task_labels=_rescaled(tasks, scaled, part.task_labels)) for part in parts]
    shape = parts[0].images.shape
    return Dataset(
        name=name,
        train=parts[0],
        validation=parts[1],
        test=parts[2],
        problem=problem_of(scaled, (int(shape[1]), int(shape[2]), int(shape[3]))),
        mean=mean,
        std=std,
        classes=(),
        fingerprint=_fingerprint(content, scaled, parts),
        tasks=scaled,
    )


def present(task: Task, labels: Tensor) -> Tensor:
    """Which labels there are: booleans of the shape of the labels."""
    return ~labels.isnan() if task.kind == "regression" else labels >= 0


def check_labels(part: Split, tasks: Sequence[Task], where: str) -> None:
    """Raises:
    NasplatError: a task without labels, or labels that are not of its kind; the message names the task and the image.
    """
    count, shape = len(part), part.images.shape
    for task in tasks:
        if task.pretext:
            continue
        named = f"{where}: task {task.name}"
        labels = part.task_labels.get(task.name)
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


def _held_out(part: Split, count: int, seed: int, name: str) -> tuple[Split, Split]:
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


def _fingerprint(content: str, tasks: Sequence[Task], parts: Sequence[Split]) -> str:
    sha = hashlib.sha256(content.encode())
    sha.update(json.dumps([task.to_json() for task in tasks]).encode())
    for part in parts:
        if not content and isinstance(part.images, Tensor):
            sha.update(part.images.contiguous().numpy().data)
        for name, labels in sorted(part.task_labels.items()):
            sha.update(f"{name} {tuple(labels.shape)} {labels.dtype}".encode())
            sha.update(labels.contiguous().numpy().data)
    return sha.hexdigest()
