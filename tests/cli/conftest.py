"""A shell for tests: commands run in this process."""

import sys
from pathlib import Path

import pytest

from nasplat.cli.main import main
from tests.jobs.small import EXPERIMENT


class Shell:
    """Runs commands in this process, in a folder with a small experiment; `code` is the last exit status."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self.monkeypatch, self.capsys = monkeypatch, capsys
        self.code: object = None
        self.error = ""

    def __call__(self, line: str) -> str:
        self.monkeypatch.setattr(sys, "argv", ["nasplat", *line.split()])
        try:
            main()
            self.code = 0
        except SystemExit as end:
            self.code = end.code or 0
        out, self.error = self.capsys.readouterr()
        return out


@pytest.fixture
def shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Shell:
    (tmp_path / "small.yaml").write_text(EXPERIMENT)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")
    return Shell(monkeypatch, capsys)
