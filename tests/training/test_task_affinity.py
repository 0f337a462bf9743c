"""Which tasks see images alike: wrong affinities would make strangers share."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from torch import nn

from nasplat.core.branching import all_trees, branches
from nasplat.training.task_affinity import (
    MOST_TREES,
    affine_trees,
    affinities,
    dissimilarity_matrix,
    layer_outputs,
    tree_cost,
)


def test_dissimilarity_is_one_minus_numpys_correlation() -> None:
    features = torch.randn(7, 30, generator=torch.Generator().manual_seed(0))
    np.testing.assert_allclose(dissimilarity_matrix(features), 1 - np.corrcoef(features.numpy()), atol=1e-6)


def test_affinities_are_scipys_rank_correlations() -> None:
    generator = torch.Generator().manual_seed(1)
    features = [[torch.randn(9, 12, generator=generator) for _ in range(2)] for _ in range(3)]
    features[2][0] = features[0][0] * 3 + 1  # sees exactly as the first does, at the first layer
    found = affinities(features)
    assert found.shape == (2, 3, 3) and found[0, 0, 2] == pytest.approx(1)
    upper = np.triu_indices(9, 1)
    first, second = (1 - np.corrcoef(features[task][1].numpy()) for task in (0, 1))
    assert found[1, 0, 1] == pytest.approx(spearmanr(first[upper], second[upper]).statistic, abs=1e-9)


def similar(pairs: float, others: float) -> np.ndarray:
    one = np.full((4, 4), others)
    one[:2, :2] = one[2:, 2:] = pairs
    np.fill_diagonal(one, 1.0)
    return one


def test_trees_share_among_tasks_that_are_alike() -> None:
    affinity = np.stack([similar(0.9, 0.8), similar(0.9, 0.3), similar(0.9, 0.1)])

    def cost(tree: tuple[tuple[int, ...], ...]) -> float:
        return sum(len(branches(layer)) for layer in tree)

    trees = affine_trees(affinity, cost)
    costs = [cost(tree) for tree in trees]
    assert costs == sorted(costs) and costs[0] == 3  # all shared is the cheapest
    assert ((0, 0, 0, 0), (0, 0, 2, 2), (0, 0, 2, 2)) in trees
    assert tree_cost(trees[-1], affinity) == 0  # all separate differ in nothing
    for tree in trees:  # none is beaten by any other
        assert not any(
            cost(other) <= cost(tree) and tree_cost(other, affinity) < tree_cost(tree, affinity) - 1e-12
            for other in all_trees(4, 3)
        )
    few = affine_trees(affinity, cost, lambda tree: cost(tree) <= 5)
    assert few and all(cost(tree) <= 5 for tree in few)


def test_the_first_split_is_between_groups_and_leaves_no_task_alone() -> None:
    """A mean over branches would have a task alone rather than each with what is like it."""
    affinity = similar(0.5, 0.1)[None]
    trees = affine_trees(affinity, lambda tree: len(branches(tree[0])))
    assert trees[1] == ((0, 0, 2, 2),)
    assert tree_cost(((0, 1, 1, 1),), affinity) == pytest.approx(0.75 * 0.9)
    assert tree_cost(trees[1], affinity) == pytest.approx(0.5)


def test_steps_from_tree_to_tree_find_what_all_trees_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    """With many tasks trees cannot all be looked at."""
    rng = np.random.default_rng(0)
    noise = rng.uniform(0, 0.05, (3, 4, 4))
    affinity = np.stack([similar(0.9, 0.7), similar(0.9, 0.4), similar(0.8, 0.1)]) - noise - noise.transpose(0, 2, 1)

    def cost(tree: tuple[tuple[int, ...], ...]) -> float:
        return sum(len(branches(layer)) for layer in tree)

    assert MOST_TREES > 0
    exact = affine_trees(affinity, cost)
    monkeypatch.setattr("nasplat.training.task_affinity.MOST_TREES", 0)
    stepped = affine_trees(affinity, cost)
    worth = [{cost(tree): tree_cost(tree, affinity) for tree in trees} for trees in (exact, stepped)]
    assert set(worth[1]) <= set(worth[0]) and len(worth[1]) >= 0.7 * len(worth[0])
    assert all(worth[1][at] == pytest.approx(worth[0][at], rel=0.1) for at in worth[1])


def test_outputs_are_those_of_each_stage() -> None:
    stages = [nn.Conv2d(1, 2, 3), nn.ReLU(), nn.BatchNorm2d(2)]
    images = torch.randn(4, 1, 6, 6, generator=torch.Generator().manual_seed(0))
    found = layer_outputs(stages, images)
    assert [tuple(one.shape) for one in found] == [(4, 32)] * 3
    torch.testing.assert_close(found[1], found[0].relu())
    assert stages[2].training
