"""Architectures around architectures, each looked up once."""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from weakref import WeakKeyDictionary

import numpy as np

from nasplat.core.architecture import Architecture
from nasplat.core.choice import Values
from nasplat.core.space import SearchSpace

MOST = 96
ATTEMPTS = 20


class Neighbourhood:
    """What is around architectures, and what is known of them before training."""

    def __init__(self) -> None:
        self._near: WeakKeyDictionary[SearchSpace, dict[str, tuple[Architecture, ...]]] = WeakKeyDictionary()
        self._known: WeakKeyDictionary[SearchSpace, dict[str, Mapping[str, float]]] = WeakKeyDictionary()

    def __call__(self, space: SearchSpace, digest: str, values: Values) -> tuple[Architecture, ...]:
        """One change from an architecture; of more than `MOST` neighbours a random part that depends on it alone."""
        near = self._near.setdefault(space, {})
        if digest not in near:
            found = space.neighbours(space.canonical(values))
            if len(found) > MOST:
                chosen = np.random.default_rng(int(digest[:16], 16)).permutation(len(found))[:MOST]
                found = [found[index] for index in sorted(chosen)]
            near[digest] = tuple(found)
        return near[digest]

    def known(self, space: SearchSpace, architectures: Sequence[Architecture]) -> list[Mapping[str, float]]:
        """`space.known` of each."""
        known = self._known.setdefault(space, {})
        for one in architectures:
            if one.digest not in known:
                known[one.digest] = space.known(one)
        return [known[one.digest] for one in architectures]


def unseen_sample(seen: Container[str], space: SearchSpace, rng: np.random.Generator) -> Architecture:
    """A random architecture that was not seen, where a few draws find one."""
    for _ in range(ATTEMPTS):
        architecture = space.sample(rng)
        if architecture.digest not in seen:
            break
    return architecture


def walk(space: SearchSpace, values: Values, steps: int, rng: np.random.Generator) -> Architecture:
    """So many random changes, each uniform over choices and other options, settled at the end."""
    changed = dict(values)
    names = list(space.choices)
    for _ in range(steps):
        choice = space.choices[names[int(rng.integers(len(names)))]]
        changed[choice.name] = choice.options[int(rng.integers(len(choice.options)))]
    return space.canonical(changed)
