"""Commands that a person is told to type next, as that person types them."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from pathlib import Path

NAME = "nasplat"


def command(*words: object) -> str:
    """A command line with the name by which nasplat was called: `scripts/nasplat train runs/quickstart --top 3`.

    Args:
        words: what follows the name; what holds spaces is quoted.
    """
    return " ".join([_name(), *(shlex.quote(str(word)) for word in words)])


def _name() -> str:
    """`nasplat` where that finds it, otherwise as it was typed; scripts/nasplat tells how in NASPLAT_COMMAND."""
    if typed := os.environ.get("NASPLAT_COMMAND"):
        return _shortest(typed)
    program = Path(sys.argv[0])
    if program.parts[-2:] == (NAME, "__main__.py"):
        return shlex.join(sys.orig_argv[: len(sys.orig_argv) - len(sys.argv) + 1])  # python -m nasplat
    return _shortest(sys.argv[0]) if program.name == NAME else NAME


def _shortest(typed: str) -> str:
    """The bare name of a program that the PATH finds, which a script is given with its folder."""
    name = Path(typed).name
    return shlex.quote(name if shutil.which(name) == typed else typed)
