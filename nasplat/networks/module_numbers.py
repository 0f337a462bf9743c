"""The whole numbers that a module keeps in its attributes, and that its forward may read as sizes."""

from __future__ import annotations

import re
import types
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch import nn

MULTIPLES = 4  # an attribute may hold up to this many times a size, as `planes` in `padding = planes // 4`
# Parts of the names under which modules keep numbers of channels. Where several attributes are equal to a size, those
# that are called so come first: Swin's `shift_size` is 3 where `num_heads` is.
_NAMES = re.compile(
    "head|dim|chan|chs|feat|width|group|hidden|embed|plane|filter|inner|unit|num_|n_|model|pad|block|inp|out"
)


def numbers(module: nn.Module) -> Iterator[tuple[str, int | None, int]]:
    """The whole numbers from 2 on: name, position where it is in a tuple or list, value.

    What a function among the attributes has taken from where it was written is called `function.variable`.
    """
    for name, value in vars(module).items():
        if isinstance(value, tuple | list):
            yield from ((name, position, entry) for position, entry in enumerate(value) if _is_size(entry))
        elif isinstance(value, types.FunctionType):
            for variable, cell in zip(value.__code__.co_freevars, value.__closure__ or (), strict=True):
                if _is_size(content := _content(cell)):
                    yield f"{name}.{variable}", None, content
        elif _is_size(value):
            yield name, None, value


def read(module: nn.Module, attribute: str) -> Any:
    """An attribute, or a variable of a function among the attributes."""
    name, dot, variable = attribute.partition(".")
    value = getattr(module, name)
    if not dot:
        return value
    return value.__closure__[value.__code__.co_freevars.index(variable)].cell_contents


def write(module: nn.Module, attribute: str, new: Any) -> None:
    """Sets what `read` reads, in this module alone."""
    name, dot, variable = attribute.partition(".")
    if dot:
        # A deep copy of a module shares the functions of the original.
        old = getattr(module, name)
        cells = list(old.__closure__)
        cells[old.__code__.co_freevars.index(variable)] = types.CellType(new)
        new = types.FunctionType(old.__code__, old.__globals__, old.__name__, old.__defaults__, tuple(cells))
    setattr(module, name, new)


# Parts of names that say a width rather than a number of heads or groups.
_WIDTHS = re.compile("dim|width|size|chan|chs|feat")


def size_attributes(
    modules: Mapping[str, nn.Module], stack: Sequence[str], size: int, exact: bool, blocks: bool | None = None
) -> list[tuple[str, str, int | None, int]]:
    """The attributes that may hold a size, all of the innermost module that has one.

    Args:
        modules: by path.
        stack: paths of the modules that run, innermost first.
        size: to be found.
        exact: whether the attribute equals the size; otherwise one is a small multiple of the other, and the
            attribute is called like a number of channels.
        blocks: whether the size is a number of blocks, such as heads, or the width within one, where this is known:
            4 heads of width 4 are told apart by the names.

    Returns:
        path of the module, name of the attribute, position in a tuple or list, its value.
    """
    for path in stack:
        found = []
        for name, position, value in numbers(modules[path]) if path in modules else ():
            ratio = max(value, size) // min(value, size)
            if value == size if exact else (ratio <= MULTIPLES and ratio * min(value, size) == max(value, size)):
                found.append((path, name, position, value))
        if blocks is not None:
            found = [entry for entry in found if blocks != bool(_WIDTHS.search(entry[1]))] or found
        named = [entry for entry in found if _NAMES.search(entry[1])]
        if named or (found and exact):
            return named or found
    return []


def _is_size(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 1


def _content(cell: types.CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # not set yet
        return None
