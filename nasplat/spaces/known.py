"""Published networks by name, in the spaces that hold them.

Cells are those of the papers, as their authors published them, and mean the same at any number of cells and channels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from nasplat.core.architecture import Architecture
from nasplat.core.choice import Option
from nasplat.core.errors import NasplatError, nearest
from nasplat.core.space import SearchSpace
from nasplat.spaces.bank_patterns import Pattern, dense, fractal, residual
from nasplat.spaces.darts import DartsSpace
from nasplat.spaces.mbconv import MBConvSpace
from nasplat.spaces.memory_bank import MemoryBankSpace
from nasplat.spaces.nasbench201 import EDGES, NasBench201Space
from nasplat.spaces.nasnet import NasnetSpace
from nasplat.spaces.residual_block import Block
from nasplat.spaces.resnet import ResNetSpace
from nasplat.spaces.tabular import TabularSpace

# A node or block: twice an operation and the tensor that it reads (0 and 1: the cells before; 2: the first node).
Node = tuple[str, int, str, int]
Assignment = Mapping[str, Option]


@dataclass(frozen=True)
class KnownNetwork:
    """A published network.

    Args:
        source: paper and year.
        family: the spaces that can hold it.
        values: its value of every choice; of a space, where they depend on its stages, or what the space lacks.
    """

    source: str
    family: type[SearchSpace]
    values: Assignment | Callable[[Any], Assignment | str]


def known_networks(space: SearchSpace) -> dict[str, Architecture]:
    """The published networks that a space holds, by name, in the order of `KNOWN`."""
    found = {}
    for name, network in KNOWN.items():
        values = _values(space, network)
        if not isinstance(values, str):
            found[name] = space.canonical(values)
    return found


def known_network(space: SearchSpace, name: str) -> Architecture:
    """A published network by its name.

    Raises:
        NasplatError: there is no such name, or the space does not hold the network; then it says what is missing.
    """
    held = ", ".join(known_networks(space)) or "none"
    if name not in KNOWN:
        raise NasplatError(f"there is no known network {name!r}", f"{nearest(name, KNOWN)}this space holds: {held}")
    values = _values(space, KNOWN[name])
    if isinstance(values, str):
        raise NasplatError(f"this space does not hold {name}: {values}", f"known networks that it holds: {held}")
    return space.canonical(values)


def _values(space: SearchSpace, network: KnownNetwork) -> Assignment | str:
    """Its assignment in this space, or what the space lacks."""
    inside = space.network if isinstance(space, TabularSpace) else space
    if not isinstance(inside, network.family):
        return "it is of another family of spaces"
    values = network.values if isinstance(network.values, Mapping) else network.values(inside)
    if isinstance(values, str):
        return values
    if values.keys() != inside.choices.keys():
        return "its cells have other numbers of nodes or kinds than those of this space"
    for name, choice in inside.choices.items():
        if values[name] not in choice.options:
            return f"{name} would be {values[name]!r}, which is none of its options"
    architecture = inside.canonical(values)
    if inside is not space and space.canonical(architecture.values).values != architecture.values:
        return "its row is not in the table"
    return architecture.values


def _darts_cells(normal: tuple[Node, ...], reduction: tuple[Node, ...]) -> Assignment:
    """Nodes that add two operations on two tensors."""
    values: dict[str, Option] = {}
    for kind, nodes in (("normal", normal), ("reduction", reduction)):
        for number, (first, one, second, other) in enumerate(nodes):
            if one > other:
                first, one, second, other = second, other, first, one
            values[f"{kind}_node{number}_inputs"] = f"{one},{other}"
            values[f"{kind}_node{number}_op1"], values[f"{kind}_node{number}_op2"] = first, second
    return values


def _nasnet_cells(normal: tuple[Node, ...], reduction: tuple[Node, ...]) -> Assignment:
    """Blocks that add two operations, where both may read one tensor; what no block reads is concatenated."""
    values: dict[str, Option] = {}
    for kind, blocks in (("normal", normal), ("reduction", reduction)):
        for number, (first, one, second, other) in enumerate(blocks):
            block = f"{kind}_block{number}"
            values |= {f"{block}_input1": one, f"{block}_op1": first, f"{block}_input2": other, f"{block}_op2": second}
            values[f"{block}_combine"] = "add"
    return values


def _edges(*operations: str) -> Assignment:
    """Operations of the edges 0-1, 0-2, 1-2, 0-3, 1-3, 2-3."""
    return {f"edge_{source}_{target}": name for (source, target), name in zip(EDGES, operations, strict=True)}


def _throughout(operation: str) -> Callable[[MBConvSpace], Assignment]:
    """One operation in every layer, at the full depth and the width nearest to 1."""

    def values(space: MBConvSpace) -> Assignment:
        found: dict[str, Option] = {}
        for name, choice in space.choices.items():
            if name.endswith(".width"):
                found[name] = min(choice.options, key=lambda width: abs(float(width) - 1))
            elif name.endswith(".depth"):
                found[name] = max(choice.options, key=float)
            else:
                found[name] = operation
        return found

    return values


def _residual(block: str, depths: tuple[int, ...], *, cifar: bool = False) -> Callable[[ResNetSpace], Assignment | str]:
    """A ResNet of so many blocks a stage, as torchvision has it, or for CIFAR with shortcuts without parameters."""
    first, stem, shortcut = (16, "cifar", "padded") if cifar else (64, "imagenet", "projection")

    def values(space: ResNetSpace) -> Assignment | str:
        kind = space.kind
        wanted = {"block": block, "shortcut": shortcut, "stem": stem, "activation": "relu"}
        found = {"block": kind.block, "shortcut": kind.shortcut, "stem": space.stem, "activation": kind.activation}
        for name, value in wanted.items():
            if found[name] != value:
                return f"its {name} is {found[name]}, and not {value}"
        chain, channels = [], first
        for stage, depth in enumerate(depths):
            inner = first * 2**stage
            width = inner if block == "basic" else 4 * inner
            for number in range(depth):
                chain.append(Block("", 3, inner, channels, width, 2 if stage and not number else 1))
                channels = width
        spelled = space.spelled(chain)
        return "its stages, widths, depths, expansions and kernels make other networks" if spelled is None else spelled

    return values


def _banks(pattern: Pattern, banks: int, layers: int) -> Callable[[MemoryBankSpace], Assignment | str]:
    """A pattern in every block, where all have as many banks and layers as it takes to tell it from others."""

    def values(space: MemoryBankSpace) -> Assignment | str:
        if any(held[0] < banks or held[1] < layers for held in space.sizes):
            return f"one of its blocks has fewer than {banks} banks or {layers} layers"
        return space.following(pattern)

    return values


SEP3, SEP5, SEP7, DIL3, DIL5 = "sep_conv_3x3", "sep_conv_5x5", "sep_conv_7x7", "dil_conv_3x3", "dil_conv_5x5"
MAX3, AVG3, SKIP, NONE, LONG7 = "max_pool_3x3", "avg_pool_3x3", "skip_connect", "none", "conv_1x7_7x1"
CONV1, CONV3 = "conv_1x1", "conv_3x3"

KNOWN: Mapping[str, KnownNetwork] = {
    "darts_v1": KnownNetwork(
        "Liu et al., DARTS, 2019, first order",
        DartsSpace,
        _darts_cells(
            ((SEP3, 1, SEP3, 0), (SKIP, 0, SEP3, 1), (SKIP, 0, SEP3, 1), (SEP3, 0, SKIP, 2)),
            ((MAX3, 0, MAX3, 1), (SKIP, 2, MAX3, 0), (MAX3, 0, SKIP, 2), (SKIP, 2, AVG3, 0)),
        ),
    ),
    "darts_v2": KnownNetwork(
        "Liu et al., DARTS, 2019, second order",
        DartsSpace,
        _darts_cells(
            ((SEP3, 0, SEP3, 1), (SEP3, 0, SEP3, 1), (SEP3, 1, SKIP, 0), (SKIP, 0, DIL3, 2)),
            ((MAX3, 0, MAX3, 1), (SKIP, 2, MAX3, 1), (MAX3, 0, SKIP, 2), (SKIP, 2, MAX3, 1)),
        ),
    ),
    "pc_darts": KnownNetwork(
        "Xu et al., PC-DARTS, 2020, searched on CIFAR-10",
        DartsSpace,
        _darts_cells(
            ((SEP3, 1, SKIP, 0), (SEP3, 0, DIL3, 1), (SEP5, 0, SEP3, 1), (AVG3, 0, DIL3, 1)),
            ((SEP5, 1, MAX3, 0), (SEP5, 1, SEP5, 2), (SEP3, 0, SEP3, 3), (SEP3, 1, SEP3, 2)),
        ),
    ),
    "gdas": KnownNetwork(
        "Dong & Yang, Four GPU Hours (GDAS), 2019",
        DartsSpace,
        _darts_cells(
            ((SKIP, 0, SKIP, 1), (SKIP, 0, SEP5, 2), (SEP3, 3, SKIP, 0), (SEP5, 4, SEP3, 3)),
            ((SEP5, 0, SEP3, 1), (SEP5, 2, SEP5, 1), (DIL5, 2, SEP3, 1), (SEP5, 0, SEP5, 1)),
        ),
    ),
    # The authors' normal cell also concatenates an input that its blocks read; see `nasplat.spaces.nasnet`.
    "nasnet_a": KnownNetwork(
        "Zoph et al., NASNet, 2018",
        NasnetSpace,
        _nasnet_cells(
            ((SEP5, 1, SEP3, 0), (SEP5, 0, SEP3, 0), (AVG3, 1, SKIP, 0), (AVG3, 0, AVG3, 0), (SEP3, 1, SKIP, 1)),
            ((SEP5, 1, SEP7, 0), (MAX3, 1, SEP7, 0), (AVG3, 1, SEP5, 0), (SKIP, 3, AVG3, 2), (SEP3, 2, MAX3, 1)),
        ),
    ),
    "amoebanet_a": KnownNetwork(
        "Real et al., Regularized Evolution, 2019",
        NasnetSpace,
        _nasnet_cells(
            ((AVG3, 0, MAX3, 1), (SEP3, 0, SEP5, 2), (SEP3, 0, AVG3, 3), (SEP3, 1, SKIP, 1), (SKIP, 0, AVG3, 1)),
            ((AVG3, 0, SEP3, 1), (MAX3, 0, SEP7, 2), (SEP7, 0, AVG3, 1), (MAX3, 0, MAX3, 1), (LONG7, 0, SEP3, 5)),
        ),
    ),
    "resnet": KnownNetwork(
        "He et al., ResNet, 2016: its block, as Dong & Yang, NAS-Bench-201, 2020, write it",
        NasBench201Space,
        _edges(CONV3, NONE, CONV3, SKIP, NONE, SKIP),
    ),
    "nasbench201_best": KnownNetwork(
        "Dong & Yang, NAS-Bench-201, 2020: the best on CIFAR-10",
        NasBench201Space,
        _edges(CONV3, CONV3, CONV3, SKIP, CONV3, CONV1),
    ),
    "mobilenet_v2": KnownNetwork(
        "Sandler et al., MobileNetV2, 2018: its block in every layer, in the stages of the space",
        MBConvSpace,
        _throughout("mb_k3_e6"),
    ),
    **{
        f"mobilenet_k{kernel}_e{expansion}": KnownNetwork(
            f"MobileNetV2 with kernels of {kernel} and expansions of {expansion} in every layer",
            MBConvSpace,
            _throughout(f"mb_k{kernel}_e{expansion}"),
        )
        for kernel, expansion in ((3, 3), (5, 3), (5, 6), (7, 3), (7, 6))
    },
    **{
        f"resnet{6 * blocks + 2}": KnownNetwork(
            "He et al., ResNet, 2016, for CIFAR", ResNetSpace, _residual("basic", (blocks,) * 3, cifar=True)
        )
        for blocks in (3, 5, 7, 9, 18)
    },
    **{
        name: KnownNetwork("He et al., ResNet, 2016, for ImageNet", ResNetSpace, _residual(block, depths))
        for name, block, depths in (
            ("resnet18", "basic", (2, 2, 2, 2)),
            ("resnet34", "basic", (3, 4, 6, 3)),
            ("resnet50", "bottleneck", (3, 4, 6, 3)),
            ("resnet101", "bottleneck", (3, 4, 23, 3)),
        )
    },
    "bank_resnet": KnownNetwork("He et al., ResNet, 2016, its connections", MemoryBankSpace, _banks(residual, 1, 1)),
    "bank_densenet": KnownNetwork(
        "Huang et al., DenseNet, 2017, its connections", MemoryBankSpace, _banks(dense, 3, 2)
    ),
    "bank_fractalnet": KnownNetwork(
        "Larsson et al., FractalNet, 2017, its connections", MemoryBankSpace, _banks(fractal, 3, 3)
    ),
}
