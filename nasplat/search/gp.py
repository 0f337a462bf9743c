"""Bayesian optimisation over a table of choices: a Gaussian process proposes what promises the most improvement."""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from typing import Annotated

import numpy as np
from pydantic import Field
from scipy.special import ndtr, ndtri

from nasplat.artifacts.metric_names import counted, text
from nasplat.core.architecture import Architecture
from nasplat.core.cost import COSTS
from nasplat.core.front import Goal, front_indices, fronts, losses
from nasplat.core.space import SearchSpace
from nasplat.search.constraints import excess
from nasplat.search.history import History, Proposal
from nasplat.search.improvement import free_volume
from nasplat.search.neighbourhood import Neighbourhood, unseen_sample, walk
from nasplat.search.options import AtLeast1, AtLeast2
from nasplat.search.suggestion import Strategy, Suggestion
from nasplat.search.surrogate import Belief, Surrogates, Warp
from nasplat.search.within import bounds_of

THRESHOLDS = 128
SAMPLES = 8
SPREAD = 4.0  # standard deviations below the most promising prediction at which the integral begins
MARGIN = 0.5
MOST = 500  # neighbours that are looked at for one proposal


def gp(
    startup: AtLeast2 = 6,
    elite: AtLeast1 = 10,
    walks: AtLeast1 = 16,
    screened: AtLeast1 = 256,
    again: Annotated[float, Field(ge=0, lt=1)] = 0.0,
    reference: dict[str, float] | None = None,
) -> Strategy:
    """Expected (hypervolume) improvement of a Gaussian process on the table of choices.

    One process models each metric that only training tells; `macs`, `params` and `peak_bytes` are known before and are
    used exactly. What is looked at are the neighbours of the best candidates, walks of two and three changes from them,
    and random architectures; never one that was proposed before. A running trial counts as if it had returned what is
    expected of it (the Kriging believer; Ginsbourger et al., 2010), so that parallel workers get different proposals.

    Args:
        startup: random proposals first.
        elite: of how many of the best candidates all neighbours are looked at, besides those of the whole front.
        walks: how many longer walks are looked at, and how many random architectures.
        screened: of all these the most promising, for which the improvement is computed.
        again: share of the evaluations that may run a promising candidate again with a new seed, where that teaches
            more than a new one: 0.5 if seeds differ as much as good candidates do.
        reference: the worst value of a metric that is still of interest: the corner of the hypervolume. By default a
            tenth beyond the worst on the front.
    """
    around = Neighbourhood()
    surrogates = Surrogates()
    corner = dict(reference or {})

    def propose(history: History, space: SearchSpace, goals: Sequence[Goal], rng: np.random.Generator, /) -> Suggestion:
        seen = history.by_digest
        names = [goal.metric for goal in goals]
        measured = history.measured(names)
        if len(measured) < startup:
            return Suggestion(unseen_sample(seen, space, rng).values, why="random, to begin with")
        pending = tuple(one for one in seen.values() if one.state == "running" and not one.replicate)
        rows = (*measured, *pending)
        modelled = [goal for goal in goals if goal.metric not in COSTS]
        exact = [goal for goal in goals if goal.metric in COSTS]
        known = losses([one.metrics for one in rows], exact)
        usable = np.array([one.state != "infeasible" for one in rows])
        beliefs = [surrogates.condition(space, goal, history, pending) for goal in modelled]
        believed = np.column_stack([*(belief.losses for belief in beliefs), known])

        front = _front_rows(believed, usable)
        best = _best_rows(believed, front, usable, elite) or _nearest_rows(rows, elite)
        pool = _pool([rows[index] for index in best], seen, space, around, walks, rng)
        if not pool:  # a small space, nearly exhausted
            pool = _pool(rows, seen, space, around, walks, rng)
        if not pool:
            return Suggestion(unseen_sample(seen, space, rng).values, why="random: all near the best is known")
        pool_known = losses(around.known(space, pool), exact) if exact else np.zeros((len(pool), 0))
        gain = _Gain(
            believed[front],
            [belief.warp for belief in beliefs],
            _corner(believed, front, pool_known, [*modelled, *exact], {**corner, **_bounds(space, goals)}),
            rng,
        )
        codes = [belief.code(pool) for belief in beliefs]
        rough = gain([belief.rough(code) for belief, code in zip(beliefs, codes, strict=True)], pool_known)
        order = np.argsort(-rough, kind="stable")[:screened]
        predicted = [belief.predict(code[order]) for belief, code in zip(beliefs, codes, strict=True)]
        exactly = gain(predicted, pool_known[order])
        if beliefs and sum(one.replicate > 0 for one in history) < again * history.evaluated:
            # Both by what one noisy run is expected to teach: a new candidate, and one that was run before.
            new = gain(
                [belief.after_a_run(*at) for belief, at in zip(beliefs, predicted, strict=True)], pool_known[order]
            )
            old = gain(
                [belief.after_a_run(belief.mean, belief.deviation()) for belief in beliefs],
                known[: len(measured)],
            )
            if old.max() > new.max():
                one = measured[_worth_another_run(beliefs, known[: len(measured)], rng)]
                why = f"trial {one.number} again, with a new seed: {counted(one.runs, 'run')} may have been luck"
                return Suggestion(one.values, why=why, again=True)
        chosen = int(np.argmax(exactly))
        expects = ", ".join(
            _expected(goal, belief, chosen, *at) for goal, belief, at in zip(modelled, beliefs, predicted, strict=True)
        )
        why = f"the most promising of {len(pool)}: expects {expects}"
        return Suggestion(pool[order[chosen]].values, why=why)

    return propose


