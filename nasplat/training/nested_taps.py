"""What is trained beside the networks of a source (a projector, an auxiliary classifier), shared by all of them.

It is made for the widest network; narrower ones use it for their first channels, as their own layers are used.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from torch import Tensor
from torch.nn import functional as F

from nasplat.core.architecture import Architecture
from nasplat.core.errors import NasplatError
from nasplat.core.graph import OperationGraph
from nasplat.core.space import SearchSpace
from nasplat.networks.graph_run import GraphRun
from nasplat.networks.shared_weights import SAMPLES, extremes


class NestedTaps:
    """A network whose taps have the channels of the widest one: zeros stand after its own.

    Args:
        channels: of the widest, by tap; others are left as they are.

    Raises:
        NasplatError: when it runs, a tap has more channels than that.
    """

    def __init__(self, run: GraphRun, channels: Mapping[str, int]) -> None:
        self.run, self.channels = run, channels

    def __call__(self, images: Tensor) -> Any:
        return self.run(images)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.run, name)

    def forward_taps(self, images: Tensor, names: tuple[str, ...]) -> dict[str, Tensor]:
        """As of `GraphRun`, `(N, C, …)` with the C of the widest."""
        found = self.run.forward_taps(images, names)
        return {name: self._padded(name, tensor) for name, tensor in found.items()}

    def _padded(self, name: str, tensor: Tensor) -> Tensor:
        room, channels = self.channels.get(name, tensor.shape[1]), tensor.shape[1]
        if channels > room:
            raise NasplatError(
                f"{name} of a network have {channels} channels, and what all networks share has room for {room}",
                "give the space a last layer of one width (mbconv: last_channels), or use objective: supervised",
            )
        return F.pad(tensor, (0, 0) * (tensor.dim() - 2) + (0, room - channels)) if channels < room else tensor


def widest(space: SearchSpace) -> Architecture:
    """The largest network of a space, or of a few hundred the first that has more features."""
    rng = np.random.default_rng(0)
    ones = [extremes(space)[0], *(space.sample(rng) for _ in range(SAMPLES))]
    return max(ones, key=lambda one: tap_channels(space.graph(one)).get("features", 0))


def tap_channels(graph: OperationGraph) -> dict[str, int]:
    """The channels of each tap of a graph."""
    return {name: graph.operations[position].shape[0] for name, position in graph.taps.items()}
