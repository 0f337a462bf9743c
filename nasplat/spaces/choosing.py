"""`choice`, the call that turns a network function into a search space. Plain Python, so that importing is quick."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TypeVar, cast

from nasplat.core.choice import Choice, Option
from nasplat.core.errors import NasplatError

Chosen = TypeVar("Chosen", bound=Option)
# Answers a choice that was reached; the second argument is where: "file:line".
Chooser = Callable[[Choice, str], Option]
_chooser: ContextVar[Chooser | None] = ContextVar("chooser", default=None)


def choice(name: str, options: Sequence[Chosen], ordered: bool | None = None) -> Chosen:
    """The option that the architecture under construction has for a choice.

    Outside a search it is the first option, so that a function with choices also runs on its own.

    Args:
        name: unique in the network; the same name in two places is one decision, and must have the same options.
        options: strings, numbers or booleans; the first is the default.
        ordered: whether neighbouring options are alike; by default, numbers are.

    Raises:
        NasplatError: no option, one twice, one that is no plain value, or other options than elsewhere.
    """
    frame = sys._getframe(1)
    place = f"{frame.f_code.co_filename}:{frame.f_lineno}"
    if isinstance(options, str) or not isinstance(options, Sequence):
        raise NasplatError(f"{place}: choice {name!r} has the options {options!r}", "give a list")
    for option in options:
        if not isinstance(option, str | int | float | bool):
            raise NasplatError(
                f"{place}: choice {name!r} has the option {option!r}, which cannot be written to a file",
                'use strings, numbers or booleans and look up what they mean: {"relu": nn.ReLU}[choice(…, ["relu"])]',
            )
    if ordered is None:
        ordered = all(isinstance(option, int | float) and not isinstance(option, bool) for option in options)
    try:
        declared = Choice(str(name), tuple(options), ordered)
    except NasplatError as error:
        raise NasplatError(f"{place}: {error.message}", error.advice) from None
    answer = _chooser.get()
    return options[0] if answer is None else cast(Chosen, answer(declared, place))


@contextmanager
def choosing(chooser: Chooser) -> Iterator[None]:
    """Within this context, and this thread or task only, `choice` asks the chooser."""
    token = _chooser.set(chooser)
    try:
        yield
    finally:
        _chooser.reset(token)
