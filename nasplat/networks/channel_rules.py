"""What the operations of a network do to the labels of channels: arithmetic, convolutions, products, norms.

Each rule reads a step and returns the labels of the result. An operation without a rule freezes what it meets.
"""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import Any

import numpy as np
import torch

from nasplat.networks.channel_labels import FIXED, MADE
from nasplat.networks.channel_scale import rows_of
from nasplat.networks.channel_shape_rules import SHAPE_RULES, rules
from nasplat.networks.channel_step import Step, is_tensor
from nasplat.networks.channel_views import Dims, fixed, made, split
from nasplat.networks.tracer import looks_like_matrix_product


def apply_rule(step: Step) -> Any:
    """The labels of an operation's result: of a tensor, or a list of them."""
    name = step.name
    rule = RULES.get(name) or RULES.get(name.removesuffix("_"))
    if rule is not None:
        return rule(step)
    if torch.Tag.pointwise in getattr(step.node.target, "tags", ()):
        return pointwise(step)
    return unknown(step)


def unknown(step: Step) -> Any:
    """An operation that no rule knows: nothing that it reads may change."""
    if hasattr(step.node.target, "_overloadpacket") and looks_like_matrix_product(step.node.target):
        step.record.uncounted.append(step.name)
    for node in step.tensors():
        for dim in step.dims(node):
            step.freeze(dim, "an operation that nasplat cannot follow")
    return _per_result(step, lambda shape: [_frozen(step, size) for size in shape])


def _frozen(step: Step, size: int) -> np.ndarray:
    labels = step.labels.fresh(size)
    step.freeze(labels, "an operation that nasplat cannot follow")
    return labels


def _per_result(step: Step, dims: Callable[[list[int]], Dims]) -> Any:
    value = step.node.meta.get("val")
    if isinstance(value, torch.Tensor):
        return dims([int(size) for size in value.shape])
    if isinstance(value, tuple | list):
        return [dims([int(size) for size in entry.shape]) if isinstance(entry, torch.Tensor) else [] for entry in value]
    return []


def broadcast(step: Step, operands: list[Dims], shape: list[int]) -> Dims:
    """The labels of a result of arithmetic; dimensions of size 1 are free."""
    result: Dims = []
    for place, size in enumerate(shape):
        from_end = place - len(shape)
        met = [operand[from_end] for operand in operands if -from_end <= len(operand)]
        for dim in met:
            if len(dim) != size:
                step.freeze_by_nature(dim)  # a single channel that is spread over several
        same_size = [dim for dim in met if len(dim) == size]
        labels = same_size[0]
        for dim in same_size[1:]:
            step.unite(labels, dim)
            labels = np.where(labels <= MADE, dim, labels)
        result.append(labels)
    return result


def pointwise(step: Step) -> Dims:
    return broadcast(step, [step.dims(node) for node in step.tensors()], step.shape)


def creation(step: Step) -> Any:
    return _per_result(step, made)


def batch_norm(step: Step) -> Dims:
    dims = step.input
    for name in ("weight", "bias", "running_mean", "running_var"):
        if is_tensor(step.arg(name)):
            step.unite(dims[1], step.dims(step.arg(name))[0])
    if step.arg("training") or step.arg("use_input_stats") or not is_tensor(step.arg("running_mean")):
        # Statistics of the batch itself, which is a weight where weights are standardised.
        step.cross(step.node.args[0], dims, [place for place in range(len(dims)) if place != 1], restore=True)
    return dims


def layer_norm(step: Step) -> Dims:
    dims, sizes = step.input, step.arg("normalized_shape")
    over = range(len(dims) - len(sizes), len(dims))
    for name in ("weight", "bias"):
        if is_tensor(step.arg(name)):
            for dim, own in zip(dims[over.start :], step.dims(step.arg(name)), strict=True):
                step.unite(dim, own)
    for position, place in enumerate(over):
        if hasattr(step.record.modules.get(step.path), "normalized_shape"):
            step.record.attributes.append((step.path, "normalized_shape", position, sizes[position], dims[place]))
    step.cross(step.node.args[0], dims, over, restore=True)
    return dims


