"""A killed process, a full disk or a wrong folder must never cost a file that was there."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from nasplat.artifacts import files
from nasplat.artifacts.files import atomic_file, atomic_folder, read_json, write_json, write_text
from nasplat.core.errors import NasplatError


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_json_round_trip_makes_folders(tmp_path: Path) -> None:
    write_json(tmp_path / "new" / "a.json", {"é": [1, 2.5, None]})
    assert read_json(tmp_path / "new" / "a.json") == {"é": [1, 2.5, None]}
    assert names(tmp_path / "new") == {"a.json"}


def test_interrupted_write_keeps_the_earlier_file(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    write_text(path, "earlier")
    with pytest.raises(KeyboardInterrupt), atomic_file(path) as temporary:
        temporary.write_text("half")
        raise KeyboardInterrupt
    assert path.read_text() == "earlier"
    assert names(tmp_path) == {"a.txt"}


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES])
def test_full_disk_is_told_and_keeps_the_earlier_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    path = tmp_path / "a.txt"
    write_text(path, "earlier")

    def refuse(descriptor: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(files.os, "fsync", refuse)
    with pytest.raises(NasplatError, match=r"a\.txt") as caught:
        write_text(path, "later")
    assert caught.value.advice
    assert path.read_text() == "earlier"
    assert names(tmp_path) == {"a.txt"}


@pytest.mark.skipif(sys.platform == "win32", reason="limits on file sizes are POSIX")
def test_a_write_that_the_system_cuts_off_leaves_nothing_half(tmp_path: Path) -> None:
    """The real thing: the operating system refuses the bytes half-way through the file."""
    code = (
        "import resource, sys; from pathlib import Path\n"
        "from nasplat.artifacts.files import write_bytes; from nasplat.core.errors import NasplatError\n"
        "path = Path(sys.argv[1]); write_bytes(path, b'earlier')\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))\n"
        "try: write_bytes(path, bytes(1_000_000))\n"
        "except NasplatError as error: print(error)\n"
    )
    path = tmp_path / "a.bin"
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True)
    assert "a.bin" in done.stdout
    assert path.read_bytes() == b"earlier"
    assert names(tmp_path) == {"a.bin"}


def test_a_folder_is_replaced_as_a_whole_or_not_at_all(tmp_path: Path) -> None:
    folder = tmp_path / "export"
    with atomic_folder(folder) as temporary:
        write_text(temporary / "one", "1")
    with pytest.raises(ValueError, match="stop"), atomic_folder(folder) as temporary:
        write_text(temporary / "two", "2")
        raise ValueError("stop")
    assert names(folder) == {"one"}
    with atomic_folder(folder) as temporary:
        write_text(temporary / "three", "3")
    assert names(folder) == {"three"}
    assert names(tmp_path) == {"export"}


def test_what_a_killed_process_left_is_cleared_away_later(tmp_path: Path) -> None:
    old, new = tmp_path / ".a.txt.0badcafe.partial", tmp_path / ".a.txt.12345678.partial"
    for leftover in (old, new):
        leftover.write_text("half")
    os.utime(old, (0, 0))
    write_text(tmp_path / "a.txt", "whole")
    assert names(tmp_path) == {"a.txt", new.name}  # a young one may still be written by somebody


@pytest.mark.parametrize(
    ("content", "told"), [(b"{", "damaged"), (b"\xff\xfe\x00", "damaged"), (None, "no file"), (b"", "damaged")]
)
def test_damaged_json_is_an_error_of_the_users(tmp_path: Path, content: bytes | None, told: str) -> None:
    path = tmp_path / "a.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(NasplatError, match=told):
        read_json(path)
