"""Trials in worker processes on this machine."""

from __future__ import annotations

import multiprocessing
import signal
import time
from collections import deque
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from pathlib import Path

from nasplat.core.errors import NasplatError
from nasplat.search.executors import Finished, OnTrialProgress, too_long
from nasplat.search.records import Evaluate, Record, TrialSpec, read_record, write_record
from nasplat.search.worker import work

ATTEMPTS = 2
STARTS = 3
JOIN_SECONDS = 2.0


@dataclass
class _Worker:
    process: SpawnProcess
    connection: Connection
    ready: bool = False
    spec: TrialSpec | None = None
    deadline: float | None = None


@dataclass
class _Queue:
    specs: deque[TrialSpec] = field(default_factory=deque)
    deaths: dict[int, int] = field(default_factory=dict)


class ProcessExecutor:
    """Spawned workers that live as long as the search. Each imports the evaluation once, and runs one trial at a time.

    A worker that dies (killed, crashed) is replaced, and its trial is run again once, from its checkpoint; then it has
    failed. A trial over its time is killed and has failed.

    Args:
        evaluate: `module:function`, or a function that can be imported by its name.
        workers: how many.
        trial_seconds: the longest that a trial may take.
        lock: a file that every worker holds a shared lock on, so that a later search can wait for orphans to be gone.
    """

    def __init__(
        self,
        evaluate: str | Evaluate,
        workers: int,
        *,
        trial_seconds: float | None = None,
        lock: Path | None = None,
    ) -> None:
        self.slots = workers
        self._evaluate = evaluate if isinstance(evaluate, str) else f"{evaluate.__module__}:{evaluate.__qualname__}"
        self._trial_seconds = trial_seconds
        self._lock = lock
        self._queue = _Queue()
        self._failed_starts = 0
        self._workers = [self._start() for _ in range(workers)]

    def submit(self, spec: TrialSpec) -> None:
        self._queue.specs.append(spec)
        self._assign()

    def wait(self, timeout: float, on_progress: OnTrialProgress) -> list[Finished]:
        finished: list[Finished] = []
        until = time.monotonic() + timeout
        while not finished:
            left = min([until, *(w.deadline for w in self._workers if w.deadline is not None)]) - time.monotonic()
            handles = [w.connection for w in self._workers] + [w.process.sentinel for w in self._workers]
            ready = set(wait(handles, max(0.0, left)))
            for index, worker in enumerate(self._workers):
                alive = True
                if worker.connection in ready:
                    alive = self._receive(worker, finished, on_progress)
                if not alive or (worker.process.sentinel in ready and not worker.connection.poll()):
                    self._workers[index] = self._replace(worker, finished)
                elif worker.deadline is not None and time.monotonic() > worker.deadline:
                    self._workers[index] = self._overdue(worker, finished)
            self._assign()
            if time.monotonic() >= until:
                break
        return finished

    def close(self, *, now: bool = False) -> None:
        for worker in self._workers:
            if now:
                worker.process.kill()
            else:
                _send(worker, None)
        for worker in self._workers:
            worker.process.join(JOIN_SECONDS)
            if worker.process.is_alive():
                worker.process.kill()
                worker.process.join()
            worker.connection.close()
        self._workers = []

    def _start(self) -> _Worker:
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        process = context.Process(
            target=work, args=(theirs, self._evaluate, str(self._lock) if self._lock else None), daemon=True
        )
        # Ctrl-C reaches every process of the terminal; only the driver decides what it means. A blocked signal stays
        # blocked in the child from its first instruction on. Starting the tracker would unblock it.
        resource_tracker.ensure_running()
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        theirs.close()
        return _Worker(process, ours)

    def _assign(self) -> None:
        for worker in self._workers:
            if self._queue.specs and worker.spec is None and worker.ready:
                spec = self._queue.specs.popleft()
                worker.spec = spec
                if self._trial_seconds is not None:
                    worker.deadline = time.monotonic() + self._trial_seconds
                _send(worker, spec.to_json())

    def _receive(self, worker: _Worker, finished: list[Finished], on_progress: OnTrialProgress) -> bool:
        try:
            message = worker.connection.recv()
        except (EOFError, OSError):
            return False
        kind, content = message
        if kind == "ready":
            worker.ready = True
            self._failed_starts = 0
        elif kind == "error":
            raise NasplatError(*content)
        elif worker.spec is not None and kind == "progress":
            on_progress(worker.spec.number, content)
        elif worker.spec is not None and kind == "record":
            finished.append(Finished(worker.spec.number, Record(**content)))
            worker.spec = worker.deadline = None
        return True

    def _replace(self, worker: _Worker, finished: list[Finished]) -> _Worker:
        _end(worker)
        if not worker.ready:
            self._failed_starts += 1
            if self._failed_starts >= STARTS:
                raise NasplatError(
                    f"{STARTS} worker processes died while they started ({_cause(worker)})",
                    "try run.executor: inline, which shows the error",
                )
        if worker.spec is not None:
            self._rerun(worker.spec, _cause(worker), finished)
        return self._start()

    def _rerun(self, spec: TrialSpec, cause: str, finished: list[Finished]) -> None:
        record = read_record(Path(spec.directory), spec.until)
        if record is not None:  # it died on the way home
            finished.append(Finished(spec.number, record))
            return
        deaths = self._queue.deaths[spec.number] = self._queue.deaths.get(spec.number, 0) + 1
        if deaths < ATTEMPTS:
            self._queue.specs.appendleft(spec)
        else:
            self._fail(spec, f"its worker process died {deaths} times ({cause})", finished)

    def _overdue(self, worker: _Worker, finished: list[Finished]) -> _Worker:
        _end(worker)
        assert worker.spec is not None and self._trial_seconds is not None
        record = read_record(Path(worker.spec.directory), worker.spec.until)
        if record is not None:
            finished.append(Finished(worker.spec.number, record))
        else:
            self._fail(worker.spec, too_long(self._trial_seconds), finished)
        return self._start()

    def _fail(self, spec: TrialSpec, reason: str, finished: list[Finished]) -> None:
        record = Record("failed", reason=reason, seconds=self._trial_seconds or 0.0)
        directory = Path(spec.directory)
        directory.mkdir(parents=True, exist_ok=True)
        write_record(directory, record, spec.until)
        finished.append(Finished(spec.number, record))


def _send(worker: _Worker, message: object) -> None:
    with suppress(OSError):  # it is dead, which the next wait sees
        worker.connection.send(message)


def _end(worker: _Worker) -> None:
    worker.process.kill()
    worker.process.join()
    worker.connection.close()


def _cause(worker: _Worker) -> str:
    code = worker.process.exitcode
    return signal.Signals(-code).name if code is not None and code < 0 else f"exit status {code}"
