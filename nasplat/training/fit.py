"""From a network, a data set and settings to a trained network: puts objective, loader and loop together."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import nn

from nasplat.core.experiment import Train
from nasplat.training.devices import memory_guard, place
from nasplat.training.distributed import ALONE, Shard
from nasplat.training.loop import Progress, TrainResult, train
from nasplat.training.objectives import Objective, make_objective
from nasplat.training.recalibrate import recalibrate_on

if TYPE_CHECKING:
    from nasplat.data.datasets import Dataset
    from nasplat.data.loader import Loader


def fit(
    network: nn.Module,
    dataset: Dataset,
    settings: Train,
    *,
    device: torch.device,
    seed: int,
    resident: Literal["auto", "device", "stream"] = "auto",
    checkpoint: Path | None = None,
    on_progress: Callable[[Progress], None] | None = None,
    stop: Callable[[], bool] | None = None,
    until: float = 1.0,
    shard: Shard = ALONE,
    objective: Objective | None = None,
) -> TrainResult:
    """Trains a network in place on the training images of a data set; see `nasplat.training.loop.train`.

    Settings of 0 epochs train nothing: the statistics of batch norm are measured anew.

    Args:
        objective: in place of the one that the settings name; see `objective_of`.
    """
    if settings.epochs == 0:
        with memory_guard("measuring batch norm"):
            recalibrate_on(network, dataset, device, seed)
        return TrainResult((), 0, 0.0, True)
    with memory_guard("loading images"):
        objective = objective or objective_of(settings, dataset, network, device)
        loader = training_loader(network, dataset, settings, objective, device, resident, shard)
    return train(
        network,
        objective,
        loader,
        settings,
        device=device,
        seed=seed,
        checkpoint=checkpoint,
        on_progress=on_progress,
        stop=stop,
        until=until,
        shard=shard,
    )


def objective_of(
    settings: Train,
    dataset: Dataset,
    network: nn.Module,
    device: torch.device,
    original: nn.Module | None = None,
    kept: Mapping[str, Sequence[int]] | None = None,
) -> Objective:
    """What the settings say that a network is trained on.

    Args:
        original: of a pruned network the one that it was, its teacher where the settings name none.
        kept: see `nasplat.training.distillation.distillation`.
    """
    if settings.distill is None and dataset.tasks and settings.objective == "supervised":
        from nasplat.training.multi_task import tasks_objective

        return tasks_objective(settings, dataset)
    if settings.distill is None:
        return make_objective(settings, dataset.problem, len(dataset.train))
    from nasplat.training.distillation import distillation

    if original is None or settings.distill.teachers:
        return distillation(settings, dataset, network, device=device)
    return distillation(settings, dataset, network, teachers=(original,), kept=kept, device=device)


def training_loader(
    network: nn.Module,
    dataset: Dataset,
    settings: Train,
    objective: Objective,
    device: torch.device,
    resident: Any = "auto",
    shard: Shard = ALONE,
) -> Loader:
    """Shuffled, augmented batches with the views that the objective asks for, in the memory format of the network."""
    from nasplat.data.augment import default_augmentations
    from nasplat.data.loader import Loader
    from nasplat.data.tasks import check_augmentations

    augment = settings.augment
    if augment is None:
        named = settings.objective
        if ":" in named:  # a user's own: what suits those of ours that look at as many views
            named = "supervised" if objective.views == 1 else "simclr"
        augment = default_augmentations(named, dataset.problem.input_shape)
        if any(task.kind == "dense" for task in dataset.tasks):
            augment = ()
    check_augmentations(dataset.tasks, augment)
    return Loader(
        dataset.train,
        batch_size=settings.batch_size,
        device=device,
        mean=dataset.mean,
        std=dataset.std,
        augment=augment,
        views=objective.views,
        first_plain=getattr(objective, "first_plain", False),
        channels_last=place(settings, device, network).channels_last,
        resident=resident,
        rank=shard.rank,
        world=shard.world,
    )
