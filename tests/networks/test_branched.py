"""Networks of branching trees, held against the backbone itself run a task at a time.

What a user would lose: branches that share what they should not, a task's own network that answers differently from the
whole, or a backbone that is cut where it does not hold together.
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from itertools import islice
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nasplat.core import branching
from nasplat.core.branching import Tree
from nasplat.core.errors import NasplatError
from nasplat.core.problem import Output
from nasplat.networks.branched import BranchedNetwork, copies, make_head
from nasplat.networks.counter import count
from nasplat.networks.stages import Cut

SHAPE = (3, 16, 16)
# A task may be called like a method of a module.
OUTPUTS = (
    Output("kind", "classification", 3),
    Output("type", "regression", 2),  # type: ignore[arg-type]
    Output("mask", "dense", 4),  # type: ignore[arg-type]
    Output("marks", "multi_label", 5),  # type: ignore[arg-type]
)
TREE: Tree = ((0, 0, 0, 0), (0, 0, 2, 0), (0, 1, 2, 0))


class Residual(nn.Module):
    def __init__(self, channels: int, stride: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride, 1)
        self.norm = nn.BatchNorm2d(channels)
        self.shortcut = nn.Conv2d(channels, channels, 1, stride)

    def forward(self, features: Tensor) -> Tensor:
        result = self.norm(self.conv(features))
        result += self.shortcut(features)
        return F.relu(result)


class Backbone(nn.Module):
    """Functions between modules, operations in place, and something that crosses a cut twice."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.scale = nn.Parameter(torch.rand(8, 1, 1))
        self.first = nn.Sequential(nn.ReLU(inplace=True), Residual(8), nn.ReLU(inplace=True))
        self.second = Residual(8, 2)
        self.left, self.right = nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 3, padding=1)
        self.third = Residual(8, 2)
        self.unused = nn.Linear(2, 2)
        self.classifier = nn.Linear(8, 10)

    def features(self, images: Tensor) -> Tensor:
        features = self.second(self.first(self.stem(images) * self.scale))
        return self.third(self.left(features) + F.relu(self.right(features)))

    def forward(self, images: Tensor) -> Tensor:
        return self.classifier(self.features(images).mean((2, 3)))


CUTS = ("first", "second", "third")


def make(tree: Tree = TREE, seed: int = 0) -> tuple[BranchedNetwork, list[Backbone]]:
    torch.manual_seed(seed)
    backbones = [Backbone() for _ in range(copies(tree))]
    for backbone in backbones:  # statistics of batch norm that differ
        backbone(torch.randn(8, *SHAPE))
    cut = Cut.of(backbones[0], SHAPE, CUTS)
    return BranchedNetwork(cut, tree, OUTPUTS, copy.deepcopy(backbones)).eval(), backbones


def images(number: int = 2) -> Tensor:
    return torch.randn(number, *SHAPE, generator=torch.Generator().manual_seed(1))


def test_branches_from_one_backbone_answer_as_it_does() -> None:
    """All branches start from the same weights, as from a checkpoint: every task reads the backbone's own features."""
    torch.manual_seed(0)
    backbone = Backbone().eval()
    cut = Cut.of(backbone, SHAPE, CUTS)
    for tree in islice(branching.all_trees(4, 3), 0, None, 37):
        backbones = [copy.deepcopy(backbone) for _ in range(copies(tree))]
        network = BranchedNetwork(cut, tree, OUTPUTS, backbones).eval()
        outputs, features = network(images()), backbone.features(images())
        assert list(outputs) == [output.name for output in OUTPUTS]
        for name in ("kind", "type", "marks"):
            linear: Any = network.heads[f"head_{name}"].linear
            torch.testing.assert_close(outputs[name], F.linear(features.mean((2, 3)), linear.weight, linear.bias))
        conv: Any = network.heads["head_mask"].conv
        small = F.conv2d(features, conv.weight, conv.bias)
        expected = F.interpolate(small, size=(16, 16), mode="bilinear", align_corners=False)
        torch.testing.assert_close(outputs["mask"], expected)


def test_tasks_share_exactly_what_the_tree_says() -> None:
    """By gradients: a weight has one from a task's output if and only if the task runs its branch."""
    network, _ = make()
    assert network.shared() == {
        "layer1_kind": ("kind", "type", "mask", "marks"),
        "layer2_kind": ("kind", "type", "marks"),
        "layer2_mask": ("mask",),
        "layer3_kind": ("kind", "marks"),
        "layer3_type": ("type",),
        "layer3_mask": ("mask",),
    }
    for name in network.names:
        network.zero_grad()
        network(images())[name].square().sum().backward()
        for stage, tasks in network.shared().items():
            moved = [p.grad is not None for p in network.stages[stage].parameters()]
            assert moved == [name in tasks] * len(moved)


