"""The training loop: a network, an objective, a source of images and a budget. It knows nothing of search."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from nasplat.core.architecture import fingerprint
from nasplat.core.errors import NasplatError, TrialFailed
from nasplat.core.experiment import Train
from nasplat.training import checkpoint as files
from nasplat.training.devices import Placement, memory_guard, place, repeatable
from nasplat.training.distributed import ALONE, Shard, Together, averaged, synchronised
from nasplat.training.objectives import Objective
from nasplat.training.optimisers import learning_rate, make_optimiser, trainable
from nasplat.training.step import set_drop_path, training_step

if TYPE_CHECKING:
    from nasplat.data.loader import Batch, Loader

# Least seconds between two looks at the loss: each waits for the device once, and is a chance to report progress.
LOOK_SECONDS = 0.4


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a training is.

    Args:
        step: optimiser steps done.
        steps: steps in all; None where the budget is in seconds.
        epoch: epochs done, with the fraction of the current one.
        share: of the budget, in [0, 1].
        loss: mean since the last report.
        images_per_second: since the last report.
        seconds_left: expected.
    """

    step: int
    steps: int | None
    epoch: float
    share: float
    loss: float
    images_per_second: float
    seconds_left: float


@dataclass(frozen=True, slots=True)
class TrainResult:
    """What a training leaves beside the trained network.

    Args:
        losses: mean of each epoch; the last may be partial, and one that `stop` cut short is left out.
        steps: optimiser steps done.
        seconds: of training, those before an interruption included.
        finished: False where `stop` or `until` ended it before its budget did.
    """

    losses: tuple[float, ...]
    steps: int
    seconds: float
    finished: bool


def train(
    network: nn.Module,
    objective: Objective,
    loader: Loader,
    settings: Train,
    *,
    device: torch.device,
    seed: int,
    checkpoint: Path | None = None,
    on_progress: Callable[[Progress], None] | None = None,
    stop: Callable[[], bool] | None = None,
    until: float = 1.0,
    shard: Shard = ALONE,
) -> TrainResult:
    """Trains a network in place, and leaves it on the device, in training mode and with contiguous weights.

    The same seed gives the same weights, bit for bit on a CPU with the same number of threads, whether or not the
    training was interrupted and went on from a checkpoint. Budgets in seconds are exempt.

    Args:
        network: any module from images `(N, C, H, W)` to its outputs.
        loader: batches with as many views as the objective asks for.
        checkpoint: a folder that this training owns. A checkpoint there is gone on from; a new one is written at
            most every `settings.checkpoint_seconds`, and when `stop` or `until` ends the training.
        on_progress: called at most a few times a second, and at the end.
        stop: asked after every step; True ends the training.
        until: the share of the budget, in (0, 1], at which the training pauses; called again with more it goes on from
            the checkpoint as if it had never paused. The learning rate is that of the whole budget all along.
        shard: which part of every batch this process trains on; all processes of `nasplat.training.distributed` call
            this with equal networks and seeds, and end with equal weights.

    Raises:
        TrialFailed: the loss or the weights are no longer finite, or there is nothing to train.
        Infeasible: the memory does not suffice.
        NasplatError: a checkpoint of other settings or of another network, or data that do not fit the objective.
    """
    with memory_guard("training"), repeatable(device, seed):
        placement = place(settings, device, network)
        run = _Training(
            network, objective, loader, settings, placement, seed, checkpoint, on_progress, stop, until, shard
        )
        try:
            run.restore()
            finished = run.epochs()
        finally:
            set_drop_path(network, 0.0, None)
            # safetensors saves contiguous tensors only.
            network.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
            run.optimiser.zero_grad(set_to_none=True)
        partial = (run.read_loss() / run.epoch_step,) if run.epoch_step and run.share() >= until else ()
        return TrainResult((*run.losses, *partial), run.step, run.seconds(), finished)


@dataclass(frozen=True, slots=True)
class _Seen:
    """What the last report saw: its time, and the steps, images and sum of losses up to it."""

    time: float
    step: int
    images: int
    loss_sum: float


