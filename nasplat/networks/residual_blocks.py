"""Residual blocks of any network, found on its graph, and removed with proof."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from nasplat.core.errors import NasplatError, nearest
from nasplat.networks.channel_export import export
from nasplat.networks.pruning_proof import randomise
from nasplat.networks.rebuild import without_blocks

_SAME = {"dropout", "clone", "contiguous", "alias", "feature_dropout"}
_POSITIVE = {"relu", "relu6", "sigmoid", "hardsigmoid"}


@dataclass(frozen=True)
class Block:
    """A submodule that adds branches to its input.

    Args:
        name: its path in the model.
        additions: how many branches it adds.
    """

    name: str
    additions: int


def residual_blocks(model: nn.Module, example_inputs: tuple[Any, ...]) -> tuple[Block, ...]:
    """The outermost submodules that add branches to their input and do nothing else to it, in evaluation.

    A relu after the addition is allowed where the input cannot be negative.

    Raises:
        NasplatError: the model cannot be exported.
    """
    graph = export(copy.deepcopy(model).eval(), example_inputs).module().graph
    return tuple(Block(name, len(branches)) for name, branches in _branches(graph).items())


def prove_removal(model: nn.Module, names: Sequence[str], example_inputs: tuple[Any, ...]) -> None:
    """Compares the graph with zeros for the blocks' branches with the network without the blocks.

    Both have the same random weights, in float64.

    Raises:
        NasplatError: their outputs differ, or a name is not of a residual block.
    """
    probe = copy.deepcopy(model).eval().double()
    randomise(probe, torch.Generator().manual_seed(0))
    inputs = tuple(v.double() if isinstance(v, Tensor) and v.is_floating_point() else v for v in example_inputs)
    program = export(probe, inputs).module()
    found = _branches(program.graph)  # type: ignore[arg-type]
    for name in names:
        if name not in found:
            raise NasplatError(f"{name!r} is no residual block", f"{nearest(name, found)}known: {', '.join(found)}")
    zeroed = {pair for name in names for pair in found[name]}
    with torch.no_grad():
        expected = _Zeroed(program, zeroed).run(*inputs)
        actual = without_blocks(probe, names)(*inputs)
    try:
        torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-12)
    except AssertionError as error:
        raise NasplatError(f"the network without {', '.join(names)} computes something else", "keep them") from error


def remove_blocks(model: nn.Module, names: Sequence[str], example_inputs: tuple[Any, ...]) -> nn.Module:
    """A copy of the model with these residual blocks replaced by `nn.Identity`, proven.

    Raises:
        NasplatError: as `prove_removal`.
    """
    prove_removal(model, names, example_inputs)
    return without_blocks(model, names)


class _Zeroed(fx.Interpreter):
    """Runs a graph with zeros for some operands: pairs of an addition and its branch."""

    def __init__(self, module: fx.GraphModule, zeroed: set[tuple[fx.Node, fx.Node]]) -> None:
        super().__init__(module)
        self.zeroed = zeroed

    def run_node(self, n: fx.Node) -> Any:
        args, kwargs = self.fetch_args_kwargs_from_env(n)
        changed = tuple(
            torch.zeros_like(value) if isinstance(arg, fx.Node) and (n, arg) in self.zeroed else value
            for arg, value in zip(n.args, args, strict=True)
        )
        return getattr(self, n.op)(n.target, changed, kwargs)


def _branches(graph: fx.Graph) -> dict[str, list[tuple[fx.Node, fx.Node]]]:
    """By residual block, its additions with the branch of each."""
    inside: dict[str, list[fx.Node]] = {}
    for node in graph.nodes:
        if node.op == "call_function":
            for path in _stack(node):
                inside.setdefault(path, []).append(node)
    found: dict[str, list[tuple[fx.Node, fx.Node]]] = {}
    for path, nodes in inside.items():
        nested = any(path.startswith(f"{other}.") for other in found)
        if path and "@" not in path and f"{path}@1" not in inside and not nested and (pairs := _pairs(path, nodes)):
            found[path] = pairs
    return found


def _stack(node: fx.Node) -> list[str]:
    return [entry[0] for entry in node.meta.get("nn_module_stack", {}).values()]


def _pairs(path: str, nodes: list[fx.Node]) -> list[tuple[fx.Node, fx.Node]]:
    own = set(nodes)
    read = {arg for node in nodes for arg in node.all_input_nodes if arg not in own and arg.op != "get_attr"}
    outputs = [node for node in nodes if any(user not in own for user in node.users)]
    if len(read) != 1 or len(outputs) != 1:
        return []
    source, output = read.pop(), outputs[0]
    shapes = [getattr(node.meta.get("val"), "shape", None) for node in (source, output)]
    if shapes[0] is None or shapes[0] != shapes[1]:
        return []
    depends = {source}
    for node in nodes:
        if any(arg in depends for arg in node.all_input_nodes):
            depends.add(node)
    # What each node is when the branches are zero: the pairs to zero, for those that then equal the source.
    same: dict[fx.Node, list[tuple[fx.Node, fx.Node]]] = {source: []}
    for node in nodes:
        kind, args = _kind(node), [arg for arg in node.args if isinstance(arg, fx.Node)]
        if args and args[0] in same and (kind in _SAME or (kind == "relu" and _positive(source))):
            same[node] = same[args[0]]
        elif kind == "add" and len(args) == 2 and not node.kwargs:
            # The operand that went through more additions is the sum so far.
            sums = sorted((arg for arg in args if arg in same), key=lambda arg: len(same[arg]))
            if len(sums) == 1:
                branch = args[1] if args[0] is sums[0] else args[0]
                if branch in depends:
                    same[node] = [*same[sums[0]], (node, branch)]
    pairs = same.get(output, [])
    return pairs if any(_stack(node)[-1] == path for node, _ in pairs) else []


def _kind(node: fx.Node) -> str:
    return str(getattr(node.target, "__name__", node.target)).partition(".")[0].rstrip("_")


def _positive(node: fx.Node) -> bool:
    while _kind(node) in _SAME | {"max_pool2d"} and node.all_input_nodes:
        node = node.all_input_nodes[0]
    return _kind(node) in _POSITIVE
