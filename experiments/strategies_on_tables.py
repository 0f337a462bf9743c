"""Searches of a table in memory: the same bookkeeping for every strategy, nothing written."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from nasplat.core.architecture import Architecture
from nasplat.core.front import Goal, hypervolume, losses
from nasplat.search.history import History, Proposal
from nasplat.search.propose import Exhausted, propose
from nasplat.search.seeds import ask_rng, candidate_seed
from nasplat.search.suggestion import Strategy, Suggestion
from nasplat.spaces.tabular import TabularSpace


@dataclass(frozen=True)
class Found:
    """What one search evaluated, in order: architectures and what was measured of each."""

    architectures: tuple[Architecture, ...]
    metrics: tuple[dict[str, float], ...]
    history: History
    repeats: int


def search(
    strategy: Strategy,
    space: TabularSpace,
    goals: Sequence[Goal],
    budget: int,
    seed: int,
    *,
    batch: int = 1,
    repeats_count: bool = False,
) -> Found:
    """Evaluates `budget` candidates.

    Args:
        batch: so many proposals are made before the first of them is answered.
        repeats_count: a repeat is evaluated again, with a new seed, and spends the budget; otherwise it is answered
            from the record, as in a nasplat study.
    """
    proposals: list[Proposal] = []
    found: list[tuple[Architecture, dict[str, float]]] = []
    repeats, waiting = 0, 0
    while len(found) < budget:
        history = History(proposals)
        number = history.next_number
        if repeats_count:
            suggestion = strategy(history, space, goals, ask_rng(seed, number))
            values = suggestion.values if isinstance(suggestion, Suggestion) else suggestion
            notes = suggestion.notes if isinstance(suggestion, Suggestion) else {}
            architecture, original = space.canonical(values), None
            replicate = sum(one.digest == architecture.digest for one in proposals)
        else:
            draft = propose(strategy, history, space, goals, {}, seed)
            if isinstance(draft, Exhausted):
                break
            architecture, notes, original, replicate = draft.architecture, draft.notes, draft.repeat_of, draft.replicate
        known = dict(space.known(architecture))
        made = Proposal(
            number, architecture.values, architecture.digest, "running", known, notes=notes, replicate=replicate
        )
        if original is not None:
            repeats += 1
            proposals.append(replace(made, state="repeat", metrics=original.metrics, repeat_of=original.number))
            continue
        repeats += replicate > 0
        found.append(
            (
                architecture,
                {**known, **space.measure(architecture, candidate_seed(seed, architecture.digest, replicate))},
            )
        )
        proposals.append(made)
        waiting += 1
        if waiting == batch or len(found) == budget:
            measured = iter(found[len(found) - waiting :])
            for place, one in enumerate(proposals):
                if one.state == "running":
                    proposals[place] = replace(one, state="complete", metrics=next(measured)[1])
                elif one.state == "repeat":
                    first = next(other for other in proposals if other.number == one.repeat_of)
                    proposals[place] = replace(one, metrics=first.metrics)
            waiting = 0
    return Found(tuple(one for one, _ in found), tuple(metrics for _, metrics in found), History(proposals), repeats)


def volume(points: Sequence[dict[str, float]], goals: Sequence[Goal], corner: Sequence[float]) -> float:
    """The hypervolume of true metrics, up to a corner in losses."""
    return hypervolume(losses(points, goals), corner)


def regret(space: TabularSpace, chosen: Architecture, best: float, metric: str = "accuracy") -> float:
    """By how much the true mean of a choice is below the best of the table."""
    return best - space.mean(chosen)[metric]


def best_observed(found: Found, at: int, metric: str = "accuracy") -> Architecture:
    """The candidate of the luckiest observation among the first `at`."""
    values = [one[metric] for one in found.metrics[:at]]
    return found.architectures[int(np.argmax(values))]
