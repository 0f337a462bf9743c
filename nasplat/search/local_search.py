"""Local search (White et al., Exploring the Loss Landscape in Neural Architecture Search, 2021)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from nasplat.core.front import Goal, fronts, losses
from nasplat.core.space import SearchSpace
from nasplat.search.history import History
from nasplat.search.neighbourhood import Neighbourhood, unseen_sample
from nasplat.search.options import AtLeast1
from nasplat.search.suggestion import Strategy, Suggestion


def local_search(startup: AtLeast1 = 10) -> Strategy:
    """A new neighbour of the best candidate that has one left; with several goals, of one on the front.

    Where all neighbours of the best are known it is a local optimum, and the search goes on around the next best, so
    that it never stops and needs no restarts.

    Args:
        startup: random candidates first.
    """
    around = Neighbourhood()

    def propose(history: History, space: SearchSpace, goals: Sequence[Goal], rng: np.random.Generator, /) -> Suggestion:
        seen, complete = history.by_digest, history.complete
        if len(complete) < startup:
            return Suggestion(unseen_sample(seen, space, rng).values, why="random, to begin with")
        for rank, front in enumerate(fronts(losses([one.metrics for one in complete], goals))):
            for place in rng.permutation(len(front)):
                start = complete[front[place]]
                new = [near for near in around(space, start.digest, start.values) if near.digest not in seen]
                if new:
                    which = (
                        ("the best" if rank == 0 else f"rank {rank + 1}") if len(goals) == 1 else f"front {rank + 1}"
                    )
                    near = new[int(rng.integers(len(new)))]
                    return Suggestion(near.values, why=f"one change from trial {start.number} ({which})")
        return Suggestion(unseen_sample(seen, space, rng).values, why="random: every neighbour is known")

    return propose
