"""One search from its first ask to its last tell. Only this process touches the study."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from nasplat.artifacts.run_directory import RunDirectory
from nasplat.core.errors import NasplatError
from nasplat.core.experiment import Experiment
from nasplat.core.front import Score, front
from nasplat.core.space import SearchSpace
from nasplat.search.constraints import absolute, excess
from nasplat.search.events import Asked, FrontChanged, Judged, Message, OnEvent, Progress, Started, Told
from nasplat.search.executors import POLL_SECONDS, Executor, InlineExecutor
from nasplat.search.history import History, Proposal, goals_of
from nasplat.search.processes import ProcessExecutor
from nasplat.search.produce import produce, producers
from nasplat.search.propose import Exhausted, drafted, propose
from nasplat.search.records import Evaluate, Record, TrialSpec, read_record
from nasplat.search.references import references
from nasplat.search.run_files import RunFiles
from nasplat.search.rungs import Rungs
from nasplat.search.screening import PREDICTOR, Prediction, dropped, threshold
from nasplat.search.seeds import candidate_seed
from nasplat.search.session import WORKERS_LOCK, Interrupts, alone
from nasplat.search.single_tasks import with_single_tasks
from nasplat.search.strategies import make_strategy
from nasplat.search.study import Draft, SearchStudy, open_study
from nasplat.search.suggestion import Strategy
from nasplat.search.weights import with_weights_trained
from nasplat.search.within import within

TRAIN_AND_JUDGE = "nasplat.search.evaluate:evaluate"
LOOK_UP = "nasplat.search.table:evaluate"
SAME_FAILURES = 5

_COMPARED = ("data", "train", "score", "weights")
# Differ between machines, or come after the search; they change no score of a candidate.
_ELSEWHERE = {"path", "resident", "checkpoint_seconds", "check", "check_train"}

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
    evaluate: str | Evaluate | None = None,
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
        evaluate: in place of training and judging, or of looking up in the table of a tabular space: a function, or
            `module:function`; worker processes import it by its name.
        executor: in place of the one that the experiment names. It is closed at the end.
        strategy: in place of the one that the experiment names.

    Raises:
        NasplatError: see `open_study` and `propose`; another search is running in this directory; the first
            candidates all fail for the same reason.
        KeyboardInterrupt: Ctrl-C twice.
    """
    if space is None:
        space = _space_of(experiment)
    constraints = absolute(experiment.search.constraints, space)
    experiment = experiment.model_copy(
        update={"search": experiment.search.model_copy(update={"constraints": constraints})}
    )
    with alone(run.root), Interrupts(on_event) as interrupts:
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
        executor = executor or make_executor(
            experiment, run.root, evaluate, lambda text: on_event(Message(text, warning=True))
        )
        now = True
        try:
            result = _Search(experiment, run, space, study, strategy, executor, on_event, interrupts).run()
            now = False
            return result
        finally:
            executor.close(now=now)


def _space_of(experiment: Experiment) -> SearchSpace:
    if experiment.tabular:
        from nasplat.search.table import load_table

        return load_table(experiment)
    from nasplat.search.evaluate import load_data, load_space_of

    return load_space_of(experiment, load_data(experiment.data))


def identity_of(experiment: Experiment) -> dict[str, Any]:
    """What must be equal for the trials of two sessions to stand in one table."""
    plain = experiment.model_dump(mode="json")
    return {
        "seed": experiment.search.seed,
        "constraints": plain["search"]["constraints"],
        **{
            name: {key: value for key, value in plain[name].items() if key not in _ELSEWHERE}
            for name in _COMPARED
            if plain[name] is not None
        },
    }


