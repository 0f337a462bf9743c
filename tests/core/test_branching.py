"""Branching trees, held against counts and lists that are made in other ways.

What a user would lose: a search that misses trees, proposes what is no tree, or draws some far more often than others.
"""

from __future__ import annotations

from collections import Counter
from fractions import Fraction
from itertools import combinations, islice, product
from math import factorial, isqrt

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nasplat.core import branching
from nasplat.core.branching import Tree

# Every T up to 5 with every L up to 4.
SIZES = [(tasks, layers) for tasks in range(1, 6) for layers in range(1, 5)]
seeds = st.integers(0, 2**32 - 1)
Series = list[Fraction]


def exponential(series: Series) -> Series:
    """exp(f) of a power series with f(0) = 0: e' = f' e."""
    result = [Fraction(1)]
    for n in range(1, len(series)):
        result.append(sum((k * series[k] * result[n - k] for k in range(1, n + 1)), Fraction(0)) / n)
    return result


def count_by_series(tasks: int, layers: int) -> int:
    """Trees with labelled leaves have the generating function exp(exp(… exp(x) - 1 …) - 1), one exp a level."""
    series = [Fraction(int(n == 1)) for n in range(tasks + 1)]
    for _ in range(layers + 1):
        series = exponential(series)
        series[0] = Fraction(0)
    return int(series[tasks] * factorial(tasks))


def equivalences(tasks: int) -> list[frozenset[tuple[int, int]]]:
    """All sets of pairs that are transitive: partitions, without any of the code that is tested."""
    pairs = list(combinations(range(tasks), 2))
    found = []
    for chosen in product((False, True), repeat=len(pairs)):
        same = frozenset(pair for pair, yes in zip(pairs, chosen, strict=True) if yes)
        triples = combinations(range(tasks), 3)
        if all(((a, b) in same) + ((b, c) in same) + ((a, c) in same) != 2 for a, b, c in triples):
            found.append(same)
    return found


def count_by_relations(tasks: int, layers: int) -> int:
    """Chains of equivalence relations, each a subset of the one before, by powers of the inclusion matrix."""
    relations = equivalences(tasks)
    below = np.array([[int(fine <= coarse) for fine in relations] for coarse in relations])
    return int(np.linalg.matrix_power(below, layers - 1).sum())


def random_tree(seed: int, most_tasks: int = 6) -> tuple[Tree, np.random.Generator]:
    rng = np.random.default_rng(seed)
    return branching.sample_tree(int(rng.integers(2, most_tasks + 1)), int(rng.integers(1, 5)), rng), rng


@pytest.mark.parametrize(("tasks", "layers"), SIZES)
def test_the_number_of_trees_is_that_of_two_independent_counts(tasks: int, layers: int) -> None:
    number = branching.count_trees(tasks, layers)
    assert number == count_by_series(tasks, layers) == count_by_relations(tasks, layers)
    trees = list(branching.all_trees(tasks, layers))
    assert len(trees) == len(set(trees)) == number
    assert all(map(branching.is_tree, trees))
    assert trees[0] == (branching.together(tasks),) * layers and trees[-1] == (branching.alone(tasks),) * layers


def test_the_numbers_that_are_published() -> None:
    assert branching.bell(5) ** 4 == 7_311_616
    assert branching.count_trees(5, 4) == 3_455
    assert [branching.bell(tasks) for tasks in range(1, 9)] == [1, 2, 5, 15, 52, 203, 877, 4140]


@pytest.mark.parametrize(("tasks", "layers"), [(3, 3), (4, 2)])
def test_any_choice_a_layer_is_made_the_tree_that_parts_whom_it_parts(tasks: int, layers: int) -> None:
    """All assignments of branches to tasks: two share where they have the same branch in that layer and all before."""
    reached = set()
    for flat in product(range(tasks), repeat=tasks * layers):
        labels = [flat[layer * tasks : (layer + 1) * tasks] for layer in range(layers)]
        tree = branching.tree_of(labels)
        reached.add(tree)
        for layer, (a, b) in product(range(layers), combinations(range(tasks), 2)):
            shares = all(labels[before][a] == labels[before][b] for before in range(layer + 1))
            assert (tree[layer][a] == tree[layer][b]) == shares
        assert branching.tree_of(tree) == tree
    assert len(reached) == count_by_series(tasks, layers)


