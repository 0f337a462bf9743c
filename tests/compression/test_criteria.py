from __future__ import annotations

import copy
import itertools
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nasplat.compression.importance import importance
from nasplat.core.channel_graph import ChannelGraph
from nasplat.core.pruning import Criterion, Importance
from nasplat.networks.channel_tracer import trace_channels
from nasplat.networks.pruning_proof import randomise
from tests.networks import zoo


def plain(criterion: Criterion, **settings: Any) -> Importance:
    """Scores as the papers have them."""
    return Importance.model_validate({"criterion": criterion, "reduction": "sum", "normalisation": "none"} | settings)


def image_network() -> tuple[nn.Sequential, ChannelGraph, Tensor]:
    """A convolution of 4 channels with batch norm, and one that reads them."""
    network = nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 3, 3))
    randomise(network, torch.Generator().manual_seed(0))
    images = torch.randn(5, 2, 8, 8, generator=torch.Generator().manual_seed(1))
    return network.eval(), trace_channels(network, (images,)), images


def labels_of(count: int, classes: int = 3) -> Tensor:
    return torch.arange(count) % classes


def test_norms_are_those_of_the_filters_that_make_a_channel() -> None:
    """Another axis of the weight would be summed, which no shape shows where widths agree."""
    network, graph, _ = image_network()
    weight = network[0].weight.detach().double().numpy()
    np.testing.assert_allclose(importance(network, graph, plain("l1"))["0"], np.abs(weight).sum((1, 2, 3)))
    np.testing.assert_allclose(importance(network, graph, plain("l2"))["0"], np.sqrt((weight**2).sum((1, 2, 3))))
    scale = network[1].weight.detach().double().numpy()
    np.testing.assert_allclose(importance(network, graph, plain("bn_scale"))["0"], np.abs(scale))


def test_transposed_convolutions_and_embeddings_make_channels_along_dimension_one() -> None:
    """The inputs' weights would be taken for the outputs'."""
    network = nn.Sequential(nn.ConvTranspose2d(3, 5, 2), nn.ReLU(), nn.Conv2d(5, 2, 1))
    graph = trace_channels(network, (torch.zeros(1, 3, 4, 4),))
    expected = network[0].weight.detach().double().abs().sum((0, 2, 3))
    torch.testing.assert_close(importance(network, graph, plain("l1"))["0"], expected)
    words = zoo.TiedEmbedding()
    found = importance(words, trace_channels(words, zoo.tokens()), plain("l1"))["embedding"]
    weights = words.embedding.weight, words.block[2].weight
    torch.testing.assert_close(found, weights[0].double().abs().sum(0) + weights[1].double().abs().sum(1))


def test_distances_to_all_other_filters() -> None:
    """A filter that others can stand in for would be kept."""
    network, graph, _ = image_network()
    filters = network[0].weight.detach().double().flatten(1).numpy()
    expected = [sum(float(np.linalg.norm(one - other)) for other in filters) for one in filters]
    np.testing.assert_allclose(importance(network, graph, plain("fpgm"))["0"], expected, rtol=1e-6)


def test_group_norm_does_not_depend_on_the_scale_of_a_whole_tensor() -> None:
    """Batch norm undoes such a scale: the same function would be pruned in another way."""
    network, graph, _ = image_network()
    before = importance(network, graph, plain("group_norm"))["0"]
    with torch.no_grad():
        network[0].weight *= 100
        network[3].weight /= 100
    torch.testing.assert_close(importance(network, graph, plain("group_norm"))["0"], before)


def test_lamp_divides_by_all_that_are_not_smaller() -> None:
    """Ties and zeros would be counted twice or divided by."""
    network = nn.Sequential(nn.Linear(1, 5, bias=False), nn.ReLU(), nn.Linear(5, 1, bias=False))
    graph = trace_channels(network, (torch.zeros(2, 1),))
    with torch.no_grad():
        network[0].weight.copy_(torch.tensor([[2.0], [0.0], [1.0], [1.0], [3.0]]))
        network[2].weight.zero_()
    found = importance(network, graph, plain("lamp"))["0"]  # squares 4, 0, 1, 1, 9
    torch.testing.assert_close(found, torch.tensor([4 / 13, 0, 1 / 15, 1 / 15, 1], dtype=torch.float64))


