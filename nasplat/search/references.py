"""Known networks that a search evaluates first: a start for the strategy, and landmarks beside its front."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from nasplat.artifacts.files import read_json
from nasplat.core.architecture import Architecture
from nasplat.core.errors import NasplatError
from nasplat.core.space import SearchSpace


def references(names: Sequence[str], space: SearchSpace) -> dict[str, Architecture]:
    """The architectures that `search.references` names.

    Args:
        names: of published networks that the space holds, or paths of architecture.json files of this space.

    Raises:
        NasplatError: there is no such network or file, the space does not hold it, or two names are one network.
    """
    from nasplat.spaces.known import known_network

    found: dict[str, Architecture] = {}
    for name in names:
        if name.endswith(".json"):
            architecture, name = Architecture.from_json(read_json(Path(name))), Path(name).stem
            if architecture.identity != space.fingerprint:
                raise NasplatError(
                    f"search.references: {name}.json is of another space, or of another problem or size of this one",
                    "leave it out, or write the same choices as an architecture of this space",
                )
            architecture = space.canonical(architecture.values)
        else:
            architecture = known_network(space, name)
        for other, known in found.items():
            if known == architecture:
                raise NasplatError(f"search.references: {name} and {other} are one network in this space", "name one")
        found[name] = architecture
    return found
