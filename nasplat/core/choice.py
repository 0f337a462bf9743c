"""One named decision of a space."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from nasplat.core.errors import NasplatError

Option = str | int | float | bool
Values = Mapping[str, Option]


@dataclass(frozen=True, slots=True)
class Choice:
    """A named decision with its options, in a fixed order.

    Args:
        name: unique within its space.
        options: what can be chosen; JSON scalars, no two alike. The first is the default, which a dead choice takes.
        ordered: whether neighbouring options are alike (widths, depths, kernel sizes).

    Raises:
        NasplatError: there is no option, or one is listed twice.
    """

    name: str
    options: tuple[Option, ...]
    ordered: bool = False

    def __post_init__(self) -> None:
        if not self.options:
            raise NasplatError(f"choice {self.name!r} has no options", "list at least one")
        kinds_and_options = [(type(option), option) for option in self.options]
        if len(set(kinds_and_options)) != len(self.options):
            raise NasplatError(f"choice {self.name!r} lists an option twice: {list(self.options)}", "list each once")

    @property
    def default(self) -> Option:
        return self.options[0]

    def index(self, option: Option) -> int:
        """The position of an option. Raises NasplatError if the choice does not have it."""
        for position, own in enumerate(self.options):
            if own == option and isinstance(own, bool) == isinstance(option, bool):
                return position
        raise NasplatError(f"choice {self.name!r} has no option {option!r}", f"its options are {list(self.options)}")
