"""Networks whose weights are generated: what stays their own, what is kept, frozen, saved, and learned."""

from __future__ import annotations

import copy
import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F

from nasplat.artifacts.export import ONNX, PROGRAM, WEIGHTS, export
from nasplat.artifacts.weights import load_into
from nasplat.core.architecture import Architecture
from nasplat.core.errors import NasplatError
from nasplat.core.graph import GraphBuilder
from nasplat.core.problem import classification
from nasplat.networks.graph_network import build_network
from nasplat.networks.graph_run import GraphRun
from nasplat.networks.hypernetwork import (
    HyperNetwork,
    chosen,
    hypernetwork,
    load_hypernetwork,
    save_hypernetwork,
)
from nasplat.networks.perceptron_weights import Chunked, Dense, Recurrent
from nasplat.networks.shared_weights import SharedWeights
from nasplat.networks.static_kernels import Static
from nasplat.networks.weight_conditions import MIP, PLAIN, Categorical, Condition, Continuous, OneHot, Parametrisation
from nasplat.networks.weight_generators import GeneratorSettings
from nasplat.spaces.families import make_space

KINDS: dict[str, GeneratorSettings] = {
    "static": Static(embedding=16, basic=(8, 8)),
    "dense": Dense(hidden=(16, 16)),
    "chunked": Chunked(chunk=64, embedding=8, hidden=(16,)),
    "recurrent": Recurrent(chunk=64, embedding=8, state=16, hidden=(16,)),
}
CONDITIONS: dict[str, tuple[Condition | None, Tensor | None]] = {
    "none": (None, None),
    "continuous": (Continuous(2), torch.tensor([0.3, 0.9])),
    "categorical": (Categorical((3, 2), embedding=4), torch.tensor([2, 1])),
    "one hot": (OneHot((4,)), torch.tensor([3])),
}


class Net(nn.Module):
    def __init__(self, width: int = 12) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, width, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, 16, 3, stride=2)
        self.classifier = nn.Linear(16, 10)

    def forward(self, images: Tensor) -> Tensor:
        features = F.relu(self.norm(self.conv1(images)))
        return self.classifier(F.relu(self.conv2(features)).mean((2, 3)))


class Tied(nn.Module):
    """An encoder and a decoder with the same matrix, as language models have them."""

    def __init__(self) -> None:
        super().__init__()
        self.encode, self.decode = nn.Linear(6, 6), nn.Linear(6, 6)
        self.decode.weight = self.encode.weight

    def forward(self, images: Tensor) -> Tensor:
        return self.decode(self.encode(images))


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def net(seed: int = 0, width: int = 12) -> Net:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return Net(width)


def images(count: int = 4) -> Tensor:
    return torch.randn(count, 1, 8, 8, generator=rng(9))


def made(kind: str = "chunked", condition: Condition | None = None, form: Parametrisation = MIP) -> HyperNetwork:
    return hypernetwork(net(), KINDS[kind], condition=condition, parametrisation=form, rng=rng())


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def test_chosen_parameters_are_generated_and_others_stay() -> None:
    """A count that still held the replaced kernels would hide what a hypernetwork saves."""
    network = net()
    hyper = made(form=PLAIN)
    assert list(hyper.places) == ["conv1.weight", "conv2.weight", "classifier.weight"]
    own = {name for name, _ in hyper.network.named_parameters()}
    assert own == {"norm.weight", "norm.bias", "conv2.bias", "classifier.bias"}
    assert count(hyper) == count(hyper.generator) + 12 + 12 + 16 + 10
    assert set(hyper.network.state_dict()) == set(network.state_dict()) - set(hyper.places)
    # With a base there is one more of each.
    assert count(made()) - count(hyper) == 12 * 9 + 12 * 16 * 9 + 160


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_reach_the_generator_and_not_the_original(kind: str) -> None:
    network = net()
    before = copy.deepcopy(network.state_dict())
    hyper = hypernetwork(network, KINDS[kind], condition=Continuous(1), rng=rng())
    optimiser = torch.optim.SGD(hyper.parameters(), 0.1)
    hyper(images(), condition=torch.tensor([0.4])).square().sum().backward()
    assert all(parameter.grad is not None for parameter in hyper.parameters())
    optimiser.step()
    assert all(parameter.grad is None for parameter in network.parameters())
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    assert hyper.network.norm.num_batches_tracked == 1  # buffers are the network's own, and live


