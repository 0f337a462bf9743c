"""A graph hypernetwork trained on diverse networks, and what it is good for: unseen networks, retrieval, prediction."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from nasplat.core.errors import NasplatError
from nasplat.core.experiment import Data, Train
from nasplat.core.rank_correlation import kendall
from nasplat.data.datasets import load_dataset
from nasplat.networks.counter import copy_to
from nasplat.networks.graph_encoder import nearest
from nasplat.networks.primitive_graph import primitives
from nasplat.search.weight_sources import graph_hypernetwork, make
from nasplat.search.weights import source_settings
from nasplat.spaces.families import make_space
from nasplat.spaces.recording import record
from nasplat.training.evaluate import accuracy, evaluation_loader
from nasplat.training.fit import fit
from nasplat.training.initialisation import initialise_from, problem_of
from nasplat.training.objectives import make_objective
from nasplat.training.weight_source import SourceObjective, accuracies, calibration, with_weights

CPU = torch.device("cpu")
TINY = {
    "family": "diverse",
    "operations": [
        "conv_3x3",
        "conv_5x5",
        "sep_conv_3x3",
        "dilated_3x3",
        "group_conv_3x3",
        "max_pool_3x3",
        "skip_connect",
        "none",
    ],
    "nodes": 1,
    "stages": 1,
    "channels": [12],
    "cells": [1],
    "stems": ["conv_3x3"],
    "norms": ["batch_norm"],
    "blocks": ["plain", "residual"],
}


@pytest.fixture(scope="module")
def digits() -> Any:
    return load_dataset(Data(source="digits"))


@pytest.fixture(scope="module")
def space(digits: Any) -> Any:
    return make_space(TINY, digits.problem)


@pytest.fixture(scope="module")
def trained(digits: Any, space: Any) -> tuple[Any, Any, Any]:
    """The module, the result of its training, and the objective."""
    source = graph_hypernetwork(networks=1, width=16, channels=12, kernel=5)
    settings = source_settings(Train(epochs=7, batch_size=32), source, {"lr": 1e-2})
    module = make(source, space, 0)
    objective = SourceObjective(space, source.rule(space), make_objective(settings, digits.problem, len(digits.train)))
    return module, fit(module, digits, settings, device=CPU, seed=0, objective=objective), objective


def test_generated_weights_of_unseen_networks_read_digits(trained: Any, digits: Any, space: Any) -> None:
    """It must make networks that work before it can rank them; chance is 10 %."""
    module, result, objective = trained
    assert result.losses[-1] < 0.88 * result.losses[0]
    rng = np.random.default_rng(9)
    seen = set(objective._graphs)
    drawn = (space.sample(rng) for _ in range(200))
    unseen = [one for one in drawn if one.digest not in seen][:8]
    batches = list(evaluation_loader(digits, "validation", CPU).ordered())
    found = list(accuracies(module, space, unseen, batches, calibration(digits, CPU)))
    assert np.median(found) > 0.2
    assert objective.left_out == 0 and objective.trained == result.steps
    # What leaves as a network of its own is what was ranked.
    network = with_weights(module, space, unseen[0], calibration(digits, CPU))
    assert accuracy(network, evaluation_loader(digits, "validation", CPU), CPU) == found[0]


def test_other_spaces_are_refused_or_warned_of(trained: Any, digits: Any, space: Any) -> None:
    """A ranking by weights for other networks looks like any other ranking."""
    module = trained[0]
    other = make_space({**TINY, "channels": [6]}, digits.problem)
    architecture = other.canonical({})
    batches = list(evaluation_loader(digits, "validation", CPU).ordered())
    with pytest.raises(NasplatError, match="made for the space"):
        list(accuracies(module, other, [architecture], batches, []))
    with pytest.raises(NasplatError, match="of another space"):
        list(accuracies(module, space, [architecture], batches, []))
    module.outside = "warn"
    try:
        with pytest.warns(UserWarning, match="a guess"):
            (found,) = accuracies(module, other, [architecture], batches, calibration(digits, CPU))
    finally:
        module.outside = "refuse"
    assert found > 0.1


def torchvision_networks() -> dict[str, tuple[nn.Module, tuple[str, ...]]]:
    """Networks, and what no layer of theirs owns."""
    from nasplat.data.torchvision_import import torchvision

    models = torchvision.models
    vit = models.VisionTransformer(32, 8, num_layers=2, num_heads=2, hidden_dim=32, mlp_dim=64, num_classes=7)
    return {
        "resnet18": (models.resnet18(num_classes=7), ()),
        "mobilenet_v2": (models.mobilenet_v2(num_classes=7, width_mult=0.35), ()),
        "vit": (vit, ("class_token", "encoder.pos_embedding")),
    }


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2", "vit"])
def test_torchvision_networks_start_with_signals_of_a_sane_scale(trained: Any, name: str) -> None:
    """Signals that die or explode on the way leave nothing to train from."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network, others = torchvision_networks()[name]
    problem = problem_of(network, (3, 32, 32))
    left = initialise_from(trained[0], network, problem, torch.Generator().manual_seed(0))
    assert set(others) <= set(left) and all("in_proj" in one for one in set(left) - set(others))
    scales: dict[str, float] = {}

    def watch(module: nn.Module, inputs: Any, output: Any) -> None:
        if isinstance(output, Tensor):
            scales[str(len(scales))] = float(output.std())

    layers = [one for one in network.modules() if isinstance(one, nn.Conv2d | nn.Linear)]
    for layer in layers:
        layer.register_forward_hook(watch)
    images = torch.randn(8, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        outputs = network.train()(images)
    assert outputs.shape == (8, 7) and outputs.isfinite().all() and outputs.std(0).max() > 1e-4
    assert len(scales) >= len(layers) // 2 and all(1e-4 < scale < 1e3 for scale in scales.values())


def test_a_network_that_does_not_fit_its_images_is_told() -> None:
    """Torch would tell of matrices that cannot be multiplied."""
    network = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(144, 2))
    with pytest.raises(NasplatError, match="does not run on an image of 1×9×9"):
        problem_of(network, (1, 9, 9))


