"""Tasks whose relatedness is known exactly, to check that related tasks end up sharing.

As in Ma et al. (Modeling Task Relationships in Multi-task Learning with Multi-gate Mixture-of-Experts, 2018, section
3.2) a task's target is y = w·a + sum over i of sin(alpha_i w·a + beta_i) + noise, and the cosine between the weights w
of two tasks sets how related they are. There inputs are the vectors a and there are two tasks. Here there are groups of
tasks, with one cosine between all tasks of a group and 0 between groups; the sines are taken times 1/4, so that the
cosine is nearly the correlation of targets; and a network sees images in which the entries of a are the strengths,
positive or negative, of small patterns scattered over noise.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from nasplat.core.errors import NasplatError
from nasplat.core.tasks import Task, check_several
from nasplat.data.datasets import Dataset, Split
from nasplat.data.tasks import make_dataset

_PATCH = 5  # pixels a side of a pattern
_GREY, _CONTRAST, _NOISE = 128, 24.0, 6.0  # of 255
_WAVES = 4  # sines in a target


@dataclass(frozen=True)
class RelatedTasks:
    """A data set, and what is true of it.

    Args:
        groups: of each task, in the order of `dataset.tasks`.
        weights: `(tasks, latents)` of unit length.
    """

    dataset: Dataset
    groups: tuple[int, ...]
    weights: np.ndarray


def teacher_weights(group_sizes: Sequence[int], cosine: float, latents: int, rng: np.random.Generator) -> np.ndarray:
    """Unit vectors, one a task, with one cosine between all tasks of a group and 0 between groups.

    With orthonormal u of groups and v of tasks, w = sqrt(cosine) u + sqrt(1 - cosine) v.

    Returns:
        `(tasks, latents)`, float64, group by group.

    Raises:
        NasplatError: a cosine that is not in [0, 1], or too few latents for so many directions.
    """
    if not 0 <= cosine <= 1:
        raise NasplatError(f"cosine {cosine} is not in [0, 1]", "1 makes the tasks of a group one, 0 strangers")
    if not group_sizes or min(group_sizes) < 1:
        raise NasplatError(f"groups of {list(group_sizes)} tasks", "every group has a task at least")
    groups, tasks = len(group_sizes), sum(group_sizes)
    if latents < groups + tasks:
        raise NasplatError(
            f"{latents} latents do not hold {groups} groups of {tasks} tasks", f"give {groups + tasks} or more"
        )
    basis = np.linalg.qr(rng.normal(size=(latents, groups + tasks)))[0].T
    shared = np.repeat(basis[:groups], group_sizes, axis=0)
    return np.sqrt(cosine) * shared + np.sqrt(1 - cosine) * basis[groups:]


def related_tasks(
    group_sizes: Sequence[int] = (2, 2),
    cosine: float = 0.9,
    *,
    classes: int | None = None,
    count: int = 6_000,
    image_size: int = 24,
    latents: int | None = None,
    noise: float = 0.1,
    seed: int = 0,
) -> RelatedTasks:
    """Images and tasks in groups, drawn anew from a seed.

    Args:
        group_sizes: tasks in each group.
        cosine: between the teachers' weights within a group.
        classes: None makes regressions; a number makes classifications, of as many equally frequent ranges of the
            target.
        count: images, of which a fifth each are for test and for validation.
        latents: patterns an image has; None: as few as the tasks need.
        noise: deviation of what is added to targets, which themselves have a deviation of about 1.

    Raises:
        NasplatError: sizes that do not go together.
    """
    if classes is not None and classes < 2:
        raise NasplatError(f"{classes} classes leave nothing to tell apart", "give two or more")
    if image_size < 3 * _PATCH or count < 20:
        raise NasplatError(
            f"{count} images of {image_size} pixels are too few or too small", f"20 images of {3 * _PATCH} at least"
        )
    rng = np.random.Generator(np.random.PCG64(seed))
    if latents is None:
        latents = len(group_sizes) + sum(group_sizes)
    weights = teacher_weights(group_sizes, cosine, latents, rng)
    strengths = rng.normal(size=(count, latents))
    images = _images(strengths, image_size, rng)
    alphas, betas = rng.uniform(0.5, 2.0, _WAVES), rng.uniform(0, 2 * np.pi, _WAVES)
    groups = tuple(group for group, size in enumerate(group_sizes) for _ in range(size))
    tasks, labels = [], {}
    for number, group in enumerate(groups):
        linear = strengths @ weights[number]
        target = linear + 0.25 * np.sin(linear[:, None] * alphas + betas).sum(1) + noise * rng.normal(size=count)
        name = f"group{group}_task{number}"
        if classes is None:
            tasks.append(Task(name, "regression", 1))
            labels[name] = torch.from_numpy(target[:, None]).float()
        else:
            tasks.append(Task(name, "classification", classes))
            edges = np.quantile(target, np.arange(1, classes) / classes)
            labels[name] = torch.from_numpy(np.searchsorted(edges, target))
    check_several(tasks)
    dataset = make_dataset(
        "related_tasks", tasks, Split(images, task_labels=labels), validation_share=0.25, split_seed=seed
    )
    return RelatedTasks(dataset, groups, weights)


def _images(strengths: np.ndarray, size: int, rng: np.random.Generator) -> torch.Tensor:
    """Grey images with noise, and in each every pattern once or more, at random places, times its strength."""
    count, latents = strengths.shape
    patterns = rng.normal(size=(latents, _PATCH, _PATCH))
    patterns -= patterns.mean((1, 2), keepdims=True)
    patterns /= np.sqrt(np.square(patterns).mean((1, 2), keepdims=True))
    pixels = _GREY + _NOISE * rng.normal(size=(count, size, size))
    rows, places = np.arange(count)[:, None, None], np.arange(_PATCH)
    repeats = max(1, size**2 // (4 * latents * _PATCH**2))  # so that patterns seldom hide each other
    for latent in range(latents):
        for _ in range(repeats):
            corner = rng.integers(size - _PATCH + 1, size=(2, count, 1))
            y, x = (corner[0] + places)[:, :, None], (corner[1] + places)[:, None, :]
            pixels[rows, y, x] += _CONTRAST * strengths[:, latent, None, None] * patterns[latent]
    return torch.from_numpy(np.clip(np.round(pixels), 0, 255).astype(np.uint8))[:, None]
