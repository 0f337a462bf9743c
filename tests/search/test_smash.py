"""SMASH as a search: one training, ranking by generated weights, edits of the best."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from nasplat.artifacts.run_directory import create_run
from nasplat.core.errors import NasplatError
from nasplat.core.experiment import Experiment
from nasplat.search.driver import run_search
from nasplat.search.evaluate import load_data, load_space_of
from nasplat.search.weight_sources import SOURCES, make, read_source, save_source, smash

SPACE: dict[str, Any] = {
    "family": "memory_bank",
    "blocks": [{"channels": [4, 8], "banks": 2, "layers": 2}],
    "kernels": [3],
    "dilations": [1],
    "groups": [1],
    "last_channels": 8,
}


def experiment(**changes: Any) -> Experiment:
    plain: dict[str, Any] = {
        "space": SPACE,
        "weights": {"source": "smash", "train": {"steps": 12}, "check": 0},
        "train": {"epochs": 0},
        "search": {"strategy": "local_search", "trials": 7, "options": {"startup": 4}},
    }
    return Experiment.model_validate({**plain, **changes})


def test_random_networks_are_ranked_and_the_best_are_edited(tmp_path: Path) -> None:
    """The search of the paper, with one file and no code."""
    wanted = experiment()
    found = run_search(wanted, create_run(tmp_path, wanted))
    reasons = [proposal.why for proposal in found.history]
    assert sum("random, to begin with" in why for why in reasons) == 4
    assert sum("one change from trial" in why for why in reasons) == 3
    assert all(one.metrics["train_seconds"] == 0 for one in found.history.complete)


def test_generated_weights_screen_candidates(tmp_path: Path) -> None:
    """As a stage before training, under any strategy."""
    search = {"strategy": "random", "trials": 7, "screen": {"by": "weights", "keep": 0.2, "after": 5}}
    wanted = experiment(train={"steps": 2, "epochs": None}, search=search)
    history = run_search(wanted, create_run(tmp_path, wanted)).history
    assert len(history.complete) >= 5
    assert all(0 <= one.metrics["weights"] <= 1 for one in history if one.state in ("complete", "screened"))


def test_a_file_is_read_as_it_was_written_and_by_its_own_space_alone(tmp_path: Path) -> None:
    """Generated weights of another space would rank by chance, and nothing would tell."""
    wanted = experiment()
    data = load_data(wanted.data)
    space = load_space_of(wanted, data)
    options = {"base": False, "width": 8, "unit": 3}
    source = make(smash(**options), space, 1).eval()  # type: ignore[arg-type]
    path = tmp_path / "source.safetensors"
    save_source(source, path, space, "smash", options)
    graph = space.graph(space.canonical({"block1.layers": 1}))
    (written,), (read,) = source([graph]), read_source(path, space).eval()([graph])
    assert all((written[name] == read[name]).all() for name in written)
    other = load_space_of(experiment(space={**SPACE, "last_channels": 16}), data)
    with pytest.raises(NasplatError, match="made for the space"):
        read_source(path, other)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"generated": "1x1"}, "'pointwise' or 'all'"),
        ({"kernels": "tiled"}, "kernels"),
        ({"unit": 0}, "unit"),
        ({"depth": 0}, "depth"),
        ({"rule": "sandwich"}, "sandwich"),
        ({"noise": 1}, "no option 'noise'"),
    ],
)
def test_bad_options_are_told_before_anything_is_trained(tmp_path: Path, options: Any, message: str) -> None:
    """A typing error must not cost the training of a hypernetwork."""
    wanted = experiment(weights={"source": "smash", "options": options, "check": 0})
    with pytest.raises(NasplatError, match=message):
        run_search(wanted, create_run(tmp_path, wanted))
    assert not (tmp_path / "weights" / "source.safetensors").exists()


def test_every_source_can_be_named_in_an_experiment() -> None:
    """One that the schema does not know cannot be used."""
    for name in SOURCES:
        experiment(weights={"source": name})
