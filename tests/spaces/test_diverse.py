"""Networks of many forms, made for a graph hypernetwork to learn from."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch

from nasplat.core.architecture import Architecture
from nasplat.core.cost import cost_of
from nasplat.core.errors import NasplatError
from nasplat.core.problem import classification
from nasplat.spaces.diverse import NORMS, DiverseSpace

GREY = classification((1, 12, 12), 5)
SMALL: dict[str, Any] = {"channels": (4, 8), "cells": (1, 2), "stages": 2, "nodes": 2}


def drawn(space: DiverseSpace, rng: np.random.Generator) -> dict[str, Any]:
    return {name: choice.options[int(rng.integers(len(choice.options)))] for name, choice in space.choices.items()}


def test_the_canonical_network_is_the_one_that_was_written() -> None:
    """A rewrite that changes a network gives its score to another one."""
    space = DiverseSpace(GREY, **SMALL)
    rng = np.random.default_rng(0)
    rewritten = 0
    for _ in range(60):
        values = drawn(space, rng)
        written = space.graph(Architecture(space.fingerprint, values))
        settled = space.canonical(values)
        rewritten += dict(settled.values) != values
        one, other = cost_of(written), space.cost(settled)
        assert (one.macs, one.params) == (other.macs, other.params), values
        kinds = (Counter(op.kind for op in graph.operations) for graph in (written, space.graph(settled)))
        with_weights = [{kind: count[kind] for kind in ("conv2d", "batch_norm")} for count in kinds]
        assert with_weights[0] == with_weights[1]
    assert rewritten > 10


def test_every_network_is_listed_once() -> None:
    """By hand: three cells with a node in three kinds of blocks, and one without; two norms, two poolings."""
    space = DiverseSpace(
        GREY, operations=("conv_3x3", "none"), nodes=1, stages=1, channels=(4,), cells=(1,), stems=("conv_3x3",)
    )
    listed = list(space.enumerate())
    assert len(listed) == len({one.digest for one in listed}) == (3 * 3 + 1) * 2 * 2
    tiny = DiverseSpace(classification((1, 1, 1), 5), operations=("conv_3x3",), nodes=1, stages=1, cells=(1,))
    assert tiny.canonical({"pooling": "max"}) == tiny.canonical({"pooling": "average"})


def test_samples_are_diverse() -> None:
    """A hypernetwork learns what it sees: one that meets one form alone makes weights for that form alone."""
    space = DiverseSpace(GREY, **{**SMALL, "nodes": 4})
    rng = np.random.default_rng(0)
    samples = [space.sample(rng) for _ in range(80)]
    for name in ("stem", "norm", "block", "combine", "pooling", "channels", "cells"):
        assert {one.values[name] for one in samples} == set(space.choices[name].options)
    nodes = Counter(space._live_nodes("normal", one.values) for one in samples)
    assert all(nodes[count] >= 5 for count in (1, 2, 3, 4))
    assert len({one.digest for one in samples}) == 80
    params = [space.cost(one).params for one in samples]
    assert max(params) > 20 * min(params) and max(params) < 10**6


@pytest.mark.parametrize("block", ["residual", "bottleneck"])
def test_a_shortcut_goes_around_the_cell(block: str) -> None:
    """With cells that compute nothing, the network is its stem."""
    space = DiverseSpace(GREY, **{**SMALL, "stages": 1})
    values = {"norm": "none", "block": block, "channels": 8, "cells": 2}
    network: Any = space.build(space.canonical(values)).eval()
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if name.startswith("cells."):
                parameter.zero_()
        images = torch.randn(3, 1, 12, 12, generator=torch.Generator().manual_seed(0))
        features = network.forward_taps(images, ("features",))["features"]
        stem = network.stem.conv(images).relu().mean((2, 3))
    torch.testing.assert_close(features, stem)


def test_without_batch_norm_convolutions_have_a_bias() -> None:
    """Without either, a layer could not move its activations at all."""
    space = DiverseSpace(GREY, **SMALL)
    normed, plain = (space.graph(space.canonical({"norm": norm, "block": "residual"})).operations for norm in NORMS)
    followed = {normed[one.inputs[0]].name for one in normed if one.kind == "batch_norm"}
    biased = {one.name for one in plain if one.kind == "conv2d" and one.attributes["bias"]}
    assert biased and biased == {one.name for one in plain if one.kind == "conv2d" and one.name in followed}
    assert not any(one.kind == "batch_norm" for one in plain)


def test_what_nothing_reads_is_not_paid_for() -> None:
    """Cells that read the one before the last alone leave every second cell dead."""
    space = DiverseSpace(GREY, **{**SMALL, "operations": ("conv_3x3", "none"), "nodes": 1, "stages": 1})
    graph = space.graph(space.canonical({"normal_node0_op2": "none", "cells": 2}))
    names = {one.name.split(".")[1] for one in graph.operations if one.name.startswith("cells.")}
    assert names == {"1"}


def test_drawings_leave_out_nodes_that_add_nothing() -> None:
    """A box that nothing enters looks like a part of the network."""
    space = DiverseSpace(GREY, **SMALL)
    ops = {f"normal_node{node}_op{edge}": "none" for node, edge in ((0, 1), (1, 1), (1, 2))}
    drawings: Any = space.drawings(space.canonical(ops))
    assert list(drawings) == ["network", "normal", "reduction"]
    assert [node.kind for node in drawings["normal"].nodes].count("combine") == 1
    assert {edge.target for edge in drawings["normal"].edges} >= {"output"}


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"stems": ["conv_9x9"]}, "stems"),
        ({"blocks": "plain"}, "blocks"),
        ({"channels": [0]}, "channels"),
        ({"cells": 2}, "cells"),
        ({"stages": 0}, "stages"),
        ({"nodes": 0}, "node"),
        ({"operations": ["conv_11x11"]}, "conv_11x11"),
        ({"norms": []}, "no options"),
        ({"channels": [8, 8]}, "twice"),
    ],
)
def test_what_makes_no_network_is_refused(parameters: dict[str, Any], message: str) -> None:
    with pytest.raises(NasplatError, match=message):
        DiverseSpace(GREY, **parameters)
