"""The recurrent policies of `nasplat.search.n2n`, and how they learn."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

UNITS = 30
LAYERS = 2
Stage = Literal["removal", "shrink"]


class Removal(nn.Module):
    """Reads all blocks from both sides, and says of each whether it stays."""

    seen: Tensor

    def __init__(self, blocks: Tensor) -> None:
        super().__init__()
        self.register_buffer("seen", blocks)
        self.memory = nn.LSTM(blocks.shape[1], UNITS, LAYERS, bidirectional=True)
        self.decide = nn.Linear(2 * UNITS, 2)

    def log_likelihood(self, actions: Tensor) -> Tensor:
        """Of decisions `(N, blocks)`, 1 where a block stays: `(N,)`."""
        logs = self._logs()
        return (logs[None] * F.one_hot(actions, 2)).sum((1, 2))

    @torch.no_grad()
    def draw(self, rng: np.random.Generator) -> list[int]:
        return [int(rng.random() < keep) for keep in self._logs()[:, 1].exp().tolist()]

    def _logs(self) -> Tensor:
        found: Tensor = self.decide(self.memory(self.seen)[0]).log_softmax(1)
        return found


class Shrink(nn.Module):
    """Goes through the groups of channels, and says which option each takes, knowing those before."""

    seen: Tensor

    def __init__(self, groups: Tensor, options: int) -> None:
        super().__init__()
        self.register_buffer("seen", groups)
        self.options = options
        self.memory = nn.LSTM(groups.shape[1] + options, UNITS, LAYERS)
        self.decide = nn.Linear(UNITS, options)

    def log_likelihood(self, actions: Tensor) -> Tensor:
        """Of options `(N, groups)`, by their positions: `(N,)`."""
        taken = F.one_hot(actions, self.options).float()
        before = torch.cat([torch.zeros_like(taken[:, :1]), taken[:, :-1]], 1)
        inputs = torch.cat([self.seen.expand(len(actions), -1, -1), before], 2).transpose(0, 1)
        logs = self.decide(self.memory(inputs)[0]).log_softmax(2).transpose(0, 1)
        return (logs * taken).sum((1, 2))

    @torch.no_grad()
    def draw(self, rng: np.random.Generator) -> list[int]:
        actions: list[int] = []
        state, before = None, torch.zeros(self.options)
        for group in self.seen:
            output, state = self.memory(torch.cat([group, before])[None, None], state)
            shares = self.decide(output[0, 0]).double().softmax(0).cumsum(0).numpy()
            actions.append(int(min(np.searchsorted(shares, rng.random() * shares[-1], "right"), self.options - 1)))
            before = F.one_hot(torch.tensor(actions[-1]), self.options).float()
        return actions


@dataclass(frozen=True)
class Learner:
    """A policy, what its optimiser remembers, and the running mean of rewards; an update makes another one."""

    policy: Removal | Shrink
    optimiser: Mapping[str, Any] = field(default_factory=dict)
    baseline: float | None = None

    def updated(self, actions: Sequence[Sequence[int]], rewards: Sequence[float], lr: float, decay: float) -> Learner:
        """After one step of REINFORCE, every rollout credited with its own advantage (Williams, 1992)."""
        policy = copy.deepcopy(self.policy)
        optimiser = torch.optim.Adam(policy.parameters(), lr=lr)
        if self.optimiser:
            optimiser.load_state_dict(copy.deepcopy(dict(self.optimiser)))
        found = torch.tensor(rewards, dtype=torch.float32)
        baseline = float(found.mean()) if self.baseline is None else self.baseline
        loss = -((found - baseline) * policy.log_likelihood(torch.tensor(actions))).mean()
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        after = decay * baseline + (1 - decay) * float(found.mean())
        return replace(self, policy=policy, optimiser=optimiser.state_dict(), baseline=after)


def first_learners(blocks: np.ndarray, groups: np.ndarray, options: int) -> dict[Stage, Learner]:
    """Untrained policies, always the same.

    Args:
        blocks, groups: what is known of each `(blocks, features)`, `(groups, features)`.
        options: of each group.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        found: dict[Stage, Learner] = {"shrink": Learner(Shrink(torch.tensor(groups, dtype=torch.float32), options))}
        if len(blocks):
            found["removal"] = Learner(Removal(torch.tensor(blocks, dtype=torch.float32)))
    return found
