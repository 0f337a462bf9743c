"""One network trained by several processes of this machine, each on its share of every batch (data parallelism).

`torch.nn.parallel.DistributedDataParallel` averages the gradients, so that a step is the step of one process on the
whole batch. Batch normalisation sees the whole batch on GPUs (`SyncBatchNorm`); on CPUs, where torch has no such thing,
every process normalises its own share.
"""

from __future__ import annotations

import os
import signal
import sys
import tempfile
import traceback
import warnings
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from nasplat.core.errors import Infeasible, NasplatError, TrialFailed
from nasplat.core.user_function import load_function

if TYPE_CHECKING:
    from nasplat.data.loader import Batch
    from nasplat.training.objectives import Objective

PATIENCE = timedelta(minutes=10)  # of a process that waits for the others


@dataclass(frozen=True, slots=True)
class Shard:
    """Which of `world` processes this is, from 0. The first one writes checkpoints and judges."""

    rank: int = 0
    world: int = 1


ALONE = Shard()
Report = Callable[[Mapping[str, Any]], None]
Work = Callable[[Mapping[str, Any], Shard, Report], Mapping[str, Any]]


class Together:
    """An objective whose gradients are averaged over all processes; it stands in for the one that it wraps.

    Args:
        objective: of one process.
        network, extra: on their device; equal in all processes.
    """

    def __init__(self, objective: Objective, network: nn.Module, extra: nn.Module | None) -> None:
        from torch.nn.parallel import DistributedDataParallel

        self.views, self.needs_labels = objective.views, objective.needs_labels
        self.culprits = getattr(objective, "culprits", lambda extra: ())
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # the flag's new name is not in every torch that we support
            # What an objective does not use of a network (the classifier, without labels) has no gradient to wait for.
            self._all = DistributedDataParallel(
                _Loss(objective, network, extra), broadcast_buffers=False, find_unused_parameters=True
            )

    def module(self, network: nn.Module) -> nn.Module | None:
        raise AssertionError("the parts of the objective were made before it was wrapped")

    def loss(self, network: nn.Module, extra: nn.Module | None, batch: Batch, generator: torch.Generator) -> Tensor:
        loss: Tensor = self._all(batch, generator)
        return loss


class _Loss(nn.Module):
    """Network and objective as one module, whose forward pass is the loss: all that DistributedDataParallel needs."""

    def __init__(self, objective: Objective, network: nn.Module, extra: nn.Module | None) -> None:
        super().__init__()
        self.network, self.extra = network, extra
        self._objective = objective

    def forward(self, batch: Batch, generator: torch.Generator) -> Tensor:
        return self._objective.loss(self.network, self.extra, batch, generator)


def synchronised(network: nn.Module, device: torch.device) -> nn.Module:
    """The network with batch normalisation over all processes, where the device has it; its weights stay the same."""
    if device.type != "cuda":
        return network
    converted: nn.Module = nn.SyncBatchNorm.convert_sync_batchnorm(network)
    return converted


def averaged(value: Tensor, shard: Shard) -> Tensor:
    """The mean of a number over all processes."""
    if shard.world > 1:
        torch.distributed.all_reduce(value)
        value /= shard.world
    return value


def gathered(rows: Tensor) -> Tensor:
    """`(N, …)` of this process to `(world * N, …)` of all, in the order of the ranks; gradients flow back to their own.

    The rows themselves where this process trains alone.
    """
    if not torch.distributed.is_available() or not torch.distributed.is_initialized():
        return rows
    if not rows.requires_grad:
        parts = [torch.empty_like(rows) for _ in range(torch.distributed.get_world_size())]
        torch.distributed.all_gather(parts, rows.contiguous())
        return torch.cat(parts)
    from torch.distributed.nn.functional import all_gather

    return torch.cat(all_gather(rows.contiguous()))  # type: ignore[no-untyped-call]


