"""Traps that kill a process with SIGKILL right before, within or after a chosen call. Imports no Optuna."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nasplat.search import records
from tests.search import toys

VARIABLE = "NASPLAT_TEST_TRAP"


@dataclass(frozen=True)
class Trap:
    """Kills at the `count`-th call of a point in one process; with `everything` that process's parent as well."""

    when: str
    point: str
    count: int
    everything: bool
    marker: str

    def to_text(self) -> str:
        return " ".join([self.when, self.point, str(self.count), str(int(self.everything)), self.marker])


def read_trap() -> Trap | None:
    words = os.environ.get(VARIABLE, "").split()
    return Trap(words[0], words[1], int(words[2]), words[3] == "1", words[4]) if words else None


def spring(owner: Any, name: str, trap: Trap) -> None:
    """Puts the trap round a function of a module or class."""
    function: Callable[..., Any] = getattr(owner, name)
    calls = 0

    def call(*args: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == trap.count and trap.when == "within":  # half of a write
            os.write(args[0], args[1][: len(args[1]) // 2])
        if calls == trap.count and trap.when in ("before", "within"):
            kill(trap)
        result = function(*args)
        if calls == trap.count and trap.when == "after":
            kill(trap)
        return result

    setattr(owner, name, call)


def kill(trap: Trap) -> None:
    try:
        Path(trap.marker).touch(exist_ok=False)  # a worker's successor is not killed as well
    except FileExistsError:
        return
    if trap.everything:
        os.kill(os.getppid(), signal.SIGKILL)
    os.kill(os.getpid(), signal.SIGKILL)


def stepwise(spec: records.TrialSpec, on_progress: records.OnProgress) -> records.Record:
    """The toy evaluation, where checkpoints and records may be trapped."""
    trap = read_trap()
    os.environ.pop(VARIABLE, None)
    if trap is not None and trap.point == "checkpoint":
        spring(toys, "save_checkpoint", trap)
    if trap is not None and trap.point == "record":
        spring(records, "write_record", trap)
    return toys.stepwise(spec, on_progress)
