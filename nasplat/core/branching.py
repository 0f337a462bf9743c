"""Branching trees: which tasks share a branch of a network, layer by layer. Pure combinatorics, exact.

A partition of tasks 0..T-1 is written as a tuple: for each task the first task of its branch. A tree is one partition
a layer, each refining the one before: branches split and never join (Bruggemann et al., Automated Search for
Resource-Efficient Branched Multi-Task Networks, 2020). Before the first layer all tasks are together (the image);
after the last every task is alone (its head).

There are `bell(T) ** L` ways to choose a partition for each of L layers, and fewer trees: 7,311,616 and 3,455 for five
tasks and four layers.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import combinations, pairwise
from math import comb
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

Partition = tuple[int, ...]
Tree = tuple[Partition, ...]


@dataclass(frozen=True, slots=True)
class Part:
    """What one copy of a layer, or a head, costs: multiply-accumulates and parameters. A head's name is its task."""

    name: str
    macs: int
    params: int


@dataclass(frozen=True, slots=True)
class CostedTree:
    """A tree with what its parts cost, drawn by `nasplat.artifacts.tree_picture`.

    Args:
        tree: for each layer the partition of the tasks.
        layers: from the first to the last, the cost of one branch.
        heads: one a task, in order.
    """

    tree: Tree
    layers: tuple[Part, ...]
    heads: tuple[Part, ...]


MOST_SPLITS = 8  # a branch of more children is split one child against the rest only, not in all 2^(children-1)-1 ways


def partition_of(labels: Sequence[Hashable]) -> Partition:
    """The partition in which tasks of equal labels are together; branches are named by their first task."""
    first: dict[Hashable, int] = {}
    return tuple(first.setdefault(label, task) for task, label in enumerate(labels))


def followed(leaders: Sequence[int]) -> Partition:
    """The partition in which every task goes where the task goes that it follows: itself, or one before it."""
    found: list[int] = []
    for task, leader in enumerate(leaders):
        found.append(task if leader == task else found[leader])
    return tuple(found)


def together(tasks: int) -> Partition:
    """All tasks in one branch."""
    return (0,) * tasks


def alone(tasks: int) -> Partition:
    """Every task in a branch of its own."""
    return tuple(range(tasks))


def branches(partition: Partition) -> dict[int, tuple[int, ...]]:
    """By the name of each branch, its tasks; both ascending."""
    found: dict[int, list[int]] = {}
    for task, branch in enumerate(partition):
        found.setdefault(branch, []).append(task)
    return {branch: tuple(tasks) for branch, tasks in found.items()}


def meet(first: Partition, second: Partition) -> Partition:
    """The coarsest partition that refines both: tasks are together where they are so in both."""
    return partition_of(list(zip(first, second, strict=True)))


def join(first: Partition, second: Partition) -> Partition:
    """The finest partition that both refine: whatever either has together is together."""
    labels = list(first)
    for tasks in branches(second).values():
        into = labels[tasks[0]]
        old = {labels[task] for task in tasks}
        labels = [into if label in old else label for label in labels]
    return partition_of(labels)


def refines(fine: Partition, coarse: Partition) -> bool:
    """Whether tasks that are together in the first are together in the second."""
    return all(coarse[task] == coarse[branch] for task, branch in enumerate(fine))


def tree_of(layers: Sequence[Sequence[Hashable]]) -> Tree:
    """The tree that any choice of branches stands for: tasks that parted in one layer stay apart in all that follow.

    Args:
        layers: for each layer a label for each task; equal labels mean one branch, whatever they are.
    """
    tree: list[Partition] = []
    for labels in layers:
        partition = partition_of(labels)
        tree.append(meet(tree[-1], partition) if tree else partition)
    return tuple(tree)


def tree_from_heads(layers: Sequence[Partition]) -> Tree:
    """The other reading, from the heads down: tasks that are together in one layer are together in all before it."""
    tree: list[Partition] = []
    for partition in reversed(layers):
        tree.append(join(tree[-1], partition) if tree else partition)
    return tuple(reversed(tree))


