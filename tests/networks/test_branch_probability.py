"""A wrong expected cost pulls every search by gradients towards other trees than the ones that were asked for."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product

import pytest
import torch
from torch import Tensor

from nasplat.core.branching import tree_of
from nasplat.networks.branch_probability import estimated, parents, refined, sampled
from tests.data.helpers import seeded


def drawn(tasks: int, layers: int, seed: int = 0) -> list[Tensor]:
    generator = seeded(seed)
    return [
        torch.randn(tasks, tasks, generator=generator, dtype=torch.float64).mul(1.5).softmax(1) for _ in range(layers)
    ]


def enumerated(probabilities: list[Tensor], counts: Callable[[tuple[tuple[int, ...], ...]], list[int]]) -> list[float]:
    """The expectation over every choice of every row of every layer, one by one."""
    tasks = len(probabilities[0])
    total = [0.0] * len(probabilities)
    for choice in product(product(range(tasks), repeat=tasks), repeat=len(probabilities)):
        chance = 1.0
        for layer, labels in zip(probabilities, choice, strict=True):
            for row, column in enumerate(labels):
                chance *= float(layer[row, column])
        for place, count in enumerate(counts(choice)):
            total[place] += chance * count
    return total


def of_refined(choice: tuple[tuple[int, ...], ...]) -> list[int]:
    return [len(set(partition)) for partition in tree_of(choice)]


def of_parents(choice: tuple[tuple[int, ...], ...]) -> list[int]:
    """Walks from every head to the image."""
    used: list[set[int]] = [set() for _ in choice]
    for head in range(len(choice[0])):
        here = head
        for layer in range(len(choice) - 1, -1, -1):
            here = choice[layer][here]
            used[layer].add(here)
    return [len(one) for one in used]


@pytest.mark.parametrize(("tasks", "layers"), [(1, 2), (2, 1), (2, 4), (3, 3), (4, 2)])
@pytest.mark.parametrize(("expected", "counts"), [(refined, of_refined), (parents, of_parents)])
def test_expected_branches_are_those_of_every_choice_there_is(
    expected: Callable[[list[Tensor]], Tensor],
    counts: Callable[[tuple[tuple[int, ...], ...]], list[int]],
    tasks: int,
    layers: int,
) -> None:
    for seed in range(2 if tasks < 4 else 1):
        probabilities = drawn(tasks, layers, seed)
        assert expected(probabilities).tolist() == pytest.approx(enumerated(probabilities, counts), abs=1e-10)


def test_three_tasks_are_not_counted_too_often() -> None:
    """To take whatever does not refine the layer before as fully split would give 223/81 = 2.753 in the second layer.

    The choices of so many layers together are one label a task, among 3, 9 and 27 that are all alike; the expected
    number of groups is that of the labels which occur: 9 (1 - (8/9)^3) = 217/81 = 2.679 in the second layer.
    """
    uniform = [torch.full((3, 3), 1 / 3, dtype=torch.float64)] * 3
    wanted = [3 * (1 - (2 / 3) ** 3), 9 * (1 - (8 / 9) ** 3), 27 * (1 - (26 / 27) ** 3)]
    assert refined(uniform).tolist() == pytest.approx(wanted, abs=1e-12)


def test_choices_without_doubt_give_whole_numbers() -> None:
    same, own = torch.zeros(4, 4), torch.eye(4)
    same[:, 2] = 1.0
    assert refined([same, own, same]).tolist() == [1.0, 4.0, 4.0]  # whoever parted stays apart
    assert parents([same, own, own]).tolist() == [1.0, 4.0, 4.0]
    assert parents([own, same, own]).tolist() == [1.0, 1.0, 4.0]  # branches that no head leads to do not count


@pytest.mark.parametrize("expected", [refined, parents])
def test_gradients_are_those_of_finite_differences(expected: Callable[[list[Tensor]], Tensor]) -> None:
    logits = [torch.randn(3, 3, generator=seeded(seed), dtype=torch.float64, requires_grad=True) for seed in range(3)]
    assert torch.autograd.gradcheck(lambda *rows: expected([row.softmax(1) for row in rows]), logits)


def test_monte_carlo_says_how_wrong_it_may_be() -> None:
    """For more tasks than can be enumerated; within four of its own standard errors, gradients too."""
    logits = [torch.randn(5, 5, generator=seeded(seed), dtype=torch.float64, requires_grad=True) for seed in range(3)]
    exact = refined([one.softmax(1) for one in logits])
    found, error = estimated([one.softmax(1) for one in logits], 20_000, seeded(9))
    assert bool(((found - exact).abs() < 4 * error).all()) and bool((error < 0.02).all()) and bool((error > 0).any())
    wanted = torch.autograd.grad(exact.sum(), logits)
    guessed = torch.autograd.grad(found.sum(), logits)
    for one, other in zip(wanted, guessed, strict=True):
        assert (one - other).abs().max() < 0.06
    again, _ = estimated([one.softmax(1) for one in logits], 20_000, seeded(9))
    assert torch.equal(again, found)


def test_branches_of_drawn_choices_are_those_of_their_trees() -> None:
    choices = torch.randint(0, 4, (50, 3, 6), generator=seeded(0))
    wanted = [of_refined(tuple(map(tuple, one))) for one in choices.tolist()]
    assert sampled(choices).tolist() == wanted
