"""Networks of a user's own: named as `module:function`, or as a folder that nasplat wrote."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
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


def trained_model(name: str, arguments: Mapping[str, Any], checkpoint: Path | str | None) -> nn.Module:
    """A network with its weights, in eval mode.

    Args:
        name: `module:function`, or a folder that `nasplat prune` wrote.
        arguments: of the function.
        checkpoint: a file of weights; without one the weights are those that the function makes.

    Raises:
        NasplatError: see `make_model`; a checkpoint that does not load or does not fit, or a folder without a recipe.
    """
    if Path(name).is_dir():
        from nasplat.networks.rebuild import load_pruned

        network = load_pruned(name)
    else:
        network = make_model(name, arguments)
    if checkpoint is not None:
        from nasplat.artifacts.foreign_checkpoint import load_checkpoint

        load_checkpoint(network, Path(checkpoint))
    return network.eval()