def test_with_little_generated_the_network_is_the_given_one() -> None:
    """The base is the given network's weights, so that a pretrained one is not thrown away."""
    network = net().eval()
    hyper = hypernetwork(network, parametrisation=Parametrisation(True, True, 1e-6), rng=rng())
    torch.testing.assert_close(hyper(images()), network(images()), atol=1e-4, rtol=1e-4)
    assert not hyper.training


def test_patterns_and_names_choose() -> None:
    assert list(chosen(net(), "conv*.weight")) == ["conv1.weight", "conv2.weight"]
    assert list(chosen(net(), ["classifier.bias", "conv1.weight"])) == ["conv1.weight", "classifier.bias"]
    with pytest.raises(NasplatError, match=r"no parameter 'conv1.weigth'\n.*did you mean 'conv1.weight'"):
        hypernetwork(net(), parameters=["conv1.weigth"])
    with pytest.raises(NasplatError, match="no parameter like 'layer"):
        hypernetwork(net(), parameters="layer*")
    with pytest.raises(NasplatError, match="no convolution and no linear layer"):
        hypernetwork(nn.BatchNorm2d(3))


def test_parameters_that_cannot_be_generated_are_named() -> None:
    """An error without the name would leave the user to search a hundred layers."""
    with pytest.raises(NasplatError, match=r"'norm\.weight' of shape \(12,\) is no kernel"):
        hypernetwork(net(), Static(), ["conv1.weight", "norm.weight"])
    with pytest.raises(NasplatError, match=r"'0\.weight' of shape \(3, 2, 5\) is no kernel"):
        hypernetwork(nn.Sequential(nn.Conv1d(2, 3, 5)), Static())
    network = net()
    network.register_parameter("temperature", nn.Parameter(torch.tensor(1.0)))
    with pytest.raises(NasplatError, match=r"'temperature' of shape \(\) cannot be generated"):
        hypernetwork(network, Chunked(), "*t*")
    with pytest.raises(NasplatError, match=r"'0\.weight' has no shape yet"):
        hypernetwork(nn.Sequential(nn.LazyLinear(3)))
    with pytest.raises(NasplatError, match=r"'weight_ih_l0' is one of torch's recurrent layers"):
        hypernetwork(nn.LSTM(3, 4), parameters="weight*")


@pytest.mark.parametrize(
    ("network", "shape"),
    [
        (nn.Sequential(nn.Conv1d(2, 3, 3), nn.ConvTranspose1d(3, 2, 3)), (2, 2, 9)),
        (nn.Sequential(nn.Conv3d(1, 2, 2), nn.Flatten(), nn.Linear(16, 3)), (2, 1, 3, 3, 3)),
        (nn.Sequential(nn.Conv2d(6, 6, 3, groups=6), nn.ConvTranspose2d(6, 4, 2, groups=2)), (2, 6, 5, 5)),
        (nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), (2, 3, 8)),
    ],
)
def test_any_module_can_be_the_target(network: nn.Module, shape: tuple[int, ...]) -> None:
    for parameters in (None, "*"):
        hyper = hypernetwork(network.eval(), Chunked(), parameters, rng=rng())
        value = torch.randn(shape, generator=rng())
        assert torch.equal(hyper.frozen()(value), hyper(value))
        hyper.train()(value).sum().backward()
        with torch.no_grad():
            assert hyper.eval()(value).shape == network(value).shape


def test_inputs_of_every_kind_reach_the_target() -> None:
    attention = nn.MultiheadAttention(8, 2, batch_first=True)
    hyper = hypernetwork(attention, Chunked(), "*weight", rng=rng())
    query, key = torch.randn(2, 3, 8, generator=rng()), torch.randn(2, 5, 8, generator=rng(1))
    found, weights = hyper(query, key, value=key, need_weights=False)
    assert weights is None
    torch.testing.assert_close(found, hyper.frozen()(query, key, key)[0])


