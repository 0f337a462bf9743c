"""A pruned network from its recipe and its weights, bit for bit."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from nasplat.artifacts.recipe import Recipe, read_recipe
from nasplat.artifacts.weights import CHECKSUM, load_into, read_metadata
from nasplat.core.errors import NasplatError
from nasplat.core.user_function import load_function
from nasplat.networks.surgery import Surgery, bare, operate

WEIGHTS = "weights.safetensors"


def without_blocks(model: nn.Module, names: Sequence[str]) -> nn.Module:
    """A copy of a module with these submodules replaced by `nn.Identity`.

    Raises:
        NasplatError: there is no such submodule.
    """
    result = copy.deepcopy(model)
    for name in names:
        try:
            result.get_submodule(name)
        except AttributeError as error:
            raise NasplatError(f"the model has no module {name!r}", "the recipe is of another model") from error
        result.set_submodule(name, nn.Identity())
    return result


def carry_out(base: nn.Module, operations: Sequence[Mapping[str, Any]]) -> tuple[nn.Module, dict[tuple[str, str], Any]]:
    """A copy of the original that has been through all operations, and the final values of attributes that changed.

    Args:
        base: the original.
        operations: as in `Recipe`.

    Raises:
        NasplatError: an operation does not fit the module.
    """
    module = copy.deepcopy(bare(base))
    changed: dict[tuple[str, str], Any] = {}
    for operation in operations:
        if "blocks" in operation:
            module = without_blocks(module, operation["blocks"])
        else:
            module, repairs = operate(module, Surgery.from_json(operation))
            changed |= {(repair.module, repair.attribute): repair.new for repair in repairs}
    return module, changed


def load_pruned(directory: Path | str, base: nn.Module | None = None) -> nn.Module:
    """The network that `nasplat prune` wrote into a folder, in eval mode, bit for bit.

    Args:
        directory: that holds the recipe and the weights.
        base: the original; by default it is made by the function that the recipe names, which is imported.

    Raises:
        NasplatError: a file is missing, damaged, or of another network.
    """
    recipe = read_recipe(directory)
    weights = Path(directory) / WEIGHTS
    if read_metadata(weights).get(CHECKSUM) != recipe.weights:
        raise NasplatError(f"the weights in {weights} are not those of the recipe", "restore both from one copy")
    if base is None:
        base = _original(recipe)
    module, _ = carry_out(base, recipe.operations)
    load_into(module, weights)
    return module.eval()


def _original(recipe: Recipe) -> nn.Module:
    if recipe.base is None:
        raise NasplatError("the recipe names no function that makes the original", "give the original: base=…")
    if recipe.base.startswith("torchvision."):
        import nasplat.data.torchvision_import  # noqa: F401  # the way that works everywhere
    function = load_function(recipe.base, "model")
    try:
        base = function(**recipe.arguments)
    except TypeError as error:
        raise NasplatError(f"{recipe.base} cannot make the original any more: {error}", "give it: base=…") from error
    if not isinstance(base, nn.Module):
        raise NasplatError(f"{recipe.base} made a {type(base).__name__}, not a module", "give the original: base=…")
    return base
