"""What can be cut from one network: a kept ratio for each group of channels, and a depth for each stage.

    space: {family: pruning, model: "torchvision.models:resnet18", checkpoint: resnet18.pth, round_to: 8}

A candidate is a vector of kept ratios (Network Pruning Spaces, He et al., 2023), with the number of residual blocks.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from math import gcd
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from nasplat.core.architecture import Architecture, fingerprint
from nasplat.core.channel_cost import WidthCost
from nasplat.core.channel_graph import ChannelGraph, Group
from nasplat.core.choice import Choice, Values
from nasplat.core.cost import Cost
from nasplat.core.drawing import Bar, Bars, Picture
from nasplat.core.errors import NasplatError
from nasplat.core.graph import OperationGraph
from nasplat.core.problem import Problem
from nasplat.core.pruning import STRUCTURES
from nasplat.core.pruning_groups import chosen_groups
from nasplat.core.space import SearchSpace

if TYPE_CHECKING:
    from torch import nn

    from nasplat.artifacts.recipe import Recipe
    from nasplat.networks.surgery import Surgery

RATIOS = tuple(round(0.05 * step, 2) for step in range(2, 21))


class PruningSpace(SearchSpace):
    """All networks that are left when channels and residual blocks are taken out of one.

    Choices: for each group of channels (those that a residual sum ties are one) `<group>.ratio`, and for each stage
    of removable residual blocks `<first block>.depth`: how many of them stay; the last ones go first. Ratios that give
    the same width are one option, and the ratio of a group that lies only in blocks that went is dead.

    Args:
        problem: its input shape is the network's; its outputs are not looked at.
        model: `module:function` that makes the network.
        arguments: given to that function by name.
        checkpoint: its trained weights, which candidates inherit; without it candidates are freshly initialised.
        ratios: shares of a group that may stay, above 0 and up to 1; 1 is always among them.
        round_to: widths become the nearest multiples of this many channels.
        structures: of which channels, mlp, heads and head_width are cut.
        only, leave: patterns of groups that are cut, and of groups that stay whole.
        depth: whether residual blocks may go.
        scores: by group, the importance of every atom; default: see `group_norms`.

    Attributes:
        base: the network, in eval mode.
        groups: those that are cut.
        stages: by choice of depth, the removable blocks in their order.
        orders: by group, its atoms, the most important first.
        channels: the network's channel graph.

    Raises:
        NasplatError: no such function, a checkpoint that does not fit, a ratio out of range, a pattern or a score that
            fits no group, or a network whose cost has no closed form.
    """

    def __init__(
        self,
        problem: Problem,
        *,
        model: str,
        arguments: Mapping[str, Any] | None = None,
        checkpoint: str | None = None,
        ratios: Sequence[float] = RATIOS,
        round_to: int = 1,
        structures: Sequence[str] = STRUCTURES,
        only: Sequence[str] = (),
        leave: Sequence[str] = (),
        depth: bool = True,
        scores: Mapping[str, Sequence[float]] | None = None,
    ) -> None:
        import torch

        from nasplat.networks.channel_tracer import trace_channels
        from nasplat.networks.residual_blocks import residual_blocks
        from nasplat.networks.user_model import make_model

        self.problem = problem
        grid = sorted({1.0, *map(float, ratios)}, reverse=True)
        if not 0 < grid[-1] <= grid[0] <= 1:
            raise NasplatError(f"ratios must lie above 0 and up to 1, and are {list(ratios)}")
        if round_to < 1:
            raise NasplatError(f"round_to is {round_to}", "widths are multiples of at least 1")
        self._model, self._arguments, self._inherits = model, dict(arguments or {}), checkpoint is not None
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.base = make_model(model, self._arguments).eval()
        if checkpoint is not None:
            from nasplat.artifacts.foreign_checkpoint import load_checkpoint

            load_checkpoint(self.base, Path(checkpoint))
        inputs = (torch.zeros(1, *problem.input_shape),)
        self.channels: ChannelGraph = trace_channels(self.base, inputs)
        self.groups = chosen_groups(self.channels, structures, only, leave)
        self.stages = _stages([block.name for block in residual_blocks(self.base, inputs)]) if depth else {}
        self.orders = _orders(self.channels, self.groups, self.base, scores)
        self._widths = {f"{group.name}.ratio": _widths(group, grid, round_to) for group in self.groups}
        self.choices = {
            **{name: Choice(name, tuple(grid), ordered=True) for name in self._widths},
            **{
                name: Choice(name, tuple(range(len(blocks), -1, -1)), ordered=True)
                for name, blocks in self.stages.items()
            },
        }
        weights = None if checkpoint is None else hashlib.sha256(Path(checkpoint).read_bytes()).hexdigest()
        self.identity = {
            "family": "pruning",
            "model": model,
            "arguments": self._arguments,
            "checkpoint": weights,
            "ratios": grid,
            "round_to": round_to,
            "groups": [[group.name, group.size] for group in self.groups],
            "stages": {name: list(blocks) for name, blocks in self.stages.items()},
            "scores": None if scores is None else fingerprint({k: list(map(float, v)) for k, v in scores.items()}),
            "problem": problem.to_json(),
        }
        blocks = [block for stage in self.stages.values() for block in stage]
        self._whole = WidthCost(self.channels)
        self._of_block = {block: WidthCost(_part(self.channels, [block], inside=True)) for block in blocks}
        self._column = {f"{name}.ratio": place for place, name in enumerate(self._whole.groups)}
        self._home = {f"{group.name}.ratio": _home(group, blocks) for group in self.groups}

    def settle(self, values: Values) -> Values:
        gone = set(self.removed(values))
        settled = dict(values)
        for name, widths in self._widths.items():
            home = self._home[name]
            if home and home <= gone:
                settled[name] = self.choices[name].default
            else:
                settled[name] = next(r for r, width in widths.items() if width == widths[float(values[name])])
        return settled

    def removed(self, values: Values) -> tuple[str, ...]:
        """The residual blocks that go."""
        return tuple(block for name, blocks in self.stages.items() for block in blocks[int(values[name]) :])

    def macs_of_block(self, block: str) -> WidthCost:
        """What a removable block costs, from the widths of all groups."""
        return self._of_block[block]

    def widths(self, values: Values) -> dict[str, int]:
        """By group, how many of its atoms stay."""
        return {group.name: self._widths[name][float(values[name])] for name, group in self._named()}

    def with_widths(self, widths: Mapping[str, int]) -> Architecture:
        """The architecture whose groups have the largest widths that are not above these; others stay whole."""
        values = {}
        for name, group in self._named():
            options = self._widths[name]
            wanted = widths.get(group.name, group.size)
            values[name] = next((ratio for ratio, width in options.items() if width <= wanted), min(options))
        return self.canonical(values)

    def keep(self, values: Values) -> dict[str, list[int]]:
        """By group that loses something, the atoms that stay, ascending: the most important ones."""
        return {
            group.name: sorted(self.orders[group.name][:width].tolist())
            for (_, group), width in zip(self._named(), self.widths(values).values(), strict=True)
            if width < group.size
        }

    def costs(self, candidates: Sequence[Values]) -> tuple[np.ndarray, np.ndarray]:
        """Multiply-accumulates and parameters of many candidates at once, `(candidates,)` each; nothing is built."""
        kept = np.tile(self._whole.sizes, (len(candidates), 1))
        for name, widths in self._widths.items():
            kept[:, self._column[name]] = [widths[float(values[name])] for values in candidates]
        macs, params = self._whole.cost(kept)
        for name, blocks in self.stages.items():
            depths = np.array([int(values[name]) for values in candidates])
            for place, block in enumerate(blocks):
                gone = np.flatnonzero(depths <= place)
                if len(gone):
                    fewer, less = self._of_block[block].cost(kept[gone])
                    macs[gone] -= fewer
                    params[gone] -= less
        return macs, params

    def known(self, architecture: Architecture) -> Mapping[str, float]:
        macs, params = self.costs([architecture.values])
        return {"macs": float(macs[0]), "params": float(params[0])}

    @cached_property
    def whole(self) -> Mapping[str, float]:
        """What the original costs; constraints may be shares of it."""
        return self.known(self.canonical({}))

    def cost(self, architecture: Architecture) -> Cost:
        """As the others; the peak of the activations is counted on a copy without data, which `known` does without."""
        from nasplat.networks.counter import copy_to, count

        return count(self._cut(copy_to(self.base, "meta"), architecture.values), self.problem.input_shape).cost

    def graph(self, architecture: Architecture) -> OperationGraph:
        from nasplat.networks.counter import copy_to
        from nasplat.spaces.recording import record

        return record(self._cut(copy_to(self.base, "meta"), architecture.values), self.problem)

    def drawings(self, architecture: Architecture) -> Mapping[str, Picture]:
        """What is left of each group of channels, and of the blocks of each stage."""
        widths = self.widths(architecture.values)
        channels = Bars(tuple(Bar(group.name, group.size, widths[group.name]) for group in self.groups), "channels")
        blocks = tuple(
            Bar(name.removesuffix(".depth"), len(blocks), int(architecture.values[name]))
            for name, blocks in self.stages.items()
        )
        return {"channels": channels, **({"blocks from": Bars(blocks, "blocks")} if blocks else {})}

    def build(self, architecture: Architecture) -> nn.Module:
        """The network with its channels cut: trained weights where a checkpoint was given, fresh ones otherwise."""
        from nasplat.networks.user_model import make_model

        whole = self.base if self._inherits else make_model(self._model, self._arguments)
        return self._cut(whole, architecture.values).train()

    def original(self, architecture: Architecture) -> tuple[nn.Module, Mapping[str, Sequence[int]]] | None:
        from nasplat.networks.surgery import kept_channels

        if not self._inherits:
            return None
        # A copy, for whoever moves it to another device or trains it.
        return copy.deepcopy(self.base), kept_channels(self.base, [self._surgery(self.base, architecture.values)])

    def operations(self, architecture: Architecture) -> list[tuple[str, ...] | Surgery]:
        """What is done to the network: whole blocks by their names, then channels."""
        gone = self.removed(architecture.values)
        return [*([gone] if gone else []), self._surgery(self.base, architecture.values)]

    def recipe(self, architecture: Architecture, network: nn.Module) -> Recipe:
        """How the network of an architecture is made from its original, without nasplat."""
        from nasplat.networks.rebuild import make_recipe

        operations = self.operations(architecture)
        return make_recipe(self.base, network, operations, self.problem.input_shape, self._model, self._arguments)

    def _surgery(self, model: nn.Module, values: Values) -> Surgery:
        from nasplat.networks.rebuild import without_blocks
        from nasplat.networks.surgery import plan

        gone = self.removed(values)
        return plan(without_blocks(model, gone), _part(self.channels, gone, inside=False), self.keep(values))

    def _named(self) -> list[tuple[str, Group]]:
        return list(zip(self._widths, self.groups, strict=True))

    def _cut(self, model: nn.Module, values: Values) -> nn.Module:
        from nasplat.networks.rebuild import without_blocks
        from nasplat.networks.surgery import operate

        return operate(without_blocks(model, self.removed(values)), self._surgery(model, values))[0]


def _within(name: str, blocks: Sequence[str]) -> bool:
    return any(name == block or name.startswith(f"{block}.") for block in blocks)


def _part(graph: ChannelGraph, blocks: Sequence[str], inside: bool) -> ChannelGraph:
    """What of a graph lies inside some blocks, or outside of them all."""
    return replace(
        graph,
        tensors={name: axes for name, axes in graph.tensors.items() if _within(name, blocks) == inside},
        products=tuple(one for one in graph.products if _within(one.name, blocks) == inside),
        attributes=tuple(one for one in graph.attributes if _within(one.module, blocks) == inside),
        scales=tuple(one for one in graph.scales if _within(one.tensors[0], blocks) == inside),
        unread_params=0 if inside else graph.unread_params,
    )


def _stages(blocks: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Blocks that follow each other directly, such as features.5 and features.6; the name is of the first."""
    stages: list[list[str]] = []
    for block in blocks:
        parent, _, number = block.rpartition(".")
        follows = number.isdecimal() and stages and stages[-1][-1] == f"{parent}.{int(number) - 1}".lstrip(".")
        if follows:
            stages[-1].append(block)
        else:
            stages.append([block])
    return {f"{stage[0]}.depth": tuple(stage) for stage in stages}


