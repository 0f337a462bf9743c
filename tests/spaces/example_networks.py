"""Network functions as a user might write them, right and wrong."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from nasplat import choice
from nasplat.core.problem import Problem


def convolutions(problem: Problem, channels: int = 4) -> nn.Module:
    """A choice of every kind: ordered, unordered, conditional, and one that is asked in two places."""
    in_channels = problem.input_shape[0]
    width = channels * choice("width", [1, 2, 4])
    activation = {"relu": nn.ReLU, "silu": nn.SiLU}[choice("activation", ["relu", "silu"])]
    layers: list[nn.Module] = []
    for stage in range(choice("depth", [1, 2, 3])):
        kernel = choice(f"kernel{stage}", [3, 5])
        layers += [nn.Conv2d(in_channels, width, kernel, padding=kernel // 2), nn.BatchNorm2d(width), activation()]
        if choice("pool", [True, False]):
            layers.append(nn.MaxPool2d(2))
        in_channels = width
    classifier = nn.Linear(width, problem.outputs[0].size)
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), classifier)


def fixed(problem: Problem) -> nn.Module:
    return _two_layers(problem, 4)


def reveals_by_pair(problem: Problem) -> nn.Module:
    """`inner` is there only where two unrelated choices both take their last option."""
    hidden = 4
    if choice("first", [1, 2, 3]) == 3 and choice("second", ["a", "b", "c"]) == "c":
        hidden = choice("inner", [8, 16])
    choice("third", list(range(20)))  # makes the table too large to be run through
    return _two_layers(problem, hidden)


def hides_too_well(problem: Problem) -> nn.Module:
    """`inner` is there for one assignment in a million."""
    digits = [choice(f"digit{number}", list(range(10))) for number in range(6)]
    return _two_layers(problem, choice("inner", [8, 16]) if set(digits) == {7} else 4)


def contradicts(problem: Problem) -> nn.Module:
    first = choice("width", [4, 8])
    return _two_layers(problem, first + choice("width", [4, 16]))


def never_ends(problem: Problem) -> nn.Module:
    name = "a"
    for _ in range(12):
        name += str(choice(name, [0, 1]))
    return _two_layers(problem, 4)


def divides_by_zero(problem: Problem) -> nn.Module:
    width = choice("width", [4, 0])
    return _two_layers(problem, 8 // width)


def wrong_shape(problem: Problem) -> nn.Module:
    return nn.Sequential(nn.Conv2d(problem.input_shape[0], 4, 3), Broken())


def wrong_classes(problem: Problem) -> nn.Module:
    return _two_layers(problem, 4, problem.outputs[0].size + 1)


def not_a_module(problem: Problem) -> str:
    return "network"


def reads_numbers(problem: Problem) -> nn.Module:
    """Cannot be built without data, as networks with a rising drop rate often cannot."""
    rates = [rate.item() for rate in torch.linspace(0, 0.5, 3)]
    return nn.Sequential(nn.Dropout(rates[1]), _two_layers(problem, choice("width", [4, 8])))


class AsksLate(nn.Module):
    def __init__(self, problem: Problem) -> None:
        super().__init__()
        self.layers = _two_layers(problem, 4)

    def forward(self, images: Tensor) -> Tensor:
        return self.layers(images) * choice("scale", [1, 2])


class Broken(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return images @ images.new_zeros(7, 7)


class TwoOutputs(nn.Module):
    """Attention, several outputs, and a class where a function is expected."""

    def __init__(self, problem: Problem) -> None:
        super().__init__()
        channels = problem.input_shape[0]
        width = choice("width", [4, 8])
        self.patches = nn.Conv2d(channels, width, 2, stride=2)
        self.attention = nn.MultiheadAttention(width, choice("heads", [1, 2]), batch_first=True)
        self.heads = nn.ModuleDict({output.name: nn.Linear(width, output.size) for output in problem.outputs})

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        tokens = self.patches(images).flatten(2).transpose(1, 2)
        tokens = tokens + self.attention(tokens, tokens, tokens, need_weights=False)[0]
        return {name: head(tokens.mean(1)) for name, head in self._heads()}

    def _heads(self) -> Iterator[tuple[str, nn.Module]]:
        return iter(self.heads.items())


def _pixels(problem: Problem) -> int:
    channels, height, width = problem.input_shape
    return channels * height * width


def _two_layers(problem: Problem, hidden: int, classes: int | None = None) -> nn.Module:
    classes = classes or problem.outputs[0].size
    return nn.Sequential(nn.Flatten(), nn.Linear(_pixels(problem), hidden), nn.ReLU(), nn.Linear(hidden, classes))


class Residual(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(width, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.conv2, self.bn2 = nn.Conv2d(8, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)

    def forward(self, images: Tensor) -> Tensor:
        return torch.relu(images + self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(images))))))


def residual(channels: int = 3, classes: int = 10) -> nn.Module:
    """A network to be pruned, with blocks that can go."""
    stem = [nn.Conv2d(channels, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU()]
    end = [nn.Conv2d(8, 16, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, classes)]
    return nn.Sequential(*stem, Residual(8), Residual(8), *end)
