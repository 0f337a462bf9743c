"""What asking and telling cost a trial, in milliseconds: our strategies in a nasplat study, beside Optuna's TPE.

    python experiments/benchmark_overhead.py [--repeats 3] [--long 1000]

writes experiments/benchmark_overhead.md. Run it on a quiet machine. Both use a journal file, and TPE also SQLite. Timed
are the proposal, the write of it, and the write of its result; nothing is trained.
"""

from __future__ import annotations

import argparse
import os
import platform
import tempfile
import time
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path

import numpy as np
import optuna
from landscapes import Landscape
from optuna.storages import JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend

from nasplat.core.front import Goal
from nasplat.search.encoding import decode, distributions
from nasplat.search.propose import Exhausted, propose
from nasplat.search.records import Record
from nasplat.search.strategies import make_strategy
from nasplat.search.study import open_study

HERE = Path(__file__).resolve().parent
GOALS = {1: (Goal("accuracy", "maximize"),), 2: (Goal("accuracy", "maximize"), Goal("macs", "minimize"))}
OURS = ("gp", "local_search", "evolution", "reinforce", "expansion", "random")
WINDOW = 20  # trials over which a figure is the mean


def ours(name: str, goals: int, space: Landscape, directory: Path) -> Iterator[float]:
    """Seconds of every trial in a nasplat study with its default storage."""
    study = open_study("journal", directory, name="t", space=space, goals=GOALS[goals], identity={"seed": 0})
    strategy = make_strategy(name)
    while True:
        started = time.perf_counter()
        state = ""
        while state != "running":  # a repeat is answered at once, and its cost counts to the trial
            draft = propose(strategy, study.history, space, GOALS[goals], {}, 0)
            assert not isinstance(draft, Exhausted)
            proposal = study.ask(draft)
            state = proposal.state
        asked = time.perf_counter() - started
        metrics = space.mean(space.canonical(proposal.values))
        started = time.perf_counter()
        study.tell(proposal.number, Record("complete", metrics))
        yield asked + time.perf_counter() - started


def optunas(storage: Callable[[Path], object], goals: int, space: Landscape, directory: Path) -> Iterator[float]:
    """The same of Optuna's TPE in an Optuna study."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(
        storage=storage(directory),  # type: ignore[arg-type]
        sampler=optuna.samplers.TPESampler(seed=0),
        directions=[goal.direction for goal in GOALS[goals]],
    )
    table = distributions(space)
    while True:
        started = time.perf_counter()
        trial = study.ask(table)
        asked = time.perf_counter() - started
        metrics = space.mean(space.canonical(decode(space, trial.params)))
        started = time.perf_counter()
        study.tell(trial, [metrics[goal.metric] for goal in GOALS[goals]])
        yield asked + time.perf_counter() - started


def journal(directory: Path) -> JournalStorage:
    return JournalStorage(JournalFileBackend(str(directory / "optuna.journal")))


def sqlite(directory: Path) -> RDBStorage:
    return RDBStorage(f"sqlite:///{directory / 'optuna.db'}")


def timed(make: Callable[[Path], Iterator[float]], at: tuple[int, ...]) -> list[float]:
    """Milliseconds a trial, the mean over the last `WINDOW` trials before each count."""
    with tempfile.TemporaryDirectory() as directory:
        seconds = [each for each, _ in zip(make(Path(directory)), range(max(at)), strict=False)]
    return [1000 * float(np.mean(seconds[count - WINDOW : count])) for count in at]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--long", type=int, default=1000)
    options = parser.parse_args()
    at, space = (100, 300, options.long), Landscape("wide", 0)
    lines = [
        "# What asking and telling cost a trial",
        "",
        f"`python experiments/benchmark_overhead.py --repeats {options.repeats} --long {options.long}`",
        "",
        f"A synthetic landscape of {len(space.choices)} choices (experiments/landscapes.py), milliseconds a trial: the "
        f"median of {options.repeats} searches, each the mean of the {WINDOW} trials before that many, seed 0. "
        f"{platform.machine()}, {os.cpu_count()} cores, one thread; Python {platform.python_version()}, Optuna "
        f"{version('optuna')}.",
        "",
        "| | goals | " + " | ".join(f"{count} trials" for count in at) + " |",
        "|---|---|" + "---|" * len(at),
    ]
    rows: list[tuple[str, int, Callable[[Path], Iterator[float]], tuple[int, ...]]] = []
    for goals in GOALS:
        rows += [(f"{name}, journal", goals, lambda d, n=name, g=goals: ours(n, g, space, d), at) for name in OURS]
        rows.append(("Optuna TPE, journal", goals, lambda d, g=goals: optunas(journal, g, space, d), at))
        rows.append(("Optuna TPE, SQLite", goals, lambda d, g=goals: optunas(sqlite, g, space, d), at[:2]))
    for name, goals, make, counts in rows:
        found = np.median([timed(make, counts) for _ in range(options.repeats)], axis=0)
        cells = [f"{ms:.1f}" for ms in found] + [""] * (len(at) - len(counts))
        lines.append(f"| {name} | {goals} | {' | '.join(cells)} |")
        print(lines[-1], flush=True)
    (HERE / "benchmark_overhead.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
