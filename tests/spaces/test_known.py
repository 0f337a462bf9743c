"""Published networks by name."""

from pathlib import Path

import pytest
import torch

from nasplat.core.errors import NasplatError
from nasplat.core.problem import classification
from nasplat.spaces.families import make_space
from nasplat.spaces.known import KNOWN, known_network, known_networks

PROBLEM = classification((3, 32, 32), 10)
DARTS = ["darts_v1", "darts_v2", "pc_darts", "gdas"]
NASNET = ["nasnet_a", "amoebanet_a"]
MOBILE = ["mobilenet_v2", *(f"mobilenet_k{kernel}_e{e}" for kernel, e in ((3, 3), (5, 3), (5, 6), (7, 3), (7, 6)))]
RESNET = {"stages": [{"channels": 16 * 2**place, "stride": 1 + (place > 0), "blocks": 5} for place in range(3)]}


@pytest.mark.parametrize(
    ("family", "parameters", "names"),
    [
        ("darts", {"channels": 4}, DARTS),
        ("nasnet", {"channels": 4}, NASNET),
        ("nasbench201", {"channels": 4}, ["resnet", "nasbench201_best"]),
        ("mbconv", {}, MOBILE),
        ("resnet", {"shortcut": "padded", "depths": [3, 4], **RESNET}, ["resnet20", "resnet32"]),
        ("memory_bank", {}, ["bank_resnet", "bank_densenet", "bank_fractalnet"]),
    ],
)
def test_every_space_holds_its_networks_and_they_run(
    family: str, parameters: dict[str, object], names: list[str]
) -> None:
    """A reference that could not be built would end the search at its first trial."""
    space = make_space({"family": family, **parameters}, PROBLEM)
    found = known_networks(space)
    assert list(found) == names and len(set(found.values())) == len(names)
    for name, architecture in found.items():
        assert known_network(space, name) == architecture == space.canonical(architecture.values)
        network = space.build(architecture).eval()
        assert sum(weight.numel() for weight in network.parameters()) == space.cost(architecture).params
        with torch.no_grad():
            assert network(torch.zeros(1, 3, 32, 32)).shape == (1, 10)


@pytest.mark.parametrize(
    ("name", "family", "millions"),
    # As published for 20 cells and 36 channels, without the auxiliary head.
    [("darts_v2", "darts", 3.3), ("pc_darts", "darts", 3.6), ("gdas", "darts", 3.4), ("amoebanet_a", "nasnet", 3.2)],
)
def test_parameters_are_as_published(name: str, family: str, millions: float) -> None:
    """One wrong operation in a genotype would make another network of the same name."""
    space = make_space({"family": family, "cells": 6, "channels": 36}, PROBLEM)
    assert space.cost(known_network(space, name)).params / 1e6 == pytest.approx(millions, abs=0.06)


def test_the_residual_block_is_its_formula() -> None:
    """Two convolutions after each other beside an identity: costs from the shapes alone."""
    space = make_space({"family": "nasbench201", "cells": 1, "channels": 4}, PROBLEM)
    plain = space.cost(space.canonical(dict.fromkeys(space.choices, "none"))).macs
    convolutions = sum(2 * 9 * width**2 * size**2 for width, size in ((4, 32), (8, 16), (16, 8)))
    identity = space.cost(space.canonical({**dict.fromkeys(space.choices, "none"), "edge_0_3": "skip_connect"})).macs
    assert plain <= identity
    assert space.cost(known_network(space, "resnet")).macs - identity == convolutions


def test_what_a_space_lacks_is_said() -> None:
    """Whoever cut the space down sees which choice keeps the network out."""
    small = make_space({"family": "darts", "operations": ["skip_connect", "sep_conv_3x3", "max_pool_3x3"]}, PROBLEM)
    with pytest.raises(NasplatError, match=r"normal_node3_op. would be 'dil_conv_3x3'"):
        known_network(small, "darts_v2")
    assert known_networks(small) == {}
    with pytest.raises(NasplatError, match="numbers of nodes"):
        known_network(make_space({"family": "darts", "nodes": 3}, PROBLEM), "darts_v1")
    with pytest.raises(NasplatError, match="another family"):
        known_network(small, "nasnet_a")
    with pytest.raises(NasplatError) as caught:
        known_network(make_space({"family": "darts"}, PROBLEM), "pc_dart")
    assert "did you mean 'pc_darts'" in caught.value.advice.lower() and "darts_v1" in caught.value.advice


def test_a_table_holds_the_networks_of_its_space(tmp_path: Path) -> None:
    """Landmarks of a tabular benchmark come from its rows, and only from those."""
    network = {"family": "mbconv", "stages": [{"channels": 8, "stride": 1, "layers": 2}], "stem_channels": 8}
    network["operations"] = ["identity", "mb_k3_e6", "mb_k5_e6"]
    (tmp_path / "table.json").write_text('{"00": {"acc": 1}, "01": {"acc": 2}, "11": {"acc": 3}}')
    table = {"family": "tabular", "table": str(tmp_path / "table.json"), "metrics": {"accuracy": "acc"}}
    space = make_space({**table, "network": network}, PROBLEM)
    assert list(known_networks(space)) == ["mobilenet_v2"]
    assert space.canonical(known_network(space, "mobilenet_v2").values).values["stage1.layer2"] == "mb_k3_e6"
    with pytest.raises(NasplatError, match="its row is not in the table"):
        known_network(space, "mobilenet_k5_e6")
    with pytest.raises(NasplatError, match="another family"):
        known_network(make_space(table, PROBLEM), "mobilenet_v2")


def test_every_network_says_where_it_is_from() -> None:
    """A landmark without its paper is no reference."""
    assert all(any(character.isdigit() for character in network.source) for network in KNOWN.values())
