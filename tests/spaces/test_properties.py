"""What every family of spaces promises, held against every family in the table.

What a user would lose: a search that proposes networks that cannot be built, repeats itself, reports wrong costs, or
files whose digests mean something else tomorrow.
"""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from nasplat.core.architecture import Architecture
from nasplat.core.cost import cost_of
from nasplat.core.errors import NasplatError
from nasplat.core.problem import Output, Problem, classification
from nasplat.core.space import SearchSpace
from nasplat.networks.counter import count
from nasplat.networks.graph_network import build_network
from nasplat.spaces.families import FAMILIES, load_space, make_space, transfer

ROOT = Path(__file__).resolve().parents[2]
SMALL = classification((3, 8, 8), 4)
USER = "tests.spaces.example_networks:convolutions"
RESIDUAL = "tests.spaces.example_networks:residual"

# Every family with all of its operations, stacked small.
SPECS: dict[str, dict[str, Any]] = {
    "nasnet": {"cells": [1, 0], "channels": 2, "stem_multiplier": 1},
    "darts": {"cells": [1, 0], "channels": 2, "stem_multiplier": 1},
    "nasbench201": {"cells": 1, "channels": 2},
    "mbconv": {
        "stages": [{"channels": 8, "stride": 1, "layers": 2}, {"channels": 8, "stride": 2, "layers": 3}],
        "stem_channels": 4,
        "last_channels": 8,
        "widths": [0.5, 1.0],
        "depths": [1],
        "divisor": 4,
    },
    "resnet": {
        "stages": [{"channels": 8, "stride": 1, "blocks": 2}, {"channels": 8, "stride": 2, "blocks": 2}],
        "stem_channels": 4,
        "widths": [0.5, 1.0],
        "depths": [1],
        "expansions": [0.5, 1.0],
        "kernels": [3, 5],
        "shortcut": "padded",
        "divisor": 4,
    },
    "diverse": {"channels": [2, 4], "cells": [1], "stages": 2, "nodes": 2},
    "memory_bank": {
        "blocks": [{"channels": [2, 4], "banks": 3, "layers": 2}, {"channels": 4, "banks": 4, "layers": 3}],
        "groups": [1, 2],
        "last_channels": 8,
    },
    "user": {"function": USER, "channels": 2},
    "pruning": {"model": RESIDUAL, "ratios": [0.25, 0.5]},
}
# One option wherever the family lets one: nothing, or next to nothing, can be mutated.
SMALLEST: dict[str, dict[str, Any]] = {
    "nasnet": {"operations": ["skip_connect"], "combiners": ["add"], "blocks": 1, "cells": [1]},
    "darts": {"operations": ["none"], "nodes": 1, "cells": [1]},
    "nasbench201": {"operations": ["conv_3x3"], "cells": [1]},
    "mbconv": {"operations": ["identity"], "stages": [{"channels": 4, "stride": 1, "layers": 2}]},
    "resnet": {"widths": [1], "depths": []},
    "diverse": {
        "operations": ["conv_3x3"],
        "nodes": 1,
        "stages": 1,
        "channels": [2],
        "cells": [1],
        "stems": ["conv_3x3"],
        "norms": ["none"],
        "blocks": ["bottleneck"],
        "combiners": ["add"],
        "poolings": ["max"],
    },
    "memory_bank": {"blocks": [{"channels": 4, "banks": 1, "layers": 0}]},
    "user": {"function": "tests.spaces.example_networks:fixed"},
    "pruning": {"model": RESIDUAL, "ratios": [1.0], "depth": False},
}
# Of the default spaces on 3x32x32 with 10 classes: all choices at their first option, and all at their last.
# These must never change: files and studies of users hold them. A new schema version is the only way.
GOLDEN: dict[str, tuple[str, str]] = {
    "nasnet": (
        "596abc05bad8052c21f8e1b6138e86f8db888228d637f005e611d387af421599",
        "fdba9b33c37a4db09ccb395cf0d614d9669c0ea5b9a87169cd46951d51444670",
    ),
    "darts": (
        "981f69ceb321d8539937bf22313cbef80bbbd265aa58df3260cf595b1e5c1fb9",
        "5ca8ce16c4b4dcafd131d4a6b2f62fc3ed6982188698fe3ce1b760602ecce187",
    ),
    "nasbench201": (
        "1b4c59efe6b2eafc8e7e4a2d78ce8c544d0b2cd7674fb456d11a5243c2bc8f53",
        "29dca13d30ec76c9dcf19fa6735c42fb97ab381873c8edf0b86ae74845fa5e77",
    ),
    "mbconv": (
        "e61b69a4e3208ed9d061bdca2ffb63f97be6a0ebdc8ce9fd3951c52769bba1e7",
        "f91541a481cbbdac8802ae53ead8805ad08fd0918812a773a28d61272527bd0f",
    ),
    "resnet": (
        "ee40d65ee02e3171f9d721e20d9146aef7f44081ce8369d9d5604047d9f4fd50",
        "7d420226396bdea6483be0d1daa318831e9c36eba038fb026cdda0b905fdb3be",
    ),
    "diverse": (
        "c1898c456500e95bececed640972be7420f20c977243b4a80e1647ad4deeea5f",
        "bf8b03afa1a759d1587e16ad52177921d3dadfa5e4b5bcb8b201e87a40e16d37",
    ),
    "memory_bank": (
        "bb798a00af02facc2ea648a5436c1d959a2a63a8e62c284099063608e3fae759",
        "b678964f99439a7f16107df05ae1f52168766a6dcd06cd6da321cfc728a273f3",
    ),
    "user": (
        "7e8878d53f72a00d8c4eba6a45f4d23c85211c29612b1a8f3299b3e19184fd60",
        "07c73ec0c7c646b3b39c72a813f8a6bd91185762a5b8943d786739a80b06bb22",
    ),
    "pruning": (
        "8189b736d5da350ead994de26cd7ea0e6081954e693f6ea8587c828127aba74b",
        "25d3878af2525dd7d3d9eda9c9dedb20d6d0f03041406db5cb4f83295ba5a9ff",
    ),
}

