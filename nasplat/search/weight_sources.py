"""Sources of weights by name, what an experiment file may say of them, and their files."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from nasplat.core.errors import NasplatError
from nasplat.core.space import SearchSpace
from nasplat.search.options import AtLeast1, AtLeast4, make_one

if TYPE_CHECKING:
    from torch import nn

    from nasplat.training.weight_source import Rule

VERSION = "1"


@dataclass(frozen=True, slots=True)
class Source:
    """How a source of weights is made, and which networks it is trained on.

    Args:
        make: the untrained module for a space, see `nasplat.training.weight_source.WeightSource`; draws from torch's
            default generator.
        rule: which networks of the space each step is of.
        train: what suits the source better than the settings of candidates; a budget is not among it.
        space: to train on, as plain data, where that is not the space of the experiment.
        outside: whether networks of another space than it was trained on are refused, or get weights and a warning.
    """

    make: Callable[[SearchSpace], nn.Module]
    rule: Callable[[SearchSpace], Rule]
    train: Mapping[str, Any] = field(default_factory=dict)
    space: Mapping[str, Any] | None = None
    outside: Literal["refuse", "warn"] = "refuse"


def supernet(
    kernels: Literal["own", "sliced"] = "own",
    rule: Literal["uniform", "growing", "sandwich"] = "uniform",
    paths: AtLeast1 = 1,
) -> Source:
    """Weights shared by name and slicing; see `nasplat.networks.shared_weights`.

    Args:
        kernels: whether kernels of different sizes are their own weights, or sliced from the largest.
        rule: of `nasplat.training.weight_source.RULES`.
        paths: networks a step. One, uniform, is single-path training; several are SortedNet.
    """

    def make(space: SearchSpace) -> nn.Module:
        from nasplat.networks.shared_weights import SharedWeights

        return SharedWeights(space, kernels)

    def drawn(space: SearchSpace) -> Rule:
        from nasplat.training.weight_source import RULES

        return RULES[rule](space, paths)

    return Source(make, drawn)


def graph_hypernetwork(
    networks: AtLeast1 = 8,
    width: AtLeast4 = 32,
    channels: AtLeast1 = 32,
    kernel: AtLeast1 = 7,
    space: dict[str, Any] | None = None,
    outside: Literal["refuse", "warn"] | None = None,
) -> Source:
    """Weights from the graph of a network; see `nasplat.networks.graph_hypernetwork`.

    Args:
        networks: a step, all trained on one batch.
        width: of the state of an operation, a multiple of 4.
        channels, kernel: the largest that is decoded.
        space: to train on, where that is not the experiment's: `{family: diverse}` is made for it. In an experiment
            file it may be the path of another one.
        outside: what becomes of networks of another space than it was trained on. By default they are refused, but
            who gives a `space` has asked for them, and is warned.
    """
    allowed = outside or ("refuse" if space is None else "warn")

    def make(space: SearchSpace) -> nn.Module:
        from nasplat.networks.graph_hypernetwork import GraphHyperNetwork

        return GraphHyperNetwork(space, width, channels, kernel, allowed)

    def drawn(space: SearchSpace) -> Rule:
        from nasplat.training.weight_source import uniform

        return uniform(space, networks)

    train = {"optimiser": "adam", "lr": 1e-3, "weight_decay": 1e-5, "clip_norm": 5.0}
    return Source(make, drawn, train, space, allowed)


def smash(
    generated: Literal["pointwise", "all"] = "pointwise",
    base: bool = True,
    kernels: Literal["own", "sliced"] = "sliced",
    rule: Literal["uniform", "growing", "sandwich"] = "growing",
    paths: AtLeast1 = 1,
    unit: AtLeast1 = 4,
    width: AtLeast1 = 32,
    growth: AtLeast1 = 16,
    depth: AtLeast1 = 3,
) -> Source:
    """1×1 kernels generated from the whole architecture, all else shared; see `nasplat.networks.smash`.

    The paper ranks 500 random networks with generated weights, then perturbations of the best, climbs from the best of
    these, and trains the winner from scratch. That is `train: {epochs: 0}` with `search: {strategy: local_search,
    trials: 1000, options: {startup: 500}}`, which edits the best until no edit is better, then `nasplat train`; or any
    other strategy, with `screen: {by: weights}`. The rest of its recipe is the default: Adam with a first beta of 0.5,
    a cosine, and the rule `growing`.

    Args:
        generated: the kernels of 1×1 convolutions, or of all.
        base: whether what is generated is added to shared weights, or is all there is, as in the paper.
        kernels: whether shared kernels of different sizes are their own weights, or sliced from the largest.
        rule: of `nasplat.training.weight_source.RULES`; the paper's lets layers and kernels grow.
        paths: networks a step.
        unit: channels along the edge of a cell of the encoding.
        width, growth, depth: of the hypernetwork.
    """

    def make(space: SearchSpace) -> nn.Module:
        from nasplat.networks.smash import SmashHyperNetwork

        return SmashHyperNetwork(space, generated, base, kernels, unit, width, growth, depth)

    def drawn(space: SearchSpace) -> Rule:
        from nasplat.training.weight_source import RULES

        return RULES[rule](space, paths)

    return Source(make, drawn, {"optimiser": "adam", "lr": 1e-3, "momentum": 0.5, "weight_decay": 0.0})


# Name -> the source, from its options.
SOURCES: dict[str, Callable[..., Source]] = {
    "supernet": supernet,
    "graph_hypernetwork": graph_hypernetwork,
    "smash": smash,
}


def source_of(name: str, options: Mapping[str, Any]) -> Source:
    """The source of a name.

    Raises:
        NasplatError: no such source or option, or a value that it does not take.
    """
    found: Source = make_one(SOURCES, name, options, "source of weights", "weights.options")
    return found


def make(source: Source, space: SearchSpace, seed: int) -> nn.Module:
    """The untrained module; torch's default generator is left as it was."""
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return source.make(space)


