"""What a search leaves in its run directory for people and for `nasplat status`, while it runs and after."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence

from nasplat.artifacts.front_csv import FrontRow, write_front
from nasplat.artifacts.run_directory import RunDirectory, keep_front_weights
from nasplat.core.front import Score
from nasplat.search.history import History

LEAST_SECONDS = 1.0


class RunFiles:
    """Keeps `front.csv`, `state.json` and the weights of the front up to date, at most once a second.

    Nothing in here is needed to go on with a search: the study is the truth.

    Args:
        run: the run directory.
        disk_mb: budget for the front's weights.
    """

    def __init__(self, run: RunDirectory, disk_mb: int) -> None:
        self._run = run
        self._budget = disk_mb * 2**20
        self._written = -LEAST_SECONDS
        self._seen: set[int] = set()
        self._members: set[int] = set()
        self._lost: set[int] = set()

    def update(
        self, history: History, front: Sequence[Score], running: int, seconds: float, status: str = "running"
    ) -> list[int]:
        """Writes what changed; always at the end, when the status is another than `running`.

        Returns:
            numbers of the trials on the front whose weights had to go, as the budget is spent.
        """
        now = time.monotonic()
        if status == "running" and now - self._written < LEAST_SECONDS:
            return []
        self._written = now
        self._run.write_state(
            {
                **self._run.read_state(),  # others keep notes there, too
                "status": status,
                "process": os.getpid(),
                "trials": len(history),
                "evaluated": history.evaluated - running,
                "running": running,
                "front": len(front),
                "seconds": round(seconds, 3),
            }
        )
        lost = self._drop_weights(history, front)
        self._write_front(front)
        return lost

    def _write_front(self, front: Sequence[Score]) -> None:
        rows = []
        for rank, score in enumerate(front, 1):
            folder = self._run.trial(score.notes["number"], score.architecture.digest)
            paths = {"trial": self._run.relative(folder.path)}
            if folder.weights.exists():
                paths["weights"] = self._run.relative(folder.weights)
            rows.append(FrontRow(rank, score.architecture.digest, folder.number, score.metrics, paths))
        write_front(rows, self._run.front_csv)

    def _drop_weights(self, history: History, front: Sequence[Score]) -> list[int]:
        members = [score.notes["number"] for score in front]
        finished = {one.number for one in history if one.state not in ("running", "repeat")}
        # Of those that were seen before, only such as left the front still have weights to lose.
        changed = (finished - self._seen) | (self._members - set(members))
        lost = keep_front_weights(self._run, members, changed, self._budget)
        self._seen, self._members = finished, set(members)
        new = [folder.number for folder in lost if folder.number not in self._lost]
        self._lost.update(new)
        return new
