"""A cheap score as a stage before training: what is worse than most of what was scored before is dropped."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import ceil
from typing import TYPE_CHECKING

import numpy as np

from nasplat.core.architecture import Architecture
from nasplat.core.cost import COSTS
from nasplat.core.experiment import Screen
from nasplat.core.front import Goal, losses
from nasplat.core.space import SearchSpace
from nasplat.search.history import History, Proposal

if TYPE_CHECKING:
    from nasplat.training.predictor import Predictor

PREDICTOR = "predictor"
GROWTH = 1.25  # the predictor is fitted anew whenever there are so many times more results
FEWEST_RIVALS = 5
PATIENCE = 5  # times as many dropped in a row as the share lets expect: then one is trained whatever its score


def threshold(history: History, screen: Screen, goals: Sequence[Goal], known: Mapping[str, float]) -> float | None:
    """The score below which a candidate is dropped: the quantile that leaves `screen.keep` of its rivals.

    Rivals are those scored before that cost no more by any goal: most scores grow with the network, and a small one
    would otherwise have no chance against large ones that it need not beat.

    Args:
        history: what was known when the candidate was proposed.
        screen: of the experiment.
        goals: of the search.
        known: the candidate's costs.

    Returns:
        None while fewer than `screen.after` candidates were evaluated or fewer than five are rivals, or when so many
        were dropped in a row that the strategy seems to be bound to candidates that the score dislikes.
    """
    scored = [found for one in history.by_digest.values() if screen.by in (found := _known(one))]
    if sum(one.begun and screen.by in _known(one) for one in history) < screen.after:
        return None
    dropped = 0
    for proposal in reversed(history):
        if proposal.state != "screened":
            break
        dropped += 1
    if dropped >= ceil(PATIENCE / screen.keep):
        return None
    # A cost as the score asks for large networks: against smaller ones no network would ever be dropped.
    costs = [] if screen.by in COSTS else [goal for goal in goals if goal.metric in COSTS]
    own = losses([known], costs)[0]
    rivals = [one for one in scored if bool((losses([one], costs)[0] <= own).all())]
    if len(rivals) < FEWEST_RIVALS:
        return None
    return float(np.quantile([one[screen.by] for one in rivals], 1 - screen.keep))


def _known(proposal: Proposal) -> Mapping[str, float]:
    """Its metrics, of a paused one with those of its last rung."""
    return {**proposal.metrics, **proposal.rungs[-1]} if proposal.rungs else proposal.metrics


def dropped(by: str, score: float, least: float) -> str:
    """The reason of a dropped candidate, in words."""
    return f"screened: {by} {score:.4g} is below {least:.4g}"


class Prediction:
    """Predicts the first goal that only training tells, from the candidates of a history.

    The predictor is fitted to the first results, as many as the largest step of a geometric series, so that what it
    says is a function of the history alone.

    Args:
        space: of the search.
        goals: of the search.
        after: results before the first fit.
    """

    def __init__(self, space: SearchSpace, goals: Sequence[Goal], after: int) -> None:
        self._space = space
        self._goal = next((goal for goal in goals if goal.metric not in COSTS), goals[0])
        self._after = after
        self._basis: tuple[tuple[str, float], ...] = ()
        self._predictor: Predictor | None = None

    def __call__(self, history: History, architecture: Architecture) -> float | None:
        """More is better; None while there are too few results."""
        complete = history.complete
        if len(complete) < self._after:
            return None
        step = self._after
        while ceil(step * GROWTH) <= len(complete):
            step = ceil(step * GROWTH)
        basis = tuple((one.digest, one.metrics[self._goal.metric]) for one in complete[:step])
        if self._predictor is None or basis != self._basis:
            self._basis, self._predictor = basis, fit(self._space, self._goal, complete[:step])
        predicted = float(self._predictor.predict(self._space, [architecture])[0])
        return predicted if self._goal.direction == "maximize" else -predicted


def fit(space: SearchSpace, goal: Goal, complete: Sequence[Proposal]) -> Predictor:
    """A performance predictor of a metric from evaluated candidates."""
    from nasplat.training.predictor import SpaceData, fit_predictor

    architectures = [space.canonical(one.values) for one in complete]
    return fit_predictor([SpaceData(space, architectures, [one.metrics[goal.metric] for one in complete])], seed=0)
