"""Static hypernetworks: one small generator for the kernels of all layers (Ha, Dai & Le, HyperNetworks, 2016)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt

import torch
from torch import Tensor, nn
from torch.nn.utils import skip_init

from nasplat.networks.weight_conditions import check_sizes

Shape = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Static:
    """Kernels tiled from basic ones that all layers share a generator of; see `StaticKernels`.

    With `PLAIN` there are fewer parameters than weights. A condition moves the embedding of every tile along
    directions of its own.

    Args:
        embedding: size of the embedding of a tile.
        basic: output and input channels of the basic kernel.
    """

    embedding: int = 64
    basic: tuple[int, int] = (16, 16)

    def __post_init__(self) -> None:
        check_sizes("Static", self.embedding, *self.basic)


def unsupported(shape: Shape) -> bool:
    """Whether kernels of this shape cannot be tiled: only those of linear layers and of 2-d convolutions can."""
    return len(shape) not in (2, 4)


class StaticKernels(nn.Module):
    """Kernels `(out, in, height, width)` from learned embeddings; `(out, in)` are kernels of one pixel.

    A kernel is tiled from basic ones along its output and input channels and cut where it is no multiple; every tile
    has an embedding z of its own. All tiles of one height and width share a generator, `BasicKernels`.

    Args:
        settings: the sizes of embeddings and basic kernels.
        shapes: of the kernels.
        condition_size: of the encoded condition, 0 where there is none. Each tile's z moves with it, linearly.
    """

    def __init__(self, settings: Static, shapes: Sequence[Shape], condition_size: int) -> None:
        super().__init__()
        embedding, basic = settings.embedding, settings.basic
        self.shapes = list(shapes)
        self.grids = [(-(-shape[0] // basic[0]), -(-shape[1] // basic[1])) for shape in shapes]
        self.members: dict[str, list[int]] = {}  # height x width -> which kernels
        for position, shape in enumerate(shapes):
            self.members.setdefault("x".join(map(str, _window(shape))), []).append(position)
        self.generators, self.embeddings, self.directions = nn.ModuleDict(), nn.ParameterDict(), nn.ParameterDict()
        for window, members in self.members.items():
            tiles = sum(rows * columns for rows, columns in (self.grids[member] for member in members))
            self.generators[window] = BasicKernels(embedding, basic, _window(shapes[members[0]]))
            self.embeddings[window] = nn.Parameter(torch.empty(tiles, embedding))
            if condition_size:
                self.directions[window] = nn.Parameter(torch.empty(tiles, embedding, condition_size))

    def reset(self, rng: torch.Generator | None) -> None:
        for generator in self.generators.values():
            generator.reset(rng)  # type: ignore[operator]
        for embeddings in self.embeddings.values():
            nn.init.normal_(embeddings, generator=rng)
        for directions in self.directions.values():
            nn.init.normal_(directions, std=1 / sqrt(directions.shape[2]), generator=rng)

    def forward(self, condition: Tensor | None) -> list[Tensor]:
        """The kernels, from an encoded condition `(condition_size,)`, before they are scaled."""
        kernels: dict[int, Tensor] = {}
        for window, members in self.members.items():
            embeddings: Tensor = self.embeddings[window]
            if condition is not None:
                embeddings = embeddings + self.directions[window] @ condition
            counts = [rows * columns for rows, columns in (self.grids[member] for member in members)]
            tiles = self.generators[window](embeddings).split(counts)
            for member, tile in zip(members, tiles, strict=True):
                kernels[member] = self._joined(tile, member)
        return [kernels[position] for position in range(len(self.shapes))]

    def _joined(self, tiles: Tensor, position: int) -> Tensor:
        """Tiles `(T, basic out, basic in, height, width)`, row by row, to one kernel."""
        (rows, columns), shape = self.grids[position], self.shapes[position]
        grid = tiles.unflatten(0, (rows, columns)).transpose(1, 2)  # rows, out, columns, in, height, width
        whole = grid.flatten(2, 3).flatten(0, 1)
        return whole[: shape[0], : shape[1]].reshape(shape).contiguous()


class BasicKernels(nn.Module):
    """Two linear layers from embeddings to basic kernels.

    a_i = W_i z + B_i for every input channel i, and K_i = <W_out, a_i> + B_out, the slice of the kernel that reads this
    channel; W_out and B_out are the same for all i. The sizes of z and a are equal.
    """

    def __init__(self, embedding: int, basic: tuple[int, int], window: tuple[int, int]) -> None:
        super().__init__()
        self.outputs, self.inputs = basic
        self.window = window
        self.to_channels = skip_init(nn.Linear, embedding, self.inputs * embedding)
        self.to_slice = skip_init(nn.Linear, embedding, self.outputs * window[0] * window[1])

    @torch.no_grad()
    def reset(self, rng: torch.Generator | None) -> None:
        for layer, fan_out in ((self.to_channels, self.to_slice.in_features), (self.to_slice, len(self.to_slice.bias))):
            layer.weight.normal_(0, 1 / sqrt(fan_out), generator=rng)  # each W_i is a layer of its own
            layer.bias.zero_()

    def forward(self, embeddings: Tensor) -> Tensor:
        """Embeddings `(T, embedding)` to kernels `(T, outputs, inputs, height, width)`."""
        channels = self.to_channels(embeddings).unflatten(1, (self.inputs, -1))
        slices = self.to_slice(channels).unflatten(2, (self.outputs, *self.window))
        return slices.transpose(1, 2)


def _window(shape: Shape) -> tuple[int, int]:
    return (shape[2], shape[3]) if len(shape) == 4 else (1, 1)
