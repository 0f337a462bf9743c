"""Widths and depths found by gradients: transformable architecture search.

Dong & Yang, Network Pruning via Transformable Architecture Search, 2019.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nasplat.compression.relaxed import RelaxedNetwork
from nasplat.core.architecture import Architecture, fingerprint
from nasplat.core.errors import NasplatError, TrialFailed
from nasplat.spaces.pruning import PruningSpace
from nasplat.training.alternation import Alternation
from nasplat.training.devices import repeatable

if TYPE_CHECKING:
    from nasplat.data.datasets import Dataset, Split
    from nasplat.data.loader import Batch, Loader

TOLERANCE = 0.05  # of the original's MACs, below the target
TEMPERATURES = (5.0, 0.1)
_JUDGED = 8  # batches by which a settled network is judged


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Where the search stood after an epoch.

    Args:
        architecture: the most probable one.
        macs: of it.
        expected: MACs under the probabilities.
        loss: of it, with the weights as they are, on images that the weights do not learn from.
    """

    epoch: int
    architecture: Architecture
    macs: float
    expected: float
    loss: float


@dataclass(frozen=True, slots=True)
class Settings:
    """How it is searched.

    Args:
        epochs: over the training images.
        batch_size: of images, for weights and for the architecture.
        lr: of SGD for the weights, with momentum 0.9 and a cosine schedule.
        architecture_lr: of Adam for the probabilities, with betas 0.5 and 0.999.
        weight_decay: of the weights; the probabilities have 1e-3 as in the paper.
        penalty: weight of the logarithm of the expected MACs.
    """

    epochs: int = 10
    batch_size: int = 128
    lr: float = 0.02
    architecture_lr: float = 0.05
    weight_decay: float = 5e-4
    penalty: float = 2.0


def transformable_search(
    space: PruningSpace,
    dataset: Dataset,
    target: float,
    settings: Settings,
    *,
    device: torch.device,
    seed: int,
    checkpoint: Path | None = None,
    on_epoch: Callable[[Snapshot], None] = lambda snapshot: None,
) -> tuple[Snapshot, ...]:
    """The settled architecture of every epoch, the last ones last.

    Weights learn from one half of the training images, the probabilities from the other, in turn, each with a mixture
    of its own. The penalty is log E[MACs] while the most probable network has more than the target, its negative while
    it has less than the target minus 5 % of the original's, and nothing in between. Goes on from the last finished
    epoch.

    Args:
        target: MACs.
        checkpoint: a folder that this search owns.
        on_epoch: is told after every epoch.

    Raises:
        TrialFailed: the loss is not finite.
        NasplatError: the data have no labels, a checkpoint of another search, or see `RelaxedNetwork`.
    """
    return _Search(space, dataset, target, settings, device, seed, checkpoint).run(on_epoch)


def best_of(snapshots: tuple[Snapshot, ...], space: PruningSpace, target: float) -> Snapshot | None:
    """That of the lowest loss among those within the tolerance; None where none is. Never simply the last."""
    whole = space.whole["macs"]
    within = [one for one in snapshots if target - TOLERANCE * whole <= one.macs <= target]
    return min(within, key=lambda one: one.loss, default=None)


def _halves(dataset: Dataset, seed: int) -> tuple[Split, Split]:
    """The training images in two halves; validation images are left for whoever scores what is found."""
    from nasplat.data.datasets import Split
    from nasplat.data.images import select

    labels = dataset.train.labels
    assert labels is not None
    rows = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    first, second = (Split(select(dataset.train.images, part), labels[part]) for part in rows.tensor_split(2))
    return first, second


