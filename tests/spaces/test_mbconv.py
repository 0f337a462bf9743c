"""The space of inverted residuals: one name for one network, and the published costs.

What a user would lose: comparability with the published benchmark, and trials spent on the same network twice.
"""

from __future__ import annotations

import json
import os
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from nasplat.core.choice import Values
from nasplat.core.cost import cost_of
from nasplat.core.errors import NasplatError
from nasplat.core.problem import Output, Problem, classification
from nasplat.spaces.families import load_space, make_space, transfer
from nasplat.spaces.mbconv import MBConvSpace

ROOT = Path(__file__).resolve().parents[2]
DATA = Path(os.environ.get("NASPLAT_DATA", ROOT / "../shared/data"))
TABLE = DATA / "nas_bench_macro" / "nas-bench-macro_cifar10.json"
CIFAR = classification((3, 32, 32), 10)
SMALL = classification((3, 8, 8), 4)

# Rows of the published table: code, parameters, FLOPs (multiply-accumulates).
ROWS = (
    ("00000000", 387882, 7713280),
    ("11111111", 1588874, 53246464),
    ("22222222", 2932586, 105660928),
    ("02012100", 890666, 47327744),
    ("11111221", 2181386, 65012224),
    ("00011110", 1118378, 31390208),
    ("20000000", 409834, 17854976),
    ("02000000", 448298, 22753792),
)

# Neighbouring stages that may have equal channels, widths that round to the same, depths: every rewrite happens.
TANGLED: dict[str, Any] = {
    "stages": [
        {"channels": 8, "stride": 1, "layers": 2},
        {"channels": 8, "stride": 1, "layers": 2},
        {"channels": 16, "stride": 2, "layers": 2},
    ],
    "operations": ["identity", "mb_k3_e3"],
    "widths": [0.5, 1.0, 1.1],
    "depths": [1],
    "stem_channels": 8,
    "last_channels": 0,
}


def macro() -> MBConvSpace:
    space = load_space(ROOT / "search_spaces" / "nas_bench_macro.yaml", CIFAR)
    assert isinstance(space, MBConvSpace)
    return space


def values_of(space: MBConvSpace, code: str) -> Values:
    return {name: space.operations[int(digit)] for name, digit in zip(space.choices, code, strict=True)}


@pytest.mark.parametrize(("code", "params", "macs"), ROWS)
def test_costs_are_those_of_nas_bench_macro(code: str, params: int, macs: int) -> None:
    space = macro()
    cost = space.cost(space.canonical(values_of(space, code)))
    assert (cost.params, cost.macs) == (params, macs)


@pytest.mark.skipif(not TABLE.exists(), reason="the published table is not here")
def test_costs_of_all_networks_of_nas_bench_macro() -> None:
    """Without any constant between the two definitions: the authors count convolutions and the linear layer alone."""
    space = macro()
    rows = json.loads(TABLE.read_text())
    assert len(rows) == 6561
    for code, row in rows.items():
        cost = space.cost(space.canonical(values_of(space, code)))
        assert (cost.params, cost.macs) == (row["params"], row["flops"]), code


def test_nas_bench_macro_has_3969_networks() -> None:
    """An identity that keeps the shape has no position: 6,561 codes are 9 · 21 · 21 networks."""
    space = macro()
    assert space.count() == 6561
    assert len(list(space.enumerate())) == 3969


def chain(space: MBConvSpace, values: Values) -> tuple[tuple[Any, ...], ...]:
    """A network of the space without the names of its layers."""
    return tuple(tuple(layer)[1:] for layer in space.layers(values))


@pytest.mark.parametrize("operations", [["identity", "mb_k3_e3"], ["mb_k3_e3", "identity"], ["mb_k3_e3", "mb_k5_e3"]])
def test_two_assignments_are_one_architecture_exactly_if_their_layers_are_the_same(operations: list[str]) -> None:
    space = MBConvSpace(SMALL, **{**TANGLED, "operations": operations})
    digests: dict[object, set[str]] = {}
    names = list(space.choices)
    for options in product(*(choice.options for choice in space.choices.values())):
        values = dict(zip(names, options, strict=True))
        architecture = space.canonical(values)
        assert chain(space, architecture.values) == chain(space, values)
        digests.setdefault(chain(space, values), set()).add(architecture.digest)
    assert all(len(found) == 1 for found in digests.values())
    assert len(set.union(*digests.values())) == len(digests)


def test_layers_beyond_the_depth_change_nothing() -> None:
    space = MBConvSpace(SMALL, stages=[{"channels": 8, "stride": 2, "layers": 3}], depths=[1])
    dead = space.canonical({"stage1.depth": 1, "stage1.layer3": "mb_k7_e6"})
    assert dead == space.canonical({"stage1.depth": 1})
    assert dead.values["stage1.layer3"] == "identity"


