"""Criteria of importance: small functions of a group's weights, of gradients, of curvature or of feature maps."""

from __future__ import annotations

from collections.abc import Callable
from math import pi

import torch
from torch import Tensor, nn

from nasplat.compression.derivatives import of_curvature, of_gradients
from nasplat.compression.feature_maps import Seen, of_maps
from nasplat.compression.statistics import Evidence, Scores, makers, rows, trainable, wide
from nasplat.core.channel_graph import Group
from nasplat.core.pruning import Criterion

# hrank and chip take matrices apart; few images tell what all do (Lin et al., 2020, figure 3).
MATRICES = 32


def random(group: Group, evidence: Evidence) -> list[Tensor]:
    """Uniform numbers: what every criterion must beat."""
    generator = evidence.generator
    return [torch.rand(group.size, generator=generator, device=generator.device, dtype=torch.float64).cpu()]


def l1(group: Group, evidence: Evidence) -> list[Tensor]:
    """Sums of absolute weights of the filters that make the channels (Li et al., Pruning Filters, 2017)."""
    return [rows(member, evidence).abs().sum(1) for member in makers(group, evidence)]


def l2(group: Group, evidence: Evidence) -> list[Tensor]:
    """Euclidean norms of these filters (Li et al., 2017)."""
    return [rows(member, evidence).norm(dim=1) for member in makers(group, evidence)]


def group_norm(group: Group, evidence: Evidence) -> list[Tensor]:
    """Squared norms of all that a channel has, by tensor, over the tensor's mean (Fang et al., DepGraph, 2023).

    Over the mean, because the scale of a whole tensor says nothing: the norm after a convolution undoes it. So each
    tensor has the same voice, whatever its size, and only tells its own channels apart. Norms' scales and all shifts
    have none beside filters: a single number a channel would count as much as a whole filter.
    """
    members = trainable(group, evidence)
    weights = [member for member in members if evidence.parameters[member.tensor].select(member.dim, 0).numel() > 1]
    squares = [rows(member, evidence).square().sum(1) for member in weights or members]
    return [one / one.mean() if one.any() else one for one in squares]


def bn_scale(group: Group, evidence: Evidence) -> list[Tensor]:
    """Absolute scales of batch norm (Liu et al., Network Slimming, 2017); nothing where there is none."""
    return [
        rows(member, evidence).abs().mean(1)
        for member in trainable(group, evidence)
        if isinstance(evidence.owners[member.tensor], nn.modules.batchnorm._BatchNorm)
        and member.tensor.rsplit(".", 1)[-1] == "weight"
    ]


def lamp(group: Group, evidence: Evidence) -> list[Tensor]:
    """Squared norm of a channel over the sum of all that are not smaller (Lee et al., LAMP, 2021), here in its group.

    The squared norm is the sum of `group_norm` over its tensors, so that there is nothing left to reduce.
    """
    squares = torch.stack(group_norm(group, evidence)).sum(0)
    ascending, order = squares.sort()
    # Equal ones are not smaller: the first of them stands for all.
    first = torch.searchsorted(ascending, ascending)
    rest = ascending.flip(0).cumsum(0).flip(0)[first]
    return [torch.zeros_like(squares).scatter(0, order, torch.where(rest > 0, ascending / rest, 0.0))]


def fpgm(group: Group, evidence: Evidence) -> list[Tensor]:
    """Sums of a filter's distances to all others (He et al., Filter Pruning via Geometric Median, 2019).

    A filter near the median of its layer is what the others can make up for.
    """
    return [
        torch.cdist(filters, filters).sum(1) for filters in (rows(one, evidence) for one in makers(group, evidence))
    ]


def activation(maps: Tensor) -> Seen:
    """Mean absolute values of feature maps (Molchanov et al., Pruning for Resource Efficient Inference, 2017)."""
    return Seen(0, wide(maps).abs().flatten(2).mean(2).sum(0), len(maps))


