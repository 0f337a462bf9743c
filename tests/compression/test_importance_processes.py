from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from nasplat.compression.criteria import CRITERIA
from nasplat.compression.importance import importance
from nasplat.core.channel_graph import ChannelGraph, Group, Member, TensorAxes
from nasplat.core.errors import NasplatError
from nasplat.core.pruning import Importance
from nasplat.training.distributed import Report, Shard, launch


def three_layers() -> tuple[nn.Module, ChannelGraph]:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.Tanh(), nn.Conv2d(4, 3, 3))
    nn.init.normal_(network[1].weight)
    places = np.arange(4)[:, None]
    dims = {"0.weight": 0, "0.bias": 0, "1.weight": 0, "1.bias": 0, "1.running_mean": 0, "3.weight": 1}
    members = tuple(Member(name, dim, places) for name, dim in dims.items())
    state, trained = network.state_dict(), dict(network.named_parameters())
    tensors = {
        name: TensorAxes(tuple(state[name].shape), (None,) * state[name].dim(), name in trained) for name in dims
    }
    return network.eval(), ChannelGraph((Group("0", 4, 1, members, "channels"),), (), tensors)


def images() -> Tensor:
    return torch.randn(8, 2, 8, 8, generator=torch.Generator().manual_seed(1))


def labels() -> Tensor:
    return torch.arange(8) % 3


def loss(outputs: Tensor, labels: Tensor) -> Tensor:
    return nn.functional.cross_entropy(outputs.mean((2, 3)), labels)


def scores(criterion: str, batches: list[tuple[Tensor, Tensor | None]]) -> list[float]:
    settings = Importance.model_validate({"criterion": criterion, "normalisation": "none"})
    generator = torch.Generator().manual_seed(3)
    return importance(*three_layers(), settings, batches=batches, loss=loss, generator=generator)["0"].tolist()


def score_a_share(task: Mapping[str, Any], shard: Shard, report: Report) -> dict[str, Any]:
    """What both processes find with their shares of the images, and what each says where the second one has none."""
    mine = list(zip(images().chunk(shard.world), labels().chunk(shard.world), strict=True))[shard.rank]
    found: list[Any] = [None] * shard.world
    torch.distributed.all_gather_object(found, {criterion: scores(criterion, [mine]) for criterion in CRITERIA})
    try:
        scores("chip", [mine] if shard.rank == 0 else [])
    except NasplatError as error:
        said = error.message
    refusals: list[Any] = [None] * shard.world
    torch.distributed.all_gather_object(refusals, said)
    return {"scores": found, "refusals": refusals}


def test_processes_with_shares_of_the_images_agree() -> None:
    """Every process would remove other channels, and their networks would no longer fit together; or wait forever."""
    both = launch(f"{__name__}:score_a_share", {}, 2, lambda fields: None)
    first, second = both["scores"]
    assert first == second
    batches = list(zip(images().chunk(2), labels().chunk(2), strict=True))
    for criterion, found in first.items():
        if criterion != "hessian":  # alone, the second batch has other probes
            assert found == pytest.approx(scores(criterion, batches), rel=1e-6), criterion
    assert all("there are none" in said for said in both["refusals"])