def save_source(
    module: nn.Module,
    path: Path,
    space: SearchSpace,
    name: str,
    options: Mapping[str, Any],
    spec: Mapping[str, Any] | None = None,
) -> None:
    """Writes a trained source, whole or not at all.

    Args:
        space: that it was trained on.
        spec: that space as plain data, with which the file can be read where only the file is known.

    Raises:
        NasplatError: the disk is full or cannot be written to.
    """
    from nasplat.artifacts.weights import save_weights

    about = {"source": name, "version": VERSION, "space": space.fingerprint, "options": json.dumps(dict(options))}
    if spec is not None:
        about |= {"spec": json.dumps(dict(spec)), "problem": json.dumps(space.problem.to_json())}
    save_weights(module, path, about)


def read_source(
    path: Path, space: SearchSpace | None = None, outside: Literal["refuse", "warn"] = "refuse"
) -> nn.Module:
    """The source of a file.

    Args:
        space: that weights are wanted for; None stands for the one that it was trained on.
        outside: whether another space than that is refused.

    Raises:
        NasplatError: the file is missing, damaged, of another space or version, or no source of weights.
    """
    from nasplat.artifacts.weights import load_into, read_metadata

    about = read_metadata(path)
    if "source" not in about:
        raise NasplatError(f"{path} holds no source of weights", "give weights/source.safetensors of a run")
    if about.get("version") != VERSION:
        raise NasplatError(
            f"{path} is of version {about.get('version')} of this format, not of version {VERSION}",
            "train the source again, or read it with the nasplat that wrote it",
        )
    source = source_of(about["source"], json.loads(about["options"]))
    if space is None or (about["space"] != space.fingerprint and outside == "warn"):
        space = _trained_on(about, path)
    if about["space"] != space.fingerprint:
        raise NasplatError(
            f"the weights in {path} were made for the space {about['space'][:8]}, not for {space.fingerprint[:8]}",
            "train a source of weights for this space, or name the space of that one; a graph_hypernetwork knows "
            "others too: options: {outside: warn}",
        )
    module: Any = make(source, space, 0)
    load_into(module, path)
    if hasattr(module, "outside"):
        module.outside = outside
    found: nn.Module = module
    return found


def _trained_on(about: Mapping[str, str], path: Path) -> SearchSpace:
    from nasplat.core.problem import Problem
    from nasplat.spaces.families import make_space

    if "spec" not in about:
        raise NasplatError(f"{path} does not say which space it was trained on", "train the source again")
    return make_space(json.loads(about["spec"]), Problem.from_json(json.loads(about["problem"])))
