"""Which groups of channels of a network are pruned: by what they are, and by their names."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase

from nasplat.core.channel_graph import ChannelGraph, Group
from nasplat.core.errors import NasplatError


def structure_of(group: Group, graph: ChannelGraph) -> str:
    """`heads`, `head_width`, `mlp` or `channels`.

    `mlp` is what lies between two linear layers and nowhere else: the hidden width of a perceptron.
    """
    if group.role != "channels":
        return {"blocks": "heads", "within": "head_width"}[group.role]
    weights = [member for member in group.members if len(graph.tensors[member.tensor].shape) > 1]
    linear = all(len(graph.tensors[member.tensor].shape) == 2 for member in weights)
    makers = [member.tensor for member in weights if member.dim == 0]
    others = {member.tensor for member in group.members} - {member.tensor for member in weights}
    alone = len(makers) == 1 and others <= {makers[0].removesuffix("weight") + "bias"}
    return "mlp" if linear and alone else "channels"


def chosen_groups(
    graph: ChannelGraph, structures: Sequence[str], only: Sequence[str] = (), leave: Sequence[str] = ()
) -> tuple[Group, ...]:
    """The groups of these structures whose names match a pattern of `only` (or all) and none of `leave`.

    Raises:
        NasplatError: a pattern matches no group, or none is left.
    """
    names = [group.name for group in graph.groups]
    for pattern in (*only, *leave):
        if not any(fnmatchcase(name, pattern) for name in names):
            raise NasplatError(f"no group of channels matches {pattern!r}", f"the groups are {', '.join(names)}")
    found = tuple(
        group
        for group in graph.groups
        if structure_of(group, graph) in structures
        and (not only or any(fnmatchcase(group.name, pattern) for pattern in only))
        and not any(fnmatchcase(group.name, pattern) for pattern in leave)
    )
    if not found:
        raise NasplatError(
            f"nothing of this network can be pruned: none of its {len(names)} groups of channels is left",
            "; ".join(f"{one.name}: {one.reason}" for one in graph.frozen[:5]) or "look at structures, only and leave",
        )
    return found
