"""What generated weights depend on, and how it is shown to the generator.

A hypernetwork with piecewise linear activations and zero biases emits weights in proportion to the size of its input:
so the scale of a network, and that of its gradients, would change with its condition. Magnitude-invariant
parametrisations show every condition as a vector of one and the same norm, and add what is generated to weights that
do not depend on it (Ortiz, Guttag & Dalca, Magnitude Invariant Parametrizations Improve Hypernetwork Learning, 2023).
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate
from math import pi, sqrt

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nasplat.core.errors import NasplatError


def check_sizes(what: str, *sizes: int) -> None:
    """Raises NasplatError where a size in the settings of `what` is no whole number from 1."""
    wrong = [size for size in sizes if isinstance(size, bool) or not isinstance(size, int) or size < 1]
    if wrong:
        raise NasplatError(f"{what}: {wrong[0]!r} is no size", "sizes are whole numbers from 1")


@dataclass(frozen=True, slots=True)
class Parametrisation:
    """How a condition becomes weights.

    Args:
        constant_norm: conditions are encoded as vectors of constant norm; otherwise they are shown as they are.
        base: what is generated is added to weights of their own, which begin as those of the given network.
        spread: standard deviation of what is generated at initialisation, as a share of that of the given weights.
    """

    constant_norm: bool
    base: bool
    spread: float

    def __post_init__(self) -> None:
        if not self.spread > 0:
            raise NasplatError(f"spread {self.spread} is not positive", "MIP has 0.25, PLAIN has 1.0")


# Small beside the base, so that pretrained weights still work where training begins.
MIP = Parametrisation(constant_norm=True, base=True, spread=0.25)
PLAIN = Parametrisation(constant_norm=False, base=False, spread=1.0)


@dataclass(frozen=True, slots=True)
class Continuous:
    """Numbers `(size,)` in [0, 1], such as hyperparameters brought to that range."""

    size: int

    def __post_init__(self) -> None:
        check_sizes("Continuous", self.size)


@dataclass(frozen=True, slots=True)
class Categorical:
    """Indices `(len(options),)`, one a decision, each shown as a learned embedding: a task, or an architecture.

    Args:
        options: how many each decision has.
        embedding: size of the embeddings.
    """

    options: tuple[int, ...]
    embedding: int = 16

    def __post_init__(self) -> None:
        check_sizes("Categorical", self.embedding, len(self.options), *self.options)


@dataclass(frozen=True, slots=True)
class OneHot:
    """Indices `(len(options),)`, one a decision, each shown as a one among zeros.

    Args:
        options: how many each decision has.
    """

    options: tuple[int, ...]

    def __post_init__(self) -> None:
        check_sizes("OneHot", len(self.options), *self.options)


Condition = Continuous | Categorical | OneHot


def make_encoder(
    condition: Condition, parametrisation: Parametrisation, rng: torch.Generator | None = None
) -> ContinuousEncoder | EmbeddingEncoder | OneHotEncoder:
    """The module that shows a condition to a generator; its attribute `size` tells how long the vector is."""
    if isinstance(condition, Continuous):
        return ContinuousEncoder(condition, parametrisation)
    if isinstance(condition, Categorical):
        return EmbeddingEncoder(condition, parametrisation, rng)
    return OneHotEncoder(condition)


class ContinuousEncoder(nn.Module):
    """`[cos(πg/2), sin(πg/2)]` of every coordinate g, a vector of norm √size; or the coordinates as they are."""

    def __init__(self, condition: Continuous, parametrisation: Parametrisation) -> None:
        super().__init__()
        self.constant_norm = parametrisation.constant_norm
        self.given = condition.size
        self.size = 2 * condition.size if self.constant_norm else condition.size

    def typical(self) -> Tensor:
        """A condition from the middle of the range."""
        return torch.full((self.given,), 0.5)

    def forward(self, values: Tensor) -> Tensor:
        """Numbers `(given,)` to a vector `(size,)`.

        Raises:
            NasplatError: another shape, or a number that is not in [0, 1]. The latter is looked for where looking does
                not make the device wait: on the CPU, and in evaluation.
        """
        _check_shape(values, self.given, "numbers in [0, 1]")
        if not self.constant_norm:
            return values
        if _may_look(values, self) and not bool(((values >= 0) & (values <= 1)).all()):
            raise NasplatError(
                f"the condition {[round(one, 6) for one in values.tolist()]} is not within [0, 1]",
                "scale every hyperparameter to [0, 1]; beyond it two of them would look the same",
            )
        angles = values * (pi / 2)
        return torch.cat([angles.cos(), angles.sin()])


class EmbeddingEncoder(nn.Module):
    """A learned embedding of every decision, of norm 1 where conditions have a constant one, side by side."""

    def __init__(
        self, condition: Categorical, parametrisation: Parametrisation, rng: torch.Generator | None = None
    ) -> None:
        super().__init__()
        self.constant_norm, self.options = parametrisation.constant_norm, condition.options
        self.size = condition.embedding * len(condition.options)
        table = torch.empty(sum(condition.options), condition.embedding)
        self.embeddings = nn.Parameter(table.normal_(0, 1 / sqrt(condition.embedding), generator=rng))
        self.first: Tensor  # row of each decision
        offsets = [0, *accumulate(condition.options)][:-1]
        self.register_buffer("first", torch.tensor(offsets), persistent=False)

    def typical(self) -> Tensor:
        return torch.zeros(len(self.options), dtype=torch.long)

    def forward(self, indices: Tensor) -> Tensor:
        """Indices `(len(options),)` to a vector `(size,)`; for errors see `_check_indices`."""
        _check_indices(indices, self.options, self)
        rows = self.embeddings[indices.to(self.first) + self.first]
        return (F.normalize(rows, dim=1) if self.constant_norm else rows).flatten()


class OneHotEncoder(nn.Module):
    """A one among zeros for every decision: a vector of norm √decisions by itself."""

    def __init__(self, condition: OneHot) -> None:
        super().__init__()
        self.options, self.size = condition.options, sum(condition.options)

    def typical(self) -> Tensor:
        return torch.zeros(len(self.options), dtype=torch.long)

    def forward(self, indices: Tensor) -> Tensor:
        """Indices `(len(options),)` to a vector `(size,)`; for errors see `_check_indices`."""
        _check_indices(indices, self.options, self)
        parts = [
            (torch.arange(count, device=indices.device) == index).to(torch.get_default_dtype())
            for count, index in zip(self.options, indices, strict=True)
        ]
        return torch.cat(parts)


def _check_indices(indices: Tensor, options: tuple[int, ...], encoder: nn.Module) -> None:
    """Refuses what are no indices of options.

    Raises:
        NasplatError: another shape, no integers, or an option that is not there (looked for on the CPU and in
            evaluation).
    """
    _check_shape(indices, len(options), "indices of options")
    if indices.is_floating_point() or indices.is_complex() or indices.dtype == torch.bool:
        raise NasplatError(
            f"the condition is of type {indices.dtype}, not of indices", "give the numbers of the options, as integers"
        )
    if _may_look(indices, encoder):
        wrong = [
            f"{index} of {count}"
            for index, count in zip(indices.tolist(), options, strict=True)
            if not 0 <= index < count
        ]
        if wrong:
            raise NasplatError(
                f"the condition names options that are not there: {', '.join(wrong)}", "options are counted from 0"
            )


def _check_shape(condition: Tensor, size: int, what: str) -> None:
    if not isinstance(condition, Tensor) or condition.shape != (size,):
        found = tuple(condition.shape) if isinstance(condition, Tensor) else type(condition).__name__
        raise NasplatError(
            f"the condition is {found}, not a tensor of shape {(size,)}", f"give {what}, one vector for all images"
        )


def _may_look(condition: Tensor, encoder: nn.Module) -> bool:
    """Whether values can be read without making a device, or a compiler, wait in the training loop."""
    readable = not condition.is_meta and not torch.compiler.is_compiling()
    return readable and (condition.device.type == "cpu" or not encoder.training)
