"""Branching trees found by gradients: BMTAS, and Learning to Branch.

Bruggemann et al., Automated Search for Resource-Efficient Branched Multi-Task Networks, 2020; Guo et al., Learning to
Branch for Multi-Task Learning, 2020.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from nasplat.core.architecture import Architecture, fingerprint
from nasplat.core.errors import NasplatError, TrialFailed
from nasplat.core.experiment import Train
from nasplat.data.tasks import problem_of
from nasplat.spaces.branching import BranchingSpace
from nasplat.training.alternation import Alternation
from nasplat.training.devices import repeatable
from nasplat.training.fit import training_loader
from nasplat.training.multi_task import MultiTask, tasks_objective
from nasplat.training.relaxed_trees import ParentChoices, RelaxedTrees, TaskMixtures, share_of

if TYPE_CHECKING:
    from nasplat.data.datasets import Dataset, Split
    from nasplat.data.loader import Batch, Loader

METHODS: dict[str, Callable[[BranchingSpace], RelaxedTrees]] = {
    "bmtas": TaskMixtures,
    "learning_to_branch": ParentChoices,
}
TEMPERATURES = (5.0, 0.1)  # of the choices, linearly from the first to the last step after the warm-up


@dataclass(frozen=True, slots=True)
class Settings:
    """How it is searched.

    Args:
        cost: weight of the expected MACs, of which all separate have 1 more than all shared.
        epochs: over the training images, warm-up included; two at least.
        warmup: share of the epochs in which weights alone learn, before anything is chosen; at least one, never all.
        held: share of the training images from which the choices learn, in passes of their own; weights learn from the
            others. 0: both learn in the same steps, from all images.
        lr: of Adam for the weights.
        weight_decay: of the weights.
        choice_lr: of Adam for the choices. The paper's 0.01 is for 160 epochs of PASCAL; fewer steps need larger ones.
        choice_decay: weight decay of the choices.
    """

    cost: float = 0.1
    epochs: int = 20
    warmup: float = 0.1
    held: float = 0.2
    lr: float = 1e-3
    weight_decay: float = 1e-4
    choice_lr: float = 0.05
    choice_decay: float = 5e-5


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Where the search stood after an epoch.

    Args:
        architecture: the most probable tree.
        share: of the MACs between all shared (0) and all separate (1), as expected under the probabilities.
        error: standard error of that; 0 where it is exact.
        loss: mean over the steps of the weights.
    """

    epoch: int
    architecture: Architecture
    share: float
    error: float
    loss: float


def search_tree(
    space: BranchingSpace,
    dataset: Dataset,
    method: str,
    settings: Settings,
    train: Train,
    *,
    device: torch.device,
    seed: int,
    checkpoint: Path | None = None,
    on_epoch: Callable[[Snapshot], None] = lambda snapshot: None,
) -> tuple[Snapshot, ...]:
    """The most probable tree after every epoch; the last one is the result, to be trained anew.

    After the warm-up each epoch has a pass of the choices over the images that are held back, with the losses of the
    tasks and `cost` times the expected share of MACs, then one of the weights over the others; both optimisers begin
    anew there. That is the schedule of BMTAS. Learning to Branch has choices and weights learn together, `held: 0`, and
    has no term of cost, `cost: 0`. Goes on from the last finished epoch.

    Args:
        method: of `METHODS`.
        train: batch size, augmentation, and weighting of the losses.
        checkpoint: a folder that this search owns.
        on_epoch: is told after every epoch.

    Raises:
        TrialFailed: a loss is not finite.
        NasplatError: data of other tasks, a weighting that looks at one shared layer, or a checkpoint of another
            search.
    """
    search = _Search(space, dataset, method, settings, train, device, seed, checkpoint)
    with repeatable(device, seed):
        return search.run(on_epoch)


