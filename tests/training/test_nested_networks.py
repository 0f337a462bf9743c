"""Nested sub-networks trained together: SortedNet, and what is shared beside them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from nasplat.core.errors import NasplatError
from nasplat.core.experiment import Data, Train
from nasplat.data.datasets import load_dataset
from nasplat.networks.graph_run import GraphRun
from nasplat.networks.shared_weights import SharedWeights, extremes
from nasplat.spaces.families import make_space
from nasplat.training.evaluate import evaluation_loader
from nasplat.training.fit import fit
from nasplat.training.nested_taps import NestedTaps, tap_channels, widest
from nasplat.training.objectives import make_objective
from nasplat.training.weight_source import SourceObjective, accuracies, calibration, uniform, with_weights

CPU = torch.device("cpu")
SPACES: dict[str, dict[str, Any]] = {
    "mbconv": {
        "family": "mbconv",
        "stem_channels": 8,
        "stages": [{"channels": 8, "stride": 2, "layers": 2}, {"channels": 16, "stride": 2, "layers": 2}],
        "operations": ["identity", "mb_k3_e3", "mb_k5_e3"],
        "widths": [0.5, 1.0],
        "depths": [1],
        "last_channels": 0,
    },
    **{
        block: {
            "family": "resnet",
            "block": block,
            "stages": [{"channels": 16, "stride": 2, "blocks": 2}, {"channels": 32, "stride": 2, "blocks": 2}],
            "stem_channels": 8,
            "widths": [0.5, 1.0],
            "depths": [1],
            "expansions": [0.5, 1.0],
            "kernels": [3, 5],
        }
        for block in ("basic", "bottleneck")
    },
}


@pytest.fixture(scope="module")
def digits() -> Any:
    return load_dataset(Data(source="digits", train_size=400))


@pytest.fixture(params=SPACES)
def space(request: pytest.FixtureRequest, digits: Any) -> Any:
    return make_space(SPACES[request.param], digits.problem)


def bank_of(space: Any) -> SharedWeights:
    return SharedWeights(space, "sliced", torch.Generator().manual_seed(0))


def validation(dataset: Any) -> list[Any]:
    return list(evaluation_loader(dataset, "validation", CPU).ordered())


def objective_of(space: Any, dataset: Any, paths: int, name: str = "supervised", **settings: Any) -> SourceObjective:
    inner = make_objective(Train(objective=name, **settings), dataset.problem, len(dataset.train))
    return SourceObjective(space, uniform(space, paths), inner)


def test_any_network_leaves_a_trained_supernet_as_an_ordinary_one(space: Any, digits: Any) -> None:
    """Of all widths, depths, inner widths and kernels: a person would deploy another network than was measured."""
    bank = bank_of(space)
    settings = Train(steps=6, batch_size=50, lr=0.05)
    fit(bank, digits, settings, device=CPU, seed=0, objective=objective_of(space, digits, 2))
    images, batches = calibration(digits, CPU), validation(digits)
    rng = np.random.default_rng(4)
    for architecture in [*extremes(space), *(space.sample(rng) for _ in range(3))]:
        (measured,) = accuracies(bank, space, [architecture], batches, images)
        graph = space.graph(architecture)
        with torch.no_grad():
            run = GraphRun(graph, *bank([graph]))
            run.calibrate(images)
            network = with_weights(bank, space, architecture, images).eval()
            outputs: Any = [network(batch.views[0]) for batch in batches]
            assert all(torch.equal(found, run(one.views[0])) for found, one in zip(outputs, batches, strict=True))
        right = sum(int((found.argmax(1) == one.labels).sum()) for found, one in zip(outputs, batches, strict=True))
        assert right / sum(len(one.indices) for one in batches) == measured


def test_several_networks_a_step_descend_the_mean_of_their_losses(digits: Any) -> None:
    """With the sum, a learning rate that suits one network would be too large for four."""
    space = make_space(SPACES["basic"], digits.problem)
    bank, batch = bank_of(space), validation(digits)[0]
    objective = objective_of(space, digits, 4)
    drawn: list[Any] = []
    rule = objective.rule

    def recorded(*arguments: Any) -> Any:
        drawn.append(rule(*arguments))
        return drawn[-1]

    objective.rule = recorded
    torch.manual_seed(3)
    loss = objective.loss(bank, None, batch, torch.Generator())
    loss.backward()
    together = {name: one.grad.clone() for name, one in bank.named_parameters() if one.grad is not None}
    bank.zero_grad()
    losses = []
    for architecture in drawn[0].architectures:
        graph = space.graph(architecture)
        own = nn.functional.cross_entropy(GraphRun(graph, *bank([graph]))(batch.views[0]), batch.labels)  # type: ignore[arg-type]
        (own / 4).backward()
        losses.append(own.detach())
    torch.testing.assert_close(loss.detach(), torch.stack(losses).mean())
    alone = {name: one.grad for name, one in bank.named_parameters() if one.grad is not None}
    assert len(set(drawn[0].architectures)) == 4 and together.keys() == alone.keys()
    for name, gradient in together.items():
        torch.testing.assert_close(gradient, alone[name], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("objective", ["supervised", "simclr", "memory_bank"])
def test_networks_of_different_features_share_what_is_trained_beside_them(
    space: Any, digits: Any, objective: str
) -> None:
    """One projector or memory for all widths: else a search without labels could not choose the last width."""
    settings = Train(objective=objective, steps=4, batch_size=40, lr=0.01, auxiliary=0.4 * (objective == "supervised"))
    bank = bank_of(space)
    before = {name: tensor.clone() for name, tensor in bank.state_dict().items()}
    inner = make_objective(settings, digits.problem, len(digits.train))
    rule = SourceObjective(space, uniform(space, 3), inner)
    result = fit(bank, digits, settings, device=CPU, seed=0, objective=rule)
    assert all(np.isfinite(result.losses))
    moved = [name for name, tensor in bank.state_dict().items() if not torch.equal(tensor, before[name])]
    assert len(moved) > len(before) / 2


def test_a_narrow_network_uses_the_first_weights_of_a_projector(digits: Any) -> None:
    """As the classifier's weights are nested, so are those of the projector: the first features mean the same."""
    space = make_space(SPACES["basic"], digits.problem)
    largest, smallest = (space.graph(one) for one in extremes(space))
    bank, images = bank_of(space), validation(digits)[0].views[0]
    linear = nn.Linear(32, 4)
    narrow = GraphRun(smallest, *bank([smallest]))
    found = NestedTaps(narrow, tap_channels(largest)).forward_taps(images, ("features",))["features"]
    own = narrow.forward_taps(images, ("features",))["features"]
    assert (own.shape[1], found.shape[1]) == (16, 32)
    torch.testing.assert_close(linear(found), nn.functional.linear(own, linear.weight[:, :16], linear.bias))
    with pytest.raises(NasplatError, match="room for 16"):
        wide = NestedTaps(GraphRun(largest, *bank([largest])), tap_channels(smallest))
        wide.forward_taps(images, ("features",))


def test_what_is_shared_is_made_for_the_widest(space: Any) -> None:
    rng = np.random.default_rng(1)
    most = tap_channels(space.graph(widest(space)))["features"]
    assert all(tap_channels(space.graph(space.sample(rng)))["features"] <= most for _ in range(50))
