"""Distillation: a student learns from trained teachers, as one objective of the training loop."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nasplat.core.distillation import Distillation
from nasplat.core.errors import NasplatError, nearest
from nasplat.core.experiment import Train
from nasplat.core.problem import Problem
from nasplat.training.distillation_features import attention, check_path, hint, relation, watched
from nasplat.training.features import device_of, evaluating
from nasplat.training.objectives import Objective
from nasplat.training.teachers import Teachers, answer, check_agreement

if TYPE_CHECKING:
    from nasplat.data.loader import Batch


def soft_logits(student: Tensor, target: Tensor, temperature: float) -> Tensor:
    """T^2 KL(target || student) (Hinton et al., 2015).

    Args:
        student: logits `(N, C)`.
        target: log-probabilities `(N, C)` at the temperature.
    """
    own = (student.float() / temperature).log_softmax(1)
    return temperature**2 * F.kl_div(own, target, reduction="batchmean", log_target=True)


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


def specialists(
    student: Tensor, answers: Sequence[Tensor], groups: Sequence[Tensor], labels: Tensor, temperature: float
) -> Tensor:
    """Each teacher teaches the images of its own classes, the student renormalised in them (Gao et al., 2017)."""
    loss = student.new_zeros((), dtype=torch.float32)
    for given, group in zip(answers, groups, strict=True):
        own = (student.float()[:, group] / temperature).log_softmax(1)
        soft = (given / temperature).log_softmax(1)
        each = F.kl_div(own, soft, reduction="none", log_target=True).sum(1)
        loss = loss + (each * (labels[:, None] == group).any(1)).mean()
    return temperature**2 * loss


# Name -> loss of features (student's, teacher's) at each pair.
FEATURE_OBJECTIVES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "hint": hint,
    "attention": attention,
    "relation": relation,
}
# Name -> whether it needs labels.
LOGIT_OBJECTIVES = {"logits": False, "decoupled": True, "specialists": True}


class _Reversed(torch.autograd.Function):
    """Gradient reversal (Ganin & Lempitsky, 2015): one optimiser trains discriminator and student against it."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        return values.view_as(values)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return -gradients[0]


