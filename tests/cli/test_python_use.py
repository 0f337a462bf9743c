"""What `help(nasplat)` shows works as it stands there."""

import re
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest

import nasplat
from tests.jobs.small import EXPERIMENT


def test_the_lines_of_the_docstring(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "experiments").mkdir()
    (tmp_path / "experiments/quickstart.yaml").write_text(EXPERIMENT)  # a smaller one in the quickstart's place
    monkeypatch.chdir(tmp_path)
    found = re.search(r"\n\n(    from .*?)\n\n`choice`", nasplat.__doc__ or "", re.DOTALL)
    assert found
    code = dedent(found[1])
    assert len([line for line in code.splitlines() if line and "import" not in line]) < 10
    names: dict[str, Any] = {}
    exec(code, names)  # lines of our own
    run, network = names["run"], names["network"]
    assert len(capsys.readouterr().out.splitlines()) == len(run.front) >= 1
    parameters = sum(parameter.numel() for parameter in network.parameters())
    assert parameters == run.front[0].metrics["params"]
    from nasplat.artifacts.weights import load_weights

    weights = load_weights(run.front[0].folder.weights)
    assert all(value.equal(weights[name]) for name, value in network.state_dict().items())
