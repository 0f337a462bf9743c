"""Differentiable widths and depths: the mixture is what it says, and the search ends at its target."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from nasplat.compression.relaxed import RelaxedNetwork, interpolation
from nasplat.compression.transformable import Settings, best_of, transformable_search
from nasplat.core.errors import NasplatError, TrialFailed
from nasplat.core.experiment import Data, Train
from nasplat.core.problem import classification
from nasplat.data.datasets import Dataset, load_dataset
from nasplat.spaces.pruning import PruningSpace
from nasplat.training.fit import fit

CPU = torch.device("cpu")


class Residual(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(width, 12, 3, padding=1), nn.BatchNorm2d(12), nn.ReLU())
        self.depthwise = nn.Sequential(nn.Conv2d(12, 12, 3, padding=1, groups=12), nn.BatchNorm2d(12), nn.ReLU())
        self.second = nn.Sequential(nn.Conv2d(12, width, 3, padding=1), nn.BatchNorm2d(width))

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x + self.second(self.depthwise(self.first(x))))


def small() -> nn.Module:
    stem = [nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU()]
    end = [nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, 24), nn.ReLU(), nn.Linear(24, 10)]
    return nn.Sequential(*stem, Residual(8), Residual(8), *end)


def normalised_tokens() -> nn.Module:
    class Tokens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.patches, self.norm, self.out = nn.Conv2d(1, 8, 2, 2), nn.LayerNorm(8), nn.Linear(8, 10)

        def forward(self, x: Tensor) -> Tensor:
            return self.out(self.norm(self.patches(x).flatten(2).transpose(1, 2)).mean(1))

    return Tokens()


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return load_dataset(Data())


@pytest.fixture(scope="module")
def space(tmp_path_factory: pytest.TempPathFactory, digits: Dataset) -> PruningSpace:
    torch.manual_seed(0)
    network = small()
    fit(network, digits, Train(epochs=6, batch_size=64, augment=()), device=CPU, seed=0)
    path = tmp_path_factory.mktemp("trained") / "small.pth"
    torch.save(network.state_dict(), path)
    return PruningSpace(digits.problem, model=f"{__name__}:small", checkpoint=str(path), ratios=[0.25, 0.5, 0.75])


@pytest.mark.parametrize(("width", "most"), [(3, 8), (4, 8), (5, 5), (1, 4)])
def test_interpolation_is_adaptive_pooling_over_channels(width: int, most: int) -> None:
    """Widths would be aligned to channels that do not belong together."""
    maps = torch.rand(2, width, 3, 3, generator=torch.Generator().manual_seed(0))
    found = torch.einsum("dc,nchw->ndhw", interpolation(width, most), maps)
    for channel in range(most):
        low, high = channel * width // most, -(-(channel + 1) * width // most)
        torch.testing.assert_close(found[:, channel], maps[:, low:high].mean(1))


def test_a_mixture_of_one_is_the_network_that_is_cut(space: PruningSpace) -> None:
    """The search would choose among other networks than those that it hands on."""
    relaxed = RelaxedNetwork(space)
    relaxed.network.double().eval()
    images = torch.rand(4, 1, 8, 8, generator=torch.Generator().manual_seed(0)).double()
    rng = np.random.default_rng(3)
    depths = set()
    for _ in range(8):
        architecture = space.sample(rng)
        depths.add(architecture.values["3.depth"])
        relaxed.take({name: (at, one.double()) for name, (at, one) in relaxed.alone(architecture).items()}, CPU)
        torch.testing.assert_close(relaxed(images), space.build(architecture).double().eval()(images))
    assert depths == {0, 1, 2}


def test_a_mixture_is_the_weighted_sum_of_interpolated_widths(space: PruningSpace) -> None:
    """Two widths would be mixed in another way than the paper's, or another channel would be read."""
    relaxed = RelaxedNetwork(space)
    relaxed.network.eval()
    whole = {name: ([0], torch.ones(1)) for name in relaxed.options}
    name = "7.ratio"  # 24 channels of a linear layer
    widths = relaxed.widths[name]
    order = torch.from_numpy(space.orders["7"].copy())
    images = torch.rand(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    seen: dict[str, Tensor] = {}
    relaxed.network.get_submodule("8").register_forward_hook(
        lambda module, inputs, output: seen.update(mixed=inputs[0])
    )
    relaxed.take(whole, CPU)
    relaxed(images)
    plain = seen["mixed"][:, order]
    relaxed.take({**whole, name: ([1, 2], torch.tensor([0.3, 0.7]))}, CPU)
    relaxed(images)
    most = max(widths[1], widths[2])
    pooled = [nn.functional.adaptive_avg_pool1d(plain[:, :width], most) for width in widths[1:3]]
    torch.testing.assert_close(seen["mixed"][:, order][:, :most], 0.3 * pooled[0] + 0.7 * pooled[1])
    assert bool((seen["mixed"][:, order][:, most:] == 0).all())


def test_the_expected_cost_is_the_mean_over_all_networks(space: PruningSpace) -> None:
    """The penalty would push towards another budget than the one that is asked for."""
    relaxed = RelaxedNetwork(space)
    generator = torch.Generator().manual_seed(0)
    for logits in relaxed.logits.values():
        logits.data = torch.randn(len(logits), generator=generator)
    shares = {name: logits.detach().double().softmax(0).tolist() for name, logits in relaxed.logits.items()}
    names = list(relaxed.options)
    total = 0.0
    everything = list(itertools.product(*(range(len(relaxed.options[name])) for name in names)))
    values = [{name: relaxed.options[name][at] for name, at in zip(names, one, strict=True)} for one in everything]
    macs, _ = space.costs(values)
    for one, cost in zip(everything, macs, strict=True):
        total += cost * float(np.prod([shares[name][at] for name, at in zip(names, one, strict=True)]))
    expected = relaxed.expected_macs()
    assert float(expected.detach()) == pytest.approx(total, rel=1e-9)
    expected.log().backward()
    assert all(logits.grad is not None and bool((logits.grad != 0).any()) for logits in relaxed.logits.values())


def test_every_choice_learns_from_the_loss(space: PruningSpace) -> None:
    """A width without a gradient keeps its first guess for ever."""
    relaxed = RelaxedNetwork(space)
    generator = torch.Generator().manual_seed(0)
    reached: set[str] = set()
    for _ in range(6):
        for logits in relaxed.logits.values():
            logits.grad = None
        relaxed.take(relaxed.draw(1.0, generator), CPU)
        relaxed(torch.rand(4, 1, 8, 8, generator=generator)).square().mean().backward()
        reached |= {name for name, one in relaxed.logits.items() if one.grad is not None and bool(one.grad.any())}
    assert reached == set(relaxed.logits)


def test_a_search_ends_at_its_target_and_goes_on_where_it_was_stopped(
    space: PruningSpace, digits: Dataset, tmp_path: Path
) -> None:
    """The networks would miss the budget; or the hours before an interruption would be lost, or change the rest."""
    target, settings = 0.4 * space.whole["macs"], Settings(epochs=8, batch_size=64, architecture_lr=0.2)
    whole = transformable_search(space, digits, target, settings, device=CPU, seed=0)
    best = best_of(whole, space, target)
    assert best is not None and best.macs <= target and best.loss == min(
        one.loss for one in whole if target - 0.05 * space.whole["macs"] <= one.macs <= target)  # fmt: skip
    assert whole[-1].loss < whole[0].loss

    class Stopped(Exception):
        pass

    def stop(snapshot: object) -> None:
        if getattr(snapshot, "epoch", 0) == 2:
            raise Stopped

    with pytest.raises(Stopped):
        transformable_search(space, digits, target, settings, device=CPU, seed=0, checkpoint=tmp_path, on_epoch=stop)
    again = transformable_search(space, digits, target, settings, device=CPU, seed=0, checkpoint=tmp_path)
    assert again == whole
    with pytest.raises(NasplatError, match="another search"):
        transformable_search(space, digits, target, settings, device=CPU, seed=1, checkpoint=tmp_path)


def test_what_cannot_be_searched_is_told(space: PruningSpace, digits: Dataset) -> None:
    """A network whose widths mean something else would be searched all the same; NaN would go on to the end."""
    tokens = PruningSpace(classification((1, 8, 8), 10), model=f"{__name__}:normalised_tokens")
    with pytest.raises(NasplatError, match="cannot be searched by gradients"):
        RelaxedNetwork(tokens)
    with pytest.raises(TrialFailed, match=r"no longer numbers|became nan"):
        settings = Settings(epochs=1, batch_size=64, lr=1e30)
        transformable_search(space, digits, 0.4 * space.whole["macs"], settings, device=CPU, seed=0)
    with pytest.raises(NasplatError, match="needs labels"):
        unlabelled = load_dataset(Data(labels=False))
        transformable_search(space, unlabelled, 1e5, Settings(epochs=1), device=CPU, seed=0)
