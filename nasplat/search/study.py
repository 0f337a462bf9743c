"""The study: an ordinary Optuna study, and the only truth about a search. One driver asks and tells."""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import optuna
from optuna.storages import BaseStorage
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from nasplat.core.architecture import Architecture
from nasplat.core.choice import Values
from nasplat.core.errors import NasplatError
from nasplat.core.front import Goal
from nasplat.core.space import SearchSpace
from nasplat.search.encoding import decode, distributions, encode
from nasplat.search.history import History, Proposal, State
from nasplat.search.records import Record
from nasplat.search.storage import bytes_cut, location, open_storage, storage_errors, together

IDENTITY = "nasplat"
CONSTRAINT = "constraints:"  # Optuna 5 keeps `Trial.set_constraint(key, value)` under this prefix
_DIRECTIONS = {"maximize": StudyDirection.MAXIMIZE, "minimize": StudyDirection.MINIMIZE}


@dataclass(frozen=True)
class Draft:
    """What is asked for next, before it has a number.

    Args:
        architecture: what is proposed.
        proposed: the strategy's raw values.
        cost: metrics that are known without training.
        violations: see `Proposal`.
        reason: of an infeasible one.
        notes: see `Proposal`.
        why: see `Proposal`.
        repeat_of: the first proposal of the same architecture, from which this one is answered.
        replicate: see `Proposal`.
        landmark: see `Proposal`.
        screened: it is dropped before training, for `reason`.
    """

    architecture: Architecture
    proposed: Values
    cost: Mapping[str, float] = field(default_factory=dict)
    violations: Mapping[str, float] = field(default_factory=dict)
    reason: str = ""
    notes: Mapping[str, Any] = field(default_factory=dict)
    why: str = ""
    repeat_of: Proposal | None = None
    replicate: int = 0
    landmark: str = ""
    screened: bool = False