def embeddings(module: Any, graphs: list[Any]) -> Tensor:
    with torch.no_grad():
        return module.embedding(graphs)


def test_embeddings_tell_what_a_network_costs(trained: Any, digits: Any) -> None:
    """Features that a regressor cannot read predict nothing: a ridge on 50 networks, judged on 25 others."""
    wide = make_space({"family": "diverse", "channels": [4, 8, 16], "cells": [1], "stages": 2}, digits.problem)
    rng = np.random.default_rng(0)
    architectures = [wide.sample(rng) for _ in range(75)]
    features = embeddings(trained[0], [wide.graph(one) for one in architectures]).double().numpy()
    features = np.column_stack([(features - features[:50].mean(0)) / features[:50].std(0), np.ones(75)])
    targets = np.log([wide.cost(one).macs for one in architectures])
    train, test = slice(0, 50), slice(50, 75)
    penalty = np.eye(features.shape[1])
    weights = np.linalg.solve(features[train].T @ features[train] + penalty, features[train].T @ targets[train])
    assert kendall(list(features[test] @ weights), list(targets[test])) > 0.5


def test_networks_that_are_alike_are_found(trained: Any, digits: Any) -> None:
    """Retrieval that finds anything but the network itself, and then its relatives, is a lottery."""
    from nasplat.data.torchvision_import import torchvision

    models = torchvision.models
    names = ("resnet18", "resnet34", "mobilenet_v2", "vgg11")
    graphs = []
    for name in names:
        with torch.device("meta"):
            network = getattr(models, name)()
        graphs.append(primitives(record(copy_to(network, "meta").eval(), problem_of(network, (3, 64, 64)))))
    vectors = embeddings(trained[0], graphs)
    assert nearest(vectors, vectors[0], 2).tolist() == [0, 1]
    assert sorted(nearest(vectors, vectors[3], 9).tolist()) == [0, 1, 2, 3]