def make_executor(
    experiment: Experiment,
    root: Path,
    evaluate: str | Evaluate | None = None,
    warn: Callable[[str], None] = lambda text: None,
) -> Executor:
    """The executor that the experiment names.

    Args:
        experiment: with its space resolved to plain data.
        root: the run directory.
        evaluate: in place of training and judging, or of looking up in the table of a tabular space.
        warn: is told what a person should know of the cluster.
    """
    evaluate = evaluate or (LOOK_UP if experiment.tabular else TRAIN_AND_JUDGE)
    run = experiment.run
    if run.executor == "inline":
        return InlineExecutor(evaluate, trial_seconds=run.trial_seconds)
    if run.executor == "processes":
        return ProcessExecutor(evaluate, run.workers, trial_seconds=run.trial_seconds, lock=root / WORKERS_LOCK)
    from nasplat.search.ray_executor import RayExecutor

    return RayExecutor(
        evaluate,
        address=run.address,
        workers=run.workers,
        cpus=run.threads,
        gpus=run.gpus,
        trial_seconds=run.trial_seconds,
        storage=root,
        data=None if experiment.tabular else experiment.data,
        warn=warn,
    )


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
        interrupts: Interrupts,
    ) -> None:
        say = lambda text: on_event(Message(text))  # noqa: E731
        producers(experiment.search.produce)  # a mistake in their options is told before anything trains for an hour
        experiment = with_single_tasks(experiment, space, run.root, say)
        experiment = with_weights_trained(experiment, space, run.root, say)
        self.experiment = experiment
        self.plain = experiment.model_dump(mode="json")
        self.run_directory = run
        self.files = RunFiles(run, experiment.run.disk_mb)
        self.space = space
        self.feasible = within(space, experiment.search.constraints)
        self.study = study
        self.goals = study.goals
        self.strategy = strategy
        self.executor = executor
        self.on_event = on_event
        self.interrupts = interrupts
        search = experiment.search
        known = references(search.references, space) if search.references else {}
        made = produce(experiment, space, run.root, say) if search.produce else {}
        self.first = {name: (one, "a known network") for name, one in known.items()}
        self.first |= {name: (one, "produced before the search") for name, one in made.items() if name not in known}
        self.rungs = Rungs(search.early_stopping, self.goals)
        self.prediction: Prediction | None = None
        if search.screen is not None and search.screen.by == PREDICTOR:
            self.prediction = Prediction(space, self.goals, search.screen.after)
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
            while len(self.running) < self.executor.slots and self._start_one():
                pass
            if not self.running:
                break
            for finished in self.executor.wait(POLL_SECONDS, self._progress):
                self.running.discard(finished.number)
                self._take(finished.number, finished.record)
                self._write_files()
        stopped = self._reason_to_stop()
        assert stopped is not None
        if stopped != "interrupted":
            for proposal in self.rungs.paused(self.study.history):
                spent = self.rungs.shares[proposal.rung]
                self._told(self.study.stop(proposal.number, f"stopped early, after {spent:.0%} of its training"))
        self._write_files(stopped)
        return Result(self.front, self.study.history, stopped, time.monotonic() - self.started)

    def _start_one(self) -> bool:
        """Trains a trial on, or asks for a new one; False where neither is due now."""
        reason = self._reason_to_stop()
        if reason in ("interrupted", "seconds"):
            return False
        promoted = self.rungs.next(self.study.history, last=reason is not None)
        if promoted is not None:
            self._start(self.study.promote(*promoted))
            return True
        if not self._may_ask():
            return False
        self._ask()
        return True

    def _take(self, number: int, record: Record) -> None:
        """What an evaluation found: the end of the trial, or a pause."""
        share = self.rungs.shares[self.study.proposal(number).rung]
        if record.state == "complete" and share < 1:
            self.on_event(Judged(self.study.judge(number, record), share))
        else:
            self._told(self.study.tell(number, record))

    def _take_up(self) -> None:
        """Goes on with what an earlier session left: finished but not told, running, or awaiting an answer."""
        to_run, self.awaiting = self.study.open_numbers()
        for number in to_run:
            proposal = self.study.proposal(number)
            if len(proposal.rungs) > proposal.rung:
                continue  # it waits for a promotion
            record = read_record(self._directory(proposal), self.rungs.shares[proposal.rung])
            if record is not None:
                self._take(number, record)
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
        begun = self.study.history.begun
        return self.running.isdisjoint(begun[: max(0, len(begun) - self.hidden)])

    def _ask(self) -> None:
        known = self.study.history.before_last(self.hidden)
        draft = self._reference() or self._propose(self.rungs.seen(known))
        if isinstance(draft, Exhausted):
            self.exhausted = True
            self.on_event(Message(f"the search ends early: {draft.reason}", warning=True))
            return
        if (share := self.rungs.seen_share(known)) < 1 and not draft.landmark and draft.why:
            draft = replace(draft, why=f"{draft.why} (judged after {share:.0%} of the training)")
        original = None if draft.repeat_of is None else self.study.proposal(draft.repeat_of.number)
        proposal = self.study.ask(replace(draft, repeat_of=original))
        self.on_event(Asked(proposal, draft.architecture))
        if original is not None and original.state == "running":
            self.awaiting.append(proposal.number)
        elif proposal.state == "running":
            self._start(proposal)

    def _propose(self, history: History) -> Draft | Exhausted:
        search = self.experiment.search
        draft = propose(self.strategy, history, self.feasible, self.goals, search.constraints, search.seed)
        if isinstance(draft, Exhausted) or self.prediction is None or search.screen is None or draft.repeat_of:
            return draft
        predicted = self.prediction(history, draft.architecture)
        if predicted is None:
            return draft
        least = threshold(history, search.screen, self.goals, draft.cost)
        draft = replace(draft, cost={**draft.cost, PREDICTOR: predicted})
        if least is None or predicted >= least or excess(draft.violations) > 0:
            return draft
        return replace(draft, screened=True, reason=dropped(PREDICTOR, predicted, least))

    def _reference(self) -> Draft | None:
        """The next known or produced network that was not evaluated yet."""
        done = {proposal.landmark for proposal in self.study.history}
        for name, (architecture, what) in self.first.items():
            if name not in done:
                draft = drafted(self.space, architecture, self.experiment.search.constraints)
                original = self.study.history.by_digest.get(architecture.digest)
                return replace(draft, why=f"{name}, {what}", landmark=name, repeat_of=original)
        return None

    def _start(self, proposal: Proposal, *, again: bool = False) -> None:
        settings = self.experiment.run
        self.running.add(proposal.number)
        share = self.rungs.shares[proposal.rung]
        self.on_event(Started(proposal, again, share))
        self.executor.submit(
            TrialSpec(
                number=proposal.number,
                experiment=self.plain,
                architecture=self.space.canonical(proposal.values).to_json(),
                seed=candidate_seed(self.experiment.search.seed, proposal.digest, proposal.replicate),
                directory=str(self._directory(proposal)),
                device=settings.device,
                threads=settings.threads,
                until=share,
                threshold=self._threshold(proposal),
            )
        )

    def _threshold(self, proposal: Proposal) -> float | None:
        """Of the zero-cost score, below which the worker drops the candidate; a known network is always trained."""
        screen = self.experiment.search.screen
        if screen is None or screen.by == PREDICTOR or proposal.landmark:
            return None
        known = self.study.history.before_last(self.hidden)
        before = History(one for one in known if one.number < proposal.number)
        return threshold(before, screen, self.goals, proposal.metrics)

    def _progress(self, number: int, fields: Mapping[str, Any]) -> None:
        self.on_event(Progress(number, fields))

    def _told(self, proposal: Proposal) -> None:
        history = self.study.history
        self.on_event(Told(proposal, history.evaluated - len(self.running), self.experiment.search.trials))
        self._answer_repeats()
        if proposal.state == "complete":
            known = {score.notes["number"] for score in self.front}
            if proposal.replicate:  # what it stands for is a mean now, which can have become worse
                self.front = tuple(front([self._score(one) for one in history.complete], self.goals))
            else:
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
