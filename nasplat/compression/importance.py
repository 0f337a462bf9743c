"""How important every channel of a network is, by the criterion of one's choice."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nasplat.compression.criteria import CRITERIA
from nasplat.compression.statistics import Batches, Loss, evidence_of
from nasplat.core.channel_graph import ChannelGraph
from nasplat.core.errors import NasplatError
from nasplat.core.pruning import Importance
from nasplat.networks.surgery import bare
from nasplat.training.features import evaluating


def cross_entropy(outputs: Any, labels: Tensor) -> Tensor:
    """Of logits in any type of numbers.

    Raises:
        NasplatError: the outputs are not one tensor.
    """
    if not isinstance(outputs, Tensor):
        raise NasplatError(
            f"the network answers with {type(outputs).__name__}, and cross entropy wants one tensor of logits",
            "give importance a loss of your own, or choose a criterion that needs none",
        )
    return F.cross_entropy(outputs if outputs.dtype == torch.float64 else outputs.float(), labels)


def importance(
    model: nn.Module,
    graph: ChannelGraph,
    settings: Importance,
    *,
    batches: Batches = (),
    loss: Loss = cross_entropy,
    generator: torch.Generator | None = None,
) -> dict[str, Tensor]:
    """Scores of all atoms by group, `(atoms,)`, float64 on the CPU: the higher, the more important.

    A criterion may say several things of a group, by the tensors that lose something with an atom or by the layers
    that read it; `settings.reduction` makes one of them, `settings.normalisation` makes groups comparable. Groups of
    which the criterion can say nothing are left out. Where `torch.distributed` is initialised, every process gives
    batches of its own and all get the same scores.

    Args:
        model: on any device, in any mode, wrapped or not; it runs in eval mode and is left exactly as it was.
        graph: of that model.
        settings: see `nasplat.core.pruning.Importance`; `images` and `scope` are the caller's business.
        batches: images and labels, for the criteria that look at images; None for labels where there are none, which
            taylor and hessian cannot do without. hessian draws one probe a batch.
        loss: of the model's output and the labels of one batch.
        generator: where random and hessian draw; default: one with seed 0. All processes give the same.

    Raises:
        NasplatError: batches or labels that the criterion needs are missing, a score is not finite, or the graph is of
            another model.
    """
    if not graph.groups:
        return {}
    generator = torch.Generator().manual_seed(0) if generator is None else generator
    inner = bare(model)
    evidence = evidence_of(inner, graph, batches, loss, generator)
    with _unchanged(inner):
        found = CRITERIA[settings.criterion](evidence)
    scores = {}
    for name, parts in found.items():
        if not parts:
            continue
        reduced = _REDUCTIONS[settings.reduction](torch.stack(list(parts)))
        if not reduced.isfinite().all():
            raise NasplatError(
                f"{settings.criterion} gives scores that are not finite in the group {name!r}",
                "look for NaN or infinity in the weights and the images, or choose another importance.criterion",
            )
        scores[name] = _NORMALISATIONS[settings.normalisation](reduced)
    return scores


_REDUCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "mean": lambda parts: parts.mean(0),
    "sum": lambda parts: parts.sum(0),
    "max": lambda parts: parts.amax(0),
    "product": lambda parts: parts.prod(0),
    "first": lambda parts: parts[0],
}


def _over(scores: Tensor, divisor: Tensor, least: Tensor | float = 0.0) -> Tensor:
    return scores / divisor if divisor > least else torch.zeros_like(scores)  # all are alike, and say nothing


_NORMALISATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "none": lambda scores: scores,
    "sum": lambda scores: _over(scores, scores.sum()),
    "mean": lambda scores: _over(scores, scores.mean()),
    "max": lambda scores: _over(scores, scores.max()),
    "standard": lambda scores: _over(scores - scores.mean(), scores.std(correction=0), 1e-12 * scores.abs().max()),
}


@contextmanager
def _unchanged(model: nn.Module) -> Iterator[None]:
    """Eval mode for the while; modes, buffers and the way attention is computed are then what they were."""
    buffers: Sequence[tuple[nn.Module, dict[str, Tensor | None], dict[str, Tensor]]] = [
        (module, dict(module._buffers), {name: one.clone() for name, one in module._buffers.items() if one is not None})
        for module in model.modules()
    ]
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # it has no gradients, and its steps cannot be seen
    try:
        with evaluating(model):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
        for module, own, copies in buffers:
            module._buffers.clear()
            module._buffers.update(own)
            with torch.no_grad():
                for name, copied in copies.items():
                    module._buffers[name].copy_(copied)  # type: ignore[union-attr]
