"""A search over branching trees from an experiment to a front: what a person with several tasks comes for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from nasplat.artifacts.files import read_json
from nasplat.artifacts.run_directory import create_run
from nasplat.core.architecture import Architecture
from nasplat.core.errors import NasplatError
from nasplat.core.experiment import Experiment
from nasplat.search.driver import run_search
from nasplat.search.evaluate import load_data, load_space_of
from nasplat.search.produce import produce
from nasplat.spaces.branching import BranchingSpace
from nasplat.training.check import check

SPACE = {
    "family": "branching",
    "backbone": {
        "space": {
            "family": "mbconv",
            "stem_channels": 8,
            "stages": [{"channels": 8, "stride": 1, "layers": 1}, {"channels": 16, "stride": 2, "layers": 1}],
            "operations": ["mb_k3_e3"],
            "last_channels": 0,
        }
    },
}


def experiment(**changes: Any) -> Experiment:
    plain: dict[str, Any] = {
        "space": SPACE,
        "data": {"tasks": ["labels", "rotation"], "train_size": 500},
        "train": {"epochs": 1, "lr": 0.1},
        "score": {"maximise": ["delta_m"], "minimise": ["macs"]},
        "search": {"strategy": "random", "trials": 2},
    }
    return Experiment.model_validate({**plain, **changes})


def test_candidates_are_scored_against_networks_of_one_task(tmp_path: Path) -> None:
    """Without the single-task networks nobody knows whether sharing helps; trained anew on resume they would cost."""
    wanted = experiment()
    said: list[str] = []
    run = create_run(tmp_path, wanted)
    result = run_search(wanted, run, on_event=lambda event: said.append(getattr(event, "text", "")))
    single = {
        name: value for place in (0, 1) for name, value in read_json(tmp_path / f"single_tasks/{place}.json").items()
    }
    assert set(single) == {"labels.accuracy", "rotation.accuracy"}
    assert sum("single-task networks" in text for text in said) == 2
    for score in result.front:
        gains = [score.metrics[name] / single[name] - 1 for name in single]
        assert score.metrics["delta_m"] == pytest.approx(sum(gains) / 2)
    said.clear()
    more = experiment(search={"strategy": "random", "trials": 3})
    run_search(more, run, resume=True, on_event=lambda event: said.append(getattr(event, "text", "")))
    assert not any("single-task" in text for text in said)


def test_a_baseline_of_the_users_own_is_taken(tmp_path: Path) -> None:
    single = {"labels.accuracy": 0.5, "rotation.accuracy": 0.5}
    wanted = experiment(score={"maximise": ["delta_m"], "minimise": ["macs"], "single_task": single})
    result = run_search(wanted, create_run(tmp_path, wanted))
    assert not (tmp_path / "single_tasks").exists()
    best = result.front[0].metrics
    assert best["delta_m"] == pytest.approx(best["labels.accuracy"] + best["rotation.accuracy"] - 1)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"score": {"maximise": ["label.accuracy"]}}, "did you mean 'labels.accuracy'"),
        ({"score": {"maximise": ["accuracy"]}}, "there are delta_m, labels.accuracy"),
        ({"score": {"probe": "knn"}}, "not by a probe"),
        ({"train": {"objective": "simclr"}}, "objective simclr trains for one task"),
        ({"train": {"mixup": 0.2}}, "mixup is for one classification"),
        ({"train": {"weighting": "hand", "weighting_options": {"jigsaw": 2}}}, "no task 'jigsaw'"),
    ],
)
def test_settings_that_do_not_fit_several_tasks_are_told(changes: dict[str, Any], words: str) -> None:
    wanted = experiment(**changes)
    with pytest.raises(NasplatError, match=words):
        check(load_data(wanted.data), wanted.train, wanted.score)


def test_a_space_for_one_task_is_told(tmp_path: Path) -> None:
    wanted = experiment(space={"family": "nasbench201"})
    with pytest.raises(NasplatError):
        load_space_of(wanted, load_data(wanted.data))
        run_search(wanted, create_run(tmp_path, wanted))


def test_what_a_search_by_gradients_cannot_do_is_told_before_anything_trains() -> None:
    """Single-task networks of every task would be trained first."""
    with pytest.raises(ValueError, match="gradnorm"):
        experiment(train={"weighting": "gradnorm"}, search={"produce": {"shared": {}, "bmtas": {}}})


def test_options_of_the_last_producer_are_told_before_the_first_one_trains(tmp_path: Path) -> None:
    wanted = experiment(search={"produce": {"shared": {}, "random_trees": {"number": 2}}})
    space = load_space_of(wanted, load_data(wanted.data))
    with pytest.raises(NasplatError, match="random_trees"):
        produce(wanted, space, tmp_path, lambda text: None)
    assert not (tmp_path / "produced").exists()
    with pytest.raises(NasplatError, match="random_trees"):
        run_search(wanted, create_run(tmp_path / "run", wanted), space)
    assert not (tmp_path / "run" / "single_tasks").exists()


def test_one_task_only_is_told() -> None:
    wanted = experiment(data={"train_size": 100})
    with pytest.raises(NasplatError, match="only one task"):
        load_space_of(wanted, load_data(wanted.data))


def test_baselines_are_evaluated_in_the_same_run(tmp_path: Path) -> None:
    """A found tree is worth something only beside all shared, all separate, and what others would have chosen."""
    wanted = experiment(
        data={"tasks": ["labels", "rotation", "jigsaw"], "train_size": 300},
        search={
            "strategy": "random",
            "trials": 8,
            "produce": {
                "shared": {},
                "separate": {},
                "hand": {"trees": {"by hand": [[0, 0, 0], [0, 1, 1]]}},
                "random_trees": {"macs": 0.6, "count": 2},
                "affinity": {"count": 3, "images": 50},
            },
        },
    )
    run_search(wanted, create_run(tmp_path, wanted))
    space = load_space_of(wanted, load_data(wanted.data))
    assert isinstance(space, BranchingSpace)
    made = {
        name: Architecture.from_json(one)
        for folder in ("shared", "separate", "hand", "random_trees", "affinity")
        for name, one in read_json(tmp_path / f"produced/{folder}/architectures.json").items()
    }
    assert space.tree(made["by hand"]) == ((0, 0, 0), (0, 1, 1))
    assert made["affinity 1"] == made["shared"] and made["affinity 3"] == made["separate"]
    whole = space.cost(made["separate"]).macs
    assert all(abs(space.cost(made[f"random {place}"]).macs / whole - 0.6) < 0.15 for place in (1, 2))
    trials = [json.loads(path.read_text()) for path in tmp_path.glob("trials/*/record.json")]
    assert len(trials) >= len({one.digest for one in made.values()})
    assert len(list((tmp_path / "single_tasks").glob("*.safetensors"))) == 3


@pytest.mark.parametrize("name", ["bmtas", "learning_to_branch"])
def test_trees_by_gradients_are_evaluated_like_any_other(tmp_path: Path, name: str) -> None:
    """From the experiment file: one tree a weight of the cost, kept so that a resumed search does not search again."""
    wanted = experiment(
        data={"tasks": ["labels", "rotation"], "train_size": 200},
        train={"steps": 3, "augment": [], "batch_size": 25},
        search={
            "strategy": "random",
            "trials": 2,
            "produce": {name: {"cost": [0, 100], "epochs": 10, "choice_lr": 0.3, "held": 0.5}},
        },
    )
    said: list[str] = []
    run_search(wanted, create_run(tmp_path, wanted), on_event=lambda event: said.append(getattr(event, "text", "")))
    assert sum(text.startswith(f"{name} 100: epoch ") for text in said) == 10
    kept = read_json(tmp_path / f"produced/{name}/architectures.json")
    made = {key: Architecture.from_json(one) for key, one in kept.items()}
    space = load_space_of(wanted, load_data(wanted.data))
    assert isinstance(space, BranchingSpace)
    assert set(made) <= {f"{name} 0", f"{name} 100"} and space.shared() in made.values()
    assert {one.digest for one in made.values()} <= {
        json.loads(path.read_text())["digest"] for path in tmp_path.glob("trials/*/architecture.json")
    }


@pytest.mark.parametrize(
    ("produce", "words"),
    [
        ({"bmtas": {"cost": [-1]}}, "search.produce.bmtas.cost"),
        ({"learning_to_branch": {"costs": [1]}}, "did you mean 'cost'"),
        ({"uniform": {}}, "uniform is for networks that are pruned"),
        ({"hand": {"trees": {"odd": [[0, 0]]}}}, "is no tree here"),
        ({"hand": {}}, "trees"),
    ],
)
def test_producers_that_do_not_fit_are_told(tmp_path: Path, produce: dict[str, Any], words: str) -> None:
    single = {"labels.accuracy": 0.5, "rotation.accuracy": 0.5}
    wanted = experiment(
        score={"maximise": ["delta_m"], "single_task": single},
        search={"strategy": "random", "trials": 2, "produce": produce},
    )
    with pytest.raises(NasplatError, match=words):
        run_search(wanted, create_run(tmp_path, wanted))


def test_budgets_may_be_shares_of_all_separate(tmp_path: Path) -> None:
    single = {"labels.accuracy": 0.5, "rotation.accuracy": 0.5}
    wanted = experiment(
        score={"maximise": ["delta_m"], "minimise": ["macs"], "single_task": single},
        search={"strategy": "random", "trials": 1, "constraints": {"macs": {"max": 0.6}}},
    )
    result = run_search(wanted, create_run(tmp_path, wanted))
    space = load_space_of(wanted, load_data(wanted.data))
    assert isinstance(space, BranchingSpace)
    assert result.front[0].architecture == space.shared()  # all else costs more
