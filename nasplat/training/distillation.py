"""Distillation: a student learns from trained teachers, as one objective of the training loop."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nasplat.artifacts.weights import checksum
from nasplat.core.architecture import canonical_json, fingerprint
from nasplat.core.distillation import Distillation, Teacher
from nasplat.core.errors import NasplatError, nearest
from nasplat.core.experiment import Train
from nasplat.core.problem import Problem
from nasplat.training.distillation_features import attention, check_path, hint, relation, seen, watched
from nasplat.training.distillation_logits import Pace, decoupled, logit_mse, soft_logits, specialists
from nasplat.training.distillation_tasks import DistilledTasks
from nasplat.training.evaluate import evaluation_loader
from nasplat.training.features import device_of, evaluating
from nasplat.training.multi_task import tasks_objective
from nasplat.training.teachers import Teachers, answer, check_agreement

if TYPE_CHECKING:
    from nasplat.data.datasets import Dataset
    from nasplat.data.loader import Batch

# Name -> loss of features (student's, teacher's) at each pair.
FEATURE_OBJECTIVES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "hint": hint,
    "attention": attention,
    "relation": relation,
}
# Name -> whether it needs labels.
LOGIT_OBJECTIVES = {"logits": False, "logit_mse": False, "decoupled": True, "specialists": True}


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
        networks: Sequence[nn.Module],
        network: nn.Module,
        kept: Mapping[str, Sequence[int]],
    ) -> None:
        groups = [teacher.classes for teacher in settings.teachers] or [None] * len(networks)
        _check(settings, networks, groups)
        self.settings, self.smoothing, self.shape = settings, smoothing, problem.input_shape
        self.classes = check_agreement(network, networks, problem.input_shape, groups)
        self.weights = {name: weight for name, weight in settings.weights.items() if weight}
        needs = [name for name in self.weights if LOGIT_OBJECTIVES.get(name, False)]
        self.needs_labels = bool(settings.labels) or bool(needs)
        if self.needs_labels and all(output.kind != "classification" for output in problem.outputs):
            what = f"objective {needs[0]}" if needs else f"distill.labels: {settings.labels:g}"
            raise NasplatError(
                f"{what} needs labels, and these data have none", "use weights: {logits: 1} and labels: 0"
            )
        self.by_features = [name for name in self.weights if name in FEATURE_OBJECTIVES]
        before = copy.deepcopy(network) if settings.choice == "better" else None
        self.teachers = Teachers(networks, before)
        self.groups = [torch.tensor(group) for group in groups if group is not None]
        self.kept = {path: torch.tensor(list(indices)) for path, indices in kept.items()}
        for own, other in settings.pairs.items():
            check_path(network, own, "student")
            check_path(networks[0], other, "teacher")
        # Two trainings with other teachers are not one training.
        self.identity = fingerprint(
            {
                "settings": settings.model_dump(mode="json"),
                "teachers": [checksum(one.state_dict()) for one in networks],
                "kept": {path: list(map(int, indices)) for path, indices in kept.items()},
            }
        )

    def module(self, network: nn.Module) -> nn.Module | None:
        device = device_of(network)
        self.teachers.to(device)
        self.groups = [group.to(device) for group in self.groups]
        self.kept = {path: indices.to(device) for path, indices in self.kept.items()}
        parts: dict[str, nn.Module] = {}
        if "hint" in self.weights:
            parts.update(self._regressors(network, device))
        if "specialists" in self.weights:
            parts["pace"] = Pace(len(self.groups))
        if self.settings.discriminator:
            layers = (nn.Linear(self.classes, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 1))
            parts["discriminator"] = nn.Sequential(*layers)
        return nn.ModuleDict(parts) if parts else None

    def loss(self, network: nn.Module, extra: nn.Module | None, batch: Batch, generator: torch.Generator) -> Tensor:
        images, labels, wanted, weights = batch.views[0], batch.labels, self.settings, self.weights
        parts = extra if isinstance(extra, nn.ModuleDict) else nn.ModuleDict()
        if self.needs_labels and labels is None:
            raise NasplatError("this distillation needs labels, and these data have none", "use labels: 0")
        pairs = wanted.pairs if self.by_features else {}
        with watched(network, pairs) as own:
            student = answer(network, images)
        with torch.no_grad(), watched(self.teachers.networks[0], set(pairs.values())) as theirs:
            asked = bool(wanted.discriminator or weights.keys() & {"logits", "decoupled"})
            target = self.teachers.targets(batch, wanted.temperature) if asked else student
            if weights.keys() & {"logit_mse", "specialists"}:
                answers = self.teachers.logits(images)
            elif pairs and not theirs:
                self.teachers.networks[0](images)
        total = student.new_zeros(())
        if wanted.labels and labels is not None:
            total = total + wanted.labels * F.cross_entropy(student, labels, label_smoothing=self.smoothing)
        if "logits" in weights:
            total = total + weights["logits"] * soft_logits(student, target, wanted.temperature)
        if "logit_mse" in weights:
            total = total + weights["logit_mse"] * logit_mse(student, answers)
        if "decoupled" in weights and labels is not None:
            loss = decoupled(student, target, labels, wanted.temperature, wanted.alpha, wanted.beta)
            total = total + weights["decoupled"] * loss
        if "specialists" in weights and labels is not None:
            pace = parts["pace"]
            assert isinstance(pace, Pace)
            loss = specialists(student, answers, self.groups, labels, wanted.temperature, pace)
            total = total + weights["specialists"] * loss
        if pairs:
            total = total + self._features(own, theirs, parts)
        if wanted.discriminator:
            logs = (student / wanted.temperature).log_softmax(1)
            both = parts["discriminator"](torch.cat([_Reversed.apply(logs), target])).float().squeeze(1)
            real = torch.arange(len(both), device=both.device) >= len(logs)
            total = total + wanted.discriminator * F.binary_cross_entropy_with_logits(both, real.float())
        return total

    def _features(self, own: Mapping[str, Tensor], theirs: Mapping[str, Tensor], parts: nn.ModuleDict) -> Tensor:
        losses = []
        for path, other in self.settings.pairs.items():
            features = self._aligned(other, seen(theirs, other, "teacher"))
            for name in self.by_features:
                given, key = seen(own, path, "student"), _key(path)
                if name == "hint" and key in parts:
                    given = parts[key](given)
                losses.append(self.weights[name] * FEATURE_OBJECTIVES[name](given, features))
        return torch.stack(losses).sum()

    def _aligned(self, path: str, features: Tensor) -> Tensor:
        if path not in self.kept:
            return features
        last = isinstance(self.teachers.networks[0].get_submodule(path), nn.Linear | nn.LayerNorm)
        return features.index_select(-1 if last else 1, self.kept[path])

    def _regressors(self, network: nn.Module, device: torch.device) -> dict[str, nn.Module]:
        teacher, pairs = self.teachers.networks[0], self.settings.pairs
        image = torch.zeros(1, *self.shape, device=device)
        with evaluating(network), watched(network, pairs) as own, watched(teacher, set(pairs.values())) as theirs:
            network(image)
            with torch.no_grad():
                teacher(image)
        made: dict[str, nn.Module] = {}
        for path, other in pairs.items():
            ours = seen(own, path, "student").shape
            given = self._aligned(other, seen(theirs, other, "teacher")).shape
            if ours[2:] != given[2:]:
                raise NasplatError(
                    f"pairs: {path} gives maps of {tuple(ours[2:])}, {other} of {tuple(given[2:])}",
                    "name modules whose maps have the same size",
                )
            if ours[1] != given[1]:
                made[_key(path)] = nn.Conv2d(ours[1], given[1], 1) if len(ours) == 4 else nn.Linear(ours[1], given[1])
        return made


def distillation(
    train: Train,
    dataset: Dataset,
    network: nn.Module,
    *,
    teachers: Sequence[nn.Module] = (),
    kept: Mapping[str, Sequence[int]] | None = None,
    device: torch.device | None = None,
) -> Distilled | DistilledTasks:
    """The objective that teaches a network; one for several tasks where the data have them.

    Args:
        train: with its section `distill`.
        teachers: those that the settings name, or where they name none.
        kept: module path of the first teacher -> its channels that the student, a pruned teacher, kept; its features
            then need no projection.
        device: where soft labels that are cached are made.

    Raises:
        NasplatError: there is no teacher, networks that do not fit each other, pairs that do not exist, or labels that
            are missing.
    """
    settings = train.distill
    assert settings is not None
    networks = list(teachers) or [load_teacher(one) for one in settings.teachers]
    if dataset.tasks:
        return DistilledTasks(tasks_objective(train, dataset), settings, networks, network)
    found = Distilled(settings, train.label_smoothing, dataset.problem, networks, network, kept or {})
    if settings.cache:
        place = device or device_of(network)
        found.teachers.to(place)
        found.teachers.remember(evaluation_loader(dataset, "train", place).ordered(), settings.temperature)
    return found


def load_teacher(teacher: Teacher) -> nn.Module:
    """The trained network, frozen; read once a process."""
    return _load_teacher(canonical_json(teacher.model_dump(mode="json")))


@lru_cache(maxsize=8)
def _load_teacher(text: str) -> nn.Module:
    from nasplat.networks.user_model import trained_model

    teacher = Teacher.model_validate_json(text)
    try:
        return trained_model(teacher.model, teacher.arguments, teacher.checkpoint)
    except NasplatError as error:
        raise NasplatError(f"teacher {teacher.model}: {error.message}", error.advice) from error


def _key(path: str) -> str:
    return "regressor_" + path.replace(".", "/")


def _check(settings: Distillation, networks: Sequence[nn.Module], groups: Sequence[list[int] | None]) -> None:
    known = (*LOGIT_OBJECTIVES, *FEATURE_OBJECTIVES)
    for name in settings.weights:
        if name not in known:
            raise NasplatError(
                f"distill.weights: there is no objective {name!r}",
                f"{nearest(name, known)}there are {', '.join(known)}",
            )
    if not networks:
        raise NasplatError("distill needs a teacher", "name one: teachers: [{model: …, checkpoint: …}]")
    if len(groups) != len(networks):
        raise NasplatError(f"{len(groups)} teachers are named and {len(networks)} are given")
    special = bool(settings.weights.get("specialists"))
    if special != any(group is not None for group in groups) or (special and None in groups):
        raise NasplatError("weights: specialists and classes of every teacher go together", "give both or neither")
    if special and (settings.cache or settings.discriminator or len([w for w in settings.weights.values() if w]) > 1):
        raise NasplatError(
            "specialists cannot be joined with other objectives, cache or discriminator", "labels can be: labels: 1"
        )
    if any(settings.weights.get(name) for name in FEATURE_OBJECTIVES) and not settings.pairs:
        raise NasplatError("objectives of features need pairs", "pairs: {layer of student: layer of teacher}")
    if settings.pairs and not any(settings.weights.get(name) for name in FEATURE_OBJECTIVES):
        raise NasplatError(
            "pairs are for objectives of features, and none has a weight",
            f"give one of {', '.join(FEATURE_OBJECTIVES)} a weight",
        )
    soft = settings.discriminator or any(settings.weights.get(name) for name in ("logits", "decoupled"))
    others = [name for name, weight in settings.weights.items() if weight and name not in ("logits", "decoupled")]
    direct = [name for name in others if name in LOGIT_OBJECTIVES]
    if settings.choice == "better" and (direct or not soft):
        raise NasplatError(
            f"choice: better chooses soft labels, and objective {[*direct, *others, 'cross-entropy'][0]} looks at none",
            "use weights: {logits: 1} or {decoupled: 1} with it",
        )
    if settings.cache and not soft:
        raise NasplatError("cache keeps soft labels, and these objectives need none", "leave cache out")