def test_branches_of_fresh_backbones_are_different() -> None:
    network, backbones = make()
    second: Any = network.stages["layer3_type"]
    assert torch.equal(second.third.conv.weight, backbones[1].third.conv.weight)
    assert not torch.equal(second.third.conv.weight, backbones[0].third.conv.weight)


@pytest.mark.parametrize("names", [("mask",), ("kind", "mask"), ("type", "marks"), ("marks", "kind")])
def test_a_network_without_some_tasks_answers_the_same_with_less(names: tuple[str, ...]) -> None:
    network, _ = make()
    whole, less = network(images()), network.only(names)
    outputs = less(images())
    assert set(outputs) == set(names) == set(less.names)
    for name in names:
        assert torch.equal(outputs[name], whole[name])
    kept = [stage for stage, tasks in network.shared().items() if set(tasks) & set(names)]
    assert len(less.stages) == len(kept)
    counted = sum(p.numel() for stage in kept for p in network.stages[stage].parameters())
    counted += sum(p.numel() for name in names for p in network.heads[f"head_{name}"].parameters())
    assert sum(p.numel() for p in less.parameters()) == counted == count(less, SHAPE).params
    # A copy: training it leaves the whole network as it is.
    with torch.no_grad():
        for parameter in less.parameters():
            parameter.zero_()
    assert torch.equal(network(images())["mask"], whole["mask"])
    assert set(network.without(*names).names) == set(network.names) - set(names)


def test_a_tasks_own_network_is_plain_and_answers_the_same() -> None:
    network, _ = make()
    for name in network.names:
        own = network.alone(name)
        assert torch.equal(own(images()), network(images())[name])
        assert set(dict(own.named_children())) == {"layer1", "layer2", "layer3", "head"}
        assert count(own, SHAPE).macs == count(network.only([name]), SHAPE).macs < count(network, SHAPE).macs


def test_some_outputs_run_only_what_they_need() -> None:
    network, _ = make()
    ran: list[str] = []
    for name, stage in network.stages.items():
        stage.register_forward_hook(lambda *_, name=name: ran.append(name))
    outputs = network.forward_taps(images(), ("type",))
    assert list(outputs) == ["type"] and ran == ["layer1_kind", "layer2_kind", "layer3_type"]
    ran.clear()
    network(images())
    assert sorted(ran) == sorted(network.stages)  # each once


def test_branches_do_not_write_into_what_others_read() -> None:
    """The backbone's first stage and blocks work in place; shared features must stay as they are."""
    tree = branching.tree_of([[0] * 4, range(4), range(4)])
    network, _ = make(tree)
    together = network(images())
    for name in reversed(network.names):
        assert torch.equal(network.forward_taps(images(), (name,))[name], together[name])
    network.train()
    sum(output.square().mean() for output in network(images(4)).values()).backward()
    assert all(parameter.grad is not None for parameter in network.parameters())


def test_it_is_exported_with_named_outputs_and_copied() -> None:
    network, _ = make()
    exported = torch.export.export(network, (images(),)).module()
    outputs = exported(images())
    assert list(outputs) == list(network.names)
    for name, output in network(images()).items():
        torch.testing.assert_close(outputs[name], output)
        assert torch.equal(copy.deepcopy(network)(images())[name], output)
    again, _ = make(seed=5)
    again.load_state_dict(network.state_dict())
    assert torch.equal(again(images())["mask"], network(images())["mask"])


@pytest.mark.parametrize(
    ("name", "said", "advised"),
    [
        ("secnd", "has no module 'secnd'", "did you mean 'second'"),
        ("left", "'left': 2 values cross", "cut at stem, first.0, first.1, first, second, right, third, classifier"),
        ("unused", "'unused' does not run", "cut at stem, first.0, first.1, first, second, right, third, classifier"),
        ("second.shortcut.weight", "has no module", "second"),
    ],
)
def test_where_it_cannot_be_cut_is_told_with_where_it_can(name: str, said: str, advised: str) -> None:
    with pytest.raises(NasplatError) as caught:
        Cut.of(Backbone(), SHAPE, ["first", name])
    assert said in caught.value.message and advised in caught.value.advice


def test_cuts_out_of_order_or_twice_are_refused() -> None:
    for names in (["second", "first"], ["first", "first"]):
        with pytest.raises(NasplatError, match=f"cannot be cut at 'first' after '{names[0]}'"):
            Cut.of(Backbone(), SHAPE, names)


