"""The confirmation: what a person would publish is measured on test images, with new seeds, and never made twice."""

from pathlib import Path

import pytest

from nasplat.core.errors import NasplatError
from nasplat.jobs.confirmation import estimate, read_confirmation
from nasplat.jobs.export import export
from nasplat.jobs.runs import open_run
from nasplat.jobs.train import Watcher, train


def trained(run: Path, **settings: object) -> tuple[list[tuple[int, int]], int]:
    """(total, done before) of every start, and how many trainings ended now."""
    starts: list[tuple[int, int]] = []
    ended: list[int] = []
    watcher = Watcher(
        on_start=lambda total, done: starts.append((total, done)),
        on_finished=lambda number, record: ended.append(number),
    )
    train(run, watcher=watcher, **settings)  # type: ignore[arg-type]
    return starts, len(ended)


def test_top_and_seeds_are_trained_scored_and_written(run: Path) -> None:
    starts, ended = trained(run, top=2, seeds=2)
    found = read_confirmation(open_run(run).files)
    assert found is not None
    count = len(found.rows)
    assert starts == [(2 * count, 0)] and ended == 2 * count
    searched = {one.number: one for one in open_run(run).candidates}
    for row in found.rows:
        estimate_of_test = row.metrics["test_accuracy"]
        assert len(estimate_of_test.values) == 2
        assert estimate_of_test.low is not None and estimate_of_test.high is not None
        assert estimate_of_test.low <= estimate_of_test.mean <= estimate_of_test.high
        assert row.costs["params"] > searched[row.trial].metrics["params"], "final.space makes them larger"
        assert (run / row.weights).exists()
        kept = list((run / row.weights).parent.parent.glob("*/weights.safetensors"))
        assert len(kept) == 1, "the weights of one seed are enough"
    table = (run / "confirmation.csv").read_text()
    assert "test_accuracy_low" in table and len(table.splitlines()) == count + 1
    assert "Trained again" in (run / "report.html").read_text()
    assert (run / "front/confirmed.svg").exists()


def test_two_processes_train_one_network_together(run: Path) -> None:
    """Who has two GPUs expects both to be used, and the same files at the end."""
    starts, ended = trained(run, overrides=["run.processes=2"])
    found = read_confirmation(open_run(run).files)
    assert found is not None and starts == [(1, 0)] and ended == 1
    assert not found.rows[0].failures and (run / found.rows[0].weights).exists()
    assert 0 <= found.rows[0].metrics["test_accuracy"].mean <= 1
    with pytest.raises(NasplatError, match="cannot be divided"):
        train(run, overrides=["run.processes=3", "final.train.lr=0.01"])


def test_more_than_the_front_has_is_told(run: Path) -> None:
    said: list[str] = []
    train(run, top=50, watcher=Watcher(say=said.append))
    count = len(open_run(run).front)
    assert len(said) == 1 and said[0].startswith(f"the front has {count} network") and "not 50" in said[0]
    train(run, top=count, watcher=Watcher(say=said.append))
    assert len(said) == 1


def test_what_is_done_is_not_done_again_and_other_settings_are_apart(run: Path) -> None:
    trained(run, seeds=1)
    first = read_confirmation(open_run(run).files)
    starts, ended = trained(run, seeds=2)
    assert (starts, ended) == ([(2, 1)], 1)
    second = read_confirmation(open_run(run).files)
    assert first is not None and second is not None
    assert second.rows[0].metrics["test_accuracy"].values[0] == first.rows[0].metrics["test_accuracy"].values[0]
    starts, ended = trained(run, seeds=1, overrides=["final.train.steps=3"])
    assert (starts, ended) == ([(1, 0)], 1)


def test_seeds_are_new_ones(run: Path) -> None:
    from nasplat.search.seeds import candidate_seed

    trained(run, seeds=3)
    found = read_confirmation(open_run(run).files)
    assert found is not None
    row = found.rows[0]
    assert len(set(row.seeds)) == 3
    assert candidate_seed(0, row.digest) not in row.seeds


def test_the_network_that_was_trained_again_can_be_exported(run: Path) -> None:
    with pytest.raises(NasplatError, match="no full training yet"):
        export(run, final=True)
    trained(run)
    (folder,) = export(run, final=True, formats=("onnx",))
    assert folder.name.endswith("-final")
    card = (folder / "README.md").read_text()
    assert "Test accuracy" in card


def test_only_final_settings_can_be_changed(run: Path) -> None:
    with pytest.raises(NasplatError, match="only final and run"):
        train(run, overrides=["search.trials=3"])
    with pytest.raises(NasplatError, match="no key 'stepz'") as caught:
        train(run, overrides=["final.train.stepz=3"])
    assert "steps" in caught.value.advice


def test_a_final_space_with_other_choices_is_refused(run: Path) -> None:
    with pytest.raises(NasplatError, match="cannot be rebuilt"):
        train(run, overrides=["final.space.operations=[none, conv_1x1]"])


def test_estimates_are_those_of_students_t() -> None:
    found = estimate([0.90, 0.92, 0.94])
    assert found.mean == pytest.approx(0.92)
    assert found.low == pytest.approx(0.92 - 4.302653 * 0.02 / 3**0.5, abs=1e-6)
    assert estimate([0.9]).low is None
    assert estimate([1.0, 0.5], share=True).high == 1.0
