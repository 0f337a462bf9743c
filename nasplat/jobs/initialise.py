"""Any network given weights by a trained graph hypernetwork: from names to a file of weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from nasplat.core.errors import NasplatError
from nasplat.core.initialisation import Initialisation
from nasplat.jobs.trained import open_network
from nasplat.search.weight_sources import read_source
from nasplat.search.weights import source_file


@dataclass(frozen=True, slots=True)
class Initialised:
    """What became of a network.

    Args:
        generated: number of the weights that were generated.
        params: number of all weights.
        kept: the parameters that kept their value, by name.
    """

    generated: int
    params: int
    kept: tuple[str, ...]


def initialise(
    settings: Initialisation, weights: Path, out: Path, *, say: Callable[[str], None] = lambda text: None
) -> Initialised:
    """Writes a file of weights for a network, generated in one forward pass.

    Args:
        settings: as `load_initialisation` reads them.
        weights: a trained graph hypernetwork: its file, or the run that trained it.
        out: the file to write.
        say: is told what is being done.

    Raises:
        NasplatError: the network or its images are not fit, or the file holds no graph hypernetwork.
    """
    import torch

    from nasplat.artifacts.weights import save_weights
    from nasplat.data.datasets import load_dataset
    from nasplat.networks.graph_hypernetwork import GraphHyperNetwork
    from nasplat.training.initialisation import initialise_from, problem_of
    from nasplat.training.recalibrate import recalibrate_on

    path = source_file(weights) if weights.is_dir() else weights
    source = read_source(path)
    if not isinstance(source, GraphHyperNetwork):
        raise NasplatError(
            f"{path} holds a source of weights for the networks of one space", "give one of a graph_hypernetwork"
        )
    dataset = None if settings.data is None else load_dataset(settings.data)
    shape = settings.input or (dataset.problem.input_shape if dataset else source.input_shape)
    network = open_network(settings).module
    say(f"generating the weights of {settings.model} for images {'×'.join(map(str, shape))}")
    generator = torch.Generator().manual_seed(settings.seed)
    kept = initialise_from(source, network, problem_of(network, shape), generator, settings.noise)
    if dataset is not None:
        say("measuring batch norm")
        recalibrate_on(network, dataset, torch.device("cpu"), settings.seed)
    save_weights(network, out, {"source": str(path), "seed": str(settings.seed)})
    sizes = {name: parameter.numel() for name, parameter in network.named_parameters()}
    params = sum(sizes.values())
    return Initialised(params - sum(sizes[name] for name in kept), params, kept)