def test_an_identity_that_must_change_shape_is_a_projection() -> None:
    space = MBConvSpace(SMALL, stages=[{"channels": 8, "stride": 2, "layers": 1}])
    graph = space.graph(space.canonical({"stage1.layer1": "identity"}))
    projection = next(operation for operation in graph.operations if operation.name == "stage1.layer1.conv")
    assert projection.shape == (8, 4, 4)
    assert projection.attributes["kernel"] == (1, 1)


def test_width_and_depth_are_ordered_and_change_the_cost() -> None:
    space = MBConvSpace(CIFAR, widths=(0.5, 1.0), depths=(1,))
    assert space.choices["stage2.width"].ordered and space.choices["stage2.depth"].options == (1, 3)
    small = space.cost(space.canonical({"stage2.width": 0.5, "stage2.layer1": "mb_k3_e6"}))
    large = space.cost(space.canonical({"stage2.width": 1.0, "stage2.layer1": "mb_k3_e6"}))
    assert small.params < large.params and small.macs < large.macs


@pytest.mark.parametrize("problem", [CIFAR, classification((1, 7, 5), 3)])
def test_cost_is_that_of_the_graph_with_every_extra(problem: Problem) -> None:
    """The sum over layers knows squeeze-and-excitation, expansion 1, odd sizes, depths and widths."""
    operations = ("identity", "mb_k3_e1", "mb_k5_e4")
    extras: dict[str, Any] = {"squeeze_excite": True, "activation": "hard_swish", "stem_stride": 2}
    space = MBConvSpace(problem, operations=operations, widths=(0.5, 1.0), depths=(1, 2), **extras)
    rng = np.random.default_rng(0)
    for _ in range(100):
        architecture = space.sample(rng)
        assert space.cost(architecture) == cost_of(space.graph(architecture))


def test_an_unlabelled_problem_ends_in_its_features() -> None:
    space = MBConvSpace(Problem((3, 8, 8), (Output("embedding", "embedding", 1),)), last_channels=12)
    network = space.build(space.canonical({}))
    assert network(torch.zeros(2, 3, 8, 8)).shape == (2, 12)
    assert not any(name.startswith("heads") for name, _ in network.named_parameters())


def test_a_found_network_is_rebuilt_larger() -> None:
    """`N @ F`: the choices of a small proxy say what the full network is."""
    spec: dict[str, Any] = {"family": "mbconv", "stages": [{"channels": 8, "stride": 2, "layers": 2}]}
    space = make_space(spec, SMALL)
    larger = make_space({**spec, "stages": [{"channels": 32, "stride": 2, "layers": 2}]}, CIFAR)
    found = space.canonical({"stage1.layer1": "mb_k5_e6"})
    rebuilt = transfer(found, space, larger)
    assert rebuilt.values == found.values and rebuilt.digest != found.digest
    assert larger.cost(rebuilt).params > space.cost(found).params
    longer = make_space({**spec, "stages": [{"channels": 8, "stride": 2, "layers": 3}]}, SMALL)
    with pytest.raises(NasplatError, match=r"stage1\.layer3"):
        transfer(found, space, longer)
    with pytest.raises(NasplatError, match="another space"):
        transfer(found, larger, space)


@pytest.mark.parametrize(
    ("parameters", "said"),
    [
        ({"stages": []}, "stages"),
        ({"stages": "many"}, "stages"),
        ({"stages": [{"channels": 8, "stride": 2}]}, "stage 1"),
        ({"stages": [{"channels": 8, "stride": 0, "layers": 1}]}, "stride of stage 1"),
        ({"operations": ["mb_k4_e3"]}, "mb_k4_e3"),
        ({"operations": ["mbconv"]}, "mbconv"),
        ({"operations": ["identity", "identity"]}, "twice"),
        ({"widths": [0]}, "widths"),
        ({"widths": ["wide"]}, "wide"),
        ({"depths": [0]}, "depth"),
        ({"activation": "gelu"}, "gelu"),
        ({"last_channels": -1}, "last_channels"),
        ({"squeeze_excite": "no"}, "squeeze_excite"),
        ({"chanels": 8}, "chanels"),
    ],
)
def test_wrong_parameters_are_named(parameters: dict[str, Any], said: str) -> None:
    with pytest.raises(NasplatError, match=said):
        make_space({"family": "mbconv", **parameters}, SMALL)


def test_the_drawing_is_the_chain_of_layers() -> None:
    space = macro()
    drawing = space.drawings(space.canonical(values_of(space, "12000000")))["network"]
    labels = [node.label for node in drawing.nodes]
    assert "MB 5×5, expand 6 → 64" in labels and "MB 3×3, expand 3 → 64, /2" in labels
    assert len(drawing.edges) == len(drawing.nodes) - 1
