"""Blocks of layers that read and write memory banks.

The space of Brock et al., SMASH: One-Shot Model Architecture Search through HyperNetworks, 2017. Residual, dense and
fractal networks are points of it; see `nasplat.spaces.bank_patterns`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import product
from typing import TYPE_CHECKING, Any, NamedTuple

from nasplat.core.architecture import Architecture
from nasplat.core.choice import Choice, Option, Values
from nasplat.core.cost import Cost
from nasplat.core.drawing import Drawing
from nasplat.core.errors import NasplatError
from nasplat.core.graph import GraphBuilder, OperationGraph
from nasplat.core.problem import Problem
from nasplat.core.space import SearchSpace
from nasplat.spaces.bank_drawing import draw_block
from nasplat.spaces.bank_patterns import Pattern, full
from nasplat.spaces.bank_rows import Banked, Row, banks_of, canonical
from nasplat.spaces.chain import ChainNetwork, listed, whole
from nasplat.spaces.heads import finish_with_heads

if TYPE_CHECKING:
    from torch import nn

BLOCKS = tuple({"channels": [size, 2 * size], "banks": 4, "layers": 4} for size in (8, 16, 32))
MOST_BANKS = 6  # a layer chooses among all sets of them, to read and to write


class Block(NamedTuple):
    """One block of a network, a link of a chain.

    Args:
        in_channels, out_channels: of what enters and of what leaves it.
        stride: of the pooling before it; 1 is none.
        kernel: of the convolution that fills its first bank.
        channels: of a bank.
        layers: with the kernel, dilation and groups of each.
    """

    name: str
    in_channels: int
    out_channels: int
    stride: int
    kernel: int
    channels: int
    layers: Banked


class MemoryBankSpace(SearchSpace):
    """Blocks of layers, a halving of height and width between two blocks, a last 1×1 convolution, pooling, classifier.

    A layer reads a set of banks, side by side along the channels: a 1×1 convolution (the bottleneck), batch norm, ReLU,
    a convolution. What comes out is added to each bank that it writes. The first bank is filled by a convolution, batch
    norm and ReLU: 3×3, of the image, in the first block; 1×1 in the others, of what leaves the block before, a set of
    its banks side by side, pooled.

    Choices of a block: `block1.channels` of its banks, how many `block1.layers` there are, the banks that leave it
    (`block1.output`). Of a layer: `block1.layer1.reads` and `.writes`, sets of banks such as `1,3`, `.kernel`,
    `.dilation`, `.groups`. What has one option is no choice.

    Canonical form: see `nasplat.spaces.bank_rows.canonical`. Layers that are left out stand behind the others, beyond
    the number of layers, with all that they choose at its default.

    Args:
        problem: what is to be learned.
        blocks: mappings of `channels` (of a bank: a number, or a list to choose from), `banks` (up to 6, and to 2, 3,
            5 with 1, 2, 3 layers), and `layers` (at most so many).
        kernels: odd numbers from 3 on. The paper has 3, 5 and 7.
        dilations: the paper has up to 3.
        groups: of the convolution after the bottleneck; each divides the channels of every bank.
        bottleneck: channels between the two convolutions of a layer, in multiples of those of a bank.
        last_channels: of the features.

    Raises:
        NasplatError: a parameter makes no network.
    """

    def __init__(
        self,
        problem: Problem,
        *,
        blocks: Sequence[Mapping[str, Any]] = BLOCKS,
        kernels: Sequence[int] = (3, 5, 7),
        dilations: Sequence[int] = (1, 2, 3),
        groups: Sequence[int] = (1, 2, 4),
        bottleneck: int = 2,
        last_channels: int = 128,
    ) -> None:
        self.problem = problem
        plain = [_block(block, number) for number, block in enumerate(listed("blocks", blocks), 1)]
        sizes = {"kernel": _sizes("kernels", kernels), "dilation": _sizes("dilations", dilations)}
        sizes["groups"] = _sizes("groups", groups)
        for kernel in sizes["kernel"]:
            if kernel < 3 or kernel % 2 == 0:
                raise NasplatError(f"kernels: {kernel} is no size of a kernel here", "give odd numbers from 3 on")
        for number, block in enumerate(plain, 1):
            for channels, parts in product(block["channels"], sizes["groups"]):
                if channels % parts:
                    raise NasplatError(
                        f"the {channels} channels of block {number} cannot be split into {parts} groups",
                        "each of groups must divide the channels of every bank",
                    )
        self.bottleneck, self.last_channels = whole("bottleneck", bottleneck), whole("last_channels", last_channels)
        self.identity = {
            "family": "memory_bank",
            "blocks": plain,
            "kernels": sizes["kernel"],
            "dilations": sizes["dilation"],
            "groups": sizes["groups"],
            "bottleneck": bottleneck,
            "last_channels": last_channels,
            "problem": problem.to_json(),
        }
        self._sizes = {name: tuple(found) for name, found in sizes.items()}
        self._tables = [_Table.of(f"block{number}", block, self._sizes) for number, block in enumerate(plain, 1)]
        self.choices = {choice.name: choice for table in self._tables for choice in table.choices}
        last = [self._tables[-1].name] if len(self._tables) > 1 else []
        self._network = ChainNetwork(problem, last, lambda builder: builder.input, self._append, self._head)

    @property
    def sizes(self) -> list[tuple[int, int]]:
        """Banks of every block, and its layers at most."""
        return [(table.banks, len(table.layers)) for table in self._tables]

    def blocks(self, values: Values) -> list[Block]:
        """What values stand for, in canonical form."""
        chain: list[Block] = []
        entering, stride, kernel = self.problem.input_shape[0], 1, 3
        for table in self._tables:
            channels, layers = table.read(values)
            leaving = channels * layers.output.bit_count()
            chain.append(Block(table.name, entering, leaving, stride, kernel, channels, layers))
            entering, stride, kernel = leaving, 2, 1
        return chain

    def settle(self, values: Values) -> Values:
        settled: dict[str, Option] = {}
        for table, block in zip(self._tables, self.blocks(values), strict=True):
            settled |= table.written(block.channels, block.layers)
        return {name: settled[name] for name in self.choices}

    def graph(self, architecture: Architecture) -> OperationGraph:
        return self._network.graph(self.blocks(architecture.values))

    def cost(self, architecture: Architecture) -> Cost:
        """Equal to `cost_of(graph(…))`; each distinct block is counted once."""
        return self._network.cost(self.blocks(architecture.values))

    def build(self, architecture: Architecture) -> nn.Module:
        from nasplat.networks.graph_network import build_network

        return build_network(self.graph(architecture))

    def extremes(self) -> tuple[Architecture, Architecture]:
        """Every layer adds to the first bank and reads all; and no layers at all."""
        return self.canonical(self.following(full, largest=True)), self.canonical({})

    def following(self, pattern: Pattern, *, largest: bool = False) -> dict[str, Option]:
        """The values of a network whose blocks follow a pattern of `nasplat.spaces.bank_patterns`.

        Args:
            largest: the most channels and the largest kernels, or those of the default.
        """
        place = -1 if largest else 0
        found: dict[str, Option] = {}
        kernels, dilations, groups = self._sizes.values()
        for table in self._tables:
            layers = pattern(table.banks, len(table.layers), (kernels[place], dilations[0], groups[0]))
            found |= table.written(int(table.channels.options[place]), layers)
        return {name: found[name] for name in self.choices}

    def drawings(self, architecture: Architecture) -> dict[str, Drawing]:
        """Every block: layers as boxes, the banks that they read on the arrows."""
        return {
            f"{block.name}, {block.channels} channels a bank": draw_block(block.layers)
            for block in self.blocks(architecture.values)
        }

    def _append(self, builder: GraphBuilder, node: int, block: Block) -> int:
        if block.stride == 2:
            even = all(side % 2 == 0 for side in builder.shape(node)[1:])
            node = builder.pool(node, "avg_pool", 2 if even else 3, 2)
        banks = {0: _convolve(builder, node, block.channels, block.kernel, f"{block.name}.entry")}
        for number, row in enumerate(block.layers.rows, 1):
            name, (kernel, dilation, groups) = f"{block.name}.layer{number}", row.options
            node = builder.concat([banks[bank] for bank in banks_of(row.reads)])
            node = _convolve(builder, node, self.bottleneck * block.channels, 1, f"{name}.bottleneck")
            node = builder.conv2d(node, block.channels, kernel, name=f"{name}.conv", dilation=dilation, groups=groups)
            written = banks_of(row.writes)
            if all(bank in banks for bank in written):
                builder.drop_path(node)
            for bank in written:
                banks[bank] = builder.add([banks[bank], node]) if bank in banks else node
        return builder.concat([banks[bank] for bank in banks_of(block.layers.output)])

    def _head(self, builder: GraphBuilder, node: int, taps: Mapping[str, int]) -> OperationGraph:
        node = _convolve(builder, node, self.last_channels, 1, "last")
        return finish_with_heads(builder, node, self.problem, taps)


@dataclass(frozen=True, slots=True)
class _Table:
    """The choices of a block, and what they mean; those with one option among them."""

    name: str
    channels: Choice
    depth: Choice
    output: Choice
    layers: tuple[tuple[Choice, ...], ...]  # writes, reads, kernel, dilation, groups

    @staticmethod
    def of(name: str, block: Mapping[str, Any], options: Mapping[str, tuple[int, ...]]) -> _Table:
        sets = tuple(_text(mask) for mask in range(1, 1 << block["banks"]))
        layers = range(1, block["layers"] + 1)
        return _Table(
            name,
            Choice(f"{name}.channels", tuple(block["channels"]), ordered=True),
            Choice(f"{name}.layers", tuple(range(block["layers"] + 1)), ordered=True),
            Choice(f"{name}.output", sets),
            tuple(
                (
                    *(Choice(f"{name}.layer{number}.{part}", sets) for part in ("writes", "reads")),
                    *(Choice(f"{name}.layer{number}.{part}", sizes, ordered=True) for part, sizes in options.items()),
                )
                for number in layers
            ),
        )

    @property
    def banks(self) -> int:
        return len(self.output.options).bit_length()

    @property
    def choices(self) -> list[Choice]:
        every = (self.channels, self.depth, self.output, *(choice for layer in self.layers for choice in layer))
        return [choice for choice in every if len(choice.options) > 1]

    def read(self, values: Values) -> tuple[int, Banked]:
        """The channels of a bank, and the layers in canonical form."""

        def chosen(choice: Choice) -> Any:
            return values.get(choice.name, choice.default)

        rows = (
            Row(_mask(chosen(writes)), _mask(chosen(reads)), tuple(map(chosen, sizes)))
            for writes, reads, *sizes in self.layers[: chosen(self.depth) if len(self.depth.options) > 1 else 0]
        )
        return chosen(self.channels), canonical(Banked(tuple(rows), _mask(chosen(self.output))))

    def written(self, channels: int, layers: Banked) -> dict[str, Option]:
        """The values that say so."""
        found: dict[str, Option] = {choice.name: choice.default for layer in self.layers for choice in layer}
        found |= {self.channels.name: channels, self.depth.name: len(layers.rows)}
        found[self.output.name] = _text(layers.output)
        for choices, row in zip(self.layers, layers.rows, strict=False):
            options: tuple[Option, ...] = (_text(row.writes), _text(row.reads), *row.options)
            found |= {choice.name: option for choice, option in zip(choices, options, strict=True)}
        return found


def _convolve(builder: GraphBuilder, node: int, channels: int, kernel: int, name: str) -> int:
    node = builder.conv2d(node, channels, kernel, name=f"{name}.conv")
    return builder.activation(builder.batch_norm(node, name=f"{name}.norm"))


def _text(mask: int) -> str:
    """Banks as an option names them, counted from 1."""
    return ",".join(str(bank + 1) for bank in banks_of(mask))


@cache
def _mask(text: str) -> int:
    return sum(1 << int(bank) - 1 for bank in text.split(","))


def _block(data: Any, number: int) -> dict[str, Any]:
    keys = ("channels", "banks", "layers")
    if not isinstance(data, Mapping) or set(data) != set(keys):
        raise NasplatError(f"block {number} is {data!r}", "write {channels: [8, 16], banks: 4, layers: 4}")
    channels = data["channels"]
    banks, layers = whole(f"banks of block {number}", data["banks"]), whole("layers", data["layers"], 0)
    # So many that all of them can differ before the second layer reads them: then one network is the largest.
    most = min(MOST_BANKS, 1 + (1 << layers >> 1))
    if banks > most:
        raise NasplatError(f"block {number} has {banks} banks for {layers} layers", f"use at most {most} banks")
    return {
        "channels": _sizes(f"channels of block {number}", channels if isinstance(channels, Sequence) else [channels]),
        "banks": banks,
        "layers": layers,
    }


def _sizes(name: str, sizes: Any) -> list[int]:
    """Numbers to choose from, the smallest first."""
    return sorted({whole(f"one of {name}", size) for size in listed(name, sizes)})
