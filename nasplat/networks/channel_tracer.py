"""Finds out which channels of any torch module can be removed, by following each one through its exported graph."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch.export.graph_signature import InputKind
from torch.utils._pytree import tree_leaves

from nasplat.core.channel_graph import ChannelGraph
from nasplat.core.errors import NasplatError
from nasplat.networks.channel_export import export
from nasplat.networks.channel_labels import BY_NATURE, Labels
from nasplat.networks.channel_rules import apply_rule
from nasplat.networks.channel_step import Record, Step
from nasplat.networks.channel_trial import settle
from nasplat.networks.channel_views import fixed, made
from nasplat.networks.counter import copy_to
from nasplat.networks.surgery import bare


def trace_channels(model: nn.Module, example_inputs: Sequence[Any]) -> ChannelGraph:
    """The groups of channels that can be removed from a module, and everything that must go or change with them.

    The module is exported by `torch.export` without data, and every index of every dimension is followed through the
    operations. Where forward must adapt to other sizes by itself (a view into heads), a trial without data shows
    whether it does; what does not is frozen.

    Args:
        model: any module, in any mode, on any device; it stays as it is. Wrappers of data
            parallel training and of compilation are taken off.
        example_inputs: what forward takes, batch first.

    Raises:
        NasplatError: the module cannot be exported.
    """
    inner = bare(model)
    try:
        copied, inputs, exported = _export_on("meta", inner, example_inputs)
    except NasplatError:
        # A forward that makes tensors of its own, on no device in particular, only runs with data.
        copied, inputs, exported = _export_on("cpu", inner, example_inputs)
    record = label(exported, copied)
    return settle(record, exported, copied, inputs)


def _export_on(
    device: str, model: nn.Module, example_inputs: Sequence[Any]
) -> tuple[nn.Module, tuple[Any, ...], torch.export.ExportedProgram]:
    copied = copy_to(model, device)
    inputs = tuple(value.to(device) if isinstance(value, Tensor) else value for value in example_inputs)
    # Of a copy of its own, because a forward may keep something for its next run.
    return copied, inputs, export(copy.deepcopy(copied), inputs)


def label(exported: torch.export.ExportedProgram, model: nn.Module) -> Record:
    """Labels of all tensors of an exported module."""
    record = Record(Labels(), dict(model.named_modules()))
    _label_inputs(record, exported, model)
    for node in exported.graph.nodes:
        if node.op == "call_function":
            record.values[node] = apply_rule(Step(node, record))
        elif node.op == "get_attr":
            value = node.meta.get("val")
            record.values[node] = made(value.shape) if isinstance(value, Tensor) else []
        elif node.op == "output":
            for source in tree_leaves(node.args):
                if isinstance(source, fx.Node):
                    for dim in record.values[source]:
                        record.labels.freeze(dim, BY_NATURE)
    return record


def _label_inputs(record: Record, exported: torch.export.ExportedProgram, model: nn.Module) -> None:
    state = dict([*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)])
    first_names: dict[int, str] = {}
    for name, tensor in state.items():
        first_names.setdefault(id(tensor), name)
    labels_of: dict[str, list[np.ndarray]] = {}
    specs = {spec.arg.name: spec for spec in exported.graph_signature.input_specs}
    for node in exported.graph.nodes:
        if node.op != "placeholder":
            continue
        spec, value = specs[node.name], node.meta.get("val")
        if not isinstance(value, Tensor):
            record.values[node] = []
        elif spec.kind == InputKind.USER_INPUT:
            record.values[node] = fixed(value.shape)
        elif spec.kind in (InputKind.PARAMETER, InputKind.BUFFER) and spec.target in state:
            name = first_names[id(state[spec.target])]
            if not value.is_floating_point():
                record.values[node] = fixed(value.shape)
                continue
            if name not in labels_of:
                labels_of[name] = [record.labels.fresh(size) if size > 1 else fixed([size])[0] for size in value.shape]
            record.values[node] = list(labels_of[name])
            record.parameter_names[node] = name
            if spec.kind == InputKind.PARAMETER:
                record.parameters.add(node)
        else:
            record.values[node] = made(value.shape)
