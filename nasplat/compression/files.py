"""A pruned network as files: the recipe and the weights, from which it comes back bit for bit.

pruned = prune_network(network, inputs, settings)
save_pruned(pruned, network, "smaller")
again = nasplat.networks.rebuild.load_pruned("smaller", base=network)
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from nasplat.artifacts.files import write_json, write_text
from nasplat.artifacts.recipe import RECIPE, SCRIPT, SCRIPT_TEXT, Recipe
from nasplat.artifacts.weights import checksum, save_weights
from nasplat.compression.prune import Pruned
from nasplat.networks.rebuild import WEIGHTS, carry_out
from nasplat.networks.surgery import bare


def recipe_of(
    pruned: Pruned,
    original: nn.Module,
    input_shape: Sequence[int] = (),
    base: str | None = None,
    arguments: Mapping[str, Any] | None = None,
) -> Recipe:
    """How to make the pruned network again, with its weights in float32.

    Args:
        pruned: what `prune_network` returned.
        original: what was given to it.
        input_shape: `(C, H, W)`, for the reader.
        base: `module:function` that makes the original; None where whoever loads it will give the original.
        arguments: of that function.
    """
    operations = [{"blocks": list(one)} if isinstance(one, tuple) else one.to_json() for one in pruned.operations]
    _, attributes = carry_out(original, operations)
    modules = dict(pruned.module.named_modules())
    widths = {}
    for name, module in bare(original).named_modules():
        before, after = width_of(module), width_of(modules[name]) if name in modules else None
        if before is not None and before != (after or 0):
            widths[name] = (before, after or 0)
    return Recipe(
        base,
        arguments or {},
        operations,
        [(path, name, value) for (path, name), value in attributes.items()],
        widths,
        tuple(input_shape),
        checksum(copy.deepcopy(pruned.module).float().state_dict()),
    )


def save_pruned(
    pruned: Pruned,
    original: nn.Module,
    directory: Path | str,
    base: str | None = None,
    arguments: Mapping[str, Any] | None = None,
) -> Path:
    """Writes the recipe, the weights, and a load.py that needs no nasplat, into a folder; arguments as in `recipe_of`.

    Raises:
        NasplatError: the disk is full or cannot be written to.
    """
    folder = Path(directory)
    folder.mkdir(parents=True, exist_ok=True)
    recipe = recipe_of(pruned, original, (), base, arguments)
    save_weights(copy.deepcopy(pruned.module).float(), folder / WEIGHTS, {"digest": recipe.digest})
    write_text(folder / SCRIPT, SCRIPT_TEXT)
    write_json(folder / RECIPE, recipe.to_json())
    return folder


def width_of(module: nn.Module) -> int | None:
    """Output channels of a layer; None where it has no such number."""
    found = getattr(module, "out_channels", getattr(module, "out_features", getattr(module, "embed_dim", None)))
    return found if isinstance(found, int) else None
