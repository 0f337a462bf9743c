"""What training the best candidates again with new seeds says of them: means, intervals, and the files of it."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from math import sqrt
from pathlib import Path
from typing import Any

from nasplat.artifacts.files import read_json, write_json, write_text
from nasplat.artifacts.run_directory import RunDirectory

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
    writer.writerow(["trial", "digest", "seeds", *(f"{name}_{part}" for name in names for part in parts), *costs])
    for row in confirmation.rows:
        found = [row.metrics.get(name) for name in names]
        numbers = ["" if one is None else getattr(one, part) for one in found for part in parts]
        writer.writerow([row.trial, row.digest, len(row.seeds), *numbers, *(row.costs.get(name, "") for name in costs)])
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
