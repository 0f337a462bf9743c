"""Trials without data: does forward adapt to smaller sizes as the labels say? What does not is tied or frozen."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn

from nasplat.core.channel_graph import ChannelGraph
from nasplat.core.errors import NasplatError
from nasplat.networks.channel_build import Builder
from nasplat.networks.channel_export import export
from nasplat.networks.channel_scale import factor_of, rows_of
from nasplat.networks.channel_step import Record, module_stack, operation_name, source_line
from nasplat.networks.module_numbers import numbers, size_attributes
from nasplat.networks.surgery import operate, plan

ROUNDS = 60


@dataclass(frozen=True, slots=True)
class Failure:
    """Where a smaller module went another way than its labels.

    Args:
        paths: of the modules that ran, innermost first.
        node: the operation, where it is known.
        text: what happened.
        line: ` (file.py:12)` of the user's code, where it is known.
    """

    paths: tuple[str, ...]
    node: fx.Node | None
    text: str
    line: str = ""


def settle(
    record: Record, exported: torch.export.ExportedProgram, meta: nn.Module, inputs: tuple[Any, ...]
) -> ChannelGraph:
    """Tries the groups out until forward runs as the labels say with some atoms of all of them gone.

    Args:
        record: of the tracer; its labels are united and frozen on the way.
        exported: what it traced.
        meta: the module, without data.
        inputs: without data.

    Raises:
        NasplatError: it does not come to an end.
    """
    trial = _Trial(record, exported, meta, inputs)
    tried: set[object] = set()
    for _ in range(ROUNDS):
        builder = trial.build()
        graph = builder.graph()
        if not graph.groups:
            return graph
        failure = trial.run(builder, graph, [group.name for group in graph.groups])
        if failure is None:
            return trial.build().graph()  # with the scales that the trial has shown
        if trial.tie(failure, tried) or trial.repair(graph, failure, tried):
            continue
        suspects = trial.suspects(builder, failure) or [group.name for group in graph.groups]
        guilty = [name for name in suspects if trial.run(builder, graph, [name]) is not None]
        for name in guilty or suspects:
            trial.freeze(builder, name, failure)
    raise NasplatError(f"{type(meta).__name__} does not run at other widths: {failure.text if failure else ''}")


class _Trial:
    def __init__(
        self, record: Record, exported: torch.export.ExportedProgram, meta: nn.Module, inputs: tuple[Any, ...]
    ) -> None:
        self.record = record
        self.meta = meta
        self.inputs = inputs
        self.nodes = _operations(exported)
        self.state = {**dict(meta.named_parameters()), **dict(meta.named_buffers())}
        self.tensors: dict[str, list[np.ndarray]] = {}
        for node in exported.graph.nodes:
            for source in node.all_input_nodes:
                if source in record.parameter_names:
                    self.tensors.setdefault(record.parameter_names[source], record.values[source])

    def build(self) -> Builder:
        return Builder(self.record, self.tensors, self.state)

    def run(self, builder: Builder, graph: ChannelGraph, names: list[str]) -> Failure | None:
        """Takes about a third of the atoms out of some groups; None if the module then does what the labels say."""
        rng = np.random.default_rng(len(names))
        keep = {}
        for name in names:
            size = graph.group(name).size
            gone = max(1, round(size * rng.uniform(0.2, 0.45)))
            keep[name] = np.sort(rng.permutation(size)[gone:])
        pruned, _ = operate(self.meta, plan(self.meta, graph, keep))
        once = copy.deepcopy(pruned)  # because a forward may keep something for its next run
        try:
            with torch.no_grad():
                once(*self.inputs)
        except Exception as error:
            paths, line = _modules_of(error, once)
            return Failure(paths, None, str(error).partition("\n")[0], line)
        return self._compare(builder, export(pruned, self.inputs), graph.masks(keep))

    def _compare(
        self, builder: Builder, exported: torch.export.ExportedProgram, masks: dict[str, np.ndarray]
    ) -> Failure | None:
        nodes = _operations(exported)
        for old, new in zip(self.nodes, nodes, strict=False):
            _, stack = module_stack(old)
            if old.target != new.target:
                return Failure(stack, old, "another operation runs")
            for dims, value in zip(*_results(self.record.values[old], new.meta.get("val")), strict=False):
                sizes = [int(builder.axis(dim).kept(masks).sum()) for dim in dims]
                if sizes != list(value.shape):
                    return Failure(stack, old, f"{operation_name(old)} makes {list(value.shape)} instead of {sizes}")
            if (failure := self._compare_numbers(builder, old, new, masks)) is not None:
                return failure
        if len(nodes) != len(self.nodes):
            return Failure((), None, "another number of operations runs")
        return None

    def _compare_numbers(
        self, builder: Builder, old: fx.Node, new: fx.Node, masks: dict[str, np.ndarray]
    ) -> Failure | None:
        """A factor that follows a width is noted, any other change of a number in arithmetic is a failure."""
        name = operation_name(old)
        if torch.Tag.pointwise not in getattr(old.target, "tags", ()) and name != "scaled_dot_product_attention":
            return None  # its numbers are sizes and places
        pairs: list[tuple[Any, Any]] = list(zip(old.args, new.args, strict=False))
        pairs += [(value, new.kwargs.get(key)) for key, value in old.kwargs.items()]
        for one, other in pairs:
            if not (_is_number(one) and _is_number(other)) or math.isclose(one, other, rel_tol=1e-12):
                continue
            ratio = one / other if name == "div" else other / one if one else 0.0
            scales = name in ("mul", "div", "scaled_dot_product_attention")
            if not scales or not self._note_scale(builder, old, ratio, masks):
                return Failure(module_stack(old)[1], old, f"{name} gets {other} instead of {one}")
        return None

    def _note_scale(self, builder: Builder, node: fx.Node, ratio: float, masks: dict[str, np.ndarray]) -> bool:
        """Whether a factor follows a width, and the rows that it scales are known."""
        source = factor_of(node.args[0])
        if source is None or rows_of(source) is None:
            return False
        for labels in reversed(self.record.values[source]):
            kept = int(builder.axis(labels).kept(masks).sum())
            for exponent in (-0.5, -1.0, -0.25, 0.5, 1.0):
                if kept < len(labels) and math.isclose(ratio, (kept / len(labels)) ** exponent, rel_tol=1e-9):
                    if all(entry[0] is not source for entry in self.record.scales):
                        self.record.scales.append((source, exponent, labels))
                    return True
        return False

    def tie(self, failure: Failure, tried: set[object]) -> bool:
        """Ties sizes that one number in the module stands for; done for all modules of one class at once.

        First what one attribute says (the width of the heads of queries and of values), then what a module takes and
        what it views in heads, as where `C` of `x.shape` is used for both.
        """
        for tie_one in (self._tie_by_attribute, self._tie_to_input):
            for path in failure.paths:
                module = self.record.modules.get(path)
                if module is None or (tie_one.__name__, type(module)) in tried:
                    continue
                tried.add((tie_one.__name__, type(module)))
                alike = [other for other, found in self.record.modules.items() if type(found) is type(module)]
                if any([tie_one(other) for other in alike]):  # noqa: C419 (all of them are tied)
                    return True
        return False

    def _tie_by_attribute(self, path: str) -> bool:
        said: dict[tuple[str, int | None, bool | None], np.ndarray] = {}
        changed = False
        for stack, size, labels in self.record.demands:
            blocks = self.record.labels.are_blocks(labels)
            for owner, name, position, _ in size_attributes(self.record.modules, stack, size, True, blocks):
                if owner == path and self._may_vary(labels):
                    first = said.setdefault((name, position, blocks), labels)
                    if len(first) == len(labels):
                        changed |= self._unite(first, labels, f"{path}.{name}")
        return changed

    def _tie_to_input(self, path: str) -> bool:
        merged = [labels for owner, labels in self.record.viewed if owner == path]
        if not merged:
            return False
        taken, _ = self._sizes_at(path)
        changed = False
        for labels in merged:
            for dim in taken:
                if len(dim) == len(labels) and self._may_vary(dim) and self._may_vary(labels):
                    changed |= self._unite(labels, dim, path)
        return changed

    def repair(self, graph: ChannelGraph, failure: Failure, tried: set[object]) -> bool:
        """Lets attributes that equal a size follow it, where forward only checks them: `x.shape[1] == self.channels`.

        Done for all modules of one class at once.
        """
        module = self.record.modules.get(failure.paths[0]) if failure.paths else None
        if failure.node is not None or module is None or ("repair", type(module)) in tried:
            return False
        tried.add(("repair", type(module)))
        known = {(entry.module, entry.attribute, entry.position) for entry in graph.attributes}
        found = len(self.record.attributes)
        for path, alike in self.record.modules.items():
            if type(alike) is not type(module):
                continue
            taken, made = self._sizes_at(path)
            for name, position, value in numbers(alike):
                # Where both are of one size, names such as `out_channels` say which is meant.
                for dim in (*made, *taken) if "out" in name else (*taken, *made):
                    if len(dim) == value and self._may_vary(dim) and (path, name, position) not in known:
                        self.record.attributes.append((path, name, position, value, dim))
                        break
        return len(self.record.attributes) > found

    def _sizes_at(self, path: str) -> tuple[list[np.ndarray], list[np.ndarray]]:
        """The dimensions of what a module takes from outside, and of what is made within it."""
        taken: list[np.ndarray] = []
        made: list[np.ndarray] = []
        for node in self.nodes:
            if path not in module_stack(node)[1]:
                continue
            for source in node.all_input_nodes:
                outside = source.op == "call_function" and path not in module_stack(source)[1]
                if outside and isinstance(source.meta.get("val"), Tensor):
                    taken += self.record.values[source]
            if isinstance(node.meta.get("val"), Tensor):
                made += self.record.values[node]
        return taken, made

    def _unite(self, first: np.ndarray, second: np.ndarray, where: str) -> bool:
        labels = self.record.labels
        if np.array_equal(labels.find(first), labels.find(second)):
            return False
        labels.unite(first, second, labels.reason("a number that stands for two sizes", where))
        return True

    def _may_vary(self, dim: np.ndarray) -> bool:
        return bool((self.record.labels.frozen(dim) == 0).any())

    def suspects(self, builder: Builder, failure: Failure) -> list[str]:
        """The groups that the failing operation or module assumes something of."""
        if failure.node is not None:
            at_node: set[str] = set()
            for name, _, labels in self.record.assumptions:
                if name == failure.node.name:
                    at_node |= builder.atoms_in(labels)
            if at_node:
                return sorted(at_node)
        for path in failure.paths:
            found: set[str] = set()
            for _, other, labels in self.record.assumptions:
                if other == path or (path and other.startswith(path + ".")):
                    found |= builder.atoms_in(labels)
            if found:
                return sorted(found)
        return sorted({name for _, _, labels in self.record.assumptions for name in builder.atoms_in(labels)})

    def freeze(self, builder: Builder, name: str, failure: Failure) -> None:
        atoms = [atom for atom, (group, _) in builder.place_of.items() if group == name]
        path = failure.paths[0] if failure.paths else ""
        line = failure.line if failure.node is None else source_line(failure.node)
        where = f"{path or 'the network itself'}{line}"
        reason = self.record.labels.reason(f"forward does not adapt to another size: {failure.text}", where)
        self.record.labels.freeze(np.array(atoms), reason)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _operations(exported: torch.export.ExportedProgram) -> list[fx.Node]:
    """All operations but copies, which torch leaves out where a size is 1."""
    nodes = [node for node in exported.graph.nodes if node.op == "call_function"]
    return [node for node in nodes if operation_name(node) not in ("contiguous", "clone", "alias")]


def _results(dims: Any, value: Any) -> tuple[list[Any], list[Any]]:
    """The labels and values of an operation's results, one by one."""
    if isinstance(value, Tensor):
        return [dims], [value]
    if isinstance(value, tuple | list):
        pairs = [(dim, entry) for dim, entry in zip(dims, value, strict=True) if isinstance(entry, Tensor)]
        return [dim for dim, _ in pairs], [entry for _, entry in pairs]
    return [], []


def _modules_of(error: BaseException, model: nn.Module) -> tuple[tuple[str, ...], str]:
    """The modules whose methods were running when an error was raised, innermost first, and the line outside torch."""
    names = {id(module): name for name, module in model.named_modules()}
    found: list[str] = []
    line = ""
    trace = error.__traceback__
    while trace is not None:
        frame = trace.tb_frame
        owner = frame.f_locals.get("self")
        if id(owner) in names and (not found or found[-1] != names[id(owner)]):
            found.append(names[id(owner)])
        if found and "/torch/" not in frame.f_code.co_filename:
            line = f" ({frame.f_code.co_filename}:{trace.tb_lineno})"
        trace = trace.tb_next
    return tuple(reversed(found)), line
