"""The adapter of a performance predictor: a Gaussian process over one space's choices, costs and graph vectors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from scipy.optimize import minimize
from torch import Tensor

from nasplat.core.cost import COSTS
from nasplat.core.space import SearchSpace

_FITTED = 400  # labels that choose the kernel's weights; all labels are used afterwards
_POWERS = np.linspace(0.0, 5.0, 51)


@dataclass(frozen=True, slots=True)
class LabelScale:
    """A label's way to zero mean and unit variance, and back.

    Args:
        by_macs: divide by log10(MACs) + 1 first, the scaling of AIO-P (2023).
        mean, deviation: of what is then standardised.
        power: of Yeo and Johnson (2000); above 1 draws the best apart and the worst together.
        centre, spread: standardise once more, after the power.
        low, high: scaled labels between which the power is inverted; beyond, the inverse goes on straight.
    """

    by_macs: bool
    mean: float
    deviation: float
    power: float
    centre: float
    spread: float
    low: float
    high: float

    def scale(self, values: np.ndarray, macs: np.ndarray) -> np.ndarray:
        """Values `(N,)` and MACs `(N,)` to scaled labels `(N,)`."""
        return (_power(self._standard(values, macs), self.power) - self.centre) / self.spread

    def invert(self, labels: np.ndarray, macs: np.ndarray) -> np.ndarray:
        """Scaled labels `(N,)` to values `(N,)`."""
        inside = np.clip(labels, self.low, self.high)
        plain = _unpower(self.centre + self.spread * inside, self.power)
        slope = self.spread / np.exp((self.power - 1) * np.sign(plain) * np.log1p(np.abs(plain)))
        return (self.mean + self.deviation * (plain + slope * (labels - inside))) * _divisor(macs, self.by_macs)

    def _standard(self, values: np.ndarray, macs: np.ndarray) -> np.ndarray:
        return (values / _divisor(macs, self.by_macs) - self.mean) / self.deviation


def _divisor(macs: np.ndarray, by_macs: bool) -> np.ndarray:
    return np.log10(np.maximum(macs, 1.0)) + 1 if by_macs else np.ones(len(macs))


def _power(values: np.ndarray, power: float) -> np.ndarray:
    """Yeo and Johnson (2000): (1 + y)^power for positive y, the mirror image with 2 - power for negative y."""
    size, own = np.log1p(np.abs(values)), np.where(values >= 0, power, 2 - power)
    return np.sign(values) * np.where(np.abs(own) < 1e-9, size, np.expm1(own * size) / np.where(own == 0, 1, own))


def _unpower(values: np.ndarray, power: float) -> np.ndarray:
    own = np.where(values >= 0, power, 2 - power)
    within = np.log1p(np.maximum(own * np.abs(values), -1 + 1e-12)) / np.where(np.abs(own) < 1e-9, 1, own)
    return np.sign(values) * np.expm1(np.where(np.abs(own) < 1e-9, np.abs(values), within))


def _likeliest_scale(
    values: np.ndarray, macs: np.ndarray, precision: np.ndarray, by_macs: Sequence[bool]
) -> LabelScale:
    """The power, and the scaling by MACs or not, under which a Gaussian process makes the values most likely.

    Args:
        precision: `(N, N)`, the inverse of the process's covariance up to a factor.
        by_macs: which of the two scalings may be chosen.
    """
    best, found = -np.inf, None
    for divided in by_macs:
        divisor = _divisor(macs, divided)
        plain = values / divisor
        deviation = float(plain.std()) or 1.0
        standard = (plain - plain.mean()) / deviation
        for power in _POWERS:
            labels = _power(standard, power)
            centre, spread = float(labels.mean()), float(labels.std()) or 1.0
            labels = (labels - centre) / spread
            # The logarithm of the slope of the way there, so that likelihoods of one and the same values are compared.
            slope = (power - 1) * np.sign(standard) * np.log1p(np.abs(standard)) - np.log(spread * deviation * divisor)
            likelihood = slope.sum() - len(values) / 2 * np.log(max(labels @ precision @ labels, 1e-12))
            if found is None or likelihood > best:
                ends = float(labels.min()) - 0.5, float(labels.max()) + 0.5
                best = likelihood
                found = LabelScale(divided, float(plain.mean()), deviation, float(power), centre, spread, *ends)
    assert found is not None
    low = found.low
    if found.power > 2:  # there the power has a lower bound that no value reaches
        low = max(low, (-1 / (found.power - 2) * 0.99 - found.centre) / found.spread)
    return replace(found, low=low)


@dataclass(frozen=True, slots=True)
class Inputs:
    """What an adapter reads: positions of options `(N, C)`, log costs `(N, 3)`, vectors of the base `(N, D)`."""

    codes: Tensor
    costs: Tensor
    vectors: Tensor

    def macs(self) -> np.ndarray:
        return 10 ** self.costs[:, COSTS.index("macs")].numpy()

    def __getitem__(self, rows: slice | Tensor) -> Inputs:
        return Inputs(self.codes[rows], self.costs[rows], self.vectors[rows])


_KERNELS = ("main", "pairs", "all", "costs", "cost_curves", "vectors")


@dataclass(frozen=True, slots=True)
class Kernel:
    """A sum of kernels, by their logarithmic weights `theta`.

    `theta` holds the noise, the weight of each of `_KERNELS`, of each choice, the reach of "all", of each cost, and of
    the vectors. `spans` `(C,)` is the largest distance of options of an ordered choice, 0 for any other choice.
    """

    spans: Tensor

    def start(self) -> Tensor:
        values = [0.05, *[0.4] * len(_KERNELS), *[1.0] * len(self.spans), 2.0, *[0.3] * len(COSTS), 1.0]
        return torch.tensor(values, dtype=torch.float64).log()

    def alike(self, first: Tensor, second: Tensor) -> Tensor:
        """`(N, M, C)`: 1 where options agree, less for neighbours of an ordered choice, otherwise 0."""
        apart = (first[:, None] - second[None]).abs()
        return torch.where(self.spans > 0, 1 - apart / self.spans.clamp(min=1), (apart == 0).double())

    def covariance(self, theta: Tensor, alike: Tensor, first: Inputs, second: Inputs) -> Tensor:
        """`(N, M)`, without noise."""
        kinds, choices = len(_KERNELS), len(self.spans)
        sizes = theta[1:].exp().split([kinds, choices, 1, len(COSTS), 1])
        (main, pairs, every, costs, curves, vectors), weights, reach, cost_reach, vector_reach = sizes
        total, squares = weights.sum(), (weights**2).sum()
        shared = alike @ weights
        both = (shared**2 - alike**2 @ weights**2) / (total**2 - squares).clamp(min=1e-9)
        cost_distance = _squared_distance(first.costs * cost_reach.sqrt(), second.costs * cost_reach.sqrt())
        vector_distance = _squared_distance(first.vectors, second.vectors)
        return (
            main * shared / total
            + pairs * both
            + every * torch.exp(-reach * (total - shared) / choices)
            + costs * first.costs @ second.costs.T
            + curves * torch.exp(-cost_distance / 2)
            + vectors * torch.exp(-vector_reach * vector_distance / 2)
        )


def _squared_distance(first: Tensor, second: Tensor) -> Tensor:
    inner = first @ second.T
    return ((first**2).sum(1)[:, None] + (second**2).sum(1)[None] - 2 * inner).clamp(min=0)


@dataclass(frozen=True, slots=True)
class Adapter:
    """A Gaussian process over one space: its kernel, the inputs that it was fitted to, and their weights `(N,)`."""

    scale: LabelScale
    kernel: Kernel
    theta: Tensor
    inputs: Inputs
    weights: Tensor

    def predict(self, inputs: Inputs) -> np.ndarray:
        """Scaled labels `(M,)`."""
        own, given = (_standardised(one, self.inputs) for one in (self.inputs, inputs))
        return (_covariance(self.kernel, self.theta, given, own) @ self.weights).numpy()


def fit_adapter(kernel: Kernel, inputs: Inputs, values: np.ndarray, scale: LabelScale, seed: int) -> Adapter:
    """Kernel weights of the largest posterior density (log-normal priors about `start`), by L-BFGS."""
    labels = torch.from_numpy(scale.scale(values, inputs.macs()))
    own, prior = _standardised(inputs, inputs), kernel.start()
    rows = torch.from_numpy(np.sort(np.random.default_rng(seed).permutation(len(labels))[:_FITTED]))
    some, target = own[rows], labels[rows]
    alike = kernel.alike(some.codes, some.codes)
    width = torch.ones_like(prior)
    width[: 1 + len(_KERNELS)] = 2.0

    def loss(point: np.ndarray) -> tuple[float, np.ndarray]:
        theta = torch.tensor(point, requires_grad=True)
        factor = torch.linalg.cholesky(_noisy(kernel.covariance(theta, alike, some, some), theta))
        fit = target @ torch.cholesky_solve(target[:, None], factor)[:, 0] / 2 + factor.diagonal().log().sum()
        total = fit + (((theta - prior) / width) ** 2).sum() / 2
        (gradient,) = torch.autograd.grad(total, theta)
        return total.item(), gradient.numpy()

    bounds = [(value - 6, value + 6) for value in prior.tolist()]
    found = minimize(loss, prior.numpy(), jac=True, method="L-BFGS-B", bounds=bounds, options={"maxiter": 60})
    theta = torch.from_numpy(found.x)
    weights = torch.linalg.solve(_noisy(_covariance(kernel, theta, own, own), theta), labels)
    return Adapter(scale, kernel, theta, inputs, weights)


def _covariance(kernel: Kernel, theta: Tensor, first: Inputs, second: Inputs) -> Tensor:
    """`(N, M)`, some rows at a time, for the likeness of all choices takes much memory."""
    step = max(1, 10_000_000 // max(1, second.codes.numel()))
    starts = range(0, max(1, len(first.codes)), step)
    parts = [first[slice(start, start + step)] for start in starts]
    return torch.cat([kernel.covariance(theta, kernel.alike(one.codes, second.codes), one, second) for one in parts])


def _noisy(covariance: Tensor, theta: Tensor) -> Tensor:
    return covariance + (theta[0].exp() + 1e-6) * torch.eye(len(covariance), dtype=covariance.dtype)


def _standardised(inputs: Inputs, reference: Inputs) -> Inputs:
    """Costs and vectors by the mean and deviation of the reference; squared distances of vectors are about 2."""

    def standard(values: Tensor, own: Tensor) -> Tensor:
        deviation = ((own - own.mean(0)) ** 2).mean(0).sqrt()
        return (values - own.mean(0)) / torch.where(deviation < 1e-6, 1.0, deviation)

    vectors = standard(inputs.vectors, reference.vectors) / max(1, reference.vectors.shape[1]) ** 0.5
    return Inputs(inputs.codes, standard(inputs.costs, reference.costs), vectors)


def kernel_of(space: SearchSpace) -> Kernel:
    spans = [len(choice.options) - 1 if choice.ordered else 0 for choice in space.choices.values()]
    return Kernel(torch.tensor(spans, dtype=torch.float64))


def fit_scale(kernel: Kernel, inputs: Inputs, values: np.ndarray, by_macs: Sequence[bool]) -> LabelScale:
    start, own = kernel.start(), _standardised(inputs, inputs)
    precision = torch.linalg.inv(_noisy(_covariance(kernel, start, own, own), start)).numpy()
    return _likeliest_scale(values, inputs.macs(), precision, by_macs)
