"""Scores of residual blocks."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from nasplat.compression.block_importance import block_importance
from nasplat.core.errors import NasplatError


class _Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.inner(x)


def _model() -> tuple[nn.Sequential, list[tuple[Tensor, Tensor]]]:
    generator = torch.Generator().manual_seed(0)
    model = nn.Sequential(_Block(), _Block(), nn.Linear(6, 3)).double()
    for weight in model.parameters():
        weight.data = torch.randn(weight.shape, generator=generator, dtype=torch.float64)
    for weight in model[0].parameters():
        weight.data.zero_()
    batches = []
    for size in (5, 2):
        inputs = torch.randn(size, 6, generator=generator, dtype=torch.float64)
        batches.append((inputs, torch.randint(3, (size,), generator=generator)))
    return model, batches


def test_importance_is_the_loss_of_the_network_without_the_block() -> None:
    """Otherwise a user would remove blocks that the network needs: samples count alike, idle blocks cost nothing."""
    model, batches = _model()
    scores = block_importance(model, ["0", "1"], batches, functional.cross_entropy)
    inputs, targets = (torch.cat(parts) for parts in zip(*batches, strict=True))
    without = functional.cross_entropy(nn.Sequential(model[0], model[2])(inputs), targets)
    whole = functional.cross_entropy(model(inputs), targets)
    assert scores["0"] == 0
    assert scores["1"] == pytest.approx(float(without - whole))
    assert model.training and not model[1]._forward_hooks


def test_without_batches_weights_decide_and_unknown_blocks_are_refused() -> None:
    """Otherwise blocks could not be ordered without data, and a misspelt name would pass unseen."""
    model, _ = _model()
    scores = block_importance(model, ["0", "1"], None, functional.cross_entropy)
    assert scores["0"] == 0 < scores["1"]
    with pytest.raises(NasplatError):
        block_importance(model, ["7"], None, functional.cross_entropy)
    with pytest.raises(NasplatError):
        block_importance(model, ["0"], [], functional.cross_entropy)
