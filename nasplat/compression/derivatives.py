"""Criteria that look at the loss: its slopes and its curvature along the weights that read a channel."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode

from nasplat.compression.statistics import (
    Evidence,
    RunningMeans,
    Scores,
    inputs_of,
    readers,
    require_batches,
    wide,
)
from nasplat.core.channel_graph import Member
from nasplat.core.errors import NasplatError


def of_gradients(
    of_weight: Callable[[Tensor, Tensor], Tensor], of_slice: Callable[[Tensor], Tensor]
) -> Callable[[Evidence], Scores]:
    """A criterion that looks at gradients of the loss: by batch, of the sum over the weights that read an atom.

    Args:
        of_weight: elementwise, of a weight and its gradient.
        of_slice: of a batch's sum, before it is averaged over batches.
    """

    def score(evidence: Evidence) -> Scores:
        members = _readers(evidence)
        names = list(dict.fromkeys(member.tensor for _, _, member in members))
        weights = [evidence.parameters[name] for name in names]
        running, seen = RunningMeans(), 0
        with differentiable(weights):
            for images, labels in inputs_of(evidence, "taylor"):
                seen += 1
                found = torch.autograd.grad(
                    evidence.loss(evidence.model(images), labels),  # type: ignore[arg-type]
                    weights,
                    allow_unused=True,
                )
                _accumulate(running, members, names, weights, found, of_weight, of_slice)
        require_batches(seen, evidence)
        return _by_group(running.means())

    return score


def of_curvature(
    of_weight: Callable[[Tensor, Tensor], Tensor], of_mean: Callable[[Tensor], Tensor]
) -> Callable[[Evidence], Scores]:
    """A criterion that looks at the diagonal of the loss's Hessian, one random probe a batch.

    Hutchinson's estimate: v * (H v) has the diagonal of H as its expectation where the entries of v are independently
    1 or -1 (Bekas et al., An Estimator for the Diagonal of a Matrix, 2007).

    Args:
        of_weight: elementwise, of a weight and its second derivative; linear in that.
        of_mean: of the sum over the weights that read an atom, averaged over batches.
    """

    def score(evidence: Evidence) -> Scores:
        members = _readers(evidence)
        names = list(dict.fromkeys(member.tensor for _, _, member in members))
        weights = [evidence.parameters[name] for name in names]
        running, seen = RunningMeans(), 0
        # The fused kernels of attention have no second derivative.
        with differentiable(weights), sdpa_kernel(SDPBackend.MATH), _TwiceDifferentiable():
            for images, labels in inputs_of(evidence, "hessian"):
                seen += 1
                loss = evidence.loss(evidence.model(images), labels)  # type: ignore[arg-type]
                slopes = torch.autograd.grad(loss, weights, create_graph=True, allow_unused=True)
                probes = [_signs(weight, evidence.generator) for weight in weights]
                try:
                    found = _second(slopes, weights, probes)
                except RuntimeError as error:
                    if "derivative" not in str(error):
                        raise
                    raise NasplatError(
                        f"the network has no second derivatives: {str(error).splitlines()[0]}",
                        "choose taylor, which needs only the first",
                    ) from error
                _accumulate(running, members, names, weights, found, of_weight, lambda total: total)
        require_batches(seen, evidence)
        return {name: [of_mean(mean) for mean in means] for name, means in _by_group(running.means()).items()}

    return score


class _TwiceDifferentiable(TorchFunctionMode):
    """Writes out what torch derives only once."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.hardsigmoid:
            return F.relu6(args[0] + 3) / 6
        return func(*args, **(kwargs or {}))


def _second(
    slopes: Sequence[Tensor | None], weights: Sequence[Tensor], probes: Sequence[Tensor]
) -> list[Tensor | None]:
    # Where the loss is linear in a weight, its gradient depends on nothing.
    bent = [(slope, probe) for slope, probe in zip(slopes, probes, strict=True) if slope is not None and slope.grad_fn]
    if not bent:
        return [None] * len(weights)
    outputs, vectors = zip(*bent, strict=True)
    products = torch.autograd.grad(outputs, weights, vectors, allow_unused=True)
    return [None if one is None else one * probe for one, probe in zip(products, probes, strict=True)]


def _signs(weight: Tensor, generator: torch.Generator) -> Tensor:
    drawn = torch.randint(0, 2, weight.shape, generator=generator, device=generator.device)
    return (2 * drawn - 1).to(weight)


def _readers(evidence: Evidence) -> list[tuple[str, int, Member]]:
    # Zeros in the weights that read a channel are all that its removal does. Weights before a norm say less: a norm's
    # shift, and those that make the channel, each change it to something else.
    return [
        (group.name, place, member)
        for group in evidence.graph.groups
        for place, member in enumerate(readers(group, evidence))
    ]


def _accumulate(
    running: RunningMeans,
    members: Sequence[tuple[str, int, Member]],
    names: Sequence[str],
    weights: Sequence[Tensor],
    derivatives: Sequence[Tensor | None],
    of_weight: Callable[[Tensor, Tensor], Tensor],
    of_slice: Callable[[Tensor], Tensor],
) -> None:
    with torch.no_grad():
        values = {
            # What the loss does not depend on has no derivative.
            name: wide(weight) * 0 if found is None else of_weight(wide(weight), wide(found))
            for name, weight, found in zip(names, weights, derivatives, strict=True)
        }
        for group, place, member in members:
            value = values[member.tensor]
            others = [dim for dim in range(value.dim()) if dim != member.dim]
            along = value.sum(others) if others else value
            indices = torch.from_numpy(member.indices).to(value.device)
            running.add((group, place), of_slice(along[indices].sum(1)))


def _by_group(means: Mapping[tuple[str, int], Tensor]) -> dict[str, list[Tensor]]:
    found: dict[str, list[Tensor]] = {}
    for (group, _), mean in means.items():
        found.setdefault(group, []).append(mean)
    return found


@contextmanager
def differentiable(weights: Sequence[Tensor]) -> Iterator[None]:
    """Gradients for these weights, frozen or not, for the while."""
    before = [weight.requires_grad for weight in weights]
    try:
        for weight in weights:
            weight.requires_grad_(True)
        with torch.enable_grad():
            yield
    finally:
        for weight, required in zip(weights, before, strict=True):
            weight.requires_grad_(required)
