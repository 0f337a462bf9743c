"""The whole of a search: what it leaves, how it goes on, what it refuses."""

import csv
from pathlib import Path

import pytest

from nasplat.artifacts.run_directory import create_run
from nasplat.core.errors import NasplatError
from nasplat.core.experiment import Experiment
from nasplat.jobs.runs import discard, open_run
from nasplat.jobs.search import prepare
from tests.jobs.small import EXPERIMENT, search, write


def test_a_search_leaves_a_front_a_report_and_weights_of_the_front_only(tmp_path: Path) -> None:
    outcome = search(tmp_path, export="best")
    run = open_run(tmp_path / "run")
    assert outcome.complete == len(run.candidates) == 4
    assert [score.notes["number"] for score in outcome.front] == [one.number for one in run.front]
    on_front = {one.number for one in run.front}
    for candidate in run.candidates:
        assert candidate.folder.weights.exists() == (candidate.number in on_front)
        assert candidate.folder.architecture.exists() and candidate.folder.record.exists()
    with (tmp_path / "run/front.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [int(row["trial"]) for row in rows] == [one.number for one in run.front]
    assert rows[0]["export_path"] == f"exports/{run.front[0].name}"
    assert (tmp_path / "run/front/front.svg").exists() or len(run.goals) < 2
    assert f"exports/{run.front[0].name}/model.onnx" in (tmp_path / "run/report.html").read_text()
    assert {path.name for path in outcome.paths["export"].iterdir()} >= {"model.onnx", "README.md", "architecture.json"}


def test_a_run_is_not_overwritten_but_extended_with_resume(tmp_path: Path) -> None:
    search(tmp_path)
    before = open_run(tmp_path / "run")
    with pytest.raises(NasplatError, match="holds a search already") as caught:
        prepare(write(tmp_path), tmp_path / "run")
    assert "--resume" in caught.value.advice and "--run" in caught.value.advice
    outcome = search(tmp_path, "search.trials=6", resume=True)
    after = open_run(tmp_path / "run")
    assert outcome.complete == 6
    assert [one.architecture for one in after.candidates[:4]] == [one.architecture for one in before.candidates]
    assert after.experiment.search.trials == 6


def test_a_run_directory_is_enough_to_go_on(tmp_path: Path) -> None:
    search(tmp_path)
    (tmp_path / "small.yaml").unlink()
    prepared = prepare(tmp_path / "run", None, resume=True, overrides=["search.trials=5"])
    assert prepared.directory == tmp_path / "run"
    assert prepared.experiment.search.trials == 5


def test_another_experiment_is_refused_and_leaves_the_run_as_it_was(tmp_path: Path) -> None:
    search(tmp_path)
    before = (tmp_path / "run/experiment.yaml").read_text()
    with pytest.raises(NasplatError, match=r"train\.lr was 0\.05, and is now 0\.5"):
        search(tmp_path, "train.lr=0.5", "search.trials=9", resume=True)
    with pytest.raises(NasplatError, match=r"space\.channels was 4, and is now 8"):
        search(tmp_path, "space.channels=8", "search.trials=9", resume=True)
    assert (tmp_path / "run/experiment.yaml").read_text() == before


def test_a_folder_with_other_files_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos/cat.jpg").write_bytes(b"")
    with pytest.raises(NasplatError, match="holds other files"):
        prepare(write(tmp_path), tmp_path / "photos")


def test_without_run_the_name_says_where(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert prepare(write(tmp_path), None).directory == Path("runs/small")


def test_constraints_that_nothing_meets_are_answered_with_advice(tmp_path: Path) -> None:
    with pytest.raises(NasplatError, match="constraint") as caught:
        search(tmp_path, "search.constraints={params: {max: 10}}")
    assert caught.value.advice


@pytest.mark.parametrize(
    "mistake",
    [
        "search.constraints={params: {max: 10}}",  # nothing meets it
        "train.lr=1e30",  # every candidate diverges
        "data.labels=false",  # accuracy without labels
        "train.objective=nowhere:focal",
    ],
)
def test_an_experiment_that_came_to_nothing_can_be_mended_and_started_again(tmp_path: Path, mistake: str) -> None:
    """Or a person would have to find out which folder to delete."""
    with pytest.raises(NasplatError):
        search(tmp_path, mistake)
    outcome = search(tmp_path)
    assert outcome.complete == 4 and [one.number for one in open_run(tmp_path / "run").history] == [0, 1, 2, 3]


def test_a_trial_with_a_checkpoint_is_not_thrown_away(tmp_path: Path) -> None:
    with pytest.raises(NasplatError):
        search(tmp_path, "train.lr=1e30")
    folder = next(open_run(tmp_path / "run").files.trial_folders())
    folder.record.unlink()
    folder.checkpoint.mkdir()
    with pytest.raises(NasplatError, match="holds a search already"):
        prepare(write(tmp_path), tmp_path / "run")


def test_a_search_without_a_front_says_what_came_nearest(tmp_path: Path) -> None:
    with pytest.raises(NasplatError, match="4 against the constraints: there is no front") as caught:
        search(tmp_path, "search.constraints={accuracy: {min: 1.5}}")
    assert "is below 1.5" in caught.value.advice and "the nearest was trial" in caught.value.advice
    assert (tmp_path / "run/report.html").exists()
    with pytest.raises(NasplatError, match="holds a search already"):  # four networks were trained
        prepare(write(tmp_path), tmp_path / "run")


def test_what_was_exported_is_not_exported_again(tmp_path: Path) -> None:
    first = search(tmp_path, export="best").paths["export"] / "model.onnx"
    made = first.stat().st_mtime_ns
    again = search(tmp_path, export="best", resume=True).paths["export"] / "model.onnx"
    assert again == first and again.stat().st_mtime_ns == made


def test_functions_beside_the_experiment_are_found_from_its_run_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "beside.py").write_text("def size(network, dataset, device):\n    return 1.0\n")
    (tmp_path / "elsewhere").mkdir()
    text = EXPERIMENT + 'score: {minimise: [macs, "beside:size"]}\n'
    path = write(tmp_path, text)
    from nasplat.jobs.search import run_and_report

    run_and_report(prepare(path, tmp_path / "run"), export="none", on_event=lambda event: None, say=print)
    import sys

    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry != str(tmp_path)])
    monkeypatch.chdir(tmp_path / "elsewhere")
    open_run(tmp_path / "run")
    assert str(tmp_path) in sys.path


def test_a_run_that_is_begun_anew_forgets_what_was_made_before_it(tmp_path: Path) -> None:
    """Weights that were trained by other settings would be taken for those of these."""
    files = create_run(tmp_path / "run", Experiment.model_validate({"space": {"family": "nasbench201"}}))
    for name in ("weights", "produced", "single_tasks", "check", "trials", "exports"):
        (files.root / name).mkdir(exist_ok=True)
    discard(files.root)
    assert {path.name for path in files.root.iterdir() if path.is_dir()} == {"exports"}
