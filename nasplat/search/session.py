"""One session of a search: alone in its directory, and ended by Ctrl-C in two steps."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from nasplat.core.errors import NasplatError
from nasplat.search.events import INTERRUPTED, OnEvent
from nasplat.search.locks import FileLock

ORPHAN_SECONDS = 30.0
DRIVER_LOCK = ".driver.lock"
WORKERS_LOCK = ".workers.lock"


def running_process(run_directory: Path) -> int | None:
    """The process id of the search that is running in this directory; None where none is."""
    path = run_directory / DRIVER_LOCK
    if not path.exists():
        return None
    probe = FileLock(path)
    if probe.acquire(shared=True):
        probe.release()
        return None
    return int(path.read_text() or 0)


@contextmanager
def alone(run_directory: Path) -> Iterator[None]:
    """Keeps a second search out of the directory, and waits for the orphaned workers of a killed one to be gone."""
    try:
        driver, workers = FileLock(run_directory / DRIVER_LOCK), FileLock(run_directory / WORKERS_LOCK)
        if not driver.acquire():
            raise NasplatError(
                f"a search is running in {run_directory} (process {running_process(run_directory)})",
                "wait for it, or stop it with Ctrl-C",
            )
        driver.write(str(os.getpid()))
        if not workers.acquire(timeout=ORPHAN_SECONDS):
            raise NasplatError(
                f"worker processes of an earlier search still run in {run_directory}", "end them, and try again"
            )
        workers.release()
    except OSError as error:
        raise NasplatError(
            f"the run directory {run_directory} cannot be written: {error.strerror}", "choose another one"
        ) from error
    try:
        yield
    finally:
        driver.release()


class Interrupts:
    """Counts Ctrl-C: the first is remembered, the second raises KeyboardInterrupt."""

    def __init__(self, on_event: OnEvent) -> None:
        self.count = 0
        self._on_event = on_event
        self._before: Any = None

    def __enter__(self) -> Interrupts:
        if threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGINT, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        if self._before is not None:
            signal.signal(signal.SIGINT, self._before)

    def _handle(self, *_: object) -> None:
        self.count += 1
        if self.count > 1:
            raise KeyboardInterrupt
        self._on_event(INTERRUPTED)
