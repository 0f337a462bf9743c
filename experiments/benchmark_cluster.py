"""What a Ray cluster costs a trial beside plain Ray Tune, and a simulation of searches at up to 4,096 workers.

    python experiments/benchmark_cluster.py [--trials 200] [--repeats 3]

writes experiments/benchmark_cluster.md. The simulation runs the real driver, strategies and journal on the durations
that record_curves.py measured (runs/curves/fashion_mnist.json); only training is replaced by a clock.
"""

from __future__ import annotations

import argparse
import heapq
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from strategies_on_tables import volume
from trivial_trial import SPACE

from nasplat.artifacts.run_directory import RunDirectory
from nasplat.core.architecture import Architecture
from nasplat.core.experiment import Experiment
from nasplat.core.front import Goal
from nasplat.search.driver import run_search
from nasplat.search.events import Event, Told
from nasplat.search.executors import Executor, Finished, OnTrialProgress
from nasplat.search.processes import ProcessExecutor
from nasplat.search.ray_connection import connect
from nasplat.search.ray_executor import RayExecutor
from nasplat.search.records import Record, TrialSpec

HERE = Path(__file__).resolve().parent
CURVES = HERE.parent / "runs/curves/fashion_mnist.json"
GOALS = (Goal("accuracy", "maximize"), Goal("macs", "minimize"))
TRIVIAL = "trivial_trial:trivial"
TRIAL_SECONDS = 60.0  # the mean in the simulation
WORKERS = (8, 64, 512, 4096)
Row = list[Any]


def settings(strategy: str, trials: int, workers: int, **search: Any) -> Experiment:
    return Experiment.model_validate(
        {
            "name": "t",
            "space": {"family": "landscape"},
            "search": {"strategy": strategy, "trials": trials, **search},
            "run": {"workers": workers},
            "score": {"maximise": ["accuracy"], "minimise": ["macs"]},
        }
    )


def ours(executor: Callable[[Path], Executor], workers: int, strategy: str, trials: int) -> list[float]:
    """When each trial was told."""
    times: list[float] = []

    def watch(event: Event) -> None:
        if isinstance(event, Told):
            times.append(time.perf_counter())

    with tempfile.TemporaryDirectory() as directory:
        root = Path(directory)
        chosen = settings(strategy, trials, workers)
        run_search(chosen, RunDirectory(root), SPACE, executor=executor(root), evaluate=TRIVIAL, on_event=watch)
    return times


def on_ray(strategy: str) -> Callable[[int, int], list[float]]:
    return lambda workers, trials: ours(
        lambda root: RayExecutor(TRIVIAL, workers=workers, storage=root), workers, strategy, trials
    )


def in_processes(workers: int, trials: int) -> list[float]:
    return ours(lambda root: ProcessExecutor(TRIVIAL, workers), workers, "random", trials)


def plain_tune(workers: int, trials: int) -> list[float]:
    """What a user writes without nasplat: OptunaSearch for two metrics, reused actors."""
    from ray import tune
    from ray.tune.search import ConcurrencyLimiter
    from ray.tune.search.optuna import OptunaSearch

    class Trivial(tune.Trainable):
        def setup(self, config: dict[str, Any]) -> None:
            self.values = config

        def reset_config(self, new_config: dict[str, Any]) -> bool:
            self.values = new_config
            return True

        def step(self) -> dict[str, Any]:
            return {**SPACE.mean(SPACE.canonical(self.values)), "done": True}

        def save_checkpoint(self, checkpoint_dir: str) -> None: ...

    class Clock(tune.Callback):
        def __init__(self) -> None:
            self.times: list[float] = []

        def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
            self.times.append(time.perf_counter())

    clock = Clock()
    table = {name: tune.choice(list(choice.options)) for name, choice in SPACE.choices.items()}
    search = OptunaSearch(metric=[goal.metric for goal in GOALS], mode=["max", "min"], seed=0)
    with tempfile.TemporaryDirectory() as directory:
        tune.run(
            Trivial,
            config=table,
            search_alg=ConcurrencyLimiter(search, max_concurrent=workers),
            num_samples=trials,
            reuse_actors=True,
            resources_per_trial={"cpu": 1},
            storage_path=directory,
            callbacks=[clock],
            verbose=0,
        )
    return clock.times