def hrank(maps: Tensor) -> Seen:
    """Mean ranks of feature maps as matrices of height and width (Lin et al., HRank, 2020).

    Maps of one dimension (tokens, or the places of a channel after a flatten) are the rows of one matrix over the
    batch, whose rank is taken. Single values have no rank worth the name; there it is the mean absolute value.
    """
    maps = maps.float() if maps.dtype in (torch.float16, torch.bfloat16) else maps
    if maps.dim() > 4 and maps.shape[-1] > 1 and maps.shape[-2] > 1:
        maps = maps[:MATRICES]
        return Seen(2, wide(torch.linalg.matrix_rank(maps)).flatten(2).mean(2).sum(0), len(maps))
    vectors = maps.flatten(2)
    if vectors.shape[2] > 1:
        return Seen(1, wide(torch.linalg.matrix_rank(vectors.transpose(0, 1))))
    return activation(maps)


def chip(maps: Tensor) -> Seen:
    """Channel independence: by how much the nuclear norm of an image's maps, as a matrix of channels and places, drops
    without the channel (Sui et al., CHIP, 2021).

    Where maps are single values, the images of the batch are the places.
    """
    matrices = wide(maps.cpu() if maps.device.type == "mps" else maps).flatten(2)
    if matrices.shape[2] == 1:
        return Seen(0, nuclear_drop(matrices.permute(2, 1, 0))[0])
    drops = nuclear_drop(matrices[:MATRICES])
    return Seen(1, drops.sum(0), len(drops))


def nuclear_drop(matrices: Tensor) -> Tensor:
    """By how much the nuclear norm drops when a row is zeroed, for all rows at once: `(N, C, L)` to `(N, C)`.

    One decomposition serves all rows. With A A' = U diag(d) U' and the integral of the square root,
    tr sqrt(G) = 2/pi int tr(G (G + s^2)^-1) ds, the difference to the principal submatrix without row i is
    2/pi int (sum_j u_ij^2 d_j / (d_j + s^2)^2) / (sum_j u_ij^2 / (d_j + s^2)) ds by Schur's complement. The trapezoidal
    rule in log s is good to about seven digits.
    """
    if matrices.shape[1] <= matrices.shape[2]:
        squares, vectors = torch.linalg.eigh(matrices @ matrices.mT)
    else:
        vectors, roots, _ = torch.linalg.svd(matrices, full_matrices=False)
        squares = roots.square()
    scale = squares.amax(1, keepdim=True).clamp(min=torch.finfo(squares.dtype).tiny)
    squares, parts = (squares / scale).clamp(min=0)[:, :, None], vectors.square()
    # What is left of a row lies in directions along which the matrix is zero.
    rest = (1 - parts.sum(2, keepdim=True)).clamp(min=0)
    step = 0.4
    points = torch.arange(-22, 22, step, device=matrices.device, dtype=matrices.dtype).exp()
    inverse = 1 / (squares + points.square())
    drops = (parts @ (squares * inverse.square())) / (parts @ inverse + rest / points.square())
    return (2 / pi) * step * (drops * points).sum(2) * scale.sqrt()


def _of_groups(score: Callable[[Group, Evidence], list[Tensor]]) -> Callable[[Evidence], Scores]:
    return lambda evidence: {group.name: score(group, evidence) for group in evidence.graph.groups}


CRITERIA: dict[Criterion, Callable[[Evidence], Scores]] = {
    "random": _of_groups(random),
    "l1": _of_groups(l1),
    "l2": _of_groups(l2),
    "group_norm": _of_groups(group_norm),
    "bn_scale": _of_groups(bn_scale),
    "lamp": _of_groups(lamp),
    "fpgm": _of_groups(fpgm),
    # By how much the loss changes, to first order, when a layer that reads the channel gets zeros; squared by batch,
    # so that small batches tell more (Molchanov et al., Importance Estimation for Neural Network Pruning, 2019).
    "taylor": of_gradients(lambda weight, slope: weight * slope, torch.square),
    # The same to second order where the slope is zero, half the weight's square times the curvature (LeCun et al.,
    # Optimal Brain Damage, 1990). Away from a minimum some are negative: there too the loss depends on the channel.
    "hessian": of_curvature(lambda weight, curvature: 0.5 * weight.square() * curvature, torch.abs),
    "activation": of_maps(activation),
    "hrank": of_maps(hrank),
    "chip": of_maps(chip),
}
