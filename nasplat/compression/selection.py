"""Which channels go, so that a budget is met: a ranking, and the point of it where the cost fits. No torch, no data."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import permutations
from math import ceil, gcd
from typing import Literal

import numpy as np

from nasplat.core.channel_cost import WidthCost, graph_cost
from nasplat.core.channel_graph import ChannelGraph, Group
from nasplat.core.errors import NasplatError

Scope = Literal["global", "local", "block"]
CLOSE = 0.99  # a budget counts as met from this share of it on
_TRIES = 8
Counts = np.ndarray  # by group, how many of its atoms stay: integers (groups,)


@dataclass(frozen=True, slots=True)
class Selection:
    """What stays, and what that costs.

    Args:
        keep: by group, the atoms that stay, ascending; groups that stay whole are left out.
        macs, params: of the network that is left.
        met: whether the cost is within 1 % of the tightest limit; otherwise no choice of widths comes nearer.
    """

    keep: Mapping[str, tuple[int, ...]]
    macs: int
    params: int
    met: bool


def select(
    graph: ChannelGraph,
    scores: Mapping[str, np.ndarray],
    limits: Mapping[str, float],
    *,
    scope: Scope = "global",
    round_to: int = 1,
    least: Mapping[str, float] | None = None,
) -> Selection:
    """Removes the least important atoms until all limits hold, then gives back what still fits, the best first.

    Args:
        graph: of the network.
        scores: by group, the importance of every atom, `(atoms,)`; groups that are not named stay whole.
        limits: the most that `macs` and `params` may be, absolute.
        scope: see `nasplat.core.pruning.Importance`.
        round_to: widths of groups become the nearest multiples of this many channels.
        least: by group, how many atoms always stay; 1 where none is said.

    Raises:
        NasplatError: the limits cannot be met; it names the smallest that can be reached.
    """
    groups = [graph.group(name) for name in scores]
    orders = [np.argsort(-np.asarray(scores[group.name]), kind="stable") for group in groups]
    sizes = np.array([group.size for group in groups])
    steps = np.array([max(1, round_to // gcd(round_to, group.unit)) for group in groups])
    asked = np.array([(least or {}).get(group.name, 1.0) for group in groups])
    lowest = _rounded(np.clip(np.ceil(asked - 1e-9), 1, sizes), steps, sizes)
    cost = _cost_of(graph, groups, orders)

    def excess(counts: Counts) -> float:
        """Of the tightest limit: at most 1 where all hold."""
        found = dict(zip(("macs", "params"), cost(counts), strict=True))
        return max(found[name] / limit for name, limit in limits.items())

    sequence = _removal_order([np.asarray(scores[group.name], dtype=float) for group in groups], groups, scope)

    def after(removed: int) -> Counts:
        gone = np.bincount(sequence[:removed], minlength=len(groups))
        return np.maximum(_rounded(sizes - gone, steps, sizes), lowest)

    low, high = 0, len(sequence)
    if excess(after(high)) > 1:
        raise _unreachable(graph, limits, cost(after(high)), round_to)
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if excess(after(middle)) <= 1 else (middle + 1, high)
    counts = _filled(after(low), sequence[:low][::-1], steps, sizes, excess)
    if low and excess(counts) < CLOSE:
        counts = _swapped(counts, steps, lowest, sizes, excess)
    macs, params = cost(counts)
    keep = {
        group.name: tuple(sorted(order[:count].tolist()))
        for group, order, count, size in zip(groups, orders, counts, sizes, strict=True)
        if count < size
    }
    return Selection(keep, macs, params, met=excess(counts) >= CLOSE or not keep)


def largest_fast_enough(
    choose: Callable[[float], Selection], time_of: Callable[[Selection], float], aim: float, most: float = 1.0
) -> Selection:
    """The largest network, by its share of MACs, whose measured time is low enough: by halving the interval.

    Args:
        choose: a selection for a share of the MACs; raises NasplatError where that is too little.
        time_of: of the network of a selection, as a share of the original's time.
        aim: the most that this may be.
        most: the largest share to try.

    Raises:
        NasplatError: none that was measured is fast enough.
    """
    found: Selection | None = None
    best = float("inf")
    low, high, share = 0.0, most, most
    for _ in range(_TRIES):
        try:
            selection = choose(share)
        except NasplatError:
            low = share  # so small a network there is not
        else:
            time = time_of(selection)
            best = min(best, time)
            if time <= aim:
                found, low = selection, share
            else:
                high = share
        if high - low < 0.02:
            break
        share = (low + high) / 2
    if found is None:
        raise NasplatError(
            f"the network cannot be made as fast as {aim:.0%} of the original: the fastest that was measured takes "
            f"{best:.0%} of its time",
            "lower budget.least, remove blocks (`blocks`), or measure at a larger budget.latency_batch",
        )
    return found


def _rounded(counts: np.ndarray, steps: np.ndarray, sizes: np.ndarray) -> Counts:
    """To the nearest multiple; a group whose size is no multiple may also stay whole."""
    nearest = np.maximum(steps, np.rint(counts / steps) * steps)
    return np.where(counts >= sizes, sizes, np.minimum(nearest, sizes)).astype(np.int64)


def _removal_order(scores: Sequence[np.ndarray], groups: Sequence[Group], scope: Scope) -> np.ndarray:
    """Numbers of groups: which loses its least important atom first, which next."""
    number = np.repeat(np.arange(len(groups)), [len(one) for one in scores])
    if scope == "global":
        keys = np.concatenate([np.sort(one) for one in scores])
    else:
        # The least of each part first, then the second least, …, each at its share of the part.
        blocks = list(dict.fromkeys(block_of(group.name) for group in groups))
        part = [blocks.index(block_of(group.name)) if scope == "block" else place for place, group in enumerate(groups)]
        of_atom = np.array(part)[number]
        values = np.concatenate([np.sort(one) for one in scores])
        keys = np.empty(len(values))
        for one in set(part):
            mine = np.flatnonzero(of_atom == one)
            keys[mine[np.argsort(values[mine], kind="stable")]] = (np.arange(len(mine)) + 0.5) / len(mine)
    return number[np.argsort(keys, kind="stable")]


def block_of(name: str) -> str:
    """The block of layers that a group belongs to: all of its module path up to the first number, that included.

    `layer3.1.conv2` is of block `layer3`, whose number is part of the word; `features.7.block.0` of `features.7`.
    """
    parts = name.split(".")
    for place, part in enumerate(parts):
        if any(letter.isdigit() for letter in part):
            return ".".join(parts[: place + 1])
    return parts[0]


def _filled(
    counts: Counts,
    removed: np.ndarray,
    steps: np.ndarray,
    sizes: np.ndarray,
    excess: Callable[[Counts], float],
) -> Counts:
    """Gives back atoms as long as the limits hold: one removal is coarser than what is left of the budget."""
    order: list[int] = list(dict.fromkeys(removed.tolist()))
    closed: set[int] = set()
    while len(closed) < len(order):
        for group in order:
            if group in closed:
                continue
            more = counts.copy()
            more[group] = min(sizes[group], more[group] + steps[group])
            if more[group] == counts[group] or excess(more) > 1:
                closed.add(group)
            else:
                counts = more
    return counts


def _swapped(
    counts: Counts, steps: np.ndarray, lowest: Counts, sizes: np.ndarray, excess: Callable[[Counts], float]
) -> Counts:
    """Gives one group a step for a step of another, as long as that leads nearer to the budget."""
    best = excess(counts)
    while best < CLOSE:
        found = None
        for more, less in permutations(range(len(counts)), 2):
            other = counts.copy()
            other[more] = min(sizes[more], other[more] + steps[more])
            other[less] -= steps[less]
            if other[more] > counts[more] and other[less] >= lowest[less] and best < (now := excess(other)) <= 1:
                found, best = other, now
        if found is None:
            break
        counts = found
    return counts


def _cost_of(
    graph: ChannelGraph, groups: Sequence[Group], orders: Sequence[np.ndarray]
) -> Callable[[Counts], tuple[int, int]]:
    try:
        closed_form = WidthCost(graph)
    except NasplatError:
        if graph.uncounted:
            raise

        def counted(counts: Counts) -> tuple[int, int]:  # the cost depends on which atoms these are
            pairs = zip(groups, orders, counts, strict=True)
            return graph_cost(graph, {group.name: order[:count] for group, order, count in pairs})

        return counted
    columns = [closed_form.groups.index(group.name) for group in groups]

    def computed(counts: Counts) -> tuple[int, int]:
        whole = closed_form.sizes.copy()
        whole[columns] = counts
        macs, params = closed_form.cost(whole)
        return int(macs), int(params)

    return computed


def _unreachable(
    graph: ChannelGraph, limits: Mapping[str, float], smallest: tuple[int, int], round_to: int
) -> NasplatError:
    whole = dict(zip(("macs", "params"), graph_cost(graph, {}), strict=True))
    reached = dict(zip(("macs", "params"), smallest, strict=True))
    words = [
        f"{name} of {limit:,.0f} ({limit / whole[name]:.1%}), and the least is {reached[name]:,} "
        f"({ceil(1000 * reached[name] / whole[name]) / 10:.1f}%)"
        for name, limit in limits.items()
        if reached[name] > limit
    ]
    return NasplatError(
        f"the budget cannot be met: it asks for {'; '.join(words)}",
        f"a share of every group stays (budget.least), in multiples of {round_to} (budget.round_to); lower these, "
        "allow more structures, or ask for less",
    )
