"""One canonical assignment of all choices of a space."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, ClassVar

from nasplat.core.choice import Option, Values
from nasplat.core.errors import NasplatError

SCHEMA_VERSION = 1


def canonical_json(data: Any) -> str:
    """JSON with sorted keys and no spaces: the same text on every machine and Python version."""
    return json.dumps(data, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


def fingerprint(data: Any) -> str:
    """SHA-256 of the canonical JSON of plain data, in hexadecimal."""
    return hashlib.sha256(canonical_json(data).encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class Architecture:
    """Immutable and hashable by its digest. Made by `SearchSpace.canonical`, never by hand.

    Args:
        identity: the fingerprint of the identity of its space (family, parameters, problem).
        values: the chosen option of every choice, dead ones at their default.
    """

    identity: str
    values: Values
    digest: str = field(init=False)
    filename: ClassVar[str] = "architecture.json"

    def __post_init__(self) -> None:
        values: dict[str, Option] = dict(self.values)
        object.__setattr__(self, "values", MappingProxyType(values))
        digest = fingerprint({"schema": SCHEMA_VERSION, "space": self.identity, "values": values})
        object.__setattr__(self, "digest", digest)

    def __hash__(self) -> int:
        return hash(self.digest)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Architecture) and self.digest == other.digest

    def __reduce__(self) -> tuple[type[Architecture], tuple[str, dict[str, Option]]]:
        # A mapping proxy cannot be sent to another process; its values can.
        return Architecture, (self.identity, dict(self.values))

    def to_json(self) -> dict[str, Any]:
        return {
            "schema": SCHEMA_VERSION,
            "space": self.identity,
            "values": dict(self.values),
            "digest": self.digest,
        }

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> Architecture:
        """Reads what `to_json` wrote.

        Raises:
            NasplatError: another schema version, a missing key, or a digest that does not belong to the values.
        """
        if not isinstance(data, Mapping) or "schema" not in data:
            raise NasplatError("this is no architecture file: it has no key 'schema'")
        if data["schema"] != SCHEMA_VERSION:
            raise NasplatError(
                f"architecture of schema version {data['schema']}; this nasplat reads version {SCHEMA_VERSION}",
                "export it again with the nasplat that you use now",
            )
        missing = {"space", "values", "digest"} - set(data)
        if missing:
            raise NasplatError(f"architecture file lacks {sorted(missing)}")
        architecture = Architecture(data["space"], data["values"])
        if architecture.digest != data["digest"]:
            raise NasplatError("architecture file is damaged: its digest does not belong to its values")
        return architecture
