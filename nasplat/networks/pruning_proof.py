"""Shows that a pruned network computes what the original computes with those channels zeroed.

The reference is another computation than the surgery: the original network runs at full size, with zeros where the
removed channels were. Where it computes across channels (a layer norm, a mean, queries times keys), a zeroed channel
is not a removed one, and the reference leaves it out there.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch.export.graph_signature import InputKind, OutputKind
from torch.utils._pytree import tree_leaves, tree_map

from nasplat.core.channel_graph import ChannelGraph, CrossChannel, Keep
from nasplat.core.errors import NasplatError
from nasplat.networks.channel_export import export
from nasplat.networks.surgery import bare, operate, plan

# Largest difference, relative to the largest output, by type. Some forwards calculate a part in float32 whatever their
# type, as linear attention in timm does.
TOLERANCES = {torch.float64: 1e-7, torch.float32: 2e-3}
_ADVICE = "this group cannot be pruned in this network; leave it whole and report the case"


def prove(
    model: nn.Module,
    pruned: nn.Module,
    graph: ChannelGraph,
    keep: Mapping[str, Sequence[int] | Tensor],
    example_inputs: Sequence[Any],
    generator: torch.Generator | None = None,
) -> dict[str, float]:
    """Compares a pruned network with its masked original; neither is changed.

    It is done in float32 and float64 with the weights as they are, and in float64 with random weights, because
    trained ones may hide a mistake (a bias of zero, a branch scaled by 1e-6). Then the pruned network does one
    training step, and its state is loaded into a fresh copy that is pruned by the same plan.

    Args:
        model: the original.
        pruned: what `prune` made of it.
        graph: of the original.
        keep: as given to `prune`.
        example_inputs: what forward takes, batch first.
        generator: of the random weights.

    Returns:
        the largest difference of outputs, relative to the largest output, by name of the comparison.

    Raises:
        NasplatError: it is not the same network, does not train, or does not survive saving and loading.
    """
    model = bare(model)
    surgery = plan(model, graph, keep)
    masks = graph.masks({name: [int(index) for index in indices] for name, indices in keep.items()})
    inputs = tuple(value.detach().cpu() if isinstance(value, Tensor) else value for value in example_inputs)
    original, smaller = (copy.deepcopy(module).cpu().eval() for module in (model, pruned))
    reference = _Reference(graph, masks)
    differences = {}
    single, double = torch.float32, torch.float64
    differences["float32"] = _difference(reference.run(original, inputs, single), _run(smaller, inputs, single))
    random = copy.deepcopy(original)
    randomise(random, generator or torch.Generator().manual_seed(0))
    for name, module in (("float64", original), ("random weights", random)):
        # Cut anew, because weights that were rescaled in float32 are rounded.
        cut, _ = operate(copy.deepcopy(module).double(), surgery)
        expected = reference.run(module, inputs, double)
        if module is random and not all(bool(value.isfinite().all()) for value in expected):
            continue  # this network does not bear random weights, which says nothing of the cut
        differences[name] = _difference(expected, _run(cut, inputs, double))
    for name, difference in differences.items():
        tolerance = TOLERANCES[torch.float32 if name == "float32" else torch.float64]
        if not difference <= tolerance:
            message = f"the pruned {type(model).__name__} differs from its masked original by {difference:.1e} ({name})"
            raise NasplatError(message, _ADVICE)
    _train_a_step(original, smaller, inputs)
    _save_and_load(original, pruned, surgery, inputs)
    return differences


def randomise(model: nn.Module, generator: torch.Generator) -> None:
    """Draws all parameters and statistics anew, so that no channel is like another and none is silent."""
    with torch.no_grad():
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            if not tensor.is_floating_point():
                continue
            noise = torch.randn(tensor.shape, generator=generator, dtype=torch.float32).to(tensor)
            if isinstance(tensor, nn.Parameter):
                scale = max(tensor[0].numel(), 1) ** -0.5 if tensor.dim() > 1 else 0.3
                centre = 1.0 if tensor.dim() == 1 and name.endswith("weight") else 0.0
                tensor.copy_(centre + noise * scale)
            elif name.endswith("running_var"):
                tensor.copy_(0.5 + noise.abs())
            elif name.endswith("running_mean"):
                tensor.copy_(0.3 * noise)


class _Reference:
    """Runs the original with zeros for what was removed."""

    def __init__(self, graph: ChannelGraph, masks: Keep) -> None:
        self.graph = graph
        self.masks = masks
        self._graphs: dict[torch.dtype, torch.export.ExportedProgram] = {}
        self.cross = {
            entry.node: entry
            for entry in graph.cross_channel
            if any(axis is not None and not axis.kept(masks).all() for axis in entry.axes)
        }

    def run(self, model: nn.Module, inputs: tuple[Any, ...], dtype: torch.dtype) -> list[Tensor]:
        zeroed = copy.deepcopy(model)
        parameters = dict(zeroed.named_parameters())
        with torch.no_grad():
            for group in self.graph.groups:
                if group.name not in self.masks:
                    continue
                gone = ~self.masks[group.name]
                for member in group.members:
                    # Buffers stay: what reads them is zeroed, and a variance may not be zero.
                    if member.tensor in parameters:
                        lost = torch.from_numpy(np.unique(member.indices[gone]))
                        parameters[member.tensor].index_fill_(member.dim, lost, 0.0)
        if not self.cross:
            return _run(zeroed, inputs, dtype)
        given = tree_map(lambda value: _cast(value, dtype), inputs)
        if dtype not in self._graphs:
            self._graphs[dtype] = export(copy.deepcopy(model).to(dtype), given)
        exported, zeroed = self._graphs[dtype], zeroed.to(dtype)
        state = {**dict(zeroed.named_parameters(remove_duplicate=False)), **exported.constants}
        state |= dict(zeroed.named_buffers(remove_duplicate=False))
        leaves = iter(tree_leaves(given))
        signature = exported.graph_signature
        with torch.no_grad():
            values = [
                next(leaves) if spec.kind == InputKind.USER_INPUT else state[str(spec.target)]
                for spec in signature.input_specs
            ]
            results = _Masked(exported.graph_module, self.cross, self.masks).run(*values)
        kinds = [spec.kind for spec in signature.output_specs]
        own = [value for value, kind in zip(results, kinds, strict=True) if kind == OutputKind.USER_OUTPUT]
        return [value for value in own if isinstance(value, Tensor)]


class _Masked(fx.Interpreter):
    """Runs a graph, and leaves the removed channels out where an operation computes across them."""

    def __init__(self, module: fx.GraphModule, cross: Mapping[str, CrossChannel], masks: Keep) -> None:
        super().__init__(module)
        self.cross = cross
        self.masks = masks

    def run_node(self, n: fx.Node) -> Any:
        entry = self.cross.get(n.name)
        if entry is None:
            return super().run_node(n)
        args, kwargs = self.fetch_args_kwargs_from_env(n)
        source = self.env[n.all_input_nodes[entry.argument]]
        kept = {
            dim: torch.from_numpy(axis.kept(self.masks).nonzero()[0])
            for dim, axis in enumerate(entry.axes)
            if axis is not None
        }
        name = n.target._overloadpacket.__name__  # type: ignore[union-attr]
        if entry.restore:
            return self._normalise(n, name, source, kept, args, kwargs)
        if name in _REDUCTIONS:
            smaller = source
            for dim, indices in kept.items():
                smaller = smaller.index_select(dim, indices)
            return n.target(smaller, *args[1:], **kwargs)  # type: ignore[operator]
        # A product: what is zero there adds nothing.
        mask = torch.zeros_like(source)
        mask[_mesh(source, kept)] = 1
        given = tree_map(lambda value: value * mask if value is source else value, args)
        return n.target(*given, **kwargs)  # type: ignore[operator]

    def _normalise(
        self, n: fx.Node, name: str, source: Tensor, kept: dict[int, Tensor], args: Any, kwargs: Any
    ) -> Tensor:
        """The statistics of the kept channels alone, written back to where they were."""
        smaller = source[_mesh(source, kept)]
        rest = list(args[1:])
        if name in ("layer_norm", "rms_norm"):
            first = source.dim() - len(rest[0])
            rest[0] = list(smaller.shape[first:])
            own = {dim - first: indices for dim, indices in kept.items()}
            for place in range(1, min(3, len(rest))):
                if isinstance(rest[place], Tensor):
                    rest[place] = rest[place][_mesh(rest[place], own)]
        elif name == "group_norm":
            alive = torch.zeros(source.shape[1], dtype=torch.bool)
            alive[kept[1]] = True
            rest[0] = int(alive.reshape(rest[0], -1).any(1).sum())
            for place in range(1, min(3, len(rest))):
                if isinstance(rest[place], Tensor):
                    rest[place] = rest[place][kept[1]]
        result = torch.zeros_like(source)
        result[_mesh(source, kept)] = n.target(smaller, *rest, **kwargs)  # type: ignore[operator]
        return result


_REDUCTIONS = frozenset(
    ["mean", "sum", "amax", "amin", "var", "std", "linalg_vector_norm", "norm", "logsumexp", "prod"]
)


def _mesh(tensor: Tensor, kept: Mapping[int, Tensor]) -> tuple[Tensor, ...]:
    ranges = [kept.get(dim, torch.arange(size)) for dim, size in enumerate(tensor.shape)]
    return torch.meshgrid(*ranges, indexing="ij")


def _cast(value: Any, dtype: torch.dtype) -> Any:
    return value.to(dtype) if isinstance(value, Tensor) and value.is_floating_point() else value


def _run(model: nn.Module, inputs: tuple[Any, ...], dtype: torch.dtype) -> list[Tensor]:
    fast_path = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with torch.no_grad():
            given = tree_map(lambda value: _cast(value, dtype), inputs)
            result = copy.deepcopy(model).to(dtype).eval()(*given)
    finally:
        torch.backends.mha.set_fastpath_enabled(fast_path)
    return [value for value in tree_leaves(result) if isinstance(value, Tensor)]


def _difference(expected: list[Tensor], found: list[Tensor]) -> float:
    """Relative to the largest output; infinite where the shapes differ or a number is not finite."""
    if [value.shape for value in expected] != [value.shape for value in found]:
        return float("inf")
    worst = 0.0
    for one, other in zip(expected, found, strict=True):
        if not (one.isfinite().all() and other.isfinite().all()):
            return float("inf")
        scale = float(one.abs().max()) if one.numel() else 0.0
        if one.numel() and (largest := float((one - other).abs().max())) > 0:
            worst = max(worst, largest / max(scale, 1e-12))
    return worst


def _train_a_step(original: nn.Module, model: nn.Module, inputs: tuple[Any, ...]) -> None:
    """One step of gradient descent in training mode, on a copy, and a look at the gradients' shapes."""
    try:
        _step(model, inputs)
    except Exception as error:
        try:
            _step(original, inputs)
        except Exception:
            return  # the original does not train on these inputs either
        raise NasplatError(f"the pruned {type(model).__name__} does not train: {error}", _ADVICE) from error


