"""Training one network for several tasks at once: a loss a task, missing labels left out, weighted into one.

    objective = MultiTask(dataset.tasks, dataset.problem.input_shape, weighting="uncertainty")
    train(network, objective, Loader(dataset.train, …), settings, …)

The network returns a mapping from names of tasks to outputs (`core.tasks.Task` tells their shapes).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nasplat.core.errors import NasplatError, TrialFailed
from nasplat.core.tasks import Task, check_several
from nasplat.data.pretexts import change
from nasplat.training.contrastive import nt_xent
from nasplat.training.task_weighting import make_weighting

if TYPE_CHECKING:
    from nasplat.core.experiment import Train
    from nasplat.data.datasets import Dataset
    from nasplat.data.loader import Batch

Seen = Mapping[str, tuple[int, ...]]  # by task, which of several views of the images it looks at
_TEMPERATURE = 0.2  # of the contrastive task, as of our objective simclr


def task_loss(task: Task, output: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """The loss of one task over the labels that are there, and whether there is one.

    Cross-entropy (classification and, a pixel, dense), binary cross-entropy (multi-label) and squared error
    (regression), each the mean over all labels, pixels or numbers that are not missing; 0 where all are.

    Args:
        output, labels: as `core.tasks.Task` tells.

    Returns:
        Two tensors of no dimensions, float32 and bool.
    """
    output = output.float()
    if task.kind in ("classification", "dense"):
        labels = labels.long()
        there = labels >= 0
        total = F.cross_entropy(output, labels, ignore_index=-1, reduction="sum")
    else:
        there = ~labels.isnan() if task.kind == "regression" else labels >= 0
        wanted = torch.where(there, labels, torch.zeros_like(labels)).float()
        each = (
            (output - wanted).square()
            if task.kind == "regression"
            else F.binary_cross_entropy_with_logits(output, wanted, reduction="none")
        )
        total = torch.where(there, each, torch.zeros_like(each)).sum()
    count = there.sum()
    return total / count.clamp(min=1), count > 0


def contrastive_loss(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """The loss of a contrastive task, of its outputs `(N, D)` for two views, in the form of `task_loss`."""
    loss = nt_xent(first.float(), second.float(), _TEMPERATURE)
    return loss, torch.ones((), dtype=torch.bool, device=loss.device)


def task_outputs(network: nn.Module, images: Tensor, names: Sequence[str]) -> dict[str, Tensor]:
    """What a network says of some tasks; a network with `forward_taps` runs only what these need.

    Raises:
        NasplatError: the network has no output of that name.
    """
    taps = getattr(network, "forward_taps", None)
    outputs = network(images) if taps is None else taps(images, tuple(names))
    if not isinstance(outputs, Mapping):
        raise NasplatError(
            "the network has one output without a name, and there are several tasks",
            "its forward is to return a dictionary from names of tasks to outputs",
        )
    lacking = next((name for name in names if name not in outputs), None)
    if lacking is not None:
        raise NasplatError(f"the network has no output for task {lacking}; it has {', '.join(outputs)}")
    return {name: outputs[name] for name in names}


def by_view(outputs: Mapping[str, Tensor], seen: Seen, views: int) -> dict[str, list[Tensor]]:
    """Of outputs for all views in one batch, each task's for the views that it looks at; see `MultiTask.prepared`."""
    return {name: [outputs[name].chunk(views)[view] for view in places] for name, places in seen.items()}


def task_labels(batch: Batch) -> Mapping[str, Tensor]:
    """The labels of a batch, by task.

    Raises:
        NasplatError: a batch of a loader that knows of no tasks.
    """
    if not batch.task_labels:
        raise NasplatError("these batches have no labels by task", "name the tasks of the data: data.tasks")
    return batch.task_labels


def tasks_objective(settings: Train, dataset: Dataset) -> MultiTask:
    """What the settings say that the tasks of a data set are trained on."""
    shape, alone = dataset.problem.input_shape, len(dataset.tasks) == 1
    return MultiTask(dataset.tasks, shape, settings.weighting, settings.weighting_options, alone=alone)


