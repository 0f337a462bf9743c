"""Our strategies in anybody's Optuna study."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from optuna.distributions import BaseDistribution, CategoricalDistribution, IntDistribution
from optuna.samplers import BaseSampler, RandomSampler
from optuna.study import Study
from optuna.trial import FrozenTrial, Trial, TrialState

from nasplat.core.architecture import Architecture
from nasplat.core.errors import NasplatError
from nasplat.core.front import Goal
from nasplat.core.space import SearchSpace
from nasplat.search.encoding import decode, distributions, encode
from nasplat.search.history import History
from nasplat.search.seeds import ask_rng
from nasplat.search.strategies import make_strategy
from nasplat.search.study import read_proposal
from nasplat.search.suggestion import Strategy, Suggestion


class StrategySampler(BaseSampler):
    """An Optuna sampler that asks a strategy.

        import optuna
        from nasplat.core import front, problem
        from nasplat.search.sampler import StrategySampler, suggest
        from nasplat.spaces.families import make_space

        space = make_space({"family": "nasbench201"}, problem.classification((3, 32, 32), 10))
        goals = [front.Goal("accuracy", "maximize")]

        def objective(trial):
            network = space.build(suggest(trial, space))  # a trial that does not call it is sampled at random
            ...

        optuna.create_study(sampler=StrategySampler("gp", space, goals), direction="maximize")

    A failed or pruned trial teaches nothing. `gp`, `local_search` and `expansion` propose no network twice; for the
    others, and for hard constraints, wrap the strategy in `nasplat.search.propose.admissible`. With `n_jobs` trials
    that begin together may get one proposal: nasplat's own searches ask one after the other.

    Args:
        strategy: a name of `nasplat.search.strategies.STRATEGIES`, or a strategy.
        space: of the architectures.
        goals: the study's directions, in their order.
        seed: None takes another one every time.

    Raises:
        NasplatError: there is no such strategy; at the first trial, the study's directions are not those of the goals.
    """

    def __init__(
        self, strategy: str | Strategy, space: SearchSpace, goals: Sequence[Goal], seed: int | None = 0
    ) -> None:
        self._strategy = make_strategy(strategy) if isinstance(strategy, str) else strategy
        self._space = space
        self._goals = tuple(goals)
        self._seed = int(np.random.SeedSequence().generate_state(1)[0]) if seed is None else seed
        self._distributions = distributions(space)
        self._independent = RandomSampler(seed)

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        return dict(self._distributions)

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        wanted = [goal.direction for goal in self._goals]
        if [direction.name.lower() for direction in study.directions] != wanted:
            raise NasplatError(
                f"the study's directions are not those of the goals, {', '.join(wanted)}",
                "optuna.create_study(directions=[goal.direction for goal in goals])",
            )
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
