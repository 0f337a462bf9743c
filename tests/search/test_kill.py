"""A search may be killed at any moment: `--resume` finishes it, loses no finished trial, and trains none twice."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

RANDOM_KILLS = {"inline": 40, "processes": 36, "early stopping": 40}
AT_LEAST = 50  # in each


def campaign(directory: Path, executor: str) -> dict[str, Any]:
    code = "from tests.search.kill_campaign import main; main()"
    arguments = [str(directory), executor, "0", str(RANDOM_KILLS[executor])]
    result = subprocess.run(
        [sys.executable, "-c", code, *arguments], cwd=Path(__file__).parents[2], capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    report: dict[str, Any] = json.loads(result.stdout)
    return report


@pytest.mark.parametrize("executor", RANDOM_KILLS)
def test_resume_finishes_what_was_killed(executor: str, tmp_path: Path) -> None:
    """Kills before, within and after a write, an ask, a tell, a checkpoint, a record, and at random."""
    report = campaign(tmp_path, executor)
    assert report["kills"] >= AT_LEAST
    assert report["lost"] == []
    assert report["changed"] == []  # a second run would have written the record anew
    assert report["resumed"] > 0  # trials went on from their checkpoints
    for search in report["searches"]:
        assert search == report["whole"]  # the proposals and results of the uninterrupted search
