"""Frozen networks that answer for a batch, and the memory of their answers."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from nasplat.core.errors import NasplatError
from nasplat.training.features import device_of, evaluating


def answer(network: nn.Module, images: Tensor) -> Tensor:
    """Logits `(N, C)` in float32.

    Raises:
        NasplatError: a network that gives anything but one tensor of two dimensions.
    """
    logits = network(images)
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
    """Frozen networks, in eval mode, outside every module that is trained or saved.

    Several that know all classes are averaged: softmaxes at the temperature (MEAL V2, Shen & Savvides, 2020).

    Args:
        before: the student as it was; each image is then taught by whoever gives its label the higher probability, or
            without labels by the more confident (Roth et al., Fantastic Gains, 2024).
        remember: number of images whose answers are kept, by row; 0 for none.
    """

    def __init__(self, networks: Sequence[nn.Module], before: nn.Module | None = None, remember: int = 0) -> None:
        self.networks, self.before = list(networks), before
        self.remember = remember
        self._known: Tensor | None = None
        self._answers: Tensor | None = None
        for network in (*self.networks, *([before] if before is not None else [])):
            network.requires_grad_(False).eval()

    def to(self, device: torch.device) -> None:
        for network in (*self.networks, *([self.before] if self.before is not None else [])):
            network.to(device).eval()

    @torch.no_grad()
    def targets(self, images: Tensor, labels: Tensor | None, rows: Tensor, temperature: float) -> Tensor:
        """Log-probabilities `(N, C)` at the temperature."""
        if not self.remember:
            return self._asked(images, labels, temperature)
        # One wait for the device, in place of a run of the teachers.
        if self._known is not None and self._answers is not None and self._known[rows].all().cpu().numpy():
            return self._answers[rows]
        found = self._asked(images, labels, temperature)
        if self._known is None or self._answers is None:
            self._known = torch.zeros(self.remember, dtype=torch.bool, device=images.device)
            self._answers = found.new_zeros(self.remember, found.shape[1])
        self._known[rows] = True
        self._answers[rows] = found
        return found

    @torch.no_grad()
    def logits(self, images: Tensor) -> list[Tensor]:
        return [answer(network, images) for network in self.networks]

    def _asked(self, images: Tensor, labels: Tensor | None, temperature: float) -> Tensor:
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
