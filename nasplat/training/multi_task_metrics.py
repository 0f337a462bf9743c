"""What a network is worth in each of several tasks, and what sharing cost or gave: the mean relative change, delta_m.

| kind           | metrics                                                                | counts in delta_m        |
| -------------- | ---------------------------------------------------------------------- | ------------------------ |
| classification | accuracy                                                               | accuracy                 |
| multi_label    | mean_average_precision, mean_accuracy                                  | mean_average_precision   |
| regression     | rmse and mse (in the units of the labels as they were given), r2       | rmse, lower is better    |
| dense          | mean_iou, pixel_accuracy                                               | mean_iou                 |
| contrastive    | accuracy: the copy of an image is found among a batch of others        | accuracy                 |

Missing labels are left out everywhere. A metric of a task is named `task.metric`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import isfinite
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nasplat.core.errors import NasplatError, TrialFailed
from nasplat.core.tasks import Task
from nasplat.data.pretexts import change
from nasplat.training.features import device_of, evaluating
from nasplat.training.multi_task import task_labels, task_outputs

if TYPE_CHECKING:
    from nasplat.data.loader import Loader

METRICS_OF: dict[str, tuple[str, ...]] = {
    "classification": ("accuracy",),
    "multi_label": ("mean_average_precision", "mean_accuracy"),
    "regression": ("rmse", "mse", "r2"),
    "dense": ("mean_iou", "pixel_accuracy"),
    "contrastive": ("accuracy",),
}
MAIN_METRIC = {kind: metrics[0] for kind, metrics in METRICS_OF.items()}
LOWER_IS_BETTER = frozenset({"rmse", "mse"})


def main_metrics(tasks: Sequence[Task], metrics: Mapping[str, float]) -> dict[str, float]:
    """The one metric of each task that counts in delta_m, as `task.metric`."""
    names = [f"{task.name}.{MAIN_METRIC[task.kind]}" for task in tasks]
    return {name: metrics[name] for name in names}


def accuracy(outputs: Tensor, labels: Tensor) -> float:
    """Share of labels `(N,)` that are the largest of `outputs` `(N, classes)`; -1 is missing."""
    there = labels >= 0
    return ((outputs.argmax(1) == labels) & there).sum().item() / int(there.sum())


def mean_accuracy(outputs: Tensor, labels: Tensor) -> float:
    """The mean over the labels of the share of images in which the sign of `outputs` is right: both `(N, labels)`."""
    there = labels >= 0
    right = (((outputs > 0) == (labels > 0)) & there).sum(0).double()
    count = there.sum(0)
    return (right / count)[count > 0].mean().item()


def mean_average_precision(outputs: Tensor, labels: Tensor) -> float:
    """The mean over the labels of the average precision: both `(N, labels)`, -1 is missing.

    Average precision is the sum over thresholds of (recall - recall before) precision, equal outputs being one
    threshold. Labels that no image has are left out.
    """
    found = [
        _average_precision(scores[there], wanted[there])
        for scores, wanted in zip(outputs.double().T, labels.T, strict=True)
        for there in [wanted >= 0]
        if (wanted > 0).any()
    ]
    return sum(found) / len(found) if found else 0.0


def _average_precision(scores: Tensor, labels: Tensor) -> float:
    scores, order = scores.sort(descending=True)
    hits = (labels[order] > 0).double().cumsum(0)
    last = torch.cat([scores[1:] != scores[:-1], torch.ones(1, dtype=torch.bool)])  # of equal scores
    hits, ranks = hits[last], torch.arange(1, len(scores) + 1)[last]
    gained = torch.diff(hits, prepend=torch.zeros(1, dtype=hits.dtype))
    return (gained * hits / ranks).sum().item() / hits[-1].item()


def regression_metrics(task: Task, outputs: Tensor, labels: Tensor) -> dict[str, float]:
    """Of `outputs` and `labels` `(N, numbers)`, NaN where missing: means over the numbers that have labels.

    r2 is 1 - squared error / variance; where labels do not vary it is 1 if all are met and 0 otherwise.
    """
    scale = torch.tensor(task.std, dtype=torch.float64) if task.std else torch.ones(task.size, dtype=torch.float64)
    there = ~labels.isnan()
    count = there.sum(0)
    some = count > 0
    labels = torch.where(there, labels, torch.zeros_like(labels)).double()
    errors = torch.where(there, outputs.double() - labels, torch.zeros_like(labels)).square().sum(0)[some]
    mean = labels.sum(0) / count.clamp(min=1)
    spread = torch.where(there, labels - mean, torch.zeros_like(labels)).square().sum(0)[some]
    r2 = torch.where(spread > 0, 1 - errors / spread.clamp(min=1e-300), (errors == 0).double())
    mse = (errors / count[some] * scale[some].square()).mean().item()
    return {"rmse": mse**0.5, "mse": mse, "r2": r2.mean().item()}


def confusion(outputs: Tensor, labels: Tensor) -> Tensor:
    """How many pixels of each class (rows) are taken for each class (columns): `(N, classes, H, W)`, `(N, H, W)`."""
    classes = outputs.shape[1]
    there = labels >= 0
    pairs = labels[there].long() * classes + outputs.argmax(1)[there]
    return torch.bincount(pairs, minlength=classes**2).view(classes, classes)


def dense_metrics(matrix: Tensor) -> dict[str, float]:
    """Of a `confusion` matrix. Classes that neither labels nor outputs have are left out of mean_iou."""
    counts = matrix.double()
    right = counts.diagonal()
    union = counts.sum(0) + counts.sum(1) - right
    return {
        "mean_iou": (right / union)[union > 0].mean().item(),
        "pixel_accuracy": (right.sum() / counts.sum()).item(),
    }


def judge_tasks(network: nn.Module, loader: Loader, tasks: Sequence[Task], seed: int = 0) -> dict[str, float]:
    """The metrics of every task, in eval mode, over all images of a loader.

    Args:
        seed: of how images are changed for pretexts.

    Raises:
        TrialFailed: outputs that are not finite; the message names the task.
        NasplatError: a task without output, or without a label among these images.
    """
    device = device_of(network)
    generator = torch.Generator(device).manual_seed(seed)
    labelled = [task.name for task in tasks if not task.pretext]
    seen: dict[str, list[tuple[Tensor, Tensor]]] = {task.name: [] for task in tasks}
    with evaluating(network):
        for batch in loader.ordered():
            images = batch.views[0].to(device)
            outputs = task_outputs(network, images, labelled) if labelled else {}
            labels = dict(task_labels(batch)) if labelled else {}
            for task in tasks:
                if task.pretext:
                    changed, labels[task.name] = change(task.pretext, images, generator)
                    outputs |= task_outputs(network, changed, (task.name,))
                output, wanted = outputs[task.name].float(), labels[task.name].to(device)
                if task.kind == "contrastive":  # it is a classification among the images of the batch
                    itself = task_outputs(network, images, (task.name,))[task.name].float()
                    output = F.normalize(output, dim=1) @ F.normalize(itself, dim=1).T
                    right = output.argmax(1) == wanted
                    seen[task.name].append((output.isfinite().all(), torch.stack([right.sum(), (~right).sum()])))
                    continue
                if task.kind == "dense":  # all outputs of all pixels would be too much to keep
                    seen[task.name].append((output.isfinite().all(), confusion(output, wanted)))
                else:
                    seen[task.name].append((output.cpu(), wanted.cpu()))
    metrics: dict[str, float] = {}
    for task in tasks:
        first, second = zip(*seen[task.name], strict=True)
        metrics |= {f"{task.name}.{name}": value for name, value in _of_task(task, first, second).items()}
    return metrics


def _of_task(task: Task, outputs: Sequence[Tensor], labels: Sequence[Tensor]) -> dict[str, float]:
    if task.kind in ("dense", "contrastive"):
        finite, counts = torch.stack(list(outputs)).all(), torch.stack(list(labels)).sum(0)
        some = counts.sum() > 0
    else:
        output, wanted = torch.cat(list(outputs)), torch.cat(list(labels))
        finite = output.isfinite().all()
        some = (~wanted.isnan()).any() if task.kind == "regression" else (wanted >= 0).any()
    if not finite:
        raise TrialFailed(f"the outputs of task {task.name} are not finite", "a smaller lr keeps them so")
    if not some:
        raise NasplatError(f"task {task.name} has no label among these images", "label some of them")
    if task.kind == "contrastive":
        return {"accuracy": (counts[0] / counts.sum()).item()}
    if task.kind == "classification":
        return {"accuracy": accuracy(output, wanted)}
    if task.kind == "multi_label":
        return {
            "mean_average_precision": mean_average_precision(output, wanted),
            "mean_accuracy": mean_accuracy(output, wanted),
        }
    return regression_metrics(task, output, wanted) if task.kind == "regression" else dense_metrics(counts)


def delta_m(tasks: Sequence[Task], metrics: Mapping[str, float], single: Mapping[str, float]) -> float:
    """The mean over tasks of the relative change against networks of one task each, better being positive.

    The mean of (-1)^l (M - S) / |S| over the tasks' main metrics, l being 1 where lower is better (Maninis et al.,
    Attentive Single-Tasking of Multiple Tasks, 2019, equation 3); 0.01 is one percent.

    Args:
        metrics, single: by `task.metric`, as `judge_tasks` returns them; of the network, and of the single ones.

    Raises:
        NasplatError: a metric that is missing, not finite, or 0 for a single network.
    """
    if not tasks:
        raise NasplatError("delta_m of no task", "give the tasks of the network")
    total = 0.0
    for task in tasks:
        metric = MAIN_METRIC[task.kind]
        name = f"{task.name}.{metric}"
        for which, values in (("the network", metrics), ("single-task networks", single)):
            value: Any = values.get(name)
            if value is None or not isfinite(value):
                raise NasplatError(f"delta_m: {name} of {which} is {'missing' if value is None else value}")
        if single[name] == 0:
            raise NasplatError(
                f"delta_m: {name} of the single-task network is 0, and no change is relative to 0",
                "train longer, or leave the task out",
            )
        change_of = (metrics[name] - single[name]) / abs(single[name])
        total += -change_of if metric in LOWER_IS_BETTER else change_of
    return total / len(tasks)
