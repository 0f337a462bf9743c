"""A user's own function, named as `module:function` in an experiment file."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Callable
from typing import Any

from nasplat.core.errors import NasplatError


def load_function(reference: str, purpose: str) -> Callable[..., Any]:
    """The function that `module:function` names; the module is found as `import module` finds it.

    Args:
        reference: such as `my_project.losses:focal`.
        purpose: what the function is for, for the error's sake, such as `objective`.

    Raises:
        NasplatError: no such module, no such function in it, or something that cannot be called. Errors that the
            module itself raises while it is imported are passed on as they are, for their traceback is the user's.
    """
    module_name, _, name = reference.partition(":")
    if not module_name or not name:
        raise NasplatError(f"{purpose}: {reference!r} is not module:function", "for example my_module:my_function")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is not None and (module_name + ".").startswith(error.name + "."):
            advice = "a module is looked for in the current folder's packages and in PYTHONPATH"
            raise NasplatError(f"{purpose}: there is no module {error.name!r} (of {reference!r})", advice) from error
        raise
    function = getattr(module, name, None)
    if function is None:
        near = difflib.get_close_matches(name, dir(module), n=1)
        advice = f"did you mean {module_name}:{near[0]}?" if near else ""
        raise NasplatError(f"{purpose}: module {module_name!r} has no function {name!r}", advice)
    if not callable(function):
        raise NasplatError(f"{purpose}: {reference!r} is not a function")
    loaded: Callable[..., Any] = function
    return loaded
