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
        paused: of those that early stopping holds back; a few are trained on, the others end with the search.
        exhausted: whether the search ended because nothing new was left to try.
        last_change: seconds since something was written to the study or a trial; None for a study on a server.
        reasons: why trials failed, and how often.
    """

    run: Run
    process: int | None
    counts: dict[str, int]
    evaluated: int
    budget: int | None
    unfinished: tuple[int, ...]
    paused: tuple[int, ...]
    exhausted: bool
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
        spent = self.budget is not None and self.evaluated >= self.budget
        return self.process is None and not self.unfinished and not self.paused and (spent or self.exhausted)

    @property
    def summary(self) -> str:
        of = f" of {self.budget}" if self.budget else ""
        state = f"running (process {self.process})" if self.process else ("done" if self.done else "stopped")
        left = ", and nothing new is left to try" if self.done and self.exhausted else ""
        return f"{state}: {self.evaluated}{of} architectures evaluated{left}"


def status(directory: Path) -> Status:
    """Reads where a search stands. Nothing in the run directory is changed.

    Raises:
        NasplatError: the folder is no run directory, or its study cannot be read.
    """
    from nasplat.search.session import running_process

    run = open_run(directory)
    history = run.history
    process = running_process(directory)
    running = [one for one in history if one.state == "running"]
    paused = tuple(one.number for one in running if len(one.rungs) > one.rung)
    unfinished = tuple(one.number for one in running if one.number not in paused)
    words = dict.fromkeys(unfinished, "running" if process else "unfinished") | dict.fromkeys(paused, "paused")
    return Status(
        run=run,
        process=process,
        counts=dict(Counter(words.get(one.number, one.state) for one in history)),
        evaluated=history.evaluated - len(running),
        budget=run.experiment.search.trials,
        unfinished=unfinished,
        paused=paused,
        exhausted=run.files.read_state().get("status") == "exhausted",
        last_change=_last_change(directory),
        reasons=dict(Counter(one.reason for one in history if one.state == "failed").most_common(3)),
    )


def _last_change(directory: Path) -> float | None:
    files = [*directory.glob("study.*"), *directory.glob("trials/*")]
    return time.time() - max(file.stat().st_mtime for file in files) if files else None
