"""Small stand-ins: images that can be learned in a second, a loader of them, and a network."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from nasplat.core.experiment import Train
from nasplat.core.problem import Output, Problem, classification

SHAPE = (3, 8, 8)
CLASSES = 4
PROBLEM = classification(SHAPE, CLASSES)
UNLABELLED = Problem(SHAPE, (Output("embedding", "embedding", 1),))


@dataclass(frozen=True)
class ToyBatch:
    """Looks like `nasplat.data.loader.Batch`."""

    views: tuple[Tensor, ...]
    labels: Tensor | None
    indices: Tensor


@dataclass
class ToyLoader:
    """Random images around one pattern a class; noise and order are drawn from the generator that it is given."""

    count: int = 128
    batch_size: int = 32
    views: int = 1
    labelled: bool = True

    def __post_init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        self.labels = torch.randint(CLASSES, (self.count,), generator=generator)
        patterns = torch.randn(CLASSES, *SHAPE, generator=generator)
        self.images = patterns[self.labels] + 0.5 * torch.randn(self.count, *SHAPE, generator=generator)
        self.batches_per_epoch = self.count // self.batch_size

    def epoch(self, generator: torch.Generator) -> Iterator[ToyBatch]:
        order = torch.randperm(self.count, generator=generator)
        for rows in order.split(self.batch_size)[: self.batches_per_epoch]:
            images = self.images[rows]
            noise = [0.1 * torch.randn(images.shape, generator=generator) for _ in range(self.views)]
            labels = self.labels[rows] if self.labelled else None
            yield ToyBatch(tuple(images + one for one in noise), labels, rows)

    def ordered(self) -> Iterator[ToyBatch]:
        for rows in torch.arange(self.count).split(50):
            labels = self.labels[rows] if self.labelled else None
            yield ToyBatch((self.images[rows],), labels, rows)


class ToyNetwork(nn.Module):
    """Convolution, batch norm, dropout (which draws from torch's default generator), classifier, and taps."""

    def __init__(self, channels: int = 8, classes: int = CLASSES, dropout: float = 0.1, seed: int = 0) -> None:
        super().__init__()
        self.num_features = 2 * channels
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.stem = nn.Sequential(nn.Conv2d(3, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels))
            self.body = nn.Conv2d(channels, 2 * channels, 3, stride=2, padding=1)
            self.dropout = nn.Dropout(dropout)
            self.classifier = nn.Linear(2 * channels, classes)
        self.drop_path_probability = 0.0
        self.drop_path_generator: torch.Generator | None = None
        self.seen_drop_paths: list[float] = []

    def forward_taps(self, images: Tensor, names: tuple[str, ...]) -> dict[str, Tensor]:
        if self.training:
            self.seen_drop_paths.append(self.drop_path_probability)
        maps = self.stem(images).relu()
        features = self.dropout(self.body(maps).relu().mean((2, 3)))
        taps = {"auxiliary": maps, "features": features, "logits": self.classifier(features)}
        return {name: taps[name] for name in names}

    def forward(self, images: Tensor) -> Tensor:
        return self.forward_taps(images, ("logits",))["logits"]


def settings(**changes: object) -> Train:
    """Short training in float32, which every machine can do."""
    return Train.model_validate({"epochs": 2, "lr": 0.05, "precision": "float32", **changes})


def weights(network: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in network.state_dict().items()}


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)
