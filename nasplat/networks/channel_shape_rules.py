"""What operations that move elements about do to the labels of channels: views, joins, cuts, padding, picking."""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import Any

import numpy as np

from nasplat.networks.channel_labels import FIXED, MADE
from nasplat.networks.channel_step import Step, is_tensor
from nasplat.networks.channel_views import Dims, fixed, made, regroup

TIED_BLOCKS = 8  # a slice of the n-th part of a dimension is followed up to this n


def view(step: Step) -> Dims:
    """Any change of shape that keeps the order of the elements."""
    dims, shape = step.input, step.shape
    result = regroup(step.labels, dims, shape, step.blocks_vary, step.reason("a number of blocks that cannot change"))
    given = {size for value in step.node.args[1:] for size in (value if isinstance(value, list | tuple) else [value])}
    if step.name == "flatten":
        given = set()  # these are dimensions, and no sizes
    for place, dim in enumerate(result):
        known = any(len(dim) == len(old) and np.array_equal(dim, old) for old in dims)
        if shape[place] in given:
            step.demand(shape[place], dim)
        if not known:
            step.assume(dim)
            step.record.viewed.append((step.path, dim))
    for dim in dims:
        if not any(dim is other for other in result):
            step.record.viewed.append((step.path, dim))
    return result


def permute(step: Step) -> Dims:
    dims = step.input
    return [dims[place] for place in step.arg("dims")]


def transpose(step: Step) -> Dims:
    dims = step.input
    if not dims or (len(dims) == 1 and step.name in ("t", "numpy_T")):
        return dims
    if step.name == "numpy_T":
        return dims[::-1]
    first = step.arg("dim0", step.arg("axis0", 0))
    second = step.arg("dim1", step.arg("axis1", 1))
    dims[first], dims[second] = dims[second], dims[first]
    return dims


def movedim(step: Step) -> Dims:
    dims, sources, targets = step.input, step.arg("source"), step.arg("destination")
    sources = [sources] if isinstance(sources, int) else sources
    targets = [targets] if isinstance(targets, int) else targets
    moved = {target % len(dims): dims[source] for source, target in zip(sources, targets, strict=True)}
    gone = {source % len(dims) for source in sources}
    others = iter([dim for place, dim in enumerate(dims) if place not in gone])
    return [moved[place] if place in moved else next(others) for place in range(len(dims))]


def squeeze(step: Step) -> Dims:
    dims, over = step.input, step.arg("dim")
    places = range(len(dims)) if over is None else [over] if isinstance(over, int) else over
    gone = {place % len(dims) for place in places if len(dims[place]) == 1} if dims else set()
    for place in gone:
        step.freeze_by_nature(dims[place])
    return [dim for place, dim in enumerate(dims) if place not in gone]


def unsqueeze(step: Step) -> Dims:
    dims = step.input
    dims.insert(step.arg("dim") % (len(dims) + 1), np.full(1, FIXED))
    return dims


def expand(step: Step) -> Dims:
    dims, shape = step.input, step.shape
    other = step.dims(step.arg("other")) if is_tensor(step.arg("other")) else made(shape)
    result = other[: len(shape) - len(dims)]
    for place, dim in enumerate(dims, len(shape) - len(dims)):
        if len(dim) == shape[place]:
            if is_tensor(step.arg("other")):
                step.unite(dim, other[place])
            result.append(dim)
        else:
            step.freeze_by_nature(dim)
            result.append(other[place])
    return result


def repeat(step: Step) -> Dims:
    dims = step.input
    times = step.arg("repeats", step.arg("dims"))
    dims = [*fixed([1] * (len(times) - len(dims))), *dims]
    times = [*[1] * (len(dims) - len(times)), *times]
    return [np.tile(dim, count) for dim, count in zip(dims, times, strict=True)]


def repeat_interleave(step: Step) -> Any:
    dims, times, over = step.input, step.arg("repeats"), step.arg("dim")
    if not isinstance(times, int) or over is None:
        return pick_unknown(step)
    dims[over] = np.repeat(dims[over], times)
    return dims


def cat(step: Step) -> Dims:
    nodes, over = step.node.args[0], step.arg("dim", 0)
    operands = [step.dims(node) for node in nodes]  # type: ignore[union-attr]
    operands = [dims for dims in operands if len(dims) == len(step.shape)]  # torch ignores an empty vector
    over %= len(step.shape)
    result = list(operands[0])
    for dims in operands[1:]:
        for place, dim in enumerate(dims):
            if place != over:
                step.unite(result[place], dim)
                result[place] = np.where(result[place] <= MADE, dim, result[place])
    result[over] = np.concatenate([dims[over] for dims in operands])
    return result