@settings(max_examples=50, deadline=None)
@given(seed=seeds)
def test_renamed_branches_are_the_same_tree(seed: int) -> None:
    tree, rng = random_tree(seed)
    renamed = []
    for partition in tree:
        names = rng.permutation(1000)
        renamed.append([int(names[branch]) for branch in partition])
    assert branching.tree_of(renamed) == tree


def test_meet_and_join_are_those_of_equivalence_relations() -> None:
    """Held against sets of pairs: intersection, and the transitive closure of the union."""

    def pairs(partition: tuple[int, ...]) -> set[tuple[int, int]]:
        return {(a, b) for a, b in product(range(4), repeat=2) if partition[a] == partition[b]}

    partitions = [tree[0] for tree in branching.all_trees(4, 1)]
    for first, second in product(partitions, repeat=2):
        assert pairs(branching.meet(first, second)) == pairs(first) & pairs(second)
        closure = pairs(first) | pairs(second)
        while closure != (more := closure | {(a, d) for a, b in closure for c, d in closure if b == c}):
            closure = more
        assert pairs(branching.join(first, second)) == closure
        assert branching.refines(first, second) == (pairs(first) <= pairs(second))
    assert set(branching.refinements((0, 0, 2, 2))) == {p for p in partitions if pairs(p) <= pairs((0, 0, 2, 2))}


def test_samples_are_uniform_over_trees() -> None:
    """Chi-squared over all 154 trees of 4 tasks and 3 layers; drawing every layer on its own would fail by far."""
    rng = np.random.default_rng(0)
    draws = 154 * 30
    seen = Counter(branching.sample_tree(4, 3, rng) for _ in range(draws))
    assert set(seen) == set(branching.all_trees(4, 3))
    statistic = sum((number - 30) ** 2 / 30 for number in seen.values())
    assert statistic < 153 + 5 * isqrt(2 * 153)  # 5 standard deviations above the mean
    by_layer = Counter(
        branching.tree_of([[int(branch) for branch in rng.integers(0, 4, 4)] for _ in range(3)]) for _ in range(draws)
    )
    assert sum((by_layer[tree] - 30) ** 2 / 30 for tree in seen) > 10 * 153


def test_forty_tasks_are_sampled_though_their_number_outgrows_64_bits() -> None:
    rng = np.random.default_rng(0)
    assert branching.count_trees(40, 5) == count_by_series(40, 5) > 2**64
    tree = branching.sample_tree(40, 5, rng)
    assert branching.is_tree(tree) and len(tree) == 5 and len(tree[0]) == 40
    assert all(map(branching.is_tree, branching.neighbours(tree)))
    assert len(list(islice(branching.all_trees(40, 5), 5))) == 5


@settings(max_examples=60, deadline=None)
@given(seed=seeds)
def test_moves_lead_to_other_trees_and_back(seed: int) -> None:
    tree, rng = random_tree(seed)
    near = branching.neighbours(tree)
    assert tree not in near and len(set(near)) == len(near) and all(map(branching.is_tree, near))
    assert branching.mutate(tree, rng) in near
    for other in near:
        assert tree in branching.neighbours(other)

    def numbers(one: Tree) -> int:
        return sum(len(set(partition)) for partition in one)

    assert all(numbers(other) == numbers(tree) + 1 for other in branching.splits(tree))
    assert all(numbers(other) == numbers(tree) - 1 for other in branching.merges(tree))


