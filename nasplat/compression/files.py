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
from nasplat.artifacts.weights import save_weights
from nasplat.compression.prune import Pruned
from nasplat.networks.rebuild import WEIGHTS, make_recipe


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
    return make_recipe(original, pruned.module, pruned.operations, input_shape, base, arguments)


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
