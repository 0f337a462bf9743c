"""How the losses of several tasks become one: weights by hand, by uncertainty, or by the norms of gradients."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from nasplat.core.errors import NasplatError, nearest
from nasplat.core.tasks import Task
from nasplat.training.features import device_of, evaluating

_GRADNORM_PACE = 0.1  # on the weights' part of the loss: they share an optimiser that is tuned for the network


class Weighting(Protocol):
    """Nothing in it may wait for the device."""

    def module(self, network: nn.Module) -> nn.Module:
        """Its trainable parts and buffers; they are on the network's device when `combine` is called."""
        ...

    def combine(self, losses: Sequence[Tensor], here: Tensor, network: nn.Module, parts: nn.Module) -> Tensor:
        """One loss of those of the tasks.

        Args:
            losses: one a task, float32 of no dimensions, 0 where a batch has no label of a task.
            here: `(tasks,)` booleans, whether it has.
        """
        ...


class ByHand:
    """The sum of the losses, each times a number that stays as it is; tasks without one count once."""

    def __init__(self, tasks: Sequence[Task], input_shape: tuple[int, int, int], **weights: float) -> None:
        names = [task.name for task in tasks]
        for name, weight in weights.items():
            if name not in names:
                advice = nearest(name, names) + f"there are {', '.join(names)}"
                raise NasplatError(f"weights: there is no task {name!r}", advice)
            if not 0 <= weight < float("inf"):
                raise NasplatError(f"weights: {name} has weight {weight}", "a weight is 0 or above")
        self._weights = [float(weights.get(name, 1.0)) for name in names]
        if not any(self._weights):
            raise NasplatError("weights: all tasks have weight 0", "give one of them a weight")

    def module(self, network: nn.Module) -> nn.Module:
        parts = nn.Module()
        parts.register_buffer("weights", torch.tensor(self._weights))
        return parts

    def combine(self, losses: Sequence[Tensor], here: Tensor, network: nn.Module, parts: nn.Module) -> Tensor:
        weights: Any = parts.weights
        return (weights * torch.stack(tuple(losses))).sum()


class Uncertainty:
    """Weights that are learned, from the noise of each task (Kendall et al., Multi-Task Learning Using Uncertainty to
    Weigh Losses for Scene Geometry and Semantics, 2018).

    With s = log sigma^2 a task's share is exp(-s) L + s / 2, and exp(-s) L / 2 + s / 2 for a regression; it is least
    where sigma^2 is 2 L, and L for a regression. A task without labels in a batch leaves its s as it is.
    """

    def __init__(self, tasks: Sequence[Task], input_shape: tuple[int, int, int]) -> None:
        self._factors = [0.5 if task.kind == "regression" else 1.0 for task in tasks]

    def module(self, network: nn.Module) -> nn.Module:
        parts = nn.Module()
        parts.log_variance = nn.Parameter(torch.zeros(len(self._factors)))
        parts.register_buffer("factors", torch.tensor(self._factors))
        return parts

    def combine(self, losses: Sequence[Tensor], here: Tensor, network: nn.Module, parts: nn.Module) -> Tensor:
        s: Any = parts.log_variance
        factors: Any = parts.factors
        shares = factors * (-s).exp() * torch.stack(tuple(losses)) + s / 2
        return torch.where(here, shares, torch.zeros_like(s)).sum()


