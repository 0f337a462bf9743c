"""Optuna's samplers as strategies: the history is replayed to a sampler that is made anew for every ask."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Container, Sequence
from typing import Any

import numpy as np
import optuna
from optuna.samplers import BaseSampler, GPSampler, NSGAIISampler, TPESampler
from optuna.storages import InMemoryStorage
from optuna.trial import FrozenTrial, TrialState

from nasplat.core.front import Goal
from nasplat.core.space import SearchSpace
from nasplat.search.encoding import decode, distributions, encode
from nasplat.search.history import History, Proposal
from nasplat.search.options import AtLeast1, AtLeast2, Share
from nasplat.search.suggestion import Strategy, Suggestion


def tpe(startup: AtLeast1 = 10, candidates: AtLeast1 = 24) -> Strategy:
    """Tree-structured Parzen estimator, multivariate and grouped (Bergstra et al., 2011; Falkner et al., 2018).

    Args:
        startup: random proposals first.
        candidates: drawn for each proposal, of which the most promising is taken.
    """
    return from_sampler(
        lambda seed: TPESampler(
            seed=seed,
            multivariate=True,
            group=True,
            constant_liar=True,
            n_startup_trials=startup,
            n_ei_candidates=candidates,
        )
    )


def optuna_gp(startup: AtLeast1 = 10) -> Strategy:
    """Gaussian process with (expected hypervolume) improvement; about half a second a proposal at 80 trials.

    Args:
        startup: random proposals first.
    """
    return from_sampler(lambda seed: GPSampler(seed=seed, n_startup_trials=startup, warn_independent_sampling=False))


def nsga2(population: AtLeast2 = 20, mutation: Share | None = None, crossover: Share = 0.9) -> Strategy:
    """NSGA-II (Deb et al., 2002).

    Args:
        population: candidates in a generation.
        mutation: probability that a choice changes; default one over the number of choices.
        crossover: probability that a child has two parents.
    """
    return from_sampler(
        lambda seed: NSGAIISampler(
            seed=seed, population_size=population, mutation_prob=mutation, crossover_prob=crossover
        )
    )


def from_sampler(make: Callable[[int], BaseSampler]) -> Strategy:
    """Any Optuna sampler as a strategy.

    Args:
        make: builds the sampler from a seed.
    """

    def built(seed: int) -> BaseSampler:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            return make(seed)

    built(0)  # a wrong option is told now, not at the first proposal
    replayed: dict[int, tuple[Proposal, FrozenTrial]] = {}

    def propose(history: History, space: SearchSpace, goals: Sequence[Goal], rng: np.random.Generator, /) -> Suggestion:
        table = distributions(space)
        trials = []
        for proposal in history:
            known = replayed.get(proposal.number)
            if known is None or known[0] != proposal:
                known = replayed[proposal.number] = (proposal, _replay(proposal, space, goals, table))
            trials.append(known[1])
        storage = _Replay(trials)
        sampler = built(int(rng.integers(2**32)))
        study = optuna.create_study(storage=storage, sampler=sampler, directions=[goal.direction for goal in goals])
        trial = study.ask(fixed_distributions=table)
        # NSGA-II finds its generations again; TPE's own copy of the parameters would only fill the storage.
        notes = {key: value for key, value in storage.asked.system_attrs.items() if key.endswith(":generation")}
        return Suggestion(decode(space, trial.params), notes, why=f"asked of Optuna's {type(sampler).__name__}")

    return propose


def _replay(proposal: Proposal, space: SearchSpace, goals: Sequence[Goal], table: dict[str, Any]) -> FrozenTrial:
    dropped = dict.fromkeys(("infeasible", "stopped", "screened"), TrialState.PRUNED)
    states = {"running": TrialState.RUNNING, "failed": TrialState.FAIL, **dropped}
    state = states.get(proposal.state, TrialState.COMPLETE)
    if proposal.state == "repeat" and any(goal.metric not in proposal.metrics for goal in goals):
        state = TrialState.FAIL  # of one that failed, or whose answer is still awaited
    values = [float(proposal.metrics[goal.metric]) for goal in goals] if state is TrialState.COMPLETE else None
    return FrozenTrial(
        number=proposal.number,
        trial_id=proposal.number,
        state=state,
        value=None,
        values=values,
        datetime_start=None,
        datetime_complete=None,
        params=encode(space, proposal.values),
        distributions=table,
        user_attrs={},
        system_attrs={**proposal.notes, **{f"constraints:{key}": v for key, v in proposal.violations.items()}},
        intermediate_values={},
    )


class _Replay(InMemoryStorage):
    """A study of given trials, and one that is asked for. Copies nothing: copying 1,000 trials takes a second."""

    def __init__(self, trials: list[FrozenTrial]) -> None:
        super().__init__()
        # Trial ids are positions here, and so the numbers: where the study holds foreign trials they close ranks.
        self._replayed = [_renumbered(trial, position) for position, trial in enumerate(trials)]

    @property
    def asked(self) -> FrozenTrial:
        return self._replayed[-1]

    def create_new_trial(self, study_id: int, template_trial: FrozenTrial | None = None) -> int:
        number = len(self._replayed)
        self._replayed.append(
            FrozenTrial(
                number=number,
                trial_id=number,
                state=TrialState.RUNNING,
                value=None,
                datetime_start=None,
                datetime_complete=None,
                params={},
                distributions={},
                user_attrs={},
                system_attrs={},
                intermediate_values={},
            )
        )
        return number

    def get_trial(self, trial_id: int) -> FrozenTrial:
        return self._replayed[trial_id]

    def get_all_trials(
        self, study_id: int, deepcopy: bool = True, states: Container[TrialState] | None = None
    ) -> list[FrozenTrial]:
        return [trial for trial in self._replayed if states is None or trial.state in states]

    def set_trial_param(self, trial_id: int, param_name: str, param_value_internal: float, distribution: Any) -> None:
        asked = self.asked
        asked.params = {**asked.params, param_name: distribution.to_external_repr(param_value_internal)}
        asked.distributions = {**asked.distributions, param_name: distribution}

    def set_trial_system_attr(self, trial_id: int, key: str, value: Any) -> None:
        self.asked.system_attrs = {**self.asked.system_attrs, key: value}


def _renumbered(trial: FrozenTrial, number: int) -> FrozenTrial:
    if trial.number != number:
        trial.number = trial._trial_id = number
    return trial
