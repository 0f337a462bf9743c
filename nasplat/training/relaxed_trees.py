"""Branching trees relaxed, so that gradients choose among them: networks with a copy of each stage for every task.

relaxed = TaskMixtures(space)                          # or ParentChoices(space)
weights = relaxed.draw(1.0, generator)                 # a mixture of copies; relaxed.warm() at the beginning
outputs = relaxed(views, seen, weights)                # by task, its outputs for the views that it looks at
relaxed.expected_branches()                            # of each layer, differentiable
relaxed.settled()                                      # the most probable tree, an architecture of the space
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor, nn

from nasplat.core.architecture import Architecture
from nasplat.core.errors import NasplatError
from nasplat.networks import branch_probability
from nasplat.networks.branched import make_head
from nasplat.spaces.branching import BranchingSpace
from nasplat.training.multi_task import Seen

_LEAST = 1e-6  # of a scale that is divided by
_SAMPLES = 1000


class RelaxedTrees(Protocol):
    """What a search by gradients asks of a relaxed tree.

    Attributes:
        copies: the network: copies of all stages, and the heads.
        logits: of the choices, by layer, `(T, T)` each: of whoever chooses (row) to choose a copy (column). They are on
            the CPU, so that nothing that is drawn waits for the device.
    """

    copies: Copies
    logits: dict[str, Tensor]

    def __call__(self, views: Sequence[Tensor], seen: Seen, weights: Sequence[Tensor]) -> dict[str, list[Tensor]]:
        """By task, its outputs for each of the views that it looks at; see `MultiTask.prepared`."""
        ...

    def warm(self) -> list[Tensor]:
        """The mixture with which weights begin, before anything is chosen."""
        ...

    def draw(self, temperature: float, generator: torch.Generator) -> list[Tensor]:
        """A mixture, of Gumbel noise; whatever has weight zero and needs no gradient is not run."""
        ...

    def expected_branches(self, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Of each layer, `(layers,)`, differentiable, and the standard errors: 0 where they are exact.

        Args:
            generator: where samples are drawn if there are too many tasks.
        """
        ...

    def settled(self) -> Architecture:
        """The most probable tree."""
        ...


class Copies(nn.Module):
    """A copy of each stage of a space's backbone for every task, and a head a task.

    Args:
        alike: all copies begin with the same weights.
    """

    def __init__(self, space: BranchingSpace, alike: bool) -> None:
        super().__init__()
        first = space.backbone().train()
        others = [copy.deepcopy(first) if alike else space.backbone().train() for _ in space.tasks[1:]]
        backbones = [first, *others]
        self.stages = nn.ModuleList(
            nn.ModuleList(space.cut.stage(layer, backbone) for backbone in backbones) for layer in range(space.layers)
        )
        outputs = space.problem.outputs
        self.heads = nn.ModuleList(make_head(one, space.cut.shapes[-1], space.problem.input_shape) for one in outputs)

    def stage(self, layer: int, branch: int) -> nn.Module:
        found: nn.Module = self.stages[layer][branch]  # type: ignore[index]
        return found


