"""Commands that are told to type next work for whoever reads them, however nasplat was called."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from nasplat.jobs.command import command

ROOT = Path(__file__).resolve().parents[2]


def called(monkeypatch: pytest.MonkeyPatch, *line: str, script: str = "", variable: str = "") -> str:
    """What is told to type next in a process of a command line; `script` is what Python calls its program."""
    monkeypatch.setattr(sys, "orig_argv", list(line))
    monkeypatch.setattr(sys, "argv", [script or line[0], *line[-2:]])
    monkeypatch.setenv("NASPLAT_COMMAND", variable)
    return command("status", "runs/x")


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A `nasplat` that the PATH finds."""
    program = tmp_path / "nasplat"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    return program


def test_the_script_of_a_clone(monkeypatch: pytest.MonkeyPatch) -> None:
    line = ("/clone/.venv/bin/python", "-m", "nasplat", "search", "x.yaml")
    script = "/clone/nasplat/__main__.py"
    assert called(monkeypatch, *line, script=script, variable="scripts/nasplat") == "scripts/nasplat status runs/x"
    assert called(monkeypatch, *line, script=script, variable="my clone/np") == "'my clone/np' status runs/x"


def test_a_module_of_python(monkeypatch: pytest.MonkeyPatch) -> None:
    line = ("python3", "-X", "utf8", "-m", "nasplat", "search", "x.yaml")
    assert called(monkeypatch, *line, script="/lib/nasplat/__main__.py") == "python3 -X utf8 -m nasplat status runs/x"


def test_an_installed_command(installed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert called(monkeypatch, "python", str(installed), "a", "b", script=str(installed)) == "nasplat status runs/x"
    other = "other/bin/nasplat"
    assert called(monkeypatch, "python", other, "a", "b", script=other) == "other/bin/nasplat status runs/x"


def test_another_program_that_uses_nasplat(monkeypatch: pytest.MonkeyPatch) -> None:
    assert called(monkeypatch, "python", "mine.py", "a", "b", script="mine.py") == "nasplat status runs/x"


def test_paths_with_spaces_are_quoted(monkeypatch: pytest.MonkeyPatch) -> None:
    called(monkeypatch, "nasplat", "a", "b")
    assert command("train", Path("my runs/x"), "--top", 3) == "nasplat train 'my runs/x' --top 3"


def test_the_command_line_uses_it(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "NASPLAT_COMMAND": "scripts/nasplat"}
    done = subprocess.run(
        [sys.executable, "-m", "nasplat", "search"], env=environment, cwd=tmp_path, capture_output=True, text=True
    )
    assert "usage: scripts/nasplat search" in done.stderr
    assert "for example: scripts/nasplat search experiments/quickstart.yaml" in done.stderr
