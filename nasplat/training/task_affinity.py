"""How alike networks of different tasks see the same images, layer by layer; and the trees that follow from it.

After Vandenhende et al., Branched Multi-Task Networks: Deciding What Layers To Share, 2020: representation similarity
analysis (Dwivedi & Roig, 2019) between single-task networks, and the tree in whose branches tasks differ least.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import numpy as np
import torch
from scipy.stats import rankdata
from torch import Tensor, nn

from nasplat.core.branching import Tree, all_trees, count_trees, neighbours, together
from nasplat.training.features import device_of, evaluating

MOST_TREES = 20_000  # that are all looked at; of more, those that steps from tree to tree reach


def layer_outputs(stages: Sequence[nn.Module], images: Tensor) -> list[Tensor]:
    """What each stage of a chain yields, flattened: `(N, features)` each, on the CPU.

    Args:
        stages: in order; each reads what the one before yields.
        images: `(N, C, H, W)`, normalised.
    """
    chain = nn.ModuleList(stages)
    found = []
    with evaluating(chain):
        features = images.to(device_of(chain))
        for stage in stages:
            features = stage(features)
            found.append(features.flatten(1).float().cpu())
    return found


def dissimilarity_matrix(features: Tensor) -> np.ndarray:
    """1 - Pearson's correlation between the features of every two images: `(N, F)` to `(N, N)`."""
    centred = features.double() - features.double().mean(1, keepdim=True)
    scaled = centred / centred.norm(dim=1, keepdim=True).clamp(min=1e-12)
    found: np.ndarray = (1 - scaled @ scaled.T).numpy()
    return found


def affinities(features: Sequence[Sequence[Tensor]]) -> np.ndarray:
    """Spearman's correlation between the dissimilarity matrices of every two tasks, at every layer.

    Args:
        features: of each task, of each layer, `(N, F)`, of the same images, three or more.

    Returns:
        `(layers, tasks, tasks)`, 1 on the diagonal.
    """
    layers = []
    for of_tasks in zip(*features, strict=True):
        matrices = [dissimilarity_matrix(one) for one in of_tasks]
        upper = np.triu_indices(len(matrices[0]), 1)
        ranks = np.stack([rankdata(matrix[upper]) for matrix in matrices])
        with np.errstate(invalid="ignore"):  # a network that sees all images alike is like no other
            layers.append(np.corrcoef(ranks))
    return np.nan_to_num(np.stack(layers), nan=0.0)


def tree_cost(tree: Tree, affinity: np.ndarray) -> float:
    """How much tasks that share differ: over the layers, the mean over tasks of the largest 1 - affinity in its branch.

    The paper takes the mean over branches, in which a task alone counts as much as all others together: what costs
    least then is to leave one alone, not to have those together that are alike.
    """
    labels = np.asarray(tree)
    apart = labels[:, :, None] != labels[:, None, :]
    return float(np.where(apart, 0.0, 1 - affinity).max(2).mean(1).sum())


def affine_trees(
    affinity: np.ndarray, cost: Callable[[Tree], float], allowed: Callable[[Tree], bool] = lambda tree: True
) -> list[Tree]:
    """The front of trees between their cost and how much the tasks that share differ, cheapest first.

    All trees are looked at where there are at most `MOST_TREES`; of more, all that single splits, merges and shifts
    reach from the front so far, beginning with all shared, until nothing is gained.

    Args:
        affinity: `(layers, tasks, tasks)`.
        cost: of a tree, such as its MACs.
        allowed: whether a tree may be chosen.
    """
    layers, tasks, _ = affinity.shape
    if count_trees(tasks, layers) <= MOST_TREES:
        return _front(all_trees(tasks, layers), affinity, cost, allowed)
    found: list[Tree] = [(together(tasks),) * layers]
    while True:
        reached = dict.fromkeys([*found, *(one for tree in found for one in neighbours(tree))])
        better = _front(reached, affinity, cost, lambda tree: True)
        if better == found:
            return [tree for tree in found if allowed(tree)]
        found = better


def _front(
    trees: Iterable[Tree], affinity: np.ndarray, cost: Callable[[Tree], float], allowed: Callable[[Tree], bool]
) -> list[Tree]:
    ranked = sorted((cost(tree), tree_cost(tree, affinity), tree) for tree in trees if allowed(tree))
    found, best = [], float("inf")
    for _, differing, tree in ranked:
        if differing < best - 1e-12:
            found.append(tree)
            best = differing
    return found


def probe_images(images: Iterable[Tensor], count: int) -> Tensor:
    """The first `count` of batches of images."""
    found: list[Tensor] = []
    for batch in images:
        found.append(batch)
        if sum(map(len, found)) >= count:
            break
    return torch.cat(found)[:count]
