"""Widths and depths found by gradients: transformable architecture search.

Dong & Yang, Network Pruning via Transformable Architecture Search, 2019.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nasplat.compression.relaxed import RelaxedNetwork
from nasplat.core.architecture import Architecture, fingerprint
from nasplat.core.errors import NasplatError, TrialFailed
from nasplat.spaces.pruning import PruningSpace
from nasplat.training import checkpoint as files

if TYPE_CHECKING:
    from nasplat.data.datasets import Dataset
    from nasplat.data.loader import Batch

TOLERANCE = 0.05  # of the original's MACs, below the target
TEMPERATURES = (5.0, 0.1)


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Where the search stood after an epoch.

    Args:
        architecture: the most probable one.
        macs: of it.
        expected: MACs under the probabilities.
        loss: mean loss of the mixtures on validation images, without the penalty.
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
        weight_decay: of the weights.
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

    Weights learn from training images, the probabilities from validation images, in turn, each with a mixture of its
    own. The penalty is log E[MACs] while the most probable network has more than the target, its negative while it has
    less than the target minus 5 % of the original's, and nothing in between. Goes on from the last finished epoch.

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
        self.device, self.checkpoint = device, checkpoint
        self.relaxed = RelaxedNetwork(space)
        self.relaxed.network.to(device)
        self.logits = list(self.relaxed.logits.values())
        self.weights = torch.optim.SGD(
            self.relaxed.network.parameters(), settings.lr, momentum=0.9, weight_decay=settings.weight_decay
        )
        self.choices = torch.optim.Adam(self.logits, settings.architecture_lr, betas=(0.5, 0.999), weight_decay=1e-3)
        self.generator = torch.Generator().manual_seed(seed)
        self.snapshots: list[Snapshot] = []
        self.identity = fingerprint(
            {
                "space": space.fingerprint,
                "data": dataset.fingerprint,
                "target": target,
                "seed": seed,
                "settings": {name: getattr(settings, name) for name in Settings.__dataclass_fields__},
            }
        )

    def run(self, on_epoch: Callable[[Snapshot], None]) -> tuple[Snapshot, ...]:
        self._restore()
        train, validation = (self._loader(part) for part in ("train", "validation"))
        for epoch in range(len(self.snapshots), self.settings.epochs):
            others = self._endless(validation)
            loss = torch.zeros((), device=self.device)
            steps = 0
            for batch in train.epoch(self.generator):
                share = (epoch + steps / train.batches_per_epoch) / self.settings.epochs
                for group in self.weights.param_groups:
                    group["lr"] = self.settings.lr * 0.5 * float(1 + torch.cos(torch.tensor(share * torch.pi)))
                high, low = TEMPERATURES
                temperature = high + share * (low - high)
                self._step(self.weights, batch, temperature)
                loss += self._step(self.choices, next(others), temperature, penalised=True)
                steps += 1
            self._finished(epoch, float(loss) / steps)
            on_epoch(self.snapshots[-1])
        return tuple(self.snapshots)

    def _step(
        self, optimiser: torch.optim.Optimizer, batch: Batch, temperature: float, penalised: bool = False
    ) -> Tensor:
        for one in (self.weights, self.choices):
            one.zero_grad(set_to_none=True)
        self.relaxed.take(self.relaxed.draw(temperature, self.generator), self.device)
        logits = self.relaxed(batch.views[0])
        assert batch.labels is not None
        loss = F.cross_entropy(logits.float(), batch.labels)
        total = loss
        if penalised and (sign := self._side()):
            total = loss + sign * self.settings.penalty * self.relaxed.expected_macs().log().to(loss)
        total.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self.relaxed.network.parameters(), 5.0)
        optimiser.step()
        return loss.detach()

    def _side(self) -> int:
        """1 where the most probable network is too dear, -1 where it is too cheap."""
        macs = self.space.known(self.relaxed.settled())["macs"]
        if macs > self.target:
            return 1
        return -1 if macs < self.target - TOLERANCE * self.space.whole["macs"] else 0

    def _loader(self, part: str) -> Any:
        from nasplat.data.augment import default_augmentations
        from nasplat.data.loader import Loader

        split = getattr(self.dataset, part)
        return Loader(
            split,
            batch_size=min(self.settings.batch_size, len(split)),
            device=self.device,
            mean=self.dataset.mean,
            std=self.dataset.std,
            augment=default_augmentations("supervised", self.dataset.problem.input_shape),
        )

    def _endless(self, loader: Any) -> Iterator[Batch]:
        while True:
            yield from loader.epoch(self.generator)

    def _finished(self, epoch: int, loss: float) -> None:
        if not isfinite(loss):
            raise TrialFailed(
                f"the loss became {loss} in epoch {epoch + 1} of the transformable search", "lower its lr"
            )
        settled = self.relaxed.settled()
        with torch.no_grad():
            expected = float(self.relaxed.expected_macs())
        self.snapshots.append(Snapshot(epoch, settled, self.space.known(settled)["macs"], expected, loss))
        if self.checkpoint is None:
            return
        tensors = files.module_tensors("network", self.relaxed.network)
        tensors |= {f"logits.{name}": one for name, one in self.relaxed.logits.items()}
        tensors |= files.optimiser_tensors("weights", self.weights) | files.optimiser_tensors("choices", self.choices)
        tensors["generator"] = self.generator.get_state()
        plain = [
            {"epoch": one.epoch, "values": dict(one.architecture.values), "expected": one.expected, "loss": one.loss}
            for one in self.snapshots
        ]
        files.write(self.checkpoint, tensors, {"identity": self.identity, "snapshots": plain})

    def _restore(self) -> None:
        found = None if self.checkpoint is None else files.read(self.checkpoint)
        if found is None:
            return
        tensors, record = found
        if record["identity"] != self.identity:
            raise NasplatError(f"{self.checkpoint} is of another search", "remove it, or choose another folder")
        prefix = "network."
        state = {name.removeprefix(prefix): one for name, one in tensors.items() if name.startswith(prefix)}
        self.relaxed.network.load_state_dict(state)
        with torch.no_grad():
            for name, logits in self.relaxed.logits.items():
                logits.copy_(tensors[f"logits.{name}"])
        files.restore_optimiser("weights", self.weights, tensors)
        files.restore_optimiser("choices", self.choices, tensors)
        self.generator.set_state(tensors["generator"])
        for one in record["snapshots"]:
            architecture = self.space.canonical(one["values"])
            macs = self.space.known(architecture)["macs"]
            self.snapshots.append(Snapshot(one["epoch"], architecture, macs, one["expected"], one["loss"]))
