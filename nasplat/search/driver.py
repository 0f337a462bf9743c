"""One search from its first ask to its last tell. Only this process touches the study."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from nasplat.artifacts.run_directory import RunDirectory
from nasplat.core.errors import NasplatError
from nasplat.core.experiment import Experiment
from nasplat.core.front import Score, front
from nasplat.core.space import SearchSpace
from nasplat.search.events import INTERRUPTED, Asked, FrontChanged, Message, OnEvent, Progress, Started, Told
from nasplat.search.executors import POLL_SECONDS, Executor, InlineExecutor
from nasplat.search.history import History, Proposal, counts, goals_of
from nasplat.search.locks import FileLock
from nasplat.search.processes import ProcessExecutor
from nasplat.search.propose import Exhausted, propose
from nasplat.search.records import Evaluate, TrialSpec, read_record
from nasplat.search.run_files import RunFiles
from nasplat.search.seeds import candidate_seed
from nasplat.search.strategies import make_strategy
from nasplat.search.study import SearchStudy, open_study
from nasplat.search.suggestion import Strategy

EVALUATE = "nasplat.search.evaluate:evaluate"
ORPHAN_SECONDS = 30.0
SAME_FAILURES = 5

_COMPARED = ("data", "train", "score")
_ELSEWHERE = {"path", "resident", "checkpoint_seconds"}  # differ between machines, and change no score

Stopped = Literal["trials", "seconds", "interrupted", "exhausted"]


@dataclass(frozen=True)
class Result:
    """How a search ended.

    Args:
        front: the candidates that no other beats, best on the first goal first; `notes["number"]` is the trial's.
        history: every proposal.
        stopped: why it ended.
        seconds: wall time of this session.
    """

    front: tuple[Score, ...]
    history: History
    stopped: Stopped
    seconds: float


def run_search(
    experiment: Experiment,
    run: RunDirectory,
    space: SearchSpace | None = None,
    *,
    resume: bool = False,
    on_event: OnEvent = lambda event: None,
    evaluate: str | Evaluate = EVALUATE,
    executor: Executor | None = None,
    strategy: Strategy | None = None,
) -> Result:
    """Searches until a budget is spent, nothing new is left, or Ctrl-C.

    Ctrl-C once lets running trials finish; twice stops now. Killed at any moment, it goes on with `resume`: trials
    that were running are run again under their numbers, from their checkpoints, and nothing is asked or trained twice.

    Args:
        experiment: with its space resolved to plain data.
        run: an existing folder.
        space: of the experiment; it is read from it where none is given.
        resume: go on with the study that is there; a larger budget extends it.
        on_event: is called with everything that happens.
        evaluate: the evaluation, or `module:function`; worker processes import it by its name.
        executor: in place of the one that the experiment names. It is closed at the end.
        strategy: in place of the one that the experiment names.

    Raises:
        NasplatError: see `open_study` and `propose`; another search is running in this directory; the first
            candidates all fail for the same reason.
        KeyboardInterrupt: Ctrl-C twice.
    """
    if space is None:
        from nasplat.search.evaluate import load_data, load_space_of

        space = load_space_of(experiment, load_data(experiment.data))
    with _alone(run.root), _Interrupts(on_event) as interrupts:
        search = experiment.search
        study = open_study(
            experiment.run.storage,
            run.root,
            name=experiment.name,
            space=space,
            goals=goals_of(experiment.score),
            identity=identity_of(experiment),
            resume=resume,
        )
        if study.cut:
            on_event(Message("the study's last record was incomplete, as after a crash, and was cut off", warning=True))
        strategy = strategy or make_strategy(search.strategy, search.options)
        executor = executor or make_executor(experiment, run, evaluate)
        now = True
        try:
            result = _Search(experiment, run, space, study, strategy, executor, on_event, interrupts).run()
            now = False
            return result
        finally:
            executor.close(now=now)


def identity_of(experiment: Experiment) -> dict[str, Any]:
    """What must be equal for the trials of two sessions to stand in one table."""
    plain = experiment.model_dump(mode="json")
    return {
        "seed": experiment.search.seed,
        "constraints": plain["search"]["constraints"],
        **{name: {key: value for key, value in plain[name].items() if key not in _ELSEWHERE} for name in _COMPARED},
    }


def make_executor(experiment: Experiment, run: RunDirectory, evaluate: str | Evaluate = EVALUATE) -> Executor:
    """The executor that the experiment names."""
    limit = experiment.run.trial_seconds
    if experiment.run.executor == "inline":
        return InlineExecutor(evaluate, trial_seconds=limit)
    return ProcessExecutor(evaluate, experiment.run.workers, trial_seconds=limit, lock=run.root / WORKERS_LOCK)


DRIVER_LOCK = ".driver.lock"
WORKERS_LOCK = ".workers.lock"


def running_process(run_directory: Path) -> int | None:
    """The process id of the search that is running in this directory; None where none is."""
    path = run_directory / DRIVER_LOCK
    if not path.exists():
        return None
    probe = FileLock(path)
    if probe.acquire(shared=True):
        probe.release()
        return None
    return int(path.read_text() or 0)


@contextmanager
def _alone(run_directory: Path) -> Iterator[None]:
    """Keeps a second search out of the directory, and waits for the orphaned workers of a killed one to be gone."""
    try:
        driver, workers = FileLock(run_directory / DRIVER_LOCK), FileLock(run_directory / WORKERS_LOCK)
        if not driver.acquire():
            raise NasplatError(
                f"a search is running in {run_directory} (process {running_process(run_directory)})",
                "wait for it, or stop it with Ctrl-C",
            )
        driver.write(str(os.getpid()))
        if not workers.acquire(timeout=ORPHAN_SECONDS):
            raise NasplatError(
                f"worker processes of an earlier search still run in {run_directory}", "end them, and try again"
            )
        workers.release()
    except OSError as error:
        raise NasplatError(
            f"the run directory {run_directory} cannot be written: {error.strerror}", "choose another one"
        ) from error
    try:
        yield
    finally:
        driver.release()


class _Interrupts:
    """Counts Ctrl-C: the first is remembered, the second raises KeyboardInterrupt."""

    def __init__(self, on_event: OnEvent) -> None:
        self.count = 0
        self._on_event = on_event
        self._before: Any = None

    def __enter__(self) -> _Interrupts:
        if threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGINT, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        if self._before is not None:
            signal.signal(signal.SIGINT, self._before)

    def _handle(self, *_: object) -> None:
        self.count += 1
        if self.count > 1:
            raise KeyboardInterrupt
        self._on_event(INTERRUPTED)


class _Search:
    """The loop, and what it must remember while it runs. All of it can be rebuilt from the study."""

    def __init__(
        self,
        experiment: Experiment,
        run: RunDirectory,
        space: SearchSpace,
        study: SearchStudy,
        strategy: Strategy,
        executor: Executor,
        on_event: OnEvent,
        interrupts: _Interrupts,
    ) -> None:
        self.experiment = experiment
        self.plain = experiment.model_dump(mode="json")
        self.run_directory = run
        self.files = RunFiles(run, experiment.run.disk_mb)
        self.space = space
        self.study = study
        self.goals = study.goals
        self.strategy = strategy
        self.executor = executor
        self.on_event = on_event
        self.interrupts = interrupts
        # Twice as many as must be: or a worker would often wait for the slowest of the others.
        self.hidden = 2 * (experiment.run.workers - 1)
        self.running: set[int] = set()
        self.awaiting: list[int] = []
        self.exhausted = False
        self.started = time.monotonic()
        self.earlier = study.earlier_seconds() if experiment.search.seconds is not None else 0.0
        self.front = tuple(front([self._score(one) for one in study.history.complete], self.goals))
        self.reasons: list[str] = []

    def run(self) -> Result:
        self._take_up()
        while True:
            while len(self.running) < self.executor.slots and self._may_ask():
                self._ask()
            if not self.running:
                break
            for finished in self.executor.wait(POLL_SECONDS, self._progress):
                self.running.discard(finished.number)
                self._told(self.study.tell(finished.number, finished.record))
                self._write_files()
        stopped = self._reason_to_stop()
        assert stopped is not None
        self._write_files(stopped)
        return Result(self.front, self.study.history, stopped, time.monotonic() - self.started)

    def _take_up(self) -> None:
        """Goes on with what an earlier session left: finished but not told, running, or awaiting an answer."""
        to_run, self.awaiting = self.study.open_numbers()
        for number in to_run:
            proposal = self.study.proposal(number)
            record = read_record(self._directory(proposal))
            if record is not None:
                self._told(self.study.tell(number, record))
            else:
                self._start(proposal, again=True)
        self._answer_repeats()

    def _reason_to_stop(self) -> Stopped | None:
        budget = self.experiment.search
        if self.interrupts.count:
            return "interrupted"
        if self.exhausted:
            return "exhausted"
        if budget.trials is not None and self.study.history.evaluated >= budget.trials:
            return "trials"
        if budget.seconds is not None and self.earlier + time.monotonic() - self.started >= budget.seconds:
            return "seconds"
        return None

    def _may_ask(self) -> bool:
        """Whether all that the next proposal may know is known; see `History.before_last`."""
        if self._reason_to_stop() is not None:
            return False
        begun = [proposal.number for proposal in self.study.history if counts(proposal)]
        return self.running.isdisjoint(begun[: max(0, len(begun) - self.hidden)])

    def _ask(self) -> None:
        search = self.experiment.search
        history = self.study.history.before_last(self.hidden)
        draft = propose(self.strategy, history, self.space, self.goals, search.constraints, search.seed)
        if isinstance(draft, Exhausted):
            self.exhausted = True
            self.on_event(Message(f"the search ends early: {draft.reason}", warning=True))
            return
        original = None if draft.repeat_of is None else self.study.proposal(draft.repeat_of.number)
        proposal = self.study.ask(replace(draft, repeat_of=original))
        self.on_event(Asked(proposal, draft.architecture))
        if original is not None and original.state == "running":
            self.awaiting.append(proposal.number)
        elif proposal.state == "running":
            self._start(proposal)

    def _start(self, proposal: Proposal, *, again: bool = False) -> None:
        settings = self.experiment.run
        self.running.add(proposal.number)
        self.on_event(Started(proposal, again))
        self.executor.submit(
            TrialSpec(
                number=proposal.number,
                experiment=self.plain,
                architecture=self.space.canonical(proposal.values).to_json(),
                seed=candidate_seed(self.experiment.search.seed, proposal.digest),
                directory=str(self._directory(proposal)),
                device=settings.device,
                threads=settings.threads,
            )
        )

    def _progress(self, number: int, fields: Mapping[str, Any]) -> None:
        self.on_event(Progress(number, fields))

    def _told(self, proposal: Proposal) -> None:
        history = self.study.history
        self.on_event(Told(proposal, history.evaluated - len(self.running), self.experiment.search.trials))
        self._answer_repeats()
        if proposal.state == "complete":
            known = {score.notes["number"] for score in self.front}
            self.front = tuple(front([*self.front, self._score(proposal)], self.goals))
            if {score.notes["number"] for score in self.front} != known:
                self.on_event(FrontChanged(self.front))
        self._stop_if_all_fail(proposal)

    def _answer_repeats(self) -> None:
        """Tells repeats whose original has just been told."""
        self.awaiting = [number for number in self.awaiting if self.study.tell_repeat(number) is None]

    def _write_files(self, status: str = "running") -> None:
        seconds = time.monotonic() - self.started
        for number in self.files.update(self.study.history, self.front, len(self.running), seconds, status):
            text = f"the weights of trial {number} were deleted: run.disk_mb is spent on better candidates"
            self.on_event(Message(text, warning=True))

    def _stop_if_all_fail(self, proposal: Proposal) -> None:
        """The first candidates all fail for one reason: then it is not the candidates."""
        if len(self.reasons) < SAME_FAILURES:
            self.reasons.append(proposal.reason if proposal.state == "failed" else "")
            if len(self.reasons) == SAME_FAILURES and len(set(self.reasons)) == 1 and self.reasons[0]:
                raise NasplatError(
                    f"the first {SAME_FAILURES} candidates all failed: {self.reasons[0]}",
                    f"see {self._directory(proposal)}; mend the cause and start a new run",
                )

    def _score(self, proposal: Proposal) -> Score:
        return Score(self.space.canonical(proposal.values), proposal.metrics, {"number": proposal.number})

    def _directory(self, proposal: Proposal) -> Path:
        return self.run_directory.trial(proposal.number, proposal.digest).path
