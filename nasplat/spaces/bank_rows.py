"""Layers that read and write memory banks, and when two lists of them are one network.

A block holds tensors of equal shape in banks. The first bank begins with what enters the block, the others empty; a
layer reads some banks, and adds what it makes of them to some. No bank is ever cleared.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import chain, groupby, permutations, product
from typing import NamedTuple

FIRST = 1  # the mask of the bank that begins with what enters the block


class Row(NamedTuple):
    """A layer: the banks that it writes and reads, as bits from the first bank on, and all else that it chooses."""

    writes: int
    reads: int
    options: tuple[int, ...]


class Banked(NamedTuple):
    """Layers in their order, and the banks that leave the block."""

    rows: tuple[Row, ...]
    output: int


def banks_of(mask: int) -> tuple[int, ...]:
    """Numbers of banks, from 0 on, of their bits."""
    return tuple(bank for bank in range(mask.bit_length()) if mask >> bank & 1)


@lru_cache(maxsize=1 << 14)
def canonical(block: Banked) -> Banked:
    """What stands for all blocks that these rewrites show to be the same network.

    Empty banks give nothing, and who reads nothing else reads the first bank. What nobody reads is not written, and a
    layer that writes nothing is left out. Banks that the same layers write are one bank. Layers change places where
    neither reads what the other writes; banks other than the first change numbers.
    """
    alive = _merged(_alive(block))
    best = min(_ordered(renamed) for renamed in _renamings(alive))
    # Numbered as they are filled, for those who read it.
    filled = dict.fromkeys(bank for row in best.rows for bank in banks_of(row.writes) if bank)
    return _renamed(best, (0, *filled))


def _alive(block: Banked) -> Banked:
    filled, reading = FIRST, []
    for row in block.rows:
        reading.append(row._replace(reads=row.reads & filled or FIRST))
        filled |= row.writes
    output = wanted = block.output & filled or FIRST
    rows: list[Row] = []
    for row in reversed(reading):
        if row.writes & wanted:
            rows.append(row._replace(writes=row.writes & wanted))
            wanted |= row.reads
    return Banked(tuple(reversed(rows)), output)


def _merged(block: Banked) -> Banked:
    used = _used(block)
    first: dict[tuple[int, ...], int] = {}
    same = {0: 0} | {bank: first.setdefault(tuple(row.writes >> bank & 1 for row in block.rows), bank) for bank in used}

    def one(mask: int) -> int:
        return sum({1 << same[bank] for bank in banks_of(mask)})

    return Banked(tuple(Row(one(row.writes), one(row.reads), row.options) for row in block.rows), one(block.output))


def _renamings(block: Banked) -> Iterator[Banked]:
    """The block with all orders of those banks that nothing but their number may tell apart."""

    def seen(bank: int) -> tuple[object, ...]:
        touching = [
            (row.options, *((mask >> bank & 1, mask & FIRST, mask.bit_count()) for mask in row[:2]))
            for row in block.rows
            if (row.writes | row.reads) >> bank & 1
        ]
        return block.output >> bank & 1, sorted(touching)

    alike = [tuple(banks) for _, banks in groupby(sorted(_used(block), key=seen), key=seen)]
    for orders in product(*map(permutations, alike)):
        yield _renamed(block, (0, *chain.from_iterable(orders)))


def _used(block: Banked) -> tuple[int, ...]:
    mask = 0
    for row in block.rows:
        mask |= row.writes
    return banks_of(mask & ~FIRST)


def _renamed(block: Banked, order: Sequence[int]) -> Banked:
    """The bank of each number in `order` gets its place there as its number."""
    names = {old: 1 << new for new, old in enumerate(order)}

    def one(mask: int) -> int:
        return sum(names[bank] for bank in banks_of(mask))

    return Banked(tuple(Row(one(row.writes), one(row.reads), row.options) for row in block.rows), one(block.output))


def _ordered(block: Banked) -> Banked:
    """The first of all orders of the layers that compute the same: the lexicographic normal form of a trace."""
    left, rows = list(block.rows), []
    while left:
        free = (place for place, row in enumerate(left) if all(_commute(row, before) for before in left[:place]))
        rows.append(left.pop(min(free, key=left.__getitem__)))
    return Banked(tuple(rows), block.output)


def _commute(one: Row, other: Row) -> bool:
    return not (one.writes & other.reads or one.reads & other.writes)
