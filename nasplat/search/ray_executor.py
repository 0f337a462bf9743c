"""Trials on a Ray cluster, run by Ray Tune.

Tune places the trials, packs them on GPUs, keeps actors warm between them and starts again what died. What to try next
is no business of Tune's: its searcher hands out what the driver submits, and what comes back goes to the driver, which
asks and tells the one study. So nothing rests on Tune's experiment state.
"""

from __future__ import annotations

import json
import logging
import shutil
import sys
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from nasplat.core.errors import NasplatError
from nasplat.core.experiment import Data
from nasplat.search.executors import Finished, OnTrialProgress
from nasplat.search.ray_connection import connect, in_words, node_resources
from nasplat.search.ray_worker import progress_actor, trainable
from nasplat.search.records import Evaluate, Record, TrialSpec, read_record, remove_record, write_record

if TYPE_CHECKING:
    from ray.tune import Stopper
    from ray.tune.schedulers import TrialScheduler
    from ray.tune.search import Searcher

ATTEMPTS = 2
STARTS = 3
JOIN_SECONDS = 30.0
STARVED_SECONDS = 20.0
NEXT_SECONDS = 1.0
PROGRESS_SECONDS = 0.2
MOST_ON_A_GPU = 16
TUNE = ".tune"


class RayExecutor:
    """Actors of a Ray cluster that live as long as the search, each of which runs one trial at a time.

    A trial whose actor or node dies is run again once, from its checkpoint; then it has failed. One whose actor was
    dead before it began is given to another. The run directory must be seen by every node: checkpoints, weights and
    records are written there.

    Args:
        evaluate: `module:function`, or a function that can be imported by its name.
        address: of a cluster: `auto` or `HOST:PORT`, this machine being a node of it; None starts Ray on this machine.
        workers: trials at once.
        cpus: of each trial.
        gpus: share of a GPU of each trial. `auto` takes a whole one where the cluster has any, and from the first that
            ends on, the share whose memory that one needed. A trial that then runs out of memory is run once more with
            a whole GPU.
        trial_seconds: the longest that a trial may take.
        storage: the run directory.
        data: what the trials train on; it is read here, and each node holds one copy for all its workers.
        warn: is told when trials wait and none runs.

    Raises:
        NasplatError: Ray is not installed, there is no cluster at the address, or no node can hold a trial.
    """

    def __init__(
        self,
        evaluate: str | Evaluate,
        *,
        address: str | None = None,
        workers: int = 1,
        cpus: float = 1,
        gpus: float | Literal["auto"] = "auto",
        trial_seconds: float | None = None,
        storage: Path,
        data: Data | None = None,
        warn: Callable[[str], None] = lambda text: None,
    ) -> None:
        self.slots = workers
        self._owns_ray = connect(address, workers * cpus)
        nodes = node_resources()
        share = float(any(node.get("GPU", 0) for node in nodes)) if gpus == "auto" else float(gpus)
        asked = {"CPU": float(cpus), "GPU": share}
        if not any(all(node.get(kind, 0) >= amount for kind, amount in asked.items()) for node in nodes):
            self._disconnect()
            raise NasplatError(
                f"no node of the Ray cluster can hold a trial: it asks for {in_words(asked)}, and the nodes have "
                + ("; ".join(in_words(node) for node in nodes) or "nothing"),
                "lower run.threads or run.gpus, or add a node",
            )
        self._cpus, self._gpus, self._measure = float(cpus), share, gpus == "auto" and share > 0
        self._warn, self._moved = warn, time.monotonic()
        self._begun: set[int] = set()
        self._asked = 0.0
        self._refused: dict[int, int] = {}  # how often an actor was dead before the trial began
        self._alone: set[int] = set()  # trials that were given a whole GPU
        self._trial_seconds = trial_seconds
        self._folder = Path(storage).resolve() / TUNE
        self._handout = _Handout()
        self._progress = progress_actor()
        self._taking: Any = None
        self._running: dict[int, TrialSpec] = {}
        name = evaluate if isinstance(evaluate, str) else f"{evaluate.__module__}:{evaluate.__qualname__}"
        fixed = {
            "evaluate": name,
            "trial_seconds": trial_seconds,
            "progress": self._progress,
            "workers": workers,
            "data": None if data is None else _share(data),
            "path": _own_path(),
        }
        self._thread = threading.Thread(target=self._tune, args=(fixed,), daemon=True)
        self._thread.start()

    def submit(self, spec: TrialSpec) -> None:
        # Workers have another current folder.
        spec = replace(spec, directory=str(Path(spec.directory).resolve()))
        self._running[spec.number] = spec
        self._begun.discard(spec.number)  # it may have run before, to a smaller share
        self._handout.give(spec, self._gpus)

    def wait(self, timeout: float, on_progress: OnTrialProgress) -> list[Finished]:
        finished: list[Finished] = []
        until = time.monotonic() + timeout
        while True:
            left = 0.0 if finished else max(0.0, until - time.monotonic())  # with one, only what else is there
            returned = self._handout.next_result(left)
            if returned is None:
                break
            result = self._result(*returned)
            finished += [] if result is None else [result]
        if time.monotonic() - self._asked > PROGRESS_SECONDS:
            self._tell_progress(on_progress)
            self._asked = time.monotonic()
        if not self._thread.is_alive() and not finished and self._running:
            raise NasplatError("the Ray cluster is gone", "start it again, and go on with --resume")
        return finished

    def close(self, *, now: bool = False) -> None:
        import ray

        self._handout.close(now)
        lost = suppress(ray.exceptions.RayError, TimeoutError)
        with lost:
            if now:  # Tune would wait for what runs
                for actor in ray.get(self._progress.members.remote(), timeout=5):
                    ray.kill(actor)
        self._thread.join(JOIN_SECONDS)
        with lost:
            ray.kill(self._progress)
        self._disconnect()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _disconnect(self) -> None:
        import ray

        if self._owns_ray:
            ray.shutdown()

    def _tune(self, fixed: Mapping[str, Any]) -> None:
        from ray import tune
        from ray.tune.search import ConcurrencyLimiter

        logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # it prints trials that failed, and so does the driver
        self_cpus = self._cpus  # Tune pickles the function below, and could not this object
        try:
            tune.run(
                tune.with_resources(
                    tune.with_parameters(trainable(), fixed=fixed),
                    lambda config: tune.PlacementGroupFactory([{"CPU": self_cpus, "GPU": config["gpus"]}]),
                ),
                name=uuid.uuid4().hex[:8],
                # Without a limit Tune starts one actor at a time, and drops it when another is free before it is there:
                # trials shorter than an actor's start would all run on one.
                search_alg=ConcurrencyLimiter(searcher(self._handout), self.slots),
                scheduler=witness(self._handout, self.slots),
                num_samples=-1,
                max_failures=ATTEMPTS - 1,
                stop=stopper(self._handout),
                reuse_actors=True,
                raise_on_failed_trial=False,
                storage_path=str(self._folder),
                trial_dirname_creator=lambda trial: str(trial.trial_id),
                trial_name_creator=lambda trial: str(trial.trial_id),
                verbose=0,
            )
        except BaseException as error:
            self._handout.ended(str(error))

    def _result(self, number: int, result: Mapping[str, Any] | None) -> Finished | None:
        """What became of a trial; None where it is run again."""
        if result and "error" in result:
            raise NasplatError(*result["error"])
        spec = self._running[number]
        if result and "refused" in result:
            self._refused[number] = self._refused.get(number, 0) + 1
            if self._refused[number] == STARTS:
                raise NasplatError(
                    f"{STARTS} workers of the Ray cluster were dead before trial {number} began ({result['refused']})",
                    "nasplat doctor --address looks at every node; go on with --resume",
                )
            self._handout.give(spec, 1.0 if number in self._alone else self._gpus)
            return None
        if result and "record" in result:
            record: Record | None = Record(**json.loads(result["record"]))
            if self._measure and result["memory"]:
                self._gpus, self._measure = fitting_share(result["memory"]), False
        else:
            record = read_record(Path(spec.directory), spec.until)
        if record and out_of_memory(record) and 0 < self._gpus < 1 and number not in self._alone:
            self._alone.add(number)
            remove_record(Path(spec.directory), spec.until)
            self._handout.give(spec, 1.0)
            return None
        del self._running[number]
        self._refused.pop(number, None)
        if record is None:
            cause = f" ({result['died']})" if result and "died" in result else ""
            reason = f"its worker died {ATTEMPTS} times{cause}"
            record = Record("failed", reason=reason, seconds=self._trial_seconds or 0.0)
            directory = Path(spec.directory)
            directory.mkdir(parents=True, exist_ok=True)
            write_record(directory, record, spec.until)
        return Finished(number, record)

    def _tell_progress(self, on_progress: OnTrialProgress) -> None:
        import ray

        # What is asked now is looked at the next time: a busy machine answers late, and the driver has other work.
        taking = self._taking or self._progress.take.remote()
        self._taking = taking
        if ray.wait([taking], timeout=0)[0]:
            self._taking = None
            with suppress(ray.exceptions.RayError):
                for number, fields in ray.get(taking).items():
                    self._begun.add(number)
                    if number in self._running and fields is not None:
                        on_progress(number, fields)
        if not self._running or not self._begun.isdisjoint(self._running):
            self._moved = time.monotonic()
        elif time.monotonic() - self._moved > STARVED_SECONDS:
            asked = in_words({"CPU": self._cpus, "GPU": self._gpus})
            free = in_words({kind: ray.available_resources().get(kind, 0.0) for kind in ("CPU", "GPU")})
            self._warn(f"no trial runs: each asks for {asked}, and {free} of the cluster is free")
            self._moved = float("inf")  # once is enough


