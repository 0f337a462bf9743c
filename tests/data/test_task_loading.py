"""Data of several tasks from an experiment file: a search on other tasks than those asked for is worthless."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from nasplat.core.errors import NasplatError
from nasplat.core.experiment import Data, Experiment
from nasplat.data.datasets import Dataset, load_dataset
from nasplat.data.related_tasks import related_tasks

FASHION = Path(__file__).resolve().parents[2] / "../shared/data/fashion_mnist"


def test_classes_and_pretexts_of_any_data() -> None:
    """A person with one kind of label gets further tasks for nothing."""
    found = load_dataset(Data(tasks=("rotation", "labels", "contrastive")))
    plain = load_dataset(Data())
    assert [task.name for task in found.tasks] == ["rotation", "labels", "contrastive"]
    assert [(one.name, one.kind, one.size) for one in found.problem.outputs] == [
        ("rotation", "classification", 4),
        ("labels", "classification", 10),
        ("contrastive", "contrastive", 64),
    ]
    assert found.train.labels is None and set(found.train.task_labels) == {"labels"}
    assert plain.train.labels is not None and torch.equal(found.train.task_labels["labels"], plain.train.labels)
    assert found.fingerprint != plain.fingerprint
    assert found.fingerprint != load_dataset(Data(tasks=("rotation", "labels"))).fingerprint


def test_pretexts_alone_need_no_labels() -> None:
    found = load_dataset(Data(labels=False, tasks=("rotation", "jigsaw")))
    assert not found.train.task_labels and len(found.tasks) == 2


def test_a_csv_of_labels_with_a_pretext(tmp_path: Path) -> None:
    lines = ["file,kind,weight"]
    for number in range(20):
        Image.fromarray(np.full((8, 8), 10 * number, np.uint8)).save(tmp_path / f"{number}.png")
        lines.append(f"{number}.png,{'ab'[number % 2]},{number / 7:.3f}")
    (tmp_path / "labels.csv").write_text("\n".join(lines))
    found = load_dataset(Data(path=str(tmp_path), tasks="all"))
    assert [(task.name, task.kind) for task in found.tasks] == [("kind", "classification"), ("weight", "regression")]
    few = load_dataset(Data(path=str(tmp_path), tasks={"weight": "regression", "rotation": None}))
    assert [task.name for task in few.tasks] == ["weight", "rotation"]


def of_my_own() -> Dataset:
    return related_tasks((2, 1), count=60, image_size=16).dataset


def test_a_function_of_the_users_own_gives_tasks() -> None:
    source = f"{__name__}:of_my_own"
    assert len(load_dataset(Data(source=source, tasks="all")).tasks) == 3
    chosen = load_dataset(Data(source=source, tasks=("group1_task2", "group0_task0", "rotation")))
    assert [output.name for output in chosen.problem.outputs] == ["group1_task2", "group0_task0", "rotation"]


@pytest.mark.skipif(not FASHION.is_dir(), reason="Fashion-MNIST is not there")
def test_tasks_of_fashion_mnist_by_name() -> None:
    found = load_dataset(
        Data(source="Fashion-MNIST", path=str(FASHION), tasks=("sleeves", "jigsaw", "symmetry"), train_size=500)
    )
    assert [task.name for task in found.tasks] == ["sleeves", "jigsaw", "symmetry"] and len(found.train) == 400


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ({"tasks": ["labels"]}, "only one task, labels"),
        ({"tasks": ["labels", "rotatoin"]}, "no task 'labels'|has one task"),
        ({"tasks": "all"}, "has one task, its classes"),
        ({"labels": False, "tasks": ["labels", "rotation"]}, "task labels needs labels"),
        ({"source": "celeba", "tasks": ["Smiling", "Male"]}, "source celeba needs a path"),
        ({"tasks": ["labels", "colours"]}, "colours needs images of 3 channels"),
    ],
)
def test_what_cannot_be_is_told(data: dict[str, Any], words: str) -> None:
    with pytest.raises(NasplatError, match=words):
        load_dataset(Data.model_validate(data))


def test_several_tasks_are_scored_by_their_gain_unless_said_otherwise() -> None:
    plain: dict[str, Any] = {"space": {"family": "branching"}, "data": {"tasks": ["labels", "rotation"]}}
    assert Experiment.model_validate(plain).score.maximise == ("delta_m",)
    own = Experiment.model_validate({**plain, "score": {"maximise": ["labels.accuracy"]}})
    assert own.score.maximise == ("labels.accuracy",)
