"""Images with a table of labels: a CSV file with the name of an image and a column a task.

    file,              kind,   colours,   weight, outline,          split
    images/0001.png,   shirt,  red|blue,  0.31,   masks/0001.png,   train
    images/0002.png,   ?,      -,         ,       ,                 test

A cell that is empty, `?`, `na` or `nan` is a missing label; `-` says that none of several labels applies. The optional
column `split` says train, validation or test.
"""

from __future__ import annotations

import csv
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from nasplat.core.errors import NasplatError, nearest
from nasplat.core.tasks import KINDS, Task, TaskKind, encode, infer_kind, infer_task, is_missing
from nasplat.data.datasets import Dataset, Split
from nasplat.data.folders import SUFFIXES, _shape
from nasplat.data.images import ImageReader, naming
from nasplat.data.tasks import make_dataset

_FILE_COLUMNS = ("file", "filename", "image", "path", "name")
_SPLITS = {"train": "train", "training": "train", "val": "validation", "valid": "validation", "test": "test"}
_SPLITS |= {"validation": "validation", "testing": "test"}
_KINDS = tuple(kind for kind in KINDS if kind != "contrastive")  # which has no labels
_IGNORED = 255  # a pixel of a mask without a label, as in Pascal VOC (Everingham et al., 2010)


@dataclass(frozen=True)
class _Table:
    """Rows of a CSV file as they are, and the line of each."""

    path: Path
    header: tuple[str, ...]
    rows: list[list[str]]
    lines: list[int]

    def column(self, name: str) -> list[str]:
        place = self.header.index(name)
        return [row[place] for row in self.rows]

    def where(self, row: int, column: str) -> str:
        return f"{self.path}, line {self.lines[row]}, column {column}"


def read_task_folder(
    folder: Path,
    *,
    table: str | None = None,
    file_column: str | None = None,
    kinds: Mapping[str, TaskKind] | None = None,
    tasks: Sequence[str] | None = None,
    image_size: int | None = None,
    train_size: int | None = None,
    validation_share: float = 0.2,
    split_seed: int = 0,
) -> Dataset:
    """A folder of images with a CSV file of their labels.

    Args:
        table: the CSV file in the folder; None where there is but one.
        file_column: with the files' names, from the folder; None: `file`, `filename`, `image`, `path` or `name`.
        kinds: of tasks whose kind `core.tasks.infer_kind` would take for another.
        tasks: the columns to learn; None: all.
        image_size: resize images and masks to this height and width.

    Raises:
        NasplatError: what is wrong, with file, line and column.
    """
    read = _read(_find(folder, table))
    names = _file_column(read, file_column)
    wanted = _wanted(read, names, tasks)
    kinds = dict(kinds or {})
    for name, kind in kinds.items():
        if name not in wanted:
            raise NasplatError(f"{read.path} has no task {name!r}", nearest(name, wanted) + f"it has {_some(wanted)}")
        if kind not in _KINDS:
            raise NasplatError(
                f"task {name}: there is no kind {kind!r} of labels",
                f"{nearest(kind, _KINDS)}there are {', '.join(_KINDS)}",
            )
    files = _files(read, names, folder)
    channels, size = _shape(files, folder, image_size)
    numbers = torch.arange(len(files))
    images = ImageReader(
        lambda number: Image.open(files[number]),
        lambda number: str(files[number]),
        numbers,
        channels,
        size,
        image_size is not None,
    )
    found: list[Task] = []
    labels: dict[str, Tensor] = {}
    for name in wanted:
        kind = kinds.get(name) or infer_kind(read.column(name), SUFFIXES)
        made = _masks(read, name, folder, size, image_size is not None) if kind == "dense" else _cells(read, name, kind)
        found.append(made[0])
        labels[name] = made[1]
    everything = Split(images, task_labels=labels)
    parts = _split(read, everything)
    content = hashlib.sha256()
    for path in files:
        content.update(f"{path.relative_to(folder).as_posix()}\0{path.stat().st_size}\n".encode())
    return make_dataset(
        folder.name,
        found,
        parts["train"],
        parts.get("validation"),
        parts.get("test"),
        content=f"{content.hexdigest()} {image_size}",
        train_size=train_size,
        validation_share=validation_share,
        split_seed=split_seed,
    )


def _find(folder: Path, table: str | None) -> Path:
    if not folder.is_dir():
        raise NasplatError(f"{folder} is not a folder", f"it is looked for at {folder.absolute()}")
    if table is not None:
        if not (folder / table).is_file():
            raise NasplatError(f"{folder / table} does not exist", "give the name of a CSV file in that folder")
        return folder / table
    found = sorted(path for path in folder.iterdir() if path.suffix.lower() == ".csv")
    if len(found) != 1:
        several = f"several CSV files: {', '.join(path.name for path in found)}" if found else "no CSV file of labels"
        raise NasplatError(f"{folder} holds {several}", "give the name of the one to read")
    return found[0]