def out_of_memory(record: Record) -> bool:
    return record.state == "infeasible" and "out of memory" in record.reason


def fitting_share(memory: float) -> float:
    """The share of a GPU, one of so many parts, for a trial that needed this share of its memory.

    With a quarter to spare: candidates differ.
    """
    return 1 / max(1, min(MOST_ON_A_GPU, int(1 / (memory * 1.25))))


class _Handout:
    """What the driver submitted, for the searcher to take; what came back, for the driver."""

    def __init__(self) -> None:
        self._results: deque[tuple[int, Mapping[str, Any] | None]] = deque()
        self._waiting: deque[tuple[TrialSpec, float]] = deque()
        self._driver_waits = False
        self._changed = threading.Condition()
        self._numbers: dict[str, int] = {}
        self._errors: dict[str, dict[str, str]] = {}
        self._closed = False
        self.abandoned = False

    def __reduce__(self) -> tuple[type[_Handout], tuple[()]]:
        return _Handout, ()  # Tune pickles its own state, which nobody reads

    def give(self, spec: TrialSpec, gpus: float) -> None:
        with self._changed:
            self._waiting.append((spec, gpus))
            self._changed.notify_all()

    def next_result(self, timeout: float) -> tuple[int, Mapping[str, Any] | None] | None:
        """The number of a trial and what it returned; None where nothing comes in these seconds."""
        with self._changed:
            if timeout > 0 and not self._results:
                self._driver_waits = True
                self._changed.notify_all()
                self._changed.wait_for(lambda: self._results, timeout)
            return self._results.popleft() if self._results else None

    def ended(self, cause: str) -> None:
        with self._changed:
            self._results.append((-1, {"error": (f"Ray Tune ended: {cause}", "go on with --resume")}))
            self._changed.notify_all()

    def close(self, now: bool) -> None:
        with self._changed:
            self._closed, self.abandoned = True, now
            self._changed.notify_all()

    def take(self, trial_id: str) -> tuple[TrialSpec, float] | Literal["closed"] | None:
        """The next specification and its share of a GPU.

        With nothing running it is waited for: Tune would look once a second only.
        """
        with self._changed:
            if not self._numbers:
                self._changed.wait_for(lambda: self._waiting or self._closed, timeout=300)
            if self._closed:
                return "closed"
            if not self._waiting:
                return None
            self._numbers[trial_id] = self._waiting[0][0].number
            return self._waiting.popleft()

    def saw_error(self, trial_id: str, begun: bool, cause: str) -> None:
        self._errors[trial_id] = {"died" if begun else "refused": cause}

    def put(self, trial_id: str, result: Mapping[str, Any] | None) -> None:
        """What a trial returned; None where it returned nothing, which `saw_error` was told before."""
        error = self._errors.pop(trial_id, None)
        with self._changed:
            self._results.append((self._numbers.pop(trial_id), error if result is None else result))
            self._driver_waits = False
            self._changed.notify_all()
            # Tune would next sleep for a tenth of a second unless a trial ends. So the driver first says what is to run
            # now, or that it must hear of another trial before it knows.
            self._changed.wait_for(lambda: self._waiting or self._driver_waits or self._closed, timeout=NEXT_SECONDS)


