"""Without these networks would be compared by numbers that are not the metrics that they are called."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from sklearn import metrics as sklearn_metrics
from torch import Tensor, nn

from nasplat.core.errors import NasplatError, TrialFailed
from nasplat.core.tasks import Task
from nasplat.data.datasets import Split
from nasplat.data.loader import Loader
from nasplat.data.pretexts import pretext_task
from nasplat.data.tasks import make_dataset
from nasplat.training.multi_task_metrics import (
    accuracy,
    confusion,
    delta_m,
    dense_metrics,
    judge_tasks,
    mean_accuracy,
    mean_average_precision,
    regression_metrics,
)
from tests.data.helpers import seeded

KIND, MARKS, SIZE, MAP = (
    Task("kind", "classification", 3),
    Task("marks", "multi_label", 2),
    Task("size", "regression", 1),
    Task("map", "dense", 3),
)


@hypothesis_settings(deadline=None, max_examples=30)
@given(st.integers(2, 60), st.integers(1, 4), st.integers(0, 2**20))
def test_multi_label_metrics_are_sklearns(count: int, size: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    scores = rng.integers(-3, 4, size=(count, size)).astype(np.float32)  # many are equal
    labels = rng.integers(-1, 2, size=(count, size))
    labels[0] = 1
    precisions, rights = [], []
    for column in range(size):
        there = labels[:, column] >= 0
        wanted, given_scores = labels[there, column], scores[there, column]
        precisions.append(sklearn_metrics.average_precision_score(wanted, given_scores))
        rights.append(sklearn_metrics.accuracy_score(wanted, given_scores > 0))
    outputs, found = torch.from_numpy(scores), torch.from_numpy(labels)
    assert mean_average_precision(outputs, found) == pytest.approx(np.mean(precisions))
    assert mean_accuracy(outputs, found) == pytest.approx(np.mean(rights))


@hypothesis_settings(deadline=None, max_examples=30)
@given(st.integers(3, 40), st.integers(1, 3), st.integers(0, 2**20))
def test_regression_metrics_are_sklearns_in_the_units_of_the_labels(count: int, size: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    labels = rng.normal(size=(count, size))
    outputs = labels + rng.normal(size=(count, size))
    missing = rng.random((count, size)) < 0.3
    missing[:2] = False
    mean, std = rng.normal(size=size), rng.uniform(0.5, 3, size)
    task = Task("t", "regression", size, (), tuple(mean), tuple(std))
    held = torch.from_numpy(np.where(missing, np.nan, labels))
    found = regression_metrics(task, torch.from_numpy(outputs), held)
    r2, mse = [], []
    for column in range(size):
        there = ~missing[:, column]
        pair = labels[there, column] * std[column] + mean[column], outputs[there, column] * std[column] + mean[column]
        r2.append(sklearn_metrics.r2_score(*pair))
        mse.append(sklearn_metrics.mean_squared_error(*pair))
    assert found["r2"] == pytest.approx(np.mean(r2)) and found["mse"] == pytest.approx(np.mean(mse))
    assert found["rmse"] == pytest.approx(np.mean(mse) ** 0.5)


def test_r2_of_labels_that_do_not_vary_is_sklearns() -> None:
    labels = torch.ones(4, 1)
    for outputs in (labels, labels + torch.tensor([[0.0], [0], [0], [1]])):
        wanted = sklearn_metrics.r2_score(labels.numpy(), outputs.numpy())
        assert regression_metrics(SIZE, outputs, labels)["r2"] == wanted


@hypothesis_settings(deadline=None, max_examples=30)
@given(st.integers(1, 4), st.integers(2, 5), st.integers(0, 2**20))
def test_dense_metrics_are_sklearns(count: int, classes: int, seed: int) -> None:
    generator = seeded(seed)
    outputs = torch.randn(count, classes, 3, 4, generator=generator)
    labels = torch.randint(-1, classes, (count, 3, 4), generator=generator).to(torch.int16)
    labels[0, 0, 0] = 0
    there = labels.flatten() >= 0
    wanted, taken = labels.flatten()[there].numpy(), outputs.argmax(1).flatten()[there].numpy()
    found = dense_metrics(confusion(outputs, labels))
    assert found["pixel_accuracy"] == pytest.approx(sklearn_metrics.accuracy_score(wanted, taken))
    present = sorted(set(wanted) | set(taken))
    assert found["mean_iou"] == pytest.approx(
        sklearn_metrics.jaccard_score(wanted, taken, average="macro", labels=present)
    )


def test_accuracy_leaves_out_missing_labels() -> None:
    outputs = torch.eye(3)[[0, 1, 2, 2]]
    assert accuracy(outputs, torch.tensor([0, 1, -1, 0])) == pytest.approx(2 / 3)


def test_delta_m_by_hand() -> None:
    tasks = (KIND, MARKS, SIZE, MAP)
    single = {"kind.accuracy": 0.8, "marks.mean_average_precision": 0.5, "size.rmse": 2.0, "map.mean_iou": 0.4}
    shared = {"kind.accuracy": 0.84, "marks.mean_average_precision": 0.4, "size.rmse": 1.0, "map.mean_iou": 0.4}
    assert delta_m(tasks, shared, single) == pytest.approx((0.05 - 0.2 + 0.5 + 0.0) / 4)
    assert delta_m(tasks, single, single) == 0
    assert delta_m((SIZE,), {"size.rmse": 3.0}, single) == pytest.approx(-0.5)  # a larger error is worse


def test_delta_m_tells_what_it_lacks() -> None:
    single = {"kind.accuracy": 0.8}
    with pytest.raises(NasplatError, match=r"kind.accuracy of the network is missing"):
        delta_m((KIND,), {}, single)
    with pytest.raises(NasplatError, match=r"size.rmse of single-task networks is missing"):
        delta_m((SIZE,), {"size.rmse": 1.0}, single)
    with pytest.raises(NasplatError, match="is nan"):
        delta_m((KIND,), {"kind.accuracy": float("nan")}, single)
    with pytest.raises(NasplatError, match="is 0"):
        delta_m((KIND,), {"kind.accuracy": 0.5}, {"kind.accuracy": 0.0})


class Knowing(nn.Module):
    """Reads its answers from the pixels: the first is the class, the second the size."""

    def __init__(self, std: float = 1.0, mean: float = 0.0, fail: bool = False) -> None:
        super().__init__()
        self.std, self.mean, self.fail = std, mean, fail

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        pixels = (images[:, 0] * self.std + self.mean) * 255
        corner = pixels[:, 0, 0].round()
        kind = torch.eye(3)[(corner % 3).long()]
        turn = torch.stack([(pixels[:, y, x] > 250).float() for y, x in ((0, 3), (0, 0), (3, 0), (3, 3))], 1)
        size = corner[:, None] * (float("nan") if self.fail else 1.0)
        planes = torch.stack([(pixels.round() % 3 == number).float() for number in range(3)], 1)
        marks = torch.stack([corner % 2 - 0.5, corner - 10.5], 1)
        return {"kind": kind, "size": size, "map": planes, "marks": marks, "rotation": turn}


def test_a_network_that_knows_everything_is_given_full_marks() -> None:
    rows = torch.arange(30)
    images = rows[:, None, None, None].expand(30, 1, 4, 4).to(torch.uint8).contiguous()
    images[:, 0, 0, 3] = 255
    plain = Task("size", "regression", 1, (), (0.0,), (1.0,))
    tasks = (KIND, MARKS, plain, MAP, pretext_task("rotation", (1, 4, 4)))
    missing = rows % 4 == 0
    labels = {
        "kind": torch.where(missing, -1, rows % 3),
        "marks": torch.stack([rows % 2, (rows > 10).long()], 1).to(torch.int8),
        "size": torch.where(missing, float("nan"), rows.float())[:, None],
        "map": (images[:, 0] % 3).to(torch.int16),
    }
    found = make_dataset("known", tasks, Split(images, task_labels=labels))
    loader = Loader(found.train, batch_size=7, device="cpu", mean=found.mean, std=found.std)
    network = Knowing(found.std[0], found.mean[0]).train()
    values = judge_tasks(network, loader, found.tasks)
    assert set(values) == {
        "kind.accuracy", "marks.mean_average_precision", "marks.mean_accuracy", "size.rmse", "size.mse", "size.r2",
        "map.mean_iou", "map.pixel_accuracy", "rotation.accuracy",
    }  # fmt: skip
    right = {name: value for name, value in values.items() if name not in ("size.rmse", "size.mse")}
    assert list(right.values()) == pytest.approx([1.0] * 7)
    assert values["size.rmse"] == 0 and network.training
    assert judge_tasks(network, loader, found.tasks) == values
    failing = Knowing(found.std[0], found.mean[0], fail=True)
    with pytest.raises(TrialFailed, match="outputs of task size are not finite"):
        judge_tasks(failing, loader, found.tasks)
