"""The pruning space keeps the contract of every space."""

from __future__ import annotations

import subprocess
import sys
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from nasplat.core.architecture import Architecture
from nasplat.core.errors import NasplatError
from nasplat.core.problem import classification
from nasplat.networks.counter import count
from nasplat.spaces.pruning import PruningSpace

PROBLEM = classification((3, 32, 32), 10)


class Residual(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(width, 12, 3, padding=1), nn.BatchNorm2d(12), nn.ReLU())
        self.second = nn.Conv2d(12, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x + self.second(self.first(x)))


def small() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.ReLU(),
        Residual(8),
        Residual(8),
        nn.Conv2d(8, 16, 3, stride=2),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(16, 10),
    )


@cache
def space_of(model: str) -> PruningSpace:
    if model == "small":
        return PruningSpace(PROBLEM, model=f"{__name__}:small")
    return PruningSpace(PROBLEM, model="torchvision.models:mobilenet_v2", arguments={"num_classes": 10}, round_to=8)


@pytest.mark.parametrize("model", ["small", "mobilenet"])
def test_costs_are_those_of_the_built_network(model: str) -> None:
    """Budgets would be kept on paper alone."""
    space, rng = space_of(model), np.random.default_rng(0)
    for _ in range(3):
        one = space.sample(rng)
        network = space.build(one).eval()
        counted = count(network, PROBLEM.input_shape)
        assert space.known(one) == {"macs": counted.macs, "params": counted.params}
        assert space.cost(one) == counted.cost
        assert network(torch.zeros(2, 3, 32, 32)).shape == (2, 10)


@pytest.mark.parametrize("model", ["small", "mobilenet"])
def test_round_trip_and_mutation(model: str) -> None:
    """A search would train a network twice, or lose it in its file."""
    space, rng = space_of(model), np.random.default_rng(1)
    one = space.sample(rng)
    for _ in range(20):
        assert space.canonical(one.values) == one == Architecture.from_json(one.to_json())
        other = space.mutate(one, rng)
        assert other is not None and other != one
        changed = space.widths(one.values) != space.widths(other.values)
        assert changed or space.removed(one.values) != space.removed(other.values)
        one = other


def test_same_widths_are_one_architecture() -> None:
    """Equal networks would be trained as if they were different."""
    space = space_of("small")
    assert space.canonical({"0.ratio": 0.1}) == space.canonical(
        {"0.ratio": 0.2 if space._widths["0.ratio"][0.2] == 1 else 0.1}
    )
    gone = {"2.depth": 0}
    assert space.canonical(gone) == space.canonical({**gone, "2.first.0.ratio": 0.5})


def test_the_most_important_channels_are_inherited(tmp_path: Path) -> None:
    """A candidate would start from arbitrary weights."""
    torch.manual_seed(0)
    base = nn.Sequential(*small().children())
    torch.save(base.state_dict(), tmp_path / "base.pth")
    space = PruningSpace(PROBLEM, model=f"{__name__}:small", checkpoint=str(tmp_path / "base.pth"), depth=False)
    built = space.build(space.canonical({"4.ratio": 0.5}))
    makes, reads = (base.get_parameter(name).square() for name in ("4.weight", "8.weight"))
    squares = [makes.sum((1, 2, 3)), reads.sum(0)]
    order = sum(one / one.mean() for one in squares).argsort(descending=True)[:8].sort().values
    torch.testing.assert_close(built.get_parameter("4.weight"), base.get_parameter("4.weight")[order])


def test_digest_is_the_same_in_another_process() -> None:
    """A study could not be continued."""
    space = space_of("small")
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); from nasplat.core.problem import classification as c;"
        "from nasplat.spaces.pruning import PruningSpace as P;"
        f"s = P(c((3, 32, 32), 10), model='{__name__}:small'); print(s.canonical({{'4.ratio': 0.5}}).digest)"
    )
    folder = str(Path(sys.modules[__name__].__file__ or "").parents[__name__.count(".")])
    done = subprocess.run([sys.executable, "-c", code, folder], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == space.canonical({"4.ratio": 0.5}).digest


def test_bad_parameters() -> None:
    """The user would search a space that is not meant."""
    for wrong in ({"ratios": [0.0]}, {"only": ["nothing*"]}, {"round_to": 0}, {"scores": {"0": [1.0]}}):
        with pytest.raises(NasplatError):
            PruningSpace(PROBLEM, model=f"{__name__}:small", **wrong)  # type: ignore[arg-type]
