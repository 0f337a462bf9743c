"""A search from an experiment file to a front, a report and exported networks."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from nasplat.artifacts.run_directory import RunDirectory, create_run
from nasplat.core.errors import NasplatError
from nasplat.core.experiment import Experiment
from nasplat.core.front import Goal, Score
from nasplat.jobs.experiment import load_experiment
from nasplat.jobs.runs import Run, add_origin, is_run, open_run, remember_origin
from nasplat.jobs.yaml_file import shown

if TYPE_CHECKING:
    from nasplat.search.driver import Result
    from nasplat.search.events import Event

ExportWhat = Literal["best", "front", "none"]
Say = Callable[[str], None]


@dataclass(frozen=True)
class Prepared:
    """A search that can begin: everything was checked that can be checked before the data are read."""

    experiment: Experiment
    origin: Path
    directory: Path
    resume: bool


@dataclass(frozen=True)
class Outcome:
    """What a search left.

    Args:
        front: best on the first goal first; `notes["number"]` is the trial's.
        goals: the axes of the front.
        complete: how many candidates were evaluated to their end.
        summary: how it ended, in words.
        seconds: wall time of this session, exports and report included.
        paths: what a person looks at next, by name.
        next_command: how to go on.
    """

    front: tuple[Score, ...]
    goals: tuple[Goal, ...]
    complete: int
    summary: str
    seconds: float
    paths: dict[str, Path]
    next_command: str


def prepare(path: Path, run: Path | None, *, resume: bool = False, overrides: Iterable[str] = ()) -> Prepared:
    """Reads and checks an experiment, and finds where its run goes. Needs no torch.

    Args:
        path: the experiment file, or a run directory to go on with.
        run: the run directory; None stands for runs/NAME, or for `path` where that is one.
        resume: whether a search that is there may go on.
        overrides: `section.key=value` each.

    Raises:
        NasplatError: something is wrong with the experiment, or the run directory holds a search and `resume` is off.
    """
    if is_run(path):
        run = run or path
        add_origin(path)
        path = RunDirectory(path).experiment
    experiment = load_experiment(path, overrides)
    directory = run or Path("runs") / experiment.name
    if is_run(directory) and not resume:
        raise NasplatError(
            f"{shown(directory)} holds a search already",
            "--resume goes on with it (with --trials N it is extended); --run DIR starts another one elsewhere",
        )
    if directory.is_dir() and not is_run(directory) and any(directory.iterdir()):
        raise NasplatError(
            f"{shown(directory)} holds other files and no search", "choose another folder with --run DIR"
        )
    return Prepared(experiment, path.resolve(), directory, resume)


def run_and_report(prepared: Prepared, *, export: ExportWhat, on_event: Callable[[Event], None], say: Say) -> Outcome:
    """Searches, then writes the table, the pictures and the report of the front, and exports networks.

    Raises:
        NasplatError: see `nasplat.search.driver.run_search`.
        KeyboardInterrupt: Ctrl-C twice; what was finished is safe.
    """
    import time

    from nasplat.data.datasets import load_dataset
    from nasplat.jobs.report import write_results
    from nasplat.search.driver import run_search
    from nasplat.search.events import Asked, Started
    from nasplat.spaces.families import make_space

    started = time.monotonic()
    experiment, directory = prepared.experiment, prepared.directory
    assert isinstance(experiment.space, dict)
    dataset = load_dataset(experiment.data)
    space = make_space(experiment.space, dataset.problem)
    extended = is_run(directory)
    files = RunDirectory(directory) if extended else create_run(directory, experiment)
    remember_origin(files, prepared.origin)

    def watch(event: Event) -> None:
        nonlocal extended
        if extended and isinstance(event, Asked | Started):
            # Not before: only now is it known that the study takes this experiment, with its new budget.
            files.write_experiment(experiment)
            extended = False
        on_event(event)

    result = run_search(experiment, files, space, resume=prepared.resume, on_event=watch)
    run = open_run(directory)
    paths = write_results(run)
    if export != "none" and run.front:
        from nasplat.jobs.export import export_candidates

        chosen = run.front[:1] if export == "best" else run.front
        say(f"exporting {len(chosen)} of {len(run.front)} networks on the front as ONNX")
        exported = export_candidates(run, chosen, formats=("safetensors", "onnx"), dataset=dataset)
        paths["export" if len(exported) == 1 else "exports"] = exported[0] if len(exported) == 1 else files.exports
    return Outcome(
        front=tuple(Score(one.architecture, one.metrics, {"number": one.number}) for one in run.front),
        goals=run.goals,
        complete=len(run.candidates),
        summary=_summary(run, result),
        seconds=time.monotonic() - started,
        paths=paths,
        next_command=_next(run, result),
    )


def _summary(run: Run, result: Result) -> str:
    why = {
        "trials": "the budget of trials is spent",
        "seconds": "the budget of time is spent",
        "interrupted": "interrupted",
        "exhausted": "nothing new is left to try",
    }[result.stopped]
    states = [one.state for one in run.history]
    others = [f"{states.count(state)} {word}" for state, word in _OTHERS.items() if state in states]
    return f"{why}: {len(run.candidates)} evaluated" + "".join(f", {other}" for other in others)


_OTHERS = {
    "failed": "failed",
    "infeasible": "against the constraints",
    "repeat": "answered from the record",
    "running": "unfinished",
}


def _next(run: Run, result: Result) -> str:
    directory = shown(run.directory)
    if result.stopped == "interrupted":
        return f"nasplat search {directory} --resume"
    return f"nasplat train {directory} --top 3 --seeds 3" if run.front else ""
