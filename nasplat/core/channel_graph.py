"""Which channels of a network's tensors must be removed together: plain data, no torch.

A *group* is a set of interchangeable *atoms*; an atom is the smallest set of indices, over many tensors, that lives or
dies as one. An *axis* says of every index of one dimension which atoms it needs: it stays where all of them stay. So
an index of an attention projection may need both its head and its place within the head.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from nasplat.core.errors import NasplatError, nearest

Keep = Mapping[str, np.ndarray]  # by group, which of its atoms stay: booleans (size,)

# What an atom is within its dimension: plain channels; whole blocks of a dimension that the network splits, such as
# attention heads or the groups of a convolution; or one place in each of these blocks, such as the width of all heads.
Role = Literal["channels", "blocks", "within"]


@dataclass(frozen=True, slots=True, eq=False)
class Axis:
    """One dimension of a tensor.

    Args:
        size: before any pruning.
        needs: pairs of a group's name and, by index, the atom of that group which the index needs, or -1: `(size,)`.
    """

    size: int
    needs: tuple[tuple[str, np.ndarray], ...]

    def kept(self, keep: Keep) -> np.ndarray:
        """Booleans `(size,)`: which indices stay."""
        stays = np.ones(self.size, dtype=bool)
        for group, atoms in self.needs:
            if group in keep:
                stays &= (atoms < 0) | keep[group][atoms]
        return stays


@dataclass(frozen=True, slots=True, eq=False)
class Member:
    """One dimension of a parameter or buffer in which a group has indices.

    Args:
        tensor: name in the state dict.
        dim: of that tensor.
        indices: what each atom takes away, `(atoms, indices per atom)`.
    """

    tensor: str
    dim: int
    indices: np.ndarray


@dataclass(frozen=True, slots=True, eq=False)
class Group:
    """Atoms that are interchangeable: each takes the same number of indices from the same dimensions.

    Args:
        name: module path of the first layer that produces these channels, unique within the graph.
        size: number of atoms, at least 2; at least one stays.
        unit: how many channels of the first member go with one atom; a width is rounded in multiples of it.
        members: first the producer's weight, then in the order of use.
        role: what an atom is, see `Role`.
    """

    name: str
    size: int
    unit: int
    members: tuple[Member, ...]
    role: Role


@dataclass(frozen=True, slots=True)
class Frozen:
    """Channels that cannot be pruned although they are no input or output of the network.

    Args:
        name: module path of the layer that produces them.
        size: how many they are.
        reason: why, with the operation.
        where: module path and source line that caused it.
    """

    name: str
    size: int
    reason: str
    where: str


@dataclass(frozen=True, slots=True, eq=False)
class SizeAttribute:
    """A number in a module that says the size of an axis, and that forward reads.

    Args:
        module: path of the module.
        attribute: its name there.
        position: index where the attribute is a tuple or list, otherwise None.
        value: before pruning; it stays proportional to the axis.
        axis: the axis.
    """

    module: str
    attribute: str
    position: int | None
    value: int
    axis: Axis


@dataclass(frozen=True, slots=True, eq=False)
class HiddenScale:
    """A factor `size ** exponent` in forward that follows the width of an axis (attention's `1 / sqrt(width)`).

    Rows of the tensors are scaled against it, so that pruning leaves the function of the kept channels as it was.

    Args:
        tensors: weight and, where there is one, bias of the layer whose result is multiplied.
        rows: along dimension 0 of these tensors.
        exponent: of the factor.
        axis: whose size the factor follows.
    """

    tensors: tuple[str, ...]
    rows: np.ndarray
    exponent: float
    axis: Axis


@dataclass(frozen=True, slots=True, eq=False)
class CrossChannel:
    """An operation that computes across prunable channels: a layer norm, a mean over channels, a product of queries
    and keys. A zeroed channel is not a removed one there, so that a masked reference must leave it out.

    Args:
        node: name of the operation in the exported graph.
        argument: which of its tensors, in the order of its arguments.
        axes: of that argument, None for dimensions that are not prunable.
        restore: whether the result has the argument's shape.
    """

    node: str
    argument: int
    axes: tuple[Axis | None, ...]
    restore: bool


@dataclass(frozen=True, slots=True, eq=False)
class Product:
    """Multiply-accumulates of one convolution, linear layer or matrix product: `factor` times the sizes of `axes`.

    They are counted at the batch size of the example inputs, as all products are.
    """

    name: str
    factor: int
    axes: tuple[Axis, ...]


@dataclass(frozen=True, slots=True, eq=False)
class TensorAxes:
    """A parameter or buffer: its shape, and an axis for every dimension that is prunable, otherwise None."""

    shape: tuple[int, ...]
    axes: tuple[Axis | None, ...]
    trainable: bool


@dataclass(frozen=True, slots=True, eq=False)
class ChannelGraph:
    """What can be pruned from one network, and what follows from it.

    Args:
        groups: what can be pruned, in the order of forward.
        frozen: what cannot, and why; inputs and outputs of the network are not listed.
        tensors: all parameters and buffers that forward reads; weights that are tied appear once.
        attributes, scales, cross_channel, products: see their classes.
        unread_params: parameters that forward does not read.
        uncounted: operations that look like matrix products and whose cost is not known.
    """

    groups: tuple[Group, ...]
    frozen: tuple[Frozen, ...]
    tensors: Mapping[str, TensorAxes]
    attributes: tuple[SizeAttribute, ...] = ()
    scales: tuple[HiddenScale, ...] = ()
    cross_channel: tuple[CrossChannel, ...] = ()
    products: tuple[Product, ...] = ()
    unread_params: int = 0
    uncounted: tuple[str, ...] = ()
    _by_name: dict[str, Group] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        self._by_name.update({group.name: group for group in self.groups})

    def group(self, name: str) -> Group:
        """The group of that name.

        Raises:
            NasplatError: there is none.
        """
        if name not in self._by_name:
            advice = f"{nearest(name, self._by_name)}the groups are {', '.join(self._by_name)}"
            raise NasplatError(f"the network has no group of channels {name!r}", advice)
        return self._by_name[name]

    def masks(self, keep: Mapping[str, Sequence[int] | Iterable[int]]) -> dict[str, np.ndarray]:
        """Booleans by group from the indices of the atoms to keep; groups that are not named stay whole.

        Raises:
            NasplatError: a group that does not exist, an index outside it, or a group without any atom left.
        """
        masks = {}
        for name, indices in keep.items():
            group = self.group(name)
            chosen = np.asarray(list(indices), dtype=np.int64)
            if not len(chosen):
                raise NasplatError(f"nothing would be left of group {name!r}", "keep at least one of its atoms")
            if chosen.min() < 0 or chosen.max() >= group.size:
                raise NasplatError(f"group {name!r} has {group.size} atoms, and {int(chosen.max())} was to be kept")
            masks[name] = np.zeros(group.size, dtype=bool)
            masks[name][chosen] = True
        return masks
