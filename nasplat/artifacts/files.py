"""Files that are there whole or not at all."""

from __future__ import annotations

import errno
import json
import os
import shutil
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from nasplat.core.errors import NasplatError

_PARTIAL = ".partial"
_LEFTOVER_SECONDS = 3600.0

_ADVICE = {
    errno.ENOSPC: ("the disk is full", "free some space, or put the run on another disk; nothing was overwritten"),
    errno.EDQUOT: ("the disk quota is used up", "free some space, or put the run on another disk"),
    errno.EFBIG: ("the file is larger than this system allows", "raise the limit on file sizes (ulimit -f)"),
    errno.EROFS: ("the file system is read-only", "choose a folder that you can write to"),
    errno.EACCES: ("permission denied", "choose a folder that you can write to"),
    errno.EPERM: ("permission denied", "choose a folder that you can write to"),
    errno.ENOTDIR: ("a part of the path is a file, not a folder", "choose another folder"),
    errno.EISDIR: ("it is a folder, not a file", "choose another name"),
}


def file_error(error: OSError, path: Path, verb: str = "write") -> NasplatError:
    """What the operating system refused, in words, with advice."""
    reason, advice = _ADVICE.get(error.errno or 0, (error.strerror or str(error), ""))
    return NasplatError(f"cannot {verb} {path}: {reason}", advice)


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """A temporary path beside `path` to write to; it takes its place when the block ends well.

    What is written is flushed to the disk before it is renamed, so that neither a killed process nor a power cut
    leaves half a file; the earlier file stays until then.

    Raises:
        NasplatError: the disk is full, or the folder cannot be written to.
    """
    temporary = _temporary(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        _flush(temporary)
        temporary.replace(path)
        _flush(path.parent)
    except OSError as error:
        raise file_error(error, path) from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """A temporary folder beside `path` to fill; it takes the place of `path` when the block ends well.

    Raises:
        NasplatError: the disk is full, or the folder cannot be written to.
    """
    temporary, old = _temporary(path), _temporary(path)
    try:
        temporary.mkdir(parents=True)
        yield temporary
        for file in [*temporary.rglob("*"), temporary]:
            _flush(file)
        if path.exists():
            path.replace(old)
        try:
            temporary.replace(path)
        except OSError:
            if old.exists():
                old.replace(path)
            raise
        _flush(path.parent)
        shutil.rmtree(old, ignore_errors=True)
    except OSError as error:
        raise file_error(error, path) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def write_bytes(path: Path, data: bytes) -> None:
    """Writes a file whole or not at all. Raises NasplatError as `atomic_file` does."""
    with atomic_file(path) as temporary:
        temporary.write_bytes(data)


def write_text(path: Path, text: str) -> None:
    """Writes UTF-8 text whole or not at all. Raises NasplatError as `atomic_file` does."""
    write_bytes(path, text.encode())


def write_json(path: Path, data: Any) -> None:
    """Writes readable JSON whole or not at all. Raises NasplatError as `atomic_file` does."""
    write_text(path, json.dumps(data, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def read_text(path: Path) -> str:
    """UTF-8 text of a file. Raises NasplatError: it is missing, unreadable or not text."""
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise NasplatError(f"there is no file {path}") from error
    except UnicodeDecodeError as error:
        raise NasplatError(f"{path} is damaged: it is not text", "delete it, or restore it from a copy") from error
    except OSError as error:
        raise file_error(error, path, "read") from error


def read_json(path: Path) -> Any:
    """The JSON of a file. Raises NasplatError: it is missing, unreadable or damaged."""
    try:
        return json.loads(read_text(path))
    except ValueError as error:
        raise NasplatError(f"{path} is damaged: {error}", "delete it, or restore it from a copy") from error


def _temporary(path: Path) -> Path:
    """An unused name beside `path`; what killed processes left there long ago is removed."""
    if path.parent.is_dir():
        for leftover in path.parent.glob(f".{path.name}.*{_PARTIAL}"):
            with suppress(OSError):
                if time.time() - leftover.stat().st_mtime > _LEFTOVER_SECONDS:
                    shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()
    return path.parent / f".{path.name}.{uuid.uuid4().hex[:8]}{_PARTIAL}"


def _flush(path: Path) -> None:
    if path.is_dir() and os.name == "nt":  # folders cannot be flushed there
        return
    descriptor = os.open(path, os.O_RDONLY if os.name != "nt" else os.O_RDWR)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if not (path.is_dir() and error.errno == errno.EINVAL):  # some file systems cannot flush folders
            raise
    finally:
        os.close(descriptor)