class GradNorm:
    """Weights under which tasks pull alike on what they share (Chen et al., GradNorm, 2018).

    G_i is the norm of the gradient of w_i L_i with respect to the last weights that all tasks share; the weights go
    down the gradient of sum |G_i - mean(G) r_i^alpha|, where r_i, the relative inverse training rate, is L_i(t) /
    L_i(0) over its mean. Unlike the published method, which renormalises weights after each step of an optimiser of
    their own, they are here tasks x softmax(v): above 0, of the same sum, with the same resting point; and the sum is
    divided by mean(G), so that its scale does not depend on that of the losses. v is trained with the network.

    Where not all tasks share weights, as in most branching trees, all this is done among those that do; a task that
    shares with none has weight 1.

    Args:
        alpha: how much slower tasks are pulled; 0: all gradients become equal.
        shared: the module whose weights are looked at; empty: the last one that the tasks use together.
    """

    def __init__(
        self, tasks: Sequence[Task], input_shape: tuple[int, int, int], *, alpha: float = 1.5, shared: str = ""
    ) -> None:
        if not 0 <= alpha < float("inf"):
            raise NasplatError(f"gradnorm: alpha {alpha}", "alpha is 0 or above; published are 0.12 and 1.5")
        self._tasks, self._input_shape, self._alpha, self._shared = tasks, input_shape, alpha, shared
        self._names: list[str] = []  # of the weights that each task is looked at in; empty: it shares with none

    def module(self, network: nn.Module) -> nn.Module:
        self._names = self._find(network)
        parts = nn.Module()
        parts.raw = nn.Parameter(torch.zeros(len(self._tasks)))
        parts.register_buffer("first", torch.full((len(self._tasks),), float("nan")))
        together = [
            [one == other if one else a == b for b, other in enumerate(self._names)]
            for a, one in enumerate(self._names)
        ]
        parts.register_buffer("together", torch.tensor(together), persistent=False)
        return parts

    def combine(self, losses: Sequence[Tensor], here: Tensor, network: nn.Module, parts: nn.Module) -> Tensor:
        raw: Any = parts.raw
        first: Any = parts.first
        together: Any = parts.together
        values = torch.stack(tuple(losses))
        among = raw.expand_as(together).masked_fill(~together, -torch.inf).softmax(1)
        weights = together.sum(1) * among.diagonal()
        total = (weights.detach() * values).sum()
        if not torch.is_grad_enabled():
            return total
        with torch.no_grad():
            first.copy_(torch.where(first.isnan() & here, values, first))
        # Of each loss alone, not of the stacked ones: its gradient passes through its own head only.
        norms = torch.stack(
            [
                torch.zeros_like(loss) if gradient is None else gradient.detach().float().norm()
                for loss, name in zip(losses, self._names, strict=True)
                for gradient in [_gradient(loss, network.get_parameter(name)) if name else None]
            ]
        )
        count = (together & here).sum(1).clamp(min=1)
        pulls = weights * norms
        mean = (together * (pulls.detach() * here)).sum(1) / count
        rates = torch.where(here, values.detach() / first.clamp(min=1e-12), torch.zeros_like(first))
        rates = rates / ((together * rates).sum(1) / count).clamp(min=1e-12)
        apart = (pulls / mean.clamp(min=1e-12) - rates**self._alpha).abs()
        balance = _GRADNORM_PACE * torch.where(here, apart, torch.zeros_like(apart)).sum()
        return total + (balance - balance.detach())  # it moves the weights, but is no part of the loss that is told

    def _find(self, network: nn.Module) -> list[str]:
        """For each task the last of the weights that it uses with all whom it shares any with; empty: with none."""
        named = {name: parameter for name, parameter in network.named_parameters() if parameter.requires_grad}
        inside = {name: p for name, p in named.items() if not self._shared or name.startswith(self._shared + ".")}
        if not inside:
            raise NasplatError(f"gradnorm: the network has no weights in {self._shared!r}")
        with evaluating(network), torch.enable_grad():
            outputs = network(torch.zeros(1, *self._input_shape, device=device_of(network)))
            used = []
            for task in self._tasks:
                gradients = torch.autograd.grad(
                    outputs[task.name].sum(), list(inside.values()), retain_graph=True, allow_unused=True
                )
                pairs = zip(inside, gradients, strict=True)
                used.append([name for name, gradient in pairs if gradient is not None and inside[name].dim() > 1])
        found = []
        for own in used:
            others = [other for other in used if other is not own and not set(own).isdisjoint(other)]
            common = [name for name in own if all(name in other for other in others)]
            if others and not common:
                raise NasplatError(
                    "gradnorm: there are tasks that share weights, but none that all of them use",
                    "use weighting hand or uncertainty",
                )
            found.append(common[-1] if others else "")
        if self._shared and not any(found) and len(self._tasks) > 1:
            raise NasplatError(f"gradnorm: the tasks share no weights in {self._shared!r}", "leave shared out")
        return found


def _gradient(loss: Tensor, weights: nn.Parameter) -> Tensor | None:
    return torch.autograd.grad(loss, [weights], retain_graph=True, allow_unused=True)[0]


# Name -> from the tasks, the shape of images and the options that the name takes.
WEIGHTINGS: dict[str, Callable[..., Weighting]] = {"hand": ByHand, "uncertainty": Uncertainty, "gradnorm": GradNorm}


def make_weighting(
    name: str, tasks: Sequence[Task], input_shape: tuple[int, int, int], options: Mapping[str, Any]
) -> Weighting:
    """The weighting of a name.

    Raises:
        NasplatError: an unknown name, or options that it does not have.
    """
    if name not in WEIGHTINGS:
        known = f"there are {', '.join(WEIGHTINGS)}"
        raise NasplatError(f"there is no weighting {name!r}", nearest(name, WEIGHTINGS) + known)
    try:
        return WEIGHTINGS[name](tasks, input_shape, **options)
    except TypeError as error:
        known = "hand takes weights by task; gradnorm takes alpha and shared; uncertainty takes none"
        raise NasplatError(f"weighting {name}: {error}", known) from error
