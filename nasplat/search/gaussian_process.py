"""Gaussian-process regression over a table of choices.

An assignment is written as bits, so that the distance of two is a weighted count of bits that differ: a choice without
order is 1 for different options; an ordered one is the number of steps between its options, as a share of all steps.
The kernel is a sum of two, with a weight for every choice: `exp(-distance)`, a product over the choices, which models
interactions of every order (a Hamming kernel with a relevance for each choice; Wan et al., CASMOPOLITAN, 2021), and
`1 - distance / largest distance`, which models what every choice adds by itself.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from scipy.linalg import cho_solve, cholesky, solve_triangular
from scipy.optimize import minimize

from nasplat.core.choice import Choice, Option, Values

BLOCK = 64
MOST_TO_FIT = 192  # observations from which the kernel's parameters are chosen
JITTER = 1e-6


class Coded(Protocol):
    """An architecture, or a proposal of one."""

    @property
    def digest(self) -> str: ...
    @property
    def values(self) -> Values: ...


class Code:
    """How assignments are written as bits. A choice with a single option has none.

    Attributes:
        choices: how many.
        owner: `(bits,)` position of the choice that each bit belongs to.
        share: `(bits,)` what a differing bit adds to the distance of its choice, which is 1 for the farthest options.
    """

    def __init__(self, choices: Mapping[str, Choice]) -> None:
        self.choices = len(choices)
        owner: list[int] = []
        share: list[float] = []
        self._bits: dict[str, dict[tuple[bool, Option], np.ndarray]] = {}
        for position, choice in enumerate(choices.values()):
            count = len(choice.options)
            # |i - j| is the number of bits in which the unary codes of i and j differ; of two one-hot codes two differ.
            bits = np.tri(count, count - 1, -1) if choice.ordered else np.eye(count)[:, : count if count > 1 else 0]
            owner += [position] * bits.shape[1]
            share += [1.0 / max(count - 1, 1) if choice.ordered else 0.5] * bits.shape[1]
            self._bits[choice.name] = {_typed(option): bits[index] for index, option in enumerate(choice.options)}
        self.owner, self.share = np.array(owner, dtype=int), np.array(share)
        self._rows: dict[str, int] = {}  # of every digest that was written, its row here:
        self._written = np.empty((256, len(self.owner)))

    def __call__(self, architectures: Sequence[Coded]) -> np.ndarray:
        """`(N, bits)` of zeros and ones."""
        for one in architectures:
            if one.digest not in self._rows:
                self._write(one)
        found: np.ndarray = self._written[[self._rows[one.digest] for one in architectures]]
        return found

    def _write(self, one: Coded) -> None:
        row = len(self._rows)
        if row == len(self._written):
            self._written = np.concatenate([self._written, np.empty_like(self._written)])
        values = one.values
        self._written[row] = np.concatenate([bits[_typed(values[name])] for name, bits in self._bits.items()])
        self._rows[one.digest] = row


def _typed(option: Option) -> tuple[bool, Option]:
    return (isinstance(option, bool), option)  # True and 1 are two options


@dataclass(frozen=True)
class Parameters:
    """Of a kernel of unit variance.

    Args:
        weights: `(choices,)`.
        additive: variance of the additive part, as a share of that of the product.
        nugget: variance of an observation around the smooth function, as a share of the function's.
    """

    weights: np.ndarray
    additive: float
    nugget: float


def fit_parameters(bits: np.ndarray, code: Code, targets: np.ndarray) -> Parameters:
    """The most probable parameters: marginal likelihood (its scale in closed form) times a log-normal prior.

    Args:
        bits: `(N, bits)`; of more than `MOST_TO_FIT` rows the best half of that many and the latest are used.
        targets: `(N,)`, less is better.
    """
    if len(targets) > MOST_TO_FIT:
        chosen = np.zeros(len(targets), dtype=bool)
        chosen[np.argsort(targets, kind="stable")[: MOST_TO_FIT // 2]] = True
        chosen[np.flatnonzero(~chosen)[-(MOST_TO_FIT - MOST_TO_FIT // 2) :]] = True
        bits, targets = bits[chosen], targets[chosen]
    count = code.choices
    distances = _distances_by_choice(bits, code)
    centred = targets - targets.mean()
    prior = np.array([*[np.log(2.0 / count)] * count, 0.0, np.log(0.1)])
    spread = np.array([*[0.5] * count, 1.5, 1.5])
    found = minimize(
        _cost_and_gradient,
        prior,
        args=(distances, centred, prior, spread),
        jac=True,
        method="L-BFGS-B",
        bounds=[(np.log(1e-4), np.log(20.0))] * count + [(np.log(1e-2), np.log(1e2)), (np.log(1e-5), np.log(10.0))],
        options={"maxiter": 40},
    )
    return Parameters(np.exp(found.x[:-2]), float(np.exp(found.x[-2])), float(np.exp(found.x[-1])))


def _distances_by_choice(bits: np.ndarray, code: Code) -> np.ndarray:
    """`(choices, N, N)`."""
    found = np.zeros((code.choices, len(bits), len(bits)))
    for position in range(code.choices):
        own = bits[:, code.owner == position]
        total = own.sum(1)
        share = code.share[code.owner == position][:1]
        found[position] = (total[:, None] + total[None] - 2 * own @ own.T) * (share if len(share) else 0.0)
    return found


def _cost_and_gradient(
    logs: np.ndarray, distances: np.ndarray, targets: np.ndarray, prior: np.ndarray, spread: np.ndarray
) -> tuple[float, np.ndarray]:
    """The negative logarithm of likelihood times prior, and its gradient in the logarithms of the parameters."""
    weights, additive, nugget = np.exp(logs[:-2]), np.exp(logs[-2]), np.exp(logs[-1])
    count, total = len(targets), weights.sum()
    distance = np.tensordot(weights, distances, 1)
    product, linear = np.exp(-distance), 1 - distance / total
    smooth = (product + additive * linear) / (1 + additive)
    factor = cholesky(smooth + (nugget + JITTER) * np.eye(count), lower=True, check_finite=False)
    inverse = cho_solve((factor, True), np.eye(count), check_finite=False)
    solved = inverse @ targets
    scale = max(float(targets @ solved), 1e-12) / count
    deviation = (logs - prior) / spread
    cost = 0.5 * count * np.log(scale) + np.log(np.diag(factor)).sum() + 0.5 * float(deviation @ deviation)
    pull = (inverse - np.outer(solved, solved) / scale) * 0.5
    slope = pull * (product + additive / total) / (1 + additive)
    gradient = np.empty_like(logs)
    gradient[:-2] = weights * (
        additive / (1 + additive) * float((pull * distance).sum()) / total**2 - np.tensordot(distances, slope, 2)
    )
    gradient[-2] = additive * float((pull * (linear - product)).sum()) / (1 + additive) ** 2
    gradient[-1] = nugget * np.trace(pull)
    return float(cost), gradient + deviation / spread


class GaussianProcess:
    """A posterior over functions of assignments.

    Rows are added in blocks: what was factorised before is used again, and equals bit for bit what it would be if all
    was factorised anew.

    Args:
        code: of the space.
        parameters: of the kernel.
    """

    def __init__(self, code: Code, parameters: Parameters) -> None:
        self.code = code
        self.parameters = parameters
        self._per_bit = parameters.weights[code.owner] * code.share
        self._largest = float(parameters.weights.sum()) or 1.0
        self._blocks: list[np.ndarray] = []  # finished block rows of the factor
        self._rows: list[list[tuple[str, float]]] = []  # that they stand for

    def kernel(self, first: np.ndarray, second: np.ndarray) -> np.ndarray:
        """`(N, M)` of `(N, bits)` and `(M, bits)`, in their precision."""
        per_bit = self._per_bit.astype(first.dtype, copy=False)
        weighted = first * per_bit
        distance = weighted.sum(1)[:, None] + (second * per_bit).sum(1)[None]
        distance -= 2 * weighted @ second.T
        np.maximum(distance, 0.0, out=distance)
        additive = self.parameters.additive
        # In place: at some hundred thousand entries new memory costs as much as the arithmetic.
        smooth = np.exp(-distance)
        distance /= -self._largest
        distance += 1
        distance *= additive
        smooth += distance
        smooth /= 1 + additive
        return np.asarray(smooth)

    def factor(self, bits: np.ndarray, nuggets: np.ndarray, digests: Sequence[str], lasting: int) -> np.ndarray:
        """`(N, N)` lower Cholesky factor of the covariance of observations at these rows.

        Args:
            bits: `(N, bits)`.
            nuggets: `(N,)` variance of each observation around the smooth function.
            digests: of the rows.
            lasting: how many of the first rows will be there again at the next call.
        """
        rows = list(zip(digests, nuggets.tolist(), strict=True))
        kept = 0
        while kept < len(self._blocks) and self._rows[kept] == rows[kept * BLOCK : (kept + 1) * BLOCK]:
            kept += 1
        del self._blocks[kept:], self._rows[kept:]
        whole = np.zeros((len(bits), len(bits)))
        for position, block in enumerate(self._blocks):
            whole[position * BLOCK : (position + 1) * BLOCK, : block.shape[1]] = block
        for start in range(kept * BLOCK, len(bits), BLOCK):
            end = min(start + BLOCK, len(bits))
            covariance = self.kernel(bits[start:end], bits[:end])
            own = covariance[:, start:] + np.diag(nuggets[start:end] + JITTER)
            if start:
                left = solve(whole[:start, :start], covariance[:, :start].T).T
                whole[start:end, :start] = left
                own -= left @ left.T
            whole[start:end, start:end] = np.tril(cholesky(own, lower=True, check_finite=False))
            if end - start == BLOCK and end <= lasting:
                self._blocks.append(whole[start:end, :end].copy())
                self._rows.append(rows[start:end])
        return whole


def solve(factor: np.ndarray, right: np.ndarray, *, transposed: bool = False) -> np.ndarray:
    """Forward substitution with a lower triangle, or backward substitution with its transpose."""
    return np.asarray(solve_triangular(factor, right, lower=True, trans=int(transposed), check_finite=False))
