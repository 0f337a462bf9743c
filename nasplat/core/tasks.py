"""Several tasks of one network, as plain data; and how the text of a table becomes their labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from math import isfinite
from typing import Any, Literal, get_args

from nasplat.core.errors import NasplatError, nearest

TaskKind = Literal["classification", "multi_label", "regression", "dense", "contrastive"]
KINDS: tuple[TaskKind, ...] = get_args(TaskKind)

MISSING = frozenset({"", "?", "na", "n/a", "nan"})  # a cell without a label, in any case
NONE_OF_THEM = "-"  # a cell of a multi-label task: looked at, and no label applies
_SEPARATORS = ("|", ";")
_FEW = 20  # a column of whole numbers names classes where it has at most so many different ones


@dataclass(frozen=True, slots=True)
class Task:
    """One thing to be learned of every image.

    | kind           | labels of N images                      | missing | a network's output   |
    | -------------- | --------------------------------------- | ------- | -------------------- |
    | classification | `(N,)`, whole numbers                   | -1      | `(N, size)`          |
    | multi_label    | `(N, size)`, 0 or 1                     | -1      | `(N, size)`          |
    | regression     | `(N, size)`, real                       | NaN     | `(N, size)`          |
    | dense          | `(N, H, W)`, the class of every pixel   | -1      | `(N, size, H, W)`    |
    | contrastive    | none: a pretext                         |         | `(N, size)`          |

    Args:
        size: number of classes, of labels, of numbers, of classes of pixels, or of dimensions of a projection.
        classes: names of the classes or labels; may be empty.
        mean, std: regression only: labels are held as (value - mean) / std, one of each a number; empty: as they are.
        pretext: the transform of `nasplat.data.pretexts` that makes labels from images; empty: the data have labels.

    Raises:
        NasplatError: a name that no part of a network can have, an unknown kind, or a size that does not fit.
    """

    name: str
    kind: TaskKind
    size: int
    classes: tuple[str, ...] = ()
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    pretext: str = ""

    def __post_init__(self) -> None:
        if not self.name or "." in self.name:
            raise NasplatError(f"a task cannot be named {self.name!r}", "a name is some text without a full stop")
        if self.kind not in KINDS:
            advice = nearest(str(self.kind), KINDS) + f"there are {', '.join(KINDS)}"
            raise NasplatError(f"task {self.name}: there is no kind {self.kind!r}", advice)
        least = 2 if self.kind in ("classification", "dense", "contrastive") else 1
        if self.size < least:
            raise NasplatError(
                f"task {self.name}: {self.kind} of size {self.size}", f"the least size is {least}: there is no choice"
            )
        if self.kind == "contrastive" and not self.pretext:
            raise NasplatError(f"task {self.name} is contrastive and no pretext", "give pretext: contrastive")
        if self.classes and len(self.classes) != self.size:
            raise NasplatError(f"task {self.name} has size {self.size} and {len(self.classes)} names of classes")
        scaled = self.kind == "regression" and len(self.mean) == len(self.std) == self.size
        if (self.mean or self.std) and not scaled:
            raise NasplatError(f"task {self.name}: mean and std are {self.size} numbers each, of a regression")

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @staticmethod
    def from_json(data: dict[str, Any]) -> Task:
        """The inverse of `to_json`; lists may stand for tuples."""
        plain: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in data.items()}
        return Task(**plain)


def check_several(tasks: Sequence[Task]) -> None:
    """Raises:
    NasplatError: fewer than two tasks, or two of one name.
    """
    if len(tasks) < 2:
        named = f"only one task, {tasks[0].name}" if tasks else "no task"
        raise NasplatError(f"there is {named}", "several tasks share a network: give two or more")
    check_tasks(tasks)


def check_tasks(tasks: Sequence[Task]) -> None:
    """Raises:
    NasplatError: two tasks of one name.
    """
    names = [task.name for task in tasks]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise NasplatError(f"two tasks are named {twice}", "give every task a name of its own")


def is_missing(cell: str) -> bool:
    return cell.strip().lower() in MISSING


def infer_kind(cells: Sequence[str], image_suffixes: frozenset[str] = frozenset()) -> TaskKind:
    """The kind of task that a column of a table is of.

    Names of image files are masks (dense); text with `|` or `;` is multi-label, unless all between them are numbers;
    several numbers, numbers with a fraction and whole numbers of more than 20 values are regression; all else is
    classification.
    """
    present = [cell.strip() for cell in cells if not is_missing(cell)]
    if present and all("." + cell.rpartition(".")[2].lower() in image_suffixes for cell in present):
        return "dense"
    if present and all(_numbers(cell) is not None for cell in present):
        several = any(len(split_cell(cell)) > 1 for cell in present)
        whole = all(_is_whole(cell) for cell in present)
        return "classification" if whole and not several and len(set(present)) <= _FEW else "regression"
    if any(separator in cell for cell in present for separator in _SEPARATORS):
        return "multi_label"
    return "classification"


def infer_task(name: str, kind: TaskKind, cells: Sequence[str]) -> Task:
    """The task of a column of cells: its size, and the names of its classes in order (of number, else of text).

    Raises:
        NasplatError: no label at all, one class only, or a dense task, whose size is in its images.
    """
    present = [cell.strip() for cell in cells if not is_missing(cell)]
    if not present:
        raise NasplatError(f"task {name} has no label at all", "label some images, or leave the task out")
    if kind == "regression":
        return Task(name, kind, len(split_cell(present[0])))
    if kind == "dense":
        raise NasplatError(f"task {name} is dense: its number of classes is in its masks, not in a table")
    parts = {part for cell in present for part in (split_cell(cell) if kind == "multi_label" else (cell,))}
    classes = tuple(sorted(parts, key=_order))
    if kind == "classification" and len(classes) < 2:
        raise NasplatError(
            f"task {name}: all labels are {classes[0]!r}", "there is nothing to tell apart: leave it out"
        )
    if not classes:
        raise NasplatError(f"task {name}: no image has any of its labels", "label some images, or leave the task out")
    return Task(name, kind, len(classes), classes)


def encode(task: Task, cell: str) -> int | tuple[float, ...]:
    """The label that a cell holds: a class's number, or a number for each label or value. -1 and NaN where missing.

    Raises:
        NasplatError: not a label of this task; the message is without the task and the place.
    """
    cell = cell.strip()
    if task.kind == "classification":
        if is_missing(cell):
            return -1
        if cell not in task.classes:
            raise NasplatError(f"{cell!r} is not a class", nearest(cell, task.classes) + _known(task.classes))
        return task.classes.index(cell)
    if task.kind == "multi_label":
        if is_missing(cell):
            return (-1.0,) * task.size
        parts = split_cell(cell)
        odd = next((part for part in parts if part not in task.classes), None)
        if odd is not None:
            raise NasplatError(f"{odd!r} is not a label", nearest(odd, task.classes) + _known(task.classes))
        return tuple(float(name in parts) for name in task.classes)
    if is_missing(cell):
        return (float("nan"),) * task.size
    numbers = _numbers(cell)
    if numbers is None:
        raise NasplatError(f"{cell!r} is not a number", "write a number, or leave the cell empty")
    if len(numbers) != task.size:
        raise NasplatError(
            f"{cell!r} is not {task.size} number{'s' * (task.size > 1)}", "all cells of a task hold equally many"
        )
    return numbers


def split_cell(cell: str) -> list[str]:
    """What a cell lists: parts between `|` or `;`; of numbers also between blanks."""
    if cell.strip() == NONE_OF_THEM:
        return []
    for separator in _SEPARATORS:
        if separator in cell:
            return [part.strip() for part in cell.split(separator) if part.strip()]
    parts = cell.split()
    return parts if len(parts) > 1 and all(_number(part) is not None for part in parts) else [cell.strip()]


def _numbers(cell: str) -> tuple[float, ...] | None:
    numbers = [_number(part) for part in split_cell(cell)]
    found = tuple(number for number in numbers if number is not None)
    return found if found and len(found) == len(numbers) else None


def _number(text: str) -> float | None:
    try:
        number = float(text)
    except ValueError:
        return None
    return number if isfinite(number) else None


def _is_whole(cell: str) -> bool:
    return cell.lstrip("+-").isdecimal()


def _order(name: str) -> tuple[int, float, str]:
    number = _number(name)
    return (1, 0.0, name) if number is None else (0, number, name)


def _known(names: Sequence[str]) -> str:
    return f"there are {', '.join(names[:20])}{' …' * (len(names) > 20)}"
