"""A built network computes what its table says: held against plain functional code that reads the table itself.

The weights are found by the names of the edges, the wiring is written here a second time, and nothing of the operation
graph, its canonical forms or its programs is used.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from nasplat.core.problem import classification
from nasplat.spaces.families import make_space

Values = Mapping[str, object]


class Plain:
    """The operations of the papers, on weights by name, in evaluation mode."""

    def __init__(self, network: torch.nn.Module) -> None:
        self.weights = network.state_dict()

    def norm(self, x: Tensor, name: str) -> Tensor:
        get = lambda part: self.weights[f"{name}.{part}"]  # noqa: E731
        return F.batch_norm(x, get("running_mean"), get("running_var"), get("weight"), get("bias"))

    def conv(self, x: Tensor, name: str, stride: int = 1, dilation: int = 1, groups: int = 1) -> Tensor:
        weight = self.weights[f"{name}.weight"]
        return F.conv2d(x, weight, None, stride, dilation * (weight.shape[-1] // 2), dilation, groups)

    def separable(self, x: Tensor, name: str, stride: int, dilation: int = 1) -> Tensor:
        x = self.conv(F.relu(x), f"{name}.depthwise", stride, dilation, groups=x.shape[1])
        return self.norm(self.conv(x, f"{name}.pointwise"), f"{name}.norm")

    def halve(self, x: Tensor, name: str) -> Tensor:
        """Factorised reduction: two strided 1x1 convolutions, the second one pixel further on."""
        x = F.relu(x)
        moved = F.pad(x, (0, 1, 0, 1))[:, :, 1:, 1:]
        both = [self.conv(x, f"{name}.even", 2), self.conv(moved, f"{name}.odd", 2)]
        return self.norm(torch.cat(both, 1), f"{name}.norm")

    def apply(self, operation: str, x: Tensor, name: str, stride: int = 1) -> Tensor | None:
        size = int(operation[-1]) if operation[-1].isdecimal() else 0
        if operation == "none":
            return None
        if operation == "skip_connect":
            return x if stride == 1 else self.halve(x, name)
        if operation == "max_pool_3x3":
            return F.max_pool2d(x, 3, stride, 1)
        if operation == "avg_pool_3x3":
            return F.avg_pool2d(x, 3, stride, 1, count_include_pad=False)
        if operation.startswith("conv"):
            return self.norm(self.conv(F.relu(x), f"{name}.conv", stride), f"{name}.norm")
        if operation.startswith("dil_conv"):
            return self.separable(x, name, stride, dilation=2)
        assert operation.startswith("sep_conv") and size in (3, 5, 7)
        return self.separable(self.separable(x, f"{name}.0", stride), f"{name}.1", 1)

    def logits(self, x: Tensor) -> Tensor:
        return F.linear(x.mean((2, 3)), self.weights["heads.logits.weight"], self.weights["heads.logits.bias"])


def total(parts: list[Tensor | None], like: tuple[int, ...]) -> Tensor:
    there = [part for part in parts if part is not None]
    return sum(there[1:], there[0]) if there else torch.zeros(like)


def nasbench201(plain: Plain, values: Values, kinds: list[str], x: Tensor) -> Tensor:
    x = plain.norm(plain.conv(x, "stem.conv"), "stem.norm")
    for position, kind in enumerate(kinds):
        name = f"cells.{position}"
        if kind == "reduction":
            shortcut = plain.conv(F.avg_pool2d(x, 2, 2), f"{name}.shortcut")
            for step, stride in enumerate((2, 1)):
                x = plain.norm(plain.conv(F.relu(x), f"{name}.{step}.conv", stride), f"{name}.{step}.norm")
            x = x + shortcut
            continue
        nodes = [x]
        for target in (1, 2, 3):
            edges = [(f"edge_{source}_{target}", nodes[source]) for source in range(target)]
            parts = [
                plain.apply(str(values[edge]), node, f"{name}.{edge}")
                for edge, node in edges
                if alive(plain, str(values[edge]), f"{name}.{edge}")
            ]
            nodes.append(total(parts, tuple(x.shape)))
        x = nodes[3]
    return plain.logits(F.relu(plain.norm(x, "last.norm")))


def alive(plain: Plain, operation: str, name: str) -> bool:
    """An operation without a way to the output was not built; what it would compute is read by nobody."""
    return "conv" not in operation or any(weight.startswith(f"{name}.") for weight in plain.weights)


def aligned(plain: Plain, name: str, before: Tensor, last: Tensor) -> list[Tensor | None]:
    """Both inputs of a cell in its channels and at one size; None where nothing that is alive reads one."""
    inputs: list[Tensor | None] = []
    for index, source in enumerate((before, last)):
        prefix = f"{name}.input{index}"
        if f"{prefix}.even.weight" in plain.weights:
            inputs.append(plain.halve(source, prefix))
        elif f"{prefix}.conv.weight" in plain.weights:
            inputs.append(plain.norm(plain.conv(F.relu(source), f"{prefix}.conv"), f"{prefix}.norm"))
        else:
            inputs.append(None)
    return inputs


def nasnet(plain: Plain, values: Values, kinds: list[str], x: Tensor) -> Tensor:
    before = last = plain.norm(plain.conv(x, "stem.conv"), "stem.norm")
    for position, kind in enumerate(kinds):
        name, stride = f"cells.{position}", 2 if kind == "reduction" else 1
        states = [one for one in aligned(plain, name, before, last) if one is not None]
        assert len(states) == 2  # one that no block reads is part of the output
        read: set[int] = set()
        for block in range(3):
            parts = []
            for edge in (1, 2):
                source = int(str(values[f"{kind}_block{block}_input{edge}"]))
                operation = str(values[f"{kind}_block{block}_op{edge}"])
                step = stride if source < 2 else 1
                part = plain.apply(operation, states[source], f"{name}.block{block}.op{edge}", step)
                assert part is not None
                parts.append(part)
                read.add(source)
            if values[f"{kind}_block{block}_combine"] == "add":
                states.append(parts[0] + parts[1])
            else:
                squeeze = f"{name}.block{block}.squeeze"
                both = F.relu(torch.cat(parts, 1))
                states.append(plain.norm(plain.conv(both, f"{squeeze}.conv"), f"{squeeze}.norm"))
        outputs = [
            plain.halve(state, f"{name}.unread{number}") if number < 2 and stride == 2 else state
            for number, state in enumerate(states)
            if number not in read
        ]
        before, last = last, torch.cat(outputs, 1)
    return plain.logits(F.relu(last))


def darts(plain: Plain, values: Values, kinds: list[str], x: Tensor) -> Tensor:
    before = last = plain.norm(plain.conv(x, "stem.conv"), "stem.norm")
    for position, kind in enumerate(kinds):
        name, stride = f"cells.{position}", 2 if kind == "reduction" else 1
        inputs = aligned(plain, name, before, last)
        known = next(one for one in inputs if one is not None)
        shape = (len(x), known.shape[1], -(-last.shape[2] // stride), -(-last.shape[3] // stride))
        nodes = list(inputs)
        for node in range(3):
            sources = [int(part) for part in str(values[f"{kind}_node{node}_inputs"]).split(",")]
            parts: list[Tensor | None] = []
            for edge, source in enumerate(sources, start=1):
                operation = str(values[f"{kind}_node{node}_op{edge}"])
                read = nodes[source]
                assert read is not None or operation == "none"
                if read is not None:
                    step = stride if source < 2 else 1
                    parts.append(plain.apply(operation, read, f"{name}.node{node}.op{edge}", step))
            nodes.append(total(parts, shape))
        before, last = last, torch.cat([one for one in nodes[2:] if one is not None], 1)
    return plain.logits(last)


CASES = {
    "nasbench201": (nasbench201, {"family": "nasbench201", "cells": [1, 1], "channels": 4}),
    "nasnet": (
        nasnet,
        {
            "family": "nasnet",
            "operations": ["skip_connect", "avg_pool_3x3", "max_pool_3x3", "conv_3x3", "sep_conv_5x5"],
            "cells": [1, 1],
            "channels": 4,
            "blocks": 3,
        },
    ),
    "darts": (darts, {"family": "darts", "cells": [1, 1], "channels": 4, "nodes": 3}),
}


@pytest.mark.parametrize("family", CASES)
def test_a_built_network_computes_what_its_table_says(family: str) -> None:
    """A builder that read another node of the cell would still have the right costs, and train."""
    plain_network, spec = CASES[family]
    space = make_space(spec, classification((3, 8, 8), 5))
    rng = np.random.default_rng(0)
    images = torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    kinds = ["normal", "reduction", "normal"]
    compared = 0
    for _ in range(40):
        architecture = space.sample(rng)
        network = space.build(architecture)
        generator = torch.Generator().manual_seed(1)
        for name, tensor in network.state_dict().items():
            if tensor.is_floating_point():
                tensor.normal_(0, 0.5, generator=generator)
                if name.endswith("running_var"):
                    tensor.abs_().add_(0.5)
        with torch.no_grad():
            built = network.eval()(images)
            try:
                plain = plain_network(Plain(network), architecture.values, kinds, images)
            except StopIteration:
                continue  # a cell that reads nothing at all
        torch.testing.assert_close(built, plain, rtol=1e-4, atol=1e-4)
        compared += 1
    assert compared >= 30
