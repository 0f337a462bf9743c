"""Published ways to connect layers, as points of a space of memory banks (Brock et al., SMASH, 2017)."""

from __future__ import annotations

from collections.abc import Callable

from nasplat.spaces.bank_rows import FIRST, Banked, Row

# Of a block with so many banks and at most so many layers, each with these other options.
Pattern = Callable[[int, int, tuple[int, ...]], Banked]


def residual(banks: int, layers: int, options: tuple[int, ...]) -> Banked:
    """Every layer adds to what it reads (He et al., ResNet, 2016)."""
    return Banked((Row(FIRST, FIRST, options),) * layers, FIRST)


def dense(banks: int, layers: int, options: tuple[int, ...]) -> Banked:
    """Every layer reads all before it (Huang et al., DenseNet, 2017); as many layers as there are banks to fill."""
    count = min(layers, banks - 1)
    rows = tuple(Row(1 << place + 1, (1 << place + 1) - 1, options) for place in range(count))
    return Banked(rows, (1 << count + 1) - 1)


def fractal(banks: int, layers: int, options: tuple[int, ...]) -> Banked:
    """Two times the smaller fractal, beside one layer (Larsson et al., FractalNet, 2017); as many columns as fit.

    Columns are joined by sums.
    """
    columns = 1
    while (2 << columns) - 1 <= layers and (1 << columns) + 1 <= banks:
        columns += 1
    rows: list[Row] = []
    free = iter(range(2, banks))

    def grow(source: int, target: int, columns: int) -> None:
        if columns > 1:
            middle = next(free)
            grow(source, middle, columns - 1)
            grow(middle, target, columns - 1)
        rows.append(Row(1 << target, 1 << source, options))

    grow(0, 1, columns)
    return Banked(tuple(rows), 1 << 1)


def full(banks: int, layers: int, options: tuple[int, ...]) -> Banked:
    """Every layer reads all banks and adds to the first; the first layer fills them, the others make them differ."""
    every = (1 << banks) - 1
    rows = []
    for place in range(layers):
        written = [bank for bank in range(banks) if bank == 0 or place == 0 or bank >> place - 1 & 1]
        rows.append(Row(sum(1 << bank for bank in written), every, options))
    return Banked(tuple(rows), every)
