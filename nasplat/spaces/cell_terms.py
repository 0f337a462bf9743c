"""When two cells are the same network: sums of terms, in an order that does not depend on how a cell was written.

A tensor within a cell is a sum, and a sum is a multiset of terms: an input of the cell, or an operation applied to
other sums. Writing cells in this form is the rewriting that nasplat documents for all cell families:

- the identity adds the terms of what it reads, so nested sums are flattened;
- `none`, and whatever reads nothing, adds no term, so dead edges vanish;
- an operation without weights applied to the same sum is the same term, however often it is written down;
- an operation with weights is a term of its own wherever it is written: one convolution whose result is used twice is
  not two convolutions.

Two cells are the same network when their terms are isomorphic as graphs.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby, permutations, product
from typing import Any

Sum = tuple[int, ...]  # sorted term numbers; a number stands twice where a term is added twice
ZERO: Sum = ()


@dataclass(frozen=True, slots=True)
class Term:
    """An operation and the sums that it reads; inputs read none. `key` and `depth` are blind to how it was written."""

    operation: str
    sources: tuple[Sum, ...]
    key: tuple[Any, ...]
    depth: int


class Terms:
    """The terms of one cell, numbered as they are made."""

    def __init__(self) -> None:
        self.terms: list[Term] = []
        self._shared: dict[Hashable, int] = {}

    def input(self, number: int) -> Sum:
        """Input `number` of the cell; the same term every time."""
        return self._shared_term(f"input{number}", ())

    def apply(self, operation: str, source: Sum, *, weightless: bool) -> Sum:
        """One operation on one sum. Nothing applied to nothing is nothing."""
        if not source:
            return ZERO
        return self._shared_term(operation, (source,)) if weightless else self.new(operation, (source,))

    def new(self, operation: str, sources: tuple[Sum, ...]) -> Sum:
        """A term with weights of its own."""
        self.terms.append(self._term(operation, sources))
        return (len(self.terms) - 1,)

    def _shared_term(self, operation: str, sources: tuple[Sum, ...]) -> Sum:
        number = self._shared.get((operation, sources))
        if number is None:
            (number,) = self.new(operation, sources)
            self._shared[operation, sources] = number
        return (number,)

    def _term(self, operation: str, sources: tuple[Sum, ...]) -> Term:
        keys = tuple(self.key(source) for source in sources)
        depth = 1 + max(key[0] for key in keys) if keys else 0
        return Term(operation, sources, (operation, keys), depth)

    def key(self, total: Sum) -> tuple[Any, ...]:
        """Sorts sums so that a sum comes after all that it is made of. Equal for sums that only sharing tells apart."""
        terms = [self.terms[number] for number in total]
        return (max((term.depth for term in terms), default=0), len(terms), tuple(sorted(term.key for term in terms)))

    def orders(self, sums: Iterable[Sum]) -> Iterator[tuple[Sum, ...]]:
        """Every order of the sums that sorts them by their keys, each once: more than one where keys are equal."""
        ranked = sorted(sums, key=lambda total: (self.key(total), total))
        groups = [sorted(set(permutations(group))) for _, group in groupby(ranked, key=self.key)]
        for choice in product(*groups):
            yield tuple(total for group in choice for total in group)

    def canonical_form(self, outputs: Sequence[Sum]) -> tuple[Any, ...]:
        """Equal for two cells exactly if they are the same network.

        Args:
            outputs: the sums that leave the cell; their order does not matter.
        """
        sums = set(outputs)
        waiting = [number for total in sums for number in total]
        live: set[int] = set()
        while waiting:
            number = waiting.pop()
            if number not in live:
                live.add(number)
                for source in self.terms[number].sources:
                    sums.add(source)
                    waiting.extend(source)
        counts = Counter(outputs)
        best: tuple[Any, ...] | None = None
        for order in self.orders(sums):
            place = {total: position for position, total in enumerate(order)}
            rows = sorted(
                (
                    term.operation,
                    tuple(place[source] for source in term.sources),
                    tuple(total.count(number) for total in order),
                )
                for number, term in ((number, self.terms[number]) for number in live)
            )
            form = (tuple(rows), tuple(counts[total] for total in order))
            if best is None or form < best:
                best = form
        assert best is not None  # there is always at least one order
        return best


def minus(total: Sum, part: Sum) -> Sum | None:
    """The sum without the terms of a part of it, or None where it is no part."""
    rest = list(total)
    for number in part:
        if number not in rest:
            return None
        rest.remove(number)
    return tuple(rest)


def plus(*sums: Sum) -> Sum:
    return tuple(sorted(number for total in sums for number in total))
