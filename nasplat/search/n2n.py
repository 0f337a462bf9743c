"""Network-to-network compression: policies that learn which layers to remove, then how far to shrink the others.

Ashok et al., N2N Learning: Network to Network Compression via Policy Gradient Reinforcement Learning, 2018.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

import numpy as np
from pydantic import Field

from nasplat.core.choice import Option
from nasplat.core.errors import NasplatError
from nasplat.core.front import Goal
from nasplat.core.space import SearchSpace
from nasplat.search.history import History, Proposal
from nasplat.search.options import AtLeast2, Positive
from nasplat.search.suggestion import Strategy, Suggestion

if TYPE_CHECKING:
    from nasplat.search.n2n_policy import Learner, Stage

PATIENCE = 15  # updates over which a proposal against a constraint becomes worth nothing
_STAGE, _ACTIONS = "n2n_stage", "n2n_actions"


def n2n(
    removal: Annotated[int, Field(ge=0)] = 30,
    rollouts: AtLeast2 = 5,
    lr: Positive = 0.003,
    decay: Annotated[float, Field(ge=0, lt=1)] = 0.9,
    cost: Literal["params", "macs"] = "params",
) -> Strategy:
    """Layer removal, then shrinkage, each by a recurrent policy that REINFORCE trains (N2N, Ashok et al., 2018).

    A bidirectional LSTM reads the removable blocks and says of each whether it stays; an autoregressive one then goes
    through the groups of channels of the best network of the first stage, and says which share of each stays. The
    reward is `a C (2 - C)`, with the accuracy a and the compression C = 1 - cost / cost of the original (the paper
    divides a by the teacher's, which scales all rewards alike); a network that failed has -1, and one against a
    constraint `e - 1`, where e falls from 1 to 0 over the first 15 updates. Every rollout is credited with its own
    advantage over a running mean. The policies are replayed from the history.

    For spaces of family pruning, and `train: {distill: {weights: {logit_mse: 1}}}`, as in the paper. The last blocks
    of a stage go first there, so that of the decisions on a stage their number counts.

    Args:
        removal: proposals of the first stage; 0, or a space without removable blocks, has none.
        rollouts: finished proposals to an update.
        lr: of Adam.
        decay: of the running mean of rewards.
        cost: that is compressed.
    """
    replayed: list[tuple[object, Learner]] = []  # what an update was made of, and the policy after it

    def propose(history: History, space: SearchSpace, goals: Sequence[Goal], rng: np.random.Generator, /) -> Suggestion:
        quality, table = _quality(goals), _table(space, cost)
        drawn = [one for one in history if _STAGE in one.notes]
        removed = [one for one in drawn if one.notes[_STAGE] == "removal"]
        stage: Stage = "removal" if table.depths and len(removed) < removal else "shrink"

        def reward(one: Proposal, update: int) -> float:
            if one.state == "failed":
                return -1.0
            if one.state == "infeasible":
                return max(0.0, 1 - update / PATIENCE) ** 4 - 1
            compression = 1 - float(one.metrics[cost]) / table.whole
            return float(one.metrics[quality]) * compression * (2 - compression)

        learner = table.learners[stage]
        done = [one for one in drawn if one.notes[_STAGE] == stage and _answered(one, quality)]
        updates = len(done) // rollouts
        for update in range(updates):
            batch = done[update * rollouts : (update + 1) * rollouts]
            made_of = (space.fingerprint, stage, [(one.number, one.state, dict(one.metrics)) for one in batch])
            if update >= len(replayed) or replayed[update][0] != made_of:
                del replayed[update:]
                actions = [one.notes[_ACTIONS] for one in batch]
                rewards = [reward(one, update) for one in batch]
                replayed.append((made_of, learner.updated(actions, rewards, lr, decay)))
            learner = replayed[update][1]
        actions = learner.policy.draw(rng)
        if stage == "removal":
            values = table.depths_of(actions)
        else:
            good = [one for one in removed if one.state in ("complete", "repeat") and _answered(one, quality)]
            best = max(good, key=lambda one: reward(one, 0), default=None)
            values = {name: best.values[name] for name in table.depths} if best is not None else {}
            values |= {name: space.choices[name].options[at] for name, at in zip(table.ratios, actions, strict=True)}
        what = "removal of blocks" if stage == "removal" else "shrinkage"
        return Suggestion(values, {_STAGE: stage, _ACTIONS: actions}, f"{what}, after {updates} updates of its policy")

    tables: dict[str, _Table] = {}

    def _table(space: SearchSpace, cost: str) -> _Table:
        if space.fingerprint not in tables:
            tables[space.fingerprint] = _read(space, cost)
        return tables[space.fingerprint]

    return propose


def _quality(goals: Sequence[Goal]) -> str:
    for goal in goals:
        if goal.direction == "maximize":
            return goal.metric
    raise NasplatError("the strategy n2n needs a metric that is maximised, such as accuracy", "score: {maximise: …}")


def _answered(one: Proposal, quality: str) -> bool:
    return one.state in ("failed", "infeasible") or quality in one.metrics


@dataclass(frozen=True)
class _Table:
    """What the policies decide on.

    Args:
        depths: by choice, how many blocks there are.
        ratios: names of the choices of ratios.
        whole: cost of the original.
        learners: untrained.
    """

    depths: Mapping[str, int]
    ratios: tuple[str, ...]
    whole: float
    learners: Mapping[Stage, Learner]

    def depths_of(self, actions: Sequence[int]) -> dict[str, Option]:
        """Decisions on each block, 1 where it stays, as depths."""
        found: dict[str, Option] = {}
        begin = 0
        for name, count in self.depths.items():
            found[name] = sum(actions[begin : begin + count])
            begin += count
        return found


def _read(space: SearchSpace, cost: str) -> _Table:
    from nasplat.search.n2n_policy import first_learners

    depths = {name: len(one.options) - 1 for name, one in space.choices.items() if name.endswith(".depth")}
    ratios = tuple(name for name in space.choices if name.endswith(".ratio"))
    if not ratios or len(depths) + len(ratios) < len(space.choices):
        raise NasplatError("the strategy n2n makes a trained network smaller", "use a space of family pruning")
    whole = dict(space.known(space.canonical({})))

    def saved(name: str, option: Option) -> list[float]:
        """What of both costs a choice saves alone."""
        found = space.known(space.canonical({name: option}))
        return [1 - float(found[key]) / whole[key] for key in ("macs", "params")]

    blocks = [
        [place / count, stage / len(depths), *saved(name, place)]
        for stage, (name, count) in enumerate(depths.items())
        for place in range(count)
    ]
    groups = [[place / len(ratios), *saved(name, space.choices[name].options[-1])] for place, name in enumerate(ratios)]
    options = len(space.choices[ratios[0]].options)
    return _Table(depths, ratios, float(whole[cost]), first_learners(np.array(blocks), np.array(groups), options))
