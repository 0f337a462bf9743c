"""What is asked for next: a strategy's proposal, with de-duplication and hard constraints around it.

What the strategy proposes goes into the study even when it is a repeat or violates a constraint, so that the strategy
learns of it; neither costs an evaluation. After `PATIENCE` of these in a row the wrapper looks for itself: for an
architecture near the proposal that is new and meets the constraints.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np

from nasplat.core.architecture import Architecture
from nasplat.core.errors import NasplatError
from nasplat.core.front import Goal
from nasplat.core.space import SearchSpace
from nasplat.search.constraints import Constraints, cost_metrics, describe, excess, violations
from nasplat.search.history import History
from nasplat.search.seeds import ask_rng
from nasplat.search.study import Draft
from nasplat.search.suggestion import Strategy, Suggestion

PATIENCE = 5
WALKS = 100
SAMPLES = 200
DESCENT = 2_000
ENUMERABLE = 5_000


@dataclass(frozen=True)
class Exhausted:
    """Nothing new was found; `reason` says what was looked at."""

    reason: str


def propose(
    strategy: Strategy,
    history: History,
    space: SearchSpace,
    goals: Sequence[Goal],
    constraints: Constraints,
    seed: int,
) -> Draft | Exhausted:
    """The next draft: the same whenever the history is the same.

    Raises:
        NasplatError: no architecture that meets the constraints was ever seen, and a bounded search found none.
    """
    number = history.next_number
    suggestion = strategy(history, space, goals, ask_rng(seed, number))
    if not isinstance(suggestion, Suggestion):
        suggestion = Suggestion(suggestion)
    architecture = space.canonical(suggestion.values)
    original = history.by_digest.get(architecture.digest)
    if original is not None:
        draft = Draft(architecture, suggestion.values, notes=suggestion.notes, repeat_of=original)
    else:
        draft = _draft(space, architecture, constraints, suggestion)
        if excess(draft.violations) == 0:
            return draft
    if history.barren < PATIENCE:
        return draft
    return _look_around(draft, history, space, constraints, ask_rng(seed, number, 1), suggestion)


def _draft(space: SearchSpace, architecture: Architecture, constraints: Constraints, suggestion: Suggestion) -> Draft:
    cost = cost_metrics(space, architecture)
    found = violations(cost, constraints)
    return Draft(
        architecture,
        suggestion.values,
        cost=cost,
        violations=found,
        reason=describe(cost, found, constraints),
        notes=suggestion.notes,
    )


def _look_around(
    draft: Draft,
    history: History,
    space: SearchSpace,
    constraints: Constraints,
    rng: np.random.Generator,
    suggestion: Suggestion,
) -> Draft | Exhausted:
    looked: set[str] = set()
    nearest = draft if draft.repeat_of is None else None

    def fresh(candidates: Iterable[Architecture]) -> Draft | None:
        nonlocal nearest
        for architecture in candidates:
            if architecture.digest in history.by_digest or architecture.digest in looked:
                continue
            looked.add(architecture.digest)
            found = _draft(space, architecture, constraints, suggestion)
            if nearest is None or excess(found.violations) < excess(nearest.violations):
                nearest = found
            if excess(found.violations) == 0:
                return found
        return None

    found = fresh(_near(draft.architecture, space, rng)) or fresh(space.sample(rng) for _ in range(SAMPLES))
    if found is None and nearest is not None and constraints:
        found = fresh(_descent(nearest, space, constraints, rng))
    found = found or fresh(_listed(history, space))
    if found is not None:
        return found
    if not constraints:
        return Exhausted(f"all {len(history.by_digest)} architectures that could be found have been tried")
    if any(proposal.state != "infeasible" for proposal in history.by_digest.values()):
        return Exhausted("every architecture that could be found and meets the constraints has been tried")
    raise _nothing_meets(nearest, history, constraints)


def _near(start: Architecture, space: SearchSpace, rng: np.random.Generator) -> Iterator[Architecture]:
    """Random walks from the proposal, ever longer ones."""
    for attempt in range(WALKS):
        walker: Architecture | None = start
        for _ in range(1 + attempt // 10):
            walker = space.mutate(walker, rng) if walker is not None else None
        if walker is not None:
            yield walker


def _descent(
    start: Draft, space: SearchSpace, constraints: Constraints, rng: np.random.Generator
) -> Iterator[Architecture]:
    """Downhill in what is too much, one choice after the other, until no choice helps; a bounded number of looks."""
    here, least, looks = start.architecture, excess(start.violations), 0
    improved = True
    while improved and looks < DESCENT:
        improved = False
        for position in rng.permutation(len(space.choices)):
            choice = list(space.choices.values())[position]
            for option in choice.options:
                neighbour = space.canonical({**here.values, choice.name: option})
                looks += 1
                too_much = excess(violations(cost_metrics(space, neighbour), constraints))
                if too_much < least:
                    here, least, improved = neighbour, too_much, True
                    yield neighbour


def _listed(history: History, space: SearchSpace) -> Iterator[Architecture]:
    """All architectures, or where they are too many what one change makes of those that are known."""
    if space.count() <= ENUMERABLE:
        yield from space.enumerate()
        return
    known = (space.canonical(proposal.values) for proposal in reversed(history))
    yield from islice((near for one in known for near in space.neighbours(one)), ENUMERABLE)


def _nothing_meets(nearest: Draft | None, history: History, constraints: Constraints) -> NasplatError:
    reason, least = "", sys.float_info.max
    for proposal in history.by_digest.values():
        if excess(proposal.violations) < least:
            reason, least = proposal.reason, excess(proposal.violations)
    if nearest is not None and excess(nearest.violations) < least:
        reason = nearest.reason
    bounds = ", ".join(
        f"{name} {side} {bound:,.6g}"
        for name, one in constraints.items()
        for side, bound in (("min", one.min), ("max", one.max))
        if bound is not None
    )
    return NasplatError(
        f"no architecture of this space meets the constraints ({bounds})",
        f"the nearest that was found: {reason}; relax search.constraints, or choose a smaller space",
    )