def test_taylor_is_the_loss_that_a_linear_network_gains_or_loses() -> None:
    """The order of channels would have nothing to do with the loss."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(3, 4), nn.Identity(), nn.Linear(4, 2)).double()
    images = torch.randn(6, 3, dtype=torch.float64)
    graph = trace_channels(network, (images,))
    batches = [(images[:3], labels_of(3)), (images[3:], labels_of(3))]

    def loss(outputs: Tensor, labels: Tensor) -> Tensor:
        return outputs.sum() + labels.sum()

    # In the weights of one layer this loss is linear, so that the first order is the exact change.
    found = importance(network, graph, plain("taylor"), batches=batches, loss=loss)["0"]
    for channel in range(4):
        changes = []
        for inputs, labels in batches:
            cut = copy.deepcopy(network)
            with torch.no_grad():
                before = float(loss(cut(inputs), labels))
                cut[2].weight[:, channel] = 0
                changes.append(before - float(loss(cut(inputs), labels)))
        assert float(found[channel]) == pytest.approx(np.mean(np.square(changes)), rel=1e-9)


def test_hessian_approaches_the_true_diagonal() -> None:
    """Probes that are not independent, or a factor, would go unnoticed."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(2, 3, bias=False), nn.Tanh(), nn.Linear(3, 2, bias=False)).double()
    images, labels = torch.randn(8, 2, dtype=torch.float64), labels_of(8, 2)
    graph = trace_channels(network, (images,))
    names = ["0.weight", "2.weight"]

    def loss(*weights: Tensor) -> Tensor:
        outputs = torch.func.functional_call(network, dict(zip(names, weights, strict=True)), (images,))
        return F.cross_entropy(outputs, labels)

    weights = tuple(dict(network.named_parameters())[name].detach() for name in names)
    blocks = torch.autograd.functional.hessian(loss, weights)
    diagonals = [
        blocks[place][place].reshape(one.numel(), -1).diagonal().view_as(one) for place, one in enumerate(weights)
    ]
    terms = [0.5 * one.square() * diagonal for one, diagonal in zip(weights, diagonals, strict=True)]
    expected = terms[1].sum(0).abs()  # of the weights that read a channel
    batches = itertools.repeat((images, labels), 800)
    found = importance(network, graph, plain("hessian"), batches=batches, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(found["0"], expected, rtol=0.1, atol=float(expected.max()) * 0.05)


def test_hessian_where_the_loss_is_linear_in_a_layer() -> None:
    """Networks without an activation would end in an error of autograd."""
    network = nn.Sequential(nn.Conv2d(1, 3, 1), nn.Conv2d(3, 1, 1))
    images = torch.ones(2, 1, 4, 4)
    network.requires_grad_(False)
    found = importance(
        network,
        trace_channels(network, (images,)),
        plain("hessian"),
        batches=[(images, labels_of(2))],
        loss=lambda outputs, labels: outputs.sum(),
    )
    assert not found["0"].any()


def maps_of(network: nn.Sequential, images: Tensor) -> np.ndarray:
    with torch.no_grad():
        return network[:3](images).double().numpy()


def test_feature_maps_are_what_the_next_layer_reads() -> None:
    """Maps before norm and activation say little about what a channel does."""
    network, graph, images = image_network()
    maps = maps_of(network, images)
    batches = [(images[:2], None), (images[2:], None)]  # of different sizes: every image counts alike
    found = importance(network, graph, plain("activation"), batches=batches)["0"]
    np.testing.assert_allclose(found, np.abs(maps).mean((0, 2, 3)), rtol=1e-6)


def test_hrank_is_the_mean_rank_of_the_maps() -> None:
    """Ranks of something else are easily as plausible."""
    network, graph, images = image_network()
    with torch.no_grad():
        network[0].weight[1] = 0  # a constant map, which has rank 1
        network[0].weight[2, :, 1:] = 0
        images[:, :, :, 3:] = 0
    ranks = [[np.linalg.matrix_rank(one.astype(np.float32)) for one in image] for image in maps_of(network, images)]
    found = importance(network, graph, plain("hrank"), batches=[(images[:2], None), (images[2:], None)])["0"]
    np.testing.assert_allclose(found, np.mean(ranks, 0))
    assert len(set(found.tolist())) > 1


@pytest.mark.parametrize("width", [4, 40])
def test_chip_is_the_drop_of_the_nuclear_norm(width: int) -> None:
    """The closed form would be of something else, where there are more places than channels or fewer."""
    network = nn.Sequential(nn.Conv2d(2, width, 3), nn.BatchNorm2d(width), nn.ReLU(), nn.Conv2d(width, 3, 1))
    randomise(network, torch.Generator().manual_seed(0))
    with torch.no_grad():
        network[0].weight[2], network[1].weight[2], network[1].bias[2] = 0, 0, 0  # nothing
        for tensor in (*network[0].parameters(), *network[1].parameters(), *network[1].buffers()):
            if tensor.dim():
                tensor[1] = tensor[0]  # the same twice
    images = torch.randn(3, 2, 7, 7, generator=torch.Generator().manual_seed(1))
    graph = trace_channels(network, (images,))
    network.eval()
    matrices = maps_of(network, images).reshape(3, width, 25)
    expected = np.zeros(width)
    for matrix in matrices:
        for channel in range(width):
            without = matrix.copy()
            without[channel] = 0
            expected[channel] += (np.linalg.norm(matrix, "nuc") - np.linalg.norm(without, "nuc")) / 3
    found = importance(network, graph, plain("chip"), batches=[(images, None)])["0"]
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert int(found.argmin()) == 2


def test_after_a_flatten_a_channel_has_several_places() -> None:
    """Activations of a linear layer's inputs would be given to other channels."""
    network = nn.Sequential(nn.Conv2d(1, 5, 3), nn.ReLU(), nn.Flatten(), nn.Linear(5 * 4, 2)).eval()
    images = torch.randn(6, 1, 4, 4, generator=torch.Generator().manual_seed(1))
    graph = trace_channels(network, (images,))
    found = importance(network, graph, plain("activation"), batches=[(images, None)])["0"]
    maps = network[:2](images).detach().double().numpy()
    np.testing.assert_allclose(found, maps.mean((0, 2, 3)), rtol=1e-6)
    ranks = [np.linalg.matrix_rank(maps[:, channel].reshape(6, 4)) for channel in range(5)]
    np.testing.assert_allclose(importance(network, graph, plain("hrank"), batches=[(images, None)])["0"], ranks)


def test_single_values_are_compared_over_the_batch() -> None:
    """Every matrix of one column has rank one, and channels would be cut in the order of their numbers."""
    network = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)).eval()
    images = torch.randn(9, 3, generator=torch.Generator().manual_seed(0))
    graph = trace_channels(network, (images,))
    values = network[:2](images).detach().double().numpy()
    found = importance(network, graph, plain("chip"), batches=[(images, None)])["0"]
    for channel in range(4):
        without = values.T.copy()
        without[channel] = 0
        drop = np.linalg.norm(values, "nuc") - np.linalg.norm(without, "nuc")
        assert float(found[channel]) == pytest.approx(drop, abs=1e-5)
    hrank, activation = (
        importance(network, graph, plain(name), batches=[(images, None)])["0"] for name in ("hrank", "activation")
    )
    torch.testing.assert_close(hrank, activation)