def _home(group: Group, blocks: Sequence[str]) -> set[str]:
    """The removable blocks that hold a group; none where some of it lies elsewhere."""
    found = [[block for block in blocks if _within(member.tensor, [block])] for member in group.members]
    return {one[0] for one in found} if all(found) else set()


def _widths(group: Group, ratios: Sequence[float], round_to: int) -> dict[float, int]:
    """By ratio, how many atoms stay: the nearest multiple, at least one step, at most all."""
    step = max(1, round_to // gcd(round_to, group.unit))
    return {
        ratio: group.size if ratio == 1 else min(group.size, max(step, int(ratio * group.size / step + 0.5) * step))
        for ratio in ratios
    }


def _orders(
    graph: ChannelGraph, groups: Sequence[Group], model: nn.Module, scores: Mapping[str, Sequence[float]] | None
) -> dict[str, np.ndarray]:
    """By group, its atoms, the most important first."""
    given = scores or {}
    for name, own in given.items():
        if len(own) != graph.group(name).size:
            raise NasplatError(f"group {name!r} has {graph.group(name).size} atoms and {len(own)} scores")
    found = {}
    for group in groups:
        values = np.array(given[group.name]) if group.name in given else group_norms(group, model)
        found[group.name] = np.argsort(-values, kind="stable")
    return found


def group_norms(group: Group, model: nn.Module) -> np.ndarray:
    """Squared norms of all weights that an atom has, by tensor over the tensor's mean, summed `(atoms,)`.

    Fang et al., DepGraph, 2023; as the criterion `group_norm` of `nasplat prune`.
    """
    state = dict(model.state_dict())
    total = np.zeros(group.size)
    for member in group.members:
        rows = state[member.tensor].detach().double().cpu().movedim(member.dim, 0)
        if rows.numel() > len(rows):  # scales and shifts have no voice beside filters
            squares = rows.flatten(1).square().sum(1).numpy()[member.indices].sum(1)
            total += squares / squares.mean() if squares.any() else 0.0
    return total
