"""A strategy is a function of the history: what a resumed search proposes rests on it."""

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest

from nasplat.core.errors import NasplatError
from nasplat.core.experiment import Bounds
from nasplat.core.front import Goal, front_indices, losses
from nasplat.search.evolution import crowding_distance, ranking, regularised_evolution
from nasplat.search.history import History, Proposal
from nasplat.search.optuna_strategies import nsga2
from nasplat.search.sampler import StrategySampler, suggest
from nasplat.search.seeds import ask_rng, candidate_seed
from nasplat.search.strategies import make_strategy
from nasplat.search.suggestion import Strategy, Suggestion
from nasplat.search.within import within
from tests.search.toys import ToySpace, accuracy

GOALS = (Goal("accuracy", "maximize"), Goal("params", "minimize"))
SPACE = ToySpace()
OPTIONS: dict[str, dict[str, object]] = {
    "random": {},
    "tpe": {"startup": 5},
    "gp": {"startup": 5},
    "local_search": {"startup": 5},
    "optuna_gp": {"startup": 5},
    "reinforce": {},
    "expansion": {},
    "nsga2": {"population": 6},
    "evolution": {"population": 8, "tournament": 3, "startup": 5, "crossover": 0.5},
}


def step(strategy: Strategy, history: History, goals: Sequence[Goal] = GOALS, seed: int = 0) -> Proposal:
    """One ask and tell without a study."""
    number = history.next_number
    suggestion = strategy(history, SPACE, goals, ask_rng(seed, number))
    if not isinstance(suggestion, Suggestion):
        suggestion = Suggestion(suggestion)
    architecture = SPACE.canonical(suggestion.values)
    metrics = {"accuracy": accuracy(architecture, 0), "params": float(SPACE.cost(architecture).params)}
    violations = {"params.max": (metrics["params"] - 2500) / 2500}
    state = "failed" if number % 7 == 3 else "infeasible" if violations["params.max"] > 0 else "complete"
    if number % 11 == 5:
        state = "running"
    return Proposal(
        number,
        architecture.values,
        architecture.digest,
        state,
        metrics,
        violations,
        suggestion.notes,  # type: ignore[arg-type]
    )


def walk(name: str, length: int, seed: int = 0) -> list[Proposal]:
    strategy, proposals = make_strategy(name, OPTIONS[name]), []
    for _ in range(length):
        proposals.append(step(strategy, History(proposals), seed=seed))
    return proposals


@pytest.mark.parametrize("name", OPTIONS)
def test_cold_and_warm_propose_the_same(name: str) -> None:
    """A resumed search starts with cold caches, and must go on as the uninterrupted one would have."""
    length = 14 if name == "optuna_gp" else 40
    warm = walk(name, length)
    for number in range(0, length, 5):
        cold = step(make_strategy(name, OPTIONS[name]), History(warm[:number]))
        assert cold == warm[number]
    if name != "expansion":  # which draws nothing while it has a path
        assert walk(name, 10, seed=1) != warm[:10]


@pytest.mark.parametrize("name", OPTIONS)
def test_one_goal_works_too(name: str) -> None:
    strategy, proposals = make_strategy(name, OPTIONS[name]), []
    for _ in range(9):
        proposals.append(step(strategy, History(proposals), GOALS[:1]))
    assert len({one.digest for one in proposals}) > 3


def test_caches_of_one_search_do_not_leak_into_another() -> None:
    """The same strategy object, a different history: proposals must be those of a fresh object."""
    strategy = make_strategy("tpe", OPTIONS["tpe"])
    first, second = walk("tpe", 20, seed=0), walk("tpe", 20, seed=1)
    for history in (first, second, first[:10], second[:15]):
        assert step(strategy, History(history)) == step(make_strategy("tpe", OPTIONS["tpe"]), History(history))


