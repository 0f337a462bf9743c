import shutil
from pathlib import Path

import pytest

from tests.jobs.small import search


@pytest.fixture(scope="session")
def _finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("searched")
    search(folder)
    return folder


@pytest.fixture
def run(_finished: Path, tmp_path: Path) -> Path:
    """The run directory of a small search that is done; a copy of its own for every test."""
    shutil.copytree(_finished, tmp_path / "copy")
    return tmp_path / "copy" / "run"
