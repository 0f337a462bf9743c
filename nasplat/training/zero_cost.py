"""Zero-cost scores: guesses from one batch, without training, at how well a network will do.

    scores = zero_cost_scores(network, images, labels, ["params", "synflow", "naswot"])

More is better for every score. They take any module, and know its rectifiers, batch norms and weights whether these are
modules or plain functions in its forward. Each works on a copy, so that the module stays as it is to the last bit.

As in the papers' own code, batch norm normalises by the batch, because the stored statistics of an untrained network
say nothing. Dropout and drop path are off. Weights are all parameters with two dimensions or more, frozen ones
included. Whether a score says anything in a space must be measured there, with parameters and MACs as the baselines
(Abdelfattah et al., Zero-Cost Proxies for Lightweight NAS, 2021): `nasplat.core.rank_correlation` does.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from nasplat.core.errors import NasplatError, TrialFailed, nearest
from nasplat.networks.counter import copy_to, count
from nasplat.training.devices import memory_guard, repeatable

# Names of torch's functions without underscores at their ends, so that `relu_` and `_threshold` are found as well.
_PIECEWISE = ("relu", "relu6", "hardtanh", "threshold", "leaky_relu", "rrelu", "prelu", "hardswish")
_SMOOTH = ("elu", "selu", "celu", "silu", "gelu", "mish", "softplus")
RECTIFIERS = frozenset((*_PIECEWISE, *_SMOOTH))
NORMS = frozenset(("batch_norm", "layer_norm", "group_norm", "instance_norm", "rms_norm", "local_response_norm"))


def params(network: nn.Module, images: Tensor, labels: Tensor | None = None) -> float:
    """The number of parameters, tied ones once."""
    return float(sum(parameter.numel() for parameter in network.parameters()))


def macs(network: nn.Module, images: Tensor, labels: Tensor | None = None) -> float:
    """Multiply-accumulates of one image, as `nasplat.networks.counter` counts them."""
    with _copied(network, images[:1]) as (copy, image):
        return float(count(copy, inputs=(image,)).macs)


def synflow(network: nn.Module, images: Tensor, labels: Tensor | None = None) -> float:
    """Logarithm of the synaptic flow, the sum of |w * dR/dw| over all weights (Tanaka et al., Pruning neural networks
    without any data by iteratively conserving synaptic flow, 2020; as a score: Abdelfattah et al., 2021).

    R is the sum of the outputs of the linear network with the absolute values of all parameters, for an image of ones;
    only the images' shape is used. Rectifiers and normalisation are the identity there: where all is positive a
    ReLU is that anyway, while a ReLU6 would cut the flow off and batch norm would scale it by what the batch holds.
    Gates (sigmoid) and attention (softmax) stay as they are. In float64; minus infinity where nothing flows.
    """
    # Apple's GPUs have no float64.
    device = "cpu" if images.device.type == "mps" else None
    with _copied(network, images[:1], torch.float64, device) as (copy, image):
        with torch.no_grad():
            for parameter in copy.parameters():
                parameter.abs_()
        with _Replaced(dict.fromkeys(RECTIFIERS | NORMS | {"log_softmax"}, _identity)):
            total = _sum(_outputs(copy, torch.ones_like(image)))
        weights = _weights(copy)
        gradients = _gradients(total, weights)
        flow = sum(float((w.detach() * g).abs().sum()) for w, g in zip(weights, gradients, strict=True))
    return math.log(flow) if flow > 0 else -math.inf if flow == 0 else math.nan


def jacob_cov(network: nn.Module, images: Tensor, labels: Tensor | None = None) -> float:
    """How differently a network reacts to different images (Mellor et al., Neural Architecture Search without Training,
    2020, first version).

    With J `(N, C * H * W)` the gradient of the sum of all outputs with respect to each image, and v the N eigenvalues
    of its rows' correlation matrix: -sum(log(v + k) + 1 / (v + k)), k = 1e-5. NaN where a row of J is constant.
    """
    with _copied(network, images) as (copy, batch):
        batch.requires_grad_()
        # A clone, because the first operation may work in place.
        [jacobian] = _gradients(_sum(_outputs(_normalising_by_batch(copy), batch.clone())), [batch])
    correlation = torch.corrcoef(jacobian.flatten(1).cpu().double())
    if not correlation.isfinite().all():
        return math.nan
    values = torch.linalg.eigvalsh(correlation) + 1e-5
    return -float((values.log() + 1 / values).sum())


def snip(network: nn.Module, images: Tensor, labels: Tensor | None = None) -> float:
    """How much the loss depends on the weights, the sum of |w * dL/dw| (Lee et al., SNIP: Single-shot Network Pruning
    based on Connection Sensitivity, 2019). L is the mean cross-entropy of the first output.
    """
    return sum(float((weight * gradient).abs().sum()) for weight, gradient in _loss_gradients(network, images, labels))


def grad_norm(network: nn.Module, images: Tensor, labels: Tensor | None = None) -> float:
    """Sum of the Euclidean norms of the weights' gradients, one norm a layer (Abdelfattah et al., 2021).

    L is the mean cross-entropy of the first output.
    """
    return sum(float(gradient.norm()) for _, gradient in _loss_gradients(network, images, labels))


def naswot(network: nn.Module, images: Tensor, labels: Tensor | None = None) -> float:
    """How well the rectifiers tell images apart (Mellor et al., Neural Architecture Search without Training, 2021).

    The code of an image says of each unit of each rectifier whether it is above 0 before it. The score is
    log |det K|, where K `(N, N)` is the number of units in which two codes agree. Minus infinity where K has no
    inverse: two codes are equal, or the network has no rectifier. Scores of different N cannot be compared.
    """
    agreements: list[Tensor] = []

    def add(function: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        before = args[0] if args else kwargs["input"]
        # Fewer or other rows are no images: weights that a network makes of weights, say.
        if before.dim() > 1 and len(before) % len(images) == 0:
            codes = (before > 0).reshape(len(images), -1).float()
            on = codes.sum(1)
            # Agreement is on in both plus off in both; all of these are whole numbers, and exact.
            agreements.append((codes.shape[1] - on[:, None] - on[None, :] + 2 * codes @ codes.T).cpu().double())
        return function(*args, **kwargs)

    with _copied(network, images) as (copy, batch), torch.no_grad(), _Replaced(dict.fromkeys(RECTIFIERS, add)):
        _outputs(_normalising_by_batch(copy), batch)
    if not agreements:
        return -math.inf
    values = torch.linalg.eigvalsh(torch.stack(agreements).sum(0))
    # Below this an eigenvalue is rounding, and its logarithm chance.
    smallest = len(images) * torch.finfo(torch.float64).eps * float(values[-1])
    return float(values.log().sum()) if float(values[0]) > smallest else -math.inf


# Every score: a function of the network, a batch of images `(N, C, H, W)` on its device, and labels `(N,)` or None.
ZERO_COST: dict[str, Callable[[nn.Module, Tensor, Tensor | None], float]] = {
    "params": params,
    "macs": macs,
    "synflow": synflow,
    "jacob_cov": jacob_cov,
    "snip": snip,
    "grad_norm": grad_norm,
    "naswot": naswot,
}

NEED_LABELS = frozenset({"snip", "grad_norm"})

# What a score that is no number says about a network.
_REASONS = {
    "synflow": "no weights but zeros connect its input and output, or so many layers do that float64 overflows",
    "jacob_cov": "the gradient of an image is constant or not finite, as where no output depends on the images",
    "naswot": "its rectifiers (ReLU and the like) do not tell all images apart, or it has none",
    "snip": "its loss or gradients are not finite",
    "grad_norm": "its loss or gradients are not finite",
}


def zero_cost_scores(
    network: nn.Module, images: Tensor, labels: Tensor | None, names: Iterable[str] = tuple(ZERO_COST)
) -> dict[str, float]:
    """Zero-cost scores of a network, more is better; the network is left exactly as it was.

    Args:
        network: any module of images; of several outputs all are summed, and the first is the one with the classes.
        images: `(N, C, H, W)`, normalised as for training, at least 2; they are moved to the network's device.
        labels: class indices `(N,)`, which only `snip` and `grad_norm` need; None without labels.
        names: of the scores in `ZERO_COST`.

    Raises:
        TrialFailed: a score is no finite number, which is the network's own fault; with the reason.
        Infeasible: the memory does not suffice.
        NasplatError: no such score, images or labels that cannot be used, or a network that cannot run on them.
    """
    chosen = list(names)
    _check(network, images, labels, chosen)
    device = _device(network, images)
    images = images.to(device)
    labels = None if labels is None else labels.to(device, torch.long)
    scores = {}
    for name in chosen:
        with memory_guard(f"computing the zero-cost score {name}"), repeatable(device, 0):
            scores[name] = ZERO_COST[name](network, images, labels)
        if not math.isfinite(scores[name]):
            raise TrialFailed(f"the network's zero-cost score {name!r} is {scores[name]}", _REASONS.get(name, ""))
    return scores


def _check(network: nn.Module, images: Tensor, labels: Tensor | None, names: Collection[str]) -> None:
    for name in names:
        if name not in ZERO_COST:
            advice = f"{nearest(name, ZERO_COST)}known are {', '.join(ZERO_COST)}"
            raise NasplatError(f"there is no zero-cost score {name!r}", advice)
        if name in NEED_LABELS and labels is None:
            free = ", ".join(one for one in ZERO_COST if one not in NEED_LABELS)
            raise NasplatError(f"the zero-cost score {name!r} needs labels", f"give labels, or choose from {free}")
    if images.dim() != 4 or len(images) < 2 or not images.is_floating_point():
        raise NasplatError(
            f"zero-cost scores cannot use images of shape {tuple(images.shape)} and type {images.dtype}",
            "give at least 2 images (N, C, H, W) of floating-point numbers, normalised as for training",
        )
    if not images.isfinite().all():
        raise NasplatError("the images for the zero-cost scores hold NaN or infinite values")
    if labels is not None and (labels.shape != (len(images),) or labels.is_floating_point() or labels.is_complex()):
        raise NasplatError(
            f"labels of shape {tuple(labels.shape)} and type {labels.dtype} do not fit {len(images)} images",
            "give one class index an image",
        )
    if any(tensor.is_meta for tensor in chain(network.parameters(), network.buffers())):
        raise NasplatError("the network is on the device meta, without weights", "build it on a real device")


def _device(network: nn.Module, images: Tensor) -> torch.device:
    return next((tensor.device for tensor in chain(network.parameters(), network.buffers())), images.device)


@contextmanager
def _copied(
    network: nn.Module, images: Tensor, dtype: torch.dtype | None = None, device: str | None = None
) -> Iterator[tuple[nn.Module, Tensor]]:
    """A copy in evaluation mode with nothing frozen and a copy of the images, where gradients are recorded.

    Whatever the caller has switched on (`no_grad`, inference mode, autocast) must not change a score. Halves are made
    single precision, in which sums over all weights neither overflow nor vanish.
    """
    place = torch.device(device or _device(network, images))
    with torch.inference_mode(False), torch.enable_grad(), torch.autocast(place.type, enabled=False):
        copy = copy_to(network, str(place))
        own = next((one.dtype for one in copy.parameters() if one.is_floating_point()), images.dtype)
        dtype = dtype or torch.promote_types(own, torch.float32)
        copy = copy.to(dtype)
        for parameter in copy.parameters():
            if parameter.is_floating_point():
                parameter.requires_grad_()
        yield copy, images.detach().to(place, dtype, copy=True)


def _normalising_by_batch(copy: nn.Module) -> nn.Module:
    for module in copy.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d):
            module.train()
    return copy


class _Replaced(TorchFunctionMode):
    """Calls others in place of some of torch's functions, inside modules and outside, while it is entered.

    Args:
        table: name -> what is called with the function, its positional and its keyword arguments.
    """

    def __init__(self, table: Mapping[str, Callable[..., Any]]) -> None:
        super().__init__()
        self._table = table

    def __torch_function__(
        self, function: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        other = self._table.get(getattr(function, "__name__", "").strip("_"))
        return other(function, args, kwargs or {}) if other else function(*args, **(kwargs or {}))


def _identity(function: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    return args[0] if args else kwargs["input"]


def _outputs(network: nn.Module, images: Tensor) -> list[Tensor]:
    """Every tensor of floating-point numbers that the network returns, in its order."""
    try:
        with memory_guard("running the network"):
            returned = network(images)
    except NasplatError:
        raise
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise NasplatError(
            f"{type(network).__name__} cannot run on images of shape {tuple(images.shape)}: {reason}"
        ) from error
    tensors = [leaf for leaf in tree_leaves(returned) if isinstance(leaf, Tensor) and leaf.is_floating_point()]
    if not tensors:
        raise NasplatError(
            f"{type(network).__name__} returns {type(returned).__name__}, in which there is no tensor",
            "zero-cost scores need a tensor, or a dict, list or tuple of tensors",
        )
    return tensors


def _sum(tensors: Iterable[Tensor]) -> Tensor:
    return torch.stack([tensor.sum() for tensor in tensors]).sum()


def _weights(copy: nn.Module) -> list[nn.Parameter]:
    return [one for one in copy.parameters() if one.dim() > 1 and one.is_floating_point()]


def _gradients(total: Tensor, of: list[Any]) -> tuple[Tensor, ...]:
    """Zeros where the total does not depend on a tensor."""
    if not total.requires_grad or not of:
        return tuple(torch.zeros_like(tensor) for tensor in of)
    return torch.autograd.grad(total, of, allow_unused=True, materialize_grads=True)


def _loss_gradients(network: nn.Module, images: Tensor, labels: Tensor | None) -> list[tuple[Tensor, Tensor]]:
    """Every weight with the gradient of the mean cross-entropy."""
    if labels is None:
        raise NasplatError("the score needs labels")
    with _copied(network, images) as (copy, batch):
        logits = _outputs(_normalising_by_batch(copy), batch)[0]
        if logits.dim() != 2 or len(logits) != len(labels):
            raise NasplatError(
                f"a loss needs class scores ({len(labels)}, classes), but the first output is {tuple(logits.shape)}",
                "leave snip and grad_norm out for this network",
            )
        if labels.min() < 0 or labels.max() >= logits.shape[1]:
            raise NasplatError(
                f"labels from {int(labels.min())} to {int(labels.max())} do not fit {logits.shape[1]} classes"
            )
        weights = _weights(copy)
        # A clone, because labels that were made in inference mode cannot be kept for the gradient.
        gradients = _gradients(F.cross_entropy(logits, labels.clone()), weights)
        return [(weight.detach(), gradient) for weight, gradient in zip(weights, gradients, strict=True)]
