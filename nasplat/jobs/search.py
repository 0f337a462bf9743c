"""A search from an experiment file to a front, a report and exported networks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from nasplat.artifacts.run_directory import RunDirectory, create_run
from nasplat.core.errors import NasplatError
from nasplat.core.experiment import Experiment
from nasplat.core.front import Goal, Score
from nasplat.jobs.command import command
from nasplat.jobs.experiment import check_train, load_experiment
from nasplat.jobs.runs import (
    Candidate,
    Run,
    add_origin,
    discard,
    is_run,
    nothing_evaluated,
    open_run,
    read_experiment,
    remember_origin,
)
from nasplat.jobs.yaml_file import shown

if TYPE_CHECKING:
    from nasplat.artifacts.ranking import Ranking
    from nasplat.core.space import SearchSpace
    from nasplat.data.datasets import Dataset
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
        rankings: how well the scores ranked by which candidates were chosen or screened.
    """

    front: tuple[Score, ...]
    goals: tuple[Goal, ...]
    complete: int
    summary: str
    seconds: float
    paths: dict[str, Path]
    next_command: str
    rankings: list[Ranking]


def prepare(path: Path, run: Path | None, *, resume: bool = False, overrides: Iterable[str] = ()) -> Prepared:
    """Reads and checks an experiment, and finds where its run goes. Needs no torch.

    Args:
        path: the experiment file, or a run directory to go on with.
        run: the run directory; None stands for runs/NAME, or for `path` where that is one.
        resume: whether a search that is there may go on.
        overrides: `section.key=value` each.

    Raises:
        NasplatError: something is wrong with the experiment, or the run directory holds results and `resume` is off.
    """
    if is_run(path):
        run = run or path
        add_origin(path)
        path = RunDirectory(path).experiment
    experiment = load_experiment(path, overrides)
    directory = run or Path("runs") / experiment.name
    if is_run(directory) and not resume and not nothing_evaluated(directory):
        raise NasplatError(
            f"{shown(directory)} holds a search already",
            "--resume goes on with it (with --trials N it is extended); --run DIR starts another one elsewhere",
        )
    if directory.is_dir() and not is_run(directory) and any(directory.iterdir()):
        raise NasplatError(
            f"{shown(directory)} holds other files and no search", "choose another folder with --run DIR"
        )
    return Prepared(experiment, path.resolve(), directory, resume)


def run_and_report(
    prepared: Prepared,
    *,
    export: ExportWhat = "best",
    on_event: Callable[[Event], None] = lambda event: None,
    say: Say = lambda text: None,
) -> Outcome:
    """Searches, checks a ranking by weights, writes table, pictures and report of the front, and exports networks.

    Args:
        prepared: see `prepare`.
        export: which networks of the front are written as ONNX and safetensors.
        on_event: is called with everything that happens.
        say: is told in words what is done after the search.

    Raises:
        NasplatError: see `nasplat.search.driver.run_search` and `nasplat.training.check.check`; or the budget is spent
            and no candidate is on the front.
        KeyboardInterrupt: Ctrl-C twice; what was finished is safe.
    """
    import time

    from nasplat.jobs.ranking import check_ranking, rankings
    from nasplat.jobs.report import write_results
    from nasplat.search.driver import run_search
    from nasplat.search.events import Asked, Started

    started = time.monotonic()
    experiment, directory = prepared.experiment, prepared.directory
    dataset, space = _subject(experiment)
    if is_run(directory) and not prepared.resume:
        discard(directory)
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
    if extended:  # nothing was left to try, and there may be something left to check, or in another way
        files.write_experiment(experiment.model_copy(update={"search": read_experiment(directory).search}))
    run = open_run(directory)
    exported: list[Path] = []
    try:
        if result.stopped != "interrupted":
            check_ranking(run, on_event, say)
        if export != "none" and run.front and dataset is not None:
            exported = _export(run, run.front[:1] if export == "best" else run.front, dataset, say)
    finally:  # a network that cannot be exported is no reason to have no report
        say("writing the report")
        paths = write_results(run)
    if exported:
        paths["export" if len(exported) == 1 else "exports"] = exported[0] if len(exported) == 1 else files.exports
    if not run.front and result.stopped != "interrupted":
        raise NasplatError(f"{_summary(run, result)}: there is no front", _why_none(run))
    return Outcome(
        front=tuple(Score(one.architecture, one.metrics, {"number": one.number}) for one in run.front),
        goals=run.goals,
        complete=len(run.candidates),
        summary=_summary(run, result),
        seconds=time.monotonic() - started,
        paths=paths,
        next_command=_next(run, result),
        rankings=rankings(run),
    )


def _subject(experiment: Experiment) -> tuple[Dataset | None, SearchSpace]:
    """The images and the space, checked together; a table comes without images."""
    if experiment.tabular:
        from nasplat.search.table import load_table

        return None, load_table(experiment)
    from nasplat.data.datasets import load_dataset
    from nasplat.spaces.families import make_space
    from nasplat.training.check import check

    assert isinstance(experiment.space, dict)
    dataset = load_dataset(experiment.data)
    space = make_space(experiment.space, dataset.problem)
    check(dataset, experiment.train, experiment.score)
    if experiment.scored_by_source and experiment.weights is not None and experiment.weights.check:
        check(dataset, check_train(experiment), experiment.score)
    return dataset, space


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


def _export(run: Run, chosen: Sequence[Candidate], dataset: Dataset, say: Say) -> list[Path]:
    """The folders of exported candidates; those that an earlier session exported are left as they are."""
    from nasplat.jobs.export import export_candidates

    folders = {one.number: run.files.exports / one.name for one in chosen}
    left = [one for one in chosen if not (folders[one.number] / "model.onnx").is_file()]
    if left:
        say(f"exporting {len(left)} of {len(run.front)} networks on the front as ONNX")
        export_candidates(run, left, formats=("safetensors", "onnx"), dataset=dataset)
    return list(folders.values())


def _why_none(run: Run) -> str:
    """What came nearest to a result, for a search without one."""
    from nasplat.search.constraints import excess

    refused = [one for one in run.history if one.state == "infeasible" and one.violations]
    if refused:
        nearest = min(refused, key=lambda one: excess(one.violations))
        return f"the nearest was trial {nearest.number}: {nearest.reason}"
    failed = [one for one in run.history if one.state == "failed"]
    return f"trial {failed[0].number} failed: {failed[0].reason}" if failed else "give the search a larger budget"


_OTHERS = {
    "failed": "failed",
    "infeasible": "against the constraints",
    "repeat": "answered from the record",
    "stopped": "stopped early",
    "screened": "screened before training",
    "running": "unfinished",
}


def _next(run: Run, result: Result) -> str:
    directory = shown(run.directory)
    if result.stopped == "interrupted":
        return command("search", directory, "--resume")
    if run.experiment.tabular:
        return ""
    top = min(3, len(run.front))
    return command("train", directory, "--top", top, "--seeds", 3) if run.front else ""
