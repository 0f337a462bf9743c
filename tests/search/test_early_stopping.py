"""Without these early stopping would train on the wrong networks: a search would end with a front that full training
beats, would wait for ever, or would take another way when it is resumed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from random import Random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as some

from nasplat.core.errors import NasplatError
from nasplat.core.front import Goal
from nasplat.search.early_stopping import RULES, Rule, best_first, halve, halving, promote, rung_shares

ACCURACY = (Goal("accuracy", "maximize"),)
BOTH = (Goal("accuracy", "maximize"), Goal("macs", "minimize"))

Metrics = dict[str, float]


def scores(*accuracies: float) -> dict[int, Metrics]:
    return {number: {"accuracy": value} for number, value in enumerate(accuracies)}


def test_shares_ascend_to_the_whole_budget() -> None:
    assert rung_shares(3, 3) == (1 / 9, 1 / 3, 1.0)
    assert rung_shares(2, 4) == (1 / 8, 1 / 4, 1 / 2, 1.0)
    assert rung_shares(4, 1) == (1.0,)


@pytest.mark.parametrize(("reduction", "rungs"), [(1, 3), (0, 3), (3, 0)])
def test_shares_that_stop_nothing_are_refused(reduction: int, rungs: int) -> None:
    with pytest.raises(NasplatError):
        rung_shares(reduction, rungs)


def test_asha_promotes_as_in_the_paper() -> None:
    """Worked by hand from Algorithm 2 of Li et al. (2020), for accuracy, with a reduction of 3."""
    begun: list[set[int]] = [{0, 1}, set(), set()]
    assert promote([scores(0.5, 0.6), {}, {}], begun, ACCURACY, 3) is None  # a third of two is nobody
    rung = scores(0.5, 0.6, 0.4)
    begun = [{0, 1, 2}, set(), set()]
    assert promote([rung, {}, {}], begun, ACCURACY, 3) == (1, 1)
    begun[1].add(1)
    assert promote([rung, {}, {}], begun, ACCURACY, 3) is None
    rung = scores(0.5, 0.6, 0.4, 0.7, 0.65, 0.1)
    begun[0] = set(rung)
    assert promote([rung, {}, {}], begun, ACCURACY, 3) == (3, 1)  # 3 and 4 are the best two of six; 1 was, earlier
    begun[1].add(3)
    assert promote([rung, {}, {}], begun, ACCURACY, 3) == (4, 1)
    begun[1].add(4)
    upper = {number: {"accuracy": value} for number, value in ((1, 0.8), (3, 0.75), (4, 0.9))}
    assert promote([{**rung, 6: {"accuracy": 0.99}}, upper, {}], begun, ACCURACY, 3) == (4, 2)  # the highest rung first
    assert promote([rung, upper, {}], [*begun[:2], {4}], ACCURACY, 3) is None


def test_a_small_budget_ends_with_the_best_trained_to_its_end() -> None:
    """Two trials and a reduction of three would leave a search without a front."""
    rung = scores(0.5, 0.6)
    begun: list[set[int]] = [{0, 1}, set(), set()]
    assert promote([rung, {}, {}], begun, ACCURACY, 3) is None
    assert promote([rung, {}, {}], [{0, 1, 2}, set(), set()], ACCURACY, 3, last=True) is None  # 2 may be better
    assert promote([rung, {}, {}], begun, ACCURACY, 3, last=True) == (1, 1)
    begun[1].add(1)
    assert promote([rung, {1: {"accuracy": 0.8}}, {}], begun, ACCURACY, 3, last=True) == (1, 2)
    begun[2].add(1)
    upper = {1: {"accuracy": 0.8}}
    assert promote([rung, upper, {1: {"accuracy": 0.9}}], begun, ACCURACY, 3, last=True) is None
    # It failed, or a constraint refused it, at the end: the next best gets its chance.
    assert promote([rung, {1: {}}, {}], begun, ACCURACY, 3, last=True) == (0, 1)
    assert promote([rung, {}, {}], begun, ACCURACY, 3, last=True) is None  # 1 is being trained


def test_directions_come_from_the_goals() -> None:
    """A search that minimises a loss would train on the worst."""
    rung = {0: {"loss": 2.0}, 1: {"loss": 0.5}, 2: {"loss": 1.0}}
    assert promote([rung, {}], [{0, 1, 2}, set()], (Goal("loss", "minimize"),), 3) == (1, 1)
    assert halve(rung, (Goal("loss", "minimize"),), 3) == [1]


def test_a_small_network_goes_on_beside_the_most_accurate_one() -> None:
    """On accuracy alone, no small network would ever be trained to the end, and the front would have one end only."""
    rung = {
        0: {"accuracy": 0.9, "macs": 100.0},
        1: {"accuracy": 0.89, "macs": 101.0},
        2: {"accuracy": 0.7, "macs": 10.0},
        3: {"accuracy": 0.88, "macs": 102.0},
        4: {"accuracy": 0.6, "macs": 20.0},
        5: {"accuracy": 0.5, "macs": 30.0},
    }
    assert set(halve(rung, BOTH, 3)) == {0, 2}
    assert set(halve(rung, ACCURACY, 3)) == {0, 1}


def test_of_equals_the_most_alone_goes_on() -> None:
    rung = {number: {"accuracy": a, "macs": m} for number, (a, m) in enumerate([(1, 9), (2, 10), (6, 14), (9, 19)])}
    assert best_first(rung, BOTH)[2] == 2  # all on the front: both ends, then the one with wider gaps around it


def beats(one: Metrics, two: Metrics) -> bool:
    return one != two and one["accuracy"] >= two["accuracy"] and one["macs"] <= two["macs"]


numbers = some.integers(0, 4).map(float)
rungs = some.dictionaries(
    some.integers(0, 30), some.fixed_dictionaries({"accuracy": numbers, "macs": numbers}), max_size=20
)


@given(rungs, some.randoms())
def test_whoever_goes_on_is_beaten_by_nobody_who_does_not_and_no_order_of_arrival_counts(
    rung: dict[int, Metrics], random: Random
) -> None:
    """A search that is resumed reads its trials in another order, and has to go the same way."""
    kept = halve(rung, BOTH, 3)
    assert len(kept) == (max(1, len(rung) // 3) if rung else 0)
    for number in kept:
        assert not any(beats(rung[other], rung[number]) for other in rung.keys() - set(kept))
    shuffled = list(rung)
    random.shuffle(shuffled)
    assert halve({number: rung[number] for number in shuffled}, BOTH, 3) == kept


def test_ties_go_to_the_lower_number() -> None:
    assert best_first(scores(0.5, 0.5, 0.5), ACCURACY) == [0, 1, 2]
    assert promote([scores(0.5, 0.5, 0.5), {}], [{0, 1, 2}, set()], ACCURACY, 3) == (0, 1)


NOTHING: Metrics = {}
BROKEN = [NOTHING, {"accuracy": float("nan"), "macs": 1.0}, {"macs": 1.0}]


@pytest.mark.parametrize("broken", BROKEN, ids=["nothing", "nan", "a-goal-missing"])
@pytest.mark.parametrize("rule", [RULES["asha"](), halving(4)], ids=["asha", "halving"])
def test_what_failed_is_never_promoted_and_nobody_waits_for_it(rule: Rule, broken: Metrics) -> None:
    sound = {number: {"accuracy": 0.5 + number / 100, "macs": 5.0} for number in (1, 2, 3)}
    everybody = {0, 1, 2, 3}
    assert rule([{0: broken, **sound}, {}], [everybody, set()], BOTH, 3) == (3, 1)
    assert rule([dict.fromkeys(everybody, broken), {}], [everybody, set()], BOTH, 3) is None
    # The best that goes on is not followed by the broken one when it fails higher up.
    assert rule([{0: broken, **sound}, {3: broken}], [everybody, {3}], BOTH, 3) is None


def test_halving_waits_for_its_bracket_and_fills_the_next_meanwhile() -> None:
    rule = halving(4)
    rung = scores(0.4, 0.9, 0.8)
    assert rule([rung, {}, {}], [{0, 1, 2, 3}, set(), set()], ACCURACY, 2) is None  # 3 is not judged yet
    rung = scores(0.4, 0.9, 0.8, 0.1, 0.95, 0.99)
    begun: list[set[int]] = [set(rung), set(), set()]
    assert rule([rung, {}, {}], begun, ACCURACY, 2) == (1, 1)  # 4 and 5 are better, and of a bracket that is not full
    begun[1].add(1)
    assert rule([rung, {}, {}], begun, ACCURACY, 2) == (2, 1)
    begun[1].add(2)
    assert rule([rung, {1: {"accuracy": 0.91}}, {}], begun, ACCURACY, 2) is None
    upper = {1: {"accuracy": 0.91}, 2: {"accuracy": 0.92}}
    assert rule([rung, upper, {}], begun, ACCURACY, 2) == (2, 2)
    assert rule([rung, upper, {}], [*begun[:2], {2}], ACCURACY, 2) is None


def test_halving_ends_a_bracket_that_will_never_be_full() -> None:
    """The last trials of a search would be left at the first rung, however good they are."""
    rule, rung = halving(4), scores(0.4, 0.9, 0.8, 0.1, 0.95, 0.99)
    begun = [set(rung), {1, 2}]
    assert rule([rung, {}], begun, ACCURACY, 2) is None
    assert rule([rung, {}], begun, ACCURACY, 2, last=True) == (5, 1)


def test_an_empty_bracket_is_refused() -> None:
    with pytest.raises(NasplatError, match="bracket"):
        halving(0)


def search(
    rule: Rule, curves: Sequence[Sequence[float]], workers: int, reduction: int, rungs: int, failing: int
) -> list[Mapping[int, Metrics]]:
    """A search with several workers that end in an odd order, up to the end."""
    results: list[dict[int, Metrics]] = [{} for _ in range(rungs)]
    begun: list[list[int]] = [[] for _ in range(rungs)]
    running: list[tuple[int, int]] = []
    while True:
        while len(running) < workers:
            last = len(begun[0]) == len(curves)
            chosen = rule(results, begun, BOTH, reduction, last=last)
            if chosen is None and last:
                break
            number, rung = chosen or (len(begun[0]), 0)
            assert number not in begun[rung], "promoted twice"
            assert rung == 0 or results[rung - 1][number], "promoted without a judgement"
            begun[rung].append(number)
            running.append((number, rung))
        if not running:
            return list(results)
        number, rung = running.pop(len(running) // 2)
        failed = number % failing == 0 if failing else False
        results[rung][number] = {} if failed else {"accuracy": curves[number][rung], "macs": float(number % 7)}


@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize("failing", [0, 4])
@pytest.mark.parametrize(("name", "options"), [("asha", {}), ("halving", {"bracket": 9}), ("halving", {"bracket": 50})])
def test_a_search_ends_with_about_one_of_reduction_at_each_rung(
    name: str, options: dict[str, int], workers: int, failing: int
) -> None:
    curves = np.random.default_rng(0).random((40, 3)).tolist()
    results = search(RULES[name](**options), curves, workers, 3, 3, failing)
    sound = [sum(bool(metrics) for metrics in rung.values()) for rung in results]
    assert len(results[0]) == 40
    for lower, upper in pairwise(sound):
        assert lower // 4 <= upper <= lower * 0.75
    if name == "asha":  # nothing that is among the best in the end was left behind
        for rung in (0, 1):
            best = best_first(results[rung], BOTH)
            assert set(best[: len(best) // 3]) <= results[rung + 1].keys()


def test_the_best_of_all_is_found_when_the_rungs_agree() -> None:
    """Curves that never cross: the front of the search is the front of training all candidates in full."""
    rng = np.random.default_rng(1)
    worth = rng.permutation(54) / 54
    curves = [[0.5 * value, 0.8 * value, value] for value in worth]
    for name in RULES:
        results = search(RULES[name](), curves, 1, 3, 3, 0)
        points = {number: {"accuracy": curves[number][2], "macs": float(number % 7)} for number in range(54)}
        best = max(points, key=lambda number: points[number]["accuracy"])
        assert best in results[2]
