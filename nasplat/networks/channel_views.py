"""Labels through views: dimensions that are merged and split again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod

import numpy as np

from nasplat.networks.channel_labels import BLOCKS, FIXED, MADE, WITHIN, Labels

Dims = list[np.ndarray]  # of one tensor: the labels of every dimension


def fixed(sizes: Sequence[int]) -> Dims:
    """Dimensions that follow the network's inputs."""
    return [np.full(size, FIXED, dtype=np.int64) for size in sizes]


def made(sizes: Sequence[int]) -> Dims:
    """Dimensions whose sizes forward sets itself."""
    return [np.full(size, MADE, dtype=np.int64) for size in sizes]


def merge(labels: Labels, dims: Sequence[np.ndarray]) -> np.ndarray:
    """The labels of adjacent dimensions that are flattened to one, the last one running fastest."""
    flat = np.zeros(1, dtype=np.int64)
    for dim in dims:
        flat = labels.pair(np.repeat(flat, len(dim)), np.tile(dim, len(flat)))
    return flat


def split(
    labels: Labels, flat: np.ndarray, blocks: int, blocks_vary: bool, reason: int
) -> tuple[np.ndarray, np.ndarray]:
    """The labels of a dimension that is split into blocks x places.

    Where the labels have no such structure yet, they get it: every index then goes where its block or its place goes.

    Args:
        labels: are extended and united.
        flat: of the dimension.
        blocks: into how many it is split.
        blocks_vary: whether whole blocks can be removed; otherwise all blocks stay and are alike.
        reason: for what cannot vary.

    Returns:
        labels of the blocks `(blocks,)` and of the places `(len(flat) // blocks,)`.
    """
    table = labels.find(flat).reshape(blocks, -1)
    rows, columns = np.zeros(blocks, dtype=np.int64), np.zeros(table.shape[1], dtype=np.int64)
    if blocks == 1 or (table == table[:1]).all():
        return rows, table[0]
    if table.shape[1] == 1 or (table == table[:, :1]).all():
        if not blocks_vary:
            labels.freeze(table, reason)
        return table[:, 0], columns
    is_pair = labels.is_pair(table)
    if is_pair.any() and (found := _factors(labels, table)) is not None:
        return found
    if is_pair.all() and (found := _finer(labels, flat, blocks, blocks_vary, reason)) is not None:
        return found
    if not blocks_vary or (is_pair.any() and not is_pair.all()):
        labels.unite(np.broadcast_to(table[0], table.shape), table, reason)
        return rows, table[0]
    rows, columns = labels.fresh(blocks, BLOCKS), labels.fresh(len(columns), WITHIN)
    products = labels.pair(np.repeat(rows, len(columns)), np.tile(columns, blocks))
    labels.unite(products, table.ravel(), reason)
    return rows, columns


def _finer(
    labels: Labels, flat: np.ndarray, blocks: int, blocks_vary: bool, reason: int
) -> tuple[np.ndarray, np.ndarray] | None:
    """Splits the outer part of a dimension that was flattened before, as after a shuffle of channels."""
    places = len(flat) // blocks
    for inner in (size for size in range(places // 2, 1, -1) if places % size == 0):
        found = _factors(labels, labels.find(flat).reshape(-1, inner))
        if found is not None and (found[1] > MADE).all():
            rows, columns = split(labels, found[0], blocks, blocks_vary, reason)
            return rows, merge(labels, [columns, found[1]])
    return None


def _factors(labels: Labels, table: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
    """Labels of rows and columns whose pairs are the table, if it has such a structure already."""
    atoms = {int(label): labels.atoms(int(label)) for label in np.unique(table)}
    cells = [[atoms[label] for label in row] for row in table.tolist()]
    rows = [frozenset.intersection(*row) for row in cells]
    columns = [frozenset.intersection(*column) for column in zip(*cells, strict=True)]
    for row, line in zip(rows, cells, strict=True):
        if any(cell != row | column for cell, column in zip(line, columns, strict=True)):
            return None
    return np.array([_folded(labels, row) for row in rows]), np.array([_folded(labels, column) for column in columns])


def _folded(labels: Labels, atoms: frozenset[int]) -> int:
    label = np.zeros(1, dtype=np.int64)
    for atom in sorted(atoms):
        label = labels.pair(label, np.array([atom]))
    return int(label[0])


def regroup(labels: Labels, dims: Dims, shape: Sequence[int], blocks_vary: Callable[[int], bool], reason: int) -> Dims:
    """The labels after a view of another shape.

    Args:
        labels: are extended where a dimension is split.
        dims: before.
        shape: after, without -1.
        blocks_vary: whether the network can run with another number than this of blocks.
        reason: for what cannot vary.
    """
    result: Dims = []
    source = target = 0
    while source < len(dims) or target < len(shape):
        # The smallest run of old dimensions that holds as many elements as a run of new ones.
        if source < len(dims) and target < len(shape) and len(dims[source]) == shape[target]:
            result.append(dims[source])
            source, target = source + 1, target + 1
            continue
        first, begin = source, target
        before = after = 1
        while True:
            if before <= after and source < len(dims) and (before < after or source == first):
                before *= len(dims[source])
                source += 1
            elif target < len(shape) and (after < before or target == begin):
                after *= shape[target]
                target += 1
            else:
                break
            if before == after and source > first and target > begin:
                break
        # Dimensions of size 1 at the end belong to the last run.
        if target == len(shape):
            while source < len(dims) and len(dims[source]) == 1:
                source += 1
        if source == len(dims):
            while target < len(shape) and shape[target] == 1:
                target += 1
        result += _split_all(labels, merge(labels, dims[first:source]), shape[begin:target], blocks_vary, reason)
    return result


def _split_all(
    labels: Labels, flat: np.ndarray, shape: Sequence[int], blocks_vary: Callable[[int], bool], reason: int
) -> Dims:
    result: Dims = []
    shape = list(shape)
    while len(shape) > 1:
        blocks = shape.pop(0)
        rows, flat = split(labels, flat, blocks, blocks_vary(blocks), reason)
        result.append(rows)
    assert len(flat) == prod(shape)
    return [*result, flat] if shape else result
