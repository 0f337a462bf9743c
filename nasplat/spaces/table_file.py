"""Tables of architectures and what was measured of them, as rows of plain values: JSON or CSV."""

from __future__ import annotations

import csv
import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nasplat.core.choice import Option
from nasplat.core.errors import NasplatError, nearest

KEY = "key"
Row = Mapping[str, Any]


@dataclass(frozen=True)
class Metric:
    """Where a metric stands in a table.

    Args:
        columns: of one column a list in a cell is one number a training run; of several each holds one run.
        scale: what every number is multiplied by: 0.01 turns percent into a share.
    """

    columns: tuple[str, ...]
    scale: float = 1.0


def read_rows(path: Path) -> tuple[list[Row], str]:
    """The rows of a table, and the SHA-256 of its file.

    A JSON object of objects has its keys in the column `key`; a JSON list of objects, or a CSV with a header, is taken
    as it stands. Text in a CSV that reads as a number becomes one.

    Raises:
        NasplatError: the file cannot be read, or is no such table.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise NasplatError(f"the table {path} cannot be read: {error.strerror}", "see the space's key table") from error
    try:
        rows = _csv(content.decode()) if path.suffix.lower() in (".csv", ".tsv") else _json(content)
    except (ValueError, csv.Error) as error:
        raise NasplatError(
            f"{path} is no table: {' '.join(str(error).split())}", "it is read as JSON or CSV"
        ) from error
    if not rows:
        raise NasplatError(f"the table {path} has no rows")
    return rows, hashlib.sha256(content).hexdigest()


def _json(content: bytes) -> list[Row]:
    data = json.loads(content)
    if isinstance(data, dict):
        rows = [{KEY: key, **row} if isinstance(row, dict) else row for key, row in data.items()]
    else:
        rows = data
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise ValueError("a list of objects, or an object of objects, was expected")
    return rows


def _csv(text: str) -> list[Row]:
    lines = text.splitlines()
    delimiter = max(",;\t", key=lines[0].count) if lines else ","
    rows = csv.DictReader(lines, delimiter=delimiter, restkey="", strict=True)
    found: list[Row] = []
    for line, row in enumerate(rows, start=2):
        if "" in row or None in row.values():
            raise ValueError(f"line {line} does not have as many cells as the header")
        found.append({name: _number(cell) for name, cell in row.items()})
    return found


def _number(cell: str) -> Any:
    for kind in (int, float):
        try:
            return kind(cell)
        except ValueError:
            continue
    return cell


def metric_of(name: str, spec: Any, columns: Sequence[str]) -> Metric:
    """A metric from what the experiment file says of it: a column, several, or `{columns: …, scale: …}`.

    Raises:
        NasplatError: another form, or a column that the table does not have.
    """
    scale: Any = 1.0
    if isinstance(spec, Mapping):
        unknown = set(spec) - {"columns", "scale"}
        if unknown or "columns" not in spec:
            raise NasplatError(f"metrics.{name} has the keys {sorted(spec)}", "it takes columns and scale")
        scale, spec = spec.get("scale", 1.0), spec["columns"]
    names = [spec] if isinstance(spec, str) else spec
    if not isinstance(names, list | tuple) or not names or not all(isinstance(one, str) for one in names):
        raise NasplatError(f"metrics.{name} is {spec!r}", "name a column, or list several: one a training run")
    if isinstance(scale, bool) or not isinstance(scale, int | float) or not math.isfinite(scale) or scale == 0:
        raise NasplatError(f"metrics.{name}: the scale is {scale!r}", "give a number other than 0")
    for column in names:
        if column not in columns:
            advice = f"{nearest(column, columns)}its columns are {', '.join(columns)}"
            raise NasplatError(f"metrics.{name}: the table has no column {column!r}", advice)
    return Metric(tuple(names), float(scale))


def runs_of(row: Row, metric: Metric) -> list[float]:
    """What a row says of a metric: one number for every training run.

    Raises:
        ValueError: a cell that is no finite number.
    """
    cells: list[Any] = [row.get(column) for column in metric.columns]
    numbers: list[Any] = cells[0] if len(cells) == 1 and isinstance(cells[0], list) and cells[0] else cells
    if any(isinstance(one, bool) or not isinstance(one, int | float) or not math.isfinite(one) for one in numbers):
        raise ValueError(f"{', '.join(metric.columns)} is {cells[0] if len(cells) == 1 else cells!r}, no finite number")
    return [metric.scale * float(one) for one in numbers]


def options_of(values: Sequence[Option]) -> tuple[tuple[Option, ...], bool]:
    """The options of a choice from all cells of its column, sorted, and whether they are ordered: numbers are."""
    distinct = list(dict.fromkeys(values))
    numeric = all(isinstance(one, int | float) and not isinstance(one, bool) for one in distinct)
    return tuple(sorted(distinct, key=(lambda one: one) if numeric else str)), numeric
