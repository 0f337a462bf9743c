"""What a user would lose: time, training one network under two names; and trust, where two networks share one."""

from __future__ import annotations

from collections import Counter, defaultdict
from itertools import permutations, product

import numpy as np
import pytest
import torch

from nasplat.core.cost import Cost, cost_of
from nasplat.core.errors import NasplatError
from nasplat.core.problem import classification
from nasplat.spaces.nasbench201 import EDGES, OPERATIONS, NasBench201Space, canonical_form
from tests.spaces.naive_cells import nasbench201 as run_naively

PROBLEM = classification((3, 32, 32), 10)
CHANNELS = 2


@pytest.fixture(scope="module")
def classes() -> dict[object, list[tuple[str, ...]]]:
    found: dict[object, list[tuple[str, ...]]] = defaultdict(list)
    for chosen in product(OPERATIONS, repeat=len(EDGES)):
        found[canonical_form(chosen)].append(chosen)
    return found


def authors_string(operations: tuple[str, ...], *, zero_rule: bool) -> str:
    """The benchmark authors' rule: a string of expressions, in which one convolution reused looks like two."""
    chosen = dict(zip(EDGES, operations, strict=True))
    nodes = ["0"]
    for target in (1, 2, 3):
        parts = []
        for source in range(target):
            operation = chosen[source, target]
            if zero_rule and (operation == "none" or nodes[source] == "#"):
                parts.append("#")
            elif operation == "skip_connect":
                parts.append(nodes[source])
            else:
                parts.append(f"({nodes[source]})@{operation}")
        nodes.append("+".join(sorted(parts)))
    return nodes[-1]


def test_the_authors_rule_gives_the_published_numbers_of_classes() -> None:
    tables = list(product(OPERATIONS, repeat=len(EDGES)))
    assert len(tables) == 15_625
    assert len({authors_string(table, zero_rule=True) for table in tables}) == 6_466
    assert len({authors_string(table, zero_rule=False) for table in tables}) == 12_751


def test_graph_isomorphism_gives_5260_classes(classes: dict[object, list[tuple[str, ...]]]) -> None:
    assert len(classes) == 5_260
    space = NasBench201Space(PROBLEM)
    assert len({architecture.digest for architecture in space.enumerate()}) == 5_260


def test_5425_classes_where_every_pool_counts_as_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sharing what has no weights is what makes 5,260 of them: two poolings of one tensor are one pooling."""
    monkeypatch.setattr("nasplat.spaces.nasbench201.WEIGHTLESS", frozenset())
    assert len({canonical_form(table) for table in product(OPERATIONS, repeat=len(EDGES))}) == 5_425


def test_430_classes_of_the_authors_mix_networks_with_different_numbers_of_convolutions() -> None:
    """Why the authors' rule is not imitated: it would answer one network's score for another's."""
    space = NasBench201Space(PROBLEM, cells=1, channels=2)
    counts: dict[str, set[int]] = defaultdict(set)
    for table in product(OPERATIONS, repeat=len(EDGES)):
        network = run_structure(table)
        counts[authors_string(table, zero_rule=True)].add(network)
    assert sum(len(numbers) > 1 for numbers in counts.values()) == 430
    assert space.count() == 15_625


def run_structure(table: tuple[str, ...]) -> int:
    """How many convolutions the naive run of a table really uses."""
    used: set[object] = set()
    weights: dict[object, torch.Tensor] = defaultdict(lambda: torch.ones(1, 1, 1, 1))
    run_naively(dict(zip(EDGES, table, strict=True)), torch.ones(1, 1, 1, 1), weights, used)
    return len(used)


