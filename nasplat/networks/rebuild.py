"""A pruned network from its recipe and its weights, bit for bit."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from nasplat.artifacts.recipe import Recipe, read_recipe
from nasplat.artifacts.weights import CHECKSUM, checksum, load_into, read_metadata
from nasplat.core.errors import NasplatError
from nasplat.networks.surgery import Surgery, bare, operate
from nasplat.networks.user_model import make_model

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


def make_recipe(
    original: nn.Module,
    module: nn.Module,
    operations: Sequence[tuple[str, ...] | Surgery],
    input_shape: Sequence[int] = (),
    base: str | None = None,
    arguments: Mapping[str, Any] | None = None,
) -> Recipe:
    """How to make a module again from its original, with its weights in float32.

    Args:
        operations: what was done to the structure of the original: whole blocks by their names, or channels.
        input_shape: `(C, H, W)`, for the reader.
        base: `module:function` that makes the original; None where whoever loads it will give the original.
        arguments: of that function.
    """
    plain = [{"blocks": list(one)} if isinstance(one, tuple) else one.to_json() for one in operations]
    _, attributes = carry_out(original, plain)
    modules = dict(module.named_modules())
    widths = {}
    for name, one in bare(original).named_modules():
        before, after = width_of(one), width_of(modules[name]) if name in modules else None
        if before is not None and before != (after or 0):
            widths[name] = (before, after or 0)
    return Recipe(
        base,
        arguments or {},
        plain,
        [(path, name, value) for (path, name), value in attributes.items()],
        widths,
        tuple(input_shape),
        checksum(copy.deepcopy(module).float().state_dict()),
    )


def width_of(module: nn.Module) -> int | None:
    """Output channels of a layer; None where it has no such number."""
    found = getattr(module, "out_channels", getattr(module, "out_features", getattr(module, "embed_dim", None)))
    return found if isinstance(found, int) else None


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
    try:
        return make_model(recipe.base, recipe.arguments)
    except NasplatError as error:
        raise NasplatError(f"the original cannot be made any more: {error.message}", "give it: base=…") from error
