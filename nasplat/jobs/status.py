"""Where a search stands, whether it runs or not."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from nasplat.core.front import Goal
from nasplat.jobs.runs import Candidate, Run, open_run


@dataclass(frozen=True)
class Status:
    """The state of a run.

    Args:
        run: the run directory, read.
        process: of the search that runs in it; None where none does.
        counts: how many proposals are in which state; those that a dead search left are `unfinished`.
        evaluated: distinct architectures whose evaluation is done.
        budget: in trials; None where the search has none.
        unfinished: numbers of the trials that run, or that a dead search left.
        last_change: seconds since something was written to the study or a trial; None for a study on a server.
        reasons: why trials failed, and how often.
    """

    run: Run
    process: int | None
    counts: dict[str, int]
    evaluated: int
    budget: int | None
    unfinished: tuple[int, ...]
    last_change: float | None
    reasons: dict[str, int]

    @property
    def goals(self) -> tuple[Goal, ...]:
        return self.run.goals

    @property
    def front(self) -> tuple[Candidate, ...]:
        return self.run.front

    @property
    def done(self) -> bool:
        return (
            self.process is None and not self.unfinished and self.budget is not None and self.evaluated >= self.budget
        )

    @property
    def summary(self) -> str:
        of = f" of {self.budget}" if self.budget else ""
        state = f"running (process {self.process})" if self.process else ("done" if self.done else "stopped")
        return f"{state}: {self.evaluated}{of} architectures evaluated"


def status(directory: Path) -> Status:
    """Reads where a search stands. Nothing in the run directory is changed.

    Raises:
        NasplatError: the folder is no run directory, or its study cannot be read.
    """
    from nasplat.search.session import running_process

    run = open_run(directory)
    history = run.history
    process = running_process(directory)
    unfinished = tuple(one.number for one in history if one.state == "running")
    states = ("unfinished" if one.state == "running" and process is None else one.state for one in history)
    return Status(
        run=run,
        process=process,
        counts=dict(Counter(states)),
        evaluated=history.evaluated - len(unfinished),
        budget=run.experiment.search.trials,
        unfinished=unfinished,
        last_change=_last_change(directory),
        reasons=dict(Counter(one.reason for one in history if one.state == "failed").most_common(3)),
    )


def _last_change(directory: Path) -> float | None:
    files = [*directory.glob("study.*"), *directory.glob("trials/*")]
    return time.time() - max(file.stat().st_mtime for file in files) if files else None
