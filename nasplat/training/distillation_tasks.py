"""Distillation of a network for several tasks: each task learns from the teachers that have it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nasplat.artifacts.weights import checksum
from nasplat.core.architecture import fingerprint
from nasplat.core.distillation import Distillation
from nasplat.core.errors import NasplatError
from nasplat.core.tasks import Task
from nasplat.training.distillation_logits import soft_logits
from nasplat.training.features import device_of, evaluating
from nasplat.training.multi_task import MultiTask, by_view, task_outputs
from nasplat.training.teachers import mean_of

if TYPE_CHECKING:
    from nasplat.data.loader import Batch


class DistilledTasks:
    """Of each task `logits` times the difference to its teachers, and `labels` times the task's own loss.

    The tasks' losses are then weighted into one as without teachers. Images without a label of a task learn it from the
    teachers alone. A teacher may have some of the tasks only, such as a network trained for one of them (Li & Bilen,
    Knowledge Distillation for Multi-task Learning, 2020); those of one task are averaged.

    Args:
        tasks: what is learned without teachers.
        settings: `weights` may name `logits` alone.
        networks: the teachers, whose outputs have the names of tasks.
        network: the student.

    Raises:
        NasplatError: settings that are for one classification, a task without teacher, or outputs that do not agree.
    """

    views = 1
    needs_labels = False

    def __init__(
        self, tasks: MultiTask, settings: Distillation, networks: Sequence[nn.Module], network: nn.Module
    ) -> None:
        _check(settings)
        self.tasks, self.settings, self.teachers = tasks, settings, list(networks)
        if not self.teachers:
            raise NasplatError("distill needs a teacher", "name one: teachers: [{model: …, checkpoint: …}]")
        self.taught = _who_teaches(tasks.tasks, tasks.input_shape, self.teachers, network)
        checksums = [checksum(one.state_dict()) for one in self.teachers]
        plain = settings.model_dump(mode="json")
        self.identity = fingerprint({"tasks": tasks.identity, "settings": plain, "teachers": checksums})

    def module(self, network: nn.Module) -> nn.Module:
        for teacher in self.teachers:
            teacher.to(device_of(network)).eval()
        return self.tasks.module(network)

    def loss(self, network: nn.Module, extra: nn.Module | None, batch: Batch, generator: torch.Generator) -> Tensor:
        views, labels, seen = self.tasks.prepared(batch, generator)
        images = torch.cat(views)
        outputs = by_view(task_outputs(network, images, list(seen)), seen, len(views))
        with torch.no_grad():
            answers = []
            for place, teacher in enumerate(self.teachers):
                names = [name for name, who in self.taught.items() if place in who]
                given = task_outputs(teacher, images, names)
                answers.append(by_view(given, {name: seen[name] for name in names}, len(views)))
        own, there = self.tasks.losses_of(outputs, labels)
        soft = self.settings.weights.get("logits", 0.0)
        losses = []
        for task, loss in zip(self.tasks.tasks, own, strict=True):
            student = outputs[task.name][-1].float()
            taught = [answers[who][task.name][-1].float() for who in self.taught[task.name]]
            difference = task_difference(task, student, taught, self.settings.temperature)
            losses.append(soft * difference + self.settings.labels * loss)
        return self.tasks.combined(losses, there | (soft > 0), network, extra)

    def culprits(self, extra: nn.Module | None) -> tuple[str, ...]:
        """See `MultiTask.culprits`."""
        return self.tasks.culprits(extra)


def task_difference(task: Task, student: Tensor, teachers: Sequence[Tensor], temperature: float) -> Tensor:
    """How far a student's output of a task is from what its teachers say together, a mean over the images.

    T^2 KL(mean softmax || student) for classification and, a pixel, dense; the same of each label for multi-label; the
    squared difference to the mean output for regression, and to that of unit length, both being so, for contrastive.

    Args:
        student, teachers: outputs as `nasplat.core.tasks.Task` tells.
    """
    if task.kind in ("classification", "dense"):
        own, *given = (one.movedim(1, -1).flatten(0, -2) for one in (student, *teachers))
        return soft_logits(own, mean_of(given, temperature), temperature)
    if task.kind == "multi_label":
        wanted = torch.stack([(one / temperature).sigmoid() for one in teachers]).mean(0)
        entropy = F.binary_cross_entropy(wanted, wanted)
        return temperature**2 * (F.binary_cross_entropy_with_logits(student / temperature, wanted) - entropy)
    if task.kind == "contrastive":
        student, *teachers = (F.normalize(one, dim=1) for one in (student, *teachers))
        return (student - torch.stack(teachers).mean(0)).square().sum(1).mean()
    return F.mse_loss(student, torch.stack(list(teachers)).mean(0))


def _who_teaches(
    tasks: Sequence[Task], shape: tuple[int, int, int], teachers: Sequence[nn.Module], network: nn.Module
) -> dict[str, tuple[int, ...]]:
    """By task, the places of the teachers that have it."""
    names = [task.name for task in tasks]
    own = task_outputs(network, torch.zeros(1, *shape, device=device_of(network)), names)
    taught: dict[str, tuple[int, ...]] = dict.fromkeys(names, ())
    for place, teacher in enumerate(teachers):
        with evaluating(teacher):
            try:
                outputs = teacher(torch.zeros(1, *shape, device=device_of(teacher)))
            except RuntimeError as error:
                first = (str(error).splitlines() or [""])[0]
                raise NasplatError(
                    f"teacher {place} does not take images of {shape} (channels, height, width): {first}",
                    "teacher and student must take the same images",
                ) from error
        if not isinstance(outputs, Mapping):
            raise NasplatError(
                f"teacher {place} has one output without a name, and there are several tasks",
                "its forward is to return a dictionary from names of tasks to outputs",
            )
        for name in set(names) & set(outputs):
            if outputs[name].shape != own[name].shape:
                raise NasplatError(
                    f"teacher {place} answers for task {name} with shape {tuple(outputs[name].shape[1:])}, the student "
                    f"with {tuple(own[name].shape[1:])}",
                    "teacher and student must have been made for the same labels",
                )
            taught[name] = (*taught[name], place)
    lacking = [name for name, who in taught.items() if not who]
    if lacking:
        raise NasplatError(f"no teacher has task {' or '.join(lacking)}", "leave these tasks out, or name one that has")
    return taught


def _check(settings: Distillation) -> None:
    other = [name for name, weight in settings.weights.items() if weight and name != "logits"]
    other += [name for name in ("pairs", "discriminator", "cache") if getattr(settings, name)]
    other += ["choice: better"] if settings.choice == "better" else []
    other += ["classes of a teacher"] if any(one.classes is not None for one in settings.teachers) else []
    if other:
        raise NasplatError(
            f"distill: {other[0]} is for one classification, and these data have several tasks",
            "several tasks are taught by weights: {logits: 1}, and by their labels: labels: 1",
        )
