from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._pytree import tree_leaves

from nasplat.compression.criteria import CRITERIA
from nasplat.compression.importance import importance
from nasplat.core.channel_graph import ChannelGraph
from nasplat.core.errors import NasplatError
from nasplat.core.pruning import FROM_DATA, Criterion, Importance
from nasplat.networks.channel_tracer import trace_channels
from nasplat.networks.pruning_proof import randomise
from tests.networks import zoo

DEAD, TWINS = 3, (5, 6)


def plain(criterion: Criterion, **settings: Any) -> Importance:
    """Scores as the papers have them."""
    return Importance.model_validate({"criterion": criterion, "reduction": "sum", "normalisation": "none"} | settings)


def image_network() -> tuple[nn.Sequential, ChannelGraph, Tensor]:
    """A convolution of 4 channels with batch norm, and one that reads them."""
    network = nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 3, 3))
    randomise(network, torch.Generator().manual_seed(0))
    images = torch.randn(5, 2, 8, 8, generator=torch.Generator().manual_seed(1))
    return network.eval(), trace_channels(network, (images,)), images


def any_loss(outputs: Any, labels: Tensor) -> Tensor:
    return torch.stack([tensor.float().square().mean() for tensor in tree_leaves(outputs)]).sum()


def labels_of(count: int, classes: int = 3) -> Tensor:
    return torch.arange(count) % classes


def test_reductions_and_normalisations() -> None:
    """A setting would do another thing than its name says."""
    network, graph, _ = image_network()
    weight, reading = (network[place].weight.detach().double().numpy() for place in (0, 3))
    norms = np.stack([(weight**2).sum((1, 2, 3)), (reading**2).sum((0, 2, 3))])
    norms /= norms.mean(1, keepdims=True)
    assert graph.group("0").members[0].tensor == "0.weight"
    for reduction, expected in {
        "mean": norms.mean(0),
        "sum": norms.sum(0),
        "max": norms.max(0),
        "product": norms.prod(0),
        "first": norms[0],
    }.items():
        found = importance(network, graph, plain("group_norm", reduction=reduction))["0"]
        np.testing.assert_allclose(found, expected)
    scores = np.abs(weight).sum((1, 2, 3))
    for normalisation, expected in {
        "sum": scores / scores.sum(),
        "mean": scores / scores.mean(),
        "max": scores / scores.max(),
        "standard": (scores - scores.mean()) / scores.std(),
    }.items():
        np.testing.assert_allclose(
            importance(network, graph, plain("l1", normalisation=normalisation))["0"], expected, atol=1e-12
        )


@pytest.fixture(scope="module")
def digits() -> tuple[nn.Sequential, ChannelGraph, list[tuple[Tensor, Tensor | None]]]:
    """A network that has learned digits, then lost one channel and got another one twice."""
    data = load_digits()
    images, labels = torch.tensor(data.images[:, None] / 16, dtype=torch.float32), torch.tensor(data.target)
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(1, 12, 3, padding=1, bias=False), nn.BatchNorm2d(12), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(12, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU(), nn.Flatten(), nn.Linear(256, 10),
    )  # fmt: skip
    optimiser = torch.optim.Adam(network.parameters(), 0.01)
    for step in range(80):
        chosen = torch.arange(step * 64, step * 64 + 64) % 1500
        optimiser.zero_grad()
        F.cross_entropy(network(images[chosen]), labels[chosen]).backward()
        optimiser.step()
    network.eval()
    with torch.no_grad():
        assert (network(images[1500:]).argmax(1) == labels[1500:]).float().mean() > 0.85
        for tensor in (network[0].weight, network[1].weight, network[1].bias, network[1].running_mean):
            tensor[DEAD] = 0
            tensor[TWINS[1]] = tensor[TWINS[0]]
        network[1].running_var[TWINS[1]] = network[1].running_var[TWINS[0]]
        network[4].weight[:, DEAD] = 0
    network.zero_grad()
    batches = [(images[at : at + 64], labels[at : at + 64]) for at in range(0, 256, 64)]
    return network, trace_channels(network, (images[:2],)), batches  # type: ignore[return-value]


@pytest.mark.parametrize("criterion", [one for one in CRITERIA if one not in ("random", "fpgm")])
def test_a_dead_channel_goes_first(digits: Any, criterion: Criterion) -> None:
    """What is worth nothing would be kept and something else removed."""
    network, graph, batches = digits
    assert int(importance(network, graph, plain(criterion), batches=batches)["0"].argmin()) == DEAD


