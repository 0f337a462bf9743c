"""Networks as a user names them for pruning and distillation, with what describes them in an export."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nasplat.core.distillation import Network
from nasplat.core.errors import NasplatError
from nasplat.core.pruning import PruningFile
from nasplat.jobs.confirmation import FINAL, final_network
from nasplat.jobs.runs import Candidate, Run, is_run, open_trained_run
from nasplat.spaces.families import NETWORK_OF, make_space, network_arguments

if TYPE_CHECKING:
    from torch import nn

    from nasplat.artifacts.model_card import Description
    from nasplat.core.architecture import Architecture
    from nasplat.networks.surgery import Surgery


@dataclass(frozen=True)
class Opened:
    """A network, and how it can be made again.

    Args:
        module: in eval mode.
        trained: whether it has weights of its own, and not those of its function.
        architecture: of a network of a search.
        base: of any other, the function that makes its original, and that function's arguments.
        operations: what was done to the structure of that original.
    """

    module: nn.Module
    trained: bool
    architecture: Architecture | None = None
    base: tuple[str, dict[str, Any]] = ("", {})
    operations: Sequence[tuple[str, ...] | Surgery] = ()

    def describe(self, module: nn.Module, input_shape: Sequence[int]) -> Description:
        """What an export says of the network after it was trained."""
        if self.architecture is not None:
            return self.architecture
        from nasplat.networks.rebuild import make_recipe
        from nasplat.networks.user_model import make_model

        name, arguments = self.base
        return make_recipe(make_model(name, arguments), module, self.operations, input_shape, name, arguments)


def open_network(network: Network) -> Opened:
    """The network that is named.

    Raises:
        NasplatError: there is no such function, folder or architecture, its weights were not kept, or do not fit.
    """
    path = Path(network.model)
    if ":" not in network.model and is_run(path.parent):
        return _of_run(path, network)
    from nasplat.networks.user_model import trained_model

    module = trained_model(network.model, network.arguments, network.checkpoint)
    if not path.is_dir():
        return Opened(module, network.checkpoint is not None, base=(network.model, dict(network.arguments)))
    from nasplat.artifacts.recipe import read_recipe
    from nasplat.networks.surgery import Surgery

    recipe = read_recipe(path)
    if recipe.base is None:
        raise NasplatError(f"the recipe in {path} names no function that makes the original", "use it from Python")
    operations = [tuple(one["blocks"]) if "blocks" in one else Surgery.from_json(one) for one in recipe.operations]
    return Opened(module, True, base=(recipe.base, dict(recipe.arguments)), operations=operations)


def as_function(settings: PruningFile) -> PruningFile:
    """A pruning of RUN/ARCH as one of the function, arguments and weights that it stands for, on the images of its run.

    Raises:
        NasplatError: see `open_network`.
    """
    path = Path(settings.model)
    if ":" in settings.model or not is_run(path.parent):
        return settings
    found = _in_run(path)
    values = found.candidate.architecture.values
    updates = {
        "model": NETWORK_OF,
        "arguments": network_arguments(found.spec, found.run.space.problem, values),
        "checkpoint": settings.checkpoint or str(found.weights),
        "data": settings.data or found.run.experiment.data,
    }
    return settings.model_copy(update=updates)


def _of_run(path: Path, network: Network) -> Opened:
    from nasplat.artifacts.weights import load_into

    found = _in_run(path)
    space = make_space(found.spec, found.run.space.problem)
    architecture = space.canonical(found.candidate.architecture.values)
    module = space.build(architecture)
    load_into(module, found.weights, architecture.digest)
    if network.checkpoint is not None:
        from nasplat.artifacts.foreign_checkpoint import load_checkpoint

        load_checkpoint(module, Path(network.checkpoint))
    return Opened(module.eval(), True, architecture)


@dataclass(frozen=True)
class _InRun:
    """A trained network of a search: of which space as plain data, and where its weights are."""

    run: Run
    candidate: Candidate
    spec: dict[str, Any]
    weights: Path


def _in_run(path: Path) -> _InRun:
    """RUN/ARCH as the search trained it; RUN/ARCH-final as `nasplat train` rebuilt and trained it."""
    run = open_trained_run(path.parent)
    candidate = run.candidate(path.name.removesuffix(FINAL))
    if path.name.endswith(FINAL):
        _, row, confirmation = final_network(run, candidate)
        spec, weights = dict(confirmation.settings["space"]), run.directory / row.weights
    else:
        assert isinstance(run.experiment.space, dict)
        spec, weights = run.experiment.space, candidate.folder.weights
    if not weights.is_file():
        raise NasplatError(
            f"the weights of {path} were not kept", "those of the front are; run.disk_mb says how much room they have"
        )
    return _InRun(run, candidate, spec, weights)
