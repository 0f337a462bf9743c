"""One self-contained page about a run: it opens anywhere, and asks the network for nothing.

The page carries plotly.js, its data, and a content policy under which a browser refuses any request.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from math import isfinite, nan
from pathlib import Path
from string import Template
from typing import Any

from nasplat.artifacts import metric_names
from nasplat.artifacts.files import write_text
from nasplat.artifacts.ranking import Ranking
from nasplat.artifacts.run_directory import short
from nasplat.core.drawing import Picture
from nasplat.core.front import Direction, Goal


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean over new seeds, and its 95 % interval; a single seed has none."""

    mean: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True, slots=True)
class TrainedAgain:
    """One architecture of the front, rebuilt at its final size and trained anew.

    Args:
        trial: its number in the search.
        digest: of the architecture in the search.
        final_digest: of the rebuilt one.
        seeds: how many trainings ended well.
        metrics: what was measured of the rebuilt network.
        costs: of the rebuilt network, which may be larger than the one of the search.
    """

    trial: int
    digest: str
    final_digest: str
    seeds: int
    metrics: Mapping[str, Interval]
    costs: Mapping[str, float]

    def value(self, name: str) -> float | None:
        """A cost, or the mean of a metric; None where it was not measured."""
        return self.metrics[name].mean if name in self.metrics else self.costs.get(name)


@dataclass(frozen=True, slots=True)
class ReportTrial:
    """One trial, however it ended.

    Args:
        number: of the trial.
        digest: of the architecture.
        state: see `nasplat.search.history.Proposal`.
        metrics: what is known of it.
        reason: why it did not end well.
        seconds: its own wall time.
        finished: the wall time of the search at its end; None while it has not ended.
        why: it was proposed.
        landmark: the name of a known network.
    """

    number: int
    digest: str
    state: str
    metrics: Mapping[str, float] = field(default_factory=dict)
    reason: str = ""
    seconds: float = 0.0
    finished: float | None = None
    why: str = ""
    landmark: str = ""


@dataclass(frozen=True, slots=True)
class FrontMember:
    """One architecture of the front.

    Args:
        rank: 1 is the best on the first goal.
        digest: of the architecture.
        trial: its number.
        metrics: as in the trial.
        drawings: by name, such as `normal` and `reduction`.
        values: the choices.
        files: what to call a file, and its path relative to the page.
    """

    rank: int
    digest: str
    trial: int
    metrics: Mapping[str, float]
    drawings: Mapping[str, Picture] = field(default_factory=dict)
    values: Mapping[str, Any] = field(default_factory=dict)
    files: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ReportData:
    """All that the page tells.

    Args:
        name: of the experiment.
        goals: the axes of the search.
        trials: all of them, by number.
        front: the Pareto front, by rank.
        experiment: the resolved experiment as plain data.
        versions, machine: as `nasplat.artifacts.environment` tells them.
        status: one sentence: finished, running, interrupted.
        seconds: wall time of the search.
        made: when, in any words.
        notes: sentences that a reader should know first.
        confirmed: the architectures that were trained again.
        rankings: how well the scores ranked by which candidates were screened or chosen.
    """

    name: str
    goals: Sequence[Goal]
    trials: Sequence[ReportTrial]
    front: Sequence[FrontMember] = ()
    experiment: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    machine: Mapping[str, str] = field(default_factory=dict)
    status: str = ""
    seconds: float = 0.0
    made: str = ""
    notes: Sequence[str] = ()
    confirmed: Sequence[TrainedAgain] = ()
    rankings: Sequence[Ranking] = ()

    @property
    def complete(self) -> list[ReportTrial]:
        """Trials that were evaluated and have a finite value for every goal."""
        return [
            trial
            for trial in self.trials
            if trial.state == "complete" and all(isfinite(trial.metrics.get(goal.metric, nan)) for goal in self.goals)
        ]

    @property
    def metrics(self) -> list[str]:
        """Every metric of the search that some candidate has: the goals first, then the others as they come."""
        names = [goal.metric for goal in self.goals]
        names += [name for trial in self.trials if trial.state == "complete" for name in trial.metrics]
        return list(dict.fromkeys(names))

    @property
    def confirmed_metrics(self) -> list[str]:
        """What is known of the networks that were trained again: what was measured first, then what they cost."""
        names = [name for row in self.confirmed for name in row.metrics]
        names += [name for row in self.confirmed for name in row.costs]
        return list(dict.fromkeys(names))

    def direction(self, metric: str) -> Direction:
        """Which way is better: as the goals say; of others a share is better when larger, all else when smaller.

        A goal that was measured on test images is still that goal.
        """
        for goal in self.goals:
            if goal.metric in (metric, metric.removeprefix("test_")):
                return goal.direction
        better = metric_names.unit(metric) in ("percent", "change") or metric.endswith(".r2")
        return "maximize" if better else "minimize"


