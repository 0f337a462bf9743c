"""What a search believes of a metric: a Gaussian process over the candidates that were evaluated."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil
from weakref import WeakKeyDictionary

import numpy as np

from nasplat.core.front import Goal, losses
from nasplat.core.space import SearchSpace
from nasplat.search.gaussian_process import Code, Coded, GaussianProcess, fit_parameters, solve
from nasplat.search.history import History, Proposal

FIRST_FIT = 4
LEAST_FREEDOM = 3
MOST_NOISE = 0.65  # of what the kernel does not explain; the rest is always taken for the candidate's own
FIRST = 8
GROWTH = 1.2  # the kernel's parameters are chosen anew whenever there are so many times more observations


@dataclass(frozen=True)
class Warp:
    """A loss on a scale that keeps differences among the good and presses the bad together.

    `log(1 + (loss - least) / scale)`, standardised.
    """

    least: float
    scale: float
    mean: float
    deviation: float

    def __call__(self, loss: np.ndarray) -> np.ndarray:
        inside = np.maximum(1 + (np.asarray(loss) - self.least) / self.scale, 1e-3)
        return (np.log(inside) - self.mean) / self.deviation

    def back(self, warped: np.ndarray) -> np.ndarray:
        return np.asarray(self.least + self.scale * np.expm1(self.mean + self.deviation * np.asarray(warped)))


def warp_of(loss: np.ndarray) -> Warp:
    """The warp of these losses, `(N,)` in the order in which they were found.

    The scale is that of the first candidates, which are random: that of all would shrink as a search closes in.
    """
    least = float(loss.min())
    scale = float(np.median(loss[:FIRST])) - least or float(loss.std()) or 1.0
    raw = np.log1p((loss - least) / scale)
    return Warp(least, scale, float(raw.mean()), float(raw.std()) or 1.0)


@dataclass(frozen=True)
class Belief:
    """A posterior of one metric.

    What is believed in is the candidate's own value: the smooth function that the table of choices explains, and what
    is peculiar to the candidate, without the luck of its runs.

    Attributes:
        losses: `(N + P,)` the expected loss of every measured candidate and every running one.
        warp: between losses and the scale of the predictions.
        mean: `(N,)` expected values of the evaluated candidates on the warped scale.
        noise: `(N,)` variance of what was observed of them around their values, on that scale.
        run_noise: variance of a single run.
    """

    losses: np.ndarray
    warp: Warp
    mean: np.ndarray
    noise: np.ndarray
    run_noise: float
    _process: GaussianProcess
    _bits: np.ndarray
    _factor: np.ndarray
    _half: np.ndarray
    _weights: np.ndarray
    _scale: float
    _peculiar: float

    def code(self, architectures: Sequence[Coded]) -> np.ndarray:
        """`(C, bits)` of candidates, for the functions below."""
        return self._process.code(architectures)

    def predict(self, code: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """`(C,)` mean and standard deviation of new candidates on the warped scale."""
        half = solve(self._factor, self._process.kernel(self._bits, code))
        left = np.maximum(1.0 + self._peculiar - (half**2).sum(0), 1e-10)
        return half[: len(self._half)].T @ self._half, np.sqrt(self._scale * left)

    def rough(self, code: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The same mean, and a bound of the deviation from the nearest row alone, to four digits: much cheaper."""
        kernel = self._process.kernel(code.astype(np.float32), self._bits.astype(np.float32))
        mean = kernel[:, : len(self._weights)] @ self._weights
        left = np.maximum(1.0 + self._peculiar - kernel.max(1) ** 2 / (1 + self._peculiar), 1e-10)
        return mean, np.sqrt(self._scale * left)

    def after_a_run(self, mean: np.ndarray, deviation: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Mean and deviation of what will be expected of candidates when each has been run once more."""
        return mean, deviation**2 / np.sqrt(deviation**2 + self.run_noise + 1e-12)

    def deviation(self) -> np.ndarray:
        """`(N,)` standard deviation of the values of the evaluated candidates, on the warped scale."""
        own = self._factor[: len(self.mean), : len(self.mean)]
        inverse = solve(own, np.eye(len(own)))
        return np.sqrt(np.maximum(self.noise - self.noise**2 * (inverse**2).sum(0) / self._scale, 0.0))


class Surrogates:
    """Conditions processes on candidates; what it remembers saves time and changes nothing."""

    def __init__(self) -> None:
        self._by_space: WeakKeyDictionary[SearchSpace, dict[str, _Fitted]] = WeakKeyDictionary()

    def condition(self, space: SearchSpace, goal: Goal, history: History, pending: Sequence[Proposal] = ()) -> Belief:
        """What is believed of a metric after a history; a pending candidate counts as returning what is expected.

        The parameters of the kernel are those of the first candidates, as many as the largest step of a geometric
        series: so they are a function of the history, and seldom chosen anew. What the kernel does not
        explain is taken for noise of single runs, until candidates that were run again tell how much of it is.
        A candidate that was refused for what was measured of it teaches as much as any other.
        """
        complete = history.measured([goal.metric])
        loss = losses([one.metrics for one in complete], [goal])[:, 0]
        process = self._fitted(space, goal, complete[: _fitted_rows(len(complete))], loss).process
        warp = warp_of(loss)
        targets = warp(loss)
        rows = (*complete, *pending)
        bits = process.code(rows)
        nugget = process.parameters.nugget
        measured = _noise_of_runs(history, goal, warp)
        share = MOST_NOISE
        if measured is not None:
            share = min(measured / (nugget * float(targets.var() or 1.0)), MOST_NOISE)
        runs = np.array([one.runs for one in rows])
        noise, peculiar = share * nugget / runs, (1 - share) * nugget
        factor = process.factor(bits, noise + peculiar, [one.digest for one in rows], len(complete))
        own = factor[: len(complete), : len(complete)]
        half = solve(own, targets)
        weights = solve(own, half, transposed=True)
        scale = max(float(half @ half) / len(complete), 1e-12)
        mean = targets - noise[: len(complete)] * weights
        ahead = process.kernel(bits[len(complete) :], bits[: len(complete)]) @ weights
        return Belief(
            losses=warp.back(np.concatenate([mean, ahead])),
            warp=warp,
            mean=mean,
            noise=scale * noise[: len(complete)],
            run_noise=scale * share * nugget,
            _process=process,
            _bits=bits,
            _factor=factor,
            _half=half,
            _weights=weights,
            _scale=scale,
            _peculiar=peculiar,
        )

    def _fitted(self, space: SearchSpace, goal: Goal, first: Sequence[Proposal], loss: np.ndarray) -> _Fitted:
        remembered = self._by_space.setdefault(space, {})
        basis = tuple((one.digest, float(value)) for one, value in zip(first, loss, strict=False))
        fitted = remembered.get(goal.metric)
        if fitted is None or fitted.basis != basis:
            code = Code(space.choices) if fitted is None else fitted.process.code
            own = loss[: len(first)]
            parameters = fit_parameters(code(first), code, warp_of(own)(own))
            fitted = remembered[goal.metric] = _Fitted(basis, GaussianProcess(code, parameters))
        return fitted


@dataclass(frozen=True)
class _Fitted:
    basis: tuple[tuple[str, float], ...]
    process: GaussianProcess


def _fitted_rows(count: int) -> int:
    step = FIRST_FIT
    while ceil(step * GROWTH) <= count:
        step = ceil(step * GROWTH)
    return min(step, count)


def _noise_of_runs(history: History, goal: Goal, warp: Warp) -> float | None:
    """The variance of single runs around their candidate's mean, on the warped scale; None where too few are known."""
    squares, freedom = 0.0, 0
    for runs in history.runs.values():
        values = warp(losses([one.metrics for one in runs], [goal])[:, 0])
        squares += float(((values - values.mean()) ** 2).sum())
        freedom += len(values) - 1
    return squares / freedom if freedom >= LEAST_FREEDOM else None
