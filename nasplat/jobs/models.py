"""Networks that a user names as `module:function`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from nasplat.core.errors import NasplatError
from nasplat.core.user_function import load_function

if TYPE_CHECKING:
    from torch import nn


def make_model(name: str, arguments: Mapping[str, Any]) -> nn.Module:
    """What a function makes of these arguments; torchvision's own functions are such, too.

    Raises:
        NasplatError: no such function, it does not take these arguments, or returns something else than a module.
    """
    from torch import nn

    if name.startswith("torchvision."):
        import nasplat.data.torchvision_import  # noqa: F401  # the way that works everywhere
    function = load_function(name, "model")
    try:
        module = function(**arguments)
    except TypeError as error:
        given = ", ".join(f"{key}={value!r}" for key, value in arguments.items())
        raise NasplatError(f"model: {name}({given}) failed: {error}", "arguments are given to it by name") from error
    if not isinstance(module, nn.Module):
        raise NasplatError(f"model: {name} returned a {type(module).__name__}", "it must return a torch module")
    return module
