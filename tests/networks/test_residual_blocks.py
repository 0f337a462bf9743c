"""Residual blocks are found and removed."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from nasplat.core.errors import NasplatError
from nasplat.networks.residual_blocks import remove_blocks, residual_blocks


class _Basic(nn.Module):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.norm = nn.BatchNorm2d(outputs)
        self.shortcut = nn.Conv2d(inputs, outputs, 1) if inputs != outputs else nn.Sequential()

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.conv(x))
        y += self.shortcut(x)
        return torch.relu(y)


def test_identity_shortcuts_are_found_and_removed_and_projections_are_not() -> None:
    """Otherwise a removal would change what the rest of the network sees, or find nothing to remove."""
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Sequential(_Basic(4, 4), _Basic(4, 4)), _Basic(4, 8))
    inputs = (torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(0)),)
    assert [block.name for block in residual_blocks(model, inputs)] == ["2.0", "2.1"]
    small = remove_blocks(model, ["2.1"], inputs)
    model.eval()
    small.eval()
    torch.testing.assert_close(small(*inputs), model[3](model[2][0](model[1](model[0](*inputs)))))
    with pytest.raises(NasplatError):
        remove_blocks(model, ["3"], inputs)