# A table of numbers builds no networks, and a tree needs several tasks: test_tabular.py and test_branching.py beside
# this file hold them to what they promise.
BUILDING = tuple(family for family in FAMILIES if family not in ("tabular", "branching"))
families = pytest.mark.parametrize("family", BUILDING)
seeds = st.integers(0, 2**32 - 1)


@cache
def space_of(family: str) -> SearchSpace:
    return made(family, SPECS[family], SMALL)


def made(family: str, spec: Mapping[str, Any], problem: Problem) -> SearchSpace:
    """A space for a problem; the network that is pruned is made for it, too."""
    if family == "pruning":
        spec = {**spec, "arguments": {"channels": problem.input_shape[0], "classes": problem.outputs[0].size}}
    return make_space({"family": family, **spec}, problem)


def sampled(family: str, seed: int) -> tuple[SearchSpace, Architecture, np.random.Generator]:
    rng = np.random.default_rng(seed)
    return space_of(family), space_of(family).sample(rng), rng


def assert_of(space: SearchSpace, architecture: Architecture) -> None:
    """The architecture is canonical and its values are options of the table."""
    assert list(architecture.values) == list(space.choices)
    for name, option in architecture.values.items():
        assert option in space.choices[name].options
    assert space.canonical(architecture.values) == architecture


def test_every_family_is_tested() -> None:
    assert set(SPECS) == set(SMALLEST) == set(GOLDEN) == set(BUILDING)


@families
@settings(max_examples=15, deadline=None)
@given(seed=seeds)
def test_round_trips(family: str, seed: int) -> None:
    space, architecture, _ = sampled(family, seed)
    assert_of(space, architecture)
    again = Architecture.from_json(json.loads(json.dumps(architecture.to_json())))
    assert again == architecture and dict(again.values) == dict(architecture.values)
    assert pickle.loads(pickle.dumps(architecture)) == architecture
    # The identity is plain data, and the same space made again has the same digests.
    assert json.loads(json.dumps(space.identity)) == space.identity
    assert made(family, SPECS[family], SMALL).canonical(architecture.values) == architecture


