"""Synthetic search landscapes: additive effects, interactions of pairs, a saturating accuracy, costs that add up.

What the defaults of the strategies were chosen on, so that no table on which they are judged had a say.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from nasplat.core.architecture import Architecture
from nasplat.core.choice import Choice, Values
from nasplat.core.cost import Cost
from nasplat.core.graph import OperationGraph
from nasplat.core.problem import classification
from nasplat.core.space import SearchSpace

# Options of every choice; True for choices whose options are ordered.
SHAPES: Mapping[str, tuple[tuple[int, bool], ...]] = {
    "cell": ((5, False),) * 6,
    "stages": ((3, True), (4, False)) * 4,
    "widths": ((7, True),) * 5,
    "wide": ((4, False),) * 14 + ((5, True),) * 6,
}


class Landscape(SearchSpace):
    """A random landscape.

    Accuracy is `1 - exp(-gain)` of a gain with main effects, pairwise effects and a part that follows the cost. An
    ordered choice has effects that change smoothly with the position of its option.

    Args:
        shape: a key of `SHAPES`.
        seed: of the landscape.
        interaction: standard deviation of a pair's effect, as a share of a main effect's.
        noise: standard deviation of an observation's accuracy.
    """

    def __init__(self, shape: str, seed: int, interaction: float = 0.4, noise: float = 0.0) -> None:
        rng = np.random.default_rng([seed, sorted(SHAPES).index(shape)])
        self.noise = noise
        self.problem = classification((3, 32, 32), 10)
        self.choices = {
            f"choice{n}": Choice(f"choice{n}", tuple(range(count)), ordered)
            for n, (count, ordered) in enumerate(SHAPES[shape])
        }
        self.identity = {"family": "landscape", "shape": shape, "seed": seed, "interaction": interaction}
        counts = [count for count, _ in SHAPES[shape]]
        self.option_costs = [np.sort(rng.gamma(1.0, 1.0, count)) * rng.gamma(2.0, 0.5) for count in counts]
        self._main = [_effects(rng, (count,), ordered) for count, ordered in SHAPES[shape]]
        importance = rng.gamma(1.0, 1.0, len(counts))
        self._main = [
            main * weight + 0.6 * cost
            for main, weight, cost in zip(self._main, importance, self.option_costs, strict=True)
        ]
        self._pairs = {
            (i, j): interaction * _effects(rng, (counts[i], counts[j]), SHAPES[shape][i][1])
            for i in range(len(counts))
            for j in range(i)
            if rng.random() < 4 / len(counts)
        }
        draws = np.random.default_rng(seed + 1)
        gains = [self._gain([int(draws.integers(count)) for count in counts]) for _ in range(500)]
        self._middle, self._scale = float(np.mean(gains)), float(np.std(gains))

    def settle(self, values: Values) -> Values:
        return values

    def cost(self, architecture: Architecture) -> Cost:
        total = sum(cost[int(architecture.values[f"choice{n}"])] for n, cost in enumerate(self.option_costs))
        return Cost(round(1e6 * total), round(1e5 * total), 1)

    def mean(self, architecture: Architecture) -> dict[str, float]:
        """The true metrics."""
        gain = self._gain([int(architecture.values[name]) for name in self.choices])
        accuracy = 1 - np.exp(-1.5 - 0.5 * np.arctan((gain - self._middle) / self._scale) * 1.5)
        return {"accuracy": float(accuracy), **self.known(architecture)}

    def measure(self, architecture: Architecture, seed: int) -> dict[str, float]:
        found = self.mean(architecture)
        return {**found, "accuracy": found["accuracy"] + self.noise * np.random.default_rng(seed).normal()}

    def graph(self, architecture: Architecture) -> OperationGraph:
        return OperationGraph((), {})

    def build(self, architecture: Architecture) -> Any:
        return None

    def _gain(self, picked: list[int]) -> float:
        pairs = sum(effect[picked[i], picked[j]] for (i, j), effect in self._pairs.items())
        return float(sum(main[option] for main, option in zip(self._main, picked, strict=True)) + pairs)


def _effects(rng: np.random.Generator, shape: tuple[int, ...], smooth: bool) -> np.ndarray:
    """Effects of mean 0 and variance about 1; smooth ones are a random walk along the first axis."""
    effects = rng.normal(size=shape)
    if smooth:
        effects = np.cumsum(effects, axis=0)
    return (effects - effects.mean()) / (effects.std() or 1.0)
