"""Any torch module as an operation graph to look at: what it runs on one input, by torch's own operations."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from nasplat.core.errors import NasplatError
from nasplat.core.graph import Operation, OperationGraph
from nasplat.core.problem import Problem

# Torch's names of operations that a graph of ours has a kind for; others keep theirs, as `aten.softmax`.
_KINDS = {
    "convolution": "conv2d",
    "addmm": "linear",
    "native_batch_norm": "batch_norm",
    "_native_batch_norm_legit": "batch_norm",
    "_native_batch_norm_legit_no_training": "batch_norm",
    "cudnn_batch_norm": "batch_norm",
    "relu": "relu",
    "hardtanh": "relu6",
    "silu": "silu",
    "hardswish": "hard_swish",
    "hardsigmoid": "hard_sigmoid",
    "sigmoid": "sigmoid",
    "add": "add",
    "mul": "multiply",
    "cat": "concat",
    "max_pool2d_with_indices": "max_pool",
    "avg_pool2d": "avg_pool",
    "mean": "global_avg_pool",
    "_adaptive_avg_pool2d": "global_avg_pool",
}
# The same tensor by another name; views, which are many in attention, are left out too.
_INVISIBLE = frozenset({"detach", "alias", "_to_copy", "clone", "copy", "lift_fresh"})


def record(module: nn.Module, problem: Problem) -> OperationGraph:
    """Runs a module on one input of the problem's shape, and writes down its operations.

    The graph is for drawings: kinds that torch alone knows keep torch's name (`aten.softmax`).

    Args:
        module: in evaluation mode, on the device `meta` (see `nasplat.networks.counter.copy_to`).
        problem: names and sizes of the outputs. A module with several returns a dict.

    Raises:
        NasplatError: the outputs are not those of the problem.
        Exception: whatever the module raises.
    """
    image = torch.zeros(1, *problem.input_shape, device="meta")
    recorder = _Recorder(module, image)
    fast_path = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with torch.no_grad(), recorder:
            result = module(image)
    finally:
        torch.backends.mha.set_fastpath_enabled(fast_path)
    outputs = {name: recorder.position(tensor, name) for name, tensor in _named(result, problem).items()}
    operations = tuple(recorder.operations)
    taps = {}
    if operations[next(iter(outputs.values()))].kind == "linear":
        taps["features"] = operations[next(iter(outputs.values()))].inputs[0]
    return OperationGraph(operations, outputs, taps)


def _named(result: object, problem: Problem) -> dict[str, Tensor]:
    """The result by the names of the problem's outputs, with the shapes that they must have."""
    named: dict[Any, Any] = result if isinstance(result, dict) else {problem.outputs[0].name: result}
    wanted = [output.name for output in problem.outputs]
    if not set(wanted) <= set(named) or not all(isinstance(named[name], Tensor) for name in wanted):
        given = f"a dict of {sorted(map(str, named))}" if isinstance(result, dict) else f"a {type(result).__name__}"
        expected = "a tensor" if len(wanted) == 1 else f"a dict of tensors: {', '.join(wanted)}"
        raise NasplatError(f"the network returns {given}", f"its forward must return {expected}")
    for output in problem.outputs:
        shape = tuple(named[output.name].shape)
        if output.kind == "classification" and shape != (1, output.size):
            raise NasplatError(
                f"for one input the network returns shape {shape} as {output.name!r}, not (1, {output.size})",
                "the number of classes is problem.outputs[0].size",
            )
    return {name: named[name] for name in wanted}


class _Recorder(TorchDispatchMode):
    def __init__(self, module: nn.Module, image: Tensor) -> None:
        super().__init__()
        self.operations = [Operation("input", (), tuple(image.shape[1:]), "input")]
        self._positions = {id(image): 0}
        # Names of layers, for tensors that are parameters or come from nothing else.
        self._names = {id(tensor): name.rpartition(".")[0] for name, tensor in module.named_parameters()}
        self._kept: list[Tensor] = [image]  # so that no id is used again

    def position(self, tensor: Tensor, name: str) -> int:
        if id(tensor) not in self._positions:
            raise NasplatError(f"the network's output {name!r} does not depend on its input")
        return self._positions[id(tensor)]

    def __torch_dispatch__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = function(*args, **(kwargs or {}))
        read = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        made = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        inputs = tuple(dict.fromkeys(self._positions[id(tensor)] for tensor in read if id(tensor) in self._positions))
        layer = next((self._names[id(tensor)] for tensor in read if id(tensor) in self._names), "")
        self._kept += made
        if not made or not inputs:
            self._names.update({id(tensor): layer for tensor in made if layer})
            return result
        name = function._overloadpacket.__name__.removesuffix("_")
        position = inputs[0]
        kind = self._kind(function, name, layer, made[0])
        if kind:
            shape = tuple(made[0].shape[1:])
            self.operations.append(Operation(kind, inputs, shape, layer, _attributes(name, args)))
            position = len(self.operations) - 1
        self._positions.update({id(tensor): position for tensor in made})
        return result

    def _kind(self, function: Any, name: str, layer: str, result: Tensor) -> str:
        """The kind of an operation, or nothing for one that a drawing can do without."""
        views = (value.alias_info is not None and not value.alias_info.is_write for value in function._schema.returns)
        if name == "_unsafe_view" or any(views):
            return "flatten" if name in {"view", "_unsafe_view"} and result.dim() == 2 and len(result) == 1 else ""
        if name in _INVISIBLE:
            return ""
        if name == "mm" and layer:  # a linear layer without bias
            return "linear"
        return _KINDS.get(name, f"aten.{name}")


def _attributes(name: str, args: tuple[Any, ...]) -> dict[str, Any]:
    if name == "convolution":
        _, weight, bias, stride, padding, dilation, _, _, groups = args
        return {
            "kernel": tuple(weight.shape[2:]),
            "stride": tuple(stride),
            "padding": tuple(padding),
            "dilation": tuple(dilation),
            "groups": groups,
            "bias": bias is not None,
        }
    if name in {"max_pool2d_with_indices", "avg_pool2d"}:
        kernel = tuple(args[1])
        return {"kernel": kernel, "stride": tuple(args[2]) if len(args) > 2 and args[2] else kernel}
    return {}
