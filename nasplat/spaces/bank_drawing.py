"""A block of layers and memory banks as a picture."""

from __future__ import annotations

from nasplat.core.drawing import Drawing, Edge, Node
from nasplat.spaces.bank_rows import Banked, banks_of


def draw_block(block: Banked) -> Drawing:
    """Layers as boxes, with the banks that they read on the arrows; a bank that is added to is a join.

    Args:
        block: whose layers have a kernel, a dilation and groups.
    """
    nodes, edges = [Node("input", "input", "input")], []
    banks = {0: "input"}
    for number, row in enumerate(block.rows, 1):
        layer = f"layer{number}"
        kernel, dilation, groups = row.options
        words = [f"{name} {value}" for name, value in (("dilation", dilation), ("groups", groups)) if value > 1]
        kind = "dilated" if dilation > 1 else "convolution"
        nodes.append(Node(layer, ", ".join((f"1×1, {kernel}×{kernel}", *words)), kind))
        edges += [Edge(banks[bank], layer, f"bank {bank + 1}") for bank in banks_of(row.reads)]
        for bank in banks_of(row.writes):
            if bank in banks:
                total = f"{layer} bank {bank}"
                nodes.append(Node(total, "+", "combine"))
                edges += [Edge(banks[bank], total), Edge(layer, total)]
                banks[bank] = total
            else:
                banks[bank] = layer
    nodes.append(Node("output", "output", "output"))
    edges += [Edge(banks[bank], "output", f"bank {bank + 1}") for bank in banks_of(block.output)]
    return Drawing(tuple(nodes), tuple(edges))
