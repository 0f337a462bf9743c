"""Kills searches with SIGKILL, at chosen points and at random moments, and resumes them until they finish.

`main` prints what happened as JSON. It runs in a process of its own, which imports once and forks a child for every
session, so that a kill costs milliseconds.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
import traceback
from dataclasses import replace
from pathlib import Path
from typing import Any

from nasplat.artifacts.run_directory import RunDirectory
from nasplat.core.experiment import Experiment
from nasplat.search import storage
from nasplat.search.driver import identity_of, run_search
from nasplat.search.history import History, goals_of
from nasplat.search.study import SearchStudy, open_study
from tests.search.toys import ToySpace, experiment
from tests.search.traps import VARIABLE, Trap, spring

TRIALS = 10
POINTS = ("ask", "tell", "checkpoint", "record", "write")
PLACES = {"ask": (SearchStudy, "ask"), "tell": (SearchStudy, "tell"), "write": (storage, "_write")}


def settings(executor: str) -> Experiment:
    """Of the executors, or `early stopping`: inline, with most trials left at a third of their budget."""
    run = {"executor": "processes" if executor == "processes" else "inline", "workers": 2}
    search: dict[str, Any] = {"options": {"startup": 4}, "constraints": {"params": {"max": 1000}}}
    if executor == "early stopping":
        search["early_stopping"] = {"rule": "asha"}
    return experiment("tpe", TRIALS, run=run, search=search)


def search(directory: Path, executor: str) -> None:
    directory.mkdir(exist_ok=True)
    evaluate = "tests.search.traps:stepwise"
    run_search(settings(executor), RunDirectory(directory), ToySpace(3), resume=True, evaluate=evaluate)


def session(directory: Path, executor: str, trap: Trap | None, delay: float | None) -> bool:
    """One search in a forked child, killed by its trap or after a delay; returns whether the search is over."""
    child = os.fork()
    if child == 0:
        try:
            os.environ[VARIABLE] = trap.to_text() if trap else ""
            if trap and trap.point in PLACES:
                spring(*PLACES[trap.point], trap)
            search(directory, executor)
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
    if delay is not None:
        time.sleep(delay)
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    if os.WIFEXITED(status) and os.WEXITSTATUS(status):
        raise SystemExit(f"a session failed under {trap}")
    return os.WIFEXITED(status)


def history(directory: Path, executor: str) -> History:
    chosen = settings(executor)
    goals = goals_of(chosen.score)
    study = open_study(
        "journal", directory, name="toy", space=ToySpace(3), goals=goals, identity=identity_of(chosen), resume=True
    )
    return study.history


def rows(found: History) -> list[list[Any]]:
    """What must not depend on kills; where a trial went on is not of these."""
    return [
        [one.number, one.digest, one.state, sorted((k, v) for k, v in one.metrics.items() if k != "resumed_at")]
        for one in found
    ]


def campaign(root: Path, executor: str, seed: int, random_kills: int) -> dict[str, Any]:
    """Searches one after the other until every trap was sprung and so many were killed at random moments."""
    rng = random.Random(seed)
    marker = root / "marker"
    points = [(when, point) for point in POINTS for when in ("before", "after")] + [("within", "write")]
    traps = [Trap(when, point, rng.randint(1, 3), False, str(marker)) for when, point in points]
    if executor == "processes":  # a worker alone, and everything at once
        traps += [Trap(t.when, t.point, t.count, True, str(marker)) for t in traps if t.point not in PLACES]
    todo: list[Trap | None] = [*traps, *[None] * random_kills]
    rng.shuffle(todo)
    report: dict[str, Any] = {"kills": 0, "lost": [], "changed": [], "resumed": 0, "searches": []}
    search(root / "whole", executor)
    report["whole"] = rows(history(root / "whole", executor))
    began = time.monotonic()
    search(root / "clock", executor)
    duration = time.monotonic() - began
    index, over = 0, True
    while todo or not over:
        directory = root / f"killed{index}"
        before = records(directory)
        killing = bool(todo)
        trap = todo.pop() if killing else None
        marker.unlink(missing_ok=True)
        over = session(directory, executor, trap, rng.uniform(0, 0.7 * duration) if killing and not trap else None)
        killed = not over or marker.exists()
        report["kills"] += killed
        if killing and not killed:  # the search was over before it; another one will meet it
            todo.insert(0, replace(trap, count=1) if trap else None)
        after = records(directory)
        report["lost"] += [name for name in before if name not in after]
        report["changed"] += [name for name in before if after.get(name) != before[name]]
        if over:
            found = history(directory, executor)
            report["resumed"] += sum(one.metrics.get("resumed_at", 0) > 0 for one in found)
            report["searches"].append(rows(found))
            index += 1
    return report


def records(directory: Path) -> dict[str, str]:
    """The records that are on disk, by trial folder."""
    return {f"{path.parent.name}/{path.name}": path.read_text() for path in directory.glob("trials/*/record*.json")}


def main() -> None:
    print(json.dumps(campaign(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))))
