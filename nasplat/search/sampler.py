"""Our strategies in anybody's Optuna study."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from optuna.distributions import BaseDistribution, CategoricalDistribution, IntDistribution
from optuna.samplers import BaseSampler, RandomSampler
from optuna.study import Study
from optuna.trial import FrozenTrial, Trial, TrialState

from nasplat.core.architecture import Architecture
from nasplat.core.front import Goal
from nasplat.core.space import SearchSpace
from nasplat.search.encoding import decode, distributions, encode
from nasplat.search.history import History
from nasplat.search.seeds import ask_rng
from nasplat.search.study import read_proposal
from nasplat.search.suggestion import Strategy, Suggestion


class StrategySampler(BaseSampler):
    """An Optuna sampler that asks a strategy.

    `optuna.create_study(sampler=StrategySampler(regularised_evolution(), space, goals, seed=0), ...)`, and in the
    objective `suggest(trial, space)`. The study's directions are those of the goals, in their order.
    """

    def __init__(self, strategy: Strategy, space: SearchSpace, goals: Sequence[Goal], seed: int = 0) -> None:
        self._strategy = strategy
        self._space = space
        self._goals = tuple(goals)
        self._seed = seed
        self._distributions = distributions(space)
        self._independent = RandomSampler(seed)

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        return dict(self._distributions)

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        trials = [
            other
            for other in study.get_trials(deepcopy=False)
            if other.state is not TrialState.WAITING and self._distributions.keys() <= other.params.keys()
        ]
        history = History(
            (read_proposal(other, self._space, self._goals) for other in trials), next_number=trial.number
        )
        suggestion = self._strategy(history, self._space, self._goals, ask_rng(self._seed, trial.number))
        values = suggestion.values if isinstance(suggestion, Suggestion) else suggestion
        return encode(self._space, values)

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        return self._independent.sample_independent(study, trial, param_name, param_distribution)


def suggest(trial: Trial, space: SearchSpace) -> Architecture:
    """The architecture of a trial, in an objective of the user's own."""
    params: dict[str, Any] = {}
    for name, distribution in distributions(space).items():
        if isinstance(distribution, IntDistribution):
            params[name] = trial.suggest_int(name, distribution.low, distribution.high)
        elif isinstance(distribution, CategoricalDistribution):
            params[name] = trial.suggest_categorical(name, distribution.choices)
    return space.canonical(decode(space, params))