def stack(step: Step) -> Dims:
    nodes = step.node.args[0]
    operands = [step.dims(node) for node in nodes]  # type: ignore[union-attr]
    result = list(operands[0])
    for dims in operands[1:]:
        for place, dim in enumerate(dims):
            step.unite(result[place], dim)
            result[place] = np.where(result[place] <= MADE, dim, result[place])
    result.insert(step.arg("dim", 0) % (len(result) + 1), np.full(len(operands), FIXED))
    return result


def cut(step: Step) -> list[Dims]:
    """`split` and `chunk`: pieces of equal size stay equal; the sizes of others must be attributes."""
    dims, over = step.input, step.arg("dim", 0)
    labels = dims[over]
    sizes = [int(value.shape[over]) for value in step.node.meta["val"]]
    pieces = np.split(labels, np.cumsum(sizes)[:-1])
    if step.varies(labels):
        if len(set(sizes)) == 1:
            for piece in pieces[1:]:
                step.unite(pieces[0], piece)
        elif step.name == "split_with_sizes":
            for size, piece in zip(sizes, pieces, strict=True):
                step.demand(size, piece)
        else:
            step.freeze(labels, "cuts channels into unequal pieces")
        step.demand(sizes[0], pieces[0])
        step.assume(labels)
    results = []
    for piece in pieces:
        dims[over] = piece
        results.append(list(dims))
    return results


def unbind(step: Step) -> list[Dims]:
    dims = step.input
    over = step.arg("dim", 0)
    picked = dims.pop(over)
    step.pick(picked)
    return [list(dims) for _ in picked]


def slice_(step: Step) -> Dims:
    dims, over = step.input, step.arg("dim", 0)
    labels = dims[over]
    begin, end, stride = slice(step.arg("start"), step.arg("end"), step.arg("step", 1)).indices(len(labels))
    piece = labels[begin:end:stride]
    dims[over] = piece
    if len(piece) < len(labels) and step.varies(labels):
        count = len(labels) // max(len(piece), 1)
        even = stride == 1 and len(labels) % max(len(piece), 1) == 0 and begin % max(len(piece), 1) == 0
        if even and 1 < count <= TIED_BLOCKS:
            # Halves, thirds, … stay such parts, if forward computes the bounds from the size.
            step.unite(np.tile(piece, count), labels)
            step.demand(len(piece), piece)
            step.assume(labels)
        elif stride != 1:
            step.freeze(labels, "takes every so many channels")
        else:
            # What lies between a bound and the end that it is counted from cannot change.
            start, stop = step.arg("start") or 0, step.arg("end")
            step.freeze(labels[:begin] if start >= 0 else labels[begin:], "a slice with fixed bounds")
            if stop is not None and stop < len(labels):
                step.freeze(labels[:end] if stop >= 0 else labels[end:], "a slice with fixed bounds")
    return dims


def narrow(step: Step) -> Dims:
    dims, over = step.input, step.arg("dim")
    begin, length = step.arg("start"), step.arg("length")
    if length < len(dims[over]):
        step.freeze(dims[over], "a slice with fixed bounds")
    dims[over] = dims[over][begin : begin + length]
    return dims


def select(step: Step) -> Dims:
    dims = step.input
    step.pick(dims.pop(step.arg("dim")))
    return dims


def index_select(step: Step) -> Dims:
    dims, over = step.input, step.arg("dim")
    step.pick(dims[over])
    dims[over] = np.full(step.shape[over], FIXED)
    return dims


def index(step: Step) -> Dims:
    """`x[…, table, …]`: the dimensions that are indexed are replaced by those of the tables."""
    dims, tables = step.input, list(step.arg("indices"))
    places = [place for place, table in enumerate(tables) if table is not None]
    for place in places:
        step.pick(dims[place])
    count = len(step.shape) - (len(dims) - len(places))
    adjacent = places == list(range(places[0], places[0] + len(places)))
    before = [dim for place, dim in enumerate(dims) if place not in places and (not adjacent or place < places[0])]
    after = [dim for place, dim in enumerate(dims) if place not in places and adjacent and place > places[0]]
    if not adjacent:
        before, after = [], before
    return [*before, *fixed(step.shape[len(before) : len(before) + count]), *after]


def pick_unknown(step: Step) -> Dims:
    for node in step.tensors():
        for dim in step.dims(node):
            step.freeze(dim, "takes channels by position")
    return made(step.shape)