@families
@settings(max_examples=5, deadline=None)
@given(seed=seeds)
def test_neighbours_mutants_and_children_are_valid(family: str, seed: int) -> None:
    space, architecture, rng = sampled(family, seed)
    neighbours = space.neighbours(architecture)
    digests = [neighbour.digest for neighbour in neighbours]
    assert architecture.digest not in digests and len(set(digests)) == len(digests)
    for index in rng.permutation(len(neighbours))[:10]:
        assert_of(space, neighbours[index])
    mutant = space.mutate(architecture, rng)
    assert mutant is not None and mutant in neighbours
    child = space.crossover(architecture, space.sample(rng), rng)
    assert_of(space, child)
    assert space.crossover(architecture, architecture, rng) == architecture
    smaller = space.cost(mutant)
    assert smaller.macs > 0 and smaller.params > 0 and smaller.peak_bytes > 0


@families
def test_the_same_generator_samples_the_same(family: str) -> None:
    space = space_of(family)
    first = [space.sample(np.random.default_rng(3)).digest for _ in range(2)]
    assert first[0] == first[1]


@families
def test_costs_are_those_of_the_graph_and_of_the_counter(family: str) -> None:
    """Integer for integer: MACs, parameters and peak bytes, of 200 random graphs, and of 50 networks."""
    space = space_of(family)
    rng = np.random.default_rng(0)
    for place in range(200):
        architecture = space.sample(rng)
        cost = space.cost(architecture)
        drawn = family in ("user", "pruning")  # its graph is a drawing: what runs is the module
        if not drawn:
            assert cost_of(space.graph(architecture)) == cost, dict(architecture.values)
        if place % 4:
            continue
        if drawn:
            with torch.device("meta"):
                module = space.build(architecture)
        else:
            module = build_network(space.graph(architecture), device="meta")
        assert count(module, SMALL.input_shape).cost == cost, dict(architecture.values)


@families
def test_every_architecture_trains_a_step(family: str) -> None:
    generator = torch.Generator().manual_seed(0)
    images, labels = torch.randn(4, *SMALL.input_shape, generator=generator), torch.tensor([0, 1, 2, 3])
    for seed in range(5):
        space, architecture, _ = sampled(family, seed)
        network = space.build(architecture).train()
        before = {name: parameter.detach().clone() for name, parameter in network.named_parameters()}
        optimiser = torch.optim.SGD(network.parameters(), lr=0.1)
        loss = F.cross_entropy(network(images), labels)
        loss.backward()
        optimiser.step()
        assert torch.isfinite(loss)
        assert any(not torch.equal(before[name], parameter) for name, parameter in network.named_parameters())
        assert sum(parameter.numel() for parameter in network.parameters()) == space.cost(architecture).params


@families
@pytest.mark.parametrize(
    "problem", [Problem((1, 9, 7), (Output("embedding", "embedding", 1),)), classification((1, 5, 9), 2)]
)
def test_other_problems(family: str, problem: Problem) -> None:
    """Odd sizes, one channel, no labels."""
    space = made(family, SPECS[family], problem)
    architecture = space.canonical({})
    output = space.build(architecture).eval()(torch.zeros(2, *problem.input_shape))
    assert output.shape[0] == 2
    if problem.outputs[0].kind == "classification":
        assert output.shape[1] == problem.outputs[0].size


@families
def test_a_space_with_nothing_to_mutate_ends(family: str) -> None:
    space = made(family, SMALLEST[family], SMALL)
    rng = np.random.default_rng(0)
    architecture = space.sample(rng)
    neighbours = space.neighbours(architecture)
    mutant = space.mutate(architecture, rng)
    assert (mutant is None) == (not neighbours)
    assert len(list(space.enumerate())) <= space.count() < 100
    if family != "nasnet":  # a block of nasnet still chooses what it reads
        assert mutant is None and len(list(space.enumerate())) == 1


