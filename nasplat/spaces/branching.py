"""Which tasks share which layers of a backbone: trees of branches, each layer's splits refining those before.

space:
  family: branching
  backbone: torchvision.models:resnet18      # or {space: {family: mbconv, …}, architecture: {…}}
  cuts: [layer1, layer2, layer3, layer4]
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from nasplat.core import branching
from nasplat.core.architecture import Architecture
from nasplat.core.branching import CostedTree, Part, Partition, Tree
from nasplat.core.choice import Choice, Values
from nasplat.core.cost import Cost
from nasplat.core.drawing import Picture
from nasplat.core.errors import NasplatError, nearest
from nasplat.core.graph import OperationGraph
from nasplat.core.problem import Output, Problem
from nasplat.core.space import SearchSpace

if TYPE_CHECKING:
    from torch import nn

    from nasplat.networks.branched import BranchedNetwork

_SPACE_KEYS = ("space", "architecture")


@dataclass(frozen=True, slots=True)
class StageCost:
    """What one copy of a stage, or a head, costs.

    Args:
        macs, params: as in `nasplat.core.cost.Cost`.
        peak_bytes: of the activations while it runs, when what it reads is let go after it is read last.
        peak_if_kept: the same, when others read that afterwards.
        input_bytes, output_bytes: of what it reads and yields.
    """

    macs: int
    params: int
    peak_bytes: int
    peak_if_kept: int
    input_bytes: int
    output_bytes: int


class BranchingSpace(SearchSpace):
    """All branching trees of a backbone for several tasks (Bruggemann et al., 2020; Guo et al., 2020).

    Choices: for each layer and each task but the first, with which task it goes there: `layer2.hair` is the position
    of a task before hair, or hair's own, with which a branch begins. It goes wherever that one goes, so that changing
    one choice merges two branches, splits one, or moves a task. Any assignment stands for a tree: tasks that parted in
    one layer stay apart in all after it (the meet with the partition before). In canonical form every task goes with
    the first one of its branch, so that branches keep their names however others split.

    Sampling, counting, mutation and crossover are those of trees, not of the table: `count` is the exact number of
    trees (3,455 for 5 tasks and 4 layers, while `assignments` are 7,311,616), `sample` draws from them uniformly, and
    `neighbours` are one split, merge or shift of a branching point away.

    Args:
        problem: two or more outputs, of kinds classification, multi_label, regression (pooling and a linear layer),
            dense (a 1x1 convolution, bilinear to the image's size), or embedding (pooling alone).
        backbone: `module:function` that makes a network; or `space`, the data or the file of a space of any other
            family, and `architecture`, the values of its choices.
        cuts: the modules that the layers end with (see `nasplat.networks.stages.Cut`); what follows the last is left
            out. Default: a layer ends where height and width change next.
        arguments: given to the backbone's function by name.
        checkpoint: trained weights of the backbone, with which all branches start; without it branches start fresh.

    Attributes:
        cut: the backbone's stages.
        layers: number of layers.
        tasks: names of the tasks.
        stage_costs, head_costs: by layer, and by task.

    Raises:
        NasplatError: one task only, two of one name, a kind without a head, a backbone that cannot be made or cut so.
    """

    def __init__(
        self,
        problem: Problem,
        *,
        backbone: str | Mapping[str, Any],
        cuts: Sequence[str] | None = None,
        arguments: Mapping[str, Any] | None = None,
        checkpoint: str | None = None,
    ) -> None:
        import torch

        from nasplat.networks.branched import make_head
        from nasplat.networks.stages import Cut

        self.problem = problem
        self.tasks = _task_names(problem)
        if cuts is not None and (isinstance(cuts, str) or not cuts):
            raise NasplatError(f"cuts is {cuts!r}", "it must be a list of names of the backbone's modules")
        self._arguments, self._checkpoint = dict(arguments or {}), checkpoint
        self._model, self._inner = _backbone(backbone, problem)
        if self._inner is not None and arguments:
            raise NasplatError("arguments are of a backbone's function, and this one is of a space", "leave them out")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            base = self.backbone()
            self.cut = Cut.of(base, problem.input_shape, cuts)
            heads = [make_head(output, self.cut.shapes[-1], problem.input_shape) for output in problem.outputs]
        self.layers = len(self.cut.names)
        self.stage_costs = tuple(
            _stage_cost(self.cut.stage(layer, base), self.cut.shape_before(layer)) for layer in range(self.layers)
        )
        self.head_costs = tuple(_stage_cost(head, self.cut.shapes[-1]) for head in heads)
        self.choices = {
            name: Choice(name, tuple(range(task + 1)))
            for layer in range(self.layers)
            for task, name in enumerate(self._names(layer))
            if task
        }
        weights = None if checkpoint is None else hashlib.sha256(Path(checkpoint).read_bytes()).hexdigest()
        inner = None if self._inner is None else [self._inner[0].identity, dict(self._inner[1].values)]
        self.identity = {
            "family": "branching",
            "backbone": self._model if inner is None else inner,
            "arguments": self._arguments,
            "checkpoint": weights,
            "cuts": list(self.cut.names),
            "problem": problem.to_json(),
        }

    @cached_property
    def whole(self) -> Mapping[str, float]:
        """What all separate costs, of which constraints are shares."""
        return self.known(self.separate())

    @property
    def assignments(self) -> int:
        """In how many ways a partition of the tasks can be chosen for each layer."""
        return branching.bell(len(self.tasks)) ** self.layers

    def shared(self) -> Architecture:
        """All tasks on one backbone."""
        return self.of_tree([branching.together(len(self.tasks))] * self.layers)

    def separate(self) -> Architecture:
        """A backbone for every task."""
        return self.of_tree([branching.alone(len(self.tasks))] * self.layers)

    def tree(self, architecture: Architecture) -> Tree:
        """For each layer the partition of the tasks, as of `nasplat.core.branching`."""
        return self._tree(architecture.values)

    def of_tree(self, layers: Sequence[Partition]) -> Architecture:
        """The architecture of a tree, or of any partitions that are to be made one.

        Args:
            layers: for each layer a label for each task; equal labels mean one branch.

        Raises:
            NasplatError: not as many layers and tasks as the space has.
        """
        if len(layers) != self.layers or any(len(partition) != len(self.tasks) for partition in layers):
            raise NasplatError(
                f"{layers} is no tree here", f"write {self.layers} layers of {len(self.tasks)} labels, one a task"
            )
        return self.canonical(self._values(branching.tree_of(layers)))

    def settle(self, values: Values) -> Values:
        return self._values(self._tree(values))

    def sample(self, rng: np.random.Generator) -> Architecture:
        """A tree, each as likely as any other."""
        return self.of_tree(branching.sample_tree(len(self.tasks), self.layers, rng))

    def neighbours(self, architecture: Architecture) -> list[Architecture]:
        """The trees that one split, merge or shift of a branching point reaches, each once, in a fixed order."""
        return [self.of_tree(tree) for tree in branching.neighbours(self.tree(architecture))]

    def mutate(self, architecture: Architecture, rng: np.random.Generator) -> Architecture | None:
        mutant = branching.mutate(self.tree(architecture), rng)
        return None if mutant is None else self.of_tree(mutant)

    def crossover(self, first: Architecture, second: Architecture, rng: np.random.Generator) -> Architecture:
        """Each layer from one of the parents, then made a tree from the image up or from the heads down, by coins."""
        return self.of_tree(branching.crossover(self.tree(first), self.tree(second), rng))

    def count(self) -> int:
        """The exact number of trees."""
        return branching.count_trees(len(self.tasks), self.layers)

    def enumerate(self) -> Iterator[Architecture]:
        """Every tree once: all shared first, all separate last."""
        return map(self.of_tree, branching.all_trees(len(self.tasks), self.layers))

    def cost(self, architecture: Architecture) -> Cost:
        """Exactly what the counter counts of the built network, in closed form: branches times stages, and heads."""
        tree = self.tree(architecture)
        numbers = [len(set(partition)) for partition in tree]
        parts = [*zip(numbers, self.stage_costs, strict=True), *((1, head) for head in self.head_costs)]
        macs = sum(number * part.macs for number, part in parts)
        params = sum(number * part.params for number, part in parts)
        return Cost(macs, params, self._peak_bytes(tree))

    def graph(self, architecture: Architecture) -> OperationGraph:
        """The operations that the network runs, for drawings; some are of kinds that torch alone knows."""
        from nasplat.networks.counter import copy_to
        from nasplat.spaces.recording import record

        return record(copy_to(self.build(architecture), "meta"), self.problem)

    def build(self, architecture: Architecture) -> BranchedNetwork:
        from nasplat.networks.branched import BranchedNetwork, copies

        tree = self.tree(architecture)
        backbones = [self.backbone() for _ in range(copies(tree))]
        return BranchedNetwork(self.cut, tree, self.problem.outputs, backbones).train()

    def backbone(self) -> nn.Module:
        """The whole backbone, with the checkpoint's weights or fresh from torch's default generator."""
        from nasplat.networks.user_model import trained_model

        if self._inner is None:
            return trained_model(self._model, self._arguments, self._checkpoint)
        space, architecture = self._inner
        network = space.build(architecture)
        if self._checkpoint is not None:
            from nasplat.artifacts.foreign_checkpoint import load_checkpoint

            load_checkpoint(network, Path(self._checkpoint))
        return network.eval()

    def drawings(self, architecture: Architecture) -> Mapping[str, Picture]:
        return {"tree": self.costed(architecture)}

    def costed(self, architecture: Architecture) -> CostedTree:
        """The tree with what its parts cost, which `nasplat.artifacts.tree_picture` draws."""
        layers = [Part(name, one.macs, one.params) for name, one in zip(self.cut.names, self.stage_costs, strict=True)]
        heads = [Part(name, one.macs, one.params) for name, one in zip(self.tasks, self.head_costs, strict=True)]
        return CostedTree(self.tree(architecture), tuple(layers), tuple(heads))

    def _names(self, layer: int) -> list[str]:
        return [f"layer{layer + 1}.{task}" for task in self.tasks]

    def _tree(self, values: Values) -> Tree:
        leaders = [[0, *(int(values[name]) for name in self._names(layer)[1:])] for layer in range(self.layers)]
        return branching.tree_of([branching.followed(one) for one in leaders])

    def _values(self, tree: Tree) -> dict[str, int]:
        return {
            name: branch
            for layer, partition in enumerate(tree)
            for name, branch in zip(self._names(layer)[1:], partition[1:], strict=True)
        }

    def _peak_bytes(self, tree: Tree) -> int:
        """The largest sum of live activations, while the network runs depth first as `BranchedNetwork` does."""

        def run(layer: int, tasks: Sequence[int], kept: bool) -> tuple[int, int]:
            """The peak of a branch with all behind it, what it reads included; and the bytes that then stay live."""
            if layer == self.layers:
                part = self.head_costs[tasks[0]]
                return (part.peak_if_kept if kept else part.peak_bytes), part.output_bytes
            part = self.stage_costs[layer]
            peak = part.peak_if_kept if kept else part.peak_bytes
            live = part.input_bytes if kept else 0
            partition = tree[layer + 1] if layer + 1 < self.layers else range(len(self.tasks))
            inside: dict[int, list[int]] = {}
            for task in tasks:
                inside.setdefault(partition[task], []).append(task)
            outputs = 0
            for place, members in enumerate(inside.values()):
                inner, made = run(layer + 1, members, place < len(inside) - 1)
                peak = max(peak, live + outputs + inner)
                outputs += made
            return peak, outputs

        peak = outputs = 0
        roots = list(branching.branches(tree[0]).values())
        for place, members in enumerate(roots):
            inner, made = run(0, members, place < len(roots) - 1)
            peak = max(peak, outputs + inner)
            outputs += made
        return peak


def _task_names(problem: Problem) -> tuple[str, ...]:
    names = tuple(output.name for output in problem.outputs)
    if len(names) < 2:
        raise NasplatError(
            f"there is only one task, {names[0]}, so there is nothing to share", "give two or more, or another family"
        )
    for name in names:
        if names.count(name) > 1:
            raise NasplatError(f"two tasks are named {name}", "give every task a name of its own")
        if not name or "." in name:
            raise NasplatError(f"a task cannot be named {name!r}", "a name is some text without a full stop")
    return names


def _backbone(data: str | Mapping[str, Any], problem: Problem) -> tuple[str, tuple[SearchSpace, Architecture] | None]:
    """A function's name; or a space and one of its architectures, built for features alone."""
    if isinstance(data, str):
        return data, None
    if not isinstance(data, Mapping) or "space" not in data:
        raise NasplatError(f"backbone is {data!r}", "write module:function, or {space: {family: …}, architecture: {…}}")
    for key in data:
        if key not in _SPACE_KEYS:
            raise NasplatError(f"backbone has no key {key!r}", f"{nearest(key, _SPACE_KEYS)}it has space, architecture")
    from nasplat.spaces.families import load_space

    space = load_space(data["space"], Problem(problem.input_shape, (Output("features", "embedding", 1),)))
    values = data.get("architecture") or {}
    if not isinstance(values, Mapping):
        raise NasplatError(f"the backbone's architecture is {values!r}", "write the values of its choices")
    return "", (space, space.canonical(values["values"] if "digest" in values else values))


def _stage_cost(module: nn.Module, shape: Sequence[int]) -> StageCost:
    import torch

    from nasplat.networks.branched import Kept
    from nasplat.networks.counter import copy_to, count

    module = copy_to(module, "meta")
    features = torch.zeros(1, *shape, device="meta")
    own = count(module, inputs=(features,))
    kept = count(Kept(module), inputs=(features,))
    with torch.no_grad():
        output = module(features)
    return StageCost(
        own.macs,
        own.params,
        own.peak_bytes,
        kept.peak_bytes,
        features.untyped_storage().nbytes(),
        output.untyped_storage().nbytes(),
    )
