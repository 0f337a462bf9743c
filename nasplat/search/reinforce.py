"""A controller that learns which options pay, by policy gradient (Zoph et al., NASNet, 2018)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated

import numpy as np
from pydantic import Field

from nasplat.core.choice import Choice, Values
from nasplat.core.front import Goal, losses
from nasplat.core.space import SearchSpace
from nasplat.search.evolution import ranking
from nasplat.search.history import History, Proposal
from nasplat.search.options import AtLeast1, AtLeast2, Positive, Share
from nasplat.search.suggestion import Strategy, Suggestion

WINDOW = 64


def reinforce(
    rollouts: AtLeast2 = 8,
    lr: Positive = 0.5,
    clip: Annotated[float, Field(gt=0, lt=1)] = 0.2,
    epochs: AtLeast1 = 4,
    entropy: Share = 0.02,
    decay: Annotated[float, Field(ge=0, lt=1)] = 0.9,
) -> Strategy:
    """A policy with a softmax for every choice, updated by PPO (Schulman et al., 2017) after every batch of rollouts.

    Each rollout is credited with its own advantage, its reward minus a running average: a batch credited with its mean
    reward teaches nothing about which of its rollouts was good. The reward is the place among the last `WINDOW`
    candidates, 1 for the best and 0 for the worst, by non-dominated rank and crowding where there are several goals;
    what failed or is infeasible has 0. The policy is replayed from the history, so it needs no storage of its own.

    Args:
        rollouts: finished proposals to an update.
        lr: step of the gradient ascent on the logits.
        clip: by how much the probability of a rollout may change in one update, as a ratio.
        epochs: steps with the same rollouts.
        entropy: weight of the bonus that keeps the policy from settling too soon.
        decay: of the running average.
    """
    updates = Updates(lr, clip, epochs, entropy, decay)
    replayed: list[tuple[object, Policy]] = []  # what an update was made of, and the policy after it

    def propose(history: History, space: SearchSpace, goals: Sequence[Goal], rng: np.random.Generator, /) -> Suggestion:
        finished = [one for one in history if one.state not in ("running", "screened") and _answered(one, goals)]
        batches = [finished[start : start + rollouts] for start in range(0, len(finished) - rollouts + 1, rollouts)]
        policy = start_policy(space.choices)
        for place, batch in enumerate(batches):
            made_of = (space.fingerprint, [(one.number, one.digest, one.state, dict(one.metrics)) for one in batch])
            if place >= len(replayed) or replayed[place][0] != made_of:
                del replayed[place:]
                past = finished[max(0, (place + 1) * rollouts - WINDOW) : (place + 1) * rollouts]
                rewards = rewards_of(past, goals)[-rollouts:]
                replayed.append((made_of, updates(policy, policy.actions(batch), rewards)))
            policy = replayed[place][1]
        values, likely = policy.draw(rng)
        return Suggestion(values, why=f"drawn from the policy after {len(batches)} updates, likelihood {likely:.2g}")

    return propose


def _answered(one: Proposal, goals: Sequence[Goal]) -> bool:
    return one.state in ("failed", "infeasible") or all(goal.metric in one.metrics for goal in goals)


def rewards_of(past: Sequence[Proposal], goals: Sequence[Goal]) -> np.ndarray:
    """`(N,)` the place of each among all, from 1 for the best to 0; 0 for what failed or is infeasible."""
    rewards = np.zeros(len(past))
    good = [place for place, one in enumerate(past) if one.state not in ("failed", "infeasible")]
    order = ranking(losses([past[place].metrics for place in good], goals))
    for position, row in enumerate(order):
        rewards[good[row]] = 1 - position / max(len(past) - 1, 1)
    return rewards


@dataclass(frozen=True)
class Policy:
    """Independent softmaxes over the options of every choice.

    Args:
        choices: of the space.
        logits: `(choices, options)`, minus infinity where a choice has fewer options.
        baseline: running average of the rewards; None before the first.
    """

    choices: Mapping[str, Choice]
    logits: np.ndarray
    baseline: float | None = None

    @property
    def probabilities(self) -> np.ndarray:
        """`(choices, options)`."""
        shifted = np.exp(self.logits - self.logits.max(1, keepdims=True))
        return np.asarray(shifted / shifted.sum(1, keepdims=True))

    def actions(self, batch: Sequence[Proposal]) -> np.ndarray:
        """`(N, choices)` positions of the options that were drawn; where a proposal was settled, before that."""
        drawn = [one.proposed if one.proposed is not None else one.values for one in batch]
        return np.array([[choice.index(values[name]) for name, choice in self.choices.items()] for values in drawn])

    def draw(self, rng: np.random.Generator) -> tuple[Values, float]:
        """Values, and their probability."""
        heaps = self.probabilities.cumsum(1)
        picked = np.minimum((heaps < rng.random((len(heaps), 1)) * heaps[:, -1:]).sum(1), _counts(self.choices) - 1)
        likely = float(np.prod(self.probabilities[np.arange(len(picked)), picked]))
        values = {name: choice.options[at] for (name, choice), at in zip(self.choices.items(), picked, strict=True)}
        return values, likely


def start_policy(choices: Mapping[str, Choice]) -> Policy:
    """Every option as likely as any other."""
    counts = _counts(choices)
    return Policy(choices, np.where(np.arange(counts.max()) < counts[:, None], 0.0, -np.inf))


def _counts(choices: Mapping[str, Choice]) -> np.ndarray:
    return np.array([len(choice.options) for choice in choices.values()])


@dataclass(frozen=True)
class Updates:
    """PPO's update of a policy; see `reinforce` for the parameters."""

    lr: float
    clip: float
    epochs: int
    entropy: float
    decay: float

    def __call__(self, policy: Policy, actions: np.ndarray, rewards: np.ndarray) -> Policy:
        """The policy after rollouts.

        Args:
            actions: `(N, choices)`.
            rewards: `(N,)`.
        """
        mean = float(rewards.mean())
        baseline = mean if policy.baseline is None else policy.baseline
        advantages = rewards - baseline
        taken = np.arange(policy.logits.shape[1]) == actions[:, :, None]  # (N, choices, options)
        before = _log_likelihood(policy.probabilities, actions)
        logits = policy.logits
        for _ in range(self.epochs):
            now = Policy(policy.choices, logits).probabilities
            ratio = np.exp(_log_likelihood(now, actions) - before)
            # Where the ratio has left the clipped range on the side of its advantage, PPO's objective is flat.
            moves = np.where(advantages > 0, ratio < 1 + self.clip, ratio > 1 - self.clip)
            weight = advantages * ratio * moves / len(actions)
            gradient = np.einsum("n,nck->ck", weight, taken - now)
            logs = np.log(np.maximum(now, 1e-12))
            gradient -= self.entropy * now * (logs - (now * logs).sum(1, keepdims=True))
            logits = logits + self.lr * gradient
        return Policy(policy.choices, logits, self.decay * baseline + (1 - self.decay) * mean)


def _log_likelihood(probabilities: np.ndarray, actions: np.ndarray) -> np.ndarray:
    """`(N,)`."""
    picked = probabilities[np.arange(actions.shape[1]), actions]
    return np.asarray(np.log(np.maximum(picked, 1e-12)).sum(1))
