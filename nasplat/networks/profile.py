"""Holds our count of a module against fvcore, thop and FlopCounterMode, layer by layer, and explains differences."""

from __future__ import annotations

import logging
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from nasplat.core.cost import Cost
from nasplat.networks.counter import LayerCost, copy_to, count, example_inputs
from nasplat.networks.tracer import trace_run

TOOLS = ("fvcore", "thop", "FlopCounterMode")


@dataclass(frozen=True, slots=True)
class Difference:
    """Why a tool's number for a layer is not ours: its number minus ours, in multiply-accumulates.

    `reason` is empty where none of the known ones accounts for the whole difference.
    """

    tool: str
    macs: int
    reason: str


@dataclass(frozen=True, slots=True)
class ProfileRow:
    """One layer: what it does itself, without its children.

    Args:
        name: dotted path; empty for the outermost module.
        kind: class of the module.
        params: of parameters that no earlier layer has.
        macs: ours.
        tools: what each tool counts, as multiply-accumulates; a tool that failed on the module is absent.
        differences: one or more for every tool that disagrees; their sum is the tool's number minus ours.
    """

    name: str
    kind: str
    params: int
    macs: int
    tools: Mapping[str, int]
    differences: tuple[Difference, ...]


@dataclass(frozen=True, slots=True)
class Profile:
    """The table by layer.

    Args:
        cost: ours, of the whole module.
        rows: in the order of `named_modules`; layers that neither count nor hold anything are left out.
        failures: tool -> why it could not count the module.
    """

    cost: Cost
    rows: tuple[ProfileRow, ...]
    failures: Mapping[str, str]

    def totals(self) -> dict[str, int]:
        """Multiply-accumulates of the whole module by every tool that could count it."""
        return {tool: sum(row.tools[tool] for row in self.rows) for tool in TOOLS if tool not in self.failures}

    def explanations(self) -> dict[tuple[str, str], int]:
        """(tool, reason) -> summed difference; together they are each tool's total minus ours."""
        summed: Counter[tuple[str, str]] = Counter()
        for row in self.rows:
            for difference in row.differences:
                summed[difference.tool, difference.reason] += difference.macs
        return dict(summed)

    def unexplained(self) -> list[tuple[ProfileRow, Difference]]:
        """Differences for which no reason is known."""
        return [(row, each) for row in self.rows for each in row.differences if not each.reason]


def profile(
    module: nn.Module, input_shape: Sequence[int] | None = None, inputs: tuple[Tensor, ...] | None = None
) -> Profile:
    """Counts a module with all tools, as their users would run them: on CPU, in evaluation mode, at batch 1.

    Args:
        module: stays as it is; every tool gets a copy.
        input_shape: `(C, H, W)` of one input.
        inputs: example inputs instead.

    Raises:
        NasplatError: our own counter cannot count the module.
    """
    ours = count(module, input_shape, inputs)
    layers = {layer.name: layer for layer in ours.layers}
    examples = tuple(tensor.detach().to("cpu") for tensor in example_inputs(input_shape, inputs))
    failures: dict[str, str] = {}
    counts: dict[str, _Counts] = {}
    for tool, function in _COUNTERS.items():
        try:
            with _quiet():
                counts[tool] = function(copy_to(module, "cpu"), examples)
        except Exception as error:  # another library's tool, on a module that it was not made for
            failures[tool] = f"{type(error).__name__}: {error}".strip()
    rows = []
    for name, module_there in getattr(module, "_orig_mod", module).named_modules():
        layer = layers.get(name) or LayerCost(name, type(module_there).__name__, 0, 0, 0, ())
        tools = {tool: counts[tool].macs.get(name, 0) for tool in counts}
        if layer.macs or layer.params or any(tools.values()):
            differences = tuple(
                difference for tool in counts for difference in _explain(tool, counts[tool], layer, module_there)
            )
            rows.append(ProfileRow(name, layer.kind, layer.params, layer.macs, tools, differences))
    return Profile(ours.cost, tuple(rows), failures)


Reasons = Iterator[tuple[str, int]]


@dataclass(frozen=True, slots=True)
class _Counts:
    """What a tool counts in each layer itself, and the known reasons for what differs there, with their amounts."""

    macs: Mapping[str, int]
    reasons: Callable[[LayerCost, nn.Module], Reasons]


def _explain(tool: str, counts: _Counts, layer: LayerCost, module: nn.Module) -> Iterator[Difference]:
    rest = counts.macs.get(layer.name, 0) - layer.macs
    if rest == 0:
        return
    for reason, part in counts.reasons(layer, module):
        if part:
            yield Difference(tool, part, reason)
            rest -= part
    if rest:
        yield Difference(tool, rest, "")


def _count_with_fvcore(module: nn.Module, inputs: tuple[Tensor, ...]) -> _Counts:
    from fvcore.nn import FlopCountAnalysis

    analysis = FlopCountAnalysis(module, inputs)
    analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
    cumulative = {name: Counter(operators) for name, operators in analysis.by_module_and_operator().items()}
    own: dict[str, Counter[str]] = {}
    for name, layer in module.named_modules():
        operators = Counter(cumulative.get(name, Counter()))
        for child, _ in layer.named_children():
            operators.subtract(cumulative.get(_join(name, child), Counter()))
        own[name] = operators

    def reasons(layer: LayerCost, module: nn.Module) -> Reasons:
        for operator, number in own[layer.name].items():
            if operator in _FVCORE_EXTRA:
                yield f"counts {_FVCORE_EXTRA[operator]}", int(number)
        products = sum(int(number) for operator, number in own[layer.name].items() if operator not in _FVCORE_EXTRA)
        missing = _FVCORE_MISSING & {name.removeprefix("aten::") for name in analysis.unsupported_ops(layer.name)}
        if missing:
            yield f"has no formula for {', '.join(sorted(missing))}", products - layer.macs

    return _Counts({name: int(sum(operators.values())) for name, operators in own.items()}, reasons)


