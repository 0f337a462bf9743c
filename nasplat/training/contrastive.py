"""Training without labels: SimCLR, and the memory-bank objective of CSNAS."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nasplat.core.errors import NasplatError
from nasplat.core.experiment import Train
from nasplat.core.problem import Problem
from nasplat.training.distributed import gathered
from nasplat.training.features import features, measured_shape

if TYPE_CHECKING:
    from nasplat.data.loader import Batch


def nt_xent(first: Tensor, second: Tensor, temperature: float) -> Tensor:
    """The normalised temperature-scaled cross-entropy loss of SimCLR (Chen et al., 2020).

    Each of the 2N projections must find the other view of its image among the 2N - 1 others, by cosine similarity.

    Args:
        first, second: `(N, D)`, two views of the same N images in the same order.

    Returns:
        The mean over all 2N projections, a tensor of no dimensions.
    """
    count = len(first)
    projections = F.normalize(torch.cat([first, second]), dim=1)
    similarity = projections @ projections.T / temperature
    itself = torch.eye(2 * count, dtype=torch.bool, device=first.device)
    similarity = similarity.masked_fill(itself, float("-inf"))
    return F.cross_entropy(similarity, torch.arange(2 * count, device=first.device).roll(count))


def bank_nce(query: Tensor, own: Tensor, others: Tensor, ignored: Tensor, temperature: float) -> Tensor:
    """Noise-contrastive loss against a memory bank (Misra & van der Maaten, PIRL, 2020, equations 4 and 5).

    With p the softmax of the cosine similarities of a query to its own entry and to the negatives, the loss is
    -log p(own) - sum over the negatives of log(1 - p(negative)).

    Args:
        query: `(N, D)`, any length.
        own: `(N, D)` of unit length, each query's own entry.
        others: `(K, D)` of unit length, entries that all queries are held against.
        ignored: `(N, K)`, true where a negative does not count, for it is the query's own entry.

    Returns:
        The mean over the queries, a tensor of no dimensions.
    """
    query = F.normalize(query, dim=1)
    to_own = (query * own).sum(1, keepdim=True)
    to_others = (query @ others.T).masked_fill(ignored, float("-inf"))
    log_shares = F.log_softmax(torch.cat([to_own, to_others], dim=1) / temperature, dim=1)
    # Held off 1, where the logarithm has no end; the first term still pulls such a query away.
    negative_shares = log_shares[:, 1:].exp().clamp(max=1 - 1e-6)
    return (-log_shares[:, 0] - torch.log1p(-negative_shares).sum(1)).mean()


@dataclass(frozen=True)
class SimCLR:
    """SimCLR (Chen et al., A Simple Framework for Contrastive Learning of Visual Representations, 2020)."""

    input_shape: tuple[int, int, int]
    temperature: float
    projection: int
    views: int = 2
    needs_labels: bool = False

    def module(self, network: nn.Module) -> nn.Module:
        return projector(_feature_size(network, self.input_shape), self.projection)

    def loss(self, network: nn.Module, extra: nn.Module | None, batch: Batch, generator: torch.Generator) -> Tensor:
        assert extra is not None
        # Both views in one pass: batch norm sees them together, as published.
        projections = extra(features(network, torch.cat(batch.views[:2])))
        with torch.autocast(projections.device.type, enabled=False):  # similarities need all of float32
            first, second = projections.float().chunk(2)
            return nt_xent(gathered(first), gathered(second), self.temperature)


@dataclass(frozen=True)
class MemoryBank:
    """The objective of CSNAS: PIRL's, without its jigsaw.

    The loss is half the NCE of g(transformed image) and half that of f(image as it is), each against the memory m of
    all training images, whose entries are moving averages of f (Misra & van der Maaten, 2020; momentum 0.5 as there).
    The 2 (N - 1) negatives of a batch are drawn from the bank and shared by its N images. The average of an entry
    begins with the first f of its image: a random vector to begin with would be learned as if it were a target, which
    a short training feels.

    It wants a small learning rate: 0.001 in CSNAS; on digits 0.01 learned well, and 0.1 less than nothing.
    """

    input_shape: tuple[int, int, int]
    dataset_size: int
    temperature: float
    projection: int
    momentum: float = 0.5
    views: int = 2
    needs_labels: bool = False
    first_plain: bool = True

    def module(self, network: nn.Module) -> nn.Module:
        size = _feature_size(network, self.input_shape)
        parts = nn.Module()
        parts.add_module("plain_head", nn.Linear(size, self.projection))  # f
        parts.add_module("transformed_head", nn.Linear(size, self.projection))  # g
        parts.register_buffer("bank", F.normalize(torch.randn(self.dataset_size, self.projection), dim=1))
        parts.register_buffer("seen", torch.zeros(self.dataset_size, dtype=torch.bool))
        return parts

    def loss(self, network: nn.Module, extra: nn.Module | None, batch: Batch, generator: torch.Generator) -> Tensor:
        assert extra is not None
        bank, seen = extra.get_buffer("bank"), extra.get_buffer("seen")
        indices = batch.indices.to(bank.device)
        plain, transformed = features(network, torch.cat(batch.views[:2])).chunk(2)
        plain = extra.get_submodule("plain_head")(plain)
        transformed = extra.get_submodule("transformed_head")(transformed)
        all_indices = gathered(indices)  # of the whole batch, where several processes share it
        shape = (2 * (len(all_indices) - 1),)
        negatives = torch.randint(len(bank), shape, generator=generator, device=bank.device)
        with torch.autocast(bank.device.type, enabled=False):
            plain, transformed = plain.float(), transformed.float()
            latest = F.normalize(plain.detach(), dim=1)
            known = seen[indices, None]
            own = torch.where(known, bank[indices], latest)
            others = bank[negatives]
            ignored = negatives[None, :] == indices[:, None]
            loss = 0.5 * bank_nce(transformed, own, others, ignored, self.temperature)
            loss = loss + 0.5 * bank_nce(plain, own, others, ignored, self.temperature)
            average = F.normalize(self.momentum * own + (1 - self.momentum) * latest, dim=1)
            bank.index_copy_(0, all_indices, gathered(average))
            seen.index_fill_(0, all_indices, True)
        return loss


def projector(features_size: int, projection: int) -> nn.Module:
    """SimCLR's projection head: two linear layers, the hidden one as wide as the features. `(N, F)` to `(N, D)`."""
    return nn.Sequential(
        nn.Linear(features_size, features_size, bias=False),
        nn.BatchNorm1d(features_size),
        nn.ReLU(),
        nn.Linear(features_size, projection),
    )


def simclr(settings: Train, problem: Problem, dataset_size: int) -> SimCLR:
    """SimCLR from the settings; temperature 0.2 where they name none."""
    return SimCLR(problem.input_shape, settings.temperature or 0.2, settings.projection)


def memory_bank(settings: Train, problem: Problem, dataset_size: int) -> MemoryBank:
    """CSNAS's objective from the settings; temperature 0.07 where they name none, as published."""
    if dataset_size < 2:
        raise NasplatError("objective memory_bank needs at least two training images")
    return MemoryBank(problem.input_shape, dataset_size, settings.temperature or 0.07, settings.projection)


def _feature_size(network: nn.Module, input_shape: tuple[int, int, int]) -> int:
    return measured_shape(network, input_shape, lambda images: features(network, images))[0]
