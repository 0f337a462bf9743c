"""ResNet-20 for CIFAR (He et al., Deep Residual Learning, 2016), in the layout of a public checkpoint.

    nasplat prune --model resnet20_cifar:resnet20 --checkpoint resnet20-12fca82f.th …

Shortcuts `A` have no parameters: every second pixel, and channels of zeros on both sides; `B` are convolutions.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Pad(nn.Module):
    """Half the pixels in each direction, and channels of zeros on both sides."""

    def __init__(self, extra: int) -> None:
        super().__init__()
        self.extra = extra

    def forward(self, images: Tensor) -> Tensor:
        return F.pad(images[:, :, ::2, ::2], (0, 0, 0, 0, self.extra, self.extra))


class BasicBlock(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int, shortcut: str) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut: nn.Module = nn.Sequential()
        if stride != 1 and shortcut == "A":
            self.shortcut = Pad((outputs - inputs) // 2)
        elif stride != 1:
            convolution = nn.Conv2d(inputs, outputs, 1, stride, bias=False)
            self.shortcut = nn.Sequential(convolution, nn.BatchNorm2d(outputs))

    def forward(self, images: Tensor) -> Tensor:
        branch = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(images)))))
        return F.relu(branch + self.shortcut(images))


class ResNet20(nn.Module):
    def __init__(self, shortcut: str, classes: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        for stage, (inputs, outputs) in enumerate(((16, 16), (16, 32), (32, 64)), 1):
            first = BasicBlock(inputs, outputs, 1 if stage == 1 else 2, shortcut)
            others = [BasicBlock(outputs, outputs, 1, shortcut) for _ in range(2)]
            self.add_module(f"layer{stage}", nn.Sequential(first, *others))
        self.linear = nn.Linear(64, classes)

    def forward(self, images: Tensor) -> Tensor:
        features = F.relu(self.bn1(self.conv1(images)))
        for stage in (self.layer1, self.layer2, self.layer3):
            features = stage(features)
        return self.linear(features.mean((2, 3)))


def resnet20(shortcut: str = "A", classes: int = 10) -> nn.Module:
    return ResNet20(shortcut, classes)


def with_convolutions(network: nn.Module) -> nn.Module:
    """The same function with shortcuts `B`: their kernels start as what shortcuts `A` do."""
    converted = resnet20("B")
    state = network.state_dict()
    for stage, inputs in ((2, 16), (3, 32)):
        name = f"layer{stage}.0.shortcut"
        kernel = torch.zeros(2 * inputs, inputs, 1, 1)
        kernel[range(inputs // 2, inputs // 2 + inputs), range(inputs)] = 1
        state[f"{name}.0.weight"] = kernel
        fresh = nn.BatchNorm2d(2 * inputs)
        fresh.running_var.fill_(1 - fresh.eps)
        state |= {f"{name}.1.{key}": value for key, value in fresh.state_dict().items()}
    converted.load_state_dict(state)
    return converted.eval()
