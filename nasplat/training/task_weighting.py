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

    Args:
        alpha: how much slower tasks are pulled; 0: all gradients become equal.
        shared: the module whose weights are looked at; empty: the last one that all tasks use.
    """

    def __init__(
        self, tasks: Sequence[Task], input_shape: tuple[int, int, int], *, alpha: float = 1.5, shared: str = ""
    ) -> None:
        if not 0 <= alpha < float("inf"):
            raise NasplatError(f"gradnorm: alpha {alpha}", "alpha is 0 or above; published are 0.12 and 1.5")
        self._tasks, self._input_shape, self._alpha, self._shared = tasks, input_shape, alpha, shared
        self._name = ""

    def module(self, network: nn.Module) -> nn.Module:
        self._name = self._find(network)
        parts = nn.Module()
        parts.raw = nn.Parameter(torch.zeros(len(self._tasks)))
        parts.register_buffer("first", torch.full((len(self._tasks),), float("nan")))
        return parts

    def combine(self, losses: Sequence[Tensor], here: Tensor, network: nn.Module, parts: nn.Module) -> Tensor:
        raw: Any = parts.raw
        first: Any = parts.first
        values = torch.stack(tuple(losses))
        weights = len(values) * raw.softmax(0)
        total = (weights.detach() * values).sum()
        if not torch.is_grad_enabled():
            return total
        with torch.no_grad():
            first.copy_(torch.where(first.isnan() & here, values, first))
        shared = network.get_parameter(self._name)
        # Of each loss alone, not of the stacked ones: its gradient passes through its own head only.
        norms = torch.stack(
            [
                torch.zeros_like(loss) if gradient is None else gradient.detach().float().norm()
                for loss in losses
                for (gradient,) in [torch.autograd.grad(loss, [shared], retain_graph=True, allow_unused=True)]
            ]
        )
        count = here.sum().clamp(min=1)
        pulls = weights * norms
        mean = (pulls.detach() * here).sum() / count
        rates = torch.where(here, values.detach() / first.clamp(min=1e-12), torch.zeros_like(first))
        rates = rates / (rates.sum() / count).clamp(min=1e-12)
        apart = (pulls / mean.clamp(min=1e-12) - rates**self._alpha).abs()
        balance = _GRADNORM_PACE * torch.where(here, apart, torch.zeros_like(apart)).sum()
        return total + (balance - balance.detach())  # it moves the weights, but is no part of the loss that is told

    def _find(self, network: nn.Module) -> str:
        """The last of the weights that every task's output depends on."""
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
                used.append([gradient is not None for gradient in gradients])
        all_use = [name for name, *flags in zip(inside, *used, strict=True) if all(flags) and inside[name].dim() > 1]
        if not all_use:
            raise NasplatError("gradnorm: the tasks share no weights", "use weighting hand or uncertainty")
        return all_use[-1]


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
