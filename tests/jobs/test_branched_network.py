"""What a person does with a network for several tasks that a search found: export parts of it, prune it, load it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from nasplat.core.distillation import Network
from nasplat.core.errors import NasplatError
from nasplat.jobs.export import export
from nasplat.jobs.prune import prune
from nasplat.jobs.runs import open_run
from nasplat.jobs.search import prepare, run_and_report
from nasplat.jobs.settings_file import load_pruning
from nasplat.jobs.trained import open_network

EXPERIMENT = """\
name: tasks
space:
  family: branching
  backbone:
    space:
      family: mbconv
      stem_channels: 8
      stages: [{channels: 8, stride: 1, layers: 1}, {channels: 16, stride: 2, layers: 1}]
      operations: [mb_k3_e3]
      last_channels: 0
data: {tasks: [labels, rotation, jigsaw], train_size: 300}
train: {steps: 4, augment: []}
score: {maximise: [labels.accuracy], minimise: [macs]}
search: {strategy: random, trials: 2}
run: {device: cpu}
"""


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tasks")
    (folder / "tasks.yaml").write_text(EXPERIMENT)
    prepared = prepare(folder / "tasks.yaml", folder / "run", resume=False, overrides=())
    run_and_report(prepared, export="none")
    return folder / "run"


def loaded(folder: Path) -> str:
    """Runs load.py as one who has these files, and torch, and nasplat's function that makes the original."""
    code = (
        "import json, torch; from load import load; network = load(); outputs = network(torch.ones(2, 1, 8, 8)); "
        "named = outputs if isinstance(outputs, dict) else {'': outputs}; "
        "print(json.dumps({name: one.tolist() for name, one in named.items()}))"
    )
    return subprocess.run(
        [sys.executable, "-c", code], cwd=folder, check=True, capture_output=True, text=True
    ).stdout.splitlines()[-1]


def test_one_task_is_exported_alone_and_others_are_dropped(run: Path) -> None:
    """A device that needs one task must not carry the others; its answers are those of the whole network."""
    import onnxruntime

    trial = open_run(run).front[0].number
    whole = open_network(Network(model=f"{run}/{trial}"))
    images = torch.ones(2, 1, 8, 8)
    with torch.no_grad():
        wanted = whole.module(images)
    for tasks in (("rotation",), ("labels", "jigsaw")):
        (folder,) = export(run / str(trial), tasks=tasks)
        assert folder.name.endswith("-".join(tasks))
        weights = load_file(folder / "weights.safetensors")
        assert sum(one.numel() for one in weights.values()) < sum(
            one.numel() for one in whole.module.state_dict().values()
        )
        session = onnxruntime.InferenceSession(folder / "model.onnx")
        assert [one.name for one in session.get_outputs()] == list(tasks)
        for name, found in zip(tasks, session.run(None, {"images": images.numpy()}), strict=True):
            np.testing.assert_allclose(found, wanted[name], atol=1e-5)
        again = json.loads(loaded(folder))
        assert set(again) == ({""} if len(tasks) == 1 else set(tasks))
        np.testing.assert_allclose(next(iter(again.values())), wanted[tasks[0]], atol=1e-5)
        card = (folder / "README.md").read_text()
        assert "rotation: accuracy" in card or len(tasks) == 2
        assert not any(f"{other}: accuracy" in card for other in {"labels", "rotation", "jigsaw"} - set(tasks))


def test_a_task_that_is_not_there_is_refused(run: Path) -> None:
    with pytest.raises(NasplatError, match="no task 'rotatoin'") as caught:
        export(run, tasks=("rotatoin",))
    assert "rotation" in (caught.value.advice or "")


def test_an_architecture_of_a_search_is_pruned_by_its_name(run: Path, tmp_path: Path) -> None:
    """Nobody should have to write the function that makes a network which nasplat itself found."""
    trial = open_run(run).front[0].number
    settings = load_pruning(
        None,
        [
            f"model={run}/{trial}",
            "budget.macs=0.6",
            "importance.criterion=taylor",
            "importance.images=64",
            "device=cpu",
        ],
    )
    assert settings.name == f"run-{trial}"
    outcome = prune(settings, tmp_path / "pruned")
    first, last = outcome.pruned.stages
    assert set(first.metrics) == {"labels.accuracy", "rotation.accuracy", "jigsaw.accuracy"} and last.macs < first.macs
    page = (tmp_path / "pruned/report.html").read_text()
    assert all(f"{task}: accuracy" in page for task in ("labels", "rotation", "jigsaw"))
    with torch.no_grad():
        wanted = outcome.pruned.module(torch.ones(2, 1, 8, 8))
    again = json.loads(loaded(tmp_path / "pruned/network"))
    for name, one in wanted.items():
        np.testing.assert_allclose(again[name], one, atol=1e-5)
    resumed = prune(settings, tmp_path / "pruned")
    assert resumed.pruned.stages[-1].macs == last.macs
    with pytest.raises(NasplatError, match="no evaluated architecture '77'"):
        prune(load_pruning(None, [f"model={run}/77", "budget.macs=0.6"]), tmp_path / "other")
