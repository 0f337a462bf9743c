"""The other end of `RayExecutor`: what an actor of the cluster does with a trial."""

from __future__ import annotations

import faulthandler
import json
import os
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nasplat.core.errors import NasplatError
from nasplat.search.executors import too_long
from nasplat.search.records import Record, TrialSpec, run_trial, write_record
from nasplat.search.worker import log_of, resolve_warm

PROGRESS_SECONDS = 0.5
STUCK_SECONDS = 5.0
START_SECONDS = 10.0


class Worker:
    """Runs trials one after the other.

    Args:
        evaluate: `module:function`; imported once.
        trial_seconds: the longest that a trial may take.
        progress: the actor that collects progress.
        workers: how many of these there will be.
        data: key and reference of the data set that all workers of a node share.
        path: folders where the driver finds the user's modules; Ray passes on only the current one.
    """

    def __init__(
        self,
        evaluate: str,
        trial_seconds: float | None,
        progress: Any,
        workers: int,
        data: tuple[str, Any] | None,
        path: Sequence[str] = (),
    ) -> None:
        sys.path[:0] = [folder for folder in path if folder not in sys.path]
        self._trial_seconds = trial_seconds
        self._progress = progress
        import ray

        progress.join.remote(ray.get_runtime_context().current_actor)
        self._workers, self._started = workers, time.monotonic()
        self._error: tuple[str, str] | None = None
        try:
            self._evaluate = resolve_warm(evaluate)
            if data is not None:
                from nasplat.data.shared import from_arrays
                from nasplat.search.evaluate import give_data

                give_data(data[0], from_arrays(ray.get(data[1])))
        except NasplatError as error:
            self._error = (error.message, error.advice)

    def run(self, spec: Mapping[str, Any]) -> dict[str, Any]:
        """`record` as JSON, and `memory` as in `memory_share`; or `error`: message and advice of what concerns all."""
        if self._error is not None:
            return {"error": self._error}
        trial = TrialSpec(**spec)
        self._progress.put.remote(trial.number, None)  # it has begun
        deadline = self._deadline(trial)
        try:
            with log_of(Path(trial.directory)):
                record = run_trial(self._evaluate, trial, self._reporter(trial.number))
            self._await_others()
            return {"record": json.dumps(record.to_json()), "memory": memory_share()}
        except NasplatError as error:
            return {"error": (error.message, error.advice)}
        finally:
            if deadline is not None:
                deadline.cancel()
                faulthandler.cancel_dump_traceback_later()

    def _await_others(self) -> None:
        """Waits until all workers are there, or should be.

        Tune gives the next trial to a worker that is free, and ends the one that it was starting for it: trials that
        are shorter than a start would all run on one worker while others start in vain.
        """
        import ray

        while time.monotonic() - self._started < START_SECONDS and self._workers:
            if len(ray.get(self._progress.members.remote())) >= self._workers:
                self._workers = 0  # they are there
            else:
                time.sleep(0.05)

    def _deadline(self, trial: TrialSpec) -> threading.Timer | None:
        """Ends this process when the trial takes too long. Its record stands by then, so that it is not run again.

        Code that does not return to Python stops the timer, too: then the process is ended a little later all the same,
        without a record, and its log says where it was.
        """
        if self._trial_seconds is None:
            return None
        limit = self._trial_seconds

        def end() -> None:
            directory = Path(trial.directory)
            directory.mkdir(parents=True, exist_ok=True)
            write_record(directory, Record("failed", reason=too_long(limit), seconds=limit), trial.until)
            os._exit(1)

        timer = threading.Timer(limit, end)
        timer.daemon = True
        timer.start()
        faulthandler.dump_traceback_later(1.1 * limit + STUCK_SECONDS, exit=True)
        return timer

    def _reporter(self, number: int) -> Any:
        last = 0.0

        def report(fields: Mapping[str, Any]) -> None:
            nonlocal last
            now = time.monotonic()
            if now - last >= PROGRESS_SECONDS:
                last = now
                self._progress.put.remote(number, dict(fields))

        return report


def memory_share() -> float:
    """The share of the GPU's memory that this process has needed so far; 0 without a GPU."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_available():
        return 0.0
    free, total = torch.cuda.mem_get_info()
    # What torch reserved is in it, and the half gigabyte of a CUDA context is, too.
    return float((total - free) / total)


def trainable() -> type[Any]:
    """What an actor is: it imports the evaluation once, and runs one trial after the other."""
    from ray.tune import Trainable

    class Trial(Trainable):
        def setup(self, config: dict[str, Any], fixed: Mapping[str, Any]) -> None:  # type: ignore[override]
            self._worker = Worker(**fixed)
            self._spec = config["spec"]

        def reset_config(self, new_config: dict[str, Any]) -> bool:
            self._spec = new_config["spec"]
            return True

        def step(self) -> dict[str, Any]:
            return {**self._worker.run(json.loads(self._spec)), "done": True}

        def save_checkpoint(self, checkpoint_dir: str) -> None: ...  # a trial's checkpoint lies in its own directory

        def load_checkpoint(self, checkpoint: Any) -> None: ...

    return Trial


def progress_actor() -> Any:
    """An actor that keeps the latest progress of every trial until the driver takes it, and knows all workers."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    class Progress:
        def __init__(self) -> None:
            self._latest: dict[int, dict[str, Any] | None] = {}
            self._members: list[Any] = []

        def join(self, worker: Any) -> None:
            self._members.append(worker)

        def members(self) -> list[Any]:
            return self._members

        def put(self, number: int, fields: dict[str, Any] | None) -> None:
            self._latest[number] = fields

        def take(self) -> dict[int, dict[str, Any] | None]:
            latest, self._latest = self._latest, {}
            return latest

    # On the driver's node and nowhere else: on another one, which may just have died without anybody knowing it yet, it
    # would die, and the driver would see nothing any more.
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return ray.remote(num_cpus=0)(Progress).options(scheduling_strategy=here).remote()
