"""File locks that the operating system takes from a process when it dies, however it dies."""

from __future__ import annotations

import errno
import os
import time
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows has no flock; there a lock is always granted.
    fcntl = None  # type: ignore[assignment]

# A file system without locks (some network mounts): as if nobody else were there.
_WITHOUT_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP}


def lock(descriptor: int, *, shared: bool = False, timeout: float = 0.0) -> bool:
    """Locks an open file against other processes.

    Args:
        descriptor: of the open file; closing it gives the lock back.
        shared: several may hold a shared lock, and nobody an exclusive one meanwhile.
        timeout: seconds to wait for the present holder.

    Returns:
        whether the lock was granted.
    """
    if fcntl is None:
        return True
    deadline = time.monotonic() + timeout
    pause = 0.001
    while True:
        try:
            fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
            return True
        except OSError as error:
            if error.errno in _WITHOUT_LOCKS:
                return True
            if error.errno not in (errno.EAGAIN, errno.EACCES):
                raise
        if time.monotonic() >= deadline:
            return False
        time.sleep(pause)
        pause = min(2 * pause, 0.05)


class FileLock:
    """An exclusive or shared lock on a file of its own, held until `release` or the process's end."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._descriptor: int | None = None

    def acquire(self, *, shared: bool = False, timeout: float = 0.0) -> bool:
        """Whether the lock was granted. A shared lock on a file that is there needs no permission to write."""
        try:
            descriptor = os.open(self.path, os.O_RDONLY if shared else os.O_RDWR | os.O_CREAT, 0o666)
        except FileNotFoundError:
            descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o666)
        if not lock(descriptor, shared=shared, timeout=timeout):
            os.close(descriptor)
            return False
        self._descriptor = descriptor
        return True

    def write(self, text: str) -> None:
        """Leaves a note for those who find the file locked."""
        assert self._descriptor is not None
        os.ftruncate(self._descriptor, 0)
        os.pwrite(self._descriptor, text.encode(), 0)

    def release(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None