def _read(path: Path) -> _Table:
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.reader(file, skipinitialspace=True, strict=True)
            header = tuple(name.strip() for name in next(reader, []))
            rows, lines = [], []
            for row in reader:
                if not any(cell.strip() for cell in row):
                    continue
                if len(row) != len(header):
                    message = f"{path}, line {reader.line_num}: {len(row)} cells, and {len(header)} columns"
                    raise NasplatError(message, "write a comma for every column; quote text that holds commas")
                rows.append([cell.strip() for cell in row])
                lines.append(reader.line_num)
    except UnicodeDecodeError as error:
        raise NasplatError(f"{path} is not text in UTF-8: {error.reason}", "save it as UTF-8") from error
    except csv.Error as error:
        raise NasplatError(f"{path}, line {reader.line_num}: {error}", "close every quotation mark") from error
    except OSError as error:
        raise NasplatError(f"{path} cannot be read: {error.strerror}") from error
    for number, name in enumerate(header):
        if not name or name in header[:number]:
            what = f"column {number + 1} has no name" if not name else f"two columns are named {name}"
            raise NasplatError(f"{path}, line 1: {what}", "the first line names every column, each once")
    if not rows:
        raise NasplatError(f"{path} has no rows", "the first line names the columns; every other one is an image")
    return _Table(path, header, rows, lines)


def _file_column(table: _Table, given: str | None) -> str:
    if given is not None:
        if given not in table.header:
            advice = nearest(given, table.header) + f"it has {_some(table.header)}"
            raise NasplatError(f"{table.path} has no column {given!r}", advice)
        return given
    plain = {name.lower(): name for name in reversed(table.header)}
    for name in _FILE_COLUMNS:
        if name in plain:
            return plain[name]
    raise NasplatError(
        f"{table.path} has no column with the names of images; it has {_some(table.header)}",
        f"name that column {_FILE_COLUMNS[0]}, or say which it is",
    )


def _wanted(table: _Table, files: str, tasks: Sequence[str] | None) -> list[str]:
    others = [name for name in table.header if name not in (files, "split")]
    if tasks is None:
        return others
    odd = next((name for name in tasks if name not in others), None)
    if odd is not None:
        raise NasplatError(f"{table.path} has no task {odd!r}", nearest(odd, others) + f"it has {_some(others)}")
    return list(tasks)


def _files(table: _Table, column: str, folder: Path) -> list[Path]:
    seen: dict[str, int] = {}
    files = []
    for row, cell in enumerate(table.column(column)):
        files.append(_existing(table, row, column, cell, folder))
        key = str(PurePosixPath(cell.replace("\\", "/")))
        if key in seen:
            raise NasplatError(
                f"{table.where(row, column)}: {cell} is also in line {table.lines[seen[key]]}",
                "one row an image: join the two, or remove one",
            )
        seen[key] = row
    return files


def _existing(table: _Table, row: int, column: str, cell: str, folder: Path) -> Path:
    name = PurePosixPath(cell.replace("\\", "/"))
    if not cell or name.is_absolute() or ".." in name.parts:
        raise NasplatError(
            f"{table.where(row, column)}: {cell!r} is not the name of a file in {folder}", "names are from that folder"
        )
    path = folder / name
    if not path.is_file():
        raise NasplatError(f"{table.where(row, column)}: there is no file {path}", "add the file, or remove the row")
    return path


def _cells(table: _Table, name: str, kind: TaskKind) -> tuple[Task, Tensor]:
    cells = table.column(name)
    try:
        task = infer_task(name, kind, cells)
    except NasplatError as error:
        raise NasplatError(f"{table.path}: {error.message}", error.advice) from error
    values = []
    for row, cell in enumerate(cells):
        try:
            values.append(encode(task, cell))
        except NasplatError as error:
            raise NasplatError(f"{table.where(row, name)}: {error.message}", error.advice) from error
    dtype = {"classification": torch.int64, "multi_label": torch.int8, "regression": torch.float32}[kind]
    return task, torch.tensor(values, dtype=dtype)


def _masks(table: _Table, name: str, folder: Path, size: tuple[int, int], resize: bool) -> tuple[Task, Tensor]:
    """Masks whose pixels are classes from 0; 255 is a pixel without a label."""
    height, width = size
    cells = table.column(name)
    labels = torch.full((len(cells), height, width), -1, dtype=torch.int16)
    for row, cell in enumerate(cells):
        if is_missing(cell):
            continue
        path = _existing(table, row, name, cell, folder)
        with naming(lambda path=path: str(path)), Image.open(path) as mask:  # type: ignore[misc]
            where = table.where(row, name)
            if mask.mode not in ("1", "L", "P"):
                raise NasplatError(f"{where}: {path} is {mask.mode}, not a mask", "a mask has one channel of 8 bits")
            if mask.size != (width, height) and not resize:
                found = f"{mask.size[0]} x {mask.size[1]}, its image {width} x {height}"
                raise NasplatError(f"{where}: {path} is {found} (width x height)", "a mask is as large as its image")
            same = mask.resize((width, height), Image.Resampling.NEAREST)
            labels[row] = torch.from_numpy(np.array(same, dtype=np.int16))
    labels[labels == _IGNORED] = -1
    top = int(labels.max())
    if top < 1:
        what = "has no label at all" if top < 0 else "has one class of pixels only"
        raise NasplatError(f"{table.path}: task {name} {what}", "label some images, or leave the task out")
    return Task(name, "dense", top + 1), labels


def _split(table: _Table, everything: Split) -> dict[str, Split]:
    if "split" not in table.header:
        return {"train": everything}
    rows: dict[str, list[int]] = {}
    for row, cell in enumerate(table.column("split")):
        part = _SPLITS.get(cell.lower())
        if part is None:
            raise NasplatError(f"{table.where(row, 'split')}: {cell!r}", "write train, validation or test")
        rows.setdefault(part, []).append(row)
    if "train" not in rows:
        raise NasplatError(f"{table.path}, column split: no image is of train", "write train for some")
    return {part: everything.select(torch.tensor(chosen)) for part, chosen in rows.items()}


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:20]) + " …" * (len(names) > 20)
