"""No architecture is trained twice, none that violates a constraint is trained at all, and every search ends."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nasplat.core.choice import Values
from nasplat.core.errors import NasplatError
from nasplat.core.experiment import Bounds
from nasplat.core.front import Goal
from nasplat.core.space import SearchSpace
from nasplat.search.constraints import Constraints, excess, violations
from nasplat.search.history import History, Proposal
from nasplat.search.propose import PATIENCE, Exhausted, propose
from nasplat.search.strategies import make_strategy
from nasplat.search.study import Draft
from nasplat.search.suggestion import Strategy
from tests.search.toys import ToySpace

GOALS = (Goal("params", "minimize"),)


def stubborn(history: History, space: SearchSpace, goals: Sequence[Goal], rng: np.random.Generator, /) -> Values:
    """Insists on one architecture, the largest."""
    return {name: choice.options[-1] for name, choice in space.choices.items()}


def record(draft: Draft, number: int) -> Proposal:
    """What the study makes of a draft whose evaluation ends at once."""
    state = "complete" if excess(draft.violations) == 0 else "infeasible"
    proposal = Proposal(
        number,
        draft.architecture.values,
        draft.architecture.digest,
        state,
        draft.cost,
        draft.violations,  # type: ignore[arg-type]
    )
    if draft.repeat_of is not None:
        proposal = replace(proposal, state="repeat", repeat_of=draft.repeat_of.number)
    return replace(proposal, reason=draft.reason, seconds=float(state == "complete"))


def search(strategy: Strategy, space: SearchSpace, evaluated: int, constraints: Constraints | None = None) -> History:
    history = History()
    while history.evaluated < evaluated:
        draft = propose(strategy, history, space, GOALS, constraints or {}, 0)
        if isinstance(draft, Exhausted):
            break
        history = History([*history, record(draft, history.next_number)])
    return history


def test_what_a_sampler_insists_on_is_answered_from_the_record_and_then_passed_by() -> None:
    history = search(stubborn, ToySpace(), 5)
    states = [one.state for one in history]
    assert states == (["complete"] + ["repeat"] * PATIENCE) * 4 + ["complete"]
    assert len({one.digest for one in history.complete}) == 5
    assert all(one.repeat_of == 0 for one in history if one.state == "repeat")


def test_a_running_architecture_is_a_repeat_too() -> None:
    space = ToySpace()
    first = propose(stubborn, History(), space, GOALS, {}, 0)
    assert isinstance(first, Draft)
    running = replace(record(first, 0), state="running")
    second = propose(stubborn, History([running]), space, GOALS, {}, 0)
    assert isinstance(second, Draft)
    assert second.repeat_of == running


@pytest.mark.parametrize("name", ["random", "tpe", "evolution", "nsga2"])
def test_every_strategy_finds_all_of_a_small_space_and_ends(name: str) -> None:
    """A search with more trials than the space has architectures must end, and not miss any."""
    space = ToySpace(layers=2, widths=(8, 16), operations=("none", "conv"))
    everything = {architecture.digest for architecture in space.enumerate()}
    history = search(make_strategy(name), space, 1000)
    assert {one.digest for one in history.complete} == everything
    assert len(history.complete) == len(everything) == 9


def test_a_space_of_one_architecture_ends_after_it() -> None:
    space = ToySpace(layers=1, widths=(8,), operations=("conv",))
    assert [one.state for one in search(make_strategy("random"), space, 3)] == ["complete"] + ["repeat"] * PATIENCE


class Endless(ToySpace):
    """Looks too large to be listed, and has four architectures."""

    def settle(self, values: Values) -> Values:
        return {name: self.choices[name].default if name != "op0" else option for name, option in values.items()}


def test_a_space_that_cannot_be_listed_is_given_up_after_a_bounded_search() -> None:
    space = Endless(layers=12)
    assert space.count() > 10**9
    assert len(search(make_strategy("random"), space, 100).complete) == 4


@settings(max_examples=20, deadline=None)
@given(st.integers(10, 4000), st.sampled_from(["random", "evolution"]))
def test_nothing_that_violates_a_constraint_is_evaluated(limit: int, name: str) -> None:
    space = ToySpace()
    history = search(make_strategy(name), space, 6, {"params": Bounds(max=limit)})
    assert history.complete
    for one in history:
        assert (space.cost(space.canonical(one.values)).params <= limit) == (one.state != "infeasible")
        assert one.state == "complete" or one.reason or one.state == "repeat"


def test_a_rare_feasible_architecture_is_found() -> None:
    """Of 10,000 architectures two have few enough parameters; drawing at random would hardly meet them."""
    space = ToySpace()
    constraints = {"params": Bounds(min=10, max=10)}
    history = search(stubborn, space, 1, constraints)
    assert [space.cost(space.canonical(one.values)).params for one in history.complete] == [10]


def test_a_space_whose_feasible_part_is_used_up_ends() -> None:
    history = search(make_strategy("random"), ToySpace(layers=2), 1000, {"params": Bounds(max=20)})
    feasible = [a for a in ToySpace(layers=2).enumerate() if ToySpace(layers=2).cost(a).params <= 20]
    assert {one.digest for one in history.complete} == {a.digest for a in feasible}


@pytest.mark.parametrize("strategy", [stubborn, make_strategy("random")])
@pytest.mark.parametrize("space", [ToySpace(layers=2), ToySpace(layers=10)])
def test_a_constraint_that_nothing_meets_is_named_with_the_nearest_value(strategy: Strategy, space: ToySpace) -> None:
    with pytest.raises(NasplatError) as error:
        search(strategy, space, 3, {"params": Bounds(max=9), "macs": Bounds(max=10**9)})
    assert "params max 9" in error.value.message
    assert "params 10 is above 9" in error.value.advice


def test_the_same_history_gives_the_same_draft_also_far_from_the_strategy() -> None:
    """Repairs draw from the ask's own generator, too."""
    space = ToySpace()
    history = search(stubborn, space, 4)
    again = search(stubborn, space, 4)
    assert list(history) == list(again)


def test_violations_are_shares_of_the_bound() -> None:
    constraints = {"params": Bounds(max=100), "accuracy": Bounds(min=0.5)}
    found = violations({"params": 150.0, "accuracy": 0.75}, constraints)
    assert found == {"params.max": 0.5, "accuracy.min": -0.25}
    assert violations({"params": 150.0}, constraints) == {"params.max": 0.5}
    assert excess(found) == 0.5