class SearchStudy:
    """Writes drafts and records to an Optuna study and reads the history from it.

    Made by `open_study`. Every ask is one write, so that a killed process leaves a whole trial or none.

    Attributes:
        cut: bytes of an incomplete record that were cut off the journal when it was opened.
    """

    def __init__(self, storage: BaseStorage, study_id: int, space: SearchSpace, goals: Sequence[Goal], where: str):
        self.space = space
        self.goals = tuple(goals)
        self.where = where
        self.cut = bytes_cut(storage)
        self._storage = storage
        self._study_id = study_id
        self._distributions = distributions(space)
        self._trial_ids: dict[int, int] = {}
        self._proposals: dict[int, Proposal] = {}
        self._history: History | None = None
        self.refresh()

    def refresh(self) -> None:
        """Reads everything again, as others may have written."""
        with storage_errors(self.where):
            trials = self._storage.get_all_trials(self._study_id, deepcopy=False)
        self._trial_ids = {trial.number: trial._trial_id for trial in trials}
        ours = [trial for trial in trials if "digest" in trial.user_attrs]
        self._proposals = {trial.number: read_proposal(trial, self.space, self.goals) for trial in ours}
        self._history = None

    @property
    def history(self) -> History:
        if self._history is None:  # the driver looks often, and what a history has counted is kept with it
            self._history = History(self._proposals.values(), next_number=len(self._trial_ids))
        return self._history

    def proposal(self, number: int) -> Proposal:
        return self._proposals[number]

    def ask(self, draft: Draft) -> Proposal:
        """Writes a draft as a trial: running, or at once finished where the answer is known."""
        original = draft.repeat_of
        state, values = TrialState.RUNNING, None
        if original is not None:
            state, values = self._answer(original)
        elif draft.screened or any(value > 0 for value in draft.violations.values()):
            state = TrialState.PRUNED
        attributes: dict[str, Any] = {"digest": draft.architecture.digest}
        if dict(draft.proposed) != dict(draft.architecture.values):
            attributes["proposed"] = dict(draft.proposed)
        attributes["metrics"] = dict(draft.cost if original is None else original.metrics)
        if original is not None:
            attributes["repeat_of"] = original.number
        for name in ("replicate", "why", "landmark", "screened"):
            if getattr(draft, name):
                attributes[name] = getattr(draft, name)
        reason = draft.reason if original is None else original.reason
        if reason:
            attributes["reason"] = reason
        violations = draft.violations if original is None else original.violations
        now = datetime.now()
        template = FrozenTrial(
            number=-1,  # the storage gives the number
            trial_id=-1,
            state=state,
            value=None,
            values=values,
            datetime_start=now,
            datetime_complete=now if state.is_finished() else None,
            params=encode(self.space, draft.architecture.values),
            distributions=self._distributions,
            user_attrs=attributes,
            system_attrs={
                **{CONSTRAINT + key: value for key, value in violations.items()},
                **draft.notes,
            },
            intermediate_values={},
        )
        with storage_errors(self.where):
            trial_id = self._storage.create_new_trial(self._study_id, template)
        return self._read(trial_id)

    def tell(self, number: int, record: Record) -> Proposal:
        """Writes what an evaluation found. A metric that a goal needs and that is missing or NaN fails the trial."""
        state, reason = record.state, record.reason
        metrics = {key: float(value) for key, value in record.metrics.items() if math.isfinite(value)}
        missing = [goal.metric for goal in self.goals if goal.metric not in metrics]
        if state == "complete" and missing:
            state, reason = "failed", f"the evaluation gave no finite {', '.join(missing)}"
        trial_id = self._trial_ids[number]
        with storage_errors(self.where), together(self._storage):
            known = self._proposals[number].metrics
            self._storage.set_trial_user_attr(trial_id, "metrics", {**known, **metrics})
            self._storage.set_trial_user_attr(trial_id, "seconds", self._proposals[number].seconds + record.seconds)
            if state == "screened":
                self._storage.set_trial_user_attr(trial_id, "screened", True)
            if reason:
                self._storage.set_trial_user_attr(trial_id, "reason", reason)
            # One that ran out of memory violates no constraint of the user's, and samplers shall see it all the same.
            unusable = {"usable": 1.0} if state == "infeasible" and not record.violations else record.violations
            for key, value in unusable.items():
                self._storage.set_trial_system_attr(trial_id, CONSTRAINT + key, value)
            optuna_state = _OUTCOMES.get(state, TrialState.FAIL)
            values = [metrics[goal.metric] for goal in self.goals] if state == "complete" else None
            self._storage.set_trial_state_values(trial_id, optuna_state, values)
        return self._read(trial_id)

    def judge(self, number: int, record: Record) -> Proposal:
        """Writes what a trial is worth at its rung; it goes on running."""
        proposal, trial_id = self._proposals[number], self._trial_ids[number]
        rungs = [*map(dict, proposal.rungs), dict(record.metrics)]
        with storage_errors(self.where), together(self._storage):
            self._storage.set_trial_user_attr(trial_id, "rungs", rungs)
            self._storage.set_trial_user_attr(trial_id, "seconds", proposal.seconds + record.seconds)
            first = self.goals[0].metric
            if first in record.metrics:
                self._storage.set_trial_intermediate_value(trial_id, proposal.rung, record.metrics[first])
        return self._read(trial_id)

    def promote(self, number: int, rung: int) -> Proposal:
        """Writes that a trial is trained on to a rung."""
        with storage_errors(self.where):
            self._storage.set_trial_user_attr(self._trial_ids[number], "rung", rung)
        return self._read(self._trial_ids[number])

    def stop(self, number: int, reason: str) -> Proposal:
        """Writes that a trial is not trained on."""
        proposal, trial_id = self._proposals[number], self._trial_ids[number]
        with storage_errors(self.where), together(self._storage):
            self._storage.set_trial_user_attr(trial_id, "metrics", {**proposal.metrics, **proposal.rungs[-1]})
            self._storage.set_trial_user_attr(trial_id, "stopped", True)
            self._storage.set_trial_user_attr(trial_id, "reason", reason)
            self._storage.set_trial_state_values(trial_id, TrialState.PRUNED, None)
        return self._read(trial_id)

    def tell_repeat(self, number: int) -> Proposal | None:
        """Answers a repeat whose original was running when it was asked for; None while that still runs."""
        repeat = self._proposals[number]
        assert repeat.repeat_of is not None
        original = self._proposals[repeat.repeat_of]
        state, values = self._answer(original)
        if state is TrialState.RUNNING:
            return None
        trial_id = self._trial_ids[number]
        with storage_errors(self.where), together(self._storage):
            self._storage.set_trial_user_attr(trial_id, "metrics", dict(original.metrics))
            if original.reason:
                self._storage.set_trial_user_attr(trial_id, "reason", original.reason)
            for key, value in original.violations.items():
                self._storage.set_trial_system_attr(trial_id, CONSTRAINT + key, value)
            self._storage.set_trial_state_values(trial_id, state, values)
        return self._read(trial_id)

    def open_numbers(self) -> tuple[list[int], list[int]]:
        """Numbers of the trials to run, and of the repeats to answer."""
        trials = self._unfinished()
        return (
            [number for number in trials if self._proposals[number].repeat_of is None],
            [number for number in trials if self._proposals[number].repeat_of is not None],
        )

    def earlier_seconds(self) -> float:
        """Wall time in which at least one trial ran, over all sessions of this study."""
        return max(self.finished_seconds().values(), default=0.0)

    def finished_seconds(self) -> dict[int, float]:
        """Number of every finished trial to the time at which it ended; pauses between sessions are left out."""
        with storage_errors(self.where):
            trials = self._storage.get_all_trials(self._study_id, deepcopy=False)
        spans = [
            (t.datetime_start, t.datetime_complete, t.number)
            for t in trials
            if t.datetime_start and t.datetime_complete
        ]
        ends: dict[int, float] = {}
        total, reached = 0.0, datetime.min
        for start, end, number in sorted(spans):
            beyond = max(start, reached)
            ends[number] = total + (end - beyond).total_seconds()
            if end > reached:
                total, reached = ends[number], end
        return ends

    def _unfinished(self) -> list[int]:
        with storage_errors(self.where):
            trials = self._storage.get_all_trials(self._study_id, deepcopy=False, states=(TrialState.RUNNING,))
        return [trial.number for trial in trials if trial.number in self._proposals]

    def _answer(self, original: Proposal) -> tuple[TrialState, list[float] | None]:
        if original.state == "complete":
            return TrialState.COMPLETE, [float(original.metrics[goal.metric]) for goal in self.goals]
        return _OUTCOMES.get(original.state, TrialState.RUNNING), None

    def _read(self, trial_id: int) -> Proposal:
        with storage_errors(self.where):
            trial = self._storage.get_trial(trial_id)
        proposal = read_proposal(trial, self.space, self.goals)
        self._trial_ids[trial.number] = trial_id
        self._proposals[trial.number] = proposal
        self._history = None
        return proposal


