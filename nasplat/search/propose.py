"""What is asked for next: a strategy's proposal, with de-duplication and hard constraints around it.

What the strategy proposes goes into the study even when it is a repeat or violates a constraint, so that the strategy
learns of it; neither costs an evaluation. After `PATIENCE` of these in a row the wrapper looks for itself: for an
architecture near the proposal that is new and meets the constraints.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from weakref import WeakKeyDictionary

import numpy as np

from nasplat.core.architecture import Architecture
from nasplat.core.errors import NasplatError
from nasplat.core.front import Goal
from nasplat.core.space import SearchSpace
from nasplat.search.constraints import Constraints, describe, excess, violations
from nasplat.search.history import History
from nasplat.search.seeds import ask_rng
from nasplat.search.study import Draft
from nasplat.search.suggestion import Strategy, Suggestion
from nasplat.search.within import descent, within

PATIENCE = 5
WALKS = 100
SAMPLES = 200
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
    if original is not None and suggestion.again and original.state == "complete":
        earlier = sum(one.digest == architecture.digest and one.state != "repeat" for one in history)
        return replace(drafted(space, architecture, constraints, suggestion), replicate=earlier)
    if original is not None:
        draft = Draft(architecture, suggestion.values, notes=suggestion.notes, why=suggestion.why, repeat_of=original)
    else:
        draft = drafted(space, architecture, constraints, suggestion)
        if excess(draft.violations) == 0:
            return draft
    if history.barren < PATIENCE:
        return draft
    return _look_around(draft, history, space, constraints, ask_rng(seed, number, 1), suggestion)


def admissible(strategy: Strategy, constraints: Constraints | None = None) -> Strategy:
    """A strategy that proposes only what is new and meets hard constraints on what is known before training.

    For `StrategySampler` in an Optuna study of one's own; `nasplat search` does the same to every strategy by itself.

    Args:
        strategy: ours, or one of Optuna's samplers through `nasplat.search.optuna_strategies.from_sampler`.
        constraints: metric to bounds.
    """
    bounds = dict(constraints or {})
    views: WeakKeyDictionary[SearchSpace, SearchSpace] = WeakKeyDictionary()

    def propose_admissible(
        history: History, space: SearchSpace, goals: Sequence[Goal], rng: np.random.Generator, /
    ) -> Suggestion:
        if space not in views:
            views[space] = within(space, bounds) if bounds else space
        view = views[space]
        suggestion = strategy(history, view, goals, rng)
        if not isinstance(suggestion, Suggestion):
            suggestion = Suggestion(suggestion)
        architecture = view.canonical(suggestion.values)
        draft = drafted(view, architecture, bounds, suggestion)
        original = history.by_digest.get(architecture.digest)
        if suggestion.again or (original is None and excess(draft.violations) == 0):
            return suggestion
        found = _look_around(replace(draft, repeat_of=original), history, view, bounds, rng, suggestion)
        if isinstance(found, Exhausted):
            return suggestion
        return Suggestion(found.architecture.values, suggestion.notes, found.why)

    return propose_admissible


def drafted(
    space: SearchSpace, architecture: Architecture, constraints: Constraints, suggestion: Suggestion | None = None
) -> Draft:
    """An architecture with what is known of it, and by how much it violates hard constraints."""
    suggestion = suggestion or Suggestion(architecture.values)
    cost = space.known(architecture)
    found = violations(cost, constraints)
    return Draft(
        architecture,
        suggestion.values,
        cost=cost,
        violations=found,
        reason=describe(cost, found, constraints),
        notes=suggestion.notes,
        why=suggestion.why,
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
            found = drafted(space, architecture, constraints, suggestion)
            if nearest is None or excess(found.violations) < excess(nearest.violations):
                nearest = found
            if excess(found.violations) == 0:
                return found
        return None

    met = any(proposal.state != "infeasible" for proposal in history.by_digest.values())
    # Beside what meets the constraints lies more of it; beside what does not, descent finds it sooner than walks do.
    found = fresh(_near(draft.architecture, space, rng)) if met else None
    found = found or fresh(space.sample(rng) for _ in range(SAMPLES))
    if found is None and nearest is not None and constraints:
        found = fresh(descent(space, nearest.architecture, constraints, rng))
    found = found or fresh(_listed(history, space))
    if found is not None:
        return replace(
            found, why=f"in place of a {'repeat' if draft.repeat_of else 'proposal against the constraints'}"
        )
    if not constraints:
        return Exhausted(f"all {len(history.by_digest)} architectures that could be found have been tried")
    if met:
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
