"""A graph hypernetwork that is trained on a space of its own, and read again where only its file is known."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from nasplat.artifacts.run_directory import create_run
from nasplat.artifacts.weights import load_weights, read_metadata, save_weights
from nasplat.core.errors import NasplatError
from nasplat.core.experiment import Experiment
from nasplat.core.initialisation import Initialisation
from nasplat.jobs.experiment import load_experiment
from nasplat.jobs.initialise import initialise
from nasplat.search.driver import run_search
from nasplat.search.evaluate import load_data, load_space_of
from nasplat.search.weight_sources import read_source
from nasplat.search.weights import source_file, with_weights_trained
from nasplat.spaces.families import make_space

SPACE = {"family": "nasbench201", "cells": [1], "channels": 4}
DIVERSE = {"family": "diverse", "channels": [4], "cells": [1], "stages": 1, "nodes": 1, "stems": ["conv_3x3"]}
OPTIONS: dict[str, Any] = {"networks": 2, "width": 8, "channels": 4, "kernel": 3}


def experiment(**weights: Any) -> Experiment:
    section = {"source": "graph_hypernetwork", "options": OPTIONS, "train": {"steps": 2}, **weights}
    train, search = {"epochs": 0}, {"strategy": "random", "trials": 2}
    return Experiment.model_validate({"space": SPACE, "weights": section, "train": train, "search": search})


def trained(root: Path, said: list[str], **weights: Any) -> Experiment:
    wanted = experiment(**weights)
    return with_weights_trained(wanted, load_space_of(wanted, load_data(wanted.data)), root, said.append)


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a source that was trained on diverse networks for a search of others."""
    root, said = tmp_path_factory.mktemp("elsewhere"), []
    trained(root, said, options={**OPTIONS, "space": DIVERSE})
    assert "another space" in said[-1]
    return root


def test_a_search_by_weights_that_were_made_for_other_networks(elsewhere: Path, tmp_path: Path) -> None:
    """The paper's use: one hypernetwork, trained on diverse networks once, for any search to come."""
    file = str(source_file(elsewhere))
    wanted, said = experiment(file=file, options={"outside": "warn"}), []
    with pytest.warns(UserWarning, match="a guess"):
        result = run_search(
            wanted, create_run(tmp_path, wanted), on_event=lambda event: said.append(getattr(event, "text", ""))
        )
    assert result.history.evaluated == 2 and any("another space" in text for text in said)
    problem = load_data(wanted.data).problem
    alone: Any = read_source(Path(file))
    assert alone.space_fingerprint == make_space(DIVERSE, problem).fingerprint != make_space(SPACE, problem).fingerprint


def test_other_spaces_are_refused_where_nobody_asked_for_them(elsewhere: Path, tmp_path: Path) -> None:
    """A ranking by weights for other networks looks like any other ranking."""
    with pytest.raises(NasplatError, match="made for the space") as caught:
        trained(tmp_path, [], file=str(source_file(elsewhere)))
    assert "outside: warn" in caught.value.advice
    with pytest.raises(NasplatError, match="outside is refuse"):
        trained(tmp_path, [], options={**OPTIONS, "space": DIVERSE, "outside": "refuse"})
    with pytest.raises(NasplatError, match="outside"):
        trained(tmp_path, [], options={"outside": "maybe"})
    with pytest.raises(NasplatError, match="no family"):
        trained(tmp_path, [], options={**OPTIONS, "space": {"family": "divers"}})
    assert not source_file(tmp_path).exists()


def test_candidates_start_from_generated_weights(tmp_path: Path) -> None:
    """Trained from there, and in their own space, nothing is refused."""
    wanted = experiment().model_copy(update={"train": experiment().train.model_copy(update={"epochs": 0.2})})
    result = run_search(wanted, create_run(tmp_path, wanted))
    assert all(one.metrics["loss"] > 0 for one in result.history.complete)


def test_files_that_cannot_be_read_alone_are_told(elsewhere: Path, tmp_path: Path) -> None:
    """Of another version, or without the space that they were trained on."""
    file = source_file(elsewhere)
    about = {key: value for key, value in read_metadata(file).items() if key != "sha256"}
    tensors = load_weights(file)
    for changed, message in (({"version": "0"}, "version 0"), ({"spec": ""}, "does not say which space")):
        texts = {key: value for key, value in {**about, **changed}.items() if value}
        save_weights(tensors, tmp_path / "old.safetensors", texts)
        with pytest.raises(NasplatError, match=message):
            read_source(tmp_path / "old.safetensors")


def test_the_space_of_a_source_may_be_a_file(tmp_path: Path) -> None:
    """A run must not need files that may change after it began."""
    (tmp_path / "it.yaml").write_text(
        "space: search_spaces/nasbench201.yaml\n"
        "weights: {source: graph_hypernetwork, options: {space: search_spaces/diverse.yaml}}\n"
    )
    read = load_experiment(tmp_path / "it.yaml")
    assert read.weights is not None and read.weights.options["space"]["family"] == "diverse"
    with pytest.raises(NasplatError, match=r"weights\.options\.space: there is no none\.yaml"):
        load_experiment(tmp_path / "it.yaml", ["weights.options.space=none.yaml"])


def test_a_network_of_a_run_is_initialised(elsewhere: Path, tmp_path: Path) -> None:
    """By name, from the folder of the run that trained the source, with batch norm measured on images."""
    model = "tests.spaces.example_networks:residual"
    arguments = {"channels": 1, "classes": 10}
    settings = Initialisation.model_validate({"model": model, "arguments": arguments, "data": {"source": "digits"}})
    said: list[str] = []
    done = initialise(settings, elsewhere, tmp_path / "init.safetensors", say=said.append)
    found = load_weights(tmp_path / "init.safetensors")
    assert done.generated == done.params and done.kept == () and "1×8×8" in said[0]
    moved = [tensor for name, tensor in found.items() if name.endswith("running_mean")]
    assert moved and all(torch.isfinite(one).all() for one in found.values()) and any(one.any() for one in moved)
    again = tmp_path / "again.safetensors"
    initialise(settings, elsewhere, again)
    assert all(torch.equal(tensor, found[name]) for name, tensor in load_weights(again).items())


def test_a_supernet_initialises_no_other_networks(tmp_path: Path) -> None:
    """It has weights for the networks of its space, and for no others."""
    trained(tmp_path, [], source="supernet", options={})
    settings = Initialisation(model="torchvision.models:resnet18")
    with pytest.raises(NasplatError, match="one space"):
        initialise(settings, tmp_path, tmp_path / "init.safetensors")
