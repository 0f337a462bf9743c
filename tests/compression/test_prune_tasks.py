"""Without these pruning a network for several tasks would cut what only one of them lives by."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from nasplat.compression.importance import importance
from nasplat.compression.prune import Pruned, prune_network
from nasplat.compression.task_importance import importance_to_all
from nasplat.core.errors import NasplatError
from nasplat.core.experiment import Data, Train
from nasplat.core.pruning import Importance, Pruning
from nasplat.data.datasets import Dataset, load_dataset
from nasplat.networks.branched import BranchedNetwork
from nasplat.networks.channel_tracer import trace_channels
from nasplat.networks.counter import count
from nasplat.spaces.branching import BranchingSpace
from nasplat.spaces.families import make_space
from nasplat.training.fit import fit
from tests.data.helpers import seeded
from tests.search.test_branching_experiment import SPACE

CPU = torch.device("cpu")


class TwoTasks(nn.Module):
    """A trunk of eight channels, of which one task reads the first four and the other one the rest."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.trunk = nn.Conv2d(3, 8, 3)
            self.first, self.second = nn.Linear(8, 4), nn.Linear(8, 1)
        with torch.no_grad():
            self.first.weight[:, 4:] = 0
            self.second.weight[:, :4] = 0

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        features = self.trunk(images).relu().mean((2, 3))
        return {"first": self.first(features), "second": self.second(features)}


@pytest.mark.parametrize("criterion", ["taylor", "hessian"])
def test_a_trunk_keeps_what_the_task_with_the_small_loss_reads(criterion: str) -> None:
    """Of two losses in other units the sum sees but one: half of the trunk would be gone, and with it a task."""
    model = TwoTasks().eval()
    graph = trace_channels(model, (torch.zeros(1, 3, 8, 8),))
    batches = [(torch.randn(16, 3, 8, 8, generator=seeded(seed)), torch.arange(16) % 4) for seed in range(8)]
    losses = {
        "first": lambda outputs, labels: nn.functional.cross_entropy(outputs["first"], labels),
        "second": lambda outputs, labels: 1e-3 * (outputs["second"][:, 0] - labels).square().mean(),
    }
    settings = Importance.model_validate({"criterion": criterion})

    def kept(scores: dict[str, Tensor]) -> set[int]:
        (group,) = scores.values()
        return set(group.topk(4).indices.tolist())

    together = importance(
        model, graph, settings, batches=batches, loss=lambda *given: losses["first"](*given) + losses["second"](*given)
    )
    assert kept(together) == {0, 1, 2, 3}  # the task with the small loss is lost
    found = importance_to_all(model, graph, settings, losses, batches, seeded(0))
    assert kept(found) & {0, 1, 2, 3} and kept(found) & {4, 5, 6, 7}
    (both,) = found.values()
    for name, own in (("first", slice(0, 4)), ("second", slice(4, 8))):
        (alone,) = importance(model, graph, settings, batches=batches, loss=losses[name]).values()
        if criterion == "taylor":  # of hessian every call draws other probes
            torch.testing.assert_close(both[own], alone[own] / alone.mean())
        assert alone[[place for place in range(8) if place not in range(8)[own]]].abs().max() == 0


def data() -> Dataset:
    return load_dataset(Data.model_validate({"tasks": ["labels", "rotation"], "train_size": 1000}))


@cache
def trained() -> BranchedNetwork:
    space = make_space(SPACE, data().problem)
    assert isinstance(space, BranchingSpace)
    network = space.build(space.sample(np.random.default_rng(1)))
    assert isinstance(network, BranchedNetwork)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        fit(network, data(), Train(epochs=12, lr=0.1, batch_size=64, augment=()), device=CPU, seed=0)
    return network.eval()


def pruned(network: nn.Module, **settings: object) -> Pruned:
    plain = {"budget": {"macs": 0.5}, "device": "cpu", **settings}
    return prune_network(network, (torch.zeros(1, 1, 8, 8),), Pruning.model_validate(plain), dataset=data())


def test_a_branched_network_is_halved_and_taught_by_what_it_was() -> None:
    """The promise for several tasks: half the MACs, proved right, and every task judged before and after."""
    train = {"epochs": 6, "lr": 0.1, "batch_size": 64, "augment": (), "distill": {}}
    found = pruned(trained(), importance={"criterion": "taylor", "images": 256}, train=train)
    first, last = found.stages[0], found.stages[-1]
    assert set(first.metrics) == set(last.metrics) == set(last.cut) == {"labels.accuracy", "rotation.accuracy"}
    assert isinstance(found.module, BranchedNetwork) and found.module.names == ("labels", "rotation")
    assert 0.48 <= last.macs / first.macs <= 0.5 and count(found.module, (1, 8, 8)).macs == last.macs
    assert found.proofs["float64"] <= 1e-9
    assert sum(last.metrics.values()) > sum(last.cut.values())
    assert last.metrics["labels.accuracy"] > 0.7 and last.metrics["rotation.accuracy"] > 0.5  # chance: 0.1, 0.25
    assert all("accuracy was not measured" not in note for note in found.notes)


def test_a_network_without_a_task_of_the_data_is_refused() -> None:
    with pytest.raises(NasplatError, match="the network has no task 'rotation'"):
        pruned(trained().only(["labels"]))
    with pytest.raises(NasplatError, match="one output without a name"):
        pruned(trained().alone("labels"))
