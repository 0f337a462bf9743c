"""The Pareto front as a table that a spreadsheet opens."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from nasplat.artifacts.files import read_text, write_text
from nasplat.core.errors import NasplatError

_FIXED = ("rank", "digest", "trial")
_PATH = "_path"


@dataclass(frozen=True, slots=True)
class FrontRow:
    """One member of the front.

    Args:
        rank: 1 is the best on the first goal.
        digest: of the architecture.
        trial: its number.
        metrics: name and value.
        paths: such as `trial`, `weights`, `export`, relative to the run directory; columns `trial_path` and so on.
    """

    rank: int
    digest: str
    trial: int
    metrics: Mapping[str, float] = field(default_factory=dict)
    paths: Mapping[str, str] = field(default_factory=dict)


def write_front(rows: Sequence[FrontRow], path: Path) -> None:
    """Columns: rank, digest, trial, the metrics, the paths; what a row lacks is empty.

    Raises:
        NasplatError: the disk is full or cannot be written to.
    """
    metrics = list(dict.fromkeys(name for row in rows for name in row.metrics))
    paths = list(dict.fromkeys(name for row in rows for name in row.paths))
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*_FIXED, *metrics, *(name + _PATH for name in paths)])
    for row in rows:
        values = [_number(row.metrics[name]) if name in row.metrics else "" for name in metrics]
        writer.writerow([row.rank, row.digest, row.trial, *values, *(row.paths.get(name, "") for name in paths)])
    write_text(path, text.getvalue())


def read_front(path: Path) -> list[FrontRow]:
    """What `write_front` wrote.

    Raises:
        NasplatError: the file is missing or damaged.
    """
    rows = []
    try:
        for line in csv.DictReader(io.StringIO(read_text(path)), strict=True):
            others = {name: text for name, text in line.items() if name not in _FIXED and text}
            metrics = {name: float(text) for name, text in others.items() if not name.endswith(_PATH)}
            paths = {name.removesuffix(_PATH): text for name, text in others.items() if name.endswith(_PATH)}
            rows.append(FrontRow(int(line["rank"]), line["digest"], int(line["trial"]), metrics, paths))
    except (KeyError, ValueError, TypeError, AttributeError, csv.Error) as error:
        raise NasplatError(f"{path} is damaged: {error}", "write it again with `nasplat report`") from error
    return rows


def _number(value: float) -> str:
    """Whole numbers without a point, so that a spreadsheet shows 123456 and not 1.23e5."""
    return str(int(value)) if float(value).is_integer() and abs(value) < 2**53 else repr(float(value))