def _worth_another_run(beliefs: Sequence[Belief], known: np.ndarray, rng: np.random.Generator) -> int:
    """The least certain candidate on the front of one draw from what is believed (Thompson, 1933)."""
    deviations = [belief.deviation() for belief in beliefs]
    drawn = [
        belief.warp.back(belief.mean + deviation * rng.standard_normal(len(deviation)))
        for belief, deviation in zip(beliefs, deviations, strict=True)
    ]
    front = front_indices(np.column_stack([*drawn, known]))
    return max(front, key=lambda row: (sum(deviation[row] for deviation in deviations), -row))


def _expected(goal: Goal, belief: Belief, row: int, mean: np.ndarray, deviation: np.ndarray) -> str:
    """What is predicted of a candidate, for people: `accuracy 92.1 % ± 0.4 %`."""
    middle, far = belief.warp.back(np.array([mean[row], mean[row] + deviation[row]]))
    sign = -1.0 if goal.direction == "maximize" else 1.0
    return f"{goal.metric} {text(goal.metric, sign * float(middle))} ± {text(goal.metric, float(far - middle))}"


def _front_rows(believed: np.ndarray, usable: np.ndarray) -> list[int]:
    """Rows of the front of those that meet the constraints."""
    rows = np.flatnonzero(usable)
    found: list[int] = rows[front_indices(believed[rows])].tolist()
    return found


def _nearest_rows(rows: Sequence[Proposal], elite: int) -> list[int]:
    """Where nothing meets the constraints yet: what comes nearest to it."""
    return sorted(range(len(rows)), key=lambda row: excess(rows[row].violations))[:elite]


def _bounds(space: SearchSpace, goals: Sequence[Goal]) -> dict[str, float]:
    """The worst value of each goal that a constraint admits: nothing beyond is an improvement."""
    constraints = bounds_of(space)
    found = {}
    for goal in goals:
        bounds = constraints.get(goal.metric)
        worst = None if bounds is None else bounds.min if goal.direction == "maximize" else bounds.max
        if worst is not None:
            found[goal.metric] = worst
    return found


def _best_rows(believed: np.ndarray, front: list[int], usable: np.ndarray, elite: int) -> list[int]:
    """Rows of the front, and of the fronts behind it until there are `elite`; all of them meet the constraints."""
    best = list(front)
    behind = np.setdiff1d(np.flatnonzero(usable), front)
    for rows in fronts(believed[behind]):
        if len(best) >= elite:
            break
        best += behind[rows].tolist()
    return best