def searcher(handout: _Handout) -> Searcher:
    """Tune's source of trials: what the driver submits."""
    from ray.tune.search import Searcher

    class FromTheDriver(Searcher):
        def suggest(self, trial_id: str) -> Any:
            taken = handout.take(trial_id)
            if taken == "closed":
                return Searcher.FINISHED
            return None if taken is None else {"spec": json.dumps(taken[0].to_json()), "gpus": taken[1]}

        def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
            handout.put(trial_id, None if error else result)

        def save(self, checkpoint_path: str) -> None: ...  # the study is the state

        def restore(self, checkpoint_path: str) -> None: ...

    return FromTheDriver()


def witness(handout: _Handout, workers: int) -> TrialScheduler:
    """Runs trials in the order in which they come, keeps actors warm, and sees why a trial ended.

    Tune tells its searcher only that it did.
    """
    from ray.tune.experiment import Trial
    from ray.tune.schedulers import FIFOScheduler

    class Witness(FIFOScheduler):
        _kept: Any = None

        def on_trial_add(self, tune_controller: Any, trial: Trial) -> None:
            # Where the driver must hear of several trials before it knows the next, Tune would drop all free actors but
            # one, and start them again. Only those of one size are kept: others would hold resources for nothing.
            cache, size = getattr(tune_controller, "_actor_cache", None), trial.placement_group_factory
            if cache is not None and size != self._kept:
                if self._kept is not None:
                    cache.decrease_max(self._kept, workers)
                cache.increase_max(size, workers)
                self._kept = size

        def on_trial_error(self, tune_controller: Any, trial: Trial) -> None:
            # Tune gives a trial to an actor that it keeps warm, and gives the trial up where that has died meanwhile.
            handout.saw_error(trial.trial_id, trial.status != Trial.PENDING, last_line(trial.error_file))

    return Witness()


def stopper(handout: _Handout) -> Stopper:
    """Ends Tune at once when the driver does."""
    from ray.tune import Stopper

    class Abandoned(Stopper):
        def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
            return False

        def stop_all(self) -> bool:
            return handout.abandoned

    return Abandoned()


def last_line(file: str | None) -> str:
    """The first sentence of the last line, where Ray says what happened."""
    lines = Path(file).read_text().split("\n") if file else []
    return next((line.strip().split(". ")[0].rstrip(".") for line in reversed(lines) if line.strip()), "unknown")


def _own_path() -> list[str]:
    """Where this process looks for modules beside Python's own folders, which every node has itself."""
    return [str(Path(entry).resolve()) for entry in sys.path if not entry.startswith((sys.prefix, sys.base_prefix))]


def _share(data: Data) -> tuple[str, Any] | None:
    """The key of a data set, and its arrays in Ray's object store; None where the images are not held in memory."""
    import ray

    from nasplat.data.shared import to_arrays
    from nasplat.search.evaluate import data_key, load_data

    arrays = to_arrays(load_data(data))
    return None if arrays is None else (data_key(data), ray.put(arrays))
