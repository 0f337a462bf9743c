"""Residual blocks are found and removed."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from nasplat.core.errors import NasplatError
from nasplat.data.torchvision_import import torchvision
from nasplat.networks.residual_blocks import remove_blocks, residual_blocks
from tests.networks import zoo


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


SMALL = {
    "cifar_resnet": ["layer1.0", "layer1.1", "layer2.1", "layer3.1"],
    "convnext": ["features.1.0", "features.3.0"],
    "vit": ["encoder.layers.encoder_layer_0", "encoder.layers.encoder_layer_1"],
    "swin": ["features.1.0", "features.1.1", "features.3.0"],
    "encoder_layer": [],  # it normalises the sum: without its branches it is no identity
    "unet": [],
}


@pytest.mark.parametrize("name", SMALL)
def test_blocks_of_many_kinds_are_found_and_removal_is_proved(name: str) -> None:
    """Depth could be pruned in one family of networks only."""
    make, inputs = zoo.SMALL[name]
    model = make().eval()
    found = [block.name for block in residual_blocks(model, inputs)]
    assert found == SMALL[name]
    if found:
        remove_blocks(model, found, inputs)


PUBLISHED = {
    "resnet18": ["layer1.0", "layer1.1", "layer2.1", "layer3.1", "layer4.1"],
    "mobilenet_v2": [f"features.{place}" for place in (3, 5, 6, 8, 9, 10, 12, 13, 15, 16)],
    "densenet121": [],
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_blocks_of_published_networks(name: str) -> None:
    model = torchvision.models.get_model(name, weights=None).eval()
    inputs = (torch.zeros(1, 3, 64, 64),)
    found = [block.name for block in residual_blocks(model, inputs)]
    assert found == PUBLISHED[name]
    if found:
        small = remove_blocks(model, found[-1:], inputs)
        assert small(*inputs).shape == (1, 1000)


class _Negative(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x + self.conv(x))


def test_a_relu_on_what_may_be_negative_is_no_identity() -> None:
    """Without the block negative values would pass, which no shape shows."""
    inputs = (torch.randn(1, 3, 4, 4),)
    assert not residual_blocks(nn.Sequential(nn.Conv2d(3, 3, 1), _Negative()), inputs)
    assert residual_blocks(nn.Sequential(nn.Conv2d(3, 3, 1), nn.ReLU(), _Negative()), inputs)
