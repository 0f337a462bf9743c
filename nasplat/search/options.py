"""What the options of strategies and producers may be; what an experiment file says against it is told as it stands."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Annotated, Any

from pydantic import Field, ValidationError, validate_call

from nasplat.core.errors import NasplatError, nearest

AtLeast1 = Annotated[int, Field(ge=1)]
AtLeast2 = Annotated[int, Field(ge=2)]
AtLeast4 = Annotated[int, Field(ge=4, multiple_of=4)]
Positive = Annotated[float, Field(gt=0)]
Share = Annotated[float, Field(ge=0, le=1)]
Part = Annotated[float, Field(ge=0, lt=1)]


def make_one(
    table: Mapping[str, Callable[..., Any]], name: str, options: Mapping[str, Any], kind: str, where: str
) -> Any:
    """What the function of this name makes of these options.

    Args:
        table: all functions, by name; their parameters say what their options may be.
        kind: what they make, for errors.
        where: the options stand in an experiment file.

    Raises:
        NasplatError: no such name or option, or a value that it does not take.
    """
    if name not in table:
        raise NasplatError(f"there is no {kind} {name!r}", f"{nearest(name, table)}there are {', '.join(table)}")
    make = table[name]
    known = inspect.signature(make).parameters
    for option in options:
        if option not in known:
            raise NasplatError(
                f"{where}: the {kind} {name!r} has no option {option!r}",
                f"{nearest(option, known)}its options: {', '.join(known) or 'none'}",
            )
    try:
        return validate_call(make)(**options)
    except ValidationError as error:
        first = error.errors()[0]
        option = ".".join(str(part) for part in first["loc"])
        reason = first["msg"].removeprefix("Value error, ").replace("Input should be", "it must be")
        place = f"{where}.{option}" if option else where
        raise NasplatError(f"{place} of the {kind} {name!r} cannot be {first['input']!r}: {reason}") from error
    except ValueError as error:
        raise NasplatError(f"{where} of the {kind} {name!r}: {error}") from error