def test_chip_and_fpgm_see_that_a_channel_is_there_twice(digits: Any) -> None:
    """The point of these criteria is to find what others can replace."""
    network, graph, batches = digits
    independence = importance(network, graph, plain("chip"), batches=batches)["0"]
    activation = importance(network, graph, plain("activation"), batches=batches)["0"]
    rank = (independence / activation).nan_to_num(1e9).argsort().tolist()
    assert set(rank[:2]) == set(TWINS)
    distances = importance(network, graph, plain("fpgm"))["0"]
    assert float(distances[TWINS[0]]) == pytest.approx(float(distances[TWINS[1]]))


@pytest.mark.parametrize("name", list(zoo.SMALL))
def test_every_criterion_on_every_network(name: str) -> None:
    """A class of networks could not be pruned, or would come back in another state."""
    make, inputs = zoo.SMALL[name]
    network = make()
    randomise(network, torch.Generator().manual_seed(0))
    graph = trace_channels(network, inputs)
    list(network.modules())[1].eval()
    first = next(network.parameters()).requires_grad_(False)
    list(network.parameters())[-1].grad = marked = torch.ones_like(list(network.parameters())[-1])
    state = {key: value.clone() for key, value in network.state_dict().items()}
    modes = [module.training for module in network.modules()]
    batches = [(inputs[0], labels_of(len(inputs[0])))]
    for criterion in CRITERIA:
        scores = importance(network, graph, Importance(criterion=criterion), batches=batches, loss=any_loss)
        if criterion != "bn_scale":
            assert scores.keys() == {group.name for group in graph.groups}, criterion
        for group, values in scores.items():
            assert values.shape == (graph.group(group).size,) and values.dtype == torch.float64
            assert values.isfinite().all() and values.device.type == "cpu", (criterion, group)
            if criterion not in ("hrank", "fpgm"):
                assert values.unique().numel() > 1, (criterion, group)
    assert [module.training for module in network.modules()] == modes
    assert all(torch.equal(value, state[key]) for key, value in network.state_dict().items())
    assert not first.requires_grad
    gradients = [one.grad for one in network.parameters()]
    assert gradients[-1] is marked and bool((marked == 1).all()) and not any(g is not None for g in gradients[:-1])
    assert not network._forward_pre_hooks and torch.backends.mha.get_fastpath_enabled()


def test_wrapped_models_and_half_precision() -> None:
    """Who trains with DataParallel or in bfloat16 would meet an error of torch."""
    network, graph, images = image_network()
    whole = importance(network, graph, Importance(criterion="activation"), batches=[(images, None)])["0"]
    wrapped = nn.DataParallel(network)
    torch.testing.assert_close(
        importance(wrapped, graph, Importance(criterion="activation"), batches=[(images, None)])["0"], whole
    )
    small = copy.deepcopy(network).bfloat16()
    for criterion in CRITERIA:
        found = importance(
            small, graph, Importance(criterion=criterion), batches=[(images, labels_of(5))], loss=any_loss
        )
        assert found["0"].isfinite().all()
        if criterion == "activation":
            torch.testing.assert_close(found["0"], whole, rtol=0.05, atol=0.02)


def test_random_is_the_generator_s() -> None:
    """A pruning could not be repeated."""
    network, graph, _ = image_network()
    one, other, third = (
        importance(network, graph, plain("random"), generator=torch.Generator().manual_seed(seed))["0"]
        for seed in (1, 1, 2)
    )
    assert torch.equal(one, other) and not torch.equal(one, third)


def test_what_is_missing_is_said() -> None:
    """The user would see an error of torch, or scores of nothing."""
    network, graph, images = image_network()
    flat = nn.Sequential(network, nn.AdaptiveAvgPool2d(1), nn.Flatten())
    for criterion in FROM_DATA:
        with pytest.raises(NasplatError, match="there are none"):
            importance(network, graph, Importance(criterion=criterion))
    with pytest.raises(NasplatError, match="without labels"):
        importance(network, graph, Importance(criterion="taylor"), batches=[(images, None)])
    heads = zoo.SeveralHeads()
    inputs = zoo.image(16)
    with pytest.raises(NasplatError, match="dict"):
        settings = Importance(criterion="taylor")
        importance(heads, trace_channels(heads, inputs), settings, batches=[(inputs[0], labels_of(1))])
    with pytest.raises(NasplatError, match=r"no parameter '0\.weight'"):
        importance(flat, graph, Importance())
    without = nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Conv2d(4, 3, 3))
    assert importance(without, trace_channels(without, (images,)), Importance(criterion="bn_scale")) == {}
    with torch.no_grad():
        network[0].weight[0, 0, 0, 0] = torch.nan
    with pytest.raises(NasplatError, match="not finite in the group '0'"):
        importance(network, graph, Importance(criterion="l1"))