def outputs_of_every_mapping(
    table: tuple[str, ...], other: tuple[str, ...], seed: int
) -> tuple[torch.Tensor | None, list[torch.Tensor | None]]:
    """The naive output of a table, and that of another under every mapping of the first one's weights to its edges."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(2, CHANNELS, 5, 5, generator=generator, dtype=torch.float64)

    def edges_in_use(chosen: tuple[str, ...]) -> list[tuple[int, int]]:
        used: set[object] = set()
        every = {edge: random_weight(kind, torch.Generator()) for edge, kind in zip(EDGES, chosen, strict=True)}
        run_naively(dict(zip(EDGES, chosen, strict=True)), x, every, used)  # type: ignore[arg-type]
        return [edge for edge in EDGES if edge in used]

    def random_weight(kind: str, source: torch.Generator) -> torch.Tensor:
        size = int(kind[-1]) if kind.startswith("conv") else 1
        return torch.randn(CHANNELS, CHANNELS, size, size, generator=source, dtype=torch.float64)

    first = dict(zip(EDGES, table, strict=True))
    second = dict(zip(EDGES, other, strict=True))
    weights = {edge: random_weight(first[edge], generator) for edge in edges_in_use(table)}
    result = run_naively(first, x, weights, set())  # type: ignore[arg-type]
    targets = edges_in_use(other)
    results = []
    for order in permutations(weights):
        if len(order) == len(targets) and all(
            first[mine] == second[theirs] for mine, theirs in zip(order, targets, strict=True)
        ):
            mapped = {theirs: weights[mine] for mine, theirs in zip(order, targets, strict=True)}
            results.append(run_naively(second, x, mapped, set()))  # type: ignore[arg-type]
    return result, results


def same(one: torch.Tensor | None, two: torch.Tensor | None) -> bool:
    if one is None or two is None:
        return one is two
    return torch.allclose(one, two, rtol=1e-9, atol=1e-9)


def test_tables_of_one_class_are_one_network_run_naively(classes: dict[object, list[tuple[str, ...]]]) -> None:
    """Weights mapped edge to edge give equal outputs, and equally many convolutions of each kind are run."""
    rng = np.random.default_rng(0)
    several = [tables for tables in classes.values() if len(tables) > 1]
    for number in rng.choice(len(several), 150, replace=False):
        tables = several[number]
        one, two = (tables[i] for i in rng.choice(len(tables), 2, replace=False))
        expected, found = outputs_of_every_mapping(one, two, seed=int(number))
        assert any(same(expected, result) for result in found), (one, two)


def test_tables_of_two_classes_are_two_networks_run_naively(classes: dict[object, list[tuple[str, ...]]]) -> None:
    """No mapping of the weights makes two classes equal, not even those that use the same convolutions.

    A sine stands for the pool: pooling is linear, and rules of arithmetic are none of the documented rewrites.
    """
    rng = np.random.default_rng(1)
    by_operations: dict[object, list[tuple[str, ...]]] = defaultdict(list)
    for tables in classes.values():
        by_operations[tuple(sorted(Counter(tables[0]).items()))].append(tables[0])
    groups = [group for group in by_operations.values() if len(group) > 1]
    for number in range(150):
        group = groups[int(rng.integers(len(groups)))]
        one, two = (
            tuple("sine" if "pool" in operation else operation for operation in group[i])
            for i in rng.choice(len(group), 2, replace=False)
        )
        expected, found = outputs_of_every_mapping(one, two, seed=number)
        assert not any(same(expected, result) for result in found), (one, two)


def test_costs_are_the_published_ones() -> None:
    """The benchmark's own records: 220.12 M and 1.5315 M for all 3x3 convolutions, 7.78 M and 0.0733 M for skips."""
    space = NasBench201Space(PROBLEM)
    convolutions = space.canonical(dict.fromkeys(space.choices, "conv_3x3"))
    skips = space.canonical(dict.fromkeys(space.choices, "skip_connect"))
    assert (space.cost(convolutions).macs, space.cost(convolutions).params) == (220_119_680, 1_531_546)
    assert (space.cost(skips).macs, space.cost(skips).params) == (7_783_040, 73_306)


def test_a_cell_of_nothing_is_a_network_too() -> None:
    space = NasBench201Space(classification((3, 7, 7), 4), cells=(1, 0, 1), channels=4)
    nothing = space.canonical(dict.fromkeys(space.choices, "none"))
    assert isinstance(space.cost(nothing), Cost)
    assert space.cost(nothing) == cost_of(space.graph(nothing))
    assert space.build(nothing)(torch.zeros(2, 3, 7, 7)).shape == (2, 4)


def test_several_widths_are_a_choice_and_each_is_the_space_of_that_width() -> None:
    """Lost otherwise: a supernet of nested widths whose costs are those of other networks."""
    problem = classification((1, 14, 14), 10)
    wide = NasBench201Space(problem, cells=1, channels=[4, 6])
    assert tuple(wide.choices)[-1] == "channels" and wide.count() == 2 * 5**6
    rng = np.random.default_rng(0)
    for _ in range(10):
        one = wide.sample(rng)
        alone = NasBench201Space(problem, cells=1, channels=int(one.values["channels"]))
        cell = {name: option for name, option in one.values.items() if name != "channels"}
        assert wide.cost(one) == alone.cost(alone.canonical(cell))
        assert wide.graph(one) == alone.graph(alone.canonical(cell))
    with pytest.raises(NasplatError, match="channels"):
        NasBench201Space(problem, channels=[])
