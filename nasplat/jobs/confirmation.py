"""What training the best candidates again with new seeds says of them: means, intervals, and the files of it."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from math import sqrt
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nasplat.artifacts.files import read_json, write_json, write_text
from nasplat.artifacts.run_directory import RunDirectory
from nasplat.core.errors import NasplatError
from nasplat.core.space import SearchSpace
from nasplat.jobs.command import command

if TYPE_CHECKING:
    from nasplat.jobs.runs import Candidate, Run

FINAL = "-final"  # stands behind the name of a candidate where the network that was trained again is meant
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Estimate:
    """The mean of a metric over seeds, with the 95 % interval of Student's t; one seed has no interval."""

    mean: float
    low: float | None
    high: float | None
    values: tuple[float, ...]


@dataclass(frozen=True)
class Confirmed:
    """One architecture of the front, trained again.

    Args:
        trial: the number of its trial in the search.
        digest: of the architecture in the search.
        final_digest: of the architecture as it was rebuilt.
        seeds: of the trainings that ended well.
        costs: MACs, parameters, peak activation bytes of the rebuilt network.
        metrics: name and estimate; what the search measured on validation images is measured on test images here.
        failures: why the others failed.
        weights: of the first seed, relative to the run directory; empty where it failed.
    """

    trial: int
    digest: str
    final_digest: str
    seeds: tuple[int, ...]
    costs: Mapping[str, int]
    metrics: Mapping[str, Estimate]
    failures: tuple[str, ...] = ()
    weights: str = ""


@dataclass(frozen=True)
class Confirmation:
    """All of them, with the settings that they were trained with."""

    settings: Mapping[str, Any]
    versions: Mapping[str, str]
    machine: Mapping[str, str]
    rows: tuple[Confirmed, ...]


def estimate(values: Sequence[float], share: bool = False) -> Estimate:
    """Mean and 95 % interval of a few measurements.

    Args:
        values: at least one.
        share: the metric lies in 0..1, and so does its interval.
    """
    count = len(values)
    mean = sum(values) / count
    if count < 2:
        return Estimate(mean, None, None, tuple(values))
    from scipy.stats import t

    deviation = sqrt(sum((value - mean) ** 2 for value in values) / (count - 1))
    half = float(t.ppf((1 + CONFIDENCE) / 2, count - 1)) * deviation / sqrt(count)
    low, high = mean - half, mean + half
    if share:
        low, high = max(0.0, low), min(1.0, high)
    return Estimate(mean, low, high, tuple(values))


def path_of(run: RunDirectory) -> Path:
    return run.root / "confirmation.json"


def write_confirmation(run: RunDirectory, confirmation: Confirmation) -> list[Path]:
    """Writes confirmation.json and confirmation.csv into the run directory."""
    write_json(path_of(run), asdict(confirmation))
    names = list(dict.fromkeys(name for row in confirmation.rows for name in row.metrics))
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    parts = ("mean", "low", "high")
    costs = list(dict.fromkeys(name for row in confirmation.rows for name in row.costs))
    fixed = ("trial", "digest", "final_digest", "seeds")
    writer.writerow([*fixed, *(f"{name}_{part}" for name in names for part in parts), *costs])
    for row in confirmation.rows:
        found = [row.metrics.get(name) for name in names]
        numbers = ["" if one is None else getattr(one, part) for one in found for part in parts]
        which = (row.trial, row.digest, row.final_digest, len(row.seeds))
        writer.writerow([*which, *numbers, *(row.costs.get(name, "") for name in costs)])
    table = path_of(run).with_suffix(".csv")
    write_text(table, text.getvalue())
    return [path_of(run), table]


def read_confirmation(run: RunDirectory) -> Confirmation | None:
    """What `write_confirmation` wrote; None where nothing was confirmed yet."""
    if not path_of(run).exists():
        return None
    data = read_json(path_of(run))
    rows = tuple(
        Confirmed(
            **{
                **row,
                "seeds": tuple(row["seeds"]),
                "failures": tuple(row["failures"]),
                "metrics": {
                    name: Estimate(**{**one, "values": tuple(one["values"])}) for name, one in row["metrics"].items()
                },
            }
        )
        for row in data["rows"]
    )
    return Confirmation(data["settings"], data["versions"], data["machine"], rows)


def final_network(run: Run, candidate: Candidate) -> tuple[SearchSpace, Confirmed, Confirmation]:
    """How a candidate was rebuilt and trained again: the space of final size, its own row, and all of it.

    Raises:
        NasplatError: it was not trained again.
    """
    from nasplat.spaces.families import make_space

    confirmation = read_confirmation(run.files)
    if confirmation is not None:
        for row in confirmation.rows:
            if row.digest == candidate.architecture.digest:
                return make_space(confirmation.settings["space"], run.space.problem), row, confirmation
    raise NasplatError(
        f"{candidate.name} was not trained on the full schedule",
        f"{command('train', run.directory, '--arch', candidate.number)} trains it",
    )
