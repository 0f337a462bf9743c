"""A data set as plain arrays, for processes that share one copy of it instead of each reading its own."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nasplat.core.problem import Problem
from nasplat.data.datasets import Dataset, Split

PARTS = ("train", "validation", "test")


def to_arrays(dataset: Dataset) -> dict[str, Any] | None:
    """Arrays and plain values; None where images are decoded when they are asked for, and so are nowhere in memory."""
    parts: dict[str, tuple[np.ndarray, np.ndarray | None, dict[str, np.ndarray]]] = {}
    for name in PARTS:
        split: Split = getattr(dataset, name)
        if not isinstance(split.images, Tensor):
            return None
        by_task = {task: labels.numpy() for task, labels in split.task_labels.items()}
        parts[name] = (split.images.numpy(), None if split.labels is None else split.labels.numpy(), by_task)
    return {
        "parts": parts,
        "name": dataset.name,
        "problem": dataset.problem.to_json(),
        "mean": dataset.mean,
        "std": dataset.std,
        "classes": dataset.classes,
        "fingerprint": dataset.fingerprint,
        "tasks": dataset.tasks,
    }


def from_arrays(arrays: Mapping[str, Any]) -> Dataset:
    """The data set on the memory of the arrays, which nothing here writes to."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # that the memory cannot be written to
        parts: dict[str, Any] = {
            name: Split(
                torch.from_numpy(images),
                None if labels is None else torch.from_numpy(labels),
                {task: torch.from_numpy(one) for task, one in by_task.items()},
            )
            for name, (images, labels, by_task) in arrays["parts"].items()
        }
    plain: dict[str, Any] = {key: arrays[key] for key in ("name", "mean", "std", "classes", "fingerprint", "tasks")}
    return Dataset(**plain, **parts, problem=Problem.from_json(arrays["problem"]))
