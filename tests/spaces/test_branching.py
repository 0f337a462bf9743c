"""The space of branching trees: every promise of a space, and costs held against the counter on built networks.

What a user would lose: budgets that are not kept, trees that are trained twice under two names, or a search that cannot
be repeated.
"""

from __future__ import annotations

import json
from itertools import combinations, islice, product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from nasplat.artifacts.drawing import draw_svg, draw_text
from nasplat.artifacts.tree_picture import tree_svg
from nasplat.core import branching
from nasplat.core.architecture import Architecture
from nasplat.core.errors import NasplatError
from nasplat.core.experiment import Bounds
from nasplat.core.problem import Output, Problem, classification
from nasplat.networks.counter import count
from nasplat.search.within import descent
from nasplat.spaces.branching import BranchingSpace

HERE = "tests.spaces.test_branching"
EXAMPLE = "tests.spaces.example_networks:convolutions"
KINDS = ("classification", "regression", "dense", "multi_label", "embedding")
SIZES = {"embedding": 1}
# Of three tasks: all choices at their first option, and all at their last.
GOLDEN = ("a514fb9dabd79d6e", "52622b9e8d8f1681")
seeds = st.integers(0, 2**32 - 1)


class Block(nn.Module):
    def __init__(self, before: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(before, channels, 3, stride, 1, bias=False)
        self.norm = nn.BatchNorm2d(channels)
        self.skip = nn.Conv2d(before, channels, 1, stride, bias=False)

    def forward(self, features: Tensor) -> Tensor:
        return F.relu(self.norm(self.conv(features)) + self.skip(features), inplace=True)


class Blocks(nn.Module):
    """Four layers of different costs, the first of which takes the most memory."""

    def __init__(self, channels: int = 4) -> None:
        super().__init__()
        self.one, self.two = Block(3, channels, 1), Block(channels, 2 * channels, 2)
        self.three, self.four = Block(2 * channels, 2 * channels, 1), Block(2 * channels, 4 * channels, 2)
        self.classifier = nn.Linear(4 * channels, 10)

    def forward(self, images: Tensor) -> Tensor:
        return self.classifier(self.four(self.three(self.two(self.one(images)))).mean((2, 3)))


CUTS = ["one", "two", "three", "four"]


def problem(tasks: int = 3, side: int = 8) -> Problem:
    kinds = [KINDS[task % len(KINDS)] for task in range(tasks)]
    outputs = [Output(f"t{task}", kind, SIZES.get(kind, task + 2)) for task, kind in enumerate(kinds)]  # type: ignore[arg-type]
    return Problem((3, side, side), tuple(outputs))


def make(tasks: int = 3, layers: int = 4, **more: Any) -> BranchingSpace:
    return BranchingSpace(problem(tasks), **{"backbone": f"{HERE}:Blocks", "cuts": CUTS[:layers], **more})


SPACE = make(4)


@pytest.mark.parametrize(("tasks", "layers"), [(2, 1), (3, 2), (3, 4), (4, 3)])
def test_what_is_enumerated_is_what_the_table_stands_for(tasks: int, layers: int) -> None:
    """Every assignment of the table is made a tree that is enumerated, and every tree is an assignment."""
    space = make(tasks, layers)
    listed = [architecture.digest for architecture in space.enumerate()]
    assert len(listed) == len(set(listed)) == space.count()
    if layers < 3:
        options = [choice.options for choice in space.choices.values()]
        reached = {
            space.canonical(dict(zip(space.choices, values, strict=True))).digest for values in product(*options)
        }
        assert reached == set(listed)
    for architecture in space.enumerate():
        assert space.canonical(architecture.values) == architecture
        assert branching.is_tree(space.tree(architecture)) and space.of_tree(space.tree(architecture)) == architecture


def test_the_published_numbers() -> None:
    space = make(5)
    assert (space.assignments, space.count()) == (7_311_616, 3_455)
    assert len(space.choices) == 16
    assert space.choices["layer2.t3"].options == (0, 1, 2, 3)


@settings(max_examples=30, deadline=None)
@given(seed=seeds)
def test_any_assignment_is_the_tree_whose_tasks_parted_nowhere_before(seed: int) -> None:
    """Two tasks share a layer where a chain of tasks that go with each other links them, there and in all before."""
    rng = np.random.default_rng(seed)
    values = {name: choice.options[int(rng.integers(len(choice.options)))] for name, choice in SPACE.choices.items()}
    tree = SPACE.tree(SPACE.canonical(values))
    linked = []
    for layer in (1, 2, 3, 4):
        reach = np.eye(4, dtype=int)
        for task in (1, 2, 3):
            leader = int(values[f"layer{layer}.t{task}"])
            reach[task, leader] = reach[leader, task] = 1
        linked.append(np.linalg.matrix_power(reach, 4) > 0)
    for layer, (a, b) in product(range(4), combinations(range(4), 2)):
        assert (tree[layer][a] == tree[layer][b]) == all(one[a, b] for one in linked[: layer + 1])


@settings(max_examples=8, deadline=None)
@given(seed=seeds)
def test_the_promises_of_a_space(seed: int) -> None:
    rng = np.random.default_rng(seed)
    architecture = SPACE.sample(rng)
    assert list(architecture.values) == list(SPACE.choices)
    assert SPACE.canonical(architecture.values) == architecture
    again = Architecture.from_json(json.loads(json.dumps(architecture.to_json())))
    assert again == architecture and make(4).canonical(architecture.values) == architecture
    assert json.loads(json.dumps(SPACE.identity)) == SPACE.identity
    neighbours = SPACE.neighbours(architecture)
    assert len(set(neighbours)) == len(neighbours) and architecture not in neighbours
    assert SPACE.mutate(architecture, rng) in neighbours
    assert SPACE.crossover(architecture, architecture, rng) == architecture
    child = SPACE.crossover(architecture, SPACE.sample(rng), rng)
    assert SPACE.canonical(child.values) == child
    assert SPACE.sample(np.random.default_rng(seed)) == architecture


@pytest.mark.parametrize("layers", [1, 4])
def test_costs_are_those_of_the_built_network(layers: int) -> None:
    """Integer for integer: MACs, parameters and peak activation bytes, of trees of three tasks and of five."""
    space = make(3, layers)
    trees = list(space.enumerate())
    for architecture in trees[:: max(1, len(trees) // 12)]:
        network = space.build(architecture)
        assert count(network, (3, 8, 8)).cost == space.cost(architecture), space.tree(architecture)
    space, rng = make(5, layers), np.random.default_rng(0)
    for _ in range(5):
        architecture = space.sample(rng)
        assert count(space.build(architecture), (3, 8, 8)).cost == space.cost(architecture), space.tree(architecture)
        assert space.known(architecture)["macs"] == space.cost(architecture).macs


@pytest.mark.parametrize(
    ("backbone", "cuts", "names"),
    [
        ("torchvision.models:resnet18", ["layer1", "layer2", "layer3", "layer4"], None),
        (
            "torchvision.models:mobilenet_v2",
            None,
            ("features.1", "features.3", "features.6", "features.13", "features"),
        ),
        (
            {
                "space": {"family": "mbconv", "stem_channels": 4, "last_channels": 8},
                "architecture": {"stage2.layer1": "mb_k3_e3", "stage3.layer2": "mb_k5_e3"},
            },
            ["stage2", "stage3", "last"],
            None,
        ),
        ({"space": {"family": "nasbench201", "channels": 4, "cells": 1}}, None, None),
        ({"space": {"family": "user", "function": EXAMPLE}, "architecture": {"depth": 2}}, ["2", "6"], None),
    ],
)
def test_backbones_of_torchvision_and_of_the_families(backbone: Any, cuts: Any, names: Any) -> None:
    """Whatever it is cut from, the cost is the counter's; the cuts by default are between blocks."""
    space = BranchingSpace(problem(3, 32), backbone=backbone, cuts=cuts)
    assert names is None or space.cut.names == names
    rng = np.random.default_rng(1)
    architecture = space.sample(rng)
    network = space.build(architecture)
    assert count(network, (3, 32, 32)).cost == space.cost(architecture)
    outputs = network(torch.zeros(2, 3, 32, 32))
    assert {name: tuple(output.shape) for name, output in outputs.items()} == {
        "t0": (2, 2),
        "t1": (2, 3),
        "t2": (2, 4, 32, 32),
    }


def test_one_choice_merges_splits_and_moves() -> None:
    architecture = SPACE.of_tree([(0, 0, 2, 2)] * 4)

    def first_layer(task: int, leader: int) -> branching.Partition:
        return SPACE.tree(SPACE.canonical({**architecture.values, f"layer1.t{task}": leader}))[0]

    assert first_layer(2, 0) == (0, 0, 0, 0)
    assert first_layer(3, 3) == (0, 0, 2, 3)
    assert first_layer(3, 0) == (0, 0, 2, 0)


def test_constraints_are_met_from_any_tree() -> None:
    """The repair changes one choice at a time, so that none may be stuck short of what is allowed."""
    shared = SPACE.known(SPACE.canonical({}))["macs"]
    constraints = {"macs": Bounds(max=shared)}
    for architecture in islice(SPACE.enumerate(), 0, None, 11):
        *_, found = [architecture, *descent(SPACE, architecture, constraints, np.random.default_rng(0))]
        assert SPACE.known(found)["macs"] == shared


def test_costs_are_known_without_building(monkeypatch: pytest.MonkeyPatch) -> None:
    space = make(5)
    monkeypatch.setattr(space, "backbone", None)
    shared, separate = (space.of_tree([labels] * 4) for labels in ((0,) * 5, (0, 1, 2, 3, 4)))
    heads = sum(head.macs for head in space.head_costs)
    assert space.cost(separate).macs - heads == 5 * (space.cost(shared).macs - heads) > 0


def test_every_task_trains() -> None:
    """On handwritten digits, three steps of a tree in which all tasks part somewhere lower every task's loss."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = torch.tensor(digits.images[:128], dtype=torch.float32)[:, None].repeat(1, 3, 1, 1) / 16
    labels = torch.tensor(digits.target[:128])
    outputs = (
        Output("digit", "classification", 10),
        Output("odd", "classification", 2),
        Output("ink", "regression", 1),  # type: ignore[arg-type]
    )
    space = BranchingSpace(Problem((3, 8, 8), outputs), backbone=f"{HERE}:Blocks", cuts=CUTS)
    torch.manual_seed(0)
    network = space.build(space.of_tree([(0, 0, 0), (0, 0, 2), (0, 0, 2), (0, 1, 2)])).train()
    optimiser = torch.optim.Adam(network.parameters(), 0.01)

    def losses() -> list[Tensor]:
        found = network(images)
        return [
            F.cross_entropy(found["digit"], labels),
            F.cross_entropy(found["odd"], labels % 2),
            F.mse_loss(found["ink"], images.mean((1, 2, 3))[:, None]),
        ]

    before = [loss.item() for loss in losses()]
    for _ in range(12):
        optimiser.zero_grad()
        torch.stack(losses()).sum().backward()
        optimiser.step()
    after = [loss.item() for loss in losses()]
    assert all(new < old for new, old in zip(after, before, strict=True)), (before, after)
    assert sum(p.numel() for p in network.parameters()) == space.cost(space.of_tree(network.tree)).params


def test_a_checkpoint_starts_every_branch(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    torch.manual_seed(3)
    trained = Blocks()
    file = tmp_path / "blocks.safetensors"
    save_file(trained.state_dict(), file)
    space = make(2, checkpoint=str(file))
    network = space.build(space.of_tree([(0, 0), (0, 1), (0, 1), (0, 1)]))
    for stage in ("layer2_t0", "layer2_t1"):
        found: Any = network.stages[stage]
        assert torch.equal(found.two.conv.weight, trained.two.conv.weight)
    first: Any = network.stages["layer2_t0"]
    second: Any = network.stages["layer2_t1"]
    assert first.two.conv.weight is not second.two.conv.weight
    assert space.fingerprint != make(2).fingerprint


def test_graph_drawing_and_picture_show_every_branch() -> None:
    architecture = SPACE.of_tree([(0, 0, 0, 0), (0, 1, 0, 1), (0, 1, 2, 1), (0, 1, 2, 1)])
    graph = SPACE.graph(architecture)
    assert set(graph.outputs) == {"t0", "t1", "t2", "t3"}
    convolutions = [operation for operation in graph.operations if operation.kind == "conv2d"]
    assert len(convolutions) == 2 * (1 + 2 + 3 + 3) + 1  # of the dense head
    ((name, drawing),) = SPACE.drawings(architecture).items()
    assert name == "tree" and "t1, t3: two" in draw_svg({name: drawing}) and "two" in draw_text(drawing)
    assert "t1, t3: two" in tree_svg(SPACE.costed(architecture))


def test_a_change_of_a_tasks_name_or_of_the_cuts_is_another_space() -> None:
    spaces = [make(3), make(4), make(3, 3), make(3, arguments={"channels": 8})]
    assert len({space.fingerprint for space in spaces}) == 4


def test_wrong_spaces_are_refused_with_advice() -> None:
    with pytest.raises(NasplatError, match="only one task, logits"):
        BranchingSpace(classification((3, 8, 8), 4), backbone=f"{HERE}:Blocks")
    twice = Problem((3, 8, 8), (Output("a", "classification", 2),) * 2)
    with pytest.raises(NasplatError, match="two tasks are named a"):
        BranchingSpace(twice, backbone=f"{HERE}:Blocks")
    with pytest.raises(NasplatError, match="no module 'tow'") as caught:
        make(cuts=["one", "tow"])
    assert "did you mean 'two'" in caught.value.advice
    with pytest.raises(NasplatError, match="2 values cross") as caught:
        make(cuts=["one", "two.conv"])
    assert "it can be cut at one, two, three, four" in caught.value.advice
    for cuts in ([], "one"):
        with pytest.raises(NasplatError, match="cuts is"):
            make(cuts=cuts)
    with pytest.raises(NasplatError, match="no function 'Block_'"):
        make(backbone=f"{HERE}:Block_")
    with pytest.raises(NasplatError, match="backbone has no key 'architectur'"):
        make(backbone={"space": {"family": "mbconv"}, "architectur": {}})
    with pytest.raises(NasplatError, match="no choice 'stage9'"):
        make(backbone={"space": {"family": "mbconv"}, "architecture": {"stage9": 1}})
    with pytest.raises(NasplatError, match="backbone is 3"):
        make(backbone=3)
    with pytest.raises(NasplatError, match="arguments are of a backbone's function"):
        make(backbone={"space": {"family": "mbconv"}}, arguments={"channels": 3}, cuts=None)
    with pytest.raises(NasplatError, match="no tree here"):
        SPACE.of_tree([(0, 0)])
    with pytest.raises(NasplatError, match="no choice 'layer9"):
        SPACE.canonical({"layer9.t1": 0})


def test_a_backbone_whose_cells_read_two_before_them_says_where_it_can_be_cut() -> None:
    """Cells of DARTS read the two before them, so that two tensors cross between any two."""
    darts = {"family": "darts", "cells": [2, 1], "channels": 2, "operations": ["sep_conv_3x3"]}
    with pytest.raises(NasplatError, match=r"cannot be cut at 'cells\.1': \d values cross") as caught:
        make(backbone={"space": darts}, cuts=["cells.1"])
    assert "it can be cut at stem.conv, stem, cells" in caught.value.advice


def test_digests_stay_what_they_are() -> None:
    """Files and studies of users hold them; a new schema version is the only way to change them."""
    space = make(3)
    last = {name: choice.options[-1] for name, choice in space.choices.items()}
    found = (space.canonical({}).digest[:16], space.canonical(last).digest[:16])
    assert found == GOLDEN
    assert space.tree(space.canonical({})) == ((0, 0, 0),) * 4
    assert space.tree(space.canonical(last)) == ((0, 1, 2),) * 4