def test_proposals_do_not_depend_on_the_hash_seed() -> None:
    """Python orders sets of strings differently in every process; a resumed process must not notice."""
    code = (
        "from tests.search.test_strategies import walk\n"
        "print([p.digest[:8] for name in ('random', 'tpe', 'nsga2', 'evolution') for p in walk(name, 24)])"
    )
    root = Path(__file__).parents[2]
    outputs = {
        subprocess.run(
            [sys.executable, "-c", code],
            cwd=root,
            env={"PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(outputs) == 1


def test_nsga2_finds_its_generations_again() -> None:
    """Without the generation of every trial it would stay random for ever."""
    proposals = walk("nsga2", 40)
    generations = [one.notes["NSGAIISampler:generation"] for one in proposals]
    assert max(generations) >= 3
    assert generations == sorted(generations)
    blind = History([Proposal(one.number, one.values, one.digest, one.state, one.metrics) for one in proposals])
    assert step(nsga2(population=6), blind).notes["NSGAIISampler:generation"] == 0


@pytest.mark.parametrize("name", ["tpe", "evolution"])
def test_guided_strategies_beat_random_on_an_easy_problem(name: str) -> None:
    def best(strategy_name: str, seed: int) -> float:
        strategy, proposals = make_strategy(strategy_name, OPTIONS[strategy_name]), []
        for number in range(50):
            one = step(strategy, History(proposals), GOALS[:1], seed)
            proposals.append(Proposal(number, one.values, one.digest, "complete", one.metrics))
        return max(one.metrics["accuracy"] for one in proposals)

    assert np.mean([best(name, seed) for seed in range(4)]) > np.mean([best("random", seed) for seed in range(4)])


def test_evolution_mutates_a_member_of_the_living_population() -> None:
    proposals = [one for one in walk("random", 60) if one.state == "complete"]
    strategy = regularised_evolution(population=5, tournament=5, startup=5)
    alive = History(proposals).complete[-5:]
    best = alive[ranking(losses([one.metrics for one in alive], GOALS))[0]]
    for seed in range(10):
        suggestion = strategy(History(proposals), SPACE, GOALS, ask_rng(seed, 0))
        assert isinstance(suggestion, Suggestion) and f"trial {best.number}" in suggestion.why
        child = SPACE.canonical(suggestion.values)
        assert child in SPACE.neighbours(SPACE.canonical(best.values))


def test_ranking_puts_fronts_first_and_the_lonely_before_the_crowded() -> None:
    matrix = np.array([[0.0, 4.0], [1.0, 1.0], [4.0, 0.0], [1.1, 0.9], [2.0, 2.0], [5.0, 5.0]])
    order = ranking(matrix)
    assert set(order[:4]) == set(front_indices(matrix)) == {0, 1, 2, 3}
    assert order[4:] == [4, 5]
    assert set(order[:2]) == {0, 2}
    assert np.isinf(crowding_distance(matrix[[0, 1, 2]])[[0, 2]]).all()
    assert ranking(np.array([[1.0], [0.0], [np.nan]])) == [1, 0, 2]


@pytest.mark.parametrize(
    ("name", "options", "expected"),
    [
        ("tpe", {"startups": 3}, "startup"),
        ("evolution", {"tournament": 99}, "between 1 and the population"),
        ("nsga2", {"population": 1}, "search.options.population"),
        ("random", {"x": 1}, "none"),
        ("evolutoin", {}, "evolution"),
    ],
)
def test_a_wrong_option_is_answered_with_the_right_ones(name: str, options: dict, expected: str) -> None:
    with pytest.raises(NasplatError) as error:
        make_strategy(name, options)
    assert expected in str(error.value)


def test_our_strategies_serve_as_an_optuna_sampler() -> None:
    """Who has an Optuna study of their own gets regularised evolution in it."""

    def objective(trial: optuna.Trial) -> tuple[float, float]:
        architecture = suggest(trial, SPACE)
        return accuracy(architecture, 0), float(SPACE.cost(architecture).params)

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    found = []
    for _ in range(2):
        sampler = StrategySampler(regularised_evolution(startup=5), SPACE, GOALS, seed=3)
        study = optuna.create_study(directions=["maximize", "minimize"], sampler=sampler)
        study.optimize(objective, n_trials=15)
        found.append([trial.params for trial in study.trials])
    assert found[0] == found[1]
    assert len(study.best_trials) > 1


def test_the_seed_of_a_candidate_is_its_own() -> None:
    """Golden: another value would change every table that was ever measured."""
    assert candidate_seed(0, "ab" * 32) == candidate_seed(0, "ab" * 32, 0) == 7805167776713844282
    assert len({candidate_seed(s, d, r) for s in (0, 1) for d in ("a", "b") for r in (0, 1)}) == 8


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("gp", {"again": 1.0}, "search.options.again of the strategy 'gp' cannot be 1.0"),
        ("gp", {"startup": "x"}, "search.options.startup"),
        ("gp", {"screened": 0}, "search.options.screened"),
        ("gp", {"reference": 3}, "search.options.reference"),
        ("evolution", {"population": 2.5}, "search.options.population"),
        ("evolution", {"population": 4, "tournament": 6}, "tournament must lie between 1 and the population"),
        ("local_search", {"startup": 0}, "search.options.startup"),
        ("reinforce", {"rollouts": 1}, "search.options.rollouts"),
        ("reinforce", {"decay": 1.0}, "search.options.decay"),
        ("expansion", {"growth": 1.0}, "search.options.growth"),
        ("expansion", {"cost": "flops"}, "search.options.cost"),
        ("expansion", {"target": "accuracy"}, "search.options.target"),
        ("tpe", {"candidates": 0}, "search.options.candidates"),
        ("nsga2", {"mutation": 5}, "search.options.mutation"),
    ],
)
def test_a_wrong_option_is_named_before_anything_runs(name: str, options: dict[str, Any], words: str) -> None:
    """Otherwise it is a fault of Python in the middle of a search."""
    with pytest.raises(NasplatError) as caught:
        make_strategy(name, options)
    assert words in caught.value.message


def test_gp_learns_from_what_a_constraint_on_accuracy_refused() -> None:
    """Taught by the accepted alone it believes that all are as good, and proposes what is refused for ever."""
    space = ToySpace(3)
    bounds = {"accuracy": Bounds(min=0.7)}
    feasible = within(space, bounds)
    strategy, found = make_strategy("gp"), []
    for number in range(40):
        history = History(found)
        suggestion = strategy(history, feasible, GOALS, np.random.default_rng(number))
        one = space.canonical(suggestion.values)
        metrics = {**space.known(one), "accuracy": accuracy(one, 0)}
        state = "complete" if metrics["accuracy"] >= 0.7 else "infeasible"
        violation = {"accuracy.min": 0.7 - metrics["accuracy"]}
        found.append(Proposal(number, one.values, one.digest, state, metrics, violation, seconds=1.0))
    usable = [one.state == "complete" for one in found]
    every = [accuracy(one, 0) >= 0.7 for one in space.enumerate()]
    assert sum(every) / len(every) < 0.35  # so much a random search would find
    assert sum(usable[15:]) / 25 > 0.6
