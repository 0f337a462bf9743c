"""A run directory, read: its experiment, its space, and what was found in it."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nasplat.artifacts.run_directory import RunDirectory, TrialFolder
from nasplat.core.architecture import Architecture
from nasplat.core.errors import NasplatError, nearest
from nasplat.core.experiment import Experiment
from nasplat.core.front import Goal, Score, front
from nasplat.core.problem import Problem
from nasplat.core.space import SearchSpace
from nasplat.jobs.command import command
from nasplat.jobs.experiment import add_user_code, validate
from nasplat.jobs.yaml_file import read_yaml, shown

if TYPE_CHECKING:
    from nasplat.search.history import History, Proposal


@dataclass(frozen=True)
class Candidate:
    """One evaluated architecture of a run, and its folder."""

    number: int
    architecture: Architecture
    metrics: Mapping[str, float]
    folder: TrialFolder

    @property
    def name(self) -> str:
        return self.folder.path.name


@dataclass(frozen=True)
class Run:
    """What is read of a run directory; nothing in it is changed.

    Args:
        finished: number of every trial to the wall time of the search at its end.
    """

    directory: Path
    experiment: Experiment
    space: SearchSpace
    goals: tuple[Goal, ...]
    history: History
    finished: Mapping[int, float]

    @property
    def files(self) -> RunDirectory:
        return RunDirectory(self.directory)

    @property
    def seconds(self) -> float:
        """The wall time of the search."""
        return max(self.finished.values(), default=0.0)

    @cached_property
    def candidates(self) -> tuple[Candidate, ...]:
        """Every architecture that was evaluated to its end, in the order of the trials."""
        return tuple(self._candidate(proposal) for proposal in self.history.complete)

    @cached_property
    def front(self) -> tuple[Candidate, ...]:
        """The candidates that no other beats, best on the first goal first."""
        scores = [Score(one.architecture, one.metrics, {"candidate": one}) for one in self.candidates]
        return tuple(score.notes["candidate"] for score in front(scores, self.goals))

    def candidate(self, name: str) -> Candidate:
        """A candidate by the number of its trial, the first letters of its digest, or the name of its folder."""
        for one in self.candidates:
            if name in (one.name, str(one.number), f"{one.number:04d}"):
                return one
        found = [one for one in self.candidates if len(name) >= 4 and one.architecture.digest.startswith(name)]
        if len(found) == 1:
            return found[0]
        names = [one.name for one in self.candidates]
        front = ", ".join(str(one.number) for one in self.front[:8])
        raise NasplatError(
            f"{shown(self.directory)} has no evaluated architecture {name!r}",
            f"{nearest(name, names)}by the number of its trial: those on the front are {front}"
            if names
            else "none was evaluated to its end yet",
        )

    def _candidate(self, proposal: Proposal) -> Candidate:
        architecture = self.space.canonical(proposal.values)
        return Candidate(
            proposal.number, architecture, proposal.metrics, self.files.trial(proposal.number, proposal.digest)
        )


def open_trained_run(directory: Path) -> Run:
    """Reads a run whose networks were trained.

    Raises:
        NasplatError: see `open_run`; or the run was answered from a table.
    """
    run = open_run(directory)
    if run.experiment.tabular:
        raise NasplatError(
            f"{shown(directory)} was answered from a table: it has neither weights nor images to train on",
            f"its architectures lie in {shown(run.files.front)}; search the space of their networks to train them",
        )
    return run


def is_run(path: Path) -> bool:
    return RunDirectory(path).experiment.is_file()


def nothing_evaluated(directory: Path) -> bool:
    """Whether a run has nothing that anyone would miss: no result, no checkpoint, and nobody who is at work in it."""
    from nasplat.search.session import running_process

    folders = list(RunDirectory(directory).trial_folders())
    if any(folder.checkpoint.exists() for folder in folders) or running_process(directory) is not None:
        return False
    return all((folder.read_record() or {}).get("state") in (None, "failed") for folder in folders)


def discard(directory: Path) -> None:
    """Removes the search of a run directory, with all that was trained or produced before it; exports stay.

    Raises:
        NasplatError: its storage cannot be opened or written to.
    """
    from nasplat.search import produce, single_tasks, weights
    from nasplat.search.storage import location, open_storage, storage_errors

    files = RunDirectory(directory)
    experiment = read_experiment(directory)
    storage = open_storage(experiment.run.storage, directory)
    with storage_errors(location(experiment.run.storage, directory)), suppress(KeyError):
        storage.delete_study(storage.get_study_id_from_name(experiment.name))
    # What was made by the old settings would otherwise be taken for what the new ones make.
    made_before = [files.root / one.FOLDER for one in (produce, single_tasks, weights)]
    for folder in (files.trials, files.check, *made_before):
        shutil.rmtree(folder, ignore_errors=True)
    for path in (files.state, files.experiment):
        path.unlink(missing_ok=True)


def remember_origin(files: RunDirectory, experiment: Path) -> None:
    """Notes where the experiment file lay, since functions of the user's own are imported from there."""
    state = files.read_state()
    if "origin" not in state:
        files.write_state({**state, "origin": str(experiment)})


def add_origin(directory: Path) -> None:
    """Makes what the experiment of a run could import importable again."""
    add_user_code(Path(RunDirectory(directory).read_state().get("origin", directory / "experiment.yaml")))


def read_experiment(directory: Path) -> Experiment:
    """The resolved experiment of a run.

    Raises:
        NasplatError: the folder is no run directory.
    """
    if not is_run(directory):
        runs = sorted(path for path in Path("runs").glob("*") if is_run(path))
        known = ", ".join(str(run) for run in runs[:8])
        raise NasplatError(
            f"{directory} is no run directory" if directory.is_dir() else f"there is no run directory {directory}",
            f"{nearest(str(directory), map(str, runs))}there are {known}"
            if runs
            else f"{command('search', 'EXPERIMENT')} makes one",
        )
    return validate(read_yaml(RunDirectory(directory).experiment))


def open_run(directory: Path) -> Run:
    """Reads a run, also one whose search is running.

    Raises:
        NasplatError: the folder is no run directory, or its study cannot be read.
    """
    from nasplat.search.history import goals_of
    from nasplat.search.storage import location, open_storage, storage_errors
    from nasplat.search.study import IDENTITY, SearchStudy
    from nasplat.spaces.families import make_space

    experiment = read_experiment(directory)
    add_origin(directory)
    goals = goals_of(experiment.score)
    storage = open_storage(experiment.run.storage, directory, read_only=True)
    where = location(experiment.run.storage, directory)
    with storage_errors(where):
        study_id = storage.get_study_id_from_name(experiment.name)
        attributes: dict[str, Any] = storage.get_study_user_attrs(study_id)
    # The problem is read from the study, so that neither the data nor torch is needed to look at a run.
    problem = Problem.from_json(attributes[IDENTITY]["space"]["problem"])
    assert isinstance(experiment.space, dict)
    space = make_space(experiment.space, problem)
    study = SearchStudy(storage, study_id, space, goals, where)
    return Run(directory, experiment, space, goals, study.history, study.finished_seconds())
