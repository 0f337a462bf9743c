"""Without these a user would train on a loss that is not the published one, and compare candidates by it."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from torch import Tensor, nn

import nasplat.training.objectives as objectives_module
from nasplat.core.errors import NasplatError
from nasplat.training.contrastive import MemoryBank, SimCLR, bank_nce, nt_xent
from nasplat.training.features import features
from nasplat.training.loop import train
from nasplat.training.objectives import Supervised, auxiliary_head, make_objective
from tests.training.toys import PROBLEM, UNLABELLED, ToyBatch, ToyLoader, ToyNetwork, settings


def plain_nt_xent(first: list[list[float]], second: list[list[float]], temperature: float) -> float:
    """Equation 1 of Chen et al. (2020), term by term in Python's floats."""
    rows = [
        row for pair in zip(first, second, strict=True) for row in pair
    ]  # 2k and 2k + 1 are a pair, as in the paper

    def similarity(i: int, j: int) -> float:
        dot = sum(a * b for a, b in zip(rows[i], rows[j], strict=True))
        return dot / math.hypot(*rows[i]) / math.hypot(*rows[j])

    def loss(i: int, j: int) -> float:
        below = sum(math.exp(similarity(i, k) / temperature) for k in range(len(rows)) if k != i)
        return -math.log(math.exp(similarity(i, j) / temperature) / below)

    pairs = len(rows) // 2
    return sum(loss(2 * k, 2 * k + 1) + loss(2 * k + 1, 2 * k) for k in range(pairs)) / (2 * pairs)