class _Training:
    """The state of one training: what a checkpoint holds, and how it moves."""

    def __init__(
        self,
        network: nn.Module,
        objective: Objective,
        loader: Loader,
        settings: Train,
        placement: Placement,
        seed: int,
        checkpoint: Path | None,
        on_progress: Callable[[Progress], None] | None,
        stop: Callable[[], bool] | None,
        until: float,
        shard: Shard,
    ) -> None:
        self.network, self.objective, self.loader = network, objective, loader
        self.settings, self.placement = settings, placement
        self.checkpoint, self.on_progress, self.stop, self.until = checkpoint, on_progress, stop, until
        self.shard = shard
        if shard.world > 1 and settings.epochs is None and settings.steps is None:
            raise NasplatError("several processes that train one network must end together", "give epochs or steps")
        if not 0 < until <= 1:
            raise NasplatError(f"until is {until}", "it is a share of the budget, above 0 and at most 1")
        if settings.drop_path and not hasattr(network, "drop_path_probability"):
            raise NasplatError("drop_path: this network has no paths that can be dropped", "use drop_path: 0")

        device = placement.device
        network.to(device).to(memory_format=placement.memory_format).train()  # type: ignore[call-overload]
        if shard.world > 1:
            self.network = network = synchronised(network, device)
        self.tell_share: Callable[[float], None] | None = getattr(objective, "at", None)
        self.extra = objective.module(network)
        if self.extra is not None:
            self.extra.to(device).to(memory_format=placement.memory_format).train()  # type: ignore[call-overload]
        if shard.world > 1:
            self.extra = None if self.extra is None else synchronised(self.extra, device)
            self.objective = Together(objective, network, self.extra)
        self.parameters = trainable((network, self.extra))
        self.optimiser = make_optimiser(self.parameters, settings)
        # Two streams: with one seed for both, the order of the images and what is drawn on them would be related.
        data_seed, step_seed = (int(word) >> 1 for word in np.random.SeedSequence(seed).generate_state(2, np.uint64))
        self.data_generator = torch.Generator().manual_seed(data_seed)
        self.generator = torch.Generator(device).manual_seed(step_seed + shard.rank)
        set_drop_path(network, 0.0, self.generator)

        self.steps = settings.steps
        if settings.epochs is not None:
            self.steps = max(1, round(settings.epochs * loader.batches_per_epoch))
        plain = settings.model_dump(exclude={"checkpoint_seconds"})
        self.identity = fingerprint(
            {
                "settings": plain,
                "seed": seed,
                "dtype": str(placement.dtype),
                "objective": getattr(objective, "identity", ""),  # of teachers, which the settings only name
            }
        )

        self.step = 0
        self.epoch_step = 0  # steps done in this epoch
        self.epoch_state = self.data_generator.get_state()  # of the data's generator when this epoch began
        self.losses: list[float] = []
        self.loss_sum = torch.zeros((), device=device)  # of this epoch

        self.earlier_seconds = 0.0
        self.started = self.saved_at = time.monotonic()
        self.first_step = 0  # of this process
        self.images = 0
        self.reported = _Seen(self.started, 0, 0, 0.0)
        self.earlier_losses = 0.0  # sum over the steps of all epochs before this one
        self.warned = False

    def seconds(self) -> float:
        return self.earlier_seconds + time.monotonic() - self.started

    def share(self, ahead: float = 0.0) -> float:
        """Of the budget, when `ahead` steps more are done."""
        if self.steps is not None:
            return min((self.step + ahead) / self.steps, 1.0)
        assert self.settings.seconds is not None
        return min(self.seconds() / self.settings.seconds, 1.0)

    def epochs(self) -> bool:
        """Trains to the end of the budget; False where it was told to stop, or pauses, before."""
        while self.share() < self.until:
            self.data_generator.set_state(self.epoch_state)
            # After a resume the epoch's first batches are drawn again, so that all draws after them are the same.
            for batch in islice(self.loader.epoch(self.data_generator), self.epoch_step, None):
                self.one_step(batch)
                if self.share() >= self.until:
                    break
                if self.stop is not None and self.stop():
                    self.report()
                    self.save()
                    return False
                now = time.monotonic()
                if now - self.reported.time >= LOOK_SECONDS:
                    self.report()
                if self.checkpoint is not None and now - self.saved_at >= self.settings.checkpoint_seconds:
                    self.save()
            if self.epoch_step == 0:
                raise NasplatError("there are no images to train on")
            if self.until <= self.share() < 1 and self.epoch_step < self.loader.batches_per_epoch:
                break  # a pause within an epoch, which ends when the training goes on
            averaged(self.loss_sum, self.shard)
            loss_sum = self.read_loss()
            self.losses.append(loss_sum / self.epoch_step)
            self.earlier_losses += loss_sum
            self.loss_sum.zero_()
            self.epoch_step = 0
            self.epoch_state = self.data_generator.get_state()
        self.check_weights()
        self.report()
        if self.share() < 1:
            self.save()
            return False
        return True

    def one_step(self, batch: Batch) -> None:
        if self.objective.needs_labels and batch.labels is None:
            raise NasplatError("the objective needs labels, and these data have none", "use objective: simclr")
        if len(batch.views) < self.objective.views:
            raise NasplatError(f"the objective needs {self.objective.views} views, the loader gives {len(batch.views)}")
        share = self.share(ahead=0.5)  # the middle of the step: the first is not lost to a learning rate of zero
        for group in self.optimiser.param_groups:
            group["lr"] = learning_rate(self.settings, share)
        if self.settings.drop_path:
            set_drop_path(self.network, self.settings.drop_path * share, self.generator)
        if self.tell_share is not None:
            self.tell_share(share)
        loss = training_step(
            self.network,
            self.objective,
            self.extra,
            batch,
            self.optimiser,
            self.parameters,
            self.placement,
            self.settings.clip_norm,
            self.generator,
        )
        self.loss_sum += loss
        self.step += 1
        self.epoch_step += 1
        self.images += len(batch.indices) * self.shard.world

    def read_loss(self) -> float:
        """The sum of this epoch's losses. Waits for the device, and fails the trial where a loss was not finite."""
        loss_sum = float(self.loss_sum)
        if not isfinite(loss_sum):
            end = f"of {self.steps}" if self.steps else f"after {self.seconds():.0f} s"
            culprits = getattr(self.objective, "culprits", lambda extra: ())(self.extra)
            whose = f"of task {' and '.join(culprits)} " if culprits else ""
            raise TrialFailed(
                f"the loss {whose}became {loss_sum} in epoch {len(self.losses) + 1}, by step {self.step} {end}",
                "a smaller lr or clip_norm, or more warmup, keeps it finite",
            )
        return loss_sum

    def report(self) -> None:
        """Looks at the loss, and tells how far the training is."""
        seen = _Seen(time.monotonic(), self.step, self.images, self.earlier_losses + self.read_loss())
        steps = seen.step - self.reported.step
        if self.on_progress is not None and steps:
            share = self.share()
            if self.steps is None:
                left = (self.settings.seconds or 0.0) * max(self.until - share, 0.0)
            else:
                ahead = max(self.until * self.steps - self.step, 0.0)
                left = (seen.time - self.started) / (self.step - self.first_step) * ahead
            progress = Progress(
                step=self.step,
                steps=self.steps,
                epoch=len(self.losses) + self.epoch_step / self.loader.batches_per_epoch,
                share=share,
                loss=(seen.loss_sum - self.reported.loss_sum) / steps,
                images_per_second=(seen.images - self.reported.images) / max(seen.time - self.reported.time, 1e-9),
                seconds_left=left,
            )
            self.on_progress(progress)
        self.reported = seen

    def check_weights(self) -> None:
        # The last step's loss was finite before its update; the update need not be.
        norms = torch.stack(torch._foreach_norm([parameter.detach() for parameter in self.parameters]))
        if not isfinite(float(norms.sum())):
            raise TrialFailed("the weights are no longer finite after the last step", "a smaller lr keeps them so")

    def save(self) -> None:
        """Writes a checkpoint. A full disk is warned of once, and nothing else: the earlier checkpoint is intact."""
        if self.checkpoint is None or self.step == 0 or self.shard.rank:
            return
        self.read_loss()  # never overwrite a checkpoint with one that is not finite
        tensors = {
            **files.module_tensors("network", self.network),
            **files.module_tensors("extra", self.extra),
            **files.optimiser_tensors("optimiser", self.optimiser),
            "loss_sum": self.loss_sum,
            "random.epoch": self.epoch_state,
            "random.step": self.generator.get_state(),
            "random.cpu": torch.get_rng_state(),
        }
        if self.placement.device.type == "cuda":
            tensors["random.cuda"] = torch.cuda.get_rng_state(self.placement.device)
        record = {
            "identity": self.identity,
            "step": self.step,
            "epoch_step": self.epoch_step,
            "losses": self.losses,
            "seconds": self.seconds(),
        }
        try:
            files.write(self.checkpoint, tensors, record)
        except OSError as error:
            if not self.warned:
                warnings.warn(f"no checkpoint could be written ({error}); training goes on", stacklevel=2)
            self.warned = True
        self.saved_at = time.monotonic()

    def restore(self) -> None:
        """Goes on from a checkpoint, where there is one."""
        found = files.read(self.checkpoint) if self.checkpoint is not None else None
        if found is None:
            return
        tensors, record = found
        if record.get("identity") != self.identity:
            raise NasplatError(
                f"{self.checkpoint} holds a checkpoint of a training with other settings or another seed",
                "remove that folder to start anew",
            )
        self._load("network", self.network, tensors)
        self._load("extra", self.extra, tensors)
        files.restore_optimiser("optimiser", self.optimiser, tensors)
        self.loss_sum.copy_(tensors["loss_sum"])
        self.epoch_state = tensors["random.epoch"]
        self.generator.set_state(tensors["random.step"])
        if self.shard.rank:  # that state is the first process's: the others' draws must differ
            self.generator.manual_seed(self.generator.initial_seed() + self.shard.rank + record["step"])
        torch.set_rng_state(tensors["random.cpu"])
        if "random.cuda" in tensors:
            torch.cuda.set_rng_state(tensors["random.cuda"], self.placement.device)
        self.step = self.first_step = record["step"]
        self.epoch_step, self.losses = record["epoch_step"], list(record["losses"])
        self.earlier_seconds = record["seconds"]
        self.started = self.saved_at = time.monotonic()
        self.reported = _Seen(self.started, self.step, 0, self.read_loss())

    def _load(self, prefix: str, module: nn.Module | None, tensors: dict[str, Any]) -> None:
        state = {
            key.removeprefix(prefix + "."): value for key, value in tensors.items() if key.startswith(prefix + ".")
        }
        if module is None:
            return
        try:
            module.load_state_dict(state)
        except RuntimeError as error:
            raise NasplatError(
                f"{self.checkpoint} holds a checkpoint of another network", "remove that folder to start anew"
            ) from error
