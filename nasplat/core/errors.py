"""The errors that a user can cause. The command line prints them without a traceback and exits 2."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class NasplatError(Exception):
    """What is wrong and where, in one line; what to do about it, in another.

    Args:
        message: what is wrong, and where (file, line, key).
        advice: what the user can do.
    """

    def __init__(self, message: str, advice: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.advice = advice

    def __str__(self) -> str:
        return f"{self.message}\n  {self.advice}" if self.advice else self.message

    def __reduce__(self) -> tuple[type[NasplatError], tuple[str, str]]:
        # Exceptions cross process boundaries by re-calling the constructor.
        return type(self), (self.message, self.advice)


class TrialFailed(NasplatError):
    """One candidate could not be evaluated (NaN loss, divergence); the study goes on."""


class Infeasible(NasplatError):
    """A candidate cannot be used (a constraint is violated, memory does not suffice); the study goes on."""


def nearest(name: str, known: Iterable[str]) -> str:
    """`did you mean 'x'? ` where a known name is near, otherwise nothing."""
    close = difflib.get_close_matches(name, list(known), n=1)
    return f"did you mean {close[0]!r}? " if close else ""