@hypothesis_settings(deadline=None, max_examples=25)
@given(st.integers(2, 6), st.integers(1, 5), st.floats(0.1, 2.0), st.integers(0, 2**20))
def test_nt_xent_is_the_published_loss(count: int, size: int, temperature: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    first, second = rng.normal(size=(2, count, size))
    ours = nt_xent(torch.tensor(first), torch.tensor(second), temperature).item()
    assert ours == pytest.approx(plain_nt_xent(first.tolist(), second.tolist(), temperature), rel=1e-9)


def test_nt_xent_has_the_gradient_of_the_published_loss() -> None:
    rng = np.random.default_rng(0)
    both = rng.normal(size=(2, 4, 3))
    tensor = torch.tensor(both, requires_grad=True)
    nt_xent(tensor[0], tensor[1], 0.3).backward()
    assert tensor.grad is not None
    step = 1e-5
    for index in np.ndindex(both.shape):
        values = []
        for sign in (1, -1):
            moved = both.copy()
            moved[index] += sign * step
            values.append(plain_nt_xent(moved[0].tolist(), moved[1].tolist(), 0.3))
        assert tensor.grad[index].item() == pytest.approx((values[0] - values[1]) / (2 * step), abs=1e-7)


def test_nt_xent_is_finite_and_small_where_views_agree_and_images_differ() -> None:
    perfect = torch.eye(8)
    assert nt_xent(perfect, perfect, 0.1).item() < 0.01
    nothing = torch.zeros(8, 4, requires_grad=True)
    loss = nt_xent(nothing, nothing, 0.1)
    loss.backward()
    assert loss.item() == pytest.approx(math.log(15))
    assert nothing.grad is not None and nothing.grad.isfinite().all()


def plain_bank_nce(query: np.ndarray, bank: np.ndarray, own: list[int], others: list[int], temperature: float) -> float:
    """Equations 4 and 5 of PIRL (2020), in NumPy, one query after the other."""
    total = 0.0
    for row, index in zip(query, own, strict=True):
        row = row / np.linalg.norm(row)
        kept = [other for other in others if other != index]
        above = np.exp(bank[[index, *kept]] @ row / temperature)
        shares = above / above.sum()
        total += -np.log(shares[0]) - np.log(1 - shares[1:]).sum()
    return float(total / len(query))


def test_bank_nce_is_the_published_loss_and_leaves_out_an_images_own_entry() -> None:
    rng = np.random.default_rng(0)
    query, bank = rng.normal(size=(3, 5)), rng.normal(size=(10, 5))
    bank /= np.linalg.norm(bank, axis=1, keepdims=True)
    own, others = [4, 0, 7], [1, 4, 4, 9, 7, 2]
    ignored = torch.tensor([[other == index for other in others] for index in own])
    entries = torch.tensor(bank)
    ours = bank_nce(torch.tensor(query), entries[own], entries[others], ignored, 0.5)
    assert ours.item() == pytest.approx(plain_bank_nce(query, bank, own, others, 0.5), rel=1e-9)


def test_bank_nce_is_finite_where_a_negative_looks_just_like_the_query() -> None:
    bank = torch.eye(4)
    query = bank[1:2].clone().requires_grad_()
    loss = bank_nce(query, bank[:1], bank[1:], torch.zeros(1, 3, dtype=torch.bool), 0.01)
    loss.backward()
    assert loss.isfinite() and query.grad is not None and query.grad.isfinite().all()


def first_batch(views: int) -> ToyBatch:
    return next(ToyLoader(views=views).epoch(torch.Generator().manual_seed(0)))


def test_the_memory_moves_half_way_and_only_for_the_images_of_the_batch() -> None:
    objective = make_objective(settings(objective="memory_bank"), PROBLEM, 128)
    network = ToyNetwork(dropout=0.0)
    extra = objective.module(network)
    assert isinstance(objective, MemoryBank) and extra is not None and objective.temperature == 0.07
    before = extra.get_buffer("bank").clone()
    batch = first_batch(2)
    network.eval()  # so that the features can be had a second time
    swapped = ToyBatch(batch.views[::-1], batch.labels, batch.indices)
    expected = torch.zeros(0)
    for visit, one in enumerate((batch, swapped, batch)):
        objective.loss(network, extra, one, torch.Generator().manual_seed(0))  # type: ignore[arg-type]
        latest = nn.functional.normalize(extra.get_submodule("plain_head")(features(network, one.views[0])), dim=1)
        expected = nn.functional.normalize(0.5 * expected + 0.5 * latest, dim=1) if visit else latest
        assert torch.allclose(extra.get_buffer("bank")[batch.indices], expected, atol=1e-6)
    after = extra.get_buffer("bank")
    others = torch.ones(128, dtype=torch.bool)
    others[batch.indices] = False
    assert torch.equal(after[others], before[others])
    assert torch.allclose(after.norm(dim=1), torch.ones(128))
    assert torch.equal(extra.get_buffer("seen"), ~others)
    with pytest.raises(NasplatError, match="two training images"):
        make_objective(settings(objective="memory_bank"), PROBLEM, 1)


@pytest.mark.parametrize("name", ["simclr", "memory_bank"])
def test_contrastive_losses_go_down(name: str) -> None:
    objective = make_objective(settings(objective=name), UNLABELLED, 128)
    loader = ToyLoader(views=2, labelled=False)
    chosen = settings(objective=name, epochs=20, lr=0.02)
    result = train(ToyNetwork(dropout=0.0), objective, loader, chosen, device=torch.device("cpu"), seed=0)  # type: ignore[arg-type]
    # The first epoch of the memory bank meets images that it has not seen yet, and is easier.
    assert result.losses[-1] < 0.9 * max(result.losses)


def test_the_temperature_of_the_settings_comes_first() -> None:
    simclr = make_objective(settings(objective="simclr"), PROBLEM, 10)
    assert isinstance(simclr, SimCLR) and simclr.temperature == 0.2
    assert make_objective(settings(objective="simclr", temperature=0.5), PROBLEM, 10).temperature == 0.5  # type: ignore[attr-defined]
    assert make_objective(settings(objective="memory_bank", temperature=0.5), PROBLEM, 10).temperature == 0.5  # type: ignore[attr-defined]


class Fixed(nn.Module):
    """Logits that depend on the images in a known way: their mean over the pixels."""

    def forward(self, images: Tensor) -> Tensor:
        return torch.cat([images.mean((2, 3)), images.mean((1, 2, 3))[:, None]], dim=1)


def test_label_smoothing_is_the_published_one() -> None:
    batch = first_batch(1)
    loss = Supervised(settings(label_smoothing=0.1), PROBLEM, 128).loss(Fixed(), None, batch, torch.Generator())  # type: ignore[arg-type]
    assert batch.labels is not None
    targets = np.full((32, 4), 0.1 / 4) + 0.9 * np.eye(4)[batch.labels.numpy()]
    logits = Fixed()(batch.views[0]).double().numpy()
    log_shares = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    assert loss.item() == pytest.approx(-(targets * log_shares).sum(1).mean(), rel=1e-5)


def test_mixup_mixes_images_and_targets_with_the_same_weights() -> None:
    batch = first_batch(1)
    assert batch.labels is not None
    objective = Supervised(settings(mixup=0.3, label_smoothing=0.1), PROBLEM, 128)
    loss = objective.loss(Fixed(), None, batch, torch.Generator().manual_seed(3))  # type: ignore[arg-type]
    weight = objectives_module._beta(0.3, 32, torch.device("cpu"), torch.Generator().manual_seed(3)).double().numpy()
    images = batch.views[0].double().numpy()
    mixed = weight[:, None, None, None] * images + (1 - weight)[:, None, None, None] * np.roll(images, 1, 0)
    hot = np.eye(4)[batch.labels.numpy()]
    targets = 0.1 / 4 + 0.9 * (weight[:, None] * hot + (1 - weight)[:, None] * np.roll(hot, 1, 0))
    logits = Fixed()(torch.tensor(mixed)).numpy()
    log_shares = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    assert loss.item() == pytest.approx(-(targets * log_shares).sum(1).mean(), rel=1e-4)


def test_mixup_draws_from_the_beta_distribution() -> None:
    draws = objectives_module._beta(0.4, 20000, torch.device("cpu"), torch.Generator().manual_seed(0))
    assert draws.min() >= 0 and draws.max() <= 1
    assert draws.mean().item() == pytest.approx(0.5, abs=0.01)
    assert draws.var().item() == pytest.approx(1 / (4 * (2 * 0.4 + 1)), abs=0.005)  # variance of Beta(a, a)


def test_the_auxiliary_loss_is_added_with_its_weight() -> None:
    objective, network, batch = (
        Supervised(settings(auxiliary=0.4), PROBLEM, 128),
        ToyNetwork(dropout=0.0),
        first_batch(1),
    )
    head = objective.module(network)
    assert head is not None and batch.labels is not None
    loss = objective.loss(network, head, batch, torch.Generator())  # type: ignore[arg-type]
    taps = network.forward_taps(batch.views[0], ("logits", "auxiliary"))
    entropy = nn.functional.cross_entropy
    expected = entropy(taps["logits"], batch.labels) + 0.4 * entropy(head(taps["auxiliary"]), batch.labels)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    with pytest.raises(NasplatError, match="auxiliary"):
        objective.module(nn.Linear(3, 3))


@pytest.mark.parametrize("size", [1, 2, 4, 5, 8, 14])
def test_auxiliary_heads_fit_maps_of_any_size(size: int) -> None:
    assert auxiliary_head((6, size, size), 5)(torch.randn(2, 6, size, size)).shape == (2, 5)


def test_features_are_found_in_any_network() -> None:
    images = torch.randn(2, 3, 8, 8)
    classifier = nn.Sequential(nn.Conv2d(3, 5, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, 4))
    assert torch.allclose(features(classifier, images), classifier[:3](images))
    convolution = nn.Conv2d(3, 5, 3)
    assert torch.allclose(features(convolution, images), convolution(images).mean((2, 3)))

    class Timm(nn.Sequential):
        def forward_features(self, images: Tensor) -> Tensor:
            return self[0](images)

    assert features(Timm(nn.Conv2d(3, 5, 3)), images).shape == (2, 5)
    assert features(ToyNetwork(), images).shape == (2, 16)

    class Unused(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.unused = nn.Linear(2, 2)

        def forward(self, images: Tensor) -> Tensor:
            return images

    with pytest.raises(NasplatError, match="cannot be found"):
        features(Unused(), images)


def test_an_unknown_objective_is_answered_with_the_nearest_name() -> None:
    with pytest.raises(NasplatError, match="did you mean 'simclr'"):
        make_objective(settings(objective="simcrl"), PROBLEM, 10)
    with pytest.raises(NasplatError, match="no module 'no_such_module'"):
        make_objective(settings(objective="no_such_module:f"), PROBLEM, 10)


def example_of(module: object) -> str:
    """The code in a module's docstring."""
    text = str(module.__doc__)
    lines = text[text.index("    # my_") :].splitlines()
    return "\n".join(line[4:] for line in lines)


def test_the_documented_example_of_a_users_own_objective_trains(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = example_of(objectives_module)
    assert len(code.splitlines()) < 20
    (tmp_path / "my_module.py").write_text(code)
    monkeypatch.syspath_prepend(str(tmp_path))
    chosen = settings(objective="my_module:brightness", epochs=20)
    objective = make_objective(chosen, UNLABELLED, 128)
    loader = ToyLoader(labelled=False)
    result = train(ToyNetwork(), objective, loader, chosen, device=torch.device("cpu"), seed=0)  # type: ignore[arg-type]
    sys.modules.pop("my_module")
    assert result.losses[-1] < 0.5 * result.losses[0]


def test_what_is_not_an_objective_is_told_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "odd_module.py").write_text("def nothing(settings, problem, dataset_size):\n    return 3\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(NasplatError, match="has no views"):
        make_objective(settings(objective="odd_module:nothing"), PROBLEM, 10)
    with pytest.raises(NasplatError, match="did you mean odd_module:nothing"):
        make_objective(settings(objective="odd_module:nothin"), PROBLEM, 10)
    sys.modules.pop("odd_module")
