"""How many branches a layer is expected to have, where tasks or branches choose at random: exact and differentiable.

Two ways to choose a branching tree:

- `refined`: every task chooses one of T copies of each layer (BMTAS, Bruggemann et al., 2020). Tasks share a layer
  where they chose alike there and in all layers before it. With P(s) the probability that the choices of one layer give
  partition s, P_l(k) = sum of P_{l-1}(j) P(s) over all j, s whose meet is k.
- `parents`: every branch, and every head, chooses one of the T branches before it (Guo et al., Learning to Branch,
  2020). The branches that some head leads to are used; which ones they are is a Markov chain from the heads down.

All are in float64 on the device of what they are given.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from itertools import product

import torch
from torch import Tensor

from nasplat.core.branching import meet, partition_of

MOST_REFINED = 6  # tasks: 46,656 assignments and 203 partitions
MOST_PARENTS = 10  # tasks: 1,024 sets of branches


def refined(probabilities: Sequence[Tensor]) -> Tensor:
    """The expected number of branches of each layer, `(layers,)`.

    Args:
        probabilities: of each layer, `(T, T)`: of a task (row) to choose a copy (column). T is `MOST_REFINED` at most.
    """
    tasks = len(probabilities[0])
    of_assignment, meets, sizes = (table.to(probabilities[0].device) for table in _tables(tasks))
    count = len(sizes)
    now = torch.zeros(count, dtype=torch.float64, device=sizes.device)
    now[_partitions(tasks)[(0,) * tasks]] = 1.0  # all tasks begin at the image
    expected = []
    for layer in probabilities:
        here = torch.zeros_like(now).index_add(0, of_assignment, _assignments(layer.double()))
        pairs = (now[:, None] * here[None, :]).flatten()
        now = torch.zeros_like(now).index_add(0, meets.flatten(), pairs)
        expected.append((now * sizes).sum())
    return torch.stack(expected)


def parents(probabilities: Sequence[Tensor]) -> Tensor:
    """The expected number of branches of each layer that some head leads to, `(layers,)`.

    Args:
        probabilities: for the layers from the second on, and then for the heads, `(T, T)`: of a branch or head (row) to
            choose a branch before it (column). T is `MOST_PARENTS` at most.
    """
    tasks = len(probabilities[0])
    device = probabilities[0].device
    sets = torch.arange(2**tasks, device=device)
    inside = (sets[:, None] >> torch.arange(tasks, device=device)) & 1  # (sets, branches)
    # P(image = V) is the sum over U within V of (-1)^|V - U| P(image within U), Moebius inversion on sets.
    within = (sets[:, None] & ~sets[None, :]) == 0  # U within V, as (U, V)
    sizes = inside.sum(1)
    signs = within * (-1.0) ** (sizes[None, :] - sizes[:, None]).double()
    now = torch.zeros(len(sets), dtype=torch.float64, device=device)
    now[-1] = 1.0  # all heads are used
    expected = []
    for layer in reversed(probabilities):
        into = layer.double() @ inside.double().T  # (children, U): of a child to choose within U
        # Of all children in a set: a product, of logarithms, which cannot be taken of 0.
        chosen = torch.where(inside[:, :, None].bool(), into[None], torch.ones_like(into[None])).prod(1)  # (sets, U)
        now = now @ (chosen @ signs)
        expected.append((now * sizes).sum())
    return torch.stack(expected[::-1])


def sampled(assignments: Tensor) -> Tensor:
    """The number of branches of each layer, `(samples, layers)`, for tasks that chose copies `(samples, layers, T)`."""
    alike = (assignments[..., :, None] == assignments[..., None, :]).int().cumprod(1).bool()
    # A task begins a branch where no task before it is in the same.
    before = torch.ones(alike.shape[-2:], dtype=torch.bool, device=alike.device).tril(-1)
    return (~(alike & before).any(-1)).sum(-1)


def estimated(probabilities: Sequence[Tensor], samples: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """As `refined`, of any number of tasks, by Monte Carlo: the expectations and their standard errors, `(layers,)`.

    Its gradient is the score-function estimate (Williams, 1992), each sample's baseline being the mean of the others.

    Args:
        samples: two or more.
        generator: on the CPU, where it is drawn.
    """
    logs = torch.stack([layer.double() for layer in probabilities]).log()
    layers, tasks, _ = logs.shape
    drawn = torch.multinomial(
        logs.detach().exp().flatten(0, 1).cpu(), samples, replacement=True, generator=generator
    )  # (layers T, samples)
    assignments = drawn.T.reshape(samples, layers, tasks).to(logs.device)
    counts = sampled(assignments).double()
    mean, error = counts.mean(0), counts.std(0) / samples**0.5
    # What a layer's count depends on are the choices up to it.
    score = logs.gather(2, assignments.permute(1, 2, 0)).sum(1).cumsum(0).T  # (samples, layers)
    others = (counts.sum(0) - counts) / (samples - 1)
    surrogate = ((counts - others) * score).mean(0)
    return mean + surrogate - surrogate.detach(), error


def _assignments(layer: Tensor) -> Tensor:
    """Of every assignment of tasks to copies its probability, in the order of `itertools.product`."""
    found = torch.ones(1, dtype=layer.dtype, device=layer.device)
    for task in layer:
        found = (found[:, None] * task).flatten()
    return found


@cache
def _partitions(tasks: int) -> dict[tuple[int, ...], int]:
    found: dict[tuple[int, ...], int] = {}
    for labels in product(range(tasks), repeat=tasks):
        found.setdefault(partition_of(labels), len(found))
    return found


@cache
def _tables(tasks: int) -> tuple[Tensor, Tensor, Tensor]:
    """Of every assignment its partition; of two partitions their meet; of a partition its number of branches."""
    numbers = _partitions(tasks)
    of_assignment = [numbers[partition_of(labels)] for labels in product(range(tasks), repeat=tasks)]
    meets = [[numbers[meet(first, second)] for second in numbers] for first in numbers]
    return torch.tensor(of_assignment), torch.tensor(meets), torch.tensor([len(set(one)) for one in numbers])
