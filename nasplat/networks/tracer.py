"""Records the operations that a module runs: multiply-accumulates by layer, and which tensors live when."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from nasplat.core.errors import NasplatError


def trace_run(module: nn.Module, inputs: tuple[Tensor, ...], *, strict: bool = True) -> Trace:
    """Runs a module once without gradients, and records its operations.

    Args:
        module: is run as it is, so on a copy if hooks or buffers of it matter.
        inputs: on the module's device.
        strict: unknown operations that look like matrix products are an error, and attention runs as its matrix
            products instead of fused.
    """
    trace = Trace(strict)
    names = {layer: name for name, layer in module.named_modules()}
    # Hooks for all modules: a hook of its own would keep a layer off torch's fused path.
    handles = [
        register_module_forward_pre_hook(partial(_enter, trace, names)),
        register_module_forward_hook(partial(_leave, trace, names), always_call=True),
    ]
    fast_path = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(fast_path and not strict)
    try:
        trace.define(inputs)
        with torch.no_grad(), trace:
            outputs = module(*inputs)
        trace.read(outputs)
        return trace
    except NasplatError:
        raise
    except Exception as error:
        raise NasplatError(
            f"{type(module).__name__} fails on input of shape {[tuple(tensor.shape) for tensor in inputs]}: {error}",
            "its forward must take these inputs, and must not depend on the values of tensors",
        ) from error
    finally:
        torch.backends.mha.set_fastpath_enabled(fast_path)
        for handle in handles:
            handle.remove()


class Trace(TorchDispatchMode):
    """The operations of one run: multiply-accumulates by layer, and when each tensor is made and last read.

    Attributes:
        macs, calls, shapes: by the dotted name of the layer.
        unknown: by layer, the operations that look like matrix products and have no formula.
        uncounted: operations without multiply-accumulates, and how often they ran.
        stack: the names of the layers that are running.
    """

    def __init__(self, strict: bool) -> None:
        super().__init__()
        self.strict = strict
        self.macs: Counter[str] = Counter()
        self.calls: Counter[str] = Counter()
        self.shapes: dict[str, tuple[int, ...]] = defaultdict(tuple)
        self.unknown: dict[str, set[str]] = {}
        self.uncounted: Counter[str] = Counter()
        self.stack = [""]
        self._events: list[list[int]] = []  # tensors that each operation makes
        self._bytes: list[int] = []  # by tensor
        self._last_use: list[int] = []  # by tensor: number of the event that reads it last
        self._current: dict[int, int] = {}  # storage -> the tensor that it holds now
        self._kept: list[torch.UntypedStorage] = []  # so that no address is used again

    def __torch_dispatch__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        packet = function._overloadpacket
        formula = flop_registry.get(packet)
        own_formula = _FORMULAS.get(packet)
        if formula is None and own_formula is None and looks_like_matrix_product(function):
            with self:  # a composite operation is counted by its parts
                parts = function.decompose(*args, **kwargs)
            if parts is not NotImplemented:
                return parts
            if self.strict:
                raise NasplatError(
                    f"{function} in layer {self.stack[-1]!r} looks like a matrix product and has no known cost",
                    "give it one with torch.utils.flop_counter.register_flop_formula",
                )
            self.unknown.setdefault(self.stack[-1], set()).add(str(packet))
        result = function(*args, **kwargs)
        if formula is not None:
            self.macs[self.stack[-1]] += formula(*args, **kwargs, out_val=result) // 2
        elif own_formula is not None:
            self.macs[self.stack[-1]] += own_formula(*args)
        else:
            self.uncounted[str(packet)] += 1
        self._record(function, args, kwargs, result)
        return result

    def define(self, tensors: object) -> None:
        """An event that makes tensors."""
        made: list[int] = []
        for storage in _storages(tensors):
            if storage._cdata not in self._current:
                made.append(self._make(storage, len(self._events)))
        self._events.append(made)

    def read(self, tensors: object) -> None:
        """An event that reads tensors."""
        for storage in _storages(tensors):
            if (tensor := self._current.get(storage._cdata)) is not None:
                self._last_use[tensor] = len(self._events)
        self._events.append([])

    def _make(self, storage: torch.UntypedStorage, event: int) -> int:
        self._current[storage._cdata] = len(self._bytes)
        self._kept.append(storage)
        self._bytes.append(storage.nbytes())
        self._last_use.append(event)
        return len(self._bytes) - 1

    def _record(self, function: Any, args: Any, kwargs: Any, result: object) -> None:
        event = len(self._events)
        given = {storage._cdata for storage in _storages((args, kwargs))}
        for address in given & self._current.keys():
            self._last_use[self._current[address]] = event
        overwritten = _overwritten(function, args)
        made: list[int] = []
        for storage in _storages(result):
            known = storage._cdata in self._current
            # What is written in place counts as a new tensor, so that a flag `inplace` changes no cost. A storage
            # that came in and that the run did not make holds weights, which are no activations.
            if (known and storage._cdata == overwritten) or not (known or storage._cdata in given):
                made.append(self._make(storage, event))
        self._events.append(made)

    def peak_bytes(self) -> int:
        """The largest sum of live tensors.

        A further result of an operation that nothing reads, such as the indices of a maximum, is no activation.
        """
        live = peak = 0
        freed: dict[int, int] = {}
        for event, made in enumerate(self._events):
            for place, tensor in enumerate(made):
                if place == 0 or self._last_use[tensor] > event or event == 0:
                    live += self._bytes[tensor]
                    freed[self._last_use[tensor]] = freed.get(self._last_use[tensor], 0) + self._bytes[tensor]
            peak = max(peak, live)
            live -= freed.pop(event, 0)
        return peak


def _enter(trace: Trace, names: dict[nn.Module, str], layer: nn.Module, args: object) -> None:
    if layer in names:
        trace.stack.append(names[layer])


def _leave(trace: Trace, names: dict[nn.Module, str], layer: nn.Module, args: object, output: object) -> None:
    if layer in names:
        trace.stack.pop()
        trace.calls[names[layer]] += 1
        trace.shapes[names[layer]] = tuple(output.shape) if isinstance(output, Tensor) else ()


def _storages(tensors: object) -> list[torch.UntypedStorage]:
    if isinstance(tensors, Tensor):
        return [tensors.untyped_storage()]
    parts = tensors.values() if isinstance(tensors, dict) else tensors if isinstance(tensors, list | tuple) else ()
    return [storage for part in parts for storage in _storages(part)]


def _overwritten(function: Any, args: tuple[Any, ...]) -> int | None:
    """The address of the first argument's storage if the operation writes all of it."""
    alias = function._schema.arguments[0].alias_info if function._schema.arguments else None
    if (
        alias is None
        or not alias.is_write
        or torch.Tag.inplace_view in function.tags
        or not isinstance(args[0], Tensor)
    ):
        return None
    storage = args[0].untyped_storage()
    return storage._cdata if args[0].numel() * args[0].element_size() == storage.nbytes() else None


