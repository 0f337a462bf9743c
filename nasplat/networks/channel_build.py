"""From labels to groups: which atoms are alike, and what needs them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import get_args

import numpy as np
import torch

from nasplat.core.channel_graph import (
    Axis,
    ChannelGraph,
    CrossChannel,
    Frozen,
    Group,
    HiddenScale,
    Member,
    Product,
    Role,
    SizeAttribute,
    TensorAxes,
)
from nasplat.networks.channel_labels import BY_NATURE
from nasplat.networks.channel_scale import rows_of
from nasplat.networks.channel_step import Record
from nasplat.networks.channel_views import Dims
from nasplat.networks.module_numbers import size_attributes

_Place = tuple[str, int]  # a tensor and one of its dimensions


class Builder:
    """Collects the atoms of all tensors, and makes groups and axes of them.

    Args:
        record: of the tracer.
        tensors: labels of every parameter and buffer, in the order of use.
        state: the tensors themselves.
    """

    def __init__(self, record: Record, tensors: dict[str, Dims], state: dict[str, torch.Tensor]) -> None:
        self.record = record
        self.labels = record.labels
        self.tensors = tensors
        self.state = state
        self.place_of: dict[int, tuple[str, int]] = {}  # atom -> its group and its number there
        self._atoms: dict[int, tuple[int, ...]] = {}
        self._axes: dict[bytes, Axis] = {}

    def atoms_of(self, root: int) -> tuple[int, ...]:
        """The atoms that an index with this label needs, as far as they can go."""
        if root not in self._atoms:
            self._atoms[root] = tuple(sorted(self.labels.atoms(root)))
        return self._atoms[root]

    def axis(self, labels: np.ndarray) -> Axis:
        """The axis of a dimension."""
        roots = self.labels.find(labels)
        key = roots.tobytes()
        if key not in self._axes:
            slots: dict[tuple[str, int], np.ndarray] = {}
            for index, root in enumerate(roots.tolist()):
                seen: dict[str, int] = defaultdict(int)
                for atom in self.atoms_of(root):
                    if atom in self.place_of:
                        group, number = self.place_of[atom]
                        slot = slots.setdefault((group, seen[group]), np.full(len(roots), -1, dtype=np.int64))
                        slot[index] = number
                        seen[group] += 1
            self._axes[key] = Axis(len(roots), tuple((group, atoms) for (group, _), atoms in slots.items()))
        return self._axes[key]

    def axes(self, dims: Sequence[np.ndarray | None]) -> tuple[Axis | None, ...]:
        found = [None if dim is None else self.axis(dim) for dim in dims]
        return tuple(axis if axis is not None and axis.needs else None for axis in found)

    def graph(self) -> ChannelGraph:
        """Everything as plain data."""
        groups, frozen = self._groups()
        tensors = {
            name: TensorAxes(tuple(self.state[name].shape), self.axes(dims), _trains(self.state[name]))
            for name, dims in self.tensors.items()
        }
        cross = [
            CrossChannel(node, argument, axes, restore)
            for node, argument, dims, restore in self.record.cross
            for axes in [self.axes(dims)]
            if any(axis is not None for axis in axes)
        ]
        products = []
        for name, factor, dims in self.record.products:
            axes = self.axes(dims)
            for dim, axis in zip(dims, axes, strict=True):
                factor *= 1 if axis is not None else len(dim)
            products.append(Product(name, factor, tuple(axis for axis in axes if axis is not None)))
        unread = sum(
            tensor.numel() for name, tensor in self.state.items() if _trains(tensor) and name not in self.tensors
        )
        return ChannelGraph(
            groups,
            frozen,
            tensors,
            self._attributes(),
            self._scales(),
            tuple(cross),
            tuple(products),
            unread,
            tuple(sorted(set(self.record.uncounted))),
        )

    def _groups(self) -> tuple[tuple[Group, ...], tuple[Frozen, ...]]:
        indices: dict[int, dict[_Place, list[int]]] = defaultdict(lambda: defaultdict(list))
        for name, dims in self.tensors.items():
            for dim, labels in enumerate(dims):
                for index, root in enumerate(self.labels.find(labels).tolist()):
                    for atom in self.atoms_of(root):
                        indices[atom][name, dim].append(index)
        paths: dict[int, str] = {}
        for path, labels in self.record.producers:
            for root in self.labels.find(labels).tolist():
                for atom in self.atoms_of(root):
                    paths.setdefault(atom, path)
        atoms = np.array(sorted(indices), dtype=np.int64)
        reasons = dict(zip(atoms.tolist(), self.labels.frozen(atoms).tolist() if len(atoms) else [], strict=True))
        roles = dict(zip(atoms.tolist(), self.labels.role(atoms).tolist() if len(atoms) else [], strict=True))
        alike: dict[tuple[tuple[tuple[_Place, int], ...], int, int], list[int]] = defaultdict(list)
        for atom, places in indices.items():
            if reasons[atom] != BY_NATURE and atom in paths:
                signature = tuple((place, len(found)) for place, found in places.items())
                alike[signature, roles[atom], reasons[atom]].append(atom)
        groups: list[Group] = []
        frozen: list[Frozen] = []
        lone: list[tuple[str, _Place, list[int]]] = []  # single atoms of several channels
        names: dict[str, int] = defaultdict(int)
        for (signature, role, reason), members in alike.items():
            first = signature[0][0]
            members.sort(key=lambda atom: indices[atom][first][0])
            path = paths[members[0]]
            width = sum(len(indices[atom][first]) for atom in members)
            if reason:
                frozen.append(Frozen(path, width, *self.labels.reasons[reason - 2]))
            elif len(members) == 1:
                lone.append((path, first, indices[members[0]][first]))
            else:
                names[path] += 1
                name = path if names[path] == 1 else f"{path}/{names[path]}"
                tables = tuple(
                    Member(tensor, dim, np.array([indices[atom][tensor, dim] for atom in members]))
                    for (tensor, dim), _ in signature
                )
                unit = tables[0].indices.shape[1]
                groups.append(Group(name, len(members), unit, tables, get_args(Role)[role]))
                self.place_of.update({atom: (name, number) for number, atom in enumerate(members)})
        # A whole that cannot go, such as both halves of a channel shuffle, may still lose channels in another way.
        prunable: dict[_Place, set[int]] = defaultdict(set)
        for group in groups:
            for member in group.members:
                prunable[member.tensor, member.dim].update(member.indices.ravel().tolist())
        for path, first, channels in lone:
            if len(channels) > 1 and not prunable[first].issuperset(channels):
                frozen.append(
                    Frozen(path, len(channels), "the network ties all of these channels to one another", path)
                )
        # Heads and their width are frozen by one thing, which is said once.
        once = {(entry.name, entry.where): entry for entry in sorted(frozen, key=lambda entry: entry.size)}
        return tuple(groups), tuple(entry for entry in frozen if once[entry.name, entry.where] is entry)

    def _attributes(self) -> tuple[SizeAttribute, ...]:
        found: dict[tuple[str, str, int | None], SizeAttribute] = {}
        for path, name, position, value, labels in self.record.attributes:
            axis = self.axis(labels)
            if axis.needs:
                found.setdefault((path, name, position), SizeAttribute(path, name, position, value, axis))
        # What equals a size is more likely to mean it than what is a multiple of it.
        for exact in (True, False):
            for stack, size, labels in self.record.demands:
                axis = self.axis(labels)
                modules, blocks = self.record.modules, self.labels.are_blocks(labels)
                if not axis.needs or (not exact and size_attributes(modules, stack, size, exact=True)):
                    continue
                for path, name, position, value in size_attributes(modules, stack, size, exact, blocks):
                    found.setdefault((path, name, position), SizeAttribute(path, name, position, value, axis))
        return tuple(found.values())

    def _scales(self) -> tuple[HiddenScale, ...]:
        found = []
        for node, exponent, labels in self.record.scales:
            axis = self.axis(labels)
            source = rows_of(node) if axis.needs else None
            if source is not None:
                producer, rows = source
                names = tuple(self.record.parameter_names[entry] for entry in producer)
                found.append(HiddenScale(names, rows, exponent, axis))
        return tuple(found)

    def atoms_in(self, labels: np.ndarray) -> set[str]:
        """The names of the groups that a dimension needs."""
        return {group for group, _ in self.axis(labels).needs}


def _trains(tensor: torch.Tensor) -> bool:
    return isinstance(tensor, torch.nn.Parameter)
