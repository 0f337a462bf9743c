"""Trained networks that answer for a batch, and the memory of their answers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from nasplat.core.errors import NasplatError
from nasplat.training.features import device_of, evaluating

if TYPE_CHECKING:
    from nasplat.data.loader import Batch


def answer(network: nn.Module, images: Tensor) -> Tensor:
    """Logits `(N, C)` in float32.

    Raises:
        NasplatError: a network that gives anything but one tensor of two dimensions.
    """
    logits = network(images)
    if isinstance(logits, Mapping) and len(logits) == 1:  # one named output, as networks of our spaces may have
        (logits,) = logits.values()
    if not isinstance(logits, Tensor) or logits.dim() != 2:
        raise NasplatError(
            f"{type(network).__name__} gives {type(logits).__name__}, not one tensor (images, classes)",
            "wrap it in a module that returns its logits",
        )
    return logits.float()


def check_agreement(
    student: nn.Module, teachers: Sequence[nn.Module], shape: tuple[int, int, int], groups: Sequence[list[int] | None]
) -> int:
    """Runs one image of zeros through all; the number of classes, which all must share.

    Raises:
        NasplatError: saying which network does not fit, in its input, its output or its classes.
    """
    named = [("the student", student), *((f"teacher {index}", teacher) for index, teacher in enumerate(teachers))]
    counts = []
    for name, network in named:
        with evaluating(network):
            try:
                counts.append(answer(network, torch.zeros(1, *shape, device=device_of(network))).shape[1])
            except RuntimeError as error:
                first = (str(error).splitlines() or [""])[0]
                raise NasplatError(
                    f"{name} does not take images of {shape} (channels, height, width): {first}",
                    "teacher and student must take the same images",
                ) from error
    for index, (count, group) in enumerate(zip(counts[1:], groups, strict=True)):
        expected = counts[0] if group is None else len(group)
        if count != expected:
            raise NasplatError(
                f"teacher {index} tells {count} classes apart, the student needs {expected} of it",
                "give a specialist its classes, or use a teacher of the same classes",
            )
        if group is not None and (len(set(group)) < len(group) or min(group) < 0 or max(group) >= counts[0]):
            raise NasplatError(f"teacher {index}: classes {group} are not distinct and in 0..{counts[0] - 1}")
    return counts[0]


class Teachers:
    """Networks in eval mode that are asked without gradients, outside every module that is trained or saved.

    Several that know all classes are averaged: softmaxes at the temperature (MEAL V2, Shen & Savvides, 2020).

    Args:
        before: the student as it was; each image is then taught by whoever gives its label the higher probability, or
            without labels by the more confident (Roth et al., Fantastic Gains, 2024).
    """

    def __init__(self, networks: Sequence[nn.Module], before: nn.Module | None = None) -> None:
        self.networks, self.before = list(networks), before
        self._remembered: Tensor | None = None
        for network in self._all():
            network.eval()

    def _all(self) -> list[nn.Module]:
        return [*self.networks, *([self.before] if self.before is not None else [])]

    def to(self, device: torch.device) -> None:
        for network in self._all():
            network.to(device).eval()

    @torch.no_grad()
    def remember(self, batches: Iterable[Batch], temperature: float) -> None:
        """Answers for all training images, in their order, once and for all; they must be seen as they are."""
        self._remembered = torch.cat([self._asked(batch, temperature) for batch in batches])

    @torch.no_grad()
    def targets(self, batch: Batch, temperature: float) -> Tensor:
        """Log-probabilities `(N, C)` at the temperature."""
        if self._remembered is None:
            return self._asked(batch, temperature)
        return self._remembered[batch.indices.to(self._remembered.device)]

    @torch.no_grad()
    def logits(self, images: Tensor) -> list[Tensor]:
        return [answer(network, images) for network in self.networks]

    def _asked(self, batch: Batch, temperature: float) -> Tensor:
        images, labels = batch.views[0], batch.labels
        logits = self.logits(images)
        soft = mean_of(logits, temperature)
        if self.before is None:
            return soft
        own = answer(self.before, images)
        ours, theirs = own.log_softmax(1), mean_of(logits, 1.0)
        if labels is None:
            better = theirs.amax(1) > ours.amax(1)
        else:
            better = (theirs - ours).gather(1, labels[:, None]).squeeze(1) > 0
        return torch.where(better[:, None], soft, (own / temperature).log_softmax(1))


def mean_of(logits: Sequence[Tensor], temperature: float) -> Tensor:
    """The logarithm of the mean softmax at the temperature, `(N, C)`."""
    each = torch.stack([(one / temperature).log_softmax(1) for one in logits])
    return each.logsumexp(0) - torch.log(torch.tensor(float(len(logits)), device=each.device))