class TaskMixtures:
    """Every task mixes the copies of each layer by weights of its own (BMTAS, Bruggemann et al., 2020).

    A layer's copies are run on the features of all tasks together, as in a network that shares it. Before they are
    mixed they are brought to one scale, so that weights mean the same for all of them; the paper fixes the affine part
    of their last normalisation for that, which not every backbone has.

    Copies begin alike, as those of the paper do, which are of one trained network: only then are those of related tasks
    near enough to each other after the warm-up for a mixture of them to be a network at all.

    The expected cost is exact up to six tasks, and of 1,000 samples a step beyond.
    """

    def __init__(self, space: BranchingSpace) -> None:
        self.space, self.copies = space, Copies(space, alike=True)
        self.logits = {f"layer{layer + 1}": _zeros(space) for layer in range(space.layers)}

    def __call__(self, views: Sequence[Tensor], seen: Seen, weights: Sequence[Tensor]) -> dict[str, list[Tensor]]:
        names = self.space.tasks
        features: list[Tensor] = []
        for layer, weight in enumerate(weights):
            used, weight = _used(weight), weight.to(views[0])
            mixed: list[list[Tensor]] = [[] for _ in names]
            for branch in range(len(names)):
                who = [task for task in range(len(names)) if used[task][branch]]
                stage = self.copies.stage(layer, branch)
                if layer:
                    given = _split(stage, [features[task] for task in who])
                else:  # tasks that look at the same views share what is made of them
                    shown = sorted({view for task in who for view in seen[names[task]]})
                    made = dict(zip(shown, _split(stage, [views[view] for view in shown]), strict=True))
                    given = [torch.cat([made[view] for view in seen[names[task]]]) for task in who]
                for task, one in zip(who, given, strict=True):
                    mixed[task].append(weight[task, branch] * one)
            features = [torch.stack(parts).sum(0) for parts in mixed]
        return {
            name: list(head(one).chunk(len(seen[name])))
            for name, head, one in zip(names, self.copies.heads, features, strict=True)
        }

    def warm(self) -> list[Tensor]:
        """Each task has its own copies."""
        return [torch.eye(len(self.space.tasks)) for _ in self.logits]

    def draw(self, temperature: float, generator: torch.Generator) -> list[Tensor]:
        return [_gumbel_softmax(logits, temperature, generator) for logits in self.logits.values()]

    def expected_branches(self, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        probabilities = [logits.double().softmax(1) for logits in self.logits.values()]
        if len(self.space.tasks) > branch_probability.MOST_REFINED:
            return branch_probability.estimated(probabilities, _SAMPLES, generator)
        return _exactly(branch_probability.refined(probabilities))

    def settled(self) -> Architecture:
        return self.space.of_tree([tuple(logits.argmax(1).tolist()) for logits in self.logits.values()])


class ParentChoices:
    """Every branch and every head chooses the branch before it (Learning to Branch, Guo et al., 2020).

    Choices are straight-through: one parent in the forward pass, the gradient of the soft choice. Branches that no head
    leads to are not run where nothing is to be learned of the choices.

    Raises:
        NasplatError: more tasks than the exact expected cost allows for; see `branch_probability.MOST_PARENTS`.
    """

    def __init__(self, space: BranchingSpace) -> None:
        if len(space.tasks) > branch_probability.MOST_PARENTS:
            raise NasplatError(
                f"learning to branch takes {branch_probability.MOST_PARENTS} tasks at most, not {len(space.tasks)}",
                "use bmtas, affinity, or a strategy such as evolution, which take any number",
            )
        # Not alike: under the uniform connections of the warm-up they would stay so.
        self.space, self.copies = space, Copies(space, alike=False)
        names = [*(f"layer{layer + 1}" for layer in range(1, space.layers)), "heads"]
        self.logits = {name: _zeros(space) for name in names}

    def __call__(self, views: Sequence[Tensor], seen: Seen, weights: Sequence[Tensor]) -> dict[str, list[Tensor]]:
        used = [_used(weight) for weight in weights]
        needed = [[any(column) for column in zip(*used[-1], strict=True)]]
        for rows in reversed(used[:-1]):
            children = [row for row, there in zip(rows, needed[0], strict=True) if there]
            needed.insert(0, [any(column) for column in zip(*children, strict=True)])
        images = torch.cat(list(views))
        features: list[Tensor | None] = [images] * len(self.space.tasks)
        for layer, wanted in enumerate(needed):
            if layer:
                features = [
                    _sum(features, used[layer - 1][branch], weights[layer - 1][branch]) if there else None
                    for branch, there in enumerate(wanted)
                ]
            features = [
                None if one is None or not there else self.copies.stage(layer, branch)(one)
                for branch, (one, there) in enumerate(zip(features, wanted, strict=True))
            ]
        outputs = {}
        for task, (name, head) in enumerate(zip(self.space.tasks, self.copies.heads, strict=True)):
            chunks = _sum(features, used[-1][task], weights[-1][task]).chunk(len(views))
            outputs[name] = list(head(torch.cat([chunks[view] for view in seen[name]])).chunk(len(seen[name])))
        return outputs

    def warm(self) -> list[Tensor]:
        """The mean over all parents: a sum would change the scale of the features, T times in each layer."""
        tasks = len(self.space.tasks)
        return [torch.full((tasks, tasks), 1 / tasks) for _ in self.logits]

    def draw(self, temperature: float, generator: torch.Generator) -> list[Tensor]:
        found = []
        for logits in self.logits.values():
            soft = _gumbel_softmax(logits, temperature, generator)
            hard = torch.zeros_like(soft).scatter(1, soft.argmax(1, keepdim=True), 1.0)
            found.append(hard + soft - soft.detach() if soft.requires_grad else hard)
        return found

    def expected_branches(self, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        return _exactly(branch_probability.parents([logits.double().softmax(1) for logits in self.logits.values()]))

    def settled(self) -> Architecture:
        here = list(range(len(self.space.tasks)))
        layers = []
        for logits in reversed(self.logits.values()):
            chosen = logits.argmax(1).tolist()
            here = [chosen[branch] for branch in here]
            layers.append(tuple(here))
        return self.space.of_tree(layers[::-1])


def share_of(branches: Tensor, space: BranchingSpace) -> Tensor:
    """Of the MACs between all shared (0) and all separate (1) those of so many branches: `(layers,)`, float64."""
    macs = torch.tensor([float(one.macs) for one in space.stage_costs], dtype=torch.float64)
    return ((branches - 1) * macs).sum() / (macs.sum() * (len(space.tasks) - 1))


def _exactly(branches: Tensor) -> tuple[Tensor, Tensor]:
    return branches, torch.zeros_like(branches)


def _zeros(space: BranchingSpace) -> Tensor:
    return torch.zeros(len(space.tasks), len(space.tasks), requires_grad=True)


def _gumbel_softmax(logits: Tensor, temperature: float, generator: torch.Generator) -> Tensor:
    uniform = torch.rand(logits.shape, generator=generator).clamp(1e-9, 1 - 1e-7)
    return ((logits - (-uniform.log()).log()) / temperature).softmax(1)


def _used(weights: Tensor) -> list[list[bool]]:
    """What must be run: all where weights are learned, otherwise what has any weight. They are on the CPU."""
    if weights.requires_grad:
        return [[True] * weights.shape[1]] * len(weights)
    found: list[list[bool]] = (weights != 0).tolist()
    return found


def _split(stage: nn.Module, features: Sequence[Tensor]) -> list[Tensor]:
    """What a stage makes of several batches in one, brought to one scale."""
    if not features:
        return []
    made = stage(torch.cat(list(features)))
    made = made / made.square().mean().sqrt().clamp(min=_LEAST)
    return list(made.split([len(one) for one in features]))


def _sum(features: Sequence[Tensor | None], used: Sequence[bool], weights: Tensor) -> Tensor:
    parts = [(weights[place], one) for place, one in enumerate(features) if used[place] and one is not None]
    return torch.stack([weight.to(one) * one for weight, one in parts]).sum(0)
