"""A backbone cut into stages, copied along a branching tree, with a head for each task.

    cut = Cut.of(resnet18(), (3, 64, 64), ["layer1", "layer2", "layer3", "layer4"])
    network = BranchedNetwork(cut, tree, outputs, [resnet18() for _ in range(copies(tree))])
    network(images)            # a dict: name of the task -> output
    network.only(["hair"])     # the network without the other tasks, and without what only they need
    network.alone("hair")      # one task's own network, whose output is one tensor

A hand-branched network is the same with a tree written by hand.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence

from torch import Tensor, nn
from torch.nn import functional as F

from nasplat.core.branching import Tree, branches, is_tree, restrict
from nasplat.core.errors import NasplatError, nearest
from nasplat.core.problem import Output
from nasplat.networks.stages import Cut

POOLED = ("classification", "multi_label", "regression", "contrastive")  # pooled features, and one linear layer
KINDS = (*POOLED, "dense", "embedding")


class PooledHead(nn.Module):
    """The mean over height and width (or over tokens), and a linear layer; without one it is an embedding.

    Features `(N, C, H, W)`, `(N, tokens, C)` or `(N, C)` to `(N, size)`.
    """

    def __init__(self, channels: int, size: int | None) -> None:
        super().__init__()
        self.linear: nn.Module = nn.Identity() if size is None else nn.Linear(channels, size)

    def forward(self, features: Tensor) -> Tensor:
        if features.dim() > 2:
            features = features.mean((2, 3) if features.dim() == 4 else 1)
        output: Tensor = self.linear(features)
        return output


class DenseHead(nn.Module):
    """A 1x1 convolution, and bilinear interpolation to the size of the image: `(N, C, h, w)` to `(N, size, H, W)`."""

    def __init__(self, channels: int, size: int, height: int, width: int) -> None:
        super().__init__()
        self.size = (height, width)
        self.conv = nn.Conv2d(channels, size, 1)

    def forward(self, features: Tensor) -> Tensor:
        return F.interpolate(self.conv(features), self.size, mode="bilinear", align_corners=False)


def make_head(output: Output, features: Sequence[int], image: Sequence[int]) -> nn.Module:
    """The head of a task.

    Args:
        output: its name, kind and size.
        features: shape of what the last stage yields, without the batch.
        image: `(C, H, W)`.

    Raises:
        NasplatError: a kind that has no head, or a dense task on features without height and width.
    """
    kind: str = output.kind
    if kind not in KINDS:
        raise NasplatError(
            f"task {output.name} is of kind {kind!r}", f"{nearest(kind, KINDS)}there are {', '.join(KINDS)}"
        )
    channels = features[0] if len(features) == 3 else features[-1]
    if kind != "dense":
        return PooledHead(channels, output.size if kind in POOLED else None)
    if len(features) != 3:
        raise NasplatError(
            f"task {output.name} is dense, and the last stage yields shape {tuple(features)}, without height and width",
            "cut the backbone before its pooling",
        )
    return DenseHead(channels, output.size, *image[1:])


def copies(tree: Tree) -> int:
    """How many backbones a tree takes stages of: its largest number of branches."""
    return max(len(set(partition)) for partition in tree)


class BranchedNetwork(nn.Module):
    """One network for several tasks that share what a tree says; stages are run depth first, each once.

    Args:
        cut: where the backbone is cut into as many stages as the tree has layers.
        tree: for each layer the partition of the tasks; see `nasplat.core.branching`.
        outputs: of the tasks, in the tree's order.
        backbones: modules of the cut's class and shapes whose stages are taken (not copied): the branches of a layer,
            in order of their first tasks, are the stages of these in turn. Fresh ones give fresh branches; copies of a
            trained one start all branches from its weights.

    Attributes:
        tree: as given.
        stages: by `layer<l>_<name of the branch's first task>`, such as `layer2_hair`.
        heads: by `head_<task>`.

    Raises:
        NasplatError: what is given is no tree of these tasks and stages, or too few backbones; see `make_head`.
    """

    def __init__(self, cut: Cut, tree: Tree, outputs: Sequence[Output], backbones: Sequence[nn.Module]) -> None:
        super().__init__()
        if len(tree) != len(cut.names) or not is_tree(tree) or any(len(layer) != len(outputs) for layer in tree):
            raise NasplatError(f"{tree} is no tree of {len(outputs)} tasks and {len(cut.names)} layers")
        if len(backbones) < copies(tree):
            raise NasplatError(f"the tree needs {copies(tree)} backbones, and there are {len(backbones)}")
        self.tree = tree
        self.names = tuple(output.name for output in outputs)
        self.stages = nn.ModuleDict()
        for layer, partition in enumerate(tree):
            for backbone, branch in zip(backbones, branches(partition), strict=False):
                self.stages[_stage(layer, self.names[branch])] = cut.stage(layer, backbone)
        # Names of tasks may be those of methods, such as `type`, which a ModuleDict refuses; hence the prefix.
        self.heads = nn.ModuleDict(
            {f"head_{output.name}": make_head(output, cut.shapes[-1], cut.input_shape) for output in outputs}
        )

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Images `(N, C, H, W)` to the outputs of all tasks, by name."""
        return self.forward_taps(images, self.names)

    def forward_taps(self, images: Tensor, names: Sequence[str]) -> dict[str, Tensor]:
        """Runs only what some tasks need.

        Raises:
            NasplatError: no such task.
        """
        outputs: dict[str, Tensor] = {}
        self._run(images, 0, self._positions(names), outputs)
        return {name: outputs[name] for name in names}

    def _run(self, features: Tensor, layer: int, tasks: Sequence[int], outputs: dict[str, Tensor]) -> None:
        if layer == len(self.tree):
            for task in tasks:
                outputs[self.names[task]] = self.heads[f"head_{self.names[task]}"](features)
            return
        partition = self.tree[layer]
        for branch in sorted({partition[task] for task in tasks}):
            inside = [task for task in tasks if partition[task] == branch]
            self._run(self.stages[_stage(layer, self.names[branch])](features), layer + 1, inside, outputs)

    def only(self, names: Iterable[str]) -> BranchedNetwork:
        """A copy with these tasks, in their own order, and only the branches that they need; weights as they are.

        Raises:
            NasplatError: no such task, or none at all.
        """
        tasks = self._positions(list(names))
        if not tasks:
            raise NasplatError("no task would be left", f"name one of {', '.join(self.names)}")
        less = copy.copy(self)
        # A shallow copy shares the tables of submodules, which are about to change.
        less._modules = dict(self._modules)
        less.names = tuple(self.names[task] for task in tasks)
        less.tree = restrict(self.tree, tasks)
        less.stages, less.heads = nn.ModuleDict(), nn.ModuleDict()
        for layer, (before, after) in enumerate(zip(self.tree, less.tree, strict=True)):
            for branch in branches(after):
                old = _stage(layer, self.names[before[tasks[branch]]])
                less.stages[_stage(layer, less.names[branch])] = self.stages[old]
        for name in less.names:
            less.heads[f"head_{name}"] = self.heads[f"head_{name}"]
        return copy.deepcopy(less)

    def without(self, *names: str) -> BranchedNetwork:
        """A copy without these tasks and what only they need.

        Raises:
            NasplatError: no such task, or none would be left.
        """
        dropped = self._positions(names)
        return self.only([name for task, name in enumerate(self.names) if task not in dropped])

    def alone(self, name: str) -> nn.Sequential:
        """A copy of what one task runs: images to its output, a tensor. Nothing in it knows of other tasks.

        Raises:
            NasplatError: no such task.
        """
        (task,) = self._positions([name])
        stages = {
            f"layer{layer + 1}": self.stages[_stage(layer, self.names[partition[task]])]
            for layer, partition in enumerate(self.tree)
        }
        chain = nn.Sequential()
        for key, module in {**stages, "head": self.heads[f"head_{name}"]}.items():
            chain.add_module(key, module)
        return copy.deepcopy(chain)

    def shared(self) -> dict[str, tuple[str, ...]]:
        """By stage, the tasks that run it."""
        return {
            _stage(layer, self.names[branch]): tuple(self.names[task] for task in members)
            for layer, partition in enumerate(self.tree)
            for branch, members in branches(partition).items()
        }

    def _positions(self, names: Sequence[str]) -> list[int]:
        for name in names:
            if name not in self.names:
                advice = f"{nearest(name, self.names)}its tasks are {', '.join(self.names)}"
                raise NasplatError(f"the network has no task {name!r}", advice)
        return sorted({self.names.index(name) for name in names})


def part(network: nn.Module, tasks: Sequence[str]) -> nn.Module:
    """What some tasks need of a network: of several tasks a `BranchedNetwork`, of one its own network alone.

    Raises:
        NasplatError: a network that is no `BranchedNetwork`, or no such task.
    """
    if not isinstance(network, BranchedNetwork):
        raise NasplatError(f"{type(network).__name__} has no tasks that could be left out", "leave out the tasks")
    return network.alone(tasks[0]) if len(tasks) == 1 else network.only(tasks)


def _stage(layer: int, name: str) -> str:
    return f"layer{layer + 1}_{name}"


class Kept(nn.Module):
    """Runs a module and keeps what it reads, as where another branch reads that too."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        return self.module(features), features
