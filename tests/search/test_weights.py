"""The section weights of an experiment: a source trained once, candidates that start from it or are screened by it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from nasplat.artifacts.run_directory import create_run
from nasplat.artifacts.weights import load_weights, read_metadata, save_weights
from nasplat.core.errors import NasplatError
from nasplat.core.experiment import Experiment
from nasplat.jobs.final import final_experiment
from nasplat.search.driver import run_search
from nasplat.search.weight_sources import read_source, supernet
from nasplat.search.weights import source_settings, with_weights_trained

SPACE = {"family": "nasbench201", "cells": [1, 1], "channels": 8}


def experiment(**changes: Any) -> Experiment:
    plain: dict[str, Any] = {
        "space": SPACE,
        "weights": {"train": {"epochs": 3, "lr": 0.1}},
        "train": {"epochs": 0},
        "search": {"strategy": "random", "trials": 4},
    }
    return Experiment.model_validate({**plain, **changes})


def test_candidates_are_scored_with_weights_that_were_trained_once(tmp_path: Path) -> None:
    """Trained for each candidate, or anew on resume, they would cost what they are there to save."""
    wanted = experiment()
    run, said = create_run(tmp_path, wanted), []

    def on_event(event: Any) -> None:
        said.append(getattr(event, "text", ""))

    first = run_search(wanted, run, on_event=on_event)
    assert sum("training the supernet" in text for text in said) == 1
    assert any("epoch 3" in text for text in said)
    assert max(one.metrics["accuracy"] for one in first.front) > 0.15
    assert all(one.metrics.get("train_seconds") == 0 for one in first.front)
    said.clear()
    more = wanted.model_copy(update={"search": wanted.search.model_copy(update={"trials": 5})})
    again = run_search(more, run, resume=True, on_event=on_event)
    assert not any("training the supernet" in text for text in said)
    assert again.history.evaluated == 5


def test_candidates_are_screened_and_then_start_afresh(tmp_path: Path) -> None:
    """As the cheap stage before training; a network that starts from shared weights is no stand-alone truth."""
    changes = {"train": {"epochs": 1}, "search": {"strategy": "random", "trials": 9, "screen": {"by": "weights"}}}
    changes["search"]["screen"] |= {"keep": 0.2, "after": 5}  # type: ignore[index]
    wanted = experiment(**changes)
    plain = wanted.model_copy(update={"weights": None, "search": wanted.search.model_copy(update={"screen": None})})
    screened = run_search(wanted, create_run(tmp_path / "screened", wanted))
    fresh = run_search(plain, create_run(tmp_path / "plain", plain))
    known = {one.digest: one for one in fresh.history.complete}
    pairs = [(one, known[one.digest]) for one in screened.history.complete if one.digest in known]
    assert len(pairs) >= 5 and all(0 <= one.metrics["weights"] <= 1 for one, _ in pairs)
    assert all(one.metrics["accuracy"] == other.metrics["accuracy"] for one, other in pairs)
    assert any(one.state == "screened" and "weights" in one.reason for one in screened.history)


def test_the_final_training_starts_afresh() -> None:
    """In a larger space the source has no weights, and a final accuracy must be the network's own."""
    final = final_experiment(experiment(final={"train": {"epochs": 2}}))
    assert final.weights is None and final.train.epochs == 2
    with pytest.raises(NasplatError, match="would last 0 epochs"):  # a network of chance, with an interval
        final_experiment(experiment())


def test_files_of_another_space_or_version_are_refused(tmp_path: Path) -> None:
    """A generator of another space gives weights that rank by chance."""
    from nasplat.search.evaluate import load_data, load_space_of

    wanted = experiment(weights={"train": {"steps": 2, "epochs": None}})
    data = load_data(wanted.data)
    space = load_space_of(wanted, data)
    trained = with_weights_trained(wanted, space, tmp_path, lambda text: None)
    assert trained.weights is not None and trained.weights.file is not None
    file = Path(trained.weights.file)
    assert read_source(file, space).space_fingerprint == space.fingerprint

    other = experiment(space={**SPACE, "channels": 4}, weights={"file": str(file)})
    with pytest.raises(NasplatError, match="made for the space"):
        with_weights_trained(other, load_space_of(other, data), tmp_path, lambda text: None)
    about = {key: value for key, value in read_metadata(file).items() if key != "sha256"}
    tensors = load_weights(file)
    for changed, message in (({"version": "0"}, "version 0"), ({"source": ""}, "no source of weights")):
        texts = {key: value for key, value in {**about, **changed}.items() if value}
        save_weights(tensors, tmp_path / "old.safetensors", texts)
        with pytest.raises(NasplatError, match=message):
            read_source(tmp_path / "old.safetensors", space)
    (tmp_path / "cut.safetensors").write_bytes(file.read_bytes()[:-9])
    with pytest.raises(NasplatError, match="damaged"):
        read_source(tmp_path / "cut.safetensors", space)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({"options": {"path": 2}}, "path"),
        ({"options": {"rule": "nested"}}, "rule"),
        ({"options": {"rule": "sandwich"}}, "sandwich"),
        ({"train": {"epoch": 2}}, "weights.train.epoch"),
        ({"train": {"epochs": 0}}, "0 epochs"),
        ({"file": "missing.safetensors"}, "missing.safetensors"),
    ],
)
def test_bad_sections_are_told_before_anything_is_trained(tmp_path: Path, weights: Any, message: str) -> None:
    """A typing error must not cost the training of a supernet."""
    wanted = experiment(weights=weights)
    with pytest.raises(NasplatError, match=message):
        run_search(wanted, create_run(tmp_path, wanted))
    assert not (tmp_path / "weights" / "source.safetensors").exists()


def test_overrides_replace_the_budget() -> None:
    """Epochs of the candidates beside steps of the source would be two budgets."""
    wanted = experiment(train={"epochs": 2}, weights={"train": {"steps": 7, "lr": 0.3}})
    assert wanted.weights is not None
    settings = source_settings(wanted.train, supernet(), wanted.weights.train)
    assert settings.steps == 7 and settings.epochs is None and settings.lr == 0.3


def test_a_screen_without_a_source_is_refused() -> None:
    """It would be found out after a night of training."""
    with pytest.raises(ValueError, match="section weights"):
        Experiment.model_validate({"space": SPACE, "search": {"screen": {"by": "weights"}}})
    assert "weights" in json.dumps(Experiment.model_json_schema())