def test_an_architecture_can_be_the_condition() -> None:
    """Each network of a space then has weights of its own, also where a supernet would give two of them the same."""
    spec = {"family": "nasbench201", "cells": 1, "channels": 4, "operations": ["none", "conv_1x1", "conv_3x3"]}
    space = make_space(spec, classification((1, 8, 8), 10))
    options = tuple(len(choice.options) for choice in space.choices.values())
    hyper = hypernetwork(SharedWeights(space, generator=rng()), Chunked(), "*", OneHot(options), rng=rng())
    draw, kernels = np.random.default_rng(0), []
    for _ in range(2):
        architecture = space.sample(draw)
        graph = space.graph(architecture)
        indices = [choice.index(architecture.values[name]) for name, choice in space.choices.items()]
        (weights,) = hyper([graph], condition=torch.tensor(indices))
        assert GraphRun(graph, weights)(images()).shape == (4, 10)
        kernels.append(weights["stem.conv.weight"])
    assert not torch.equal(*kernels)


def test_our_own_networks_can_be_targets() -> None:
    graph = GraphBuilder((1, 8, 8))
    maps = graph.activation(graph.batch_norm(graph.conv2d(0, 20, 3, name="stem.conv"), name="stem.norm"))
    logits = graph.linear(graph.flatten(graph.global_avg_pool(maps)), 10, name="classifier")
    network = build_network(graph.finish({"logits": logits}, {}), rng()).eval()
    hyper = hypernetwork(network, Static(), parametrisation=PLAIN, rng=rng())
    assert list(hyper.places) == ["stem.conv.weight", "classifier.weight"]
    assert torch.equal(hyper.frozen()(images()), hyper(images()))


def test_tied_weights_stay_tied() -> None:
    """Otherwise the second layer would go on with a matrix of its own that nobody chose."""
    hyper = hypernetwork(Tied(), Dense(), rng=rng())
    assert hyper.places == {"encode.weight": ("encode.weight", "decode.weight")}
    assert list(hypernetwork(Tied(), Dense(), ["decode.weight"]).places) == ["encode.weight"]
    frozen = hyper.frozen()
    assert frozen.decode.weight is frozen.encode.weight
    value = torch.randn(2, 6, generator=rng())
    assert torch.equal(frozen(value), hyper(value))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("condition", CONDITIONS)
@pytest.mark.parametrize("form", [MIP, PLAIN])
def test_frozen_networks_are_ordinary_and_equal(kind: str, condition: str, form: Parametrisation) -> None:
    described, value = CONDITIONS[condition]
    hyper = made(kind, described, form)
    hyper(images(), condition=value)  # moves the statistics of batch norm
    hyper.eval()
    frozen = hyper.frozen(value)
    assert type(frozen) is Net
    assert torch.equal(frozen(images()), hyper(images(), condition=value))
    with torch.no_grad():
        assert torch.equal(frozen(images()), hyper(images(), condition=value))
    assert list(frozen.state_dict()) == list(net().state_dict())
    other = net(5).eval()
    other.load_state_dict(frozen.state_dict())
    assert torch.equal(other(images()), frozen(images()))
    with torch.no_grad():
        for parameter in frozen.parameters():
            parameter.zero_()
    assert torch.equal(other(images()), hyper(images(), condition=value))  # shares nothing with what it came from


def test_frozen_networks_are_exported_like_any_other(tmp_path: Path) -> None:
    """Whoever deploys one has neither the generator nor nasplat."""
    hyper = made("chunked", Continuous(1))
    hyper(images(), condition=torch.tensor([0.7]))
    description = Architecture("space", {"g": 0.7})
    done = export(hyper.frozen(torch.tensor([0.7])), description, (1, 8, 8), tmp_path / "it", output_names=("logits",))
    assert {ONNX, PROGRAM, WEIGHTS} < set(done.files)
    with torch.no_grad():
        expected = hyper.eval()(images(), condition=torch.tensor([0.7]))
    torch.testing.assert_close(torch.export.load(tmp_path / "it" / PROGRAM).module()(images()), expected)
    ordinary = net(5).eval()
    load_into(ordinary, tmp_path / "it" / WEIGHTS)
    torch.testing.assert_close(ordinary(images()), expected)


