"""What a pruned network costs, in closed form from the widths of its groups: nothing is built, and no torch."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from math import prod

import numpy as np

from nasplat.core.channel_graph import Axis, ChannelGraph
from nasplat.core.errors import NasplatError


def graph_cost(graph: ChannelGraph, keep: Mapping[str, Sequence[int] | Iterable[int]]) -> tuple[int, int]:
    """Multiply-accumulates at the batch size of the example inputs, and parameters, once only these atoms are left.

    Args:
        graph: of the network.
        keep: by group, the atoms that stay; groups that are not named stay whole.

    Raises:
        NasplatError: an unknown group, nothing left of one, or an operation whose cost is not known.
    """
    _check(graph)
    masks = graph.masks(keep)
    sizes: dict[int, int] = {}

    def size(axis: Axis) -> int:
        if id(axis) not in sizes:
            sizes[id(axis)] = int(axis.kept(masks).sum())
        return sizes[id(axis)]

    macs = sum(product.factor * prod(map(size, product.axes)) for product in graph.products)
    params = graph.unread_params
    for tensor in graph.tensors.values():
        if tensor.trainable:
            pairs = zip(tensor.shape, tensor.axes, strict=True)
            params += prod(whole if axis is None else size(axis) for whole, axis in pairs)
    return macs, params


class WidthCost:
    """The same for many choices at once, from the number of atoms that each group keeps.

    Which atoms these are makes no difference to the cost: an axis is a sum of products of groups.

    Args:
        graph: of the network.

    Attributes:
        groups: names, in the order of the columns that `cost` takes.
        sizes: of the groups before pruning.

    Raises:
        NasplatError: an axis whose size depends on which atoms are kept (use `graph_cost` there), or an operation
            whose cost is not known.
    """

    def __init__(self, graph: ChannelGraph) -> None:
        _check(graph)
        self.groups = tuple(group.name for group in graph.groups)
        self.sizes = np.array([group.size for group in graph.groups], dtype=np.int64)
        column = {name: place for place, name in enumerate(self.groups)}
        axes: dict[int, int] = {}
        terms: list[tuple[int, float, tuple[int, ...]]] = []  # axis, coefficient, columns of groups
        rows: list[tuple[int, tuple[int, ...]]] = []  # factor, axes
        for factor, needed in _parts(graph):
            for axis in needed:
                if id(axis) not in axes:
                    axes[id(axis)] = len(axes)
                    terms += [
                        (axes[id(axis)], coefficient, tuple(column[name] for name in names))
                        for names, coefficient in _terms(axis, dict(zip(self.groups, self.sizes.tolist(), strict=True)))
                    ]
            rows.append((factor, tuple(axes[id(axis)] for axis in needed)))
        self._axes = len(axes)
        self._products = len(graph.products)
        self._coefficients = np.array([coefficient for _, coefficient, _ in terms])
        self._axis_of_term = np.array([axis for axis, _, _ in terms], dtype=np.int64)
        self._columns = _padded([columns for _, _, columns in terms], len(self.groups))
        self._factors = np.array([float(factor) for factor, _ in rows])
        self._needed = _padded([needed for _, needed in rows], self._axes)
        self._unread = graph.unread_params

    def cost(self, kept: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Multiply-accumulates and parameters.

        Args:
            kept: numbers of atoms, `(groups,)` or `(choices, groups)`.

        Returns:
            integers of shape `()` or `(choices,)` each; exact up to 2 ** 53.
        """
        kept = np.asarray(kept, dtype=np.float64)
        counts = np.concatenate([np.atleast_2d(kept), np.ones((len(np.atleast_2d(kept)), 1))], axis=1)
        values = self._coefficients * counts[:, self._columns].prod(axis=2)
        sizes = np.zeros((len(counts), self._axes + 1))
        np.add.at(sizes.T, self._axis_of_term, values.T)
        sizes[:, self._axes] = 1
        totals = np.rint(self._factors * sizes[:, self._needed].prod(axis=2)).astype(np.int64)
        macs = totals[:, : self._products].sum(axis=1)
        params = totals[:, self._products :].sum(axis=1) + self._unread
        return (macs, params) if kept.ndim == 2 else (macs[0], params[0])

    def macs_polynomial(self) -> tuple[np.ndarray, np.ndarray]:
        """The multiply-accumulates as a polynomial in the numbers of atoms.

        Returns:
            coefficients `(terms,)`, and exponents of every group `(terms, groups)`.
        """
        of_axis: dict[int, list[tuple[float, np.ndarray]]] = {}
        none = len(self.groups)
        for axis, coefficient, columns in zip(self._axis_of_term, self._coefficients, self._columns, strict=True):
            exponents = np.bincount(columns[columns < none], minlength=none)
            of_axis.setdefault(int(axis), []).append((float(coefficient), exponents))
        terms: dict[tuple[int, ...], float] = {}
        for factor, needed in zip(self._factors[: self._products], self._needed[: self._products], strict=True):
            parts = [of_axis[int(axis)] for axis in needed if axis < self._axes]
            for choice in itertools.product(*parts):
                exponents = sum((one for _, one in choice), np.zeros(none, dtype=np.int64))
                key = tuple(int(power) for power in exponents)
                terms[key] = terms.get(key, 0.0) + float(factor) * prod(one for one, _ in choice)
        return np.array(list(terms.values())), np.array(list(terms), dtype=np.int64).reshape(len(terms), none)


def _check(graph: ChannelGraph) -> None:
    if graph.uncounted:
        raise NasplatError(
            f"the cost of {', '.join(graph.uncounted)} is not known in closed form",
            "count the pruned module with nasplat.networks.counter.count",
        )


def _parts(graph: ChannelGraph) -> Iterable[tuple[int, tuple[Axis, ...]]]:
    """All products, then all trainable tensors: a factor, and axes whose sizes multiply it."""
    for product in graph.products:
        yield product.factor, product.axes
    for tensor in graph.tensors.values():
        if tensor.trainable:
            pairs = list(zip(tensor.shape, tensor.axes, strict=True))
            yield (
                prod(size for size, axis in pairs if axis is None),
                tuple(axis for _, axis in pairs if axis is not None),
            )


def _terms(axis: Axis, sizes: Mapping[str, int]) -> Iterable[tuple[tuple[str, ...], float]]:
    """An axis as a sum: groups whose numbers of atoms multiply, and a coefficient."""
    needs = [
        tuple((group, int(atoms[index])) for group, atoms in axis.needs if atoms[index] >= 0)
        for index in range(axis.size)
    ]
    counts: dict[tuple[str, ...], Counter[tuple[int, ...]]] = {}
    for need in needs:
        ordered = sorted(need)
        counts.setdefault(tuple(group for group, _ in ordered), Counter())[tuple(atom for _, atom in ordered)] += 1
    for groups, found in counts.items():
        complete = len(set(groups)) == len(groups) and len(found) == prod(sizes[group] for group in groups)
        if not complete or len(set(found.values())) > 1:
            raise NasplatError(
                f"the size of a dimension depends on which channels of {', '.join(groups)} are kept",
                "count each choice with graph_cost",
            )
        yield groups, float(next(iter(found.values())))


def _padded(rows: Sequence[tuple[int, ...]], filler: int) -> np.ndarray:
    width = max((len(row) for row in rows), default=1) or 1
    return np.array([[*row, *[filler] * (width - len(row))] for row in rows], dtype=np.int64).reshape(len(rows), width)