def is_tree(tree: Tree) -> bool:
    """Whether every layer refines the one before, with branches named by their first tasks."""
    named = all(partition_of(partition) == partition for partition in tree)
    return named and all(refines(fine, coarse) for coarse, fine in pairwise(tree))


def restrict(tree: Tree, tasks: Sequence[int]) -> Tree:
    """The tree of some of the tasks, renumbered in the given order."""
    return tuple(partition_of([partition[task] for task in tasks]) for partition in tree)


def bell(tasks: int) -> int:
    """The number of partitions of so many tasks."""
    return count_trees(tasks, 1)


@cache
def count_trees(tasks: int, layers: int) -> int:
    """The number of distinct trees.

    The first task's branch in the first layer has some number of tasks; what follows it there is a tree of one layer
    less, and the other tasks are a tree of their own.
    """
    if layers == 0 or tasks == 0:
        return 1
    return sum(_with_first(tasks, layers, size) for size in range(1, tasks + 1))


def _with_first(tasks: int, layers: int, size: int) -> int:
    """How many trees have so many tasks in the first task's branch of the first layer."""
    return comb(tasks - 1, size - 1) * count_trees(size, layers - 1) * count_trees(tasks - size, layers)


def all_trees(tasks: int, layers: int) -> Iterator[Tree]:
    """Every tree once, all shared first, all separate last. There are `count_trees(tasks, layers)` of them."""

    def grow(tree: Tree) -> Iterator[Tree]:
        if len(tree) == layers:
            yield tree
            return
        for partition in refinements(tree[-1] if tree else together(tasks)):
            yield from grow((*tree, partition))

    return grow(())


def refinements(coarse: Partition) -> Iterator[Partition]:
    """Every partition that refines one, once, that one itself first."""

    def grow(partition: Partition) -> Iterator[Partition]:
        task = len(partition)
        if task == len(coarse):
            yield partition
            return
        for branch in sorted({branch for branch in partition if coarse[branch] == coarse[task]}):
            yield from grow((*partition, branch))
        yield from grow((*partition, task))

    return grow(())


def sample_tree(tasks: int, layers: int, rng: np.random.Generator) -> Tree:
    """A tree drawn uniformly from all of them, by their exact number."""
    tree = [list(alone(tasks)) for _ in range(layers)]

    def draw(members: list[int], layer: int) -> None:
        while members and layer < layers:
            first, *others = members
            left = _below(rng, count_trees(len(members), layers - layer))
            size = 1
            while left >= (ways := _with_first(len(members), layers - layer, size)):
                left -= ways
                size += 1
            branch = [first]
            for place, task in enumerate(others):  # each of the equally likely sets of the others, one task at a time
                if _below(rng, len(others) - place) < size - len(branch):
                    branch.append(task)
            for task in branch:
                tree[layer][task] = first
            draw(branch, layer + 1)
            members = [task for task in others if task not in branch]

    draw(list(range(tasks)), 0)
    return tuple(tuple(partition) for partition in tree)