def test_weights_are_kept_in_evaluation_only() -> None:
    hyper = made(condition=Continuous(1))
    value = torch.tensor([0.4])
    with torch.no_grad():
        assert hyper.weights(value) is not hyper.weights(value)
        hyper.eval()
        first = hyper.weights(value)
        assert hyper.weights(value) is first
        assert hyper.weights(torch.tensor([0.4])) is first  # by value
        other = hyper.weights(torch.tensor([0.5]))
        assert not torch.equal(other["conv1.weight"], first["conv1.weight"])
        again = hyper.weights(value)
        value.fill_(0.5)  # the very tensor that was given
        assert not torch.equal(hyper.weights(value)["conv1.weight"], again["conv1.weight"])
    assert hyper.weights(value)["conv1.weight"].requires_grad  # where gradients are wanted there are some


@pytest.mark.parametrize(
    "optimiser",
    [
        lambda parameters: torch.optim.SGD(parameters, 0.1, foreach=False),
        lambda parameters: torch.optim.SGD(parameters, 0.1, foreach=True),
        lambda parameters: torch.optim.SGD(parameters, 0.1, fused=True),
        lambda parameters: torch.optim.AdamW(parameters, 0.01, fused=True),
    ],
)
def test_kept_weights_are_never_older_than_an_optimisers_step(optimiser: Callable[..., Any]) -> None:
    """Fused optimisers change parameters without torch counting it."""
    hyper = made().eval()
    steps = optimiser(hyper.parameters())
    loss = hyper(images()).square().sum()
    with torch.no_grad():
        before = hyper(images())
    loss.backward()
    steps.step()
    steps.zero_grad()
    with torch.no_grad():
        after = hyper(images())
    assert not torch.equal(before, after)
    assert torch.equal(after, copy.deepcopy(hyper)(images()))


def test_kept_weights_are_dropped_by_whatever_changes_the_generator() -> None:
    hyper, other = made().eval(), made()
    with torch.no_grad():
        for parameter in other.parameters():
            parameter += 0.1
    changes: list[Callable[[], Any]] = [
        lambda: hyper.load_state_dict(other.state_dict()),
        lambda: hyper.load_state_dict(made().state_dict(), assign=True),
        lambda: next(hyper.generator.parameters()).mul_(2),
        lambda: hyper.double().float(),
        lambda: hyper.train().eval(),
    ]
    with torch.no_grad():
        for change in changes:
            before = hyper.weights()
            assert hyper.weights() is before
            change()
            assert hyper.weights() is not before
            assert torch.equal(hyper(images()), copy.deepcopy(hyper)(images()))
        assert made().eval().double()(images().double()).dtype == torch.float64


def test_weights_kept_in_inference_mode_or_autocast_serve_elsewhere() -> None:
    hyper = made(condition=Continuous(1)).eval()
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        value = torch.tensor([0.2])
        hyper(images(), condition=value)
        hyper(images(), condition=value)
    hyper.generator.requires_grad_(False)
    first = hyper.weights(torch.tensor([0.2]))
    assert first["conv1.weight"].dtype == torch.float32
    batch = images().requires_grad_()
    hyper(batch, condition=torch.tensor([0.2])).sum().backward()  # as for a saliency map
    assert batch.grad is not None
    wanted = torch.tensor([0.2], requires_grad=True)
    hyper(images(), condition=wanted).sum().backward()  # as to choose hyperparameters by gradients
    assert wanted.grad is not None


def test_copies_share_nothing() -> None:
    hyper = made().eval()
    with torch.no_grad():
        expected = hyper(images())
        for twin in (copy.deepcopy(hyper), pickle.loads(pickle.dumps(hyper))):
            assert torch.equal(twin(images()), expected)
            for parameter in twin.parameters():
                parameter.zero_()
            assert not torch.equal(twin(images()), expected)
            assert torch.equal(hyper(images()), expected)


def test_one_seed_gives_one_hypernetwork() -> None:
    state = torch.get_rng_state()
    first, second = made(), made()
    assert torch.equal(state, torch.get_rng_state())
    assert torch.equal(first(images()), second(images()))
    assert not torch.equal(first(images()), hypernetwork(net(), KINDS["chunked"], rng=rng(1))(images()))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("condition", CONDITIONS)
