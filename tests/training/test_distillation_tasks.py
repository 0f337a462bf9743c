"""Without these a student of several tasks would learn something else than its teachers say, or from the wrong one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Bernoulli, Categorical, kl_divergence

from nasplat.core.distillation import Distillation, Teacher
from nasplat.core.errors import NasplatError
from nasplat.core.experiment import Data, Train
from nasplat.core.tasks import Task
from nasplat.data.datasets import Dataset, load_dataset
from nasplat.data.loader import Batch
from nasplat.data.tasks import only_tasks
from nasplat.training.distillation import distillation
from nasplat.training.distillation_tasks import DistilledTasks, task_difference
from nasplat.training.evaluate import evaluation_loader
from nasplat.training.fit import fit
from nasplat.training.multi_task import MultiTask
from nasplat.training.multi_task_metrics import judge_tasks
from tests.data.helpers import seeded

KIND, MARKS, SIZE, MAP = TASKS = (
    Task("kind", "classification", 4),
    Task("marks", "multi_label", 3),
    Task("size", "regression", 2),
    Task("map", "dense", 2),
)
SHAPE = (3, 8, 8)
CPU = torch.device("cpu")


class Heads(nn.Module):
    """A trunk, and a 1x1 convolution a task."""

    def __init__(self, tasks: tuple[Task, ...], channels: int = 3, width: int = 8, seed: int = 0) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.trunk = nn.Sequential(nn.Conv2d(channels, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU())
            self.heads = nn.ModuleDict(
                {task.name: nn.Conv2d(width, task.size, 1 if task.kind == "dense" else 4, stride=2) for task in tasks}
            )

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        maps = self.trunk(images)
        found = {name: head(maps) for name, head in self.heads.items()}
        return {name: one if name == "map" else one.mean((2, 3)) for name, one in found.items()}


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_differences_are_those_of_the_distributions(temperature: float) -> None:
    """Against torch.distributions: a wrong scale would make the labels count for more or less than was asked for."""
    student, first, second = (torch.randn(6, 4, generator=seeded(seed)) for seed in range(3))
    both = torch.stack([(one / temperature).softmax(1) for one in (first, second)]).mean(0)
    wanted = temperature**2 * kl_divergence(Categorical(both), Categorical(logits=student / temperature)).mean()
    torch.testing.assert_close(task_difference(KIND, student, [first, second], temperature), wanted)

    maps, theirs = (torch.randn(5, 2, 3, 4, generator=seeded(seed)) for seed in (3, 4))
    pixels = [(one / temperature).permute(0, 2, 3, 1).reshape(-1, 2) for one in (theirs, maps)]
    wanted = temperature**2 * kl_divergence(*(Categorical(logits=one) for one in pixels)).mean()
    torch.testing.assert_close(task_difference(MAP, maps, [theirs], temperature), wanted)

    marks, theirs = (torch.randn(5, 3, generator=seeded(seed)) for seed in (5, 6))
    wanted = temperature**2 * kl_divergence(*(Bernoulli(logits=one / temperature) for one in (theirs, marks))).mean()
    torch.testing.assert_close(task_difference(MARKS, marks, [theirs], temperature), wanted)

    sizes, theirs = (torch.randn(5, 2, generator=seeded(seed)) for seed in (7, 8))
    wanted = ((sizes - theirs) ** 2).sum() / 10
    torch.testing.assert_close(task_difference(SIZE, sizes, [theirs], temperature), wanted)

    view = Task("views", "contrastive", 2, pretext="contrastive")
    cosines = nn.functional.cosine_similarity(sizes, theirs)
    torch.testing.assert_close(task_difference(view, sizes, [theirs], temperature), (2 - 2 * cosines).mean())
    for task, output in ((KIND, student), (MAP, maps), (MARKS, marks), (SIZE, sizes), (view, sizes)):
        assert task_difference(task, output, [output], temperature).abs() < 1e-5


def batch(kind: Tensor, size: Tensor) -> Batch:
    images = torch.randn(len(kind), *SHAPE, generator=seeded(9))
    return Batch((images,), None, torch.arange(len(kind)), task_labels={"kind": kind, "size": size})


def test_each_task_learns_from_the_teachers_that_have_it() -> None:
    """The oracle is written out by hand: `logits` times the difference, and `labels` times the loss of the labels."""
    tasks = (KIND, SIZE)
    student, of_kind, of_both = (Heads(given, seed=seed).eval() for seed, given in enumerate((tasks, (KIND,), tasks)))
    settings = Distillation(weights={"logits": 0.7}, labels=0.3, temperature=2.0)
    objective = DistilledTasks(MultiTask(tasks, SHAPE), settings, [of_kind, of_both], student)
    given = batch(torch.tensor([1, -1, 3]), torch.tensor([[0.5, torch.nan], [1.0, 2.0], [torch.nan, torch.nan]]))
    total = objective.loss(student, objective.module(student), given, seeded(0))
    images = given.views[0]
    with torch.no_grad():
        own, one, two = student(images), of_kind(images), of_both(images)
    soft = task_difference(KIND, own["kind"], [one["kind"], two["kind"]], 2.0)
    soft = soft + task_difference(SIZE, own["size"], [two["size"]], 2.0)
    hard = nn.functional.cross_entropy(own["kind"][[0, 2]], torch.tensor([1, 3]))
    squares = (own["size"][[0, 1, 1], [0, 0, 1]] - torch.tensor([0.5, 1.0, 2.0])).square().mean()
    torch.testing.assert_close(total.detach(), 0.7 * soft + 0.3 * (hard + squares))


def test_a_task_without_labels_is_learned_from_its_teacher() -> None:
    """People distil on images that nobody labelled."""
    tasks = (KIND, SIZE)
    student, teacher = Heads(tasks), Heads(tasks, seed=1).eval()
    objective = DistilledTasks(MultiTask(tasks, SHAPE), Distillation(), [teacher], student)
    none = batch(torch.full((4,), -1), torch.full((4, 2), torch.nan))
    loss = objective.loss(student, objective.module(student), none, seeded(0))
    loss.backward()
    assert loss > 0 and all(bool(one.grad.abs().sum() > 0) for one in student.parameters() if one.grad is not None)
    assert all(one.grad is None for one in teacher.parameters())


def digits() -> Dataset:
    return load_dataset(Data.model_validate({"source": "digits", "tasks": ["labels", "rotation"]}))


def test_a_small_student_comes_near_two_teachers_of_one_task_each() -> None:
    """From real images, through the settings that an experiment file holds, with no label of its own."""
    dataset = digits()
    teachers = []
    for seed, task in enumerate(dataset.tasks):
        teacher = Heads((task,), channels=1, width=24, seed=seed)
        settings = Train(epochs=6, lr=0.1, batch_size=64, augment=())
        fit(teacher, only_tasks(dataset, [task.name]), settings, device=CPU, seed=0)
        teachers.append(teacher.eval())
    student = Heads(tuple(dataset.tasks), channels=1, seed=5)
    settings = Train.model_validate({"epochs": 6, "lr": 0.1, "batch_size": 64, "augment": (), "distill": {}})
    objective = distillation(settings, dataset, student, teachers=teachers)
    fit(student, dataset, settings, device=CPU, seed=0, objective=objective)
    found = judge_tasks(student, evaluation_loader(dataset, "test", CPU), dataset.tasks)
    assert found["labels.accuracy"] > 0.85 and found["rotation.accuracy"] > 0.6, found  # chance: 0.1 and 0.25


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"weights": {"attention": 1.0}}, "attention is for one classification"),
        ({"pairs": {"trunk": "trunk"}}, "pairs is for one"),
        ({"choice": "better"}, "choice: better is for one"),
        ({"cache": True}, "cache is for one"),
        ({"teachers": [Teacher(model="a:b", classes=[1])]}, "classes of a teacher is for one"),
    ],
)
def test_what_is_for_one_classification_is_refused(settings: Mapping[str, Any], said: str) -> None:
    wanted = Distillation.model_validate(settings)
    with pytest.raises(NasplatError, match=said):
        DistilledTasks(MultiTask((KIND, SIZE), SHAPE), wanted, [Heads((KIND, SIZE))], Heads((KIND, SIZE)))


def test_teachers_that_do_not_fit_are_named() -> None:
    """The error must say which teacher, and what to do: several are hard to tell apart."""
    tasks = (KIND, SIZE)
    student = Heads(tasks)

    def teach(*teachers: nn.Module) -> None:
        DistilledTasks(MultiTask(tasks, SHAPE), Distillation(), teachers, student)

    with pytest.raises(NasplatError, match="needs a teacher"):
        teach()
    with pytest.raises(NasplatError, match="no teacher has task size"):
        teach(Heads((KIND,)))
    with pytest.raises(
        NasplatError, match=r"teacher 1 answers for task kind with shape \(5,\), the student with \(4,\)"
    ):
        teach(Heads(tasks), Heads((Task("kind", "classification", 5),)))
    with pytest.raises(NasplatError, match="teacher 0 has one output without a name"):
        teach(nn.Sequential(nn.Flatten(), nn.Linear(192, 4)))
    with pytest.raises(NasplatError, match="teacher 0 does not take images of"):
        teach(Heads(tasks, channels=1))