def test_attention_without_modules_that_are_called() -> None:
    """The projection of torch's attention is never called as a module, and its heads would get no scores."""
    network = zoo.SMALL["encoder_layer"][0]().eval()
    tokens = torch.randn(7, 2, 3, generator=torch.Generator().manual_seed(2))
    graph = trace_channels(network, (tokens,))
    layer = network[1]
    found = importance(network, graph, plain("activation"), batches=[(tokens, None)])["1.linear1"]
    with torch.no_grad():
        values = layer.norm1(network[0](tokens) + layer.self_attn(*[network[0](tokens)] * 3)[0])
        hidden = F.relu(layer.linear1(values)).abs().double().mean((0, 1))
    torch.testing.assert_close(found, hidden, rtol=1e-5, atol=1e-7)


def test_grouped_convolutions_read_every_group() -> None:
    """Only the first group's channels would be looked at."""
    network = nn.Sequential(nn.Conv2d(2, 6, 1), nn.ReLU(), nn.Conv2d(6, 4, 1, groups=2), nn.ReLU(), nn.Conv2d(4, 2, 1))
    network.eval()
    images = torch.randn(4, 2, 5, 5, generator=torch.Generator().manual_seed(0))
    graph = trace_channels(network, (images,))
    group = graph.group("0")
    maps = network[:2](images).detach().double().mean((0, 2, 3))
    expected = maps[torch.from_numpy(group.members[0].indices)].mean(1)
    found = importance(network, graph, plain("activation"), batches=[(images, None)])["0"]
    assert group.role == "within" and group.members[0].indices.shape == (3, 2)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=0)
