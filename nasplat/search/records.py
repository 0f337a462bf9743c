"""What a worker is given, what it returns, and the file that says that a trial is done.

Imports neither torch nor Optuna: a worker process is there in a moment.
"""

from __future__ import annotations

import json
import math
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from nasplat.artifacts.files import write_json
from nasplat.core.errors import Infeasible, NasplatError, TrialFailed
from nasplat.core.user_function import load_function

ARCHITECTURE_FILE = "architecture.json"
RECORD_FILE = "record.json"
LOG_FILE = "log.txt"


@dataclass(frozen=True)
class TrialSpec:
    """One evaluation to run, wherever it runs.

    Args:
        number: of the trial.
        experiment: the resolved experiment as plain data.
        architecture: JSON of the architecture.
        seed: of this candidate.
        directory: of this trial; checkpoints, weights and the record lie in it.
        device: as in the experiment's run section.
        threads: CPU threads.
        until: the share of the training budget after which the trial pauses; see `nasplat.search.early_stopping`.
        threshold: of the screening score, below which the candidate is dropped; None drops none.
    """

    number: int
    experiment: Mapping[str, Any]
    architecture: Mapping[str, Any]
    seed: int
    directory: str
    device: str = "cpu"
    threads: int = 1
    until: float = 1.0
    threshold: float | None = None

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Record:
    """What an evaluation found.

    Args:
        state: how it ended.
        metrics: name and finite number.
        reason: why it failed or cannot be used.
        seconds: wall time.
        violations: relative excess over constraints that only measuring could check.
    """

    state: Literal["complete", "infeasible", "failed", "screened"]
    metrics: Mapping[str, float] = field(default_factory=dict)
    reason: str = ""
    seconds: float = 0.0
    violations: Mapping[str, float] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


OnProgress = Callable[[Mapping[str, Any]], None]
Evaluate = Callable[[TrialSpec, OnProgress], Record]


def resolve(evaluate: str | Evaluate) -> Evaluate:
    """A function, or the function that `module:function` names.

    Raises:
        NasplatError: there is no such module or function.
    """
    if not isinstance(evaluate, str):
        return evaluate
    function: Evaluate = load_function(evaluate, "evaluation")
    return function


def run_trial(evaluate: Evaluate, spec: TrialSpec, on_progress: OnProgress) -> Record:
    """Runs one evaluation, and leaves its record in the trial's directory as the last thing it does.

    A trial whose record is there already is not run again. What goes wrong with one candidate is in the record; a
    NasplatError that concerns all of them (no data, a bad setting) is raised.
    """
    directory = Path(spec.directory)
    found = read_record(directory, spec.until)
    if found is not None:
        return found
    write_json(directory / ARCHITECTURE_FILE, dict(spec.architecture))  # makes the folder, too
    started = time.perf_counter()
    try:
        record = _finite(evaluate(spec, on_progress))
    except TrialFailed as error:
        record = Record("failed", reason=error.message)
    except Infeasible as error:
        record = Record("infeasible", reason=error.message)
    except NasplatError:
        raise
    except MemoryError:
        record = Record("infeasible", reason="out of memory")
    except Exception as error:
        with (directory / LOG_FILE).open("a") as log:
            traceback.print_exc(file=log)
        record = Record("failed", reason=f"{type(error).__name__}: {error}; the traceback is in {LOG_FILE}")
    if not record.seconds:
        record = Record(**{**record.to_json(), "seconds": time.perf_counter() - started})
    write_record(directory, record, spec.until)
    return record


def _finite(record: Record) -> Record:
    bad = [name for name, value in record.metrics.items() if not math.isfinite(value)]
    if record.state != "complete" or not bad:
        return record
    return Record("failed", {}, f"{bad[0]} is {record.metrics[bad[0]]}", record.seconds)


def read_record(directory: Path, until: float = 1.0) -> Record | None:
    """The record of a trial that was trained to a share of its budget; None where it has not come so far."""
    try:
        data = json.loads((directory / _record_file(until)).read_text())
        return Record(**{key: data[key] for key in ("state", "metrics", "reason", "seconds", "violations")})
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (ValueError, KeyError, TypeError):
        return None  # damaged: as if it had not been written


def write_record(directory: Path, record: Record, until: float = 1.0) -> None:
    """Writes the record whole or not at all. Raises NasplatError: the disk is full or cannot be written to."""
    write_json(directory / _record_file(until), record.to_json())


def remove_record(directory: Path, until: float = 1.0) -> None:
    """Lets a trial run again."""
    (directory / _record_file(until)).unlink(missing_ok=True)


def _record_file(until: float) -> str:
    return RECORD_FILE if until >= 1 else f"record-{until:.4f}.json"