def _pool(
    best: Sequence[Proposal],
    seen: Container[str],
    space: SearchSpace,
    around: Neighbourhood,
    walks: int,
    rng: np.random.Generator,
) -> list[Architecture]:
    """What is looked at for one proposal: each architecture once, none that was proposed."""
    found: dict[str, Architecture] = {}
    for place in rng.permutation(len(best)):
        if len(found) >= MOST:
            break
        one = best[place]
        found.update((near.digest, near) for near in around(space, one.digest, one.values))
    for _ in range(walks):
        start = best[int(rng.integers(len(best)))]
        far = walk(space, start.values, int(rng.integers(2, 4)), rng)
        found.setdefault(far.digest, far)
        any_ = space.sample(rng)
        found.setdefault(any_.digest, any_)
    return [one for digest, one in found.items() if digest not in seen]


def _corner(
    believed: np.ndarray, rows: list[int], pool_known: np.ndarray, goals: Sequence[Goal], given: Mapping[str, float]
) -> np.ndarray:
    """`(M,)` the losses up to which an improvement counts.

    Those of the dearest architecture that is known or looked at, for a better network may cost more than the front; of
    what is modelled the worst on the front. Both and a tenth of their range.
    """
    front = believed[rows] if rows else believed
    first = believed.shape[1] - pool_known.shape[1]
    dear = np.vstack([believed[:, first:], pool_known])
    worst = np.concatenate([front[:, :first].max(0), dear.max(0)])
    width = worst - np.concatenate([front[:, :first].min(0), dear.min(0)])
    corner = worst + MARGIN * np.where(width > 0, width, np.maximum(np.abs(worst), 1e-12))
    for axis, goal in enumerate(goals):
        if goal.metric in given:
            corner[axis] = losses([given], [goal])[0, 0]
    return corner


class _Gain:
    """The expected improvement of the hypervolume (with one goal, of the best) over what is believed.

    Args:
        front: `(N, M)` losses of the candidates that no other beats, the modelled ones first.
        warps: of the modelled losses.
        corner: `(M,)`.
        rng: places the samples of a second and further modelled metric.
    """

    def __init__(self, front: np.ndarray, warps: Sequence[Warp], corner: np.ndarray, rng: np.random.Generator):
        self._warps = warps
        self._corner = corner
        self._single = front.shape[1] == 1
        self._front = front[(front < corner).all(1)]
        # With one goal there is no volume to fill: any threshold below the best counts.
        if self._single:
            self._corner, self._front = np.minimum(front.min(0, initial=np.inf), corner), front[:0]
        strata = (np.arange(SAMPLES) + 0.5) / SAMPLES
        self._normal = [ndtri(rng.permutation(strata)) for _ in warps[1:]]

    def __call__(self, predicted: Sequence[tuple[np.ndarray, np.ndarray]], known: np.ndarray) -> np.ndarray:
        """`(C,)`.

        Args:
            predicted: of every modelled metric mean and deviation, `(C,)`, on its warped scale.
            known: `(C, K)`.
        """
        if not predicted:
            return self._free(known, np.zeros(1))[:, 0]
        mean, deviation = predicted[0]
        warp = self._warps[0]
        highest = float(warp(self._corner[0]))
        lowest = min(float((mean - SPREAD * deviation).min()), highest - 1e-6)
        steps = np.linspace(lowest, highest, THRESHOLDS + 1)
        at = warp.back((steps[1:] + steps[:-1]) / 2)
        below = ndtr(((steps[1:] + steps[:-1]) / 2 - mean[:, None]) / np.maximum(deviation, 1e-9)[:, None]) * np.diff(
            warp.back(steps)
        )
        if not self._normal:
            return np.einsum("cg,cg->c", below, self._free(known, at))
        total = np.zeros(len(mean))
        for sample in range(SAMPLES):
            others = [
                warp.back(mean + deviation * normal[sample])
                for warp, normal, (mean, deviation) in zip(self._warps[1:], self._normal, predicted[1:], strict=True)
            ]
            total += np.einsum("cg,cg->c", below, self._free(np.column_stack([*others, known]), at))
        return total / SAMPLES

    def _free(self, known: np.ndarray, at: np.ndarray) -> np.ndarray:
        first = len(self._warps) > 0
        front_loss = self._front[:, 0] if first else np.zeros(len(self._front))
        return free_volume(known, self._front[:, int(first) :], front_loss, at, self._corner[int(first) :])
