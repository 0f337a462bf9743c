"""A population of pruned networks of equal cost, and then only such as the best of it are.

He et al., Network Pruning Spaces, 2023.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from nasplat.compression.population import best_band, bucket_ratio, in_band
from nasplat.core.choice import Values
from nasplat.core.errors import NasplatError
from nasplat.core.front import Goal
from nasplat.core.space import SearchSpace
from nasplat.search.constraints import Constraints
from nasplat.search.history import History
from nasplat.search.options import AtLeast2, Share
from nasplat.search.suggestion import Strategy, Suggestion
from nasplat.search.within import bounds_of, inner_of
from nasplat.spaces.pruning import PruningSpace

BATCH = 500
BATCHES = 100


def pruning_population(members: AtLeast2 = 50, best: Share = 0.2, bucket: Share = 0.05) -> Strategy:
    """Random members of a regime; then of the refined space, whose FLOPs-to-parameter-bucket ratio is the best ones'.

    The constraints are the regime: `macs: {min: 0.49, max: 0.5}`. Ratios are drawn uniform and independent, and members
    outside of the regime are rejected. He et al. conjecture that good members share one ratio of FLOPs to a bucket of
    parameters; they leave the bucket open: here it is a share of the original's parameters, and the best members'
    values are a band.

    Args:
        members: of the population; what comes after them is of the refined space.
        best: share of them that the band holds.
        bucket: width, as a share of the original's parameters; 0 for the parameters themselves.
    """

    def propose(history: History, space: SearchSpace, goals: Sequence[Goal], rng: np.random.Generator, /) -> Suggestion:
        inner, bounds = inner_of(space), bounds_of(space)
        if not isinstance(inner, PruningSpace):
            raise NasplatError(
                "the strategy pruning_population samples pruned networks", "use a space of family pruning"
            )
        if not {"macs", "params"} & bounds.keys():
            raise NasplatError(
                "the strategy pruning_population needs a regime", "search.constraints: {macs: {min: 0.49, max: 0.5}}"
            )
        quality = next((goal for goal in goals if goal.metric not in ("macs", "params")), goals[0])
        width = bucket * inner.whole["params"]
        measured = history.measured([quality.metric])[:members]
        band = None
        if len(measured) == members:
            sign = -1.0 if quality.direction == "maximize" else 1.0
            errors = [sign * one.metrics[quality.metric] for one in measured]
            band = best_band(_ratio(inner, [one.values for one in measured], width), np.array(errors), best)
        for _ in range(BATCHES):
            values, costs = _drawn(inner, rng)
            meets = _within(costs, bounds)
            if band is not None:
                meets &= in_band(bucket_ratio(costs["macs"], costs["params"], width), band)
            if meets.any():
                why = "a random member" if band is None else f"refined: {band[0]:.4g} … {band[1]:.4g} MACs a parameter"
                return Suggestion(values[int(np.flatnonzero(meets)[0])], why=why)
        return Suggestion(space.sample(rng).values, why=f"nothing among {BATCH * BATCHES:,} draws was of the regime")

    return propose


def _drawn(space: PruningSpace, rng: np.random.Generator) -> tuple[list[Values], dict[str, np.ndarray]]:
    """Assignments of ratios at full depth, and what they cost."""
    whole = space.canonical({}).values
    ratios = {name: choice.options for name, choice in space.choices.items() if name.endswith(".ratio")}
    drawn = {name: rng.integers(len(options), size=BATCH) for name, options in ratios.items()}
    values: list[Values] = [
        {**whole, **{name: ratios[name][drawn[name][row]] for name in ratios}} for row in range(BATCH)
    ]
    macs, params = space.costs(values)
    return values, {"macs": macs, "params": params}


def _within(costs: dict[str, np.ndarray], bounds: Constraints) -> np.ndarray:
    meets = np.ones(BATCH, dtype=bool)
    for name, bound in bounds.items():
        if name in costs:
            meets &= costs[name] >= (-np.inf if bound.min is None else bound.min)
            meets &= costs[name] <= (np.inf if bound.max is None else bound.max)
    return meets


def _ratio(space: PruningSpace, values: Sequence[Values], width: float) -> np.ndarray:
    macs, params = space.costs(values)
    return bucket_ratio(macs, params, width)
