"""The evaluation of real candidates on real images: what a search believes of them comes from here."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nasplat.artifacts.run_directory import RunDirectory, create_run
from nasplat.artifacts.weights import load_into
from nasplat.core.errors import NasplatError
from nasplat.core.experiment import Experiment
from nasplat.search.driver import Result, run_search
from nasplat.search.evaluate import build, evaluate, load_data, load_space_of
from nasplat.search.records import Record, TrialSpec, run_trial
from nasplat.search.run_files import RunFiles

pytestmark = pytest.mark.timeout(120)


def experiment(**sections: Any) -> Experiment:
    plain: dict[str, Any] = {
        "name": "digits",
        "space": {"family": "nasbench201", "cells": 1, "channels": 4},
        "data": {"source": "digits", "train_size": 256},
        "train": {"steps": 4, "batch_size": 64},
        "search": {"strategy": "random", "trials": 4},
    }
    for name, section in sections.items():
        plain[name] = {**plain.get(name, {}), **section}
    return Experiment.model_validate(plain)


def spec(directory: Path, chosen: Experiment, number: int = 0) -> TrialSpec:
    space = load_space_of(chosen, load_data(chosen.data))
    architecture = space.sample(np.random.default_rng(number))
    return TrialSpec(number, chosen.model_dump(mode="json"), architecture.to_json(), 7, str(directory), "cpu", 1)


def search(directory: Path, chosen: Experiment, **options: Any) -> Result:
    return run_search(chosen, create_run(directory, chosen), **options)


def outcome(result: Result) -> dict[str, Any]:
    """Everything but time."""
    return {
        one.digest: (one.state, {k: v for k, v in one.metrics.items() if k != "train_seconds"})
        for one in result.history
    }


def test_a_candidate_is_trained_scored_and_kept(tmp_path: Path) -> None:
    chosen = experiment()
    one = spec(tmp_path / "trial", chosen)
    progress: list[Any] = []
    record = run_trial(evaluate, one, progress.append)
    assert record.state == "complete", record.reason
    space = load_space_of(chosen, load_data(chosen.data))
    architecture = space.canonical(one.architecture["values"])
    cost = space.cost(architecture)
    assert (record.metrics["macs"], record.metrics["params"]) == (cost.macs, cost.params)
    assert record.metrics["peak_bytes"] == cost.peak_bytes
    assert 0 <= record.metrics["accuracy"] <= 1
    assert record.metrics["loss"] > 0
    assert record.metrics["train_seconds"] > 0
    assert "latency" not in record.metrics  # it is measured on request only
    assert progress[-1]["step"] == 4
    load_into(build(space, architecture, 0), tmp_path / "trial" / "weights.safetensors", architecture.digest)
    assert json.loads((tmp_path / "trial" / "architecture.json").read_text()) == architecture.to_json()


def test_the_same_seed_gives_the_same_score_in_inline_and_processes(tmp_path: Path) -> None:
    inline = search(tmp_path / "inline", experiment())
    processes = search(tmp_path / "processes", experiment(run={"executor": "processes", "workers": 2}))
    assert outcome(inline) == outcome(processes)
    assert len(inline.history.complete) == 4


def test_latency_is_a_goal_like_any_other(tmp_path: Path) -> None:
    result = search(tmp_path, experiment(score={"minimise": ["latency"]}, search={"trials": 2}))
    assert all(one.metrics["latency"] > 0 for one in result.history.complete)
    assert result.front


def test_a_measured_constraint_makes_a_candidate_infeasible_after_its_training(tmp_path: Path) -> None:
    chosen = experiment(search={"constraints": {"accuracy": {"min": 0.999}}})
    record = run_trial(evaluate, spec(tmp_path, chosen), lambda fields: None)
    assert record.state == "infeasible"
    assert "accuracy" in record.reason
    assert record.violations["accuracy.min"] > 0


def test_a_violated_cost_is_refused_before_anything_trains(tmp_path: Path) -> None:
    chosen = experiment(search={"constraints": {"params": {"max": 1}}})
    record = run_trial(evaluate, spec(tmp_path, chosen), lambda fields: pytest.fail("it was trained"))
    assert record.state == "infeasible"
    assert "params" in record.reason


def test_divergence_fails_the_trial_with_its_reason(tmp_path: Path) -> None:
    chosen = experiment(train={"lr": 1e20, "clip_norm": None, "steps": 8})
    record = run_trial(evaluate, spec(tmp_path, chosen), lambda fields: None)
    assert record.state == "failed"
    assert record.reason


@pytest.mark.parametrize(
    "sections", [{"score": {"minimise": ["params", "flopps"]}}, {"search": {"constraints": {"param": {"max": 9}}}}]
)
def test_a_metric_that_nothing_measures_is_an_error_not_forty_failures(tmp_path: Path, sections: Any) -> None:
    with pytest.raises(NasplatError, match=r"nothing measures '(flopps|param)'") as error:
        search(tmp_path, experiment(**sections))
    assert "params" in error.value.advice


def test_an_interrupted_trial_goes_on_to_the_same_score(tmp_path: Path) -> None:
    """Killed in the middle, a candidate must not score otherwise than if it had not been."""
    chosen = experiment(train={"steps": 6, "checkpoint_seconds": 1e-6})
    whole = run_trial(evaluate, spec(tmp_path / "whole", chosen), lambda fields: None)

    class Killed(BaseException):
        pass

    checkpoint = tmp_path / "killed" / "checkpoint"

    def kill(fields: Any) -> None:
        if checkpoint.exists():
            raise Killed

    with pytest.raises(Killed):
        run_trial(evaluate, spec(tmp_path / "killed", chosen), kill)
    again = run_trial(evaluate, spec(tmp_path / "killed", chosen), lambda fields: None)
    assert again.metrics["accuracy"] == whole.metrics["accuracy"]
    assert again.metrics["loss"] == whole.metrics["loss"]


def test_weights_are_kept_of_the_front_only_and_within_the_budget(tmp_path: Path, monkeypatch: Any) -> None:
    result = search(tmp_path, experiment(search={"trials": 5}))
    run = RunDirectory(tmp_path)
    kept = {folder.number for folder in run.trial_folders() if folder.weights.exists()}
    assert kept == {score.notes["number"] for score in result.front}
    assert not any(folder.checkpoint.exists() for folder in run.trial_folders())
    assert run.read_state()["status"] == "trials"
    lines = run.front_csv.read_text().splitlines()
    assert len(lines) == 1 + len(result.front)
    assert "accuracy" in lines[0]

    lost = RunFiles(run, disk_mb=0).update(result.history, result.front, 0, 1.0, "done")
    assert len(lost) == len(result.front) - 1  # the best is never given up
    assert RunFiles(run, disk_mb=0).update(result.history, result.front, 0, 1.0, "done") == []


def test_a_record_is_plain_json(tmp_path: Path) -> None:
    record = run_trial(evaluate, spec(tmp_path, experiment()), lambda fields: None)
    assert Record(**json.loads((tmp_path / "record.json").read_text())) == record
