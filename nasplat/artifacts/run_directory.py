"""Where the files of a run lie.

```
RUN/
  experiment.yaml        the resolved experiment
  study.journal          the Optuna study (study.db with SQLite)
  state.json             how far the search is
  trials/0007-1a2b3c4d/  one folder a trial: number and first digits of the digest
    architecture.json  record.json  log.txt  weights.safetensors  checkpoint/
  front.csv              the Pareto front as a table
  front/                 its architectures, cells as SVG, and a picture of it
  exports/               verified exports, one folder an architecture
  report.html            everything on one page
  ranking.csv            how well the scores ranked by which candidates were screened or chosen
  check/19ad756b/        networks trained alone to check that, one folder a candidate and one a training's settings
```
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from nasplat.artifacts.files import file_error, read_json, write_json, write_text
from nasplat.core.architecture import Architecture
from nasplat.core.errors import NasplatError
from nasplat.core.experiment import Experiment

_TRIAL_NAME = re.compile(r"(\d+)-([0-9a-f]{8})")
_HEADER = "# The experiment of this run with all its defaults, as it was carried out.\n"


def short(digest: str) -> str:
    """The first 8 digits of a digest, which stand for it in names and on screens."""
    return digest[:8]


@dataclass(frozen=True, slots=True)
class TrialFolder:
    """The folder of one trial; a readable record of it that needs nasplat for nothing.

    Args:
        path: of the folder.
        number: of the trial.
        digest: the first 8 digits of the architecture's digest.
    """

    path: Path
    number: int
    digest: str

    @property
    def architecture(self) -> Path:
        return self.path / "architecture.json"

    @property
    def record(self) -> Path:
        return self.path / "record.json"

    @property
    def log(self) -> Path:
        return self.path / "log.txt"

    @property
    def weights(self) -> Path:
        return self.path / "weights.safetensors"

    @property
    def checkpoint(self) -> Path:
        """A folder; it is there only while the trial is not finished."""
        return self.path / "checkpoint"

    def write_architecture(self, architecture: Architecture) -> None:
        """Raises NasplatError: the disk is full or cannot be written to."""
        write_json(self.architecture, architecture.to_json())

    def read_architecture(self) -> Architecture:
        """Raises NasplatError: the file is missing, damaged, or of another schema version."""
        return Architecture.from_json(read_json(self.architecture))

    def read_record(self) -> dict[str, Any] | None:
        """What was measured; None where the trial has not finished. Raises NasplatError: the file is damaged."""
        return read_json(self.record) if self.record.exists() else None


@dataclass(frozen=True, slots=True)
class RunDirectory:
    """The layout of a run. Making one touches no file; see `create_run`."""

    root: Path

    @property
    def experiment(self) -> Path:
        return self.root / "experiment.yaml"

    @property
    def journal(self) -> Path:
        return self.root / "study.journal"

    @property
    def database(self) -> Path:
        return self.root / "study.db"

    @property
    def state(self) -> Path:
        return self.root / "state.json"

    @property
    def trials(self) -> Path:
        return self.root / "trials"

    @property
    def front_csv(self) -> Path:
        return self.root / "front.csv"

    @property
    def front(self) -> Path:
        return self.root / "front"

    @property
    def ranking_csv(self) -> Path:
        return self.root / "ranking.csv"

    @property
    def check(self) -> Path:
        """Of the networks that were trained alone to check a ranking."""
        return self.root / "check"

    @property
    def exports(self) -> Path:
        return self.root / "exports"

    @property
    def report(self) -> Path:
        return self.root / "report.html"

    def trial(self, number: int, digest: str) -> TrialFolder:
        """The folder of a trial, whether it is there or not."""
        return TrialFolder(self.trials / f"{number:04d}-{short(digest)}", number, short(digest))

    def trial_folders(self) -> Iterator[TrialFolder]:
        """The folders that are there, by number."""
        if not self.trials.is_dir():
            return
        found = ((_TRIAL_NAME.fullmatch(path.name), path) for path in self.trials.iterdir())
        matches = [(int(match[1]), match[2], path) for match, path in found if match]
        for number, digest, path in sorted(matches):
            yield TrialFolder(path, number, digest)

    def find_trial(self, name: str | int) -> TrialFolder:
        """The trial of a number, or of the first digits (4 or more) of a digest.

        Raises:
            NasplatError: no trial, or several, go by this name.
        """
        number = int(name) if str(name).isdecimal() and len(str(name)) < 8 else None
        wanted = str(name).lower()[:8]
        by_number = [trial for trial in self.trial_folders() if trial.number == number]
        by_digest = [trial for trial in self.trial_folders() if len(wanted) >= 4 and trial.digest.startswith(wanted)]
        found = by_number or by_digest
        if len(found) == 1:
            return found[0]
        if found:
            which = ", ".join(f"{trial.number} ({trial.digest})" for trial in found)
            raise NasplatError(f"{name!r} can be several trials: {which}", "give the number of one")
        raise NasplatError(f"{self.root} has no trial {name!r}", f"the folders in {self.trials} tell which there are")

    def write_experiment(self, experiment: Experiment | Mapping[str, Any]) -> None:
        """Raises NasplatError: the disk is full or cannot be written to."""
        data = experiment.model_dump(mode="json") if isinstance(experiment, Experiment) else dict(experiment)
        write_text(self.experiment, _HEADER + yaml.safe_dump(data, sort_keys=False, allow_unicode=True))

    def write_state(self, state: Mapping[str, Any]) -> None:
        """How far the search is, JSON-plain. Raises NasplatError: the disk is full or cannot be written to."""
        write_json(self.state, dict(state))

    def read_state(self) -> dict[str, Any]:
        """What `write_state` wrote; empty where there is nothing yet. Raises NasplatError: the file is damaged."""
        return read_json(self.state) if self.state.exists() else {}

    def relative(self, path: Path) -> str:
        """A path as it is written in files of the run, so that the run can be moved."""
        return path.relative_to(self.root).as_posix()


def create_run(root: Path | str, experiment: Experiment | Mapping[str, Any]) -> RunDirectory:
    """Makes the folders of a new run, or goes into those of an earlier one, and writes the resolved experiment.

    Raises:
        NasplatError: the path is a file, or cannot be written to.
    """
    run = RunDirectory(Path(root))
    try:
        run.trials.mkdir(parents=True, exist_ok=True)
    except FileExistsError as error:
        raise NasplatError(f"{root} is a file, not a run directory", "choose another folder") from error
    except OSError as error:
        raise file_error(error, run.trials, "make") from error
    run.write_experiment(experiment)
    return run


def keep_front_weights(
    run: RunDirectory, front: Sequence[int], finished: Collection[int], budget_bytes: int | None = None
) -> list[TrialFolder]:
    """Deletes the weights (and what is left of checkpoints) of finished trials that are not on the front.

    The oldest go first. Where the front alone is over the budget, its last members lose their weights too, never its
    first. Trials that are not in `finished` are left alone: the study does not know yet whether they join the front.

    Args:
        run: the run.
        front: numbers of the trials on the front, the most important first.
        finished: numbers of all trials whose result the study has.
        budget_bytes: of the front's weights together; None is no limit.

    Returns:
        the members of the front that had to lose their weights.

    Raises:
        NasplatError: a file cannot be deleted.
    """
    rank = {number: position for position, number in enumerate(front)}
    folders = {trial.number: trial for trial in run.trial_folders() if trial.number in {*finished, *front}}
    for trial in folders.values():
        if trial.number not in rank:
            _delete(trial.weights)
        _delete(trial.checkpoint)
    if budget_bytes is None:
        return []
    members = sorted((trial for trial in folders.values() if trial.number in rank), key=lambda each: rank[each.number])
    sizes = [trial.weights.stat().st_size if trial.weights.exists() else 0 for trial in members]
    lost = []
    while len(members) > 1 and sum(sizes) > budget_bytes:
        trial, size = members.pop(), sizes.pop()
        if size:
            _delete(trial.weights)
            lost.append(trial)
    return lost


def _delete(path: Path) -> None:
    try:
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    except OSError as error:
        raise file_error(error, path, "delete") from error