@families
def test_a_space_is_transferred_to_another_problem(family: str) -> None:
    space = space_of(family)
    larger = made(family, SPECS[family], classification((3, 16, 16), 9))
    architecture = space.sample(np.random.default_rng(1))
    rebuilt = transfer(architecture, space, larger)
    assert rebuilt.values == architecture.values and rebuilt.digest != architecture.digest
    assert larger.cost(rebuilt).macs > space.cost(architecture).macs


@families
def test_wrong_values_are_refused(family: str) -> None:
    space = space_of(family)
    name = next(iter(space.choices))
    with pytest.raises(NasplatError, match="no choice"):
        space.canonical({"no such choice": 1})
    with pytest.raises(NasplatError, match="no option"):
        space.canonical({name: "no such option"})


def test_families_and_parameters_are_looked_up_with_advice(tmp_path: Path) -> None:
    with pytest.raises(NasplatError, match="did you mean 'darts'"):
        make_space({"family": "dart"}, SMALL)
    with pytest.raises(NasplatError, match="did you mean 'channels'"):
        make_space({"family": "darts", "chanels": 8}, SMALL)
    with pytest.raises(NasplatError, match="family"):
        make_space({"channels": 8}, SMALL)
    with pytest.raises(NasplatError, match="function"):
        make_space({"family": "user"}, SMALL)
    with pytest.raises(NasplatError, match="cannot be read"):
        load_space(tmp_path / "none.yaml", SMALL)
    for text, said in (("family: [", "not YAML"), ("", "family"), ("- darts", "family"), ("family: [darts]", "family")):
        (tmp_path / "space.yaml").write_text(text)
        with pytest.raises(NasplatError, match=said) as caught:
            load_space(tmp_path / "space.yaml", SMALL)
        assert "space.yaml" in caught.value.message


@pytest.mark.parametrize("file", sorted((ROOT / "search_spaces").glob("*.yaml")), ids=lambda file: file.stem)
def test_every_ready_space_is_one_of_a_family(file: Path) -> None:
    several = Problem((3, 32, 32), tuple(Output(name, "classification", 10) for name in ("kind", "colour", "size")))
    space = load_space(file, several if file.stem == "branching" else classification((3, 32, 32), 10))
    assert space.identity["family"] in FAMILIES
    assert space.cost(space.sample(np.random.default_rng(0))).params > 0


def test_costs_are_known_where_torch_cannot_be_imported() -> None:
    """Costs of candidates, and everything that leads to them, without torch (a branching tree cuts a real network)."""
    code = """
import sys
sys.modules["torch"] = None
from pathlib import Path
import numpy as np
from nasplat.core.cost import cost_of
from nasplat.core.problem import classification
from nasplat.spaces.families import load_space
files = [file for file in sorted(Path("search_spaces").glob("*.yaml")) if file.stem != "branching"]
for file in files:
    space = load_space(file, classification((3, 32, 32), 10))
    rng = np.random.default_rng(0)
    architecture = space.sample(rng)
    architecture = space.mutate(architecture, rng)
    assert space.cost(architecture) == cost_of(space.graph(architecture))
assert len(files) >= 5
"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def golden(family: str) -> tuple[str, str]:
    parameters = {"user": {"function": USER}, "pruning": {"model": RESIDUAL}}.get(family, {})
    space = made(family, parameters, classification((3, 32, 32), 10))
    last = {name: choice.options[-1] for name, choice in space.choices.items()}
    return space.canonical({}).digest, space.canonical(last).digest


@families
def test_golden_digests(family: str) -> None:
    assert golden(family) == GOLDEN[family]


def test_digests_do_not_depend_on_the_process() -> None:
    """Neither on the hash seed nor on what was computed before."""
    code = (
        "from tests.spaces.test_properties import golden\n"
        "print(*(digest for family in ('mbconv', 'darts') for digest in golden(family)))"
    )
    environment = {"PYTHONHASHSEED": "7", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", code], check=True, cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert done.stdout.split() == [*GOLDEN["mbconv"], *GOLDEN["darts"]]