def test_files_bring_back_the_same_hypernetwork(kind: str, condition: str, tmp_path: Path) -> None:
    described, value = CONDITIONS[condition]
    hyper = made(kind, described, PLAIN if kind == "static" else MIP)
    hyper(images(), condition=value)
    save_hypernetwork(hyper.eval(), tmp_path / "hyper.safetensors")
    state = torch.get_rng_state()
    loaded = load_hypernetwork(net(seed=3).eval(), tmp_path / "hyper.safetensors")
    assert torch.equal(state, torch.get_rng_state())
    assert loaded.generator.settings == KINDS[kind]
    assert loaded.generator.condition == described
    assert torch.equal(loaded(images(), condition=value), hyper(images(), condition=value))


def rewritten(path: Path, **metadata: str | None) -> None:
    """The same tensors with other texts."""
    with path.open("rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    texts = {**header["__metadata__"], **metadata}
    save_file(load_file(path), path, {key: text for key, text in texts.items() if text is not None})


def test_files_of_anything_else_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "hyper.safetensors"
    hyper = made(condition=Continuous(1))

    def refused(network: nn.Module, message: str, **metadata: str | None) -> None:
        save_hypernetwork(hyper, path)
        if metadata:
            rewritten(path, **metadata)
        with pytest.raises(NasplatError, match=message):
            load_hypernetwork(network, path)

    refused(net(width=13), "weights of another network")
    renamed = net()
    renamed.extra = nn.Linear(2, 2)
    refused(renamed, "weights of another network")
    refused(net(), "is of version 2, not 1", hypernetwork="2")
    refused(net(), "holds no hypernetwork", hypernetwork=None)
    refused(net(), "settings in .* are damaged", settings="{")
    refused(net(), "settings in .* are damaged", settings="{}")
    refused(net(), "settings in .* are damaged", settings='{"generator": "Chunked"}')
    settings = {"generator": {"kind": "Chunked", "chunk": 32}, "condition": None, "parametrisation": {}}
    refused(net(), "settings in .* are damaged", settings=json.dumps(settings))
    settings |= {
        "parametrisation": {"constant_norm": True, "base": True, "spread": 1.0},
        "parameters": list(hyper.places),
    }
    refused(net(), "do not fit the network", settings=json.dumps(settings))
    with pytest.raises(NasplatError, match="there are no weights at"):
        load_hypernetwork(net(), tmp_path / "nothing.safetensors")
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(NasplatError, match="damaged"):
        load_hypernetwork(net(), path)


@pytest.mark.parametrize(
    ("kind", "form", "condition"),
    [
        ("static", PLAIN, None),
        ("dense", MIP, Continuous(1)),
        ("chunked", MIP, None),
        ("chunked", MIP, Categorical((2,))),
        ("recurrent", MIP, OneHot((2,))),
    ],
)
def test_they_learn_digits(kind: str, form: Parametrisation, condition: Condition | None) -> None:
    """Where a condition is given, it says whether the images are negatives; the weights have to heed it."""
    digits = load_digits()
    pixels = torch.tensor(digits.images, dtype=torch.float32)[:, None] / 8 - 1
    labels = torch.tensor(digits.target)
    hyper = hypernetwork(net(), KINDS[kind], condition=condition, parametrisation=form, rng=rng())
    optimiser = torch.optim.Adam(hyper.parameters(), 1e-2)
    draw, losses = rng(1), []

    def logits(which: Tensor, negative: int) -> Tensor:
        if condition is None:
            return hyper(pixels[which])
        value = torch.tensor([negative], dtype=torch.float32 if isinstance(condition, Continuous) else torch.long)
        return hyper(pixels[which] * (1 - 2 * negative), condition=value)

    for step in range(100):
        which = torch.randint(1200, (64,), generator=draw)
        loss = F.cross_entropy(logits(which, step % 2), labels[which])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert sum(losses[-10:]) < 0.5 * sum(losses[:10])
    hyper.eval()
    hyper.network.norm.train()  # one running mean cannot serve both kinds of images
    test = torch.arange(1200, len(labels))
    with torch.no_grad():
        for negative in (0, 1):
            accuracy = (logits(test, negative).argmax(1) == labels[test]).float().mean()
            assert accuracy > 0.5  # 0.1 is chance
