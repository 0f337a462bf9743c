"""The policy of `reinforce`: what it learns from, and that it learns."""

import numpy as np
import pytest

from nasplat.core.front import Goal
from nasplat.search.history import History, Proposal
from nasplat.search.reinforce import Updates, reinforce, rewards_of, start_policy
from nasplat.search.seeds import ask_rng
from nasplat.search.strategies import random
from tests.search.toys import ToySpace, accuracy

ONE = (Goal("accuracy", "maximize"),)
TWO = (*ONE, Goal("params", "minimize"))
SPACE = ToySpace(layers=3)
PLAIN = Updates(lr=0.5, clip=0.2, epochs=1, entropy=0.0, decay=0.9)


def search(strategy: object, goals: tuple[Goal, ...], budget: int, seed: int) -> list[Proposal]:
    found: list[Proposal] = []
    for number in range(budget):
        suggestion = strategy(History(found), SPACE, goals, ask_rng(seed, number))  # type: ignore[operator]
        values = getattr(suggestion, "values", suggestion)
        values = values if not callable(values) else suggestion
        one = SPACE.canonical(values)
        metrics = {**SPACE.known(one), "accuracy": accuracy(one, 0)}
        found.append(Proposal(number, one.values, one.digest, "complete", metrics, proposed=dict(values)))
    return found


def test_each_rollout_is_credited_with_its_own_advantage() -> None:
    """The published mistake: with the mean reward of the batch for all, good and bad options move alike."""
    policy = start_policy(SPACE.choices)
    actions = np.zeros((2, len(SPACE.choices)), dtype=int)
    actions[1] = 1
    moved = PLAIN(policy, actions, np.array([1.0, 0.0])).logits - policy.logits
    assert (moved[:, 0] > 0).all() and (moved[:, 1] < 0).all()
    assert moved[:, 0] == pytest.approx(-moved[:, 1])
    # What the mean would do: both rewards are the baseline, so nothing would move.
    assert np.nan_to_num(PLAIN(policy, actions, np.array([0.5, 0.5])).logits - policy.logits) == pytest.approx(0)


def test_the_step_is_the_gradient_of_the_objective() -> None:
    """Against a numerical gradient of the mean of ratio times advantage, plus the entropy."""
    rng = np.random.default_rng(0)
    policy = start_policy(SPACE.choices)
    finite = np.isfinite(policy.logits)
    policy = type(policy)(policy.choices, np.where(finite, rng.normal(size=finite.shape), -np.inf), 0.3)
    actions = np.array(
        [[int(rng.integers(len(choice.options))) for choice in SPACE.choices.values()] for _ in range(5)]
    )
    rewards = rng.random(5)

    def objective(logits: np.ndarray) -> float:
        def likely(p: np.ndarray) -> np.ndarray:
            return np.prod(p[np.arange(actions.shape[1]), actions], axis=1)

        now = type(policy)(policy.choices, logits).probabilities
        entropy = -np.sum(now[finite] * np.log(now[finite]))
        return float(np.mean(likely(now) / likely(policy.probabilities) * (rewards - 0.3)) + 0.05 * entropy)

    step = Updates(lr=1.0, clip=0.9, epochs=1, entropy=0.05, decay=0.9)(policy, actions, rewards).logits - policy.logits
    for place in zip(*np.nonzero(finite), strict=True):
        shift = np.zeros_like(policy.logits)
        shift[place] = 1e-5
        slope = (objective(policy.logits + shift) - objective(policy.logits - shift)) / 2e-5
        assert step[place] == pytest.approx(slope, abs=1e-6)


def test_no_update_leaves_the_clipped_range_by_much() -> None:
    """Without clipping, one lucky batch would settle the policy for good."""
    policy = start_policy(SPACE.choices)
    actions = np.zeros((4, len(SPACE.choices)), dtype=int)
    rewards = np.array([1.0, 1.0, 1.0, 0.5])
    gone = []
    for epochs in (20, 200):
        after = Updates(lr=0.05, clip=0.2, epochs=epochs, entropy=0.0, decay=0.9)(
            type(policy)(policy.choices, policy.logits, 0.0), actions, rewards
        )
        gone.append(float(np.prod(after.probabilities[:, 0] / policy.probabilities[:, 0])))
    assert gone[0] == pytest.approx(gone[1]) and 1.2 <= gone[1] < 1.3


def test_failures_teach_and_fronts_are_ranked() -> None:
    metrics = [{"accuracy": a, "params": p} for a, p in [(0.9, 5.0), (0.5, 1.0), (0.4, 6.0)]]
    past = [Proposal(n, {}, str(n), "complete", one) for n, one in enumerate(metrics)]
    past.append(Proposal(3, {}, "3", "failed"))
    rewards = rewards_of(past, TWO)
    assert rewards[3] == 0 and min(rewards[0], rewards[1]) > rewards[2] > 0
    assert rewards_of(past, ONE)[0] == 1.0


def test_it_learns() -> None:
    """Late proposals must be better than early ones and than random ones, over seeds."""
    gain, ahead = [], []
    for seed in range(6):
        own, free = search(reinforce(), ONE, 120, seed), search(random(), ONE, 120, seed)
        scores = [one.metrics["accuracy"] for one in own]
        gain.append(np.mean(scores[-24:]) - np.mean(scores[:24]))
        ahead.append(np.mean(scores[-24:]) - np.mean([one.metrics["accuracy"] for one in free[-24:]]))
    assert np.mean(gain) > 0.1 and np.mean(ahead) > 0.1


def test_several_goals() -> None:
    found = search(reinforce(), TWO, 60, 0)
    assert len({one.digest for one in found}) > 20
