"""How a pruned network is made from its original: plain data beside its weights, and a script that needs no nasplat."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from nasplat.artifacts.files import read_json
from nasplat.core.architecture import fingerprint
from nasplat.core.errors import NasplatError

SCHEMA_VERSION = 1
RECIPE = "recipe.json"
SCRIPT = "load.py"
_KEYS = ("base", "arguments", "operations", "attributes", "widths", "input_shape", "weights")


@dataclass(frozen=True, slots=True)
class Recipe:
    """All that is done to the structure of a network, in order.

    Args:
        base: `module:function` that makes the original; None where a module was given.
        arguments: of that function, by name.
        operations: `{"blocks": names}` for whole blocks that were removed, or what `Surgery.to_json` wrote.
        attributes: path of a module, name, and final value, of all attributes that changed.
        widths: of every layer that changed: before and after.
        input_shape: `(C, H, W)`.
        weights: SHA-256 of the weights that belong to it, as their file says.
    """

    base: str | None
    arguments: Mapping[str, Any]
    operations: Sequence[Mapping[str, Any]]
    attributes: Sequence[tuple[str, str, Any]]
    widths: Mapping[str, tuple[int, int]]
    input_shape: tuple[int, ...]
    weights: str
    filename: ClassVar[str] = RECIPE
    digest: str = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "digest", fingerprint(self._plain()))

    @property
    def values(self) -> dict[str, Any]:
        """What a reader wants to see of it."""
        widths = {layer: f"{before} -> {after}" for layer, (before, after) in self.widths.items()}
        return {"base": self.base, "arguments": dict(self.arguments), "widths": widths}

    def _plain(self) -> dict[str, Any]:
        return {
            "schema": SCHEMA_VERSION,
            "base": self.base,
            "arguments": dict(self.arguments),
            "operations": [dict(operation) for operation in self.operations],
            "attributes": [list(entry) for entry in self.attributes],
            "widths": {layer: list(pair) for layer, pair in self.widths.items()},
            "input_shape": list(self.input_shape),
            "weights": self.weights,
        }

    def to_json(self) -> dict[str, Any]:
        return {**self._plain(), "digest": self.digest}

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> Recipe:
        """Reads what `to_json` wrote.

        Raises:
            NasplatError: another schema version, a missing key, or a digest that does not belong to the content.
        """
        if not isinstance(data, Mapping) or "schema" not in data:
            raise NasplatError("this is no recipe of a pruned network: it has no key 'schema'")
        if data["schema"] != SCHEMA_VERSION:
            raise NasplatError(
                f"recipe of schema version {data['schema']}; this nasplat reads version {SCHEMA_VERSION}",
                "use the nasplat that wrote it, or prune again",
            )
        if missing := [key for key in (*_KEYS, "digest") if key not in data]:
            raise NasplatError(f"the recipe lacks {', '.join(missing)}", "it may be cut short; restore it from a copy")
        try:
            recipe = Recipe(
                data["base"],
                data["arguments"],
                data["operations"],
                [(path, name, value) for path, name, value in data["attributes"]],
                {layer: (before, after) for layer, (before, after) in data["widths"].items()},
                tuple(data["input_shape"]),
                data["weights"],
            )
        except (TypeError, ValueError, AttributeError) as error:
            raise NasplatError(f"the recipe is damaged: {error}", "restore it from a copy") from error
        if recipe.digest != data["digest"]:
            raise NasplatError("the recipe is damaged: its digest does not belong to it", "restore it from a copy")
        return recipe


def read_recipe(directory: Path | str) -> Recipe:
    """The recipe of a folder.

    Raises:
        NasplatError: there is none, or it is damaged.
    """
    path = Path(directory) / RECIPE
    if not path.is_file():
        raise NasplatError(f"there is no {RECIPE} in {directory}", "give the folder that nasplat prune wrote")
    return Recipe.from_json(read_json(path))


SCRIPT_TEXT = '''"""Makes this pruned network again with torch and safetensors alone: `python load.py` prints it."""

import importlib
import json
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import nn

HERE = Path(__file__).resolve().parent


def load(base=None):
    """The network in eval mode; base is the original, which recipe.json otherwise tells how to make."""
    recipe = json.loads((HERE / "recipe.json").read_text())
    if base is None:
        module, _, function = recipe["base"].partition(":")
        base = getattr(importlib.import_module(module), function)(**recipe["arguments"])
    weights, cuts = load_file(HERE / "weights.safetensors"), []
    for operation in recipe["operations"]:
        for name in operation.get("blocks", ()):
            base.set_submodule(name, nn.Identity())
        cuts += operation.get("kept", {}).items()
    for path, name, value in recipe["attributes"]:
        if "." in name:
            raise RuntimeError("a function in this network holds a size: use nasplat.networks.rebuild.load_pruned")
        owner = base.get_submodule(path)
        setattr(owner, name, tuple(value) if isinstance(getattr(owner, name), tuple) else value)
    made = {}  # tensors that several names share stay shared
    for path, module in base.named_modules():
        for table in (module._parameters, module._buffers):
            for key, old in table.items():
                name = f"{path}.{key}" if path else key
                if old is None or id(old) in made:
                    table[key] = None if old is None else made[id(old)]
                    continue
                new = weights.get(name, old.detach())
                for other, dims in cuts if name not in weights else ():
                    for dim, indices in dims.items() if other == name else ():
                        new = new.index_select(int(dim), torch.tensor(indices))
                if isinstance(old, nn.Parameter):
                    new = nn.Parameter(new, old.requires_grad)
                table[key] = made[id(old)] = new
    return base.eval()


if __name__ == "__main__":
    print(load())
'''
