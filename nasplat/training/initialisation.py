"""Any network given weights by a graph hypernetwork in one forward pass, to be trained from there."""

from __future__ import annotations

from math import sqrt
from typing import TYPE_CHECKING

import torch
from torch import nn

from nasplat.core.errors import NasplatError
from nasplat.core.problem import Output, Problem
from nasplat.networks.counter import copy_to
from nasplat.networks.primitive_graph import primitives
from nasplat.spaces.recording import record

if TYPE_CHECKING:
    from nasplat.networks.graph_hypernetwork import GraphHyperNetwork

LAYERS = ("conv2d", "linear", "batch_norm")
NOISE = 0.1  # of the deviation of each weight; channels that were tiled would otherwise stay equal for ever


@torch.no_grad()
def initialise_from(
    source: GraphHyperNetwork,
    network: nn.Module,
    problem: Problem,
    generator: torch.Generator | None = None,
    noise: float = NOISE,
) -> tuple[str, ...]:
    """Writes generated weights into a network, in place; its statistics of batch norm are left as they are.

    Any module from images to a tensor, or to tensors by name, such as torchvision's. What belongs to no layer (class
    tokens, positions) or has no one to four dimensions keeps its value.

    Args:
        problem: the size of its input, and its outputs; see `problem_of`.
        generator: of the noise, on the CPU.
        noise: see `NOISE`. Knyazev et al. (2021) fine-tune from predicted parameters, whose tiles are identical.

    Returns:
        The names of the parameters that kept their value.
    """
    graph = primitives(record(copy_to(network, "meta").eval(), problem))
    layers = {operation.name for operation in graph.operations if operation.kind in LAYERS}
    shapes = {
        name: tuple(parameter.shape)
        for name, parameter in network.named_parameters()
        if name.rpartition(".")[0] in layers and name.endswith(("weight", "bias")) and 1 <= parameter.dim() <= 4
    }
    generated = source.weights(graph, shapes)
    left: list[str] = []
    for name, parameter in network.named_parameters():
        if name not in generated:
            left.append(name)
            continue
        value = generated[name]
        if parameter.dim() > 1:
            drawn = torch.randn(value.shape, generator=generator).to(value)
            # As large in all as before.
            value = (value + noise * value.std() * drawn) / sqrt(1 + noise**2)
        parameter.copy_(value)
    return tuple(left)


def problem_of(network: nn.Module, input_shape: tuple[int, int, int]) -> Problem:
    """The problem of a network that nobody described, as far as its initialisation must know it.

    Args:
        network: from images to a tensor, or to tensors by name.
        input_shape: `(C, H, W)` of its images.

    Raises:
        NasplatError: it does not run on such images.
    """
    try:
        result = copy_to(network, "meta").eval()(torch.zeros(1, *input_shape, device="meta"))
    except (RuntimeError, ValueError, TypeError, AssertionError) as error:
        size = "×".join(map(str, input_shape))
        message = f"the network does not run on an image of {size}: {error}"
        raise NasplatError(message, "give the size of its input, such as --input 3,224,224") from error
    names = result if isinstance(result, dict) else ("logits",)
    # Of an embedding nothing is asked: how many classes there are is the network's affair.
    return Problem(input_shape, tuple(Output(str(name), "embedding", 1) for name in names))