def looks_like_matrix_product(function: Any) -> bool:
    """Whether an operation's name says that it multiplies matrices, convolves, attends or recurs."""
    name = function._overloadpacket.__name__
    return name in _MATRIX_PRODUCTS or (name not in _HARMLESS and _MATRIX_PRODUCT.search(name) is not None)


# Parts of a name, between underscores.
_MATRIX_PRODUCT = re.compile(
    r"(?:^|_)(?:\w*mm|mv|addmv|v?dot|vecdot|matmul|conv|conv[123]d|\w*convolution|attention|linear|bilinear|trilinear"
    r"|lstm|gru|rnn|einsum|tensordot|cdist|kron|inner)(?:_|$)"
)
# Matrix products whose names do not match the pattern.
_MATRIX_PRODUCTS = frozenset(
    {
        "_transformer_encoder_layer_fwd",
        "cholesky",
        "cholesky_inverse",
        "cholesky_solve",
        "linalg_cholesky_ex",
        "linalg_eig",
        "linalg_inv_ex",
        "linalg_ldl_solve",
        "linalg_lu_factor_ex",
        "linalg_lu_solve",
        "linalg_matrix_exp",
        "linalg_qr",
        "linalg_solve_triangular",
        "_linalg_det",
        "_linalg_eigh",
        "_linalg_solve_ex",
        "_linalg_svd",
        "triangular_solve",
    }
)
# Operations whose names match the pattern and that multiply no matrices: resampling, and the gates of recurrent cells.
_HARMLESS = frozenset(
    {
        "__upsample_bilinear",
        "_cudnn_rnn_flatten_weight",
        "_thnn_fused_gru_cell",
        "_thnn_fused_lstm_cell",
        "_use_cudnn_rnn_flatten_weight",
    }
)

# Operations that torch's table of formulas lacks.
_FORMULAS: dict[Any, Callable[..., int]] = {
    torch.ops.aten.mv: lambda matrix, vector: matrix.numel(),
    torch.ops.aten.addmv: lambda start, matrix, vector: matrix.numel(),
    torch.ops.aten.dot: lambda first, second: first.numel(),
    torch.ops.aten.vdot: lambda first, second: first.numel(),
}
