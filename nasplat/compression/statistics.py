"""What criteria of importance are computed from: the weights of a group, batches, and means over them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from nasplat.core.channel_graph import ChannelGraph, Group, Member
from nasplat.core.errors import NasplatError
from nasplat.training.features import device_of

Batches = Iterable[tuple[Tensor, Any]]  # images, and what the loss wants besides outputs: None where it is not known
Loss = Callable[[Any, Any], Tensor]
Scores = Mapping[str, Sequence[Tensor]]  # by group, what each of its parts says: (atoms,); nothing, or one or more


@dataclass(frozen=True, slots=True)
class Evidence:
    """All that a criterion may look at.

    Args:
        model: without wrappers, in eval mode.
        graph: of that model.
        parameters: by name; tied ones under all their names.
        owners: by name of a parameter, the module that it belongs to.
        batches: images, and what the loss compares outputs with.
        loss: of outputs and labels.
        generator: where the criterion draws.
    """

    model: nn.Module
    graph: ChannelGraph
    parameters: Mapping[str, nn.Parameter]
    owners: Mapping[str, nn.Module]
    batches: Batches
    loss: Loss
    generator: torch.Generator


def evidence_of(
    model: nn.Module, graph: ChannelGraph, batches: Batches, loss: Loss, generator: torch.Generator
) -> Evidence:
    """Raises NasplatError where the graph is of another model."""
    parameters = dict(model.named_parameters(remove_duplicate=False))
    owners = {
        f"{path}.{name}".lstrip("."): module for path, module in model.named_modules() for name in module._parameters
    }
    for name, known in graph.tensors.items():
        if known.trainable and (name not in parameters or tuple(parameters[name].shape) != known.shape):
            raise NasplatError(
                f"the model has no parameter {name!r} of shape {known.shape}", "trace the channels of this model anew"
            )
    return Evidence(model, graph, parameters, owners, batches, loss, generator)


def trainable(group: Group, evidence: Evidence) -> list[Member]:
    """The members of a group that are dimensions of parameters: not the statistics of norms."""
    return [member for member in group.members if member.tensor in evidence.parameters]


def makers(group: Group, evidence: Evidence) -> list[Member]:
    """The weights whose outputs are the channels; all of the group's parameters where there is no such."""
    members = trainable(group, evidence)
    return [member for member in members if _is_along(member, evidence, makes=True)] or members


def readers(group: Group, evidence: Evidence) -> list[Member]:
    """The weights whose inputs are the channels; all of the group's parameters where there is no such."""
    members = trainable(group, evidence)
    return [member for member in members if _is_along(member, evidence, makes=False)] or members


def _is_along(member: Member, evidence: Evidence, makes: bool) -> bool:
    weight, owner = evidence.parameters[member.tensor], evidence.owners[member.tensor]
    if weight.dim() < 2:
        return False
    if isinstance(owner, nn.Embedding):
        return makes and member.dim == 1
    if isinstance(owner, nn.Linear | nn.modules.conv._ConvNd):
        return member.dim == (int(makes) if getattr(owner, "transposed", False) else int(not makes))
    # A parameter of another kind of module: no scale with one number a channel, and no table of biases.
    return (
        member.dim == int(not makes)
        and weight.select(member.dim, 0).numel() > 1
        and (makes or member.tensor.endswith("weight"))
    )


def rows(member: Member, evidence: Evidence) -> Tensor:
    """The weights that each atom takes away from one dimension: float64 on the CPU, `(atoms, weights)`."""
    weight = evidence.parameters[member.tensor].detach().to("cpu").double()
    return weight.movedim(member.dim, 0)[torch.from_numpy(member.indices)].flatten(1)


def wide(tensor: Tensor) -> Tensor:
    """In double precision, where the device has it."""
    return tensor.to(torch.float32 if tensor.device.type == "mps" else torch.float64)


def inputs_of(evidence: Evidence, labels_for: str | None = None) -> Iterator[tuple[Tensor, Any]]:
    """The batches on the model's device and, where they are no integers, in its type of numbers.

    What a loss compares with is moved where it is a tensor, and otherwise taken as it is.

    Args:
        labels_for: criterion that cannot do without labels.

    Raises:
        NasplatError: there are no labels although they are needed.
    """
    device = device_of(evidence.model)
    dtype = next((one.dtype for one in evidence.parameters.values() if one.is_floating_point()), torch.float32)
    for images, labels in evidence.batches:
        if labels is None and labels_for is not None:
            raise NasplatError(
                f"{labels_for} looks at the loss, and there are images without labels",
                "give labels, or choose activation, chip or hrank, which need none",
            )
        images = images.to(device, dtype) if images.is_floating_point() else images.to(device)
        yield images, labels.to(device) if isinstance(labels, Tensor) else labels


class RunningMeans:
    """Means of tensors over all that was seen by all processes; nothing but their sums is kept."""

    def __init__(self) -> None:
        self._sums: dict[Any, Tensor] = {}
        self._counts: dict[Any, int] = {}

    def add(self, key: Any, total: Tensor, count: int = 1) -> None:
        total = wide(total)
        self._sums[key] = self._sums[key] + total if key in self._sums else total
        self._counts[key] = self._counts.get(key, 0) + count

    def means(self) -> dict[Any, Tensor]:
        """By key, on the CPU and in float64; the same in all processes, which must have seen the same keys."""
        if not self._sums:
            return {}
        keys = list(self._sums)
        device = self._sums[keys[0]].device
        counts = wide(torch.tensor([self._counts[key] for key in keys], device=device))
        flat = torch.cat([counts, *(self._sums[key] for key in keys)])
        if together():
            torch.distributed.all_reduce(flat)
        flat = flat.cpu().double()
        parts = flat[len(keys) :].split([len(self._sums[key]) for key in keys])
        return {key: part / count for key, part, count in zip(keys, parts, flat, strict=False)}


def together() -> bool:
    """Whether several processes look at their own batches each."""
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def require_batches(seen: int, evidence: Evidence) -> None:
    """Raises NasplatError, in all processes, where one of them had no batch: the others would wait for it forever."""
    least = torch.tensor(seen, device=device_of(evidence.model))
    if together():
        torch.distributed.all_reduce(least, torch.distributed.ReduceOp.MIN)
    if not least:
        raise NasplatError("this criterion of importance looks at images, and there are none", "give batches")