def _step(model: nn.Module, inputs: tuple[Any, ...]) -> None:
    model = copy.deepcopy(model).float().train()
    # Batch norm needs several values a channel.
    given = tree_map(
        lambda value: torch.cat([value, value * 0.9]) if _is_batch(value) else value,
        tree_map(lambda value: _cast(value, torch.float32), inputs),
    )
    trained = [tensor for tensor in model.parameters() if tensor.requires_grad]
    outputs = [value for value in tree_leaves(model(*given)) if isinstance(value, Tensor) and value.requires_grad]
    if trained and outputs:
        torch.stack([value.float().square().mean() for value in outputs]).sum().backward()
        torch.optim.SGD(trained, lr=1e-6).step()


def _is_batch(value: Any) -> bool:
    return isinstance(value, Tensor) and value.dim() > 0 and value.is_floating_point()


def _save_and_load(original: nn.Module, pruned: nn.Module, surgery: Any, inputs: tuple[Any, ...]) -> None:
    """The state of the pruned network fits a fresh network that is cut by the same plan, and makes it the same."""
    fresh = copy.deepcopy(original)
    with torch.no_grad():
        for tensor in fresh.parameters():
            tensor.zero_()
    rebuilt, _ = operate(fresh, surgery)
    state = copy.deepcopy(pruned.state_dict())
    try:
        rebuilt.load_state_dict(state)
    except RuntimeError as error:
        raise NasplatError(f"the pruned {type(original).__name__} cannot be loaded again: {error}", _ADVICE) from error
    one, other = _run(copy.deepcopy(pruned).cpu(), inputs, torch.float32), _run(rebuilt, inputs, torch.float32)
    if any(not torch.equal(first, second) for first, second in zip(one, other, strict=True)):
        raise NasplatError(f"the pruned {type(original).__name__} computes something else once loaded", _ADVICE)
