"""What a search expects of its candidates, once luck is taken out of what was observed of them."""

from __future__ import annotations

from collections.abc import Sequence

from nasplat.core.cost import COSTS
from nasplat.core.front import Goal
from nasplat.core.space import SearchSpace
from nasplat.search.history import History
from nasplat.search.surrogate import Surrogates

FEWEST = 8


def expected(history: History, space: SearchSpace, goals: Sequence[Goal]) -> dict[int, dict[str, float]]:
    """Number of every evaluated candidate to its goals' posterior means.

    The best of many noisy observations is above all the luckiest: chosen by its observation, a candidate disappoints
    when it is trained again. A Gaussian process over all candidates weighs every observation with those of its
    neighbours. Costs are exact and stay as they are; with fewer than `FEWEST` candidates so does everything.
    """
    complete = history.complete
    found = {one.number: {goal.metric: float(one.metrics[goal.metric]) for goal in goals} for one in complete}
    if len(complete) < FEWEST:
        return found
    surrogates = Surrogates()
    for goal in goals:
        if goal.metric not in COSTS:
            sign = -1.0 if goal.direction == "maximize" else 1.0
            for one, loss in zip(
                history.measured([goal.metric]), surrogates.condition(space, goal, history).losses, strict=True
            ):
                if one.number in found:
                    found[one.number][goal.metric] = sign * float(loss)
    return found
