"""Networks as different as a graph hypernetwork should have seen before it meets those of others.

After DeepNets-1M (Knyazev et al., Parameter Prediction for Unseen Deep Architectures, 2021): cells of DARTS with more
kinds of operations and a number of nodes that varies, in networks of many stems, widths, depths and kinds of blocks,
with batch norm and without. Transformer blocks, which they have too, are left out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from nasplat.core.architecture import Architecture
from nasplat.core.choice import Choice, Option, Values
from nasplat.core.cost import Cost, cost_of
from nasplat.core.drawing import Drawing, Edge, Node
from nasplat.core.errors import NasplatError
from nasplat.core.graph import GraphBuilder, OperationGraph, Shape
from nasplat.core.problem import Problem
from nasplat.core.space import SearchSpace
from nasplat.spaces import cell_program
from nasplat.spaces.cell_network import NORMAL, REDUCTION
from nasplat.spaces.cell_operations import ALIGN, IDENTITY, NONE, OPERATIONS, SQUEEZE
from nasplat.spaces.cell_program import LAST, Frame, Program, ProgramBuilder
from nasplat.spaces.darts import DartsSpace
from nasplat.spaces.heads import finish_with_heads

if TYPE_CHECKING:
    from torch import nn

EDGES = (
    "conv_3x3",
    "conv_1x1",
    "conv_5x5",
    "conv_1x7_7x1",
    "group_conv_3x3",
    "dilated_3x3",
    "sep_conv_3x3",
    "sep_conv_5x5",
    "dil_conv_3x3",
    "dil_conv_5x5",
    "squeeze_excite",
    "max_pool_3x3",
    "avg_pool_3x3",
    IDENTITY,
    NONE,
)
CONV, STRIDED, POOLED = "conv_3x3", "conv_3x3_stride_2", "conv_7x7_pool"  # kernel, and how often the stem halves
STEMS: Mapping[str, tuple[int, int]] = {CONV: (3, 0), STRIDED: (3, 1), POOLED: (7, 2)}
NORMS = ("batch_norm", "none")
PLAIN, RESIDUAL, BOTTLENECK = "plain", "residual", "bottleneck"
BLOCKS = (PLAIN, RESIDUAL, BOTTLENECK)
CONCAT, ADD = "concat", "add"
COMBINERS = (CONCAT, ADD)
POOLINGS = ("average", "max")
EXPANSION = 4  # of a bottleneck, as in ResNet-50 (He et al., 2016)


class DiverseSpace(SearchSpace):
    """Cells of a varying number of nodes, in networks of a varying form.

    Choices: `stem`; `norm`, where a convolution without batch norm has a bias; `block`: the cell as it is, with a
    shortcut around it, or with a shortcut around a cell of a quarter of the width and a 1×1 convolution; `combine`:
    how the nodes of a cell become its output; `pooling` before the classifier; `channels` of the first stage, which
    each stage doubles; `cells`, normal cells a stage; and the cells themselves as in the family darts, of which nodes
    that add nothing are left out. A cell without any node is its last input, at the width of the stage.

    Canonical form: cells as in the family darts, whatever combines their nodes; `combine` and `block` take their first
    option where there is nothing to combine or to go around, `pooling` where one pixel is pooled.

    Args:
        problem: what is to be learned.
        operations: what an edge of a cell can be; any of `cell_operations.OPERATIONS`, `none`, `skip_connect`.
        nodes: at most so many in a cell.
        stages: of cells; a reduction cell stands between two.
        channels, cells, stems, norms, blocks, combiners, poolings: the options of the choices.

    Raises:
        NasplatError: an option that is not known, or that makes no network.
    """

    def __init__(
        self,
        problem: Problem,
        *,
        operations: Sequence[str] = EDGES,
        nodes: int = 4,
        stages: int = 3,
        channels: Sequence[int] = (8, 16, 32, 64),
        cells: Sequence[int] = (1, 2, 3, 4),
        stems: Sequence[str] = tuple(STEMS),
        norms: Sequence[str] = NORMS,
        blocks: Sequence[str] = BLOCKS,
        combiners: Sequence[str] = COMBINERS,
        poolings: Sequence[str] = POOLINGS,
    ) -> None:
        for name, options, known in (
            ("stems", stems, STEMS),
            ("norms", norms, NORMS),
            ("blocks", blocks, BLOCKS),
            ("combiners", combiners, COMBINERS),
            ("poolings", poolings, POOLINGS),
        ):
            if isinstance(options, str) or set(options) - set(known):
                raise NasplatError(f"{name} are {options!r}", f"give a list of {', '.join(known)}")
        for name, numbers in (("channels", channels), ("cells", cells), ("stages", (stages,))):
            if isinstance(numbers, int) or not all(type(one) is int and one >= 1 for one in numbers):
                raise NasplatError(f"{name}: {numbers!r}", "whole numbers of at least 1 make a network")
        self.problem, self.stages = problem, stages
        self._cells = DartsSpace(problem, operations=tuple(operations), nodes=nodes, cells=(1,) * stages, channels=1)
        forms = (
            Choice("stem", tuple(stems)),
            Choice("norm", tuple(norms)),
            Choice("block", tuple(blocks)),
            Choice("combine", tuple(combiners)),
            Choice("pooling", tuple(poolings)),
            Choice("channels", tuple(channels), ordered=True),
            Choice("cells", tuple(cells), ordered=True),
        )
        self.choices: Mapping[str, Choice] = {**{form.name: form for form in forms}, **self._cells.choices}
        self.identity: Mapping[str, Any] = {
            "family": "diverse",
            "operations": list(operations),
            "nodes": nodes,
            "stages": stages,
            **{form.name: list(form.options) for form in forms},
            "problem": problem.to_json(),
        }

    def settle(self, values: Values) -> Values:
        settled: dict[str, Option] = {**values, **self._cells.settle(values)}
        most = max(self._live_nodes(kind, settled) for kind in self._cells.kinds)
        dead = {"combine": most < 2, "block": most < 1, "pooling": max(self._last_size(settled)) < 2}
        for name, is_dead in dead.items():
            if is_dead:
                settled[name] = self.choices[name].default
        return {name: settled[name] for name in self.choices}

    def sample(self, rng: np.random.Generator) -> Architecture:
        """A random architecture: every choice uniform, and the numbers of nodes that cells have at most too."""
        values = {name: choice.options[int(rng.integers(len(choice.options)))] for name, choice in self.choices.items()}
        if NONE in self._cells.operations:
            for kind in self._cells.kinds:
                for node in range(int(rng.integers(1, self._cells.nodes + 1)), self._cells.nodes):
                    values |= {f"{kind}_node{node}_op{edge}": NONE for edge in (1, 2)}
        return self.canonical(values)

    def _live_nodes(self, kind: str, values: Values) -> int:
        nodes = self._cells.append_nodes(ProgramBuilder(reduction=kind == REDUCTION, align=True), kind, values)
        return sum(node is not None for node in nodes)

    def _last_size(self, values: Values) -> Shape:
        """Height and width before the pooling."""
        size = self.problem.input_shape[1:]
        for _ in range(STEMS[str(values["stem"])][1] + self.stages - 1):
            size = Frame(1, size).output_size(reduction=True)  # type: ignore[assignment]
        return size

    def _program(self, kind: str, values: Values) -> tuple[Program, int]:
        """The steps of a cell without its shortcut, and the number of its live nodes."""
        builder = ProgramBuilder(reduction=kind == REDUCTION, align=True)
        nodes = [node for node in self._cells.append_nodes(builder, kind, values) if node is not None]
        if not nodes:
            return builder.finish([builder.apply(IDENTITY, builder.input(LAST), "pass", from_input=True)]), 0
        return builder.finish(nodes if values["combine"] == CONCAT else [builder.add(nodes)]), len(nodes)

    def graph(self, architecture: Architecture) -> OperationGraph:
        values = architecture.values
        make = GraphBuilder if values["norm"] == "batch_norm" else _WithoutNorms
        builder = make(self.problem.input_shape)
        channels = int(values["channels"])
        kernel, halvings = STEMS[str(values["stem"])]
        node = builder.conv2d(builder.input, channels, kernel, stride=2 if halvings else 1, name="stem.conv")
        node = builder.batch_norm(node, name="stem.norm")
        if halvings > 1:
            node = builder.pool(builder.activation(node), "max_pool", 3, 2)
        before_last = last = node
        outputs: list[int] = []
        reductions = 0
        programs = {kind: self._program(kind, values) for kind in self._cells.kinds}
        for stage in range(self.stages):
            for kind in [REDUCTION] * (stage > 0) + [NORMAL] * int(values["cells"]):
                width = channels * 2**stage
                node = self._cell(builder, programs[kind], before_last, last, width, values, f"cells.{len(outputs)}")
                before_last, last = last, node
                outputs.append(node)
                reductions = len(outputs) if kind == REDUCTION else reductions
        node = builder.activation(last)
        if values["pooling"] == "max":
            node = builder.global_max_pool(node)
        return _live(finish_with_heads(builder, node, self.problem, {}), outputs[:reductions])

    def _cell(
        self,
        builder: GraphBuilder,
        program: tuple[Program, int],
        before_last: int,
        last: int,
        channels: int,
        values: Values,
        name: str,
    ) -> int:
        steps, live = program
        block = values["block"] if live else PLAIN
        inside = max(1, channels // EXPANSION) if block == BOTTLENECK else channels
        frame = Frame(inside, builder.shape(last)[1:])
        node = cell_program.emit(steps, builder, before_last, last, frame, name)
        if block == PLAIN:
            return node
        if block == BOTTLENECK or builder.shape(node)[0] != channels:
            node = OPERATIONS[SQUEEZE](builder, node, channels, 1, f"{name}.{block}")
        shortcut = last
        if builder.shape(shortcut) != builder.shape(node):
            shortcut = OPERATIONS[ALIGN](builder, last, channels, 2 if steps.reduction else 1, f"{name}.shortcut")
        return builder.add([node, shortcut])

    def cost(self, architecture: Architecture) -> Cost:
        return cost_of(self.graph(architecture))

    def build(self, architecture: Architecture) -> nn.Module:
        from nasplat.networks.graph_network import build_network

        return build_network(self.graph(architecture))

    def drawings(self, architecture: Architecture) -> dict[str, Drawing]:
        """The network as a row of boxes, and its cells, without nodes that add nothing."""
        values = architecture.values
        boxes = [("input", "×".join(map(str, self.problem.input_shape)), "input")]
        boxes.append(("stem", f"{str(values['stem']).replace('_', ' ')} → {values['channels']}", "convolution"))
        for stage in range(self.stages):
            if stage:
                boxes.append((f"reduction {stage}", "reduction cell", "combine"))
            cells = f"{values['cells']} × {values['block']} cell → {int(values['channels']) * 2**stage}"
            boxes.append((f"stage {stage}", cells, "combine"))
        boxes.append(("pool", f"global {values['pooling']} pool", "pooling"))
        edges = [Edge(one[0], other[0]) for one, other in pairwise(boxes)]
        for output in self.problem.outputs:
            boxes.append((f"output {output.name}", output.name, "output"))
            edges.append(Edge("pool", f"output {output.name}"))
        network = Drawing(tuple(Node(*box) for box in boxes), tuple(edges))
        drawings = self._cells.drawings(architecture)
        return {"network": network, **{kind: _without_empty(drawing) for kind, drawing in drawings.items()}}


class _WithoutNorms(GraphBuilder):
    """Where a batch norm would follow a convolution, that has a bias."""

    def batch_norm(self, node: int, *, name: str, affine: bool = True) -> int:
        operation = self.operations[node]
        if operation.kind == "conv2d":
            self.operations[node] = replace(operation, attributes={**operation.attributes, "bias": True})
        return node


def _live(graph: OperationGraph, auxiliary: Sequence[int]) -> OperationGraph:
    """The graph without what no output needs; of the operations `auxiliary` the last that is left is that tap."""
    live = {*graph.outputs.values(), *graph.taps.values(), 0}
    for position in range(len(graph.operations) - 1, -1, -1):
        if position in live:
            live.update(graph.operations[position].inputs)
    place = {old: new for new, old in enumerate(sorted(live))}
    kept = (graph.operations[old] for old in place)
    operations = tuple(replace(one, inputs=tuple(place[source] for source in one.inputs)) for one in kept)
    taps = {name: place[old] for name, old in graph.taps.items()}
    for old in auxiliary:
        if old in place:
            taps["auxiliary"] = place[old]
    return OperationGraph(operations, {name: place[old] for name, old in graph.outputs.items()}, taps)


def _without_empty(drawing: Drawing) -> Drawing:
    """A cell without boxes that nothing enters."""
    entered = {edge.target for edge in drawing.edges}
    empty = {node.id for node in drawing.nodes if node.kind == "combine" and node.id not in entered}
    return Drawing(
        tuple(node for node in drawing.nodes if node.id not in empty),
        tuple(edge for edge in drawing.edges if edge.source not in empty),
    )
