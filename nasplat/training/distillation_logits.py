"""What a student learns from teachers' logits."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

_DECAY = 0.99  # of the running losses by which specialists are weighted


def soft_logits(student: Tensor, target: Tensor, temperature: float) -> Tensor:
    """T^2 KL(target || student) (Hinton et al., 2015).

    Args:
        student: logits `(N, C)`.
        target: log-probabilities `(N, C)` at the temperature.
    """
    own = (student.float() / temperature).log_softmax(1)
    return temperature**2 * F.kl_div(own, target, reduction="batchmean", log_target=True)


def logit_mse(student: Tensor, logits: Sequence[Tensor]) -> Tensor:
    """Mean squared difference to the mean of the teachers' logits (Ba & Caruana, Do Deep Nets Really…, 2014)."""
    return F.mse_loss(student.float(), torch.stack(list(logits)).mean(0))


def decoupled_parts(student: Tensor, target: Tensor, labels: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """TCKD and NCKD of each image, `(N,)` both, not times T^2 (Zhao et al., 2022). KD = TCKD + (1 - p_t) NCKD."""
    own = (student.float() / temperature).log_softmax(1)
    right = F.one_hot(labels, own.shape[1]).bool()

    def split(logs: Tensor) -> tuple[Tensor, Tensor]:
        hit = logs.masked_fill(~right, 0.0).sum(1)
        rest = logs.masked_fill(right, -torch.inf).logsumexp(1)
        others = (logs - rest[:, None]).masked_fill(right, 0.0)
        return torch.stack([hit, rest], 1), others

    (pair_s, rest_s), (pair_t, rest_t) = split(own), split(target)
    binary = (pair_t.exp() * (pair_t - pair_s)).sum(1)
    among = (rest_t.exp().masked_fill(right, 0.0) * (rest_t - rest_s)).sum(1)
    return binary, among


def decoupled(student: Tensor, target: Tensor, labels: Tensor, temperature: float, alpha: float, beta: float) -> Tensor:
    """T^2 (alpha TCKD + beta NCKD) (Zhao et al., Decoupled Knowledge Distillation, 2022)."""
    binary, among = decoupled_parts(student, target, labels, temperature)
    return temperature**2 * (alpha * binary + beta * among).mean()


class Pace(nn.Module):
    """How much each specialist still has to teach: from 1 to 0 as the student's loss falls to its own or below.

    Easy specialists drop out first (Gao et al., Knowledge Concentration, 2017, who leave the schedule open: here the
    weight is what is left of the distance that the student had to the teacher at first). Running means of both losses
    on the labels within the specialist's classes are kept as buffers, so that they are checkpointed.
    """

    student: Tensor
    teacher: Tensor
    seen: Tensor
    first: Tensor

    def __init__(self, specialists: int) -> None:
        super().__init__()
        for name in ("student", "teacher", "seen", "first"):
            self.register_buffer(name, torch.zeros(specialists))

    @torch.no_grad()
    def forward(self, place: int, student: Tensor, teacher: Tensor, mine: Tensor) -> Tensor:
        """The weight of a specialist, after a batch.

        Args:
            place: of the specialist.
            student, teacher: losses on the labels `(N,)`.
            mine: the images that are of its classes, booleans `(N,)`.
        """
        count = mine.sum()
        decay = torch.where(count > 0, _DECAY, 1.0)
        means = [(one.float() * mine).sum() / count.clamp(min=1) for one in (student, teacher)]
        for running, mean in zip((self.student, self.teacher), means, strict=True):
            running[place] = decay * running[place] + (1 - decay) * mean
        self.seen[place] = decay * self.seen[place] + (1 - decay)
        known = self.seen[place].clamp(min=1e-12)
        ahead = (self.student[place] - self.teacher[place]) / known
        self.first[place] = torch.maximum(self.first[place], ahead)
        return (ahead / self.first[place].clamp(min=1e-12)).clamp(0, 1)


def specialists(
    student: Tensor, answers: Sequence[Tensor], groups: Sequence[Tensor], labels: Tensor, temperature: float, pace: Pace
) -> Tensor:
    """Each teacher teaches the images of its own classes, at its pace (Gao et al., Knowledge Concentration, 2017).

    Args:
        student: logits `(N, C)`.
        answers: of every teacher, logits over its classes.
        groups: of every teacher, its classes.
        labels: `(N,)`.
    """
    loss = student.new_zeros((), dtype=torch.float32)
    for place, (given, group) in enumerate(zip(answers, groups, strict=True)):
        own = student.float()[:, group]  # renormalised within these classes
        soft = (given / temperature).log_softmax(1)
        each = F.kl_div((own / temperature).log_softmax(1), soft, reduction="none", log_target=True).sum(1)
        hits = labels[:, None] == group
        mine, right = hits.any(1), hits.int().argmax(1)
        losses = (F.cross_entropy(one, right, reduction="none") for one in (own.detach(), given))
        loss = loss + pace(place, *losses, mine) * (each * mine).mean()
    return temperature**2 * loss
