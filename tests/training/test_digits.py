"""On real images, through the real loader: without these nobody would know that anything is learned at all."""

from __future__ import annotations

import sys
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import nasplat.training.evaluate as evaluate_module
from nasplat.core.errors import NasplatError, TrialFailed
from nasplat.core.experiment import Data, Score, Train
from nasplat.core.graph import GraphBuilder, OperationGraph
from nasplat.data.datasets import Dataset, load_dataset
from nasplat.networks.graph_network import GraphNetwork, build_network
from nasplat.training.devices import place
from nasplat.training.evaluate import accuracy, evaluation_loader, judge
from nasplat.training.fit import fit, training_loader
from nasplat.training.latency import is_faster, latencies
from nasplat.training.loop import TrainResult
from nasplat.training.objectives import make_objective
from nasplat.training.optimisers import make_optimiser, trainable
from nasplat.training.step import training_step
from tests.data.helpers import NoWaiting
from tests.training.test_objectives import example_of
from tests.training.toys import same, weights

CPU = torch.device("cpu")


@cache
def digits(labels: bool = True) -> Dataset:
    return load_dataset(Data(source="digits", labels=labels))


def small_graph(dataset: Dataset, channels: int = 12) -> OperationGraph:
    """Three convolutions; the last but one may be dropped, and is tapped for an auxiliary classifier."""
    builder = GraphBuilder(dataset.problem.input_shape)
    node = builder.input
    taps = {}
    for index, (width, stride) in enumerate(((channels, 1), (2 * channels, 2), (2 * channels, 1))):
        previous = node
        node = builder.conv2d(node, width, 3, stride=stride, name=f"block{index}.conv")
        node = builder.batch_norm(node, name=f"block{index}.norm")
        if index == 2:
            node = builder.add([previous, builder.drop_path(node)])
        node = builder.activation(node)
        if index == 1:
            taps["auxiliary"] = node
    taps["features"] = node = builder.flatten(builder.global_avg_pool(node))
    output = dataset.problem.outputs[0]
    if output.kind == "classification":
        node = builder.linear(node, output.size, name="classifier")
    return builder.finish({output.name: node}, taps)


def fresh(dataset: Dataset) -> GraphNetwork:
    return build_network(small_graph(dataset), torch.Generator().manual_seed(0))


def trained(dataset: Dataset, **changes: Any) -> tuple[GraphNetwork, TrainResult]:
    network = fresh(dataset)
    chosen = Train.model_validate({"epochs": 5, "precision": "float32", "batch_size": 64, **changes})
    return network, fit(network, dataset, chosen, device=CPU, seed=0)


def test_labels_teach_a_small_network_to_read_digits() -> None:
    network, result = trained(digits(), epochs=8, lr=0.1, augment=(), drop_path=0.1, label_smoothing=0.05)
    assert result.losses[-1] < result.losses[0]
    found = judge(network, digits(), Score(), CPU)["accuracy"]
    assert found > 0.9
    assert accuracy(network, evaluation_loader(digits(), "validation", CPU), CPU) == found
    assert judge(network, digits(), Score(), CPU, split="test")["accuracy"] > 0.9


def test_the_default_augmentation_teaches_too() -> None:
    network, _ = trained(digits(), epochs=12, lr=0.1)
    assert judge(network, digits(), Score(), CPU)["accuracy"] > 0.8


@pytest.mark.parametrize(("objective", "lr"), [("simclr", 0.1), ("memory_bank", 0.03)])
def test_features_learned_without_labels_beat_those_of_an_untrained_network(objective: str, lr: float) -> None:
    # An untrained network's features already tell digits apart (0.76); labels are read by the probe alone.
    network, result = trained(digits(), objective=objective, epochs=30, lr=lr, augment=("crop",))
    assert result.losses[-1] < 0.75 * result.losses[0]
    before = judge(fresh(digits()), digits(), Score(probe="linear"), CPU)
    after = judge(network, digits(), Score(probe="linear"), CPU)
    assert after["accuracy"] > before["accuracy"] + 0.05
    assert after["probe_mean"] > before["probe_mean"]
    assert judge(network, digits(), Score(probe="knn"), CPU)["accuracy"] > 0.7


def test_the_memory_bank_remembers_images_as_they_are() -> None:
    """Its entries are averages of f(image), as published; of augmented images they would be averages of nothing."""
    dataset = digits()
    chosen = Train(objective="memory_bank", precision="float32", batch_size=64)
    objective = make_objective(chosen, dataset.problem, len(dataset.train))
    batch = next(
        training_loader(fresh(dataset), dataset, chosen, objective, CPU).epoch(torch.Generator().manual_seed(0))
    )
    images = torch.cat([one.views[0] for one in evaluation_loader(dataset, "train", CPU).ordered()])
    assert torch.allclose(batch.views[0], images[batch.indices], atol=1e-5)
    assert not torch.allclose(batch.views[1], images[batch.indices], atol=1e-2)


