"""Every example of the README works as it stands: a first-time user copies them before anything else."""

import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from nasplat.jobs.distill import distill
from nasplat.jobs.prune import prune
from nasplat.jobs.search import prepare, run_and_report
from nasplat.jobs.settings_file import load_distillation, load_pruning

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCK = re.compile(r"<!-- file: (?P<name>[\w.]+) -->\n```(?:yaml|python|csv)\n(?P<text>.*?)```", re.DOTALL)
FILES = {match["name"]: match["text"] for match in BLOCK.finditer(README)}
PRUNINGS = sorted(name for name, text in FILES.items() if name.endswith(".yaml") and text.startswith("model:"))
DISTILLATIONS = sorted(name for name, text in FILES.items() if name.endswith(".yaml") and text.startswith("student:"))
EXPERIMENTS = sorted(name for name in FILES if name.endswith(".yaml") and name not in (*PRUNINGS, *DISTILLATIONS))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    for name, text in FILES.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    scope: dict[str, Any] = {}
    exec(FILES["my_model.py"], scope)
    torch.save(scope["digits_net"]().state_dict(), tmp_path / "my.pth")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    yield tmp_path
    for name in FILES:  # or another test's module of the same name would be this one
        sys.modules.pop(Path(name).stem, None)


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_an_experiment_of_the_readme_searches(folder: Path, name: str) -> None:
    small = ["search.trials=2", "run.executor=inline", "run.device=cpu"]
    if "tabular" not in FILES[name]:
        small += ["train.steps=2", "train.batch_size=16"]
    if "weights:\n" in FILES[name]:
        small += ["weights.train={steps: 2}"]
    prepared = prepare(folder / name, None, overrides=small)
    outcome = run_and_report(prepared, export="none", on_event=lambda event: None, say=lambda message: None)
    assert outcome.complete == 2
    assert outcome.front
    assert (folder / outcome.paths["report"]).stat().st_size > 100_000


@pytest.mark.parametrize("name", PRUNINGS)
def test_a_pruning_of_the_readme_prunes(folder: Path, name: str) -> None:
    small = ["train.steps=2", "train.batch_size=16", "sparsity.train={steps: 2}", "device=cpu"]
    outcome = prune(load_pruning(folder / name, small), folder / "runs/it")
    stages = outcome.pruned.stages
    assert [stage.title for stage in stages] == ["original", "sparse", "step 1", "step 2"]
    assert 0.3 < stages[-1].macs / stages[0].macs <= 0.4
    assert (folder / "runs/it/network/model.onnx").exists() and outcome.paths["report"].exists()


@pytest.mark.parametrize("name", DISTILLATIONS)
def test_a_distillation_of_the_readme_teaches(folder: Path, name: str) -> None:
    small = ["train.steps=2", "train.batch_size=16", "device=cpu"]
    outcome = distill(load_distillation(folder / name, small), folder / "runs/it")
    assert outcome.rows[-1].title == "student" and (folder / "runs/it/network/model.onnx").exists()


def test_every_block_with_code_is_one_of_the_tested_files() -> None:
    assert sum(README.count(f"```{kind}") for kind in ("yaml", "python", "csv")) == len(FILES) >= 8


def test_examples_are_as_short_as_promised() -> None:
    for name, text in FILES.items():
        assert len(text.splitlines()) < 20, name


def test_every_command_of_the_readme_exists() -> None:
    from nasplat.cli.main import app

    lines = re.findall(r"(?:`|^scripts/)(nasplat [^`#\n]+)", README, re.MULTILINE)
    assert len(lines) > 8
    for line in lines:
        _, verb, *rest = shlex.split(line)
        shown = CliRunner().invoke(app, [verb, "--help"], env={"COLUMNS": "200"})
        assert shown.exit_code == 0, verb
        for option in (word for word in rest if word.startswith("--")):
            assert option in shown.output, f"{verb} {option}"


def test_every_path_of_the_readme_exists() -> None:
    for path in re.findall(r"(?:scripts|experiments|search_spaces)/[\w./]*", README):
        assert (ROOT / path).exists(), path


def test_the_hypernetwork_of_the_readme_generates(folder: Path) -> None:
    sys.path.insert(0, str(folder))
    scope: dict[str, Any] = {}
    exec(FILES["my_hypernetwork.py"], scope)
    images, strength = scope["images"], scope["strength"]
    assert torch.equal(scope["network"](images), scope["hyper"](images, condition=strength))