class _Search:
    def __init__(
        self,
        space: BranchingSpace,
        dataset: Dataset,
        method: str,
        settings: Settings,
        train: Train,
        device: torch.device,
        seed: int,
        checkpoint: Path | None,
    ) -> None:
        if problem_of(dataset.tasks, dataset.problem.input_shape) != space.problem:
            raise NasplatError("the data have other tasks than the space of trees", "give the data of the space")
        if train.weighting == "gradnorm":
            raise NasplatError(
                "gradnorm looks at one layer that all tasks share, and a search by gradients has none",
                "use weighting: hand or uncertainty",
            )
        self.space, self.dataset, self.settings, self.train = space, dataset, settings, train
        self.device, self.seed = device, seed
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.relaxed = METHODS[method](space)
        self.objective: MultiTask = tasks_objective(train, dataset)
        self.extra = self.objective.module(self.relaxed.copies)
        self.learner = nn.ModuleDict({"copies": self.relaxed.copies, "extra": self.extra}).to(device)
        self.weights = torch.optim.Adam(self.learner.parameters(), settings.lr, weight_decay=settings.weight_decay)
        logits = self.relaxed.logits
        self.choices = torch.optim.Adam(logits.values(), settings.choice_lr, weight_decay=settings.choice_decay)
        self.generator = torch.Generator().manual_seed(seed)
        self.changes = torch.Generator(device).manual_seed(seed)
        self.snapshots: list[Snapshot] = []
        plain = {name: getattr(train, name) for name in ("batch_size", "augment", "weighting", "weighting_options")}
        identity = fingerprint(
            {
                "space": space.fingerprint,
                "data": dataset.fingerprint,
                "method": method,
                "settings": asdict(settings),
                "train": plain,
                "seed": seed,
            }
        )
        self.turns = Alternation(self.learner, logits, self.weights, self.choices, self.generator, identity, checkpoint)

    def run(self, on_epoch: Callable[[Snapshot], None]) -> tuple[Snapshot, ...]:
        for one in self.turns.restore():
            self.snapshots.append(Snapshot(**{**one, "architecture": self.space.canonical(one["architecture"])}))
        held, rest = self._loaders()
        warm = min(max(1, round(self.settings.warmup * self.settings.epochs)), self.settings.epochs - 1)
        for epoch in range(len(self.snapshots), self.settings.epochs):
            # What changes images for pretexts is of the epoch, so that a search that was interrupted draws the same.
            self.changes.manual_seed(self.seed * 1_000_003 + epoch)
            if epoch == warm:
                self.weights.state.clear()
            share = (epoch - warm) / (self.settings.epochs - warm)
            if held and share >= 0:
                self._pass(held, [self.choices], share)
            learning = [self.weights] if held or share < 0 else [self.weights, self.choices]
            loss = self._pass(rest, learning, share)
            self._finished(epoch, loss)
            on_epoch(self.snapshots[-1])
        return tuple(self.snapshots)

    def _pass(self, loader: Loader, learning: Sequence[torch.optim.Optimizer], share: float) -> float:
        """One epoch of the one or the other; the mean loss. `share` of all choosing is over; below 0 it is warm-up."""
        high, low = TEMPERATURES
        temperature, choosing = high + share * (low - high), self.choices in learning
        total, steps = torch.zeros((), device=self.device), 0
        for batch in loader.epoch(self.generator):
            if share < 0:
                weights = self.relaxed.warm()
            else:
                with torch.set_grad_enabled(choosing):
                    weights = self.relaxed.draw(temperature, self.generator)
            loss = self._loss(batch, weights)
            if choosing and self.settings.cost:
                expected, _ = self.relaxed.expected_branches(self.generator)
                loss = loss + self.settings.cost * share_of(expected, self.space).to(loss)
            self.turns.step(loss, *learning)
            total, steps = total + loss.detach(), steps + 1
        return float(total) / steps

    def _loss(self, batch: Batch, weights: list[Tensor]) -> Tensor:
        views, labels, seen = self.objective.prepared(batch, self.changes)
        losses, here = self.objective.losses_of(self.relaxed(views, seen, weights), labels)
        return self.objective.combined(losses, here, self.relaxed.copies, self.extra)

    def _loaders(self) -> tuple[Loader | None, Loader]:
        """Of the images that the choices learn from alone, if any, and of those that the weights learn from."""
        split = self.dataset.train
        rows = torch.randperm(len(split), generator=torch.Generator().manual_seed(self.seed))
        held = max(1, round(self.settings.held * len(split))) if self.settings.held else 0
        return self._loader(split.select(rows[:held])) if held else None, self._loader(split.select(rows[held:]))

    def _loader(self, part: Split) -> Loader:
        data = replace(self.dataset, train=part)
        train = self.train.model_copy(update={"batch_size": min(self.train.batch_size, len(part))})
        return training_loader(self.relaxed.copies, data, train, self.objective, self.device)

    def _finished(self, epoch: int, loss: float) -> None:
        if not isfinite(loss):
            culprits = " and ".join(self.objective.culprits(self.extra)) or "the search"
            raise TrialFailed(f"the loss of {culprits} became {loss} in epoch {epoch + 1}", "lower its lr")
        with torch.no_grad():
            expected, errors = self.relaxed.expected_branches(torch.Generator().manual_seed(self.seed))
            share, error = float(share_of(expected, self.space)), float(share_of(errors + 1, self.space))
        self.snapshots.append(Snapshot(epoch, self.relaxed.settled(), share, error, loss))
        names = ("epoch", "share", "error", "loss")
        self.turns.save(
            [
                {**{name: getattr(one, name) for name in names}, "architecture": dict(one.architecture.values)}
                for one in self.snapshots
            ]
        )