def test_images_without_labels_train_and_are_judged_by_a_users_own_probe(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unlabelled = digits(labels=False)
    network, result = trained(unlabelled, objective="simclr", epochs=2)
    assert result.finished
    for probe in (None, "linear", "knn"):
        with pytest.raises(NasplatError, match="needs labels"):
            judge(network, unlabelled, Score(probe=probe), CPU)
    with pytest.raises(NasplatError, match="needs labels"):
        trained(unlabelled)
    code = (
        "def spread(network, dataset, device):\n"
        "    return network(dataset.validation.images[:50].float()).std(0).mean()\n"
        "def broken(network, dataset, device):\n"
        "    return float('nan')\n"
        "def word(network, dataset, device):\n"
        "    return 'good'\n"
    )
    (tmp_path / "my_probe.py").write_text(code)
    monkeypatch.syspath_prepend(str(tmp_path))
    found = judge(network, unlabelled, Score(probe="my_probe:spread", maximise=("spread",)), CPU)
    assert found.keys() == {"spread"} and found["spread"] > 0
    found = judge(network, unlabelled, Score(maximise=("my_probe:spread",)), CPU)
    assert found.keys() == {"my_probe:spread"}
    with pytest.raises(TrialFailed, match="is nan"):
        judge(network, unlabelled, Score(maximise=("my_probe:broken",)), CPU)
    with pytest.raises(NasplatError, match="must be a number"):
        judge(network, unlabelled, Score(maximise=("my_probe:word",)), CPU)
    sys.modules.pop("my_probe")


def test_the_documented_example_of_a_users_own_metric_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = example_of(evaluate_module)
    assert len(code.splitlines()) < 20
    (tmp_path / "my_metrics.py").write_text(code)
    monkeypatch.syspath_prepend(str(tmp_path))
    network, _ = trained(digits(), epochs=6, lr=0.1, augment=())
    score = Score(maximise=("accuracy", "worst_class"), probe="my_metrics:worst_class")
    found = judge(network, digits(), score, CPU)
    sys.modules.pop("my_metrics")
    labels = digits().validation.labels
    assert labels is not None
    network.eval()
    loader = evaluation_loader(digits(), "validation", CPU)
    with torch.no_grad():
        predicted = torch.cat([network(batch.views[0]).argmax(1) for batch in loader.ordered()])
    worst = min(np.mean((predicted == labels)[labels == label].numpy()) for label in range(10))
    assert found["worst_class"] == pytest.approx(worst)


def test_nothing_waits_for_the_device_from_image_to_step() -> None:
    chosen = Train(precision="float32", objective="memory_bank", batch_size=64)
    objective, network = make_objective(chosen, digits().problem, len(digits().train)), fresh(digits())
    extra = objective.module(network)
    parameters = trainable((network, extra))
    optimiser = make_optimiser(parameters, chosen)
    generator = torch.Generator().manual_seed(0)
    batches = training_loader(network, digits(), chosen, objective, CPU).epoch(generator)
    next(batches)  # what is drawn once an epoch may be read
    placement = place(chosen, CPU)
    with NoWaiting():
        for batch in islice(batches, 5):
            training_step(network, objective, extra, batch, optimiser, parameters, placement, 5.0, generator)


def test_latency_is_measured_where_it_is_asked_for() -> None:
    network = fresh(digits())
    found = judge(network, digits(), Score(minimise=("latency", "macs")), CPU)
    assert found.keys() == {"accuracy", "latency", "latency_spread"}
    assert found["latency"] > 0 and found["latency_spread"] >= 0

    class Slower(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            for _ in range(200):
                result = network(images)
            return result

    shape = digits().problem.input_shape
    slower, faster = latencies((Slower(), network), shape, CPU, rounds=5)
    assert is_faster(slower, faster) and not is_faster(faster, slower)
    assert torch.is_grad_enabled()  # or nothing could be trained afterwards


def test_an_unknown_probe_is_answered_with_the_nearest_name() -> None:
    with pytest.raises(NasplatError, match="did you mean 'linear'"):
        judge(fresh(digits()), digits(), Score(probe="liner"), CPU)


def test_the_same_seed_gives_the_same_weights_through_the_real_loader_interrupted_or_not(tmp_path: Path) -> None:
    chosen = Train(epochs=2, precision="float32", objective="simclr", checkpoint_seconds=1e-9)
    first, second, third = (fresh(digits()) for _ in range(3))
    whole = fit(first, digits(), chosen, device=CPU, seed=5)
    fit(second, digits(), chosen, device=CPU, seed=5)
    assert same(weights(first), weights(second))
    answers = iter([False] * 6 + [True])
    fit(fresh(digits()), digits(), chosen, device=CPU, seed=5, checkpoint=tmp_path, stop=lambda: next(answers))
    pieced = fit(third, digits(), chosen, device=CPU, seed=5, checkpoint=tmp_path)
    assert same(weights(first), weights(third)) and pieced.losses == whole.losses
