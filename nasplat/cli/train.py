"""`nasplat train`: the best of a front, trained from scratch on the full schedule."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nasplat.cli.numbers import PLAIN_SECONDS, duration
from nasplat.cli.tables import print_next, print_table
from nasplat.jobs.command import command

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from nasplat.jobs.confirmation import Confirmation, Estimate
    from nasplat.search.records import Record


def train(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="The run directory, such as runs/quickstart.")],
    top: Annotated[int, typer.Option(min=1, help="How many of the front, best on the first goal first.")] = 1,
    seeds: Annotated[
        int, typer.Option(min=1, help="Trainings of each, with new seeds; 3 or more give an interval.")
    ] = 1,
    architectures: Annotated[
        list[str] | None, typer.Option("--arch", metavar="ARCH", help="These instead, by trial number or digest.")
    ] = None,
    changes: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="For instance --set final.train.epochs=100")
    ] = None,
) -> None:
    """Train the best architectures of a front from scratch, on training and validation images, and score them on test.

    What differs from the search stands in the section final of the experiment: more epochs, larger networks. Can be
    interrupted; the same command goes on. With more seeds the front gets 95 % intervals.
    """
    from rich.console import Console

    from nasplat.jobs.train import Watcher
    from nasplat.jobs.train import train as run_training

    console = Console(highlight=False)
    view = TrainView(console)
    try:
        with view:
            found, confirmation, paths = run_training(
                run,
                architectures or (),
                top=top,
                seeds=seeds,
                overrides=changes or (),
                watcher=Watcher(view.on_start, view.on_progress, view.on_finished, view.say),
            )
    except KeyboardInterrupt as stop:
        console.print(f"stopped: {view.finished} finished and safe, and the same command goes on", soft_wrap=True)
        raise typer.Exit(130) from stop
    measured = {one.number: one.metrics for one in found.candidates}
    print_table(console, _table(confirmation, measured))
    for row in confirmation.rows:
        for reason in row.failures:
            console.print(f"trial {row.trial}: a training failed: {reason}", style="yellow", soft_wrap=True)
    console.print()
    go_on = command("export", run, "--final", "--top", len(confirmation.rows))
    print_next(console, {**{name: str(path) for name, path in paths.items()}, "go on": go_on})


def _table(confirmation: Confirmation, measured: Mapping[int, Mapping[str, float]]) -> Table:
    from rich.table import Table

    from nasplat.artifacts.metric_names import label, text

    table = Table(title="trained again", title_justify="left", title_style="bold", box=None, header_style="dim")
    metrics = list(dict.fromkeys(name for row in confirmation.rows for name in row.metrics))
    searched = {name: name.removeprefix("test_") for name in metrics}
    table.add_column("trial", justify="right")
    table.add_column("seeds", justify="right")
    for name in metrics:
        table.add_column(label(name), justify="right")
        if name != searched[name]:
            table.add_column("in the search", justify="right", style="dim")
    for name in ("macs", "params"):
        table.add_column(label(name), justify="right")
    for row in confirmation.rows:
        cells = []
        for name in metrics:
            cells.append(_interval(name, row.metrics[name]) if name in row.metrics else "failed")
            if name != searched[name]:
                before = measured.get(row.trial, {}).get(searched[name])
                cells.append(text(searched[name], before) if before is not None else "")
        costs = [text(name, row.costs[name]) for name in ("macs", "params")]
        table.add_row(str(row.trial), str(len(row.seeds)), *cells, *costs)
    return table


def _interval(name: str, found: Estimate) -> str:
    from nasplat.artifacts.metric_names import text

    if found.low is None or found.high is None:
        return text(name, found.mean)
    return f"{text(name, found.mean)} [{text(name, found.low)} … {text(name, found.high)}]"


class TrainView:
    """A bar over all trainings with the time left; plain lines where there is no terminal."""

    def __init__(self, console: Console) -> None:
        from rich.progress import BarColumn, Progress, TextColumn

        self._console = console
        self._shares: dict[int, float] = {}
        self._total = self._done = self._said = 0
        self._before = 0.0  # what was trained before this session, in trainings
        self._began = self._started = self._last_line = time.monotonic()
        self._progress = Progress(
            TextColumn("[bold]training"),
            BarColumn(32),
            TextColumn("{task.fields[done]}/{task.total:.0f} trainings"),
            TextColumn("{task.fields[left]}"),
            TextColumn("[dim]{task.fields[now]}"),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )

    def __enter__(self) -> None:
        self._progress.start()

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    @property
    def finished(self) -> str:
        return f"{self._done} of {self._total} trainings" if self._total else "no training"

    def on_start(self, total: int, done: int) -> None:
        self._total, self._done, self._said, self._before = total, done, done, float(done)
        self._progress.add_task("", total=total, completed=done, done=done, left="", now="starting")
        if done:
            self.say(f"{self.finished} done before")

    def on_progress(self, number: int, fields: Mapping[str, Any]) -> None:
        share = float(fields.get("share") or 0.0)
        if not self._shares and self._done == self._before:
            self._started = time.monotonic()  # now the workers are there
        if number not in self._shares:
            self._before += share  # it may go on from a checkpoint
        self._shares[number] = share
        self._update(f"loss {fields['loss']:.2f}" if fields.get("loss") is not None else "")

    def on_finished(self, number: int, record: Record) -> None:
        self._shares.pop(number, None)
        self._done += 1
        self._update("")

    def say(self, message: str) -> None:
        self._console.print(message, markup=False, soft_wrap=True)

    def _left(self) -> str:
        trained = self._completed() - self._before
        elapsed = time.monotonic() - self._started
        if elapsed < 2 or trained <= 0 or self._done == self._total:
            return ""
        return f"{duration(elapsed * (self._total - self._completed()) / trained)} left"

    def _completed(self) -> float:
        return self._done + sum(self._shares.values())

    def _update(self, now: str) -> None:
        left = self._left()
        for task in self._progress.tasks:
            self._progress.update(task.id, completed=self._completed(), done=self._done, left=left, now=now)
        waited = time.monotonic() - self._last_line > PLAIN_SECONDS
        if not self._console.is_terminal and waited and self._done != self._said:
            self._last_line, self._said = time.monotonic(), self._done
            elapsed = duration(self._last_line - self._began)
            self.say(" · ".join(filter(None, [self.finished, elapsed, left])))
