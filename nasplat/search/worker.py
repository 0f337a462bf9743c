"""The other end of `ProcessExecutor`: a process that runs one trial after the other.

It imports little, to be there soon.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from multiprocessing import parent_process
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from nasplat.artifacts.files import file_error
from nasplat.core.errors import NasplatError
from nasplat.search.locks import FileLock
from nasplat.search.records import LOG_FILE, Evaluate, TrialSpec, resolve, run_trial

PROGRESS_SECONDS = 0.1
_PR_SET_PDEATHSIG = 1


def work(connection: Connection, evaluate: str, lock: str | None) -> None:
    """Runs the specifications that arrive until None does.

    Args:
        connection: to the driver.
        evaluate: `module:function`.
        lock: a file to hold a shared lock on while this process lives.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the driver's business
    _die_with_parent()
    if lock is not None:
        FileLock(Path(lock)).acquire(shared=True, timeout=60.0)
    try:
        function = resolve_warm(evaluate)
        connection.send(("ready", None))
        while (spec := connection.recv()) is not None:
            reporter = _Reporter(connection)
            with log_of(Path(spec["directory"])):
                record = run_trial(function, TrialSpec(**spec), reporter)
            connection.send(("record", record.to_json()))
    except NasplatError as error:
        connection.send(("error", (error.message, error.advice)))
    except (EOFError, BrokenPipeError):
        pass  # the driver is gone


def resolve_warm(evaluate: str) -> Evaluate:
    """The evaluation, with what its first trial would import imported. Raises NasplatError: it cannot be."""
    try:
        function = resolve(evaluate)
        # What the first trial would import counts to its time otherwise.
        module = sys.modules[evaluate.partition(":")[0]]
        getattr(module, "warm_up", lambda: None)()
        return function
    except NasplatError:
        raise
    except Exception as error:  # a mistake in the user's module, which every new worker would make again
        traceback.print_exc()
        raise NasplatError(f"importing {evaluate} failed: {type(error).__name__}: {error}") from error


class _Reporter:
    """Sends progress, but not so often that the pipe fills."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._last = 0.0

    def __call__(self, fields: Mapping[str, Any]) -> None:
        now = time.monotonic()
        if now - self._last >= PROGRESS_SECONDS:
            self._last = now
            try:
                self._connection.send(("progress", dict(fields)))
            except OSError:
                os._exit(1)  # the driver is gone; raising here would look like a failure of the candidate


@contextmanager
def log_of(directory: Path) -> Iterator[None]:
    """What the trial prints goes into its own log, also what libraries print from C."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
        file = os.open(directory / LOG_FILE, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    except OSError as error:
        raise file_error(error, directory / LOG_FILE, "write") from error
    kept = [os.dup(stream) for stream in (1, 2)]
    try:
        os.dup2(file, 1)
        os.dup2(file, 2)
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        for stream, copy in zip((1, 2), kept, strict=True):
            os.dup2(copy, stream)
            os.close(copy)
        os.close(file)


def _die_with_parent() -> None:
    """An orphan must not go on with a trial that a resumed search runs again."""
    parent = parent_process()
    if parent is None:
        return
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