@pytest.mark.parametrize(("tasks", "layers"), [(3, 3), (4, 2)])
def test_splits_and_merges_are_all_changes_of_one_layer_by_one_branch(tasks: int, layers: int) -> None:
    """From the list of all trees: what differs in one layer only, by one branch more or less and a refinement."""
    trees = list(branching.all_trees(tasks, layers))
    for tree in trees[:: max(1, len(trees) // 20)]:
        expected = set()
        for other in trees:
            changed = [layer for layer in range(layers) if tree[layer] != other[layer]]
            if len(changed) == 1:
                one, two = tree[changed[0]], other[changed[0]]
                nested = branching.meet(one, two) in (one, two)
                if nested and abs(len(set(one)) - len(set(two))) == 1:
                    expected.add(other)
        assert expected == {*branching.splits(tree), *branching.merges(tree)}


def test_a_branching_point_is_shifted_with_all_its_branches() -> None:
    three = ((0, 0, 0), (0, 1, 2), (0, 1, 2))
    assert set(branching.shifts(three)) == {((0, 1, 2),) * 3, ((0, 0, 0), (0, 0, 0), (0, 1, 2))}
    # It does not pass another branching point: those of a layer stay those of a layer.
    nested = ((0, 0, 0), (0, 0, 2), (0, 1, 2))
    assert set(branching.shifts(nested)) == {((0, 0, 2), (0, 0, 2), (0, 1, 2)), ((0, 0, 0), (0, 0, 2), (0, 0, 2))}


@pytest.mark.parametrize("moves", [["split", "merge"], ["split", "merge", "shift"]])
def test_every_tree_is_reached_by_moves(moves: list[str]) -> None:
    seen, ahead = set(), [((0, 0, 0, 0),) * 3]
    while ahead:
        tree = ahead.pop()
        if tree not in seen:
            seen.add(tree)
            ahead += [other for name in moves for other in branching.MOVES[name](tree)]
    assert len(seen) == 154


@settings(max_examples=60, deadline=None)
@given(seed=seeds)
def test_children_share_what_both_parents_share(seed: int) -> None:
    tree, rng = random_tree(seed)
    other = branching.sample_tree(len(tree[0]), len(tree), rng)
    child = branching.crossover(tree, other, rng)
    assert branching.is_tree(child) and branching.crossover(tree, tree, rng) == tree
    for a, b in combinations(range(len(tree[0])), 2):
        if all(one[layer][a] == one[layer][b] for one in (tree, other) for layer in range(len(tree))):
            assert all(partition[a] == partition[b] for partition in child)


def test_children_drift_to_neither_end() -> None:
    """The mean number of branches of children is near that of their parents; the meet alone adds more than one."""
    rng = np.random.default_rng(0)

    def numbers(tree: Tree) -> int:
        return sum(len(set(partition)) for partition in tree)

    parents, children, met = [], [], []
    for _ in range(1500):
        first, second = (branching.sample_tree(5, 4, rng) for _ in range(2))
        parents.append((numbers(first) + numbers(second)) / 2)
        children.append(numbers(branching.crossover(first, second, rng)))
        met.append(numbers(branching.tree_of([pair[int(rng.integers(2))] for pair in zip(first, second, strict=True)])))
    assert abs(np.mean(children) - np.mean(parents)) < 0.35
    assert np.mean(met) - np.mean(parents) > 1


def test_distance_is_a_metric_that_counts_pairs() -> None:
    trees = list(branching.all_trees(3, 2))
    for a, b, c in product(trees, repeat=3):
        assert branching.distance(a, c) <= branching.distance(a, b) + branching.distance(b, c)
        assert (branching.distance(a, b) == 0) == (a == b) and branching.distance(a, b) == branching.distance(b, a)
    assert branching.distance(((0, 0, 0),) * 2, ((0, 0, 0), (0, 0, 2))) == 2


def test_some_tasks_have_a_tree_of_their_own() -> None:
    tree = ((0, 0, 0, 0), (0, 1, 0, 1), (0, 1, 2, 1))
    assert branching.restrict(tree, [1, 3]) == ((0, 0), (0, 0), (0, 0))
    assert branching.restrict(tree, [0, 1, 2]) == ((0, 0, 0), (0, 1, 0), (0, 1, 2))


def test_what_is_no_tree_is_told() -> None:
    assert not branching.is_tree(((0, 1), (0, 0)))  # branches that join
    assert not branching.is_tree(((1, 1), (0, 1)))  # a branch that is not named by its first task
    assert branching.mutate(((0,), (0,)), np.random.default_rng(0)) is None
