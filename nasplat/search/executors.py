"""An executor decides where a trial runs, never what."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from nasplat.core.errors import TrialFailed
from nasplat.search.records import Evaluate, Record, TrialSpec, resolve, run_trial

POLL_SECONDS = 0.5

OnTrialProgress = Callable[[int, Mapping[str, Any]], None]


@dataclass(frozen=True)
class Finished:
    """The record of a trial that ended, however it ended."""

    number: int
    record: Record


class Executor(Protocol):
    """Runs evaluations. Specifications and records are plain data; the study is none of its business."""

    slots: int

    def submit(self, spec: TrialSpec) -> None:
        """Starts a trial, or queues it where all slots are taken."""
        ...

    def wait(self, timeout: float, on_progress: OnTrialProgress) -> list[Finished]:
        """Trials that ended, after at most `timeout` seconds where the executor can (inline cannot).

        Raises:
            NasplatError: something is wrong that concerns all trials.
        """
        ...

    def close(self, *, now: bool = False) -> None:
        """Frees everything; with `now` without waiting for what runs."""
        ...


class InlineExecutor:
    """Runs trials one after the other in this process.

    Args:
        evaluate: the evaluation, or `module:function`.
        trial_seconds: a trial that takes longer has failed; noticed when it reports progress.
    """

    slots = 1

    def __init__(self, evaluate: str | Evaluate, *, trial_seconds: float | None = None) -> None:
        self._evaluate = resolve(evaluate)
        self._trial_seconds = trial_seconds
        self._queue: deque[TrialSpec] = deque()

    def submit(self, spec: TrialSpec) -> None:
        self._queue.append(spec)

    def wait(self, timeout: float, on_progress: OnTrialProgress) -> list[Finished]:
        if not self._queue:
            return []
        spec = self._queue.popleft()
        started = time.monotonic()

        def report(fields: Mapping[str, Any]) -> None:
            try:
                on_progress(spec.number, fields)
            except Exception as error:
                raise _WatcherFailed from error
            if self._trial_seconds is not None and time.monotonic() - started > self._trial_seconds:
                raise TrialFailed(too_long(self._trial_seconds))

        try:
            return [Finished(spec.number, run_trial(self._evaluate, spec, report))]
        except _WatcherFailed as failure:
            assert failure.__cause__ is not None
            raise failure.__cause__ from None

    def close(self, *, now: bool = False) -> None:
        self._queue.clear()


class _WatcherFailed(BaseException):
    """An error of whoever watches, which must pass through the evaluation without failing the candidate."""


def too_long(seconds: float) -> str:
    return f"it took longer than run.trial_seconds = {seconds:g}"


def run_all(
    executor: Executor,
    specs: Collection[TrialSpec],
    on_progress: OnTrialProgress = lambda number, fields: None,
    on_finished: Callable[[int, Record], None] = lambda number, record: None,
) -> dict[int, Record]:
    """Runs trials that are known from the start, and closes the executor.

    Returns:
        The record of every number.
    """
    records: dict[int, Record] = {}
    try:
        for spec in specs:
            executor.submit(spec)
        while len(records) < len(specs):
            for done in executor.wait(POLL_SECONDS, on_progress):
                records[done.number] = done.record
                on_finished(done.number, done.record)
    finally:
        executor.close(now=len(records) < len(specs))
    return records
