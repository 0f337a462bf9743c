"""Without these a search would be praised for grouping tasks that are not the related ones."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from nasplat.core.errors import NasplatError
from nasplat.data.related_tasks import related_tasks, teacher_weights


@given(st.lists(st.integers(1, 4), min_size=1, max_size=4), st.floats(0, 1), st.integers(0, 6), st.integers(0, 2**31))
def test_cosines_are_exact(sizes: list[int], cosine: float, more: int, seed: int) -> None:
    latents = len(sizes) + sum(sizes) + more
    weights = teacher_weights(sizes, cosine, latents, np.random.default_rng(seed))
    groups = np.repeat(np.arange(len(sizes)), sizes)
    wanted = np.where(groups[:, None] == groups, cosine, 0.0)
    np.fill_diagonal(wanted, 1.0)
    np.testing.assert_allclose(weights @ weights.T, wanted, atol=1e-12)


def labels_of(found: object) -> np.ndarray:
    parts = (found.dataset.train, found.dataset.validation, found.dataset.test)  # type: ignore[attr-defined]
    names = [task.name for task in found.dataset.tasks]  # type: ignore[attr-defined]
    return torch.cat([torch.cat([part.task_labels[name].float() for name in names], 1) for part in parts]).numpy()


def test_targets_correlate_within_groups_and_not_between() -> None:
    for cosine in (0.0, 0.5, 0.95):
        found = related_tasks((2, 2), cosine, count=3000, image_size=15, noise=0.0, seed=1)
        measured = np.corrcoef(labels_of(found).T)
        assert found.groups == (0, 0, 1, 1)
        assert max(abs(measured[:2, 2:]).ravel()) < 0.08  # four deviations of a correlation of 3000
        assert measured[0, 1] == pytest.approx(cosine, abs=0.15) and measured[2, 3] == pytest.approx(cosine, abs=0.15)


def test_classes_are_equally_frequent() -> None:
    found = related_tasks((1, 1), classes=4, count=400, image_size=15)
    parts = (found.dataset.train, found.dataset.validation, found.dataset.test)
    labels = torch.cat([part.task_labels["group0_task0"] for part in parts])
    assert torch.bincount(labels).tolist() == [100] * 4
    assert [len(part) for part in parts] == [240, 80, 80]


def test_images_tell_what_the_tasks_ask() -> None:
    """A small network, which knows nothing of how they were made, learns the targets of images that it has not seen."""
    found = related_tasks((1, 1), 0.0, count=3000, image_size=15, noise=0.0, seed=3)
    network = torch.nn.Sequential(
        torch.nn.Conv2d(1, 32, 5),
        torch.nn.ReLU(),
        torch.nn.AdaptiveAvgPool2d(1),
        torch.nn.Flatten(),
        torch.nn.Linear(32, 2),
    )
    data = {}
    for name in ("train", "test"):
        part = getattr(found.dataset, name)
        assert isinstance(part.images, Tensor)
        labels = torch.cat([part.task_labels[task.name] for task in found.dataset.tasks], 1)
        data[name] = ((part.images.float() / 255 - found.dataset.mean[0]) / found.dataset.std[0], labels)
    torch.manual_seed(0)
    for module in network:
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()  # type: ignore[operator]
    optimiser = torch.optim.Adam(network.parameters(), 1e-2)
    images, labels = data["train"]
    for step in range(300):
        rows = torch.arange(len(images))[(step * 100) % 1800 :][:100]
        loss = (network(images[rows]) - labels[rows]).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    with torch.no_grad():
        images, labels = data["test"]
        r2 = 1 - (network(images) - labels).square().mean() / labels.var(correction=0)
    assert r2 > 0.3  # 0.46; knowing nothing gives 0


def test_the_seed_is_all_that_is_drawn_from() -> None:
    first, again, other = (related_tasks(count=60, image_size=15, seed=seed) for seed in (1, 1, 2))
    assert first.dataset.fingerprint == again.dataset.fingerprint != other.dataset.fingerprint


def test_sizes_that_do_not_go_together_are_told() -> None:
    for arguments, words in (
        ({"cosine": 1.5}, "not in"),
        ({"latents": 3}, "3 latents do not hold"),
        ({"group_sizes": (2, 0)}, "has a task"),
        ({"classes": 1}, "nothing to tell apart"),
        ({"image_size": 8}, "too small"),
        ({"group_sizes": (1,)}, "only one task"),
    ):
        with pytest.raises(NasplatError, match=words):
            related_tasks(**{"count": 60, **arguments})  # type: ignore[arg-type]
