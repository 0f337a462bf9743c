"""Takes channels out of a module: slices its tensors and repairs the attributes that its forward reads."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from nasplat.core.channel_graph import ChannelGraph
from nasplat.core.errors import NasplatError
from nasplat.networks.module_numbers import read, write


@dataclass(frozen=True, slots=True)
class Repair:
    """One attribute that was changed.

    Args:
        module: path of the module, empty for the outermost one.
        attribute: its name; `function.variable` for what a function among the attributes has enclosed.
        old, new: values.
    """

    module: str
    attribute: str
    old: Any
    new: Any


@dataclass(frozen=True, slots=True)
class Rescaling:
    """Rows of tensors that are multiplied, so that a factor in forward that follows the width changes nothing."""

    tensors: tuple[str, ...]
    rows: tuple[int, ...]
    factor: float


@dataclass(frozen=True, slots=True)
class Surgery:
    """All that is done to a module, as plain data: enough to do it again to another copy of it.

    Args:
        kept: by tensor of the state dict and by dimension, the indices that stay.
        attributes: what is set, by path and name; of tuples and lists the whole value.
        rescaled: done before anything is sliced.
    """

    kept: Mapping[str, Mapping[int, tuple[int, ...]]]
    attributes: tuple[Repair, ...]
    rescaled: tuple[Rescaling, ...]

    def to_json(self) -> dict[str, Any]:
        """Lists, strings and numbers only."""
        kept = {name: {str(dim): list(indices) for dim, indices in dims.items()} for name, dims in self.kept.items()}
        return {
            "kept": kept,
            "attributes": [asdict(repair) for repair in self.attributes],
            "rescaled": [asdict(rescaling) for rescaling in self.rescaled],
        }

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> Surgery:
        """What `to_json` has written.

        Raises:
            NasplatError: something is missing or of another type.
        """
        try:
            return Surgery(
                {
                    name: {int(dim): tuple(map(int, indices)) for dim, indices in dims.items()}
                    for name, dims in data["kept"].items()
                },
                tuple(Repair(**entry) for entry in data["attributes"]),
                tuple(
                    Rescaling(tuple(entry["tensors"]), tuple(map(int, entry["rows"])), float(entry["factor"]))
                    for entry in data["rescaled"]
                ),
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            message = f"this is no record of a pruning: {error!r}"
            raise NasplatError(message, "it may be damaged or of another version") from error


def prune(
    model: nn.Module, graph: ChannelGraph, keep: Mapping[str, Sequence[int] | Tensor]
) -> tuple[nn.Module, tuple[Repair, ...]]:
    """A smaller copy of a module, still of the user's own class, and the attributes that were changed in it.

    Nothing is proved here: `nasplat.networks.pruning_proof.prove` does that.

    Args:
        model: stays as it is; a DataParallel wrapper is taken off.
        graph: of that model.
        keep: by group, the atoms that stay; groups that are not named stay whole.

    Raises:
        NasplatError: an unknown group, nothing left of one, or the graph is of another model.
    """
    return operate(model, plan(model, graph, keep))


def plan(model: nn.Module, graph: ChannelGraph, keep: Mapping[str, Iterable[int] | Tensor]) -> Surgery:
    """What has to be done to a module so that only these atoms stay; arguments and errors as in `prune`."""
    inner = bare(model)
    tensors = _tensors(inner)
    for name, known in graph.tensors.items():
        if (shape := tuple(_of(tensors, name).shape)) != known.shape:
            message = f"{name!r} is of shape {shape} and was {known.shape} when its channels were traced"
            raise NasplatError(message, "trace the channels of this model anew")
    masks = graph.masks({name: _integers(indices) for name, indices in keep.items()})
    kept: dict[str, dict[int, tuple[int, ...]]] = {}
    for name, tensor in graph.tensors.items():
        for dim, axis in enumerate(tensor.axes):
            if axis is not None and not (stays := axis.kept(masks)).all():
                kept.setdefault(name, {})[dim] = tuple(stays.nonzero()[0].tolist())
    modules = dict(inner.named_modules())
    values: dict[tuple[str, str], Any] = {}
    for size in graph.attributes:
        count, whole = int(size.axis.kept(masks).sum()), size.axis.size
        if count == whole or size.value * count % whole:
            continue
        key, new = (size.module, size.attribute), size.value * count // whole
        if size.position is None:
            values[key] = new
        else:
            old = values.get(key, read(modules[size.module], size.attribute))
            values[key] = type(old)([*old[: size.position], new, *old[size.position + 1 :]])
    attributes = tuple(Repair(path, name, read(modules[path], name), value) for (path, name), value in values.items())
    rescaled = []
    for scale in graph.scales:
        count = int(scale.axis.kept(masks).sum())
        if count != scale.axis.size:
            factor = (count / scale.axis.size) ** -scale.exponent
            rescaled.append(Rescaling(scale.tensors, tuple(scale.rows.tolist()), factor))
    return Surgery(kept, attributes, tuple(rescaled))


def operate(model: nn.Module, surgery: Surgery) -> tuple[nn.Module, tuple[Repair, ...]]:
    """Does to a copy of a module what was planned, and returns it with all attributes that changed.

    Args:
        model: the module that the plan is for, or a fresh one of the same architecture.
        surgery: the plan.

    Raises:
        NasplatError: the plan does not fit the module.
    """
    pruned = copy.deepcopy(bare(model))
    tensors = _tensors(pruned)
    sliced: dict[int, Tensor] = {}
    with torch.no_grad():
        for rescaling in surgery.rescaled:
            for name in rescaling.tensors:
                _of(tensors, name)[list(rescaling.rows)] *= rescaling.factor
        for name, dims in surgery.kept.items():
            tensor = smaller = _of(tensors, name)
            for dim, indices in dims.items():
                if not indices or tensor.dim() <= dim or indices[-1] >= tensor.shape[dim]:
                    raise NasplatError(f"the plan does not fit {name!r} of shape {tuple(tensor.shape)}")
                smaller = smaller.index_select(dim, torch.tensor(indices, device=tensor.device))
            if isinstance(tensor, nn.Parameter):
                smaller = nn.Parameter(smaller, tensor.requires_grad)
            sliced[id(tensor)] = smaller
    for module in pruned.modules():
        for place in (module._parameters, module._buffers):
            for key, value in place.items():
                if value is not None and id(value) in sliced:
                    place[key] = sliced[id(value)]  # type: ignore[assignment]
    modules = dict(pruned.named_modules())
    repairs = list(surgery.attributes)
    for repair in surgery.attributes:
        if repair.module not in modules:
            raise NasplatError(f"the model has no module {repair.module!r}", "the plan is of another model")
        # JSON knows no tuples.
        was_tuple = isinstance(read(modules[repair.module], repair.attribute), tuple)
        write(modules[repair.module], repair.attribute, tuple(repair.new) if was_tuple else repair.new)
    for path, module in modules.items():
        for attribute, new in _known_sizes(module):
            if (old := getattr(module, attribute)) != new:
                setattr(module, attribute, new)
                repairs.append(Repair(path, attribute, old, new))
    return pruned, tuple(repairs)


def kept_channels(model: nn.Module, surgeries: Iterable[Surgery]) -> dict[str, tuple[int, ...]]:
    """Module path -> of its output channels those that are left after all of these, one after the other.

    Args:
        model: the original; only of its convolutions, linear and normalisation layers this can be told.
    """
    found: dict[str, tuple[int, ...]] = {}
    modules = dict(bare(model).named_modules())
    for surgery in surgeries:
        for name, dims in surgery.kept.items():
            path, _, tensor = name.rpartition(".")
            module = modules.get(path)
            transposed = getattr(module, "transposed", False)
            if tensor == "weight" and 0 in dims and not transposed and _known_sizes(module or nn.Module()):
                found[path] = tuple(found[path][index] for index in dims[0]) if path in found else dims[0]
    return found


def bare(model: nn.Module) -> nn.Module:
    """A model without the wrappers of data parallel training and of compilation."""
    while isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel) or hasattr(model, "_orig_mod"):
        model = model._orig_mod if hasattr(model, "_orig_mod") else model.module  # type: ignore[assignment]
    return model


def _integers(indices: Iterable[int] | Tensor) -> list[int]:
    return indices.tolist() if isinstance(indices, Tensor) else [int(index) for index in indices]


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    return {**dict(model.named_parameters(remove_duplicate=False)), **dict(model.named_buffers(remove_duplicate=False))}


def _of(tensors: Mapping[str, Tensor], name: str) -> Tensor:
    if name not in tensors:
        raise NasplatError(f"the model has no tensor {name!r}", "the channel graph is of another model")
    return tensors[name]


def _known_sizes(module: nn.Module) -> list[tuple[str, Any]]:
    for kind, sizes in _SIZES.items():
        if isinstance(module, kind):
            return sizes(module)
    return []


def _convolution_sizes(module: Any) -> list[tuple[str, Any]]:
    outer, inner = module.weight.shape[:2]
    if module.transposed:
        return [("in_channels", outer), ("out_channels", inner * module.groups)]
    return [("in_channels", inner * module.groups), ("out_channels", outer)]


def _norm_sizes(module: Any) -> list[tuple[str, Any]]:
    tensor = module.weight if module.weight is not None else module.running_mean
    return [] if tensor is None else [("num_features", len(tensor))]


def _layer_norm_sizes(module: Any) -> list[tuple[str, Any]]:
    return [] if module.weight is None else [("normalized_shape", tuple(module.weight.shape))]


# What torch's own modules say about the shapes of their weights. `groups` is set before, by the plan.
_SIZES: dict[Any, Callable[[Any], list[tuple[str, Any]]]] = {
    nn.modules.conv._ConvNd: _convolution_sizes,
    nn.Linear: lambda module: [("in_features", module.weight.shape[1]), ("out_features", module.weight.shape[0])],
    nn.modules.batchnorm._NormBase: _norm_sizes,
    (nn.LayerNorm, nn.RMSNorm): _layer_norm_sizes,
    nn.GroupNorm: lambda module: [("num_channels", len(module.weight))] if module.affine else [],
    nn.Embedding: lambda module: [("embedding_dim", module.weight.shape[1])],
    nn.PReLU: lambda module: [("num_parameters", len(module.weight))],
}