def overhead(trials: int, repeats: int) -> list[Row]:
    """Milliseconds a trivial trial, the median of the repeats."""
    rows: list[Row] = []
    methods: dict[str, Callable[[int, int], list[float]]] = {
        "nasplat in processes, random": in_processes,
        "nasplat on Ray, random": on_ray("random"),
        "nasplat on Ray, tpe": on_ray("tpe"),
        "nasplat on Ray, gp": on_ray("gp"),
        "plain Ray Tune, OptunaSearch (TPE), reused actors": plain_tune,
    }
    for name, run in methods.items():
        cells = []
        for workers in (1, 2, 4, 8):
            found = []
            for _ in range(repeats):
                times = run(workers, trials)
                found.append((times[-1] - times[trials // 4]) / (len(times) - 1 - trials // 4))
            cells.append(1000 * statistics.median(found))
            print(name, workers, f"{cells[-1]:.1f} ms", flush=True)
        rows.append([name, *cells])
    return rows


def real(trials: int) -> list[Row]:
    """Seconds of real trainings in 1 and 2 workers, one thread each."""
    rows: list[Row] = []
    plain = {
        "name": "real",
        "space": {"family": "nasbench201", "cells": 1, "channels": 8},
        "data": {"source": "digits"},
        "train": {"epochs": 4, "augment": []},
        "search": {"strategy": "random", "trials": trials},
    }
    for executor in ("processes", "ray"):
        taken = []
        for workers in (1, 2):
            run = {"executor": executor, "workers": workers, "device": "cpu"}
            with tempfile.TemporaryDirectory() as directory:
                chosen = Experiment.model_validate({**plain, "run": run})
                result = run_search(chosen, RunDirectory(Path(directory)))
                # From the first result on: how long the start takes is another matter.
                ends = sorted(path.stat().st_mtime for path in Path(directory).glob("trials/*/record.json"))
                assert len(result.history.complete) == trials
                taken.append((ends[-1] - ends[workers - 1]) / (trials - workers))
        rows.append([executor, *taken, taken[0] / taken[1] / 2])
        print(rows[-1], flush=True)
    return rows


class Simulated:
    """Workers whose trials take the recorded time of a clock of its own; what the driver takes passes on it, too."""

    def __init__(self, workers: int, durations: Sequence[float], seconds: float = TRIAL_SECONDS) -> None:
        self.slots = workers
        self._durations = np.array(durations) / float(np.mean(durations)) * seconds
        self._free = [0.0] * workers
        self._ends: list[tuple[float, int, float, Record]] = []
        self.now = self.busy = self.driver = 0.0
        self.curve: list[tuple[float, dict[str, float]]] = []
        self._seen = time.perf_counter()

    def _pass(self) -> None:
        spent = time.perf_counter() - self._seen
        self.now += spent
        self.driver += spent

    def submit(self, spec: TrialSpec) -> None:
        self._pass()
        started = max(self.now, heapq.heappop(self._free))
        pick = np.random.default_rng(spec.seed).integers(len(self._durations))
        before = {True: 1 / 3, False: 0.0}[spec.until == 1 and Path(spec.directory, "paused").exists()]
        seconds = float(self._durations[pick]) * (spec.until - before)
        if spec.until < 1:
            Path(spec.directory).mkdir(parents=True, exist_ok=True)
            Path(spec.directory, "paused").touch()
        found = SPACE.mean(Architecture.from_json(spec.architecture))
        found["accuracy"] *= 1 - 0.2 * (1 - spec.until)
        heapq.heappush(self._free, started + seconds)
        record = Record("complete", found, seconds=seconds)
        heapq.heappush(self._ends, (started + seconds, spec.number, spec.until, record))
        self.busy += seconds
        self._seen = time.perf_counter()

    def wait(self, timeout: float, on_progress: OnTrialProgress) -> list[Finished]:
        self._pass()
        end, number, until, record = heapq.heappop(self._ends)
        self.now = max(self.now, end)
        if until == 1:
            self.curve.append((self.now, dict(record.metrics)))
        self._seen = time.perf_counter()
        return [Finished(number, record)]

    def close(self, *, now: bool = False) -> None: ...


def simulate(strategy: str, workers: int, trials: int, durations: Sequence[float], stopping: bool) -> Row:
    """Wall time, utilisation, the driver's part, writes a second and the hypervolume of what was found."""
    search: dict[str, Any] = {"early_stopping": {"rule": "asha"}} if stopping else {}
    with tempfile.TemporaryDirectory() as directory:
        executor = Simulated(workers, durations)
        chosen = settings(strategy, trials, workers, **search)
        run_search(chosen, RunDirectory(Path(directory)), SPACE, executor=executor, evaluate=TRIVIAL)
        journal = Path(directory, "study.journal").read_bytes().count(b"\n")
    corner = (-0.5, 1.05e6 * sum(float(cost.max()) for cost in SPACE.option_costs))

    def found_by(share: float) -> float:
        done = [metrics for at, metrics in executor.curve if at <= share * executor.now]
        return volume(done, GOALS, corner) / (0.5 * corner[1]) if done else 0.0

    return [
        strategy + (", early stopping" if stopping else ""),
        workers,
        trials,
        executor.now / 60,
        executor.busy / (workers * executor.now),
        1000 * executor.driver / trials,
        journal / executor.now,
        *(found_by(share) for share in (0.25, 0.5, 1.0)),
    ]


def simulation(durations: Sequence[float]) -> list[Row]:
    rows: list[Row] = []
    for workers in WORKERS:
        trials = max(512, 2 * workers)
        for strategy, stopping in (
            ("random", False),
            ("evolution", False),
            ("evolution", True),
            ("local_search", False),
            ("gp", False),
        ):
            if strategy in ("gp", "local_search") and workers > 512:
                continue  # they would not have come to their first decision when the last trial starts
            rows.append(simulate(strategy, workers, trials, durations, stopping))
            print(*rows[-1], flush=True)
    return rows


def table(heads: Sequence[str], rows: Sequence[Row], formats: Sequence[str]) -> list[str]:
    cells = [[f"{cell:{form}}" for cell, form in zip(row, formats, strict=True)] for row in rows]
    return [f"| {' | '.join(line)} |" for line in (heads, ["---"] * len(heads), *cells)]


def page(found: Mapping[str, list[Row]], options: argparse.Namespace) -> str:
    fastest = max(row[6] for row in found["simulation"])
    machine = f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}"
    lines = [
        "# Searches on a cluster",
        "",
        f"`python experiments/benchmark_cluster.py --trials {options.trials} --repeats {options.repeats}`",
        "",
        f"{machine}, Ray {version('ray')}, Optuna {version('optuna')}.",
        "",
        "## Overhead of a trivial trial",
        "",
        "Milliseconds a trial by the number of workers, without the start of the workers: the "
        f"last three quarters of {options.trials} trials, the median of {options.repeats} searches. On two "
        "cores, eight workers share them. Ours writes every proposal and result to the journal (fsync), and a record.",
        "",
        *table(["", "1", "2", "4", "8"], found["overhead"], ["", ".1f", ".1f", ".1f", ".1f"]),
        "",
        "The first row is all that nasplat does for a trial without Ray; the difference to the second is Tune's share.",
        "",
        "## Real trials in two workers",
        "",
        "Seconds a trial of digits, one thread each, and the efficiency of two workers against one.",
        "",
        *table(["executor", "1 worker", "2 workers", "efficiency"], found["real"], ["", ".2f", ".2f", ".2f"]),
        "",
        "## Simulation",
        "",
        "The real driver, strategies and journal on one core; the durations are those of 54 real trainings on "
        f"Fashion-MNIST (record_curves.py), scaled to a mean of {TRIAL_SECONDS:g} s; the landscape `wide` of "
        "experiments/landscapes.py, two goals, seed 0. Utilisation is busy worker time; the driver's part is all that "
        "it does for a trial; writes are lines of the journal a second; the volume is what trained networks dominate, "
        "as a share of its box. Speed goes up with the workers until the last trials of a search leave most of them "
        "idle: the utilisation is that of these short searches.",
        "",
        *table(
            [
                *("strategy", "workers", "trials", "minutes", "utilisation", "driver, ms a trial", "writes/s"),
                *("volume after 1/4 of the time", "1/2", "all"),
            ],
            found["simulation"],
            ["", "d", "d", ".1f", ".3f", ".1f", ".1f", ".3f", ".3f", ".3f"],
        ),
        "",
        "The driver is one process: the mean seconds of a trial, divided by what the driver takes for one, is the "
        "number of workers that it keeps busy. That is the bottleneck at 4,096 workers, not the storage, which only "
        f"the driver writes to: at most {fastest:.0f} lines a second here. A strategy that knows nothing of the last 2 "
        "(workers - 1) trials has little to go by where there are few rounds: there random and evolution are "
        "what scales. Early stopping asks the driver more often, and ranks all trials whenever one is judged: it pays "
        "as long as the driver keeps up, which its column tells.",
        "",
        "Which storage: the journal file for every search, whatever runs the trials, for one driver writes to it. "
        "SQLite where a tool wants a database file (slower: experiments/benchmark_overhead.md). PostgreSQL by an "
        "Optuna URL where the run directory is no file system that can be locked, or where several people look at "
        "studies in one place; Optuna's gRPC proxy before it where they are many.",
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=200)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--only", choices=("overhead", "real", "simulation"), help="the others as they were found")
    options = parser.parse_args()
    kept = HERE.parent / "runs/benchmark_cluster.json"
    found = json.loads(kept.read_text()) if kept.exists() else {}
    os.environ["PYTHONPATH"] = os.pathsep.join([str(HERE.parent), str(HERE)])  # for the workers
    if options.only in (None, "simulation"):
        durations = [one["seconds"] for one in json.loads(CURVES.read_text())["curves"]]
        found["simulation"] = simulation(durations)
    if options.only in (None, "overhead", "real"):
        connect(None, 8)
        if options.only != "real":
            found["overhead"] = overhead(options.trials, options.repeats)
        if options.only != "overhead":
            found["real"] = real(24)
    kept.write_text(json.dumps(found))
    if len(found) == 3:
        (HERE / "benchmark_cluster.md").write_text(page(found, options))


if __name__ == "__main__":
    main()
