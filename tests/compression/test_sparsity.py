"""Penalties against sums by hand."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from nasplat.compression.sparsity import group_lasso, growing, slimming
from nasplat.core.errors import NasplatError
from nasplat.networks.channel_tracer import trace_channels


def two_layers() -> tuple[nn.Module, dict[str, Tensor], list]:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.Linear(6 * 4, 2)).eval()
    nn.init.normal_(network[1].weight)
    groups = list(trace_channels(network, (torch.zeros(1, 3, 4, 4),)).groups)
    return network, dict(network.named_parameters()), groups


def test_slimming_is_the_sum_of_scales() -> None:
    network, parameters, groups = two_layers()
    assert slimming(network, groups)(parameters).item() == pytest.approx(network[1].weight.abs().sum().item())
    plain = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    with pytest.raises(NasplatError, match="have none"):
        slimming(plain, trace_channels(plain, (torch.zeros(1, 4),)).groups)


def test_group_lasso_is_the_norm_of_all_that_a_channel_has() -> None:
    network, parameters, groups = two_layers()
    first, last = network[0].weight.detach().numpy(), network[4].weight.detach().numpy().reshape(2, 6, 4)
    expected = sum(
        np.sqrt(((first[channel] ** 2).sum() + (last[:, channel] ** 2).sum()) / (27 + 8)) for channel in range(6)
    )
    assert group_lasso(network, groups)(parameters).item() == pytest.approx(expected, rel=1e-5)


def test_the_growing_penalty_is_on_what_will_go_and_on_nothing_else() -> None:
    """The channels that stay would shrink, too."""
    network, parameters, groups = two_layers()
    penalty = growing(network, groups, {"0": [0, 2, 5]})(parameters)
    first, last = network[0].weight, network[4].weight.reshape(2, 6, 4)
    expected = 0.5 * (first[[1, 3, 4]].square().sum() + last[:, [1, 3, 4]].square().sum())
    assert penalty.item() == pytest.approx(expected.item(), rel=1e-5)
    penalty.backward()
    gradient = network[0].weight.grad
    assert gradient is not None and gradient[[0, 2, 5]].abs().max() == 0
    torch.testing.assert_close(gradient[[1, 3, 4]], network[0].weight[[1, 3, 4]].detach())
