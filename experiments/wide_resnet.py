"""Wide residual networks of ten layers for images of one channel (Zagoruyko & Komodakis, 2016)."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F


class Block(nn.Module):
    """Two convolutions of 3 x 3 pixels, normalised before, and a shortcut."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.BatchNorm2d(inputs), nn.BatchNorm2d(outputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.shortcut = None
        if inputs != outputs or stride > 1:
            self.shortcut = nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    def forward(self, images: Tensor) -> Tensor:
        active = F.relu(self.norm1(images))
        branch: Tensor = self.conv2(F.relu(self.norm2(self.conv1(active))))
        return branch + (images if self.shortcut is None else self.shortcut(active))


def wide_resnet(widen: int, classes: int = 10) -> nn.Sequential:
    """WRN-10, with a stem of stride 2 for the sake of time."""
    widths = [16 * widen, 32 * widen, 64 * widen]
    network = nn.Sequential(
        nn.Conv2d(1, 16, 3, 2, 1, bias=False),
        Block(16, widths[0], 1),
        Block(widths[0], widths[1], 2),
        Block(widths[1], widths[2], 2),
        *(nn.BatchNorm2d(widths[2]), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(widths[2], classes)),
    )
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    return network
