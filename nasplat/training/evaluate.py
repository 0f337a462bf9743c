"""What a trained network is worth: accuracy, probes, latency, and metrics of a user's own.

A user's own probe or metric is a `module:function` in the experiment file. It takes the network (in eval mode on its
device), the data set and the device, and returns a number, or several by name. Named as `score: {probe:
my_metrics:worst_class}`, a number becomes the first metric of `maximise`; a metric may also be named so itself, in
`maximise` or `minimise`. This one is the accuracy of the worst class on the validation images:

    # my_metrics.py
    import torch
    from nasplat.training.evaluate import evaluation_loader

    def worst_class(network, dataset, device):
        right = total = 0
        for batch in evaluation_loader(dataset, "validation", device).ordered():
            hits = network(batch.views[0]).argmax(1) == batch.labels
            right += torch.bincount(batch.labels[hits], minlength=len(dataset.classes))
            total += torch.bincount(batch.labels, minlength=len(dataset.classes))
        return {"worst_class": (right / total).min().item()}
"""

from __future__ import annotations

from collections.abc import Mapping
from math import isfinite
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import nn

from nasplat.core.errors import NasplatError, TrialFailed, nearest
from nasplat.core.experiment import Score
from nasplat.core.user_function import load_function
from nasplat.training.devices import memory_guard
from nasplat.training.features import evaluating
from nasplat.training.latency import latencies
from nasplat.training.multi_task_metrics import delta_m, judge_tasks
from nasplat.training.probes import extract_features, knn, linear_probe

if TYPE_CHECKING:
    from nasplat.data.datasets import Dataset
    from nasplat.data.loader import Loader

Split = Literal["train", "validation", "test"]
PROBES = ("linear", "knn")
METRIC_ARGUMENTS = ("network", "dataset", "device")


def evaluation_loader(dataset: Dataset, split: Split, device: torch.device, batch_size: int = 512) -> Loader:
    """The images of a split in their order, without augmentation, normalised as for training."""
    from nasplat.data.loader import Loader

    return Loader(
        getattr(dataset, split), batch_size=batch_size, device=device, mean=dataset.mean, std=dataset.std, augment=()
    )


def accuracy(network: nn.Module, loader: Loader, device: torch.device) -> float:
    """Share of images that the network's own classifier gets right, in eval mode and float32.

    Raises:
        NasplatError: the images have no labels, or the network has several outputs.
    """
    right = torch.zeros((), dtype=torch.int64, device=device)
    count = 0
    with evaluating(network):
        for batch in loader.ordered():
            if batch.labels is None:
                raise NasplatError("accuracy needs labels, and these images have none", "use a metric of your own")
            logits = network(batch.views[0].to(device))
            if isinstance(logits, Mapping):
                raise NasplatError(f"accuracy of which output? The network has {', '.join(logits)}", "name a probe")
            right += (logits.argmax(1) == batch.labels.to(device)).sum()
            count += len(batch.labels)
    return int(right) / count


def judge(
    network: nn.Module,
    dataset: Dataset,
    score: Score,
    device: torch.device,
    *,
    split: Split = "validation",
    seed: int = 0,
) -> dict[str, float]:
    """The metrics of a trained network that are measured, not counted.

    Of several tasks each one's as `task.metric`, and `delta_m` where `score.single_task` is known. Of one task
    those of the probe (`accuracy`, and of the linear probe also `probe_mean` and `probe_spread` over its learning
    rates). `latency` and `latency_spread` in milliseconds at batch 1 where the score names `latency`; metrics
    of a user's own where it names them. `macs` and the like come from the architecture, not from here.

    Raises:
        TrialFailed: a metric is not finite.
        Infeasible: the memory does not suffice.
        NasplatError: a metric or probe that cannot be measured on these data, or that does not exist.
    """
    named = (*score.maximise, *score.minimise)
    with memory_guard("judging"), evaluating(network):
        network.to(device)
        if dataset.tasks:
            metrics = judge_tasks(network, evaluation_loader(dataset, split, device), dataset.tasks, seed)
            if score.single_task:
                metrics["delta_m"] = delta_m(dataset.tasks, metrics, score.single_task)
        else:
            metrics = _probe(network, dataset, score, device, split, seed)
        if "latency" in named:
            (measured,) = latencies((network,), dataset.problem.input_shape, device)
            metrics |= {"latency": measured.median, "latency_spread": measured.spread}
        for name in named:
            if ":" in name and name not in metrics:
                value = load_function(name, "metric", METRIC_ARGUMENTS)(network, dataset, device)
                metrics |= _named(value, name)
    for name, value in metrics.items():
        if not isfinite(value):
            raise TrialFailed(f"the metric {name} is {value}")
    return metrics


def _probe(
    network: nn.Module, dataset: Dataset, score: Score, device: torch.device, split: Split, seed: int
) -> dict[str, float]:
    probe = score.probe
    if probe is not None and ":" in probe:
        first = (*score.maximise, *score.minimise)[0]
        return _named(load_function(probe, "probe", METRIC_ARGUMENTS)(network, dataset, device), first)
    if probe is not None and probe not in PROBES:
        known = f"there are {', '.join(PROBES)}, or module:function"
        raise NasplatError(f"there is no probe {probe!r}", nearest(probe, PROBES) + known)
    loader = evaluation_loader(dataset, split, device)
    if probe is None and "accuracy" not in (*score.maximise, *score.minimise):
        return {}
    if probe is None:
        return {"accuracy": accuracy(network, loader, device)}
    train, train_labels = extract_features(network, evaluation_loader(dataset, "train", device), device)
    test, test_labels = extract_features(network, loader, device)
    if train_labels is None or test_labels is None:
        raise NasplatError(f"probe {probe} needs labels, and these images have none", "use a metric of your own")
    if probe == "knn":
        predictions = knn(train, train_labels, test, neighbours=score.knn)
        return {"accuracy": (predictions == test_labels).double().mean().item()}
    found = linear_probe(train, train_labels, test, test_labels, seed=seed)
    return {"accuracy": found.accuracy, "probe_mean": found.mean, "probe_spread": found.spread}


def _named(value: Any, name: str) -> dict[str, float]:
    """What a user's function returned, as numbers by name."""
    try:
        if isinstance(value, Mapping):
            return {str(key): float(number) for key, number in value.items()}
        return {name: float(value)}
    except (TypeError, ValueError) as error:
        message = f"{name}: a metric must be a number, or a dictionary of numbers, not {type(value).__name__}"
        raise NasplatError(message) from error
