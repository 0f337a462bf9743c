"""What channels give to the layers that read them, seen while a network runs, whoever calls the operation."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import FunctionType
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from nasplat.compression.statistics import Evidence, RunningMeans, Scores, inputs_of, require_batches, trainable


@dataclass(frozen=True, slots=True)
class Seen:
    """What one batch says of the channels.

    Args:
        richness: how much the maps could show; of a group only what comes from its richest maps is used.
        total: `(atoms,)`, summed over `count`.
        count: how many images, or batches, that is.
    """

    richness: int
    total: Tensor
    count: int = 1


# Of maps (N, atoms, channels per atom, …): places follow, two for an image, one for tokens, none for single values.
OfMaps = Callable[[Tensor], Seen]


@dataclass(frozen=True, slots=True)
class _Layout:
    """Where an operation with a weight has its channels.

    Args:
        channels: dimension of input and output, from the end.
        reads, makes: dimensions of the weight along its input and output channels; no input for an embedding.
    """

    channels: int
    reads: int | None
    makes: int


_OPERATIONS: dict[Any, _Layout] = {
    F.linear: _Layout(-1, 1, 0),
    F.embedding: _Layout(-1, None, 1),
    F.conv1d: _Layout(-2, 1, 0),
    F.conv2d: _Layout(-3, 1, 0),
    F.conv3d: _Layout(-4, 1, 0),
    F.conv_transpose1d: _Layout(-2, 0, 1),
    F.conv_transpose2d: _Layout(-3, 0, 1),
    F.conv_transpose3d: _Layout(-4, 0, 1),
}


@dataclass(frozen=True, slots=True)
class _Tap:
    group: str
    place: int
    dim: int
    indices: Tensor


def of_maps(of_batch: OfMaps) -> Callable[[Evidence], Scores]:
    """A criterion that looks at feature maps: what the layers that read the channels get, after norm and activation.

    Where no layer reads the channels through a weight of its own, what their producers give is taken.
    """

    def score(evidence: Evidence) -> Scores:
        running, seen = RunningMeans(), 0
        watching = _Watching(_taps(evidence), of_batch, running)
        for images, _ in inputs_of(evidence):
            seen += 1
            with watching:
                evidence.model(images)
        require_batches(seen, evidence)
        means = running.means()
        found: dict[str, list[Tensor]] = {}
        for group in evidence.graph.groups:
            for side in ("reads", "makes"):
                mine = {key: mean for key, mean in means.items() if key[:2] == (group.name, side)}
                richest = max((key[3] for key in mine), default=0)
                if chosen := [mean for key, mean in mine.items() if key[3] == richest]:
                    found[group.name] = chosen
                    break
        return found

    return score


def _taps(evidence: Evidence) -> dict[int, list[_Tap]]:
    """By identity of the weight: operations are known by the very tensor that they are given."""
    taps: dict[int, list[_Tap]] = {}
    for group in evidence.graph.groups:
        for place, member in enumerate(trainable(group, evidence)):
            weight = evidence.parameters[member.tensor]
            indices = torch.from_numpy(member.indices).to(weight.device)
            taps.setdefault(id(weight), []).append(_Tap(group.name, place, member.dim, indices))
    return taps


class _Watching(TorchFunctionMode):
    """Sees every operation before it runs, called by a module or not."""

    def __init__(self, taps: Mapping[int, Sequence[_Tap]], of_batch: OfMaps, running: RunningMeans) -> None:
        super().__init__()
        self._taps, self._of_batch, self._running = taps, of_batch, running

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is F.multi_head_attention_forward:
            # It hands itself over as a whole; its steps, among them the projection of the heads, are to be seen.
            with self:
                return _opened(func)(*args, **kwargs)
        layout = _OPERATIONS.get(func)
        if layout is None:
            return func(*args, **kwargs)
        weight = kwargs["weight"] if "weight" in kwargs else args[1]
        taps = self._taps.get(id(weight), ())
        with torch.no_grad():
            for tap in taps:
                if tap.dim == layout.reads:
                    self._see("reads", kwargs["input"] if "input" in kwargs else args[0], layout, weight, tap)
            result = func(*args, **kwargs)
            for tap in taps:
                if tap.dim == layout.makes:
                    self._see("makes", result, layout, weight, tap)
        return result

    def _see(self, side: str, tensor: Tensor, layout: _Layout, weight: Tensor, tap: _Tap) -> None:
        if tensor.dim() == -layout.channels:
            tensor = tensor[None]
        maps = tensor.movedim(layout.channels, 1)
        # A grouped convolution has the same places of its weight for all of its groups.
        groups, within = maps.shape[1] // weight.shape[tap.dim], weight.shape[tap.dim]
        starts = within * torch.arange(groups, device=tap.indices.device)
        indices = (tap.indices[:, None, :] + starts[:, None]).flatten(1)
        chosen = maps[:, indices.flatten()].unflatten(1, tuple(indices.shape))
        # Layers on tokens or pixels have their channels last: what lies between them and the batch are places.
        seen = self._of_batch(chosen)
        self._running.add((tap.group, side, tap.place, seen.richness), seen.total, seen.count)


def _opened(function: Any) -> Callable[..., Any]:
    """The same code, which does not hand itself over to whoever watches."""
    names = {**function.__globals__, "has_torch_function": lambda tensors: False}
    opened = FunctionType(function.__code__, names, function.__name__, function.__defaults__)
    opened.__kwdefaults__ = function.__kwdefaults__
    return opened