# fvcore's operators that are no matrix products.
_FVCORE_EXTRA = {
    "batch_norm": "batch norm",
    "group_norm": "group norm",
    "layer_norm": "layer norm",
    "instance_norm": "instance norm",
    "adaptive_avg_pool2d": "adaptive average pooling",
    "upsample_nearest2d": "upsampling",
    "upsample_bilinear2d": "upsampling",
    "grid_sampler": "grid sampling",
}
# Matrix products that fvcore knows nothing of.
_FVCORE_MISSING = frozenset(
    {
        "_native_multi_head_attention",
        "_transformer_encoder_layer_fwd",
        "baddbmm",
        "gru",
        "lstm",
        "mv",
        "rnn_relu",
        "rnn_tanh",
        "scaled_dot_product_attention",
    }
)


def _count_with_thop(module: nn.Module, inputs: tuple[Tensor, ...]) -> _Counts:
    from thop.profile import profile as thop_profile
    from thop.profile import register_hooks

    total, _, tree = thop_profile(module, inputs=inputs, verbose=False, ret_layer_info=True)
    own: dict[str, int] = {}

    def walk(name: str, number: float, children: Mapping[str, Any]) -> None:
        own[name] = int(number - sum(child[0] for child in children.values()))
        for child, (child_number, _, grandchildren) in children.items():
            walk(_join(name, child), child_number, grandchildren)

    walk("", total, tree)

    def reasons(layer: LayerCost, module: nn.Module) -> Reasons:
        number = own.get(layer.name, 0)
        elements = prod(layer.output_shape) * layer.calls
        if isinstance(module, _NORMS) and number == 4 * elements:
            yield "counts normalisation, 4 an element: twice as much because it has an affine map", number
        elif isinstance(module, _NORMS) and number == 2 * elements:
            yield "counts normalisation, 2 an element", number
        elif isinstance(module, _ELEMENTWISE):
            yield f"counts {layer.kind}", number
        elif isinstance(module, _TRANSPOSED):
            yield (
                "counts a transposed convolution by its output size instead of its input size: "
                f"{prod(module.stride)} times at stride {module.stride[0]}",
                number - layer.macs,
            )
        elif isinstance(module, _RECURRENT):
            yield "counts gates and biases of a recurrent layer", number - layer.macs
        elif type(module) not in register_hooks:
            yield f"has no rule for {layer.kind}: sees neither functional calls in it nor its parameters", -layer.macs

    return _Counts(own, reasons)


_NORMS = (nn.modules.batchnorm._NormBase, nn.LayerNorm)
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_RECURRENT = (nn.RNNBase, nn.RNNCellBase)
_ELEMENTWISE = (
    nn.AvgPool1d,
    nn.AvgPool2d,
    nn.AvgPool3d,
    nn.AdaptiveAvgPool1d,
    nn.AdaptiveAvgPool2d,
    nn.AdaptiveAvgPool3d,
    nn.PReLU,
    nn.Softmax,
    nn.Upsample,
    nn.UpsamplingBilinear2d,
    nn.UpsamplingNearest2d,
)


def _count_with_flop_counter(module: nn.Module, inputs: tuple[Tensor, ...]) -> _Counts:
    from torch.utils.flop_counter import FlopCounterMode

    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        module(*inputs)
    root = type(module).__name__
    cumulative = {name: sum(counts.values()) // 2 for name, counts in counter.get_flop_counts().items()}
    own: dict[str, int] = {}

    def below(path: str, layer: nn.Module) -> int:
        """What the nearest layers below count; a container that is never called has no entry of its own."""
        children = [(_join(path, child), module) for child, module in layer.named_children()]
        return sum(cumulative[child] if child in cumulative else below(child, module) for child, module in children)

    for name, layer in module.named_modules():
        path = _join(root, name) if name else root
        if name and path not in cumulative:
            continue
        own[name] = cumulative.get(path if name else "Global", 0) - below(path, layer)
    unknown = trace_run(module, inputs, strict=False).unknown

    def reasons(layer: LayerCost, module: nn.Module) -> Reasons:
        parts = layer.name.split(".")
        for length in range(len(parts), -1, -1):  # a fused operation of a parent stands for its children's
            if names := unknown.get(".".join(parts[:length])):
                yield (
                    f"has no formula for {', '.join(sorted(names))}, which runs on CPU",
                    own.get(layer.name, 0) - layer.macs,
                )
                return

    return _Counts(own, reasons)


_COUNTERS: dict[str, Callable[[nn.Module, tuple[Tensor, ...]], _Counts]] = {
    "fvcore": _count_with_fvcore,
    "thop": _count_with_thop,
    "FlopCounterMode": _count_with_flop_counter,
}


def _join(name: str, child: str) -> str:
    return f"{name}.{child}" if name else child


@contextmanager
def _quiet() -> Iterator[None]:
    """Keeps the tools' own warnings, about what the table explains, from the screen."""
    names = ("fvcore.nn.jit_analysis", "root")
    levels = {name: logging.getLogger(name).level for name in names}
    try:
        for name in names:
            logging.getLogger(name).setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