def roll(step: Step) -> Dims:
    dims, over = step.input, step.arg("dims")
    for place in over or range(len(dims)):
        step.freeze(dims[place], "moves channels to other positions")
    return dims


def flip(step: Step) -> Dims:
    dims = step.input
    for place in step.arg("dims"):
        dims[place] = dims[place][::-1]
    return dims


def pad(step: Step) -> Dims:
    """New channels of zeros can be removed like others, where an attribute says how many they are."""
    dims, amounts = step.input, step.arg("pad", step.arg("padding"))
    for pair in range(len(amounts) // 2):
        place = len(dims) - 1 - pair
        before, after = amounts[2 * pair], amounts[2 * pair + 1]
        if (before, after) == (0, 0):
            continue
        if not step.varies(dims[place]):
            dims[place] = np.full(step.shape[place], FIXED)
            continue
        if before < 0 or after < 0 or step.arg("mode", "constant") != "constant":
            step.freeze(dims[place], "crops or mirrors channels")
            dims[place] = np.full(step.shape[place], MADE)
            continue
        left = step.labels.fresh(before)
        right = left if before == after else step.labels.fresh(after)
        for amount, new in ((before, left), (after, right)):
            if amount == 0:
                continue
            if amount == 1 or not step.attribute_like(amount):
                step.freeze(new, "a number of padded channels that no attribute holds")
            step.demand(amount, new)
            step.assume(new)
        dims[place] = np.concatenate([left, dims[place], right])
    return dims


def pixel_shuffle(step: Step) -> Dims:
    """(…, C r r, H, W) to (…, C, H r, W r), and back."""
    *batch, channels, height, width = step.input
    for dim in (height, width):
        step.freeze(dim, "resamples along channels")
    *_, new_height, new_width = fixed(step.shape)
    if step.name == "pixel_unshuffle":
        factor = step.arg("downscale_factor")
        return [*batch, np.repeat(channels, factor**2), new_height, new_width]
    places = step.arg("upscale_factor") ** 2
    # Only whole sets of r r channels can go, which is the case where no place within them varies.
    table = channels.reshape(-1, places)
    step.unite(np.broadcast_to(table[:, :1], table.shape), table)
    return [*batch, table[:, 0], new_height, new_width]


def unfold(step: Step) -> Dims:
    """Patches as columns: (N, C, H, W) to (N, C k k, L)."""
    dims, kernel = step.input, prod(step.arg("kernel_size"))
    for dim in dims[-2:]:
        step.freeze(dim, "resamples along channels")
    return [*dims[:-3], np.repeat(dims[-3], kernel), *fixed(step.shape[-1:])]


def glu(step: Step) -> Dims:
    dims, over = step.input, step.arg("dim", -1)
    first, second = np.split(dims[over], 2)
    step.unite(first, second)
    dims[over] = first
    return dims


def getitem(step: Step) -> Any:
    return step.record.values[step.node.args[0]][step.node.args[1]]  # type: ignore[index]


def rules(rule: Callable[[Step], Any], *names: str) -> dict[str, Callable[[Step], Any]]:
    """One rule for several operations, whose names are separated by spaces."""
    return dict.fromkeys(" ".join(names).split(), rule)


SHAPE_RULES: dict[str, Callable[[Step], Any]] = {
    **rules(view, "view reshape _unsafe_view flatten unflatten ravel view_as reshape_as"),
    **rules(permute, "permute"),
    **rules(transpose, "transpose t swapaxes swapdims numpy_T"),
    **rules(movedim, "movedim"),
    **rules(squeeze, "squeeze"),
    **rules(unsqueeze, "unsqueeze"),
    **rules(expand, "expand expand_as"),
    **rules(repeat, "repeat tile"),
    **rules(repeat_interleave, "repeat_interleave"),
    **rules(cat, "cat concat concatenate"),
    **rules(stack, "stack"),
    **rules(cut, "split split_with_sizes chunk tensor_split"),
    **rules(unbind, "unbind"),
    **rules(slice_, "slice"),
    **rules(narrow, "narrow"),
    **rules(select, "select"),
    **rules(index_select, "index_select"),
    **rules(index, "index"),
    **rules(roll, "roll"),
    **rules(flip, "flip"),
    **rules(pad, "pad constant_pad_nd"),
    **rules(pixel_shuffle, "pixel_shuffle pixel_unshuffle"),
    **rules(unfold, "im2col"),
    **rules(glu, "glu"),
    **rules(getitem, "getitem"),
}
