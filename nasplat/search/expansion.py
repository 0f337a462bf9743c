"""Progressive expansion of a small network, one axis at a time (Feichtenhofer, X3D, 2020)."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from math import log, sqrt
from typing import Annotated, Literal
from weakref import WeakKeyDictionary

import numpy as np
from pydantic import Field

from nasplat.core.architecture import Architecture
from nasplat.core.choice import Option
from nasplat.core.cost import COSTS
from nasplat.core.errors import NasplatError
from nasplat.core.front import Goal, losses
from nasplat.core.space import SearchSpace
from nasplat.search.history import History, Proposal
from nasplat.search.local_search import local_search
from nasplat.search.options import Positive
from nasplat.search.suggestion import Strategy, Suggestion

FINEST = 1.05


def expansion(
    growth: Annotated[float, Field(gt=FINEST)] = 2.0,
    cost: Literal["macs", "params"] = "macs",
    target: Positive | None = None,
) -> Strategy:
    """From the cheapest network upwards: of all axes, the one is grown that pays most at equal cost.

    An axis is all choices whose names are equal without their digits: the widths of all stages, the operations of all
    layers. A step makes for every axis the network whose cost is nearest to `growth` times the present one, by growing
    that axis alone, and goes on with the best of them on the first goal that is no cost. Just beyond `target` the axis
    that was grown last is shrunk again until it is met. When a path has ended another one begins with finer steps (the
    square root), and after the finest the search goes on around the best.

    The options of an unordered choice are taken in the order of what they cost.

    Args:
        growth: factor of the cost from step to step.
        cost: `macs` or `params`.
        target: where a path ends; None: where nothing can grow.
    """
    around = local_search(startup=1)
    shapes: WeakKeyDictionary[SearchSpace, Axes] = WeakKeyDictionary()

    def propose(history: History, space: SearchSpace, goals: Sequence[Goal], rng: np.random.Generator, /) -> Suggestion:
        axes = shapes.setdefault(space, Axes(space, cost))
        goal = next((goal for goal in goals if goal.metric not in COSTS), goals[0])
        step = growth
        while step > FINEST:
            for architecture, why in path(axes, history, goal, step, target):
                if architecture is None:
                    break  # it waits for what is running
                return Suggestion(architecture.values, why=why)
            step = sqrt(step)
        suggestion = around(history, space, goals, rng)
        assert isinstance(suggestion, Suggestion)
        return suggestion

    return propose


class Axes:
    """The axes of a space, and networks along them; each is worked out once."""

    def __init__(self, space: SearchSpace, cost: str) -> None:
        self.space = space
        self._cost = cost
        self.names: dict[str, list[str]] = {}
        for name, choice in space.choices.items():
            if len(choice.options) > 1:
                self.names.setdefault(re.sub(r"\d+", "", name), []).append(name)
        self._grown: dict[tuple[str, str, float], Architecture | None] = {}
        self._costs: dict[str, float] = {}
        self._start: Architecture | None = None

    def cost(self, architecture: Architecture) -> float:
        if architecture.digest not in self._costs:
            known = self.space.known(architecture)
            if self._cost not in known:
                raise NasplatError(
                    f"expansion goes by {self._cost}, which nothing tells of a candidate before training",
                    f"say which cost: search.options.cost; known are {', '.join(known) or 'none'}",
                )
            self._costs[architecture.digest] = known[self._cost]
        return self._costs[architecture.digest]

    def start(self) -> Architecture:
        """The cheapest network that choosing one choice after the other finds."""
        if self._start is None:
            here = self.space.canonical({})
            for _ in range(2):  # what is cheapest may depend on what comes after
                for name in self.space.choices:
                    here = min((self._with(here, name, one) for one in self.space.choices[name].options), key=self.cost)
            self._start = here
        return self._start

    def grown(self, here: Architecture, axis: str, wanted: float) -> Architecture | None:
        """The network nearest to a cost that growing one axis reaches; None where it cannot grow."""
        key = (here.digest, axis, wanted)
        if key not in self._grown:
            reached = list(self.steps(here, axis, wanted))
            self._grown[key] = min(reached, key=lambda one: abs(log(self.cost(one) / wanted)), default=None)
        return self._grown[key]

    def steps(self, here: Architecture, axis: str, wanted: float) -> Iterator[Architecture]:
        """One option up at a time, always the choice that has grown least, until the cost is beyond what is wanted."""
        orders = {name: self._order(here, name) for name in self.names[axis]}
        places = {name: order.index(here.values[name]) for name, order in orders.items()}
        walker, values = here, dict(here.values)
        while self.cost(walker) < wanted:
            open_ = [name for name, order in orders.items() if places[name] + 1 < len(order)]
            if not open_:
                return
            name = min(open_, key=lambda one: places[one] / (len(orders[one]) - 1))
            places[name] += 1
            values[name] = orders[name][places[name]]
            walker = self.space.canonical(values)
            if self.cost(walker) > self.cost(here):
                yield walker

    def _order(self, here: Architecture, name: str) -> list[Option]:
        choice = self.space.choices[name]
        costs = {option: self.cost(self._with(here, name, option)) for option in choice.options}
        if choice.ordered:
            up = costs[choice.options[-1]] >= costs[choice.options[0]]
            return list(choice.options if up else choice.options[::-1])
        return sorted(choice.options, key=lambda option: costs[option])

    def _with(self, here: Architecture, name: str, option: Option) -> Architecture:
        return self.space.canonical({**here.values, name: option})


def path(
    axes: Axes, history: History, goal: Goal, growth: float, target: float | None
) -> Iterator[tuple[Architecture | None, str]]:
    """What is next on the way from the cheapest network, replayed from the history.

    Yields:
        an architecture and why, or None where the way waits for results; nothing where it has ended.
    """
    here, last = axes.start(), ""
    if here.digest not in history.by_digest:
        yield here, "the cheapest network, from which the others grow"
        return
    while target is None or axes.cost(here) < target:
        wanted = growth * axes.cost(here)
        variants = {axis: grown for axis in axes.names if (grown := axes.grown(here, axis, wanted)) is not None}
        for axis, variant in variants.items():
            if variant.digest not in history.by_digest:
                times = axes.cost(variant) / axes.cost(here)
                yield variant, f"grows {axis}: {times:.1f} times the cost of {here.digest[:8]}"
                return
        answers = {axis: history.by_digest[variant.digest] for axis, variant in variants.items()}
        if any(one.state == "running" for one in answers.values()):
            yield None, ""
            return
        good = {axis: one for axis, one in answers.items() if one.state == "complete"}
        if not good:
            return
        last = min(good, key=lambda axis: (_loss(good[axis], goal), axis))
        here = variants[last]
    if last and axes.cost(here) > target:
        smaller = _contracted(axes, here, last, target)
        if smaller is not None and smaller.digest not in history.by_digest:
            yield smaller, f"shrinks {last} to meet the target"


def _loss(proposal: Proposal, goal: Goal) -> float:
    return float(losses([proposal.metrics], [goal])[0, 0])


def _contracted(axes: Axes, here: Architecture, axis: str, target: float) -> Architecture | None:
    """The largest network within the target that shrinking one axis reaches."""
    values = dict(here.values)
    for name in axes.names[axis]:
        values[name] = axes.start().values[name]
    low = axes.space.canonical(values)
    if axes.cost(low) > target:
        return None
    within = [one for one in axes.steps(low, axis, target) if axes.cost(one) <= target]
    return max(within, key=axes.cost, default=low)