def group_norm(step: Step) -> Dims:
    dims, groups = step.input, step.arg("num_groups")
    known = hasattr(step.record.modules.get(step.path), "num_groups")
    rows, _ = split(step.labels, dims[1], groups, known, step.reason("groups that cannot change"))
    for name in ("weight", "bias"):
        if is_tensor(step.arg(name)):
            step.unite(dims[1], step.dims(step.arg(name))[0])
    if known and groups > 1:
        step.record.attributes.append((step.path, "num_groups", None, groups, rows))
    step.cross(step.node.args[0], dims, [1], restore=True)
    return dims


def convolution(step: Step) -> Dims:
    """Of one to three dimensions, plain, grouped, depthwise and transposed."""
    dims, weight_node = step.input, step.arg("weight")
    weight, shape = step.dims(weight_node), step.shape
    groups = step.arg("groups", 1)
    transposed = step.arg("transposed", False) or "transpose" in step.name
    channel = len(dims) - (len(weight) - 2) - 1  # 0 without a batch
    for dim in (*weight[2:], *dims[channel + 1 :]):
        step.freeze_by_nature(dim)
    source = dims[channel]
    # The weight of a transposed convolution is (in, out / groups, …), of others (out, in / groups, …).
    outer, inner = weight[0], weight[1]
    spatial = [len(dim) for dim in dims[channel + 1 :]] if transposed else shape[channel + 1 :]
    positions = prod(spatial) * prod(shape[:channel])
    step.product(positions * prod(len(dim) for dim in weight[2:]), (outer, inner))
    if groups == 1:
        step.unite(source, outer if transposed else inner)
        result = inner if transposed else outer
    else:
        module = step.record.modules.get(step.path)
        known = hasattr(module, "groups")
        fail = step.reason("groups that cannot change")
        if len(source) == groups and not transposed:
            # Depthwise: each channel makes one or several of its own, which go with it.
            step.freeze_by_nature(inner)
            step.unite(np.repeat(source, len(outer) // groups), outer)
            if not known:
                step.freeze(source, "groups that cannot change")
            rows, result = source, outer
        else:
            rows, columns = split(step.labels, source, groups, known, fail)
            other_rows, other_columns = split(step.labels, outer, groups, known, fail)
            step.unite(rows, other_rows)
            if transposed:
                step.unite(columns, other_columns)
                result = step.labels.pair(np.repeat(rows, len(inner)), np.tile(inner, groups))
            else:
                step.unite(columns, inner)
                result = outer
        if known:
            step.record.attributes.append((step.path, "groups", None, groups, rows))
    if is_tensor(step.arg("bias")):
        step.unite(result, step.dims(step.arg("bias"))[0])
    step.record.producers.append((step.path, result))
    return [*dims[:channel], result, *fixed(shape[channel + 1 :])]


def linear(step: Step) -> Dims:
    dims, weight_node = step.input, step.arg("weight")
    weight = step.dims(weight_node)
    step.unite(dims[-1], weight[1])
    if is_tensor(step.arg("bias")):
        step.unite(weight[0], step.dims(step.arg("bias"))[0])
    step.product(1, (*dims[:-1], *weight))
    step.record.producers.append((step.path, weight[0]))
    if not step.is_parameter(weight_node):
        step.cross(step.node.args[0], dims, [len(dims) - 1])
    return [*dims[:-1], weight[0]]


def contract(step: Step, nodes: list[Any], letters: list[str], result: str) -> Dims:
    """Any product of tensors in the notation of Einstein's sums."""
    operands = [step.dims(node) for node in nodes]
    found: dict[str, np.ndarray] = {}
    for operand, names in zip(operands, letters, strict=True):
        for dim, letter in zip(operand, names, strict=True):
            if letter not in found or (len(found[letter]) == 1 and len(dim) > 1):
                found[letter] = dim
            elif len(dim) == len(found[letter]):
                step.unite(found[letter], dim)
                found[letter] = np.where(found[letter] <= MADE, dim, found[letter])
    summed = set("".join(letters)) - set(result)
    if sum(step.is_parameter(node) for node in nodes) == 0:
        for node, operand, names in zip(nodes, operands, letters, strict=True):
            over = [place for place, letter in enumerate(names) if letter in summed]
            if over:
                step.cross(node, operand, over)
                break
    else:
        weight = next(node for node in nodes if step.is_parameter(node))
        kept = [letter for letter in letters[nodes.index(weight)] if letter in result]
        for letter in kept[-1:]:
            step.record.producers.append((step.path, found[letter]))
    if len(nodes) > 1:
        step.product(1, tuple(found.values()))
    return [found[letter] for letter in result]


def matmul(step: Step) -> Dims:
    first, second = step.node.args[-2:] if step.name in ("addmm", "baddbmm") else step.node.args[:2]
    sizes = [len(step.dims(first)), len(step.dims(second))]
    batch = "abcdefgh"
    lefts = batch[max(max(sizes) - sizes[0], 0) : max(sizes) - 2] + "mk" if sizes[0] > 1 else "k"
    rights = batch[max(max(sizes) - sizes[1], 0) : max(sizes) - 2] + "kn" if sizes[1] > 1 else "k"
    result = batch[: max(max(sizes) - 2, 0)] + ("m" if sizes[0] > 1 else "") + ("n" if sizes[1] > 1 else "")
    dims = contract(step, [first, second], [lefts, rights], result)
    if step.name in ("addmm", "baddbmm"):
        return broadcast(step, [dims, step.input], step.shape)
    return dims


def einsum(step: Step) -> Dims:
    equation, nodes = step.node.args[0].replace(" ", ""), list(step.node.args[1])  # type: ignore[union-attr,arg-type]
    given, arrow, result = equation.partition("->")
    letters = given.split(",")
    if not arrow or "." in equation or any(len(set(names)) != len(names) for names in letters):
        return unknown(step)
    return contract(step, nodes, letters, result)


def attention(step: Step) -> Dims:
    """Scaled dot-product attention: (…, L, E), (…, S, E), (…, S, V) to (…, L, V)."""
    query, key, value = (step.dims(step.arg(name)) for name in ("query", "key", "value"))
    if step.arg("enable_gqa") or len({len(query), len(key), len(value)}) > 1:
        return unknown(step)
    batch = [
        broadcast(step, [[one], [two], [three]], [max(len(one), len(two), len(three))])[0]
        for one, two, three in zip(query[:-2], key[:-2], value[:-2], strict=True)
    ]
    step.unite(query[-1], key[-1])
    step.unite(key[-2], value[-2])
    if is_tensor(step.arg("attn_mask")):
        broadcast(
            step,
            [step.dims(step.arg("attn_mask")), [*batch, query[-2], key[-2]]],
            [*map(len, [*batch, query[-2], key[-2]])],
        )
    step.cross(step.arg("query"), query, [len(query) - 1])
    if step.arg("scale") is None and step.varies(query[-1]):
        if rows_of(step.arg("query")) is None:
            step.freeze(query[-1], "a scale that follows the width, and no weight that could undo it")
        step.record.scales.append((step.arg("query"), -0.5, query[-1]))
    for width in (query[-1], value[-1]):
        step.product(1, (*batch, query[-2], key[-2], width))
    return [*batch, query[-2], value[-1]]


def reduction(step: Step) -> Any:
    """Sums, means, norms, extremes over some dimensions."""
    if torch.Tag.pointwise in step.node.target.tags:  # type: ignore[union-attr]
        return pointwise(step)  # the larger of two tensors
    dims, over = step.input, step.arg("dim")
    places = range(len(dims)) if over is None or over == [] else [over] if isinstance(over, int) else over
    gone = {place % max(len(dims), 1) for place in places}
    if step.name in ("argmax", "argmin", "max", "min", "median", "mode", "topk"):
        for place in gone:
            step.freeze(dims[place], "picks among channels")
    step.cross(step.node.args[0], dims, sorted(gone))
    if step.arg("keepdim"):
        result = [np.full(1, FIXED) if place in gone else dim for place, dim in enumerate(dims)]
    else:
        result = [dim for place, dim in enumerate(dims) if place not in gone]
    several = isinstance(step.node.meta["val"], tuple | list)
    return [list(result) for _ in step.node.meta["val"]] if several else result


def softmax(step: Step) -> Dims:
    dims = step.input
    step.cross(step.node.args[0], dims, [step.arg("dim") % len(dims)], restore=True)
    return dims


def windows(step: Step) -> Any:
    """Pooling and resampling: channels stay, the last dimensions get new sizes."""
    dims = step.input
    spatial = next(int(size) for size in "123" if f"{size}d" in step.name)
    for dim in dims[len(dims) - spatial :]:
        step.freeze(dim, "resamples along channels")
    return _per_result(step, lambda shape: [*dims[: len(dims) - spatial], *fixed(shape[len(dims) - spatial :])])


def prelu(step: Step) -> Dims:
    dims, weight = step.input, step.dims(step.arg("weight"))
    if len(weight[0]) > 1:
        step.unite(dims[min(1, len(dims) - 1)], weight[0])
    return dims


def embedding(step: Step) -> Dims:
    weight_node = step.arg("weight")
    weight = step.dims(weight_node)
    step.freeze_by_nature(weight[0])
    if step.is_parameter(weight_node):
        step.record.producers.append((step.path, weight[1]))
    return [*step.dims(step.arg("indices")), weight[1]]


def same(step: Step) -> Dims:
    return step.input


def nothing(step: Step) -> Any:
    return []


_POOLS = "max_pool{0}d avg_pool{0}d adaptive_avg_pool{0}d adaptive_max_pool{0}d _adaptive_avg_pool{0}d lp_pool{0}d"
_RESAMPLING = "upsample_nearest{0}d _upsample_nearest_exact{0}d"

# By the name of the operation without its overload; in place or not. What torch marks as pointwise needs no entry.
RULES: dict[str, Callable[[Step], Any]] = {
    **SHAPE_RULES,
    **rules(convolution, "conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d convolution"),
    **rules(matmul, "matmul mm bmm addmm baddbmm mv dot"),
    **rules(einsum, "einsum"),
    **rules(linear, "linear"),
    **rules(attention, "scaled_dot_product_attention"),
    **rules(batch_norm, "batch_norm instance_norm"),
    **rules(layer_norm, "layer_norm rms_norm"),
    **rules(group_norm, "group_norm"),
    **rules(softmax, "softmax log_softmax _softmax _log_softmax"),
    **rules(windows, *(names.format(size) for names in (_POOLS, _RESAMPLING) for size in "123")),
    **rules(windows, "max_pool2d_with_indices upsample_linear1d upsample_bilinear2d upsample_bicubic2d"),
    **rules(windows, "upsample_trilinear3d"),
    **rules(reduction, "mean sum amax amin var std linalg_vector_norm norm logsumexp prod any all"),
    **rules(reduction, "argmax argmin max min median"),
    **rules(creation, "zeros ones full empty arange linspace rand randn eye scalar_tensor"),
    **rules(creation, "new_zeros new_ones new_full new_empty"),
    **rules(same, "dropout feature_dropout alpha_dropout zeros_like ones_like full_like rand_like empty_like"),
    **rules(same, "clone contiguous alias detach to _to_copy lift_fresh_copy fill zero type_as bernoulli"),
    # Arithmetic on single numbers that torch does not mark as such.
    **rules(same, "hardswish hardsigmoid hardtanh relu6 elu selu celu leaky_relu softplus mish log_sigmoid"),
    **rules(same, "softsign tanhshrink hardshrink softshrink threshold logit"),
    **rules(pointwise, "copy"),
    **rules(prelu, "prelu"),
    **rules(embedding, "embedding"),
    **rules(nothing, "_assert_tensor_metadata _assert_scalar sym_constrain_range_for_size"),
}