def processes(wanted: int | str, device: str) -> int:
    """How many processes train one network: as many as are wanted, `auto` one a GPU that the device name stands for.

    Raises:
        NasplatError: more than there are GPUs.
    """
    gpus = torch.cuda.device_count() if device in ("auto", "cuda") else 0
    if wanted == "auto":
        return max(gpus, 1)
    if gpus and int(wanted) > gpus:
        raise NasplatError(f"run.processes is {wanted}, and there are {gpus} GPUs", "auto takes all of them")
    return int(wanted)


def launch(work: str, task: Mapping[str, Any], world: int, report: Report) -> Mapping[str, Any]:
    """Runs a task in `world` new processes that reach each other, and hands back what the first one returns.

    Args:
        work: `module:function` of (task, shard, report), the same in every process.
        task: plain data; of its `device`, where that is `auto` or `cuda`, every process gets a GPU of its own.
        world: number of processes.
        report: is called with what the first process reports.

    Raises:
        TrialFailed, Infeasible, NasplatError: as the first process that fails raised it; or one died. All end.
    """
    from multiprocessing import get_context

    context = get_context("spawn")
    # For the processes to inherit, since torch reads them when it is imported. Nothing here leaves the machine; and
    # torch would tell every process that there were no unused parameters after all.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    if sys.platform == "linux":
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    with tempfile.TemporaryDirectory(prefix="nasplat-") as folder:
        pipes, workers = [], []
        for rank in range(world):
            ours, theirs = context.Pipe()
            arguments = (theirs, work, dict(task), Shard(rank, world), str(Path(folder) / "store"))
            worker = context.Process(target=_work, args=arguments, daemon=True)
            worker.start()
            theirs.close()
            pipes.append(ours)
            workers.append(worker)
        try:
            return _listen(pipes, report)
        finally:
            for worker in workers:
                worker.kill()
                worker.join()


def _listen(pipes: list[Connection], report: Report) -> Mapping[str, Any]:
    while True:
        for pipe in wait(pipes):
            assert isinstance(pipe, Connection)
            try:
                kind, content = pipe.recv()
            except EOFError:
                raise TrialFailed(f"process {pipes.index(pipe)} of {len(pipes)} that train together died") from None
            if kind == "result":
                result: Mapping[str, Any] = content
                return result
            if kind == "error":
                raised, message, advice = content
                raise _ERRORS[raised](message, advice)
            report(content)


_ERRORS: dict[str, type[NasplatError]] = {one.__name__: one for one in (TrialFailed, Infeasible, NasplatError)}


def _work(pipe: Connection, work: str, task: Mapping[str, Any], shard: Shard, store: str) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the first process's business
    try:
        cuda = torch.cuda.is_available() and task.get("device") in ("auto", "cuda")
        if cuda:
            torch.cuda.set_device(shard.rank)
        torch.distributed.init_process_group(
            "nccl" if cuda else "gloo",
            init_method=f"file://{store}",
            rank=shard.rank,
            world_size=shard.world,
            timeout=PATIENCE,
        )
        function: Work = load_function(work, "work of several processes")
        task = {**task, "device": f"cuda:{shard.rank}"} if cuda else task
        result = function(task, shard, _reporter(pipe) if shard.rank == 0 else lambda fields: None)
        if shard.rank == 0:
            pipe.send(("result", result))
        pipe.recv()  # nothing comes: the first process ends all of them
    except NasplatError as error:
        kind = type(error).__name__ if type(error).__name__ in _ERRORS else "NasplatError"
        pipe.send(("error", (kind, error.message, error.advice)))
    except (EOFError, OSError):
        pass  # whoever started this is gone
    except Exception as error:
        traceback.print_exc()
        with suppress(OSError):
            pipe.send(("error", ("TrialFailed", f"{type(error).__name__}: {error}", "")))


def _reporter(pipe: Connection) -> Report:
    return lambda fields: pipe.send(("progress", dict(fields)))
