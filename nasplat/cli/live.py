"""What a running search shows: a bar with rate and time left, the best candidates, what runs now.

On a terminal it is drawn in place; in a log file or CI a plain line now and then says the same.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from nasplat.artifacts.metric_names import label, text
from nasplat.cli.numbers import duration
from nasplat.cli.tables import plain_table
from nasplat.core.front import Goal, Score

if TYPE_CHECKING:
    from nasplat.search.events import Event

BEST = 5
PLAIN_SECONDS = 15.0


class SearchView:
    """Watches a search as a context manager; give `on_event` to the search."""

    def __init__(self, console: Console, goals: Sequence[Goal], budget: int | None) -> None:
        self._console = console
        self._goals = tuple(goals)
        self._budget = budget
        self._done = 0
        self._done_before: int | None = None
        self._front: tuple[Score, ...] = ()
        self._running: dict[int, str] = {}
        self._started = time.monotonic()
        self._last_line = self._started
        self._live = Live(get_renderable=self._render, console=console, refresh_per_second=4, transient=True)

    def __enter__(self) -> SearchView:
        if self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.stop()

    def on_event(self, event: Event) -> None:
        from nasplat.search import events

        match event:
            case events.Started(proposal=proposal, again=again):
                if self._done_before is None:
                    self._done_before, self._started = self._done, time.monotonic()
                self._running[proposal.number] = "again" if again else "starts"
            case events.Progress(number=number, fields=fields):
                self._running[number] = _progress_text(fields)
            case events.Told(proposal=proposal, evaluated=evaluated, budget=budget):
                self._running.pop(proposal.number, None)
                self._done, self._budget = evaluated, budget
                if proposal.state == "failed":
                    self.say(f"trial {proposal.number} failed: {proposal.reason}", warning=True)
            case events.FrontChanged(front=front):
                self._front = front
            case events.Message(text=message, warning=warning):
                self.say(message, warning=warning)
        if not self._console.is_terminal and time.monotonic() - self._last_line > PLAIN_SECONDS:
            self._last_line = time.monotonic()
            self.say(self._plain())

    def say(self, message: str, *, warning: bool = False) -> None:
        self._console.print(Text(message, style="yellow" if warning else ""), soft_wrap=True)

    def _pace(self) -> tuple[str, str]:
        """Trials a minute of this session, and the time left at that pace."""
        done = self._done - (self._done_before or 0)
        elapsed = time.monotonic() - self._started
        if not done or elapsed < 1:
            return "", ""
        rate = f"{60 * done / elapsed:.0f} trials/min" if done / elapsed > 1 / 15 else f"{elapsed / done:.0f} s/trial"
        left = duration((self._budget - self._done) * elapsed / done) + " left" if self._budget else ""
        return rate, left

    def _plain(self) -> str:
        of = f" of {self._budget}" if self._budget else ""
        parts = [f"{self._done}{of} trials", *filter(None, self._pace())]
        if self._front:
            metrics = self._front[0].metrics
            best = [f"{label(goal.metric)} {text(goal.metric, metrics[goal.metric])}" for goal in self._goals]
            parts.append(f"best: {', '.join(best)}")
        return " · ".join(parts)

    def _render(self) -> RenderableType:
        line = Table.grid(padding=(0, 1))
        bar = ProgressBar(total=self._budget, completed=self._done, width=32, pulse=not self._budget)
        of = f"/{self._budget}" if self._budget else ""
        line.add_row(Text("searching", style="bold"), bar, f"{self._done}{of} trials", *self._pace())
        shown: list[RenderableType] = [line]
        if self._front:
            shown.append(front_table(self._front[:BEST], self._goals, f"best of {len(self._front)} on the front"))
        if self._running:
            now = ", ".join(f"{number} {text}" for number, text in sorted(self._running.items()))
            shown.append(Text(f"running: {now}", style="dim", no_wrap=True, overflow="ellipsis"))
        return Group(*shown)


def front_table(front: Sequence[Score], goals: Sequence[Goal], title: str) -> Table:
    """The candidates of a front with the metrics of the search, and the trial where each is found."""
    labels = [label(goal.metric) for goal in goals]
    table = plain_table("trial", *labels, "digest", title=title, right=("trial", *labels))
    for score in front:
        metrics = [text(goal.metric, score.metrics[goal.metric]) for goal in goals]
        table.add_row(str(score.notes.get("number", "")), *metrics, score.architecture.digest[:8])
    return table


def _progress_text(fields: Mapping[str, Any]) -> str:
    parts = []
    if fields.get("share") is not None:
        parts.append(f"{100 * float(fields['share']):.0f} %")
    if fields.get("loss") is not None:
        parts.append(f"loss {float(fields['loss']):.2f}")
    return " ".join(parts) or str(fields.get("stage", "runs"))