def read_proposal(trial: FrozenTrial, space: SearchSpace, goals: Sequence[Goal]) -> Proposal:
    """A trial of any Optuna study over the distributions of the space, as a proposal."""
    attributes = trial.user_attrs
    values = decode(space, trial.params)
    metrics = dict(attributes.get("metrics", {}))
    if trial.values is not None:
        metrics.update({goal.metric: value for goal, value in zip(goals, trial.values, strict=True)})
    system = trial.system_attrs
    notes = {key: value for key, value in system.items() if not key.startswith(CONSTRAINT)}
    return Proposal(
        number=trial.number,
        values=values,
        digest=attributes.get("digest") or space.canonical(values).digest,
        state=_state(trial),
        metrics=metrics,
        violations={key[len(CONSTRAINT) :]: v for key, v in system.items() if key.startswith(CONSTRAINT)},
        notes=notes,
        proposed=attributes.get("proposed"),
        repeat_of=attributes.get("repeat_of"),
        reason=attributes.get("reason", ""),
        why=attributes.get("why", ""),
        seconds=attributes.get("seconds", 0.0),
        replicate=attributes.get("replicate", 0),
        rung=attributes.get("rung", 0),
        rungs=tuple(attributes.get("rungs", ())),
        landmark=attributes.get("landmark", ""),
    )