def test_a_stage_without_weights_is_refused() -> None:
    plain = nn.Sequential(OrderedDict(conv=nn.Conv2d(3, 4, 3), act=nn.ReLU(), pool=nn.MaxPool2d(2)))
    with pytest.raises(NasplatError, match="'pool' has no parameters"):
        Cut.of(plain, SHAPE, ["act", "pool"])


class Branches(nn.Module):
    def forward(self, features: Tensor) -> Tensor:
        return features if features.sum() > 0 else -features


class WritesInput(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1)

    def forward(self, images: Tensor) -> Tensor:
        features = self.first(images)
        return self.second(features.mul_(2))


def test_networks_that_cannot_be_cut_at_all_say_why() -> None:
    with pytest.raises(NasplatError, match="cannot be traced"):
        Cut.of(Branches(), SHAPE, ["first"])
    with pytest.raises(NasplatError, match="fails on images of") as caught:
        Cut.of(nn.Sequential(nn.Conv2d(5, 4, 1)), SHAPE, ["0"])
    assert "one channel" in caught.value.advice  # as for a torchvision backbone on grey images
    with pytest.raises(NasplatError, match="no module 'layer1'"):
        Cut.of(nn.Sequential(nn.Flatten(), nn.Linear(768, 4)), SHAPE, ["layer1"])
    with pytest.raises(NasplatError, match="by itself"):
        Cut.of(nn.Sequential(nn.Flatten(), nn.Linear(768, 4)), SHAPE)


def test_what_is_done_to_a_modules_result_belongs_to_its_stage() -> None:
    """Also where it is written in place; the stages together are the network."""
    network = WritesInput().eval()
    cut = Cut.of(network, SHAPE, ["first", "second"])
    expected = network(images())
    features = cut.stage(0, network)(images())
    torch.testing.assert_close(features, 2 * network.first(images()))
    torch.testing.assert_close(cut.stage(1, network)(features), expected)


def test_stages_by_themselves_end_where_the_size_changes() -> None:
    assert Cut.of(Backbone(), SHAPE).names == ("first", "right", "third")


@pytest.mark.parametrize(
    ("name", "cuts"),
    [
        ("resnet18", ("layer1", "layer2", "layer3", "layer4")),
        ("mobilenet_v2", ("features.3", "features.6", "features.13", "features")),
        ("vit_b_16", ("encoder.layers.encoder_layer_5", "encoder.ln")),
    ],
)
def test_published_networks_are_cut_and_put_together_again(name: str, cuts: tuple[str, ...]) -> None:
    from nasplat.data.torchvision_import import torchvision

    torch.manual_seed(0)
    model = getattr(torchvision.models, name)(**({"image_size": 32} if name == "vit_b_16" else {})).eval()
    shape, read = (3, 32, 32), []
    cut = Cut.of(model, shape, cuts)
    last = model.encoder if name == "vit_b_16" else model.get_submodule(cuts[-1])
    last.register_forward_hook(lambda module, inputs, output: read.append(output))
    features = torch.randn(1, *shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        model(features)
        for layer in range(len(cuts)):
            features = cut.stage(layer, model)(features)
            assert tuple(features.shape[1:]) == cut.shapes[layer]
    torch.testing.assert_close(features, read[0])
    assert make_head(OUTPUTS[0], cut.shapes[-1], shape)(features).shape == (1, 3)


def test_wrong_tasks_trees_and_heads_are_refused() -> None:
    network, backbones = make()
    with pytest.raises(NasplatError, match="no task 'kinds'") as caught:
        network.alone("kinds")
    assert "did you mean 'kind'" in caught.value.advice
    with pytest.raises(NasplatError, match="no task would be left"):
        network.without(*network.names)
    cut = Cut.of(backbones[0], SHAPE, CUTS)
    joining: Tree = ((0, 1, 2, 3), (0, 0, 0, 0), (0, 0, 0, 0))
    for tree in (TREE[:2], joining, ((0, 0),) * 3):
        with pytest.raises(NasplatError, match="no tree of 4 tasks and 3 layers"):
            BranchedNetwork(cut, tree, OUTPUTS, backbones)
    with pytest.raises(NasplatError, match="needs 3 backbones"):
        BranchedNetwork(cut, TREE, OUTPUTS, backbones[:2])
    with pytest.raises(NasplatError, match="without height and width"):
        make_head(OUTPUTS[2], (8,), SHAPE)
    with pytest.raises(NasplatError, match="kind 'dens'") as caught:
        make_head(Output("x", "dens", 3), (8, 2, 2), SHAPE)  # type: ignore[arg-type]
    assert "did you mean 'dense'" in caught.value.advice