def write_report(data: ReportData, path: Path | str) -> None:
    """Writes the page, whole or not at all; about 5 MB, nearly all of it plotly.js.

    Raises:
        NasplatError: the disk is full or cannot be written to.
    """
    write_text(Path(path), render(data))


def render(data: ReportData) -> str:
    """The page as text."""
    from nasplat.artifacts.report_html import body, title

    page = files("nasplat.artifacts") / "page"
    return Template((page / "report.html").read_text(encoding="utf-8")).substitute(
        title=title(data),
        css=(page / "report.css").read_text(encoding="utf-8"),
        body=body(data),
        data=_for_script(_page_data(data)),
        plotly=_plotly() if data.complete else "",
        script=(page / "report.js").read_text(encoding="utf-8"),
    )


def _page_data(data: ReportData) -> dict[str, Any]:
    """What the page's script reads.

    Candidates of the search and networks that were trained again are told alike, but apart: an accuracy belongs to the
    costs of the network that was measured.
    """
    from nasplat.artifacts.report_curves import best_so_far, hypervolume_curve

    on_front = {member.digest for member in data.front}
    return {
        "name": data.name,
        "goal": data.goals[0].metric,
        "metrics": _metrics(data, data.metrics),
        "trials": [_trial(trial, trial.state == "complete" and trial.digest in on_front) for trial in data.trials],
        "confirmedMetrics": _metrics(data, data.confirmed_metrics),
        "confirmed": [_again(row) for row in data.confirmed],
        "best": best_so_far(data),
        "hypervolume": hypervolume_curve(data),
        "hypervolumeByTime": hypervolume_curve(data, by_time=True),
    }


def _metrics(data: ReportData, names: Sequence[str]) -> list[dict[str, str]]:
    return [
        {
            "name": name,
            "label": metric_names.label(name),
            "unit": metric_names.unit(name),
            "direction": data.direction(name),
        }
        for name in names
    ]


def _trial(trial: ReportTrial, front: bool) -> dict[str, Any]:
    return {
        "number": trial.number,
        "digest": trial.digest,
        "state": trial.state,
        "front": front,
        "note": ", ".join(filter(None, (trial.landmark, "on the front" if front else ""))),
        "landmark": trial.landmark,
        "metrics": {name: value for name, value in trial.metrics.items() if isfinite(value)},
        "text": {name: metric_names.text(name, value) for name, value in trial.metrics.items()},
    }


def _again(row: TrainedAgain) -> dict[str, Any]:
    values = {**{name: each.mean for name, each in row.metrics.items()}, **row.costs}
    texts = {name: interval_text(name, each) for name, each in row.metrics.items()}
    return {
        "number": row.trial,
        "digest": row.digest,
        "note": f"{_rebuilt(row)}{metric_names.counted(row.seeds, 'new seed')}",
        "metrics": {name: value for name, value in values.items() if isfinite(value)},
        "bounds": {name: bounds for name, each in row.metrics.items() if (bounds := _bounds(each))},
        "text": {**texts, **{name: metric_names.text(name, value) for name, value in row.costs.items()}},
    }


def _rebuilt(row: TrainedAgain) -> str:
    return f"rebuilt as {short(row.final_digest)}, " if row.final_digest != row.digest else ""


def _bounds(interval: Interval) -> tuple[float, float] | None:
    low, high = interval.low, interval.high
    return (low, high) if low is not None and high is not None and isfinite(low) and isfinite(high) else None


def interval_text(metric: str, interval: Interval) -> str:
    """A mean with its interval, as people read it."""
    mean = metric_names.text(metric, interval.mean)
    bounds = _bounds(interval)
    return f"{mean} [{', '.join(metric_names.text(metric, value) for value in bounds)}]" if bounds else mean


def _for_script(content: Any) -> str:
    """JSON that cannot end the script element it stands in."""
    text = json.dumps(content, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _plotly() -> str:
    from plotly.offline import get_plotlyjs

    script: str = get_plotlyjs()
    return script
