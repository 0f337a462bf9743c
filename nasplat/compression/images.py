"""What a pruning needs of a data set: images to score channels by, losses, metrics, and statistics for batch norm."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from nasplat.compression.importance import cross_entropy
from nasplat.compression.statistics import Loss
from nasplat.core.errors import NasplatError
from nasplat.training.evaluate import accuracy, evaluation_loader
from nasplat.training.multi_task import MultiTask, by_view, task_outputs
from nasplat.training.multi_task_metrics import judge_tasks, main_metrics
from nasplat.training.recalibrate import recalibrate_on

if TYPE_CHECKING:
    from nasplat.data.datasets import Dataset

BATCH = 128


def batches(
    dataset: Dataset, count: int, device: torch.device, seed: int, size: int = BATCH
) -> Iterator[tuple[Tensor, Any]]:
    """About so many training images in random order, not augmented, and what `losses` compare outputs with.

    That is the labels, None where there are none; of several tasks, whose pretexts look at changed images too, whatever
    `MultiTask.prepared` says of them.
    """
    from nasplat.data.loader import Loader

    size = min(size, len(dataset.train), count)
    loader = Loader(dataset.train, batch_size=size, device=device, mean=dataset.mean, std=dataset.std)
    tasks = _objective(dataset) if dataset.tasks else None
    changes = torch.Generator(device).manual_seed(seed)
    for batch in islice(loader.epoch(torch.Generator().manual_seed(seed)), max(1, round(count / size))):
        if tasks is None:
            yield batch.views[0], batch.labels
        else:
            views, labels, seen = tasks.prepared(batch, changes)
            yield torch.cat(views), (labels, seen, len(views))


def losses(dataset: Dataset | None) -> dict[str, Loss]:
    """The loss of each task, of a network's outputs and what `batches` gives besides images; cross-entropy of one."""
    if dataset is None or not dataset.tasks:
        return {"": cross_entropy}
    tasks = _objective(dataset)

    def loss_of(place: int) -> Loss:
        def loss(outputs: Any, targets: Any) -> Tensor:
            labels, seen, views = targets
            return tasks.losses_of(by_view(outputs, seen, views), labels)[0][place]

        return loss

    return {task.name: loss_of(place) for place, task in enumerate(dataset.tasks)}


def _objective(dataset: Dataset) -> MultiTask:
    return MultiTask(dataset.tasks, dataset.problem.input_shape, alone=len(dataset.tasks) == 1)


def recalibrated(network: nn.Module, dataset: Dataset, device: torch.device, seed: int) -> None:
    """Measures the statistics of batch norm anew, in place; the network is on the CPU before and after."""
    recalibrate_on(network, dataset, device, seed)
    network.cpu()


def test_metrics(network: nn.Module, dataset: Dataset, device: torch.device) -> dict[str, float]:
    """The accuracy on the test images, or of several tasks the main metric of each, as `task.metric`.

    The network is on the CPU before and after.
    """
    loader = evaluation_loader(dataset, "test", device)
    network.to(device)
    if dataset.tasks:
        found = main_metrics(dataset.tasks, judge_tasks(network, loader, dataset.tasks))
    else:
        found = {"accuracy": accuracy(network, loader, device)}
    network.cpu()
    return found


def why_not_judged(network: nn.Module, dataset: Dataset | None) -> str | None:
    """Why a network cannot be judged on these data; None where it can.

    Raises:
        NasplatError: the images do not fit the network, the data have another number of classes, or a task of theirs
            has no output.
    """
    if dataset is None:
        return "there are no images"
    images = next(batches(dataset, 2, torch.device("cpu"), 0))[0]
    try:
        with torch.no_grad():
            outputs = network(images)
    except RuntimeError as error:
        shape = " × ".join(map(str, images.shape[1:]))
        raise NasplatError(
            f"the network cannot take these images of {shape}: {str(error).splitlines()[0]}",
            "data.image_size resizes images; grey images need a network for one channel",
        ) from error
    if dataset.tasks:
        task_outputs(network, images, [task.name for task in dataset.tasks])
        return None
    if not dataset.classes:
        return "the images have no labels"
    if not isinstance(outputs, Tensor):
        return "the network has several outputs"
    if outputs.dim() != 2 or outputs.shape[1] != len(dataset.classes):
        raise NasplatError(
            f"the data have {len(dataset.classes)} classes, and the network answers with "
            f"{' × '.join(map(str, outputs.shape[1:]))} numbers",
            "give the data that the network was trained for, or its classifier as many outputs (arguments)",
        )
    return None
