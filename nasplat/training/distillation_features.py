"""What a student learns from a teacher's feature maps: hints, attention, relations."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nasplat.core.errors import NasplatError, nearest


def hint(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean squared difference of features of equal shape (Romero et al., FitNets, 2015)."""
    return F.mse_loss(student.float(), teacher.float())


def attention(student: Tensor, teacher: Tensor) -> Tensor:
    """Squared difference of normalised maps of energy (Zagoruyko & Komodakis, 2017); channels may differ."""

    def where(maps: Tensor) -> Tensor:
        return F.normalize(maps.float().square().mean(1).flatten(1), dim=1)

    return (where(student) - where(teacher)).square().mean()


def distances(features: Tensor) -> Tensor:
    """Distances between all images of a batch `(N, N)`, over their mean (Park et al., 2019)."""
    found, same = _lengths(_products(features))
    return found / (found.sum() / (~same).sum().clamp(min=1)).clamp(min=1e-12)


def angles(features: Tensor) -> Tensor:
    """Cosines of the angles at each image between all pairs of others `(N, N, N)` (Park et al., 2019)."""
    products = _products(features)
    found, same = _lengths(products)
    # <x_i - x_j, x_k - x_j> from the products alone: features may be whole maps, whose differences would be N^2 maps.
    own = products.diagonal()
    at = products[None] - products[:, :, None] - products[:, None, :] + own[:, None, None]
    inverse = torch.where(same, 0.0, 1 / found.masked_fill(same, 1.0))
    return at * inverse[:, :, None] * inverse[:, None, :]


def _products(features: Tensor) -> Tensor:
    """Scalar products of all images `(N, N)`, from their mean, which changes no difference and keeps them small."""
    flat = features.float().flatten(1)
    flat = flat - flat.mean(0)
    return flat @ flat.T


def _lengths(products: Tensor) -> tuple[Tensor, Tensor]:
    """Distances `(N, N)`, and where they are 0."""
    own = products.diagonal()
    square = own[:, None] + own[None] - 2 * products
    same = square <= 1e-6 * own.max().clamp(min=1e-12)
    # The gradient of a root at 0 is infinite, and the diagonal is 0: the root is of 1 there, and is taken out after.
    return square.masked_fill(same, 1.0).sqrt().masked_fill(same, 0.0), same


def relation(student: Tensor, teacher: Tensor) -> Tensor:
    """Relational distillation: distances, and angles with twice the weight, Huber loss (Park et al., 2019)."""
    near = F.smooth_l1_loss(distances(student), distances(teacher))
    return near + 2 * F.smooth_l1_loss(angles(student), angles(teacher))


def seen(found: Mapping[str, Tensor], path: str, whose: str) -> Tensor:
    """What a watched module gave.

    Raises:
        NasplatError: the network runs without calling it.
    """
    if path not in found:
        raise NasplatError(
            f"pairs: the {whose} never calls its module {path!r}",
            "name a module that is called, such as one inside of it",
        )
    return found[path]


def check_path(network: nn.Module, path: str, whose: str) -> None:
    """Raises a NasplatError that lists the modules there are, nearest first, where `path` is none of them."""
    known = [name for name, _ in network.named_modules() if name]
    if path not in known:
        raise NasplatError(
            f"pairs: the {whose} has no module {path!r}", nearest(path, known) + f"there are {', '.join(known)}"
        )


@contextmanager
def watched(network: nn.Module, paths: Iterable[str]) -> Iterator[dict[str, Tensor]]:
    """What the modules at `paths` give while the network runs, in the dict that it yields."""
    found: dict[str, Tensor] = {}

    def keeper(path: str) -> Any:
        def keep(module: nn.Module, inputs: Any, output: Any) -> None:
            if not isinstance(output, Tensor):
                raise NasplatError(f"pairs: module {path!r} does not give one tensor", "name another module")
            found[path] = output

        return keep

    handles = [network.get_submodule(path).register_forward_hook(keeper(path)) for path in paths]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()
