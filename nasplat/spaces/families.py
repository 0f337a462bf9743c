"""All families of spaces, and spaces from plain data."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from nasplat.core.architecture import Architecture
from nasplat.core.choice import Values
from nasplat.core.errors import NasplatError, nearest
from nasplat.core.problem import Problem
from nasplat.core.space import SearchSpace
from nasplat.spaces.branching import BranchingSpace
from nasplat.spaces.darts import DartsSpace
from nasplat.spaces.diverse import DiverseSpace
from nasplat.spaces.mbconv import MBConvSpace
from nasplat.spaces.memory_bank import MemoryBankSpace
from nasplat.spaces.nasbench201 import NasBench201Space
from nasplat.spaces.nasnet import NasnetSpace
from nasplat.spaces.pruning import PruningSpace
from nasplat.spaces.resnet import ResNetSpace
from nasplat.spaces.tabular import TabularSpace
from nasplat.spaces.user import UserSpace

if TYPE_CHECKING:
    from torch import nn

# Every family: called with the problem and, by keyword, what stands beside `family` in its YAML file.
FAMILIES: dict[str, Callable[..., SearchSpace]] = {
    "nasnet": NasnetSpace,
    "darts": DartsSpace,
    "nasbench201": NasBench201Space,
    "mbconv": MBConvSpace,
    "resnet": ResNetSpace,
    "diverse": DiverseSpace,
    "memory_bank": MemoryBankSpace,
    "pruning": PruningSpace,
    "branching": BranchingSpace,
    "tabular": TabularSpace,
    "user": UserSpace,
}


def make_space(spec: Mapping[str, Any], problem: Problem) -> SearchSpace:
    """The space that plain data describe.

    Args:
        spec: `{"family": …}` and the family's parameters; `{**spec, "channels": 36, "cells": 6}` is the same larger.
        problem: what is to be learned.

    Raises:
        NasplatError: no such family, a parameter that it does not have, or a value that makes no space.
    """
    if not isinstance(spec, Mapping) or "family" not in spec:
        raise NasplatError("a space needs the key 'family'", f"write family: {' | '.join(FAMILIES)}")
    name = spec["family"]
    if not isinstance(name, str) or name not in FAMILIES:
        advice = f"{nearest(str(name), FAMILIES)}known are {', '.join(FAMILIES)}"
        raise NasplatError(f"there is no family of spaces {name!r}", advice)
    parameters = {key: value for key, value in spec.items() if key != "family"}
    signature = inspect.signature(FAMILIES[name]).parameters.values()
    known = [parameter.name for parameter in signature if parameter.kind is parameter.KEYWORD_ONLY]
    takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in signature)
    for key in parameters:
        if key not in known and not takes_any:
            advice = f"{nearest(key, known)}known are {', '.join(known)}"
            raise NasplatError(f"family {name!r} has no parameter {key!r}", advice)
    required = [
        parameter.name
        for parameter in signature
        if parameter.kind is parameter.KEYWORD_ONLY and parameter.default is parameter.empty
    ]
    for key in required:
        if key not in parameters:
            raise NasplatError(f"family {name!r} needs the parameter {key!r}")
    try:
        return FAMILIES[name](problem, **parameters)
    except (TypeError, ValueError) as error:
        # Text where a number belongs, and the like. A fault of ours would read the same, so its origin is kept.
        raise NasplatError(f"the parameters of family {name!r} make no space: {error}") from error


def load_space(source: str | Path | Mapping[str, Any], problem: Problem) -> SearchSpace:
    """The space of a YAML file, or of the data themselves.

    Raises:
        NasplatError: there is no such file, it is not YAML, or `make_space` refuses what is in it.
    """
    if isinstance(source, Mapping):
        return make_space(source, problem)
    try:
        spec = yaml.safe_load(Path(source).read_text(encoding="utf-8"))
    except OSError as error:
        raise NasplatError(f"space file {source} cannot be read: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise NasplatError(f"space file {source} is not YAML: {' '.join(str(error).split())}") from error
    try:
        return make_space(spec, problem)
    except NasplatError as error:
        raise NasplatError(f"{source}: {error.message}", error.advice) from error


def network_of(
    space: Mapping[str, Any], problem: Mapping[str, Any], values: Values, tasks: Sequence[str] = ()
) -> nn.Module:
    """The network of an architecture, all in plain data: so a recipe names a network that a search found.

    Args:
        space: see `make_space`.
        problem: as of `Problem.to_json`.
        values: of the architecture.
        tasks: of several, those that are left; see `nasplat.networks.branched.part`.

    Raises:
        NasplatError: see `make_space`; or there is no such architecture or task.
    """
    made = make_space(space, Problem.from_json(dict(problem)))
    network = made.build(made.canonical(values))
    if not tasks:
        return network
    from nasplat.networks.branched import part

    return part(network, tasks)


NETWORK_OF = f"{__name__}:network_of"


def network_arguments(spec: Mapping[str, Any], problem: Problem, values: Values) -> dict[str, Any]:
    """What `network_of` is to be called with."""
    return {"space": dict(spec), "problem": problem.to_json(), "values": dict(values)}


def transfer(architecture: Architecture, space: SearchSpace, larger: SearchSpace) -> Architecture:
    """The same choices in a space of another size or problem: a found cell, stacked more often, with more channels.

    Raises:
        NasplatError: the architecture is not of the first space, or the two spaces do not have the same choices.
    """
    if architecture.identity != space.fingerprint:
        raise NasplatError(f"architecture {architecture.digest[:8]} belongs to another space than the one given")
    if space.choices != larger.choices:
        different = {
            name for name in {*space.choices, *larger.choices} if space.choices.get(name) != larger.choices.get(name)
        }
        first = min(different)
        raise NasplatError(
            f"the architecture cannot be rebuilt: its space and the other differ in the choice {first!r}",
            "change what is no choice, such as channels, cells, or the problem",
        )
    return larger.canonical(architecture.values)
