"""The confirmation: the best of a front, trained again with new seeds on the full schedule, scored on test images."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nasplat.artifacts.environment import machine, versions
from nasplat.artifacts.files import file_error, write_json
from nasplat.artifacts.metric_names import counted, unit
from nasplat.artifacts.run_directory import TrialFolder, short
from nasplat.core.architecture import Architecture, fingerprint
from nasplat.core.errors import NasplatError
from nasplat.core.experiment import Experiment
from nasplat.core.experiment import Run as RunSettings
from nasplat.core.space import SearchSpace
from nasplat.jobs.command import command
from nasplat.jobs.confirmation import Confirmation, Confirmed, Estimate, estimate, write_confirmation
from nasplat.jobs.experiment import override, to_plain, validate
from nasplat.jobs.final import final_data, final_experiment
from nasplat.jobs.runs import Candidate, Run, open_trained_run
from nasplat.jobs.yaml_file import read_yaml

if TYPE_CHECKING:
    from nasplat.search.records import Record, TrialSpec

EVALUATE = "nasplat.jobs.final:evaluate"
EVALUATE_ON_RAY = "nasplat.jobs.ray_train:evaluate"
FOLDER = "final"
NOT_MEASURED_ON_IMAGES = ("macs", "params", "peak_bytes", "train_seconds", "loss")


@dataclass(frozen=True)
class Watcher:
    """Is told what happens: how many trainings there are and were done before, the progress of each, and its end.

    `say` is told in words what a person may not expect.
    """

    on_start: Callable[[int, int], None] = lambda total, done: None
    on_progress: Callable[[int, Mapping[str, Any]], None] = lambda number, fields: None
    on_finished: Callable[[int, Record], None] = lambda number, record: None
    say: Callable[[str], None] = lambda text: None


@dataclass(frozen=True)
class Task:
    """One training: a candidate, and how often it was trained before this one."""

    candidate: Candidate
    spec: TrialSpec

    @property
    def folder(self) -> TrialFolder:
        return TrialFolder(Path(self.spec.directory), self.spec.number, short(self.candidate.architecture.digest))


def train(
    directory: Path,
    names: Sequence[str] = (),
    *,
    top: int = 1,
    seeds: int = 1,
    overrides: Iterable[str] = (),
    watcher: Watcher | None = None,
) -> tuple[Run, Confirmation, dict[str, Path]]:
    """Trains candidates of a run again, each with several new seeds, and writes confirmation.json, .csv and the report.

    What was finished before is not trained again; what was interrupted goes on from its checkpoint. Other settings
    have other folders.

    Args:
        directory: of the run.
        names: of the candidates; without any, the best `top` of the front on the first goal.
        seeds: trainings of each; none has the seed of the search.
        overrides: `final.train.epochs=100` and the like.

    Raises:
        NasplatError: the run has no front yet, a candidate does not exist or cannot be rebuilt in the final space, or
            all trainings failed.
    """
    from nasplat.jobs.report import write_results
    from nasplat.search.evaluate import load_data
    from nasplat.search.locks import FileLock
    from nasplat.search.single_tasks import with_single_tasks
    from nasplat.spaces.families import make_space

    watcher = watcher or Watcher()
    run = open_trained_run(directory)
    experiment = final_experiment(_experiment(run, overrides))
    chosen = [run.candidate(name) for name in names] or list(run.front[:top])
    if not chosen:
        raise NasplatError(
            f"{directory} has no front yet", f"{command('status', directory)} tells how far its search is"
        )
    if not names and len(chosen) < top:
        watcher.say(f"the front has {counted(len(chosen), 'network')}, not {top}: all are trained")
    assert isinstance(experiment.space, dict)
    space = make_space(experiment.space, run.space.problem)
    settings = comparable_settings(experiment)
    folder = run.directory / FOLDER / fingerprint(settings)[:8]
    lock = FileLock(folder / ".lock")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        alone = lock.acquire()
    except OSError as error:
        raise file_error(error, folder) from error
    if not alone:
        raise NasplatError(f"another nasplat train is at work in {folder}", "wait for it, or stop it")
    try:
        write_json(folder / "settings.json", settings)
        experiment = with_single_tasks(
            experiment, space, folder, watcher.say, lambda: final_data(load_data(experiment.data))
        )
        tasks = _tasks(run, experiment, space, chosen, seeds, folder)
        records = _run(experiment, tasks, folder, watcher)
    finally:
        lock.release()
    rows = tuple(_confirmed(run, space, candidate, tasks, records) for candidate in chosen)
    if not any(row.seeds for row in rows):
        raise NasplatError(f"all trainings failed: {rows[0].failures[0]}", f"see the logs in {folder}")
    confirmation = Confirmation(settings, versions(), machine(), rows)
    json_path, csv_path = write_confirmation(run.files, confirmation)
    paths = {"table": csv_path, "details": json_path, "report": write_results(run)["report"]}
    return run, confirmation, paths


def rebuilt(candidate: Candidate, space: SearchSpace, larger: SearchSpace) -> Architecture:
    """The candidate in the final space."""
    from nasplat.spaces.families import transfer

    return transfer(candidate.architecture, space, larger)


def _experiment(run: Run, overrides: Iterable[str]) -> Experiment:
    source = read_yaml(run.files.experiment)
    for text in overrides:
        if not text.startswith(("final.", "run.")):
            raise NasplatError(
                f"--set {text}: only final and run can be changed for a search that is done",
                "for instance --set final.train.epochs=100, or --set final.space.channels=32",
            )
        override(source, text)
    return validate(source)


def comparable_settings(experiment: Experiment) -> dict[str, Any]:
    """What must be equal for trainings to stand in one table."""
    plain = to_plain(experiment)
    data = {key: value for key, value in plain["data"].items() if key not in ("path", "resident")}
    train = {key: value for key, value in plain["train"].items() if key != "checkpoint_seconds"}
    return {
        "data": data,
        "space": plain["space"],
        "train": train,
        "score": plain["score"],
        "seed": experiment.search.seed,
    }


def _tasks(
    run: Run, experiment: Experiment, space: SearchSpace, chosen: Sequence[Candidate], seeds: int, folder: Path
) -> list[Task]:
    from nasplat.search.records import TrialSpec
    from nasplat.search.seeds import candidate_seed

    plain = experiment.model_dump(mode="json")
    tasks: list[Task] = []
    # All architectures with one seed first: an interrupted confirmation then says something of each.
    for replicate in range(1, seeds + 1):
        for candidate in chosen:
            spec = TrialSpec(
                number=len(tasks),
                experiment=plain,
                architecture=rebuilt(candidate, run.space, space).to_json(),
                seed=candidate_seed(experiment.search.seed, candidate.architecture.digest, replicate),
                directory=str(folder / candidate.name / f"seed-{replicate}"),
                device=experiment.run.device,
                threads=experiment.run.threads,
            )
            tasks.append(Task(candidate, spec))
    return tasks


def _executor(run: RunSettings, trainings: int) -> str:
    """That of the search; but networks that take all GPUs of this machine are trained one after the other."""
    from nasplat.training.distributed import processes

    if run.executor == "processes" and (trainings == 1 or processes(run.processes, run.device) > 1):
        return "inline"
    return run.executor


def _run(experiment: Experiment, tasks: Sequence[Task], folder: Path, watcher: Watcher) -> dict[int, Record]:
    """The record of every task; those that are there are not made again."""
    from nasplat.search.driver import make_executor
    from nasplat.search.executors import run_all
    from nasplat.search.records import read_record

    records = {task.spec.number: record for task in tasks if (record := read_record(task.folder.path)) is not None}
    left = [task for task in tasks if task.spec.number not in records]
    watcher.on_start(len(tasks), len(records))
    if not left:
        return records
    where = experiment.run.model_copy(
        update={
            "workers": min(experiment.run.workers, len(left)),
            "trial_seconds": None,  # it is meant for the short trainings of the search
            "executor": _executor(experiment.run, len(left)),
        }
    )
    evaluate = EVALUATE
    if where.executor == "ray" and where.processes not in (1, "auto"):  # one network after the other, by many workers
        where, evaluate = where.model_copy(update={"executor": "inline"}), EVALUATE_ON_RAY
    executor = make_executor(experiment.model_copy(update={"run": where}), folder, evaluate)
    return records | run_all(executor, [task.spec for task in left], watcher.on_progress, watcher.on_finished)


def _confirmed(
    run: Run, space: SearchSpace, candidate: Candidate, tasks: Sequence[Task], records: Mapping[int, Record]
) -> Confirmed:
    own = [task for task in tasks if task.candidate is candidate]
    good = [task for task in own if records[task.spec.number].state == "complete"]
    # The weights of the first seed are enough to export; taking the best would be a choice by test images.
    for task in own[1:]:
        task.folder.weights.unlink(missing_ok=True)
    metrics: dict[str, Estimate] = {}
    measured = [records[task.spec.number].metrics for task in good]
    for name in measured[0] if measured else ():
        if name not in NOT_MEASURED_ON_IMAGES:
            shown = f"test_{name}" if name == "accuracy" else name
            metrics[shown] = estimate([one[name] for one in measured], share=unit(shown) == "percent")
    architecture = rebuilt(candidate, run.space, space)
    weights = own[0].folder.weights
    return Confirmed(
        trial=candidate.number,
        digest=candidate.architecture.digest,
        final_digest=architecture.digest,
        seeds=tuple(task.spec.seed for task in good),
        costs=asdict(space.cost(architecture)),
        metrics=metrics,
        failures=tuple(records[task.spec.number].reason for task in own if task not in good),
        weights=run.files.relative(weights) if weights.exists() else "",
    )
