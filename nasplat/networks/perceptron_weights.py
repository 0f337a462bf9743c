"""Perceptrons that emit weights: all at once, chunk by chunk, or layer by layer behind a recurrent network."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import prod, sqrt

import torch
from torch import Tensor, nn
from torch.nn.utils import skip_init

from nasplat.networks.weight_conditions import check_sizes

Shape = tuple[int, ...]
_SLOPE = 0.01  # of leaky ReLU below zero


@dataclass(frozen=True, slots=True)
class Dense:
    """One perceptron from the condition to all weights, a row of its last layer a weight (Ha et al., 2016).

    Without a condition it reads a learned embedding.

    Args:
        hidden: sizes of the hidden layers.
    """

    hidden: tuple[int, ...] = (32, 32)

    def __post_init__(self) -> None:
        check_sizes("Dense", len(self.hidden), *self.hidden)


@dataclass(frozen=True, slots=True)
class Chunked:
    """All weights as one vector, cut in chunks: one perceptron from a chunk's embedding and the condition to the chunk.

    Chunked hypernetworks: von Oswald et al., Continual learning with hypernetworks, 2020.

    Args:
        chunk: weights in a chunk.
        embedding: size of the embedding of a chunk.
        hidden: sizes of the hidden layers.
    """

    chunk: int = 512
    embedding: int = 32
    hidden: tuple[int, ...] = (64, 64)

    def __post_init__(self) -> None:
        check_sizes("Chunked", self.chunk, self.embedding, len(self.hidden), *self.hidden)


@dataclass(frozen=True, slots=True)
class Recurrent:
    """Layer by layer, so that the weights of a layer depend on the layers before it.

    An LSTM runs over the layers in their order; its state, the layer's embedding, the place within the layer and the
    condition give the layer's weights by chunks, through a decoder that all layers share.

    Args:
        chunk: weights in a chunk.
        embedding: size of the embeddings of layers and of places.
        state: size of the LSTM's state.
        hidden: sizes of the hidden layers of the decoder.
    """

    chunk: int = 512
    embedding: int = 32
    state: int = 64
    hidden: tuple[int, ...] = (64,)

    def __post_init__(self) -> None:
        check_sizes("Recurrent", self.chunk, self.embedding, self.state, len(self.hidden), *self.hidden)


class MadeDense(nn.Module):
    """What `Dense` describes: an encoded condition to tensors, before they are scaled."""

    def __init__(self, settings: Dense, shapes: Sequence[Shape], condition_size: int) -> None:
        super().__init__()
        self.shapes, self.sizes = list(shapes), [prod(shape) for shape in shapes]
        self.embedding = None if condition_size else nn.Parameter(torch.empty(settings.hidden[0]))
        first = condition_size or settings.hidden[0]
        self.layers = _perceptron((first, *settings.hidden, sum(self.sizes)))

    @torch.no_grad()
    def reset(self, rng: torch.Generator | None) -> None:
        if self.embedding is not None:
            nn.init.normal_(self.embedding, generator=rng)
        _reset(self.layers, rng)
        # The last layer as if every tensor had one to itself.
        for rows in self.layers[-1].weight.split(self.sizes):  # type: ignore[operator, union-attr]
            _kaiming(rows, 1.0, rng)

    def forward(self, condition: Tensor | None) -> list[Tensor]:
        flat = self.layers(self.embedding if condition is None else condition)
        return [part.reshape(shape) for part, shape in zip(flat.split(self.sizes), self.shapes, strict=True)]


class MadeChunked(nn.Module):
    """What `Chunked` describes: an encoded condition to tensors, before they are scaled."""

    def __init__(self, settings: Chunked, shapes: Sequence[Shape], condition_size: int) -> None:
        super().__init__()
        self.shapes, self.sizes = list(shapes), [prod(shape) for shape in shapes]
        chunks = -(-sum(self.sizes) // settings.chunk)
        self.embeddings = nn.Parameter(torch.empty(chunks, settings.embedding))
        self.layers = _perceptron((settings.embedding + condition_size, *settings.hidden, settings.chunk))

    @torch.no_grad()
    def reset(self, rng: torch.Generator | None) -> None:
        nn.init.normal_(self.embeddings, generator=rng)
        _reset(self.layers, rng)

    def forward(self, condition: Tensor | None) -> list[Tensor]:
        flat = self.layers(_beside(self.embeddings, condition)).flatten()[: sum(self.sizes)]
        return [part.reshape(shape) for part, shape in zip(flat.split(self.sizes), self.shapes, strict=True)]


class MadeRecurrent(nn.Module):
    """What `Recurrent` describes: an encoded condition to tensors, before they are scaled."""

    def __init__(self, settings: Recurrent, shapes: Sequence[Shape], condition_size: int) -> None:
        super().__init__()
        self.shapes = list(shapes)
        self.chunks = [-(-prod(shape) // settings.chunk) for shape in shapes]  # of each layer
        self.embeddings = nn.Parameter(torch.empty(len(shapes), settings.embedding))
        self.places = nn.Parameter(torch.empty(max(self.chunks), settings.embedding))
        size = settings.embedding + condition_size
        # A cell, run layer by layer: of a whole LSTM torch computes other last digits where no gradients are wanted.
        self.cell = skip_init(nn.LSTMCell, size, settings.state)
        self.layers = _perceptron((settings.state + size + settings.embedding, *settings.hidden, settings.chunk))

    @torch.no_grad()
    def reset(self, rng: torch.Generator | None) -> None:
        nn.init.normal_(self.embeddings, generator=rng)
        nn.init.normal_(self.places, generator=rng)
        for parameter in self.cell.parameters():
            if parameter.dim() > 1:
                for gate in parameter.chunk(4):
                    _kaiming(gate, 1.0, rng)
            else:
                nn.init.zeros_(parameter)
        _reset(self.layers, rng)

    def forward(self, condition: Tensor | None) -> list[Tensor]:
        inputs = _beside(self.embeddings, condition)  # (layers, size)
        both: tuple[Tensor, Tensor] | None = None  # the state, and the cell's memory
        states = []
        for layer in inputs.split(1):
            both = self.cell(layer, both)
            states.append(both[0])
        layers = torch.cat([torch.cat(states), inputs], 1)
        rows = [
            torch.cat([layer.expand(count, -1), self.places[:count]], 1)
            for layer, count in zip(layers, self.chunks, strict=True)
        ]
        parts = self.layers(torch.cat(rows)).split(self.chunks)
        return [part.flatten()[: prod(shape)].reshape(shape) for part, shape in zip(parts, self.shapes, strict=True)]


def _beside(rows: Tensor, condition: Tensor | None) -> Tensor:
    """The same condition beside every row."""
    return rows if condition is None else torch.cat([rows, condition.expand(len(rows), -1)], 1)


def _perceptron(sizes: Sequence[int]) -> nn.Sequential:
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(sizes):
        layers += [skip_init(nn.Linear, inputs, outputs), nn.LeakyReLU(_SLOPE)]
    return nn.Sequential(*layers[:-1])


def _reset(layers: nn.Sequential, rng: torch.Generator | None) -> None:
    for layer in layers:
        if isinstance(layer, nn.Linear):
            _kaiming(layer.weight, sqrt(2 / (1 + _SLOPE**2)), rng)
            nn.init.zeros_(layer.bias)


@torch.no_grad()
def _kaiming(weight: Tensor, gain: float, rng: torch.Generator | None) -> None:
    """Normal with fan-out (He et al., Delving Deep into Rectifiers, 2015): it keeps the norm, whatever the width."""
    weight.normal_(0, gain / sqrt(len(weight)), generator=rng)
