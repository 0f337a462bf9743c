"""Counts what any torch module costs, by running a copy of it without data."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from nasplat.core.cost import Cost
from nasplat.core.errors import NasplatError
from nasplat.networks.tracer import trace_run


@dataclass(frozen=True, slots=True)
class LayerCost:
    """What one layer does itself; what its children do has rows of its own.

    Args:
        name: dotted path of the module; empty for the outermost one.
        kind: class of the module.
        macs: multiply-accumulates at the batch size of the inputs.
        params: of parameters that no earlier layer has.
        calls: how often it ran.
        output_shape: of its last call with the batch, empty where it returns something else than one tensor.
    """

    name: str
    kind: str
    macs: int
    params: int
    calls: int
    output_shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class ModuleCost:
    """The cost of a module and of its layers.

    Args:
        macs, params, peak_bytes: as defined in `nasplat.core.cost`; tied parameters count once, frozen ones count too.
        layers: one row for every module that ran or holds parameters, in the order of `named_modules`.
        uncounted: ATen operations that ran and have no multiply-accumulates by definition, and how often.
    """

    macs: int
    params: int
    peak_bytes: int
    layers: tuple[LayerCost, ...]
    uncounted: dict[str, int]

    @property
    def cost(self) -> Cost:
        return Cost(self.macs, self.params, self.peak_bytes)


def count(
    module: nn.Module, input_shape: Sequence[int] | None = None, inputs: tuple[Tensor, ...] | None = None
) -> ModuleCost:
    """Counts a module in evaluation mode, on a copy whose tensors have shapes and no data; the module stays as it is.

    Args:
        module: any module whose forward runs on torch's `meta` device.
        input_shape: `(C, H, W)` of one input, which is given batch 1 and type float32.
        inputs: example inputs instead, counted at their own batch size and type.

    Raises:
        NasplatError: the forward fails or cannot run without data; or it runs an operation that looks like a matrix
            product and has no formula (`torch.utils.flop_counter.register_flop_formula` adds one).
    """
    meta = copy_to(module, "meta")
    examples = tuple(tensor.to("meta") for tensor in example_inputs(input_shape, inputs))
    trace = trace_run(meta, examples)
    params = {name: 0 for name, _ in meta.named_modules()}
    for name, parameter in meta.named_parameters():
        params[name.rpartition(".")[0]] += parameter.numel()
    layers = tuple(
        LayerCost(name, type(layer).__name__, trace.macs[name], params[name], trace.calls[name], trace.shapes[name])
        for name, layer in meta.named_modules()
        if trace.calls[name] or params[name]
    )
    return ModuleCost(sum(trace.macs.values()), sum(params.values()), trace.peak_bytes(), layers, dict(trace.uncounted))


def example_inputs(
    input_shape: Sequence[int] | None = None, inputs: tuple[Tensor, ...] | None = None
) -> tuple[Tensor, ...]:
    """The given inputs, or a single one of zeros at batch 1."""
    if (input_shape is None) == (inputs is None):
        raise NasplatError("a count needs either an input shape or example inputs")
    return inputs if inputs is not None else (torch.zeros(1, *(input_shape or ())),)


def copy_to(module: nn.Module, device: str) -> nn.Module:
    """A deep copy in evaluation mode, made on a device at once: weights are never held twice where `meta` is asked for.

    Raises:
        NasplatError: the module cannot be copied.
    """
    module = getattr(module, "_orig_mod", module)  # of a compiled module
    memo: dict[int, Any] = {}
    with torch.no_grad():
        for tensor in _tensors_of(module):
            if isinstance(tensor, nn.UninitializedParameter):
                raise NasplatError("the module has lazy parameters", "run it once, so that they get their shapes")
            if tensor.is_meta and device != "meta":
                moved = torch.zeros_like(tensor, device=device)
            else:
                moved = tensor.detach().to(device, copy=True)
            memo[id(tensor)] = nn.Parameter(moved, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else moved
    try:
        return copy.deepcopy(module, memo).eval()
    except Exception as error:
        raise NasplatError(f"{type(module).__name__} cannot be copied, so it cannot be counted: {error}") from error


def _tensors_of(module: nn.Module) -> Iterator[Tensor]:
    for layer in module.modules():
        # Also tensors that are plain attributes, which no `.to` of torch would move.
        for value in [*layer._parameters.values(), *layer._buffers.values(), *tree_leaves(list(vars(layer).values()))]:
            if isinstance(value, Tensor):
                yield value
