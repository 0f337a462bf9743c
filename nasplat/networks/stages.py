"""Any network cut into stages where one tensor crosses, on its `torch.fx` graph."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from nasplat.core.errors import NasplatError, nearest
from nasplat.networks.counter import copy_to

_SHOWN = 12  # places that an error lists


@dataclass(frozen=True)
class Cut:
    """Where a network is cut, and its stages: the first begins at the image, what follows the last is left out.

    What a forward does in training only (scheduled drop path, auxiliary outputs) is left out as well; layers that
    behave differently in training, such as batch norm and dropout, keep doing so.

    Args:
        names: of the modules that the stages end with.
        input_shape: `(C, H, W)`.
        shapes: of what each stage yields, without the batch.
        graphs: one a stage, of one tensor to one tensor.
    """

    names: tuple[str, ...]
    input_shape: tuple[int, int, int]
    shapes: tuple[tuple[int, ...], ...]
    graphs: tuple[fx.Graph, ...]

    @staticmethod
    def of(model: nn.Module, input_shape: tuple[int, int, int], names: Sequence[str] | None = None) -> Cut:
        """Cuts a network.

        Args:
            model: stays as it is.
            input_shape: `(C, H, W)`.
            names: of modules, in the order in which they run: a stage ends with each of them, and with what is done to
                its result before the next module runs. Without them, a stage ends where height and width change next.

        Raises:
            NasplatError: the forward cannot be traced or fails; a name that no module has, one that does not run, two
                in the wrong order, or one where more than one tensor crosses; or no stage that has parameters.
        """
        model = copy_to(model, "meta")
        traced = _trace(model, input_shape)
        names = tuple(traced.own_stages() if names is None else names)
        if not names:
            raise NasplatError("the backbone cannot be cut anywhere by itself", f"name cuts: {traced.places()}")
        ends = [traced.end_of(name, model) for name in names]
        starts = [-1, *ends[:-1]]
        for name, before, start, end in zip(names, ("", *names), starts, ends, strict=False):
            if end <= start:
                raise NasplatError(
                    f"the backbone cannot be cut at {name!r} after {before!r}: it does not run later",
                    "write the cuts in the order in which they run, each once",
                )
        traced.check_channels(names[-1], ends[-1])
        graphs = tuple(traced.part(start, end) for start, end in zip(starts, ends, strict=True))
        cut = Cut(names, input_shape, tuple(traced.shape(end)[1:] for end in ends), graphs)
        cut._check(model)
        return cut

    def stage(self, layer: int, backbone: nn.Module) -> nn.Module:
        """A stage of a network of the same class and shapes as the one that was cut; it takes its modules, not copies.

        Nothing in it works in place, because several branches read what it reads.
        """
        stage = fx.GraphModule(backbone, copy.deepcopy(self.graphs[layer]), f"Stage{layer + 1}")
        for module in stage.modules():
            if getattr(module, "inplace", False) is True:
                module.inplace = False  # type: ignore[assignment]
        return stage

    def shape_before(self, layer: int) -> tuple[int, ...]:
        """What a stage reads, without the batch."""
        return self.shapes[layer - 1] if layer else self.input_shape

    def _check(self, model: nn.Module) -> None:
        for layer, name in enumerate(self.names):
            stage = self.stage(layer, model)
            if not any(True for _ in stage.parameters()):
                raise NasplatError(
                    f"the stage that ends with {name!r} has no parameters, so it cannot branch", "leave this cut out"
                )
            features = torch.zeros(2, *self.shape_before(layer), device="meta")
            version = features._version
            with torch.no_grad():
                stage(features)
            if features._version != version:
                raise NasplatError(
                    f"the stage that ends with {name!r} writes into what it reads, so branches cannot share that",
                    "cut the backbone at another place",
                )


@dataclass(frozen=True)
class _Traced:
    """A graph with the shape of every node and the modules that each ran in."""

    nodes: tuple[fx.Node, ...]
    shapes: dict[fx.Node, tuple[int, ...]]
    crossing: tuple[tuple[fx.Node, ...], ...]  # by position, what later nodes read of those up to it

    def shape(self, position: int) -> tuple[int, ...]:
        return self.shapes[self.crossing[position][0]]

    def clean(self, position: int) -> bool:
        """Whether one tensor crosses, and it is not the image."""
        values = self.crossing[position]
        return len(values) == 1 and values[0] in self.shapes and values[0].op != "placeholder"

    def ends(self) -> dict[str, int]:
        """By module that runs, the position of the last thing it does, and what is done to its result."""
        last = {path: position for position, node in enumerate(self.nodes) for path in _paths(node)}
        return {path: self._settled(position) for path, position in last.items()}

    def _settled(self, position: int) -> int:
        """The last clean position before the next module runs, of the shape that the first of them has."""
        around, found = set(_paths(self.nodes[position])), position
        while True:
            if self.clean(position) and (not self.clean(found) or self.shape(position) == self.shape(found)):
                found = position
            position += 1
            node = self.nodes[position]
            if node.op in ("call_module", "output") or not around.issuperset(_paths(node)):
                return found

    def end_of(self, name: str, model: nn.Module) -> int:
        ends = self.ends()
        if name not in ends:
            modules = [own for own, _ in model.named_modules() if own]
            if name in modules:
                raise NasplatError(f"the backbone's module {name!r} does not run, so it ends no stage", self.places())
            advice = nearest(name, ends) or nearest(name, modules)
            raise NasplatError(f"the backbone has no module {name!r} to be cut at", f"{advice}{self.places()}")
        if not self.clean(ends[name]):
            number = len(self.crossing[ends[name]])
            raise NasplatError(
                f"the backbone cannot be cut at {name!r}: "
                + (
                    f"{number} values cross there, and a branch passes on one tensor"
                    if number > 1
                    else "no tensor crosses"
                ),
                self.places(),
            )
        return ends[name]

    def places(self) -> str:
        """The modules that a stage can end with, by their shortest names."""
        names: dict[int, str] = {}
        for name, position in self.ends().items():
            if self.clean(position) and name.count(".") <= names.get(position, name).count("."):
                names[position] = name
        listed = [names[position] for position in sorted(names)]
        depths = sorted({name.count(".") for name in listed}, reverse=True)
        fitting = ([name for name in listed if name.count(".") <= depth] for depth in depths)
        shown = next((names for names in fitting if len(names) <= _SHOWN), listed[:_SHOWN])
        more = f" … and {len(listed) - len(shown)} more" if len(listed) > len(shown) else ""
        return f"it can be cut at {', '.join(shown) or 'no place at all'}{more}"

    def own_stages(self) -> list[str]:
        """Modules after which height and width change next, and the last one before the features are pooled.

        Between whole blocks rather than within one: of a size's places the last of those with the shortest names.
        """
        learning = [
            p for p, node in enumerate(self.nodes) if len(self.shapes.get(node, ())) == 4 and self._learns(node)
        ]
        wide = {name: p for name, p in self.ends().items() if self.clean(p) and len(self.shape(p)) == 4}
        if not learning or not wide:
            return []
        deepest = learning[-1]
        shape = self.shape(min((p for p in wide.values() if p >= deepest), default=max(wide.values())))
        names: dict[int, str] = {}
        for name, position in wide.items():
            pooled = position > deepest and (
                self.shape(position) != shape or "Pool" in type(self._module(self.nodes[position])).__name__
            )
            if not pooled and name.count(".") <= names.get(position, name).count("."):
                names[position] = name
        by_size: dict[tuple[int, ...], list[int]] = {}
        for position in sorted(names):
            by_size.setdefault((position >= deepest, *self.shape(position)[2:]), []).append(position)
        chosen = sorted(max(found, key=lambda p: (-names[p].count("."), p)) for found in by_size.values())
        if len(chosen) > 1 and self.shape(chosen[-2])[2:] == self.shape(chosen[-1])[2:]:
            del chosen[-2]
        starts = [-1, *chosen]
        return [
            names[end] for start, end in zip(starts, chosen, strict=False) if any(start < p <= end for p in learning)
        ]

    def _module(self, node: fx.Node) -> nn.Module | None:
        owner = node.graph.owning_module
        return owner.get_submodule(str(node.target)) if node.op == "call_module" and owner is not None else None

    def _learns(self, node: fx.Node) -> bool:
        module = self._module(node)
        return module is not None and any(True for _ in module.parameters())

    def check_channels(self, name: str, end: int) -> None:
        """Heads read channels before height and width; a layer norm over the last of four dimensions has them last."""
        if len(self.shape(end)) == 4 and isinstance(self._module(self.crossing[end][0]), nn.LayerNorm):
            raise NasplatError(f"the features at {name!r} have their channels last", self.places())

    def part(self, start: int, end: int) -> fx.Graph:
        """The graph from what crosses at one position to what crosses at another."""
        first = self.nodes[0] if start < 0 else self.crossing[start][0]
        last = self.crossing[end][0]
        needed, ahead = {first}, [last]
        while ahead:
            node = ahead.pop()
            if node not in needed:
                needed.add(node)
                ahead.extend(node.all_input_nodes)
        graph = fx.Graph()
        copied = {first: graph.placeholder("features")}
        for node in self.nodes:
            if node in needed and node is not first:
                copied[node] = graph.node_copy(node, copied.__getitem__)
        graph.output(copied[last])
        return graph


def _trace(model: nn.Module, input_shape: tuple[int, int, int]) -> _Traced:
    try:
        module = fx.GraphModule(model, fx.Tracer().trace(model))
    except Exception as error:
        raise NasplatError(
            f"the backbone {type(model).__name__} cannot be traced: {str(error).partition(chr(10))[0]}",
            "its forward must not branch on the values or sizes of tensors; torch.fx.symbolic_trace tells more",
        ) from error
    shapes = _Shapes(module)
    try:
        with torch.no_grad():
            shapes.run(torch.zeros(2, *input_shape, device="meta"))
    except Exception as error:
        reason = str(error).strip().partition("\n")[0]
        raise NasplatError(
            f"the backbone {type(model).__name__} fails on images of {input_shape}: {reason}",
            "data.image_size resizes images; grey images need a network for one channel",
        ) from error
    nodes = tuple(module.graph.nodes)
    place = {node: position for position, node in enumerate(nodes)}
    crossing: list[tuple[fx.Node, ...]] = []
    open_until = {node: max((place[user] for user in node.users), default=-1) for node in nodes}
    live: list[fx.Node] = []
    for position, node in enumerate(nodes):
        live = [one for one in [*live, node] if open_until[one] > position and one.op != "get_attr"]
        crossing.append(tuple(live))
    return _Traced(nodes, shapes.found, tuple(crossing))


class _Shapes(fx.Interpreter):
    """Runs a graph and keeps the shape of every tensor."""

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module)
        self.found: dict[fx.Node, tuple[int, ...]] = {}

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if isinstance(value, Tensor):
            self.found[n] = tuple(value.shape)
        return value


def _paths(node: fx.Node) -> Iterable[str]:
    """The modules in which a node runs, from the outermost inwards; containers that are not called themselves too."""
    stack = [entry[0] for entry in node.meta.get("nn_module_stack", {}).values()]
    if node.op == "call_module":
        stack.append(str(node.target))
    innermost = stack[-1] if stack else ""
    parts = innermost.split(".")
    return [".".join(parts[:length]) for length in range(1, len(parts) + 1)] if innermost else []
