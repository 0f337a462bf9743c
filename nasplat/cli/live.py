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

from nasplat.artifacts.metric_names import counted, label, text
from nasplat.cli.explanation import explanation
from nasplat.cli.numbers import PLAIN_SECONDS, duration
from nasplat.cli.tables import plain_table
from nasplat.core.front import Goal, Score

if TYPE_CHECKING:
    from nasplat.search.events import Event

BEST = 5


class SearchView:
    """Watches a search as a context manager; give `on_event` to the search, and `after` what is done when it is over.

    Args:
        console: to draw on.
        goals: the axes of the front.
        budget: in trials; None where there is none.
        workers: processes that are started for the trials; 0 where they run in this one.
        explain: say why each candidate is chosen, dropped or trained on.
    """

    def __init__(
        self, console: Console, goals: Sequence[Goal], budget: int | None, workers: int = 0, *, explain: bool = False
    ) -> None:
        self._explain = explain
        self.interrupted = False
        self._console = console
        self._goals = tuple(goals)
        self._budget = budget
        self._workers = counted(workers, "worker") if workers else ""
        self._done = 0  # of the study
        self._told = 0  # in this session
        self._front: tuple[Score, ...] = ()
        self._running: dict[int, str] = {}
        self._over = False
        self._doing = "reading the images and the space"
        self._started: float | None = None  # when the first trial ran
        self._last_told = 0.0
        self._check_began: tuple[float, float] | None = None  # when, and how many were done by then
        self._last_line, self._last_done = time.monotonic(), 0
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

        if self._explain and (line := explanation(event)) is not None:
            self.say(line)
        match event:
            case events.INTERRUPTED:
                self.interrupted = True
                self.say(events.INTERRUPTED.text, warning=True)
            case events.Started(proposal=proposal, again=again):
                if self._started is None and not self._running:
                    self._do(f"starting {self._workers}" if self._workers else "")
                self._running[proposal.number] = "again" if again else "starts"
            case events.Progress(number=number, fields=fields):
                self._begin()
                self._running[number] = _progress_text(fields)
            case events.Judged(proposal=proposal):
                self._begin()
                self._running.pop(proposal.number, None)
            case events.Told(proposal=proposal, evaluated=evaluated, budget=budget):
                self._begin()
                self._running.pop(proposal.number, None)
                self._done, self._budget = evaluated, budget
                self._told, self._last_told = self._told + 1, time.monotonic()
                if proposal.state == "failed":
                    self.say(f"trial {proposal.number} failed: {proposal.reason}", warning=True)
                if not self._running and (self.interrupted or (budget is not None and evaluated >= budget)):
                    self._over, self._doing = True, f"ending {self._workers}" if self._workers else ""
            case events.FrontChanged(front=front):
                self._front = front
            case events.Message(text=message, warning=warning):
                self.say(message, warning=warning)
            case events.Checking(done=done, total=total, what=what):
                self._check(done, total, what)
        if not self._console.is_terminal and self._due():
            self._last_line, self._last_done = time.monotonic(), self._done
            self.say(self._plain())

    def after(self, what: str) -> None:
        """The search is over, and now something else is done that takes its time."""
        self._over = True
        self._do(what)

    def _check(self, done: float, total: int, what: str) -> None:
        now = time.monotonic()
        if self._check_began is None:
            self._check_began = (now, done)
        began, before = self._check_began
        left = (total - done) * (now - began) / (done - before) if done > before and now - began >= 2 else 0.0
        self._over = True
        self._doing = f"{int(done)} of {total} networks {what}" + (f", {duration(left)} left" if left >= 1 else "")
        if not self._console.is_terminal and now - self._last_line > PLAIN_SECONDS:
            self._last_line = now
            self.say(self._doing)

    def say(self, message: str, *, warning: bool = False) -> None:
        self._console.print(Text(message, style="yellow" if warning else ""), soft_wrap=True)

    def _do(self, what: str) -> None:
        """Shows what is done while no trial says so itself."""
        self._doing = what
        if self._console.is_terminal:
            self._live.refresh()  # what follows may keep Python busy
        elif what:
            self.say(what)

    def _begin(self) -> None:
        if self._started is None:
            self._started, self._doing = time.monotonic(), ""

    def _due(self) -> bool:
        return self._done != self._last_done and time.monotonic() - self._last_line > PLAIN_SECONDS

    def _pace(self) -> tuple[str, str]:
        """Trials a minute of this session, and what is left. Both stand still when the search is over."""
        elapsed = self._last_told - (self._started or 0.0)
        each = elapsed / self._told if self._told and elapsed >= 1 else None
        rate = "" if each is None else f"{60 / each:.0f} trials/min" if each < 15 else f"{each:.0f} s/trial"
        if self._over:
            return rate, ""
        if self.interrupted:
            return rate, f"finishing {counted(len(self._running), 'trial')}"
        if each is None or self._budget is None:
            return rate, ""
        left = (self._budget - self._done) * each - (time.monotonic() - self._last_told)
        return rate, f"{duration(left)} left" if left >= 1 else ""

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
        bar = ProgressBar(total=self._budget, completed=self._done, width=32, pulse=not (self._budget or self._over))
        of = f"/{self._budget}" if self._budget else ""
        state = Text("searched" if self._over else "searching", style="bold")
        line.add_row(state, bar, f"{self._done}{of} trials", *self._pace())
        shown: list[RenderableType] = [line]
        if self._front:
            shown.append(front_table(self._front[:BEST], self._goals, f"best of {len(self._front)} on the front"))
        doing = self._doing
        if self._running and not doing:
            doing = "running: " + ", ".join(f"{number} {text}" for number, text in sorted(self._running.items()))
        if doing:
            shown.append(Text(doing, style="dim", no_wrap=True, overflow="ellipsis"))
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
