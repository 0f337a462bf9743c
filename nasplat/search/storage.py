"""Optuna storages: a journal file by default, SQLite, or any Optuna URL; and what can be wrong with them."""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from optuna.exceptions import DuplicatedStudyError
from optuna.storages import BaseStorage, JournalStorage, RDBStorage, get_storage
from optuna.storages.journal import BaseJournalBackend, JournalFileBackend

from nasplat.core.errors import NasplatError
from nasplat.search.locks import lock

LOCK_SECONDS = 10.0
_RECORD = b'{"op_code":'
FILES = {"journal": "study.journal", "sqlite": "study.db"}


class JournalFile(BaseJournalBackend):
    """A journal file that survives SIGKILL at any moment.

    Other than Optuna's own backend it is locked by flock, which ends with its process instead of 30 seconds later; an
    incomplete last line, which a killed process left, is cut off before the next is written; and several records can
    be written at once. The file itself is Optuna's: every Optuna tool opens it.
    """

    def __init__(self, path: Path, *, read_only: bool = False) -> None:
        self.path = path
        self.cut = 0 if read_only else repair(path)
        self._reader = JournalFileBackend(str(path))
        self._held: list[dict[str, Any]] | None = None

    def read_logs(self, log_number_from: int) -> Iterable[dict[str, Any]]:
        return self._reader.read_logs(log_number_from)

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        if self._held is not None:
            self._held.extend(logs)
            return
        text = "".join(json.dumps(log, separators=(",", ":")) + "\n" for log in logs)
        with locked(self.path) as descriptor:
            end = os.fstat(descriptor).st_size
            try:
                _write(descriptor, text.encode())
                os.fsync(descriptor)
            except BaseException:  # a full disk, or a second Ctrl-C: half a line would spoil all that follow
                os.ftruncate(descriptor, end)
                raise

    @contextmanager
    def together(self) -> Iterator[None]:
        """Records that are appended inside are written at once, at the end."""
        self._held = []
        try:
            yield
        finally:
            logs, self._held = self._held, None
        self.append_logs(logs)


@contextmanager
def locked(path: Path) -> Iterator[int]:
    descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o666)
    try:
        if not lock(descriptor, timeout=LOCK_SECONDS):
            raise NasplatError(
                f"{path} is locked by another process", "wait for it, or end it: two searches cannot share a study"
            )
        yield descriptor
    finally:
        os.close(descriptor)


def repair(path: Path) -> int:
    """Cuts what a killed process or a power cut left after the last whole record; returns how many bytes."""
    with locked(path) as descriptor:
        content = path.read_bytes()
        end = len(content)
        while end and not _whole(content[content.rfind(b"\n", 0, end - 1) + 1 : end]):
            end = content.rfind(b"\n", 0, end - 1) + 1
        if not end and not content.startswith(_RECORD[: len(content)]):
            raise NasplatError(f"{path} is no Optuna journal", "name another storage, or move the file away")
        if end < len(content):
            os.ftruncate(descriptor, end)
            os.fsync(descriptor)
        return len(content) - end


def _write(descriptor: int, data: bytes) -> None:
    while data:
        data = data[os.write(descriptor, data) :]


def _whole(line: bytes) -> bool:
    try:
        return line.endswith(b"\n") and "op_code" in json.loads(line)
    except (ValueError, TypeError):
        return False


def location(storage: str, directory: Path) -> str:
    """The path or URL that `run.storage` of an experiment stands for."""
    return str(directory / FILES[storage]) if storage in FILES else storage


def open_storage(storage: str, directory: Path, *, read_only: bool = False) -> BaseStorage:
    """Opens the storage, and makes it where there is none.

    Args:
        storage: `journal`, `sqlite`, or an Optuna URL.
        directory: of the run; the first two lie in it.
        read_only: look only, while a search may be running.

    Raises:
        NasplatError: it is locked, read-only, damaged, or cannot be reached.
    """
    where = location(storage, directory)
    if read_only and storage in FILES and not Path(where).exists():
        raise NasplatError(f"there is no study at {where}", "start a search in this run directory first")
    with storage_errors(where):
        if storage == "journal":
            return JournalStorage(JournalFile(Path(where), read_only=read_only))
        if storage == "sqlite":
            if not read_only:
                _write_ahead(where)
            return get_storage(
                RDBStorage(f"sqlite:///{where}", engine_kwargs={"connect_args": {"timeout": LOCK_SECONDS}})
            )
        return get_storage(storage)


def _write_ahead(path: str) -> None:
    """Lets the dashboard read while the search writes. SQLite keeps the setting in the file."""
    connection = sqlite3.connect(path, timeout=LOCK_SECONDS)
    try:
        connection.execute("PRAGMA journal_mode=WAL")
    finally:
        connection.close()


def bytes_cut(storage: BaseStorage) -> int:
    """How much of an incomplete last record was cut off when the journal was opened."""
    backend = getattr(storage, "_backend", None)
    return backend.cut if isinstance(backend, JournalFile) else 0


@contextmanager
def together(storage: BaseStorage) -> Iterator[None]:
    """Makes one write of several where the storage can (the journal file)."""
    backend = getattr(storage, "_backend", None)
    if isinstance(backend, JournalFile):
        with backend.together():
            yield
    else:
        yield


@contextmanager
def storage_errors(where: str) -> Iterator[None]:
    """Says in the user's words what a storage's own errors mean."""
    try:
        yield
    except NasplatError:
        raise
    except DuplicatedStudyError as error:
        raise NasplatError(f"{where} already has a study of this name", "use --resume, or another name") from error
    except Exception as error:
        what, advice = _explain(error)
        raise NasplatError(f"the study's storage {where} {what}: {_first(error)}", advice) from error


def _explain(error: Exception) -> tuple[str, str]:
    text = _chain(error)
    if "locked" in text:
        return "is locked", "end the process that holds it, or use a journal file (run.storage: journal)"
    if any(word in text for word in ("read-only", "readonly", "permission denied", "unable to open")):
        return "cannot be written", "make it writable, or choose another run directory or storage"
    if isinstance(error, (ValueError, AssertionError, KeyError, TypeError, sqlite3.DatabaseError)):
        return "cannot be read", "it is damaged or no Optuna storage; restore a copy, or start in a new run directory"
    return "failed", "if the disk is full or a server is away, see to it and use --resume; finished trials are safe"


def _chain(error: BaseException | None) -> str:
    texts = []
    while error is not None:
        texts.append(str(error).lower())
        error = error.__cause__ or error.__context__
    return " ".join(texts)


def _first(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