def _below(rng: np.random.Generator, bound: int) -> int:
    """A whole number from 0 to below the bound, however large that is: counts of trees outgrow 64 bits."""
    bits = (bound - 1).bit_length()
    while True:
        number = int.from_bytes(rng.bytes((bits + 7) // 8), "little") >> (-bits % 8)
        if number < bound:
            return number


def splits(tree: Tree) -> list[Tree]:
    """All trees in which one branch of one layer is two instead.

    The branches of the next layer that it led to are divided among the two, in every way where they are at most
    `MOST_SPLITS`, and one against the rest otherwise.
    """
    found = []
    for layer, partition, after in _with_next(tree):
        for branch, tasks in branches(partition).items():
            children = sorted({after[task] for task in tasks})
            for away in _halves(children):
                labels = [(own, own == branch and after[task] in away) for task, own in enumerate(partition)]
                found.append(_replaced(tree, layer, partition_of(labels)))
    return found


def merges(tree: Tree) -> list[Tree]:
    """All trees in which two branches of one layer that come from the same branch are one."""
    found = []
    for layer, partition, _ in _with_next(tree):
        before = tree[layer - 1] if layer else together(len(partition))
        for first, second in combinations(branches(partition), 2):
            if before[first] == before[second]:
                merged = tuple(first if branch == second else branch for branch in partition)
                found.append(_replaced(tree, layer, merged))
    return found


def shifts(tree: Tree) -> list[Tree]:
    """All trees in which one branching point, with all branches that leave it, lies a layer earlier or later.

    It moves where no other branching point is in its way; the image is before the first layer, the heads after all.
    """
    found = []
    for layer, partition, after in _with_next(tree):
        before = tree[layer - 1] if layer else together(len(partition))
        for branch, tasks in branches(before).items():
            own, next_ones = {partition[task] for task in tasks}, {after[task] for task in tasks}
            if own == next_ones and len(own) > 1:  # it branches here, and not again after: later
                changed = tuple(branch if task in tasks else one for task, one in enumerate(partition))
                found.append(_replaced(tree, layer, changed))
            elif len(own) == 1 < len(next_ones):  # it goes straight through here, and branches after: earlier
                changed = tuple(after[task] if task in tasks else one for task, one in enumerate(partition))
                found.append(_replaced(tree, layer, changed))
    return found


MOVES: dict[str, Callable[[Tree], list[Tree]]] = {"split": splits, "merge": merges, "shift": shifts}


def neighbours(tree: Tree) -> list[Tree]:
    """All trees that one split, merge or shift reaches, each once, in a fixed order."""
    return list(dict.fromkeys(found for move in MOVES.values() for found in move(tree)))


def mutate(tree: Tree, rng: np.random.Generator) -> Tree | None:
    """A random neighbour: a kind of move that is possible, and one such move, each uniformly. None for one task."""
    possible = [found for move in MOVES.values() if (found := move(tree))]
    if not possible:
        return None
    moves = possible[int(rng.integers(len(possible)))]
    return moves[int(rng.integers(len(moves)))]


def crossover(first: Tree, second: Tree, rng: np.random.Generator) -> Tree:
    """Each layer from one of the two parents, by a fair coin, made a tree.

    Partitions that do not follow from each other are settled by a fair coin too, from the image up or from the heads
    down, so that children do not drift towards more branches or fewer.
    """
    layers = [pair[int(rng.integers(2))] for pair in zip(first, second, strict=True)]
    return tree_of(layers) if rng.integers(2) else tree_from_heads(layers)


def distance(first: Tree, second: Tree) -> int:
    """How many pairs of tasks, summed over the layers, share in one tree and not in the other: a metric."""
    pairs = list(combinations(range(len(first[0])), 2))
    return sum(
        (one[a] == one[b]) != (two[a] == two[b]) for one, two in zip(first, second, strict=True) for a, b in pairs
    )


def _with_next(tree: Tree) -> Iterator[tuple[int, Partition, Partition]]:
    for layer, partition in enumerate(tree):
        yield layer, partition, tree[layer + 1] if layer + 1 < len(tree) else alone(len(partition))


def _replaced(tree: Tree, layer: int, partition: Partition) -> Tree:
    return (*tree[:layer], partition, *tree[layer + 1 :])


def _halves(children: Sequence[int]) -> Iterator[frozenset[int]]:
    """The children that go, for each way to divide them in two; the first one stays, unless it goes alone."""
    others = children[1:]
    if len(children) > MOST_SPLITS:
        yield from (frozenset({child}) for child in children)
        return
    for size in range(1, len(children)):
        yield from (frozenset(chosen) for chosen in combinations(others, size))