class MultiTask:
    """The weighted losses of several tasks; an `Objective`.

    Tasks with labels are trained on the images; each pretext on a copy of its own of them, changed, in the same pass. A
    contrastive one must find each image's copy among all others (NT-Xent, Chen et al., 2020).

    Args:
        tasks: two or more; one alone where `alone` says so, for the networks to compare with.
        input_shape: `(C, H, W)`.
        weighting: `hand`, `uncertainty` or `gradnorm`.
        options: of the weighting: weights by task; `alpha` and `shared` of gradnorm.

    Raises:
        NasplatError: one task only, or an unknown weighting or option.
    """

    views = 1
    needs_labels = False  # in a batch's `labels`, which are of one task

    def __init__(
        self,
        tasks: Sequence[Task],
        input_shape: tuple[int, int, int],
        weighting: str = "hand",
        options: Mapping[str, Any] | None = None,
        *,
        alone: bool = False,
    ) -> None:
        if not (alone and len(tasks) == 1):
            check_several(tasks)
        self.tasks, self.input_shape = tuple(tasks), input_shape
        self._labelled = any(not task.pretext for task in tasks)
        self._plain = any(not task.pretext or task.kind == "contrastive" for task in tasks)
        self.weighting = make_weighting(weighting, self.tasks, input_shape, options or {})
        self.identity = repr((self.tasks, weighting, sorted((options or {}).items())))

    def module(self, network: nn.Module) -> nn.Module:
        """The parts of the weighting, and which tasks' losses were not finite."""
        parts = nn.Module()
        parts.weighting = self.weighting.module(network)
        parts.register_buffer("not_finite", torch.zeros(len(self.tasks), dtype=torch.bool))
        return parts

    def loss(self, network: nn.Module, extra: nn.Module | None, batch: Batch, generator: torch.Generator) -> Tensor:
        losses, here = self.losses(network, batch, generator)
        return self.combined(losses, here, network, extra)

    def combined(self, losses: list[Tensor], here: Tensor, network: nn.Module, extra: nn.Module | None) -> Tensor:
        """One loss of those of all tasks, weighted."""
        assert extra is not None
        not_finite: Any = extra.not_finite
        # On the device; `culprits` reads it. Only the first time counts: one such update makes all losses so.
        not_finite.copy_(torch.where(not_finite.any(), not_finite, ~torch.stack(losses).detach().isfinite()))
        weighting: Any = extra.weighting
        return self.weighting.combine(losses, here, network, weighting)

    def losses(self, network: nn.Module, batch: Batch, generator: torch.Generator) -> tuple[list[Tensor], Tensor]:
        """The loss of each task, as of `task_loss`, and whether the batch has a label of each, `(tasks,)` bool."""
        views, labels, seen = self.prepared(batch, generator)
        # One pass for all: batch norm must see in training the mixture whose statistics it will use afterwards.
        outputs = task_outputs(network, torch.cat(views), [task.name for task in self.tasks])
        return self.losses_of(by_view(outputs, seen, len(views)), labels)

    def prepared(self, batch: Batch, generator: torch.Generator) -> tuple[list[Tensor], dict[str, Tensor], Seen]:
        """The images that the tasks look at, `(N, C, H, W)` each; the labels, and which of these images, of each task.

        A contrastive task looks at the images as they are and at its own copy of them, others at one of these.
        """
        images = batch.views[0]
        labels: dict[str, Tensor] = dict(task_labels(batch)) if self._labelled else {}
        views = [images] if self._plain else []
        seen: dict[str, tuple[int, ...]] = {task.name: (0,) for task in self.tasks}
        for task in self.tasks:
            if task.pretext:
                changed, labels[task.name] = change(task.pretext, images, generator)
                seen[task.name] = (0, len(views)) if task.kind == "contrastive" else (len(views),)
                views.append(changed)
        return views, labels, seen

    def losses_of(
        self, outputs: Mapping[str, Sequence[Tensor]], labels: Mapping[str, Tensor]
    ) -> tuple[list[Tensor], Tensor]:
        """As `losses`, of each task's outputs for the images that it looks at."""
        found = []
        for task in self.tasks:
            own = outputs[task.name]
            if task.kind == "contrastive":
                found.append(contrastive_loss(*own))
            else:
                found.append(task_loss(task, own[0], labels[task.name]))
        return [loss for loss, _ in found], torch.stack([there for _, there in found])

    def culprits(self, extra: nn.Module | None) -> tuple[str, ...]:
        """The tasks whose loss was not finite in the first step in which one was not. Waits for the device."""
        if extra is None:
            return ()
        flags: Any = extra.not_finite
        return tuple(task.name for task, bad in zip(self.tasks, flags.tolist(), strict=True) if bad)

    def check(self, extra: nn.Module | None) -> None:
        """Waits for the device; meant for the few moments at which the training loop looks at the loss anyway.

        Raises:
            TrialFailed: a loss was not finite; the message names the tasks.
        """
        names = self.culprits(extra)
        if names:
            raise TrialFailed(
                f"the loss of task {' and '.join(names)} is not finite",
                "look at the labels of that task, or use a smaller lr, a smaller weight of it, or more warmup",
            )
