"""Runs an operation graph as a torch module."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from math import prod, sqrt
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nasplat.core.errors import NasplatError
from nasplat.core.graph import Operation, OperationGraph
from nasplat.networks.graph_plan import GraphPlan


class GraphNetwork(nn.Module):
    """The network that an operation graph describes, freshly initialised.

    Operations run in graph order and every tensor is let go after its last use, so that memory follows
    `nasplat.core.cost.peak_bytes_of`. Only operations with parameters or buffers are modules; they are nested along
    their dotted names, so that the keys of the state dict read `stem.conv.weight`.

    Drop path: an operation whose attribute `drop_path` is set drops its whole output, sample by sample, in training
    mode only; survivors are scaled up so that the mean stays (ScheduledDropPath: Zoph et al., Learning Transferable
    Architectures for Scalable Image Recognition, 2018). The attribute is True, or the fraction of the probability
    that this operation gets (deeper cells are dropped more often there).

    Args:
        graph: what to run.
        generator: draws the initial weights; torch's default generator where there is none.
        device: where the parameters are made; `meta` makes none.

    Attributes:
        num_features: size of the tap `features`, or 0 where the graph has none.
        drop_path_probability: in [0, 1), 0 switches it off. The training loop sets it; a 0-dim tensor on the
            network's device keeps a compiled step from being compiled anew whenever it changes.
        drop_path_generator: draws what is dropped, on the device of the images; torch's default generator where there
            is none.

    Raises:
        NasplatError: an operation of unknown kind, two operations of one name, or a name that no module can have.
    """

    def __init__(
        self, graph: OperationGraph, generator: torch.Generator | None = None, device: torch.device | str = "cpu"
    ) -> None:
        super().__init__()
        self.graph = graph
        self.drop_path_probability: float | Tensor = 0.0
        self.drop_path_generator: torch.Generator | None = None
        features = graph.taps.get("features")
        self.num_features = 0 if features is None else prod(graph.operations[features].shape)
        # Position -> a function, or where to find a module: its parent and its name there. Plain lists, so that
        # nothing is registered twice; deep copies and replaced layers are followed all the same.
        self._functions: dict[int, Callable[..., Tensor]] = {}
        self._modules_at: dict[int, tuple[nn.Module, str]] = {}
        for position, operation in enumerate(graph.operations):
            self._add(position, operation)
        self._outputs = tuple(graph.outputs)
        self._plan = GraphPlan(graph)
        drop_ratios = {
            position: float(operation.attributes["drop_path"])
            for position, operation in enumerate(graph.operations)
            if operation.attributes.get("drop_path")
        }
        self._drop_rows = {position: row for row, position in enumerate(drop_ratios)}
        ratios = torch.tensor(list(drop_ratios.values()), dtype=torch.float32).reshape(-1, 1)
        self.register_buffer("_drop_ratios", ratios.to(device), persistent=False)
        if torch.device(device).type != "meta":
            for parent, name in self._modules_at.values():
                getattr(parent, name).to_empty(device=device)
            initialise(self, generator)

    def _add(self, position: int, operation: Operation) -> None:
        if operation.kind == "input":
            if position:
                raise NasplatError("the graph has more than one input")
            return
        if operation.kind in FUNCTIONS:
            self._functions[position] = FUNCTIONS[operation.kind](operation)
            return
        if operation.kind not in _MODULES:
            raise NasplatError(f"operation {operation.name!r} is of kind {operation.kind!r}, which cannot be run")
        shapes = [self.graph.operations[source].shape for source in operation.inputs]
        with torch.device("meta"):  # so that no default initialisation draws from torch's global generator
            module = _MODULES[operation.kind](operation, shapes[0])
        parent: nn.Module = self
        *path, leaf = operation.name.split(".")
        try:
            for part in path:
                if part not in parent._modules:
                    parent.add_module(part, nn.Module())
                parent = getattr(parent, part)
            if leaf in parent._modules:
                raise KeyError("another operation has it")
            parent.add_module(leaf, module)
        except KeyError as error:
            raise NasplatError(f"operation name {operation.name!r} cannot be used: {error.args[0]}") from error
        self._modules_at[position] = (parent, leaf)

    def forward(self, images: Tensor) -> Tensor | dict[str, Tensor]:
        """Images `(N, C, H, W)` to the output, or to outputs by name where the graph has several."""
        outputs = self.forward_taps(images, self._outputs)
        return outputs if len(outputs) > 1 else outputs[self._outputs[0]]

    def forward_taps(self, images: Tensor, names: tuple[str, ...]) -> dict[str, Tensor]:
        """Runs only what the named taps and outputs need.

        Args:
            images: `(N, C, H, W)`.
            names: of outputs or taps, such as `features` `(N, F)` and `auxiliary` `(N, C, H, W)`.

        Raises:
            NasplatError: the graph has no such output or tap.
        """
        drop_scales = self._drop_scales(images)

        def apply(position: int, inputs: list[Tensor]) -> Tensor:
            function = self._functions.get(position)
            if function is None:
                parent, name = self._modules_at[position]
                function = getattr(parent, name)
            value = function(*inputs)
            if drop_scales is not None and position in self._drop_rows:
                scale = drop_scales[self._drop_rows[position]]
                value = value * scale.to(value.dtype).reshape(-1, *(1,) * (value.dim() - 1))
            return value

        return self._plan.run(images, names, apply)

    def _drop_scales(self, images: Tensor) -> Tensor | None:
        """`(operations, N)`: 0 for what is dropped, 1 / (1 - probability) for what stays; one draw for all."""
        probability = self.drop_path_probability
        if not self.training or not self._drop_rows:
            return None
        if not isinstance(probability, Tensor):
            # Of a tensor neither is asked: reading it would wait for the device.
            if not 0 <= probability < 1:
                raise NasplatError(f"drop path probability {probability} is not in [0, 1)")
            if probability == 0:
                return None
        dropped = probability * self.get_buffer("_drop_ratios")
        shape = (len(self._drop_rows), images.shape[0])
        kept = torch.rand(shape, device=images.device, generator=self.drop_path_generator) >= dropped
        return kept / (1 - dropped)


def build_network(
    graph: OperationGraph, generator: torch.Generator | None = None, device: torch.device | str = "cpu"
) -> GraphNetwork:
    """The network of a graph, freshly initialised from `generator` (torch's default one where there is none)."""
    return GraphNetwork(graph, generator, device)


@torch.no_grad()
def initialise(network: nn.Module, generator: torch.Generator | None = None) -> None:
    """Draws all weights anew, in the order of the modules.

    Convolutions: normal with variance 2 / fan-out, a group's own fan-out (He et al., Delving Deep into Rectifiers,
    2015). Linear layers: uniform within 1 / sqrt(fan-in), zero bias. Batch norm: ones and zeros.
    """
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            fan_out = module.out_channels // module.groups * prod(module.kernel_size)
            module.weight.normal_(0, sqrt(2 / fan_out), generator=generator)
        elif isinstance(module, nn.Linear):
            bound = 1 / sqrt(module.in_features)
            module.weight.uniform_(-bound, bound, generator=generator)
        elif isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            module.reset_parameters()
        if isinstance(module, nn.Conv2d | nn.Linear) and module.bias is not None:
            module.bias.zero_()


def _conv2d(operation: Operation, input_shape: tuple[int, ...]) -> nn.Module:
    attributes = operation.attributes
    return nn.Conv2d(
        input_shape[0],
        operation.shape[0],
        tuple(attributes["kernel"]),
        stride=tuple(attributes.get("stride", (1, 1))),
        padding=tuple(attributes.get("padding", (0, 0))),
        dilation=tuple(attributes.get("dilation", (1, 1))),
        groups=attributes.get("groups", 1),
        bias=attributes.get("bias", False),
    )


def _linear(operation: Operation, input_shape: tuple[int, ...]) -> nn.Module:
    return nn.Linear(input_shape[-1], operation.shape[-1], bias=operation.attributes.get("bias", True))


def _batch_norm(operation: Operation, input_shape: tuple[int, ...]) -> nn.Module:
    norm = nn.BatchNorm2d if len(input_shape) == 3 else nn.BatchNorm1d
    return norm(input_shape[0], affine=operation.attributes.get("affine", True))


def _max_pool(images: Tensor, **window: Any) -> Tensor:
    return F.max_pool2d(images, **window)


def _avg_pool(images: Tensor, **window: Any) -> Tensor:
    return F.avg_pool2d(images, count_include_pad=False, **window)


def _window(operation: Operation) -> dict[str, Any]:
    attributes = operation.attributes
    return {
        "kernel_size": tuple(attributes["kernel"]),
        "stride": tuple(attributes["stride"]),
        "padding": tuple(attributes.get("padding", (0, 0))),
    }


def _zeros(images: Tensor, *, shape: tuple[int, ...]) -> Tensor:
    return images.new_zeros((images.shape[0], *shape))


def _concat(*tensors: Tensor) -> Tensor:
    return torch.cat(tensors, dim=1)


def _global_avg_pool(images: Tensor) -> Tensor:
    return images.mean((2, 3), keepdim=True)


def _flatten(images: Tensor) -> Tensor:
    # A copy: by the definition of peak_bytes the flat tensor is one of its own.
    return images.flatten(1).clone()


def _shift(images: Tensor) -> Tensor:
    return F.pad(images, (-1, 1, -1, 1))


# Kind -> module from the operation and the shape of its input.
_MODULES: dict[str, Callable[[Operation, tuple[int, ...]], nn.Module]] = {
    "conv2d": _conv2d,
    "linear": _linear,
    "batch_norm": _batch_norm,
}

# Kind -> function from the operation: a module's function or a partial of one, so that a network can be pickled.
FUNCTIONS: dict[str, Callable[[Operation], Callable[..., Tensor]]] = {
    "relu": lambda operation: F.relu,
    "relu6": lambda operation: F.relu6,
    "silu": lambda operation: F.silu,
    "hard_swish": lambda operation: F.hardswish,
    "hard_sigmoid": lambda operation: F.hardsigmoid,
    "sigmoid": lambda operation: torch.sigmoid,
    "add": lambda operation: torch.add,
    "multiply": lambda operation: torch.mul,
    "concat": lambda operation: _concat,
    "max_pool": lambda operation: partial(_max_pool, **_window(operation)),
    "avg_pool": lambda operation: partial(_avg_pool, **_window(operation)),
    "global_avg_pool": lambda operation: _global_avg_pool,
    "flatten": lambda operation: _flatten,
    "shift": lambda operation: _shift,
    "zeros": lambda operation: partial(_zeros, shape=operation.shape),
}
