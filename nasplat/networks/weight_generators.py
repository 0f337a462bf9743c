"""Modules that generate the weights of other networks: from learned embeddings, and from a condition.

generate = WeightGenerator({"conv.weight": conv.weight}, Static())            # any names and tensors
weights = generate()                                                          # name -> tensor, differentiable
generate = WeightGenerator(targets, Chunked(), condition=Continuous(2))
weights = generate(torch.tensor([0.1, 0.7]))

Weight decay acts on what generates weights, not on the weights themselves.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import sqrt

import torch
from torch import Tensor, nn

from nasplat.core.errors import NasplatError
from nasplat.networks.perceptron_weights import Chunked, Dense, MadeChunked, MadeDense, MadeRecurrent, Recurrent
from nasplat.networks.static_kernels import Static, StaticKernels, unsupported
from nasplat.networks.weight_conditions import MIP, Condition, Parametrisation, make_encoder

Shape = tuple[int, ...]
GeneratorSettings = Static | Dense | Chunked | Recurrent


class WeightGenerator(nn.Module):
    """Generates tensors by name, from a condition or from nothing.

    Whatever generates, every tensor is scaled by a fixed number such that, at initialisation, its standard deviation is
    `parametrisation.spread` of that of the given values. Kaiming's initialisation of a generator does not do that by
    itself (Chang et al., Principled Weight Initialization for Hypernetworks, 2020).

    Args:
        targets: name to tensor; the tensors' shapes are generated, and their values set the scale and are the base.
        settings: what kind of generator.
        condition: what the weights depend on, besides what is learned.
        parametrisation: `MIP` or `PLAIN`, or another of one's own.
        rng: draws the initial weights, on the CPU; torch's default generator where there is none.

    Attributes:
        base: the weights that what is generated is added to, in the order of the names; None where there are none.

    Raises:
        NasplatError: a tensor without dimensions or values, or of a rank that the generator has no kernels of; tensors
            of several types or on several devices.
    """

    def __init__(
        self,
        targets: Mapping[str, Tensor],
        settings: GeneratorSettings,
        condition: Condition | None = None,
        parametrisation: Parametrisation = MIP,
        rng: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        _check(targets, settings)
        self.settings, self.condition, self.parametrisation = settings, condition, parametrisation
        self.shapes = {name: tuple(target.shape) for name, target in targets.items()}
        self.encoder = None if condition is None else make_encoder(condition, parametrisation, rng)
        self.raw = _make_raw(settings, list(self.shapes.values()), 0 if self.encoder is None else self.encoder.size)
        self.raw.reset(rng)
        # In single precision on the CPU until its scale is known, then like the targets.
        with torch.no_grad():
            raw = self.raw(None if self.encoder is None else self.encoder(self.encoder.typical()))
        wanted = [parametrisation.spread * _spread(target) for target in targets.values()]
        scales = [one / max(found.square().mean().sqrt().item(), 1e-12) for one, found in zip(wanted, raw, strict=True)]
        self.scales: Tensor
        self.register_buffer("scales", torch.tensor(scales))
        self.base: nn.ParameterList | None = None
        if parametrisation.base:
            self.base = nn.ParameterList([nn.Parameter(target.detach().clone()) for target in targets.values()])
        self.to(next(iter(targets.values())))

    def freeze_base(self) -> None:
        """Trains only what is generated, beside weights that stay as they were given.

        Raises:
            NasplatError: there are none.
        """
        if self.base is None:
            raise NasplatError("there are no base weights to freeze", "use a parametrisation that has them, as MIP")
        self.base.requires_grad_(False)

    def forward(self, condition: Tensor | None = None) -> dict[str, Tensor]:
        """The weights by name, of the shapes and in the order of the targets.

        Args:
            condition: `(size,)` numbers or indices, as `self.condition` says; None where the weights have none.

        Raises:
            NasplatError: a condition is missing, or not taken, or is none of those that there are.
        """
        raw = self.raw(self.encoded(condition))
        weights = [one * scale for one, scale in zip(raw, self.scales, strict=True)]
        if self.base is not None:
            weights = [base + one for base, one in zip(self.base, weights, strict=True)]
        return dict(zip(self.shapes, weights, strict=True))

    def encoded(self, condition: Tensor | None) -> Tensor | None:
        """What a condition looks like to the generator, a vector; None where there is no condition."""
        if self.encoder is None:
            if condition is not None:
                raise NasplatError("these weights do not depend on a condition", "leave the condition away")
            return None
        if condition is None:
            raise NasplatError(f"these weights depend on a condition, {self.condition}", "give one beside the images")
        return self.encoder(condition).to(self.scales)


def _make_raw(
    settings: GeneratorSettings, shapes: Sequence[Shape], condition_size: int
) -> StaticKernels | MadeDense | MadeChunked | MadeRecurrent:
    if isinstance(settings, Static):
        return StaticKernels(settings, shapes, condition_size)
    if isinstance(settings, Dense):
        return MadeDense(settings, shapes, condition_size)
    if isinstance(settings, Chunked):
        return MadeChunked(settings, shapes, condition_size)
    return MadeRecurrent(settings, shapes, condition_size)


def _check(targets: Mapping[str, Tensor], settings: GeneratorSettings) -> None:
    if not targets:
        raise NasplatError("there are no weights to generate", "name parameters of the network")
    first_name, first = next(iter(targets.items()))
    for name, target in targets.items():
        if not target.dim() or not target.numel():
            raise NasplatError(
                f"the parameter {name!r} of shape {tuple(target.shape)} cannot be generated",
                "leave it out: choose parameters with values and at least one dimension",
            )
        if not target.is_floating_point():
            raise NasplatError(f"the parameter {name!r} is of type {target.dtype}", "choose real parameters")
        if isinstance(settings, Static) and unsupported(tuple(target.shape)):
            raise NasplatError(
                f"the parameter {name!r} of shape {tuple(target.shape)} is no kernel that tiles make up",
                "Static takes 2 or 4 dimensions, of linear layers and 2-d convolutions; Chunked, Recurrent and Dense "
                "take any number from 1",
            )
        if (target.dtype, target.device) != (first.dtype, first.device):
            raise NasplatError(
                f"the parameter {name!r} is {target.dtype} on {target.device}, but {first_name!r} is {first.dtype} on "
                f"{first.device}",
                "choose parameters of one type on one device",
            )


def _spread(target: Tensor) -> float:
    """Of the values; where they are all the same, as in biases, that of a vector of norm 1."""
    spread = target.detach().float().std(correction=0).item()
    return spread if spread > 0 else 1 / sqrt(target.numel())