def _state(trial: FrozenTrial) -> State:
    attributes = trial.user_attrs
    if "repeat_of" in attributes:
        return "repeat"
    if trial.state is TrialState.PRUNED:
        return "stopped" if "stopped" in attributes else "screened" if "screened" in attributes else "infeasible"
    return _STATES[trial.state]


_OUTCOMES = {
    "screened": TrialState.PRUNED,
    "complete": TrialState.COMPLETE,
    "infeasible": TrialState.PRUNED,
    "failed": TrialState.FAIL,
}
_STATES: dict[TrialState, State] = {
    TrialState.RUNNING: "running",
    TrialState.WAITING: "running",
    TrialState.COMPLETE: "complete",
    TrialState.PRUNED: "infeasible",
    TrialState.FAIL: "failed",
}


def open_study(
    storage: str,
    directory: Path,
    *,
    name: str,
    space: SearchSpace,
    goals: Sequence[Goal],
    identity: Mapping[str, Any],
    resume: bool = False,
) -> SearchStudy:
    """Opens the study of an experiment, or makes it.

    Args:
        storage: `journal`, `sqlite` or an Optuna URL.
        directory: of the run.
        name: of the study in its storage.
        identity: what makes two searches comparable (seed, constraints, data, training …), JSON-plain; the space and
            the goals are added to it.
        resume: go on with a study that has trials; without it, such a study is an error.

    Raises:
        NasplatError: the study was made by another space, goals or settings; it has trials and `resume` is off; or
            the storage is locked, read-only or damaged.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)  # it would announce every study on stderr
    where = location(storage, directory)
    goals = tuple(goals)
    own = {
        "space": dict(space.identity),
        "goals": [[goal.metric, goal.direction] for goal in goals],
        **identity,
    }
    opened = open_storage(storage, directory)
    with storage_errors(where):
        study_id = _find(opened, name)
        if study_id is None:
            study_id = opened.create_new_study([_DIRECTIONS[goal.direction] for goal in goals], name)
        found = opened.get_study_user_attrs(study_id).get(IDENTITY)
        trials = opened.get_n_trials(study_id)
        if found is None and not trials:  # new, or its maker was killed just here
            with together(opened):
                opened.set_study_user_attr(study_id, IDENTITY, own)
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
                    study = optuna.load_study(study_name=name, storage=opened)
                    study.set_metric_names([goal.metric for goal in goals])
            found = own
    _refuse_another(found, own, where, name)
    if trials and not resume:
        raise NasplatError(
            f"{where} already holds {trials} trials of the study {name!r}",
            "add --resume to go on with them, or choose another run directory or name",
        )
    return SearchStudy(opened, study_id, space, goals, where)


def _find(storage: BaseStorage, name: str) -> int | None:
    try:
        return storage.get_study_id_from_name(name)
    except KeyError:
        return None


def _refuse_another(found: Mapping[str, Any] | None, own: Mapping[str, Any], where: str, name: str) -> None:
    if found is None:
        raise NasplatError(
            f"the study {name!r} in {where} was not made by nasplat", "choose another name or another storage"
        )
    changes = [
        f"{key} was {before}, and is now {now}" for key, before, now in _differences(found, json.loads(json.dumps(own)))
    ]
    if changes:
        raise NasplatError(
            f"the study {name!r} in {where} was made with other settings: {'; '.join(changes)}",
            "scores would not be comparable: choose another run directory or name, or restore the experiment as it was",
        )


def _differences(found: Any, own: Any, key: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Dotted key, earlier and present value of everything that differs between two JSON-plain values."""
    if isinstance(found, Mapping) and isinstance(own, Mapping):
        for name in sorted({*found, *own}):
            yield from _differences(found.get(name), own.get(name), f"{key}.{name}" if key else name)
    elif found != own:
        yield key, json.dumps(found), json.dumps(own)
