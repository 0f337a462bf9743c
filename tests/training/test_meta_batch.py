"""Several networks a step with weights from one source: their mean, and what becomes of those that fail."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from nasplat.core.errors import Infeasible
from nasplat.training.meta_batch import MetaBatch

Loss = Callable[[Mapping[str, Tensor]], Tensor]


class Source(nn.Module):
    """Two weights for any network."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(3, 4)

    def forward(self, number: int) -> dict[str, Tensor]:
        made = self.body(torch.full((3,), float(number)))
        return {"one": made[:3], "two": made[3:]}


@pytest.fixture
def source() -> Source:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Source()


def gradients(source: Source, losses: list[Loss], extra: nn.Module | None = None) -> tuple[Tensor, list[Tensor], Any]:
    source.zero_grad()
    batch = MetaBatch(extra)
    for number, loss in enumerate(losses):
        batch.add(source(number), loss)
    mean = batch.mean()
    mean.backward()
    return mean.detach(), [one.grad.clone() for one in source.parameters() if one.grad is not None], batch.left_out


def square(weights: Mapping[str, Tensor]) -> Tensor:
    return weights["one"].square().sum() + weights["two"].sum()


def test_the_mean_and_its_gradient_are_those_of_all_losses_together(source: Source) -> None:
    """Networks that run one after the other would otherwise train something else than the paper's meta-batch."""
    extra = nn.Linear(3, 1)
    losses: list[Loss] = [square, lambda weights: extra(weights["one"]).square().sum()]
    mean, found, left_out = gradients(source, losses, extra)
    shared = [one.grad.clone() for one in extra.parameters() if one.grad is not None]
    source.zero_grad()
    extra.zero_grad()
    expected = torch.stack([loss(source(number)) for number, loss in enumerate(losses)]).mean()
    expected.backward()
    torch.testing.assert_close(mean, expected.detach())
    for one, parameter in zip([*found, *shared], [*source.parameters(), *extra.parameters()], strict=True):
        torch.testing.assert_close(one, parameter.grad)
    assert int(left_out) == 0


@pytest.mark.parametrize(
    "broken",
    [
        lambda weights: weights["one"].sum() * float("nan"),
        lambda weights: (weights["one"] * 1e30).square().square().sum(),
        lambda weights: (weights["two"] - weights["two"].detach()).sum().sqrt(),  # finite, but not its gradient
    ],
    ids=["nan", "infinite", "gradient"],
)
def test_a_network_that_is_not_finite_leaves_the_others_as_they_are(source: Source, broken: Loss) -> None:
    """One odd network among thousands must neither end the training nor spoil the weights of all others."""
    mean, found, left_out = gradients(source, [square, broken])
    alone, expected, _ = gradients(source, [square])
    assert torch.equal(mean, alone) and int(left_out) == 1
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


def test_where_nothing_is_finite_the_loss_says_so(source: Source) -> None:
    """A source that has diverged would otherwise seem to train for ever."""
    mean, found, _ = gradients(source, [lambda weights: weights["one"].sum() * float("inf")])
    assert not mean.isfinite() and not any(one.any() for one in found)


def test_a_network_that_is_too_large_is_left_out(source: Source) -> None:
    """The largest network of a space need not fit for the others to be trained; but one of them must."""

    def too_large(weights: Mapping[str, Tensor]) -> Tensor:
        raise torch.OutOfMemoryError("out of memory")

    mean, _, left_out = gradients(source, [too_large, lambda weights: square(weights)])
    assert mean.isfinite() and int(left_out) == 1
    with pytest.raises(Infeasible, match="out of memory"):
        gradients(source, [too_large])
