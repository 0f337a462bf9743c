"""A user's own function, named as `module:function` in an experiment file."""

from __future__ import annotations

import difflib
import importlib
import inspect
from collections.abc import Callable, Sequence
from typing import Any

from nasplat.core.errors import NasplatError


def load_function(reference: str, purpose: str, arguments: Sequence[str] | None = None) -> Callable[..., Any]:
    """The function that `module:function` names; the module is found as `import module` finds it.

    Args:
        reference: such as `my_project.losses:focal`.
        purpose: what the function is for, for the error's sake, such as `objective`.
        arguments: what it will be called with, by position; None where its caller looks at that.

    Raises:
        NasplatError: no such module, no such function in it, or something that cannot be called so. Errors that the
            module itself raises while it is imported are passed on as they are, for their traceback is the user's.
    """
    module_name, _, name = reference.partition(":")
    if not module_name or not name:
        raise NasplatError(f"{purpose}: {reference!r} is not module:function", "for example my_module:my_function")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is not None and (module_name + ".").startswith(error.name + "."):
            advice = "it is looked for beside the experiment file, in the current folder, and among installed packages"
            raise NasplatError(f"{purpose}: there is no module {error.name!r} (of {reference!r})", advice) from error
        raise
    function = getattr(module, name, None)
    if function is None:
        own = [key for key, value in vars(module).items() if getattr(value, "__module__", None) == module.__name__]
        near = difflib.get_close_matches(name, dir(module), n=1)
        advice = f"did you mean {module_name}:{near[0]}?" if near else f"it has {', '.join(own[:12]) or 'none'}"
        raise NasplatError(f"{purpose}: module {module_name!r} has no function {name!r}", advice)
    if not callable(function):
        raise NasplatError(f"{purpose}: {reference!r} is not a function")
    loaded: Callable[..., Any] = function
    if arguments is not None:
        _check_arguments(loaded, f"{purpose}: {reference!r}", arguments)
    return loaded


def _check_arguments(function: Callable[..., Any], what: str, arguments: Sequence[str]) -> None:
    try:
        signature = inspect.signature(function)
    except ValueError:  # some that are written in C have none
        return
    try:
        signature.bind(*arguments)
    except TypeError as error:
        raise NasplatError(
            f"{what} is called with ({', '.join(arguments)}), but takes {signature}: {error}", "change its parameters"
        ) from error
