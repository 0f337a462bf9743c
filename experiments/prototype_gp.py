"""The Gaussian process that `gp` is measured against: as simple as one can be written in an afternoon."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.linalg import cho_factor, cho_solve
from scipy.stats import norm

from nasplat.core.choice import Values
from nasplat.core.front import Goal, front_indices, losses
from nasplat.core.space import SearchSpace
from nasplat.search.history import History
from nasplat.search.suggestion import Strategy

LENGTHS = (1.0, 2.0, 4.0, 8.0)
NOISE = 1e-3


def prototype_gp(startup: int = 10, elite: int = 10, random: int = 50) -> Strategy:
    """`exp(-Hamming / length)`, the length by marginal likelihood; expected improvement of the first goal.

    Looks at the neighbours of the `elite` best, with several goals of those on the front, and at random architectures.
    """

    def propose(history: History, space: SearchSpace, goals: Sequence[Goal], rng: np.random.Generator, /) -> Values:
        complete, seen = history.complete, history.by_digest
        if len(complete) < startup:
            return space.sample(rng).values
        names = list(space.choices)
        rows = np.array([[str(one.values[name]) for name in names] for one in complete])
        matrix = losses([one.metrics for one in complete], goals)
        y = (matrix[:, 0] - matrix[:, 0].mean()) / (matrix[:, 0].std() or 1.0)
        best = np.argsort(y)[:elite] if len(goals) == 1 else front_indices(matrix)
        near = [one for row in best for one in space.neighbours(space.canonical(complete[row].values))]
        pool = {one.digest: one for one in [*near, *(space.sample(rng) for _ in range(random))]}
        new = [one for digest, one in pool.items() if digest not in seen] or list(pool.values())
        codes = np.array([[str(one.values[name]) for name in names] for one in new])
        own = (rows[:, None] != rows[None]).sum(2)
        cross = (codes[:, None] != rows[None]).sum(2)

        def fitted(length: float) -> tuple[float, tuple[np.ndarray, bool]]:
            factor = cho_factor(np.exp(-own / length) + NOISE * np.eye(len(y)), lower=True)
            return float(y @ cho_solve(factor, y) + 2 * np.log(np.diag(factor[0])).sum()), factor

        length = min(LENGTHS, key=lambda one: fitted(one)[0])
        factor = fitted(length)[1]
        kernel = np.exp(-cross / length)
        mean = kernel @ cho_solve(factor, y)
        deviation = np.sqrt(np.maximum(1 - (kernel * cho_solve(factor, kernel.T).T).sum(1), 1e-9))
        ahead = (y.min() - mean) / deviation
        return new[int(np.argmax(deviation * (ahead * norm.cdf(ahead) + norm.pdf(ahead))))].values

    return propose
