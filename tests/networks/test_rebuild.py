"""A pruned network from its files, bit for bit, or an error that says what is wrong with them."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from nasplat.artifacts.recipe import Recipe, read_recipe
from nasplat.artifacts.weights import checksum, save_weights
from nasplat.core.errors import NasplatError
from nasplat.networks.channel_tracer import trace_channels
from nasplat.networks.pruning_proof import randomise
from nasplat.networks.rebuild import carry_out, load_pruned
from nasplat.networks.surgery import operate, plan
from tests.networks import zoo


def saved(directory: Path, make: Any, inputs: Any) -> nn.Module:
    network = make().eval()
    randomise(network, torch.Generator().manual_seed(0))
    graph = trace_channels(network, inputs)
    surgery = plan(network, graph, {group.name: range(0, group.size, 2) for group in graph.groups})
    pruned, _ = operate(network, surgery)
    operations = [surgery.to_json()]
    _, attributes = carry_out(network, operations)
    changes = [(path, name, value) for (path, name), value in attributes.items()]
    recipe = Recipe(None, {}, operations, changes, {}, (3, 8, 8), checksum(pruned.state_dict()))
    directory.mkdir(exist_ok=True)
    (directory / "recipe.json").write_text(json.dumps(recipe.to_json()))
    save_weights(pruned, directory / "weights.safetensors")
    return pruned.eval()


@pytest.mark.parametrize("name", ["vit", "swin", "tied_embedding"])
def test_the_pruned_module_comes_back_bit_for_bit(tmp_path: Path, name: str) -> None:
    make, inputs = zoo.SMALL[name]
    pruned = saved(tmp_path, make, inputs)
    again = load_pruned(tmp_path, make())
    one, other = pruned.state_dict(), again.state_dict()
    assert one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)
    assert torch.equal(pruned(*inputs), again(*inputs)) and repr(pruned) == repr(again)


def test_files_that_are_wrong_are_told(tmp_path: Path) -> None:
    make, inputs = zoo.SMALL["vit"]
    saved(tmp_path, make, inputs)
    plain = json.loads((tmp_path / "recipe.json").read_text())

    def broken(change: Any) -> str:
        folder = tmp_path / "broken"
        folder.mkdir(exist_ok=True)
        for name in ("recipe.json", "weights.safetensors"):
            (folder / name).write_bytes((tmp_path / name).read_bytes())
        change(folder)
        with pytest.raises(NasplatError) as caught:
            load_pruned(folder, make())
        return caught.value.message

    def written(**changes: Any) -> Any:
        return lambda folder: (folder / "recipe.json").write_text(json.dumps({**plain, **changes}))

    assert "schema version 99" in broken(written(schema=99))
    assert "its digest does not belong" in broken(written(input_shape=[1, 2, 3]))
    assert "lacks weights" in broken(
        lambda folder: (folder / "recipe.json").write_text(
            json.dumps({key: value for key, value in plain.items() if key != "weights"})
        )
    )
    assert "recipe.json" in broken(lambda folder: (folder / "recipe.json").write_text("{"))
    assert "no recipe.json" in broken(lambda folder: (folder / "recipe.json").unlink())
    assert "no weights" in broken(lambda folder: (folder / "weights.safetensors").unlink())
    other = {name: value + 1 for name, value in make().state_dict().items()}
    assert "not those of the recipe" in broken(lambda folder: save_weights(other, folder / "weights.safetensors"))
    with pytest.raises(NasplatError, match="has no tensor"):
        load_pruned(tmp_path, nn.Linear(2, 2))
    with pytest.raises(NasplatError, match="names no function"):
        load_pruned(tmp_path)
    assert read_recipe(tmp_path).digest == plain["digest"]
