"""Data of several tasks from the section `data` of an experiment: `tasks` says which.

- `source: celeba`: names of attributes and `landmarks`; or, by a name of your own, lists of attributes;
- `source: fashion_mnist`: tasks derived from its images and classes (`nasplat.data.task_sources`); `fashion_pairs`: two
  of its images in one frame;
- a `path` to a folder with a CSV file: its columns, or by column the kind of task;
- a function of your own (`module:function`) that returns a `Dataset` with tasks;
- any other data: `labels`, the classes that they come with.

Beside all of them the pretexts `rotation`, `jigsaw`, `colours` and `contrastive`, which need no labels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from nasplat.core.errors import NasplatError, nearest
from nasplat.core.experiment import Data
from nasplat.core.tasks import Task, check_several
from nasplat.data.datasets import Dataset, Split, load_dataset
from nasplat.data.pretexts import PRETEXT_NAMES, pretext_task
from nasplat.data.tasks import only_tasks, problem_of

LABELS = "labels"  # the task of the classes that data come with


def load_tasks(spec: Data) -> Dataset:
    """Reads, checks and splits data of several tasks.

    Raises:
        NasplatError: fewer than two tasks, one that the data do not have, or what the source refuses.
    """
    wanted = spec.tasks
    assert wanted is not None
    names = None if wanted == "all" else list(wanted)
    pretexts = [name for name in names or () if name in PRETEXT_NAMES]
    labelled = None if names is None else [name for name in names if name not in pretexts]
    kinds: dict[str, Any] = {
        name: what for name, what in (wanted if isinstance(wanted, dict) else {}).items() if name not in pretexts
    }
    if not spec.labels and labelled:
        raise NasplatError(
            f"data: labels: false, and task {labelled[0]} needs labels",
            f"name pretexts only: {', '.join(PRETEXT_NAMES)}",
        )
    dataset = _labelled(spec, labelled, kinds)
    tasks = (*dataset.tasks, *(pretext_task(name, dataset.problem.input_shape) for name in pretexts))
    if names is not None:
        tasks = tuple(sorted(tasks, key=lambda task: names.index(task.name)))
    check_several(tasks)
    problem = problem_of(tasks, dataset.problem.input_shape)
    return replace(dataset, tasks=tasks, problem=problem, fingerprint=f"{dataset.fingerprint} {pretexts}")


def _labelled(spec: Data, names: Sequence[str] | None, kinds: dict[str, Any]) -> Dataset:
    """The data with their tasks that have labels."""
    from nasplat.data.task_csv import read_task_folder
    from nasplat.data.task_sources import FASHION_TASKS, celeba, fashion_pairs, fashion_tasks

    split: dict[str, Any] = {"train_size": spec.train_size, "split_seed": spec.split_seed}
    share: dict[str, Any] = {**split, "validation_share": spec.validation}
    source = (spec.source or "").lower().replace("-", "_")
    path = None if spec.path is None else Path(spec.path).expanduser()
    if names is not None and (not names or list(names) == [LABELS]):
        return _classes(spec, bool(names))
    if source in ("celeba", "fashion_mnist", "fashion_pairs") and path is None:
        raise NasplatError(f"data: source {source} needs a path", "write `path:` with the folder of its files")
    if path is not None and source == "celeba":
        chosen = None if names is None else {name: kinds.get(name) or name for name in names}
        sized = {} if spec.image_size is None else {"image_size": spec.image_size}
        return celeba(path, chosen, **split, **sized)
    if path is not None and source == "fashion_mnist":
        named = [name for name in FASHION_TASKS if name not in PRETEXT_NAMES] if names is None else names
        return fashion_tasks(path, named, **share)
    if path is not None and source == "fashion_pairs":
        return _chosen(fashion_pairs(path, **share), names)
    if path is not None and path.is_dir() and not source:
        given = {name: kind for name, kind in kinds.items() if kind is not None}
        return read_task_folder(path, kinds=given, tasks=names, image_size=spec.image_size, **share)
    dataset = load_dataset(spec.model_copy(update={"tasks": None}))
    if not dataset.tasks:
        raise NasplatError(
            f"data: {spec.name} has one task, its classes, and no task {names[0]!r}"
            if names
            else f"data: {spec.name} has one task, its classes",
            f"name it `{LABELS}`, and pretexts: {', '.join(PRETEXT_NAMES)}; or give a folder with a CSV file of labels",
        )
    return _chosen(dataset, names)


def _classes(spec: Data, labelled: bool) -> Dataset:
    """Data of one task, or without labels, as data of several tasks."""
    dataset = load_dataset(spec.model_copy(update={"tasks": None}))
    if labelled and not dataset.classes:
        raise NasplatError(
            f"data: {spec.name} has no labels for the task {LABELS}", f"name pretexts: {', '.join(PRETEXT_NAMES)}"
        )
    tasks = (Task(LABELS, "classification", len(dataset.classes), dataset.classes),) if labelled else ()

    def of(split: Split) -> Split:
        by_name = {LABELS: split.labels} if labelled and split.labels is not None else {}
        return replace(split, labels=None, task_labels=by_name)

    train, validation, test = map(of, (dataset.train, dataset.validation, dataset.test))
    return replace(dataset, tasks=tasks, classes=(), train=train, validation=validation, test=test)


def _chosen(dataset: Dataset, names: Sequence[str] | None) -> Dataset:
    if names is None:
        return dataset
    known = [task.name for task in dataset.tasks]
    odd = next((name for name in names if name not in known), None)
    if odd is not None:
        advice = f"there are {', '.join((*known, *PRETEXT_NAMES))}"
        raise NasplatError(f"data: {dataset.name} has no task {odd!r}", nearest(odd, known) + advice)
    return only_tasks(dataset, names)