class _Search:
    def __init__(
        self,
        space: PruningSpace,
        dataset: Dataset,
        target: float,
        settings: Settings,
        device: torch.device,
        seed: int,
        checkpoint: Path | None,
    ) -> None:
        if dataset.train.labels is None:
            raise NasplatError("a transformable search needs labels, and these data have none", "use another producer")
        self.space, self.dataset, self.target, self.settings = space, dataset, target, settings
        self.device, self.seed = device, seed
        self.halves = _halves(dataset, seed)
        self.relaxed = RelaxedNetwork(space)
        self.relaxed.network.to(device)
        logits, rate = self.relaxed.logits, settings.architecture_lr
        self.weights = torch.optim.SGD(
            self.relaxed.network.parameters(), settings.lr, momentum=0.9, weight_decay=settings.weight_decay
        )
        self.choices = torch.optim.Adam(logits.values(), rate, betas=(0.5, 0.999), weight_decay=1e-3)
        self.generator = torch.Generator().manual_seed(seed)
        self.snapshots: list[Snapshot] = []
        identity = fingerprint(
            {
                "space": space.fingerprint,
                "data": dataset.fingerprint,
                "target": target,
                "seed": seed,
                "settings": {name: getattr(settings, name) for name in Settings.__dataclass_fields__},
            }
        )
        self.turns = Alternation(
            self.relaxed.network, logits, self.weights, self.choices, self.generator, identity, checkpoint
        )

    def run(self, on_epoch: Callable[[Snapshot], None]) -> tuple[Snapshot, ...]:
        with repeatable(self.device, self.seed):
            return self._run(on_epoch)

    def _run(self, on_epoch: Callable[[Snapshot], None]) -> tuple[Snapshot, ...]:
        self._restore()
        train, others_of = (self._loader(split) for split in self.halves)
        for epoch in range(len(self.snapshots), self.settings.epochs):
            others = self._endless(others_of)
            for steps, batch in enumerate(train.epoch(self.generator)):
                share = (epoch + steps / train.batches_per_epoch) / self.settings.epochs
                for group in self.weights.param_groups:
                    group["lr"] = self.settings.lr * 0.5 * float(1 + torch.cos(torch.tensor(share * torch.pi)))
                high, low = TEMPERATURES
                temperature = high + share * (low - high)
                self._step(self.weights, batch, temperature)
                self._step(self.choices, next(others), temperature)
            self._finished(epoch)
            on_epoch(self.snapshots[-1])
        return tuple(self.snapshots)

    def _step(self, optimiser: torch.optim.Optimizer, batch: Batch, temperature: float) -> None:
        self.relaxed.take(self.relaxed.draw(temperature, self.generator), self.device)
        loss = self._loss(batch)
        if optimiser is self.choices and (sign := self._side()):
            loss = loss + sign * self.settings.penalty * self.relaxed.expected_macs().log().to(loss)
        self.turns.step(loss, optimiser)

    def _loss(self, batch: Batch) -> Tensor:
        assert batch.labels is not None
        return F.cross_entropy(self.relaxed(batch.views[0]).float(), batch.labels)

    @torch.no_grad()
    def _settled_loss(self, settled: Architecture) -> float:
        """Of the most probable network, with the batch norm of these images, on the half that weights do not see."""
        self.relaxed.take(self.relaxed.alone(settled), self.device)
        norms = [one for one in self.relaxed.network.modules() if isinstance(one, nn.modules.batchnorm._BatchNorm)]
        momenta = [norm.momentum for norm in norms]
        for norm in norms:
            norm.momentum = 0.0  # its running statistics stay as they are
        losses = [self._loss(batch) for batch in islice(self._loader(self.halves[1], plain=True).ordered(), _JUDGED)]
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
        return float(torch.stack(losses).mean())

    def _side(self) -> int:
        """1 where the most probable network is too dear, -1 where it is too cheap."""
        macs = self.space.known(self.relaxed.settled())["macs"]
        if macs > self.target:
            return 1
        return -1 if macs < self.target - TOLERANCE * self.space.whole["macs"] else 0

    def _loader(self, split: Split, plain: bool = False) -> Loader:
        from nasplat.data.augment import default_augmentations
        from nasplat.data.loader import Loader

        return Loader(
            split,
            batch_size=min(self.settings.batch_size, len(split)),
            device=self.device,
            mean=self.dataset.mean,
            std=self.dataset.std,
            augment=() if plain else default_augmentations("supervised", self.dataset.problem.input_shape),
        )

    def _endless(self, loader: Loader) -> Iterator[Batch]:
        while True:
            yield from loader.epoch(self.generator)

    def _finished(self, epoch: int) -> None:
        settled = self.relaxed.settled()
        loss = self._settled_loss(settled)
        if not isfinite(loss):
            raise TrialFailed(
                f"the loss became {loss} in epoch {epoch + 1} of the transformable search", "lower its lr"
            )
        with torch.no_grad():
            expected = float(self.relaxed.expected_macs())
        self.snapshots.append(Snapshot(epoch, settled, self.space.known(settled)["macs"], expected, loss))
        kept = [{"epoch": one.epoch, "expected": one.expected, "loss": one.loss} for one in self.snapshots]
        values = [{"values": dict(one.architecture.values)} for one in self.snapshots]
        self.turns.save([{**one, **other} for one, other in zip(kept, values, strict=True)])

    def _restore(self) -> None:
        for one in self.turns.restore():
            architecture = self.space.canonical(one["values"])
            macs = self.space.known(architecture)["macs"]
            self.snapshots.append(Snapshot(one["epoch"], architecture, macs, one["expected"], one["loss"]))
