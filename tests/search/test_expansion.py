"""X3D's expansion: the steps of its path, worked out by hand on a small space, and that it meets its target."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from nasplat.core.choice import Choice
from nasplat.core.cost import Cost
from nasplat.core.front import Goal
from nasplat.core.graph import OperationGraph
from nasplat.core.problem import classification
from nasplat.core.space import SearchSpace
from nasplat.search.expansion import Axes, expansion
from nasplat.search.history import History, Proposal
from nasplat.search.seeds import ask_rng
from nasplat.spaces.families import make_space

GOALS = (Goal("accuracy", "maximize"), Goal("macs", "minimize"))


class Product(SearchSpace):
    """Two stages with a width and a depth each; the cost is their product, and depth pays twice as much as width."""

    def __init__(self) -> None:
        self.problem = classification((1, 8, 8), 10)
        self.choices = {
            name: Choice(name, (1, 2, 4, 8), ordered=True) for name in ("width1", "width2", "depth1", "depth2")
        }
        self.identity = {"family": "product"}

    def settle(self, values: Mapping[str, Any]) -> Mapping[str, Any]:
        return values

    def cost(self, architecture: Any) -> Cost:
        macs = int(np.prod([int(value) for value in architecture.values.values()]))
        return Cost(macs, macs, macs)

    def graph(self, architecture: Any) -> OperationGraph:
        return OperationGraph((), {})

    def build(self, architecture: Any) -> Any:
        return None


def score(values: Mapping[str, Any]) -> float:
    return sum((2 if name.startswith("depth") else 1) * np.log2(int(value)) for name, value in values.items())


def search(space: SearchSpace, budget: int, accuracy: Any = score, **options: Any) -> list[Proposal]:
    strategy, found = expansion(**options), []
    for number in range(budget):
        suggestion = strategy(History(found), space, GOALS, ask_rng(0, number))
        one = space.canonical(suggestion.values)
        metrics = {**space.known(one), "accuracy": float(accuracy(one.values))}
        found.append(Proposal(number, one.values, one.digest, "complete", metrics, why=suggestion.why))
    return found


def test_the_path_is_that_of_the_paper() -> None:
    """Each step tries every axis at twice the cost, and goes on with what pays most: here always the depth."""
    found = search(Product(), 13)
    rows = [tuple(one.values.values()) for one in found]
    assert rows[0] == (1, 1, 1, 1)
    assert rows[1:3] == [(2, 1, 1, 1), (1, 1, 2, 1)]  # widths, depths: each twice the cost
    assert rows[3:5] == [(2, 1, 2, 1), (1, 1, 2, 2)]  # from the deeper one
    assert rows[5:7] == [(2, 1, 2, 2), (1, 1, 4, 2)]
    assert len(set(rows)) == len(rows)
    costs = [one.metrics["macs"] for one in found[1:7]]
    assert costs == [2, 2, 4, 4, 8, 8]


def test_a_target_is_met_by_shrinking_what_was_grown_last() -> None:
    """The last step overshoots: the network that is kept must fit the device."""
    found = search(Product(), 12, target=12.0, growth=4.0)
    shrunk = [one for one in found if one.why.startswith("shrinks")]
    assert shrunk and shrunk[0].metrics["macs"] <= 12
    overshot = [one for one in found if one.number < shrunk[0].number][-1]
    assert max(one.metrics["macs"] for one in found[: shrunk[0].number]) > 12 and overshot.state == "complete"


def test_running_variants_are_waited_for_and_failed_ones_passed_over() -> None:
    """With parallel workers a step is not decided before its variants are known."""
    space, strategy = Product(), expansion()
    start = space.canonical({})
    wide, deep = space.canonical({"width1": 2}), space.canonical({"depth1": 2})
    done = Proposal(0, start.values, start.digest, "complete", {"accuracy": 0.0, "macs": 1.0})
    running = Proposal(1, wide.values, wide.digest, "running", {"macs": 2.0})
    failed = Proposal(2, deep.values, deep.digest, "failed", {"macs": 2.0})
    next_one = strategy(History([done, running]), space, GOALS, ask_rng(0, 2))
    assert space.canonical(next_one.values) == deep  # type: ignore[union-attr]
    other = space.canonical(strategy(History([done, running, failed]), space, GOALS, ask_rng(0, 3)).values)  # type: ignore[union-attr]
    assert other not in (start, wide, deep)
    wide_done = Proposal(1, wide.values, wide.digest, "complete", {"accuracy": 1.0, "macs": 2.0})
    on = space.canonical(strategy(History([done, wide_done, failed]), space, GOALS, ask_rng(0, 3)).values)  # type: ignore[union-attr]
    assert space.known(on)["macs"] == 4.0 and on.values["width1"] == 2


def test_nothing_is_proposed_twice_and_the_whole_space_can_be_reached() -> None:
    found = search(Product(), 256)
    assert len({one.digest for one in found}) == 256


@pytest.mark.parametrize("family", ["mbconv", "nasbench201", "darts"])
def test_real_spaces(family: str) -> None:
    """From the cheapest network of a space upwards, at most about a factor of the growth from step to step."""
    space = make_space({"family": family}, classification((3, 32, 32), 10))
    axes = Axes(space, "macs")
    rng = np.random.default_rng(0)
    assert axes.cost(axes.start()) <= min(space.known(space.sample(rng))["macs"] for _ in range(50))
    found = search(space, 12, accuracy=lambda values: space.known(space.canonical(values))["params"])
    assert len({one.digest for one in found}) == 12
    assert found[-1].metrics["macs"] > found[0].metrics["macs"]
