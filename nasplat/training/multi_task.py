"""Training one network for several tasks at once: a loss a task, missing labels left out, weighted into one.

    objective = MultiTask(dataset.tasks, dataset.input_shape, weighting="uncertainty")
    train(network, objective, TaskLoader(dataset, "train", …), settings, …)

The network returns a mapping from names of tasks to outputs (`core.tasks.Task` tells their shapes).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nasplat.core.errors import NasplatError, TrialFailed
from nasplat.core.tasks import Task, check_tasks
from nasplat.data.pretexts import change
from nasplat.training.task_weighting import make_weighting

if TYPE_CHECKING:
    from nasplat.data.loader import Batch


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


def task_labels(batch: Batch) -> Mapping[str, Tensor]:
    """The labels of a batch, by task.

    Raises:
        NasplatError: a batch of a loader that knows of no tasks.
    """
    labels: Any = batch.labels
    if not isinstance(labels, Mapping):
        raise NasplatError("these batches have no labels by task", "use the loader of nasplat.data.tasks")
    return labels


class MultiTask:
    """The weighted losses of several tasks; an `Objective`.

    Tasks with labels are trained on the images; each pretext on a copy of its own of them, changed, in the same pass.

    Args:
        tasks: two or more; one alone where `alone` says so, for the networks to compare with.
        input_shape: `(C, H, W)`.
        weighting: `hand`, `uncertainty` or `gradnorm`.
        options: of the weighting: weights by task; `alpha` and `shared` of gradnorm.

    Raises:
        NasplatError: one task only, or an unknown weighting or option.
    """

    views = 1

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
            check_tasks(tasks)
        self.tasks = tuple(tasks)
        self.needs_labels = any(not task.pretext for task in tasks)
        self.weighting = make_weighting(weighting, self.tasks, input_shape, options or {})
        self.identity = repr((self.tasks, weighting, sorted((options or {}).items())))

    def module(self, network: nn.Module) -> nn.Module:
        """The parts of the weighting, and which tasks' losses were not finite."""
        parts = nn.Module()
        parts.weighting = self.weighting.module(network)
        parts.register_buffer("not_finite", torch.zeros(len(self.tasks), dtype=torch.bool))
        return parts

    def loss(self, network: nn.Module, extra: nn.Module | None, batch: Batch, generator: torch.Generator) -> Tensor:
        assert extra is not None
        losses, here = self.losses(network, batch, generator)
        not_finite: Any = extra.not_finite
        # On the device; `culprits` reads it. Only the first time counts: one such update makes all losses so.
        not_finite.copy_(torch.where(not_finite.any(), not_finite, ~torch.stack(losses).detach().isfinite()))
        weighting: Any = extra.weighting
        return self.weighting.combine(losses, here, network, weighting)

    def losses(self, network: nn.Module, batch: Batch, generator: torch.Generator) -> tuple[list[Tensor], Tensor]:
        """The loss of each task, as of `task_loss`, and whether the batch has a label of each, `(tasks,)` bool."""
        images = batch.views[0]
        labels: dict[str, Tensor] = dict(task_labels(batch)) if self.needs_labels else {}
        views = [images] if self.needs_labels else []
        place = {task.name: 0 for task in self.tasks}
        for task in self.tasks:
            if task.pretext:
                changed, labels[task.name] = change(task.pretext, images, generator)
                place[task.name] = len(views)
                views.append(changed)
        # One pass for all: batch norm must see in training the mixture whose statistics it will use afterwards.
        outputs = task_outputs(network, torch.cat(views), [task.name for task in self.tasks])
        found = [
            task_loss(task, outputs[task.name].split(len(images))[place[task.name]], labels[task.name])
            for task in self.tasks
        ]
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