class Distilled:
    """The weighted sum of the objectives that the settings name, and cross-entropy with labels."""

    views = 1

    def __init__(
        self,
        settings: Distillation,
        smoothing: float,
        problem: Problem,
        size: int,
        networks: Sequence[nn.Module],
        network: nn.Module,
        kept: Mapping[str, Sequence[int]],
    ) -> None:
        groups = [teacher.classes for teacher in settings.teachers] or [None] * len(networks)
        _check(settings, problem, networks, groups)
        self.settings, self.smoothing, self.shape = settings, smoothing, problem.input_shape
        self.classes = check_agreement(network, networks, problem.input_shape, groups)
        self.weights = {name: weight for name, weight in settings.weights.items() if weight}
        self.needs_labels = bool(settings.labels) or any(LOGIT_OBJECTIVES.get(name, False) for name in self.weights)
        if self.needs_labels and all(output.kind != "classification" for output in problem.outputs):
            raise NasplatError(
                "this distillation needs labels, and these data have none", "use weights: {logits: 1} and labels: 0"
            )
        self.by_features = [name for name in self.weights if name in FEATURE_OBJECTIVES]
        before = copy.deepcopy(network) if settings.choice == "better" else None
        self.teachers = Teachers(networks, before, size if settings.cache else 0)
        self.groups = [torch.tensor(group) for group in groups if group is not None]
        self.kept = {path: torch.tensor(list(indices)) for path, indices in kept.items()}
        for own, other in settings.pairs.items():
            check_path(network, own, "student")
            check_path(networks[0], other, "teacher")

    def module(self, network: nn.Module) -> nn.Module | None:
        device = device_of(network)
        self.teachers.to(device)
        self.groups = [group.to(device) for group in self.groups]
        self.kept = {path: indices.to(device) for path, indices in self.kept.items()}
        parts: dict[str, nn.Module] = {}
        if "hint" in self.weights:
            parts.update(self._regressors(network, device))
        if self.settings.discriminator:
            layers = (nn.Linear(self.classes, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 1))
            parts["discriminator"] = nn.Sequential(*layers)
        return nn.ModuleDict(parts) if parts else None

    def loss(self, network: nn.Module, extra: nn.Module | None, batch: Batch, generator: torch.Generator) -> Tensor:
        images, labels, wanted = batch.views[0], batch.labels, self.settings
        if self.needs_labels and labels is None:
            raise NasplatError("this distillation needs labels, and these data have none", "use labels: 0")
        pairs = wanted.pairs if self.by_features else {}
        with watched(network, pairs) as own:
            student = answer(network, images)
        total = student.new_zeros(())
        if wanted.labels:
            assert labels is not None
            total = total + wanted.labels * F.cross_entropy(student, labels, label_smoothing=self.smoothing)
        if wanted.discriminator or self.weights.keys() & {"logits", "decoupled"}:
            target = self.teachers.targets(images, labels, batch.indices, wanted.temperature)
        if "logits" in self.weights:
            total = total + self.weights["logits"] * soft_logits(student, target, wanted.temperature)
        if "decoupled" in self.weights:
            assert labels is not None
            loss = decoupled(student, target, labels, wanted.temperature, wanted.alpha, wanted.beta)
            total = total + self.weights["decoupled"] * loss
        if "specialists" in self.weights:
            assert labels is not None
            answers = self.teachers.logits(images)
            loss = specialists(student, answers, self.groups, labels, wanted.temperature)
            total = total + self.weights["specialists"] * loss
        if pairs:
            total = total + self._features(images, own, extra)
        if wanted.discriminator:
            assert isinstance(extra, nn.ModuleDict)
            logs = (student / wanted.temperature).log_softmax(1)
            both = extra["discriminator"](torch.cat([_Reversed.apply(logs), target])).float().squeeze(1)
            real = torch.arange(len(both), device=both.device) >= len(logs)
            total = total + wanted.discriminator * F.binary_cross_entropy_with_logits(both, real.float())
        return total

    def _features(self, images: Tensor, own: dict[str, Tensor], extra: nn.Module | None) -> Tensor:
        with torch.no_grad(), watched(self.teachers.networks[0], set(self.settings.pairs.values())) as theirs:
            self.teachers.networks[0](images)
        total = images.new_zeros((), dtype=torch.float32)
        for path, other in self.settings.pairs.items():
            features = self._aligned(other, theirs[other])
            for name in self.by_features:
                given, key = own[path], _key(path)
                if name == "hint" and isinstance(extra, nn.ModuleDict) and key in extra:
                    given = extra[key](given)
                total = total + self.weights[name] * FEATURE_OBJECTIVES[name](given, features)
        return total

    def _aligned(self, path: str, features: Tensor) -> Tensor:
        return features.index_select(1, self.kept[path]) if path in self.kept else features

    def _regressors(self, network: nn.Module, device: torch.device) -> dict[str, nn.Module]:
        teacher, pairs = self.teachers.networks[0], self.settings.pairs
        image = torch.zeros(1, *self.shape, device=device)
        with evaluating(network), watched(network, pairs) as own, watched(teacher, set(pairs.values())) as theirs:
            network(image)
            with torch.no_grad():
                teacher(image)
        made: dict[str, nn.Module] = {}
        for path, other in pairs.items():
            ours, given = own[path].shape, self._aligned(other, theirs[other]).shape
            if ours[2:] != given[2:]:
                raise NasplatError(
                    f"pairs: {path} gives maps of {tuple(ours[2:])}, {other} of {tuple(given[2:])}",
                    "name modules whose maps have the same size",
                )
            if ours[1] != given[1]:
                made[_key(path)] = nn.Conv2d(ours[1], given[1], 1) if len(ours) == 4 else nn.Linear(ours[1], given[1])
        return made


def _key(path: str) -> str:
    return "regressor_" + path.replace(".", "/")


def _check(
    settings: Distillation, problem: Problem, networks: Sequence[nn.Module], groups: Sequence[list[int] | None]
) -> None:
    known = (*LOGIT_OBJECTIVES, *FEATURE_OBJECTIVES)
    for name in settings.weights:
        if name not in known:
            raise NasplatError(f"there is no distillation {name!r}", nearest(name, known) + f"there are {known}")
    if not networks:
        raise NasplatError("distillation needs a teacher", "name one under teachers")
    if len(groups) != len(networks):
        raise NasplatError(f"{len(groups)} teachers are named and {len(networks)} are given")
    special = bool(settings.weights.get("specialists"))
    if special != any(group is not None for group in groups) or (special and None in groups):
        raise NasplatError("weights: specialists and classes of every teacher go together", "give both or neither")
    if special and (settings.cache or settings.discriminator or len([w for w in settings.weights.values() if w]) > 1):
        raise NasplatError("specialists cannot be joined with other objectives, cache or discriminator")
    if any(settings.weights.get(name) for name in FEATURE_OBJECTIVES) and not settings.pairs:
        raise NasplatError("objectives of features need pairs", "pairs: {layer of student: layer of teacher}")


def make_distillation(
    settings: Distillation,
    train: Train,
    problem: Problem,
    dataset_size: int,
    teachers: Sequence[nn.Module],
    network: nn.Module,
    kept: Mapping[str, Sequence[int]] | None = None,
) -> Objective:
    """The objective that teaches `network`; pass it to `fit` as `objective`.

    Args:
        kept: module path of the teacher -> its channels that the student, a pruned teacher, kept.

    Raises:
        NasplatError: networks that do not fit each other, pairs that do not exist, labels that are missing, a cache
            under augmentation.
    """
    if settings.cache and (train.augment is None or len(train.augment)):
        raise NasplatError("soft labels cannot be cached while images are augmented", "use augment: [] or cache: false")
    return Distilled(settings, train.label_smoothing, problem, dataset_size, teachers, network, kept or {})
