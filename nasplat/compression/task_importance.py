"""How important the channels of a network for several tasks are: what one task needs must not be cut for the others."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from nasplat.compression.importance import importance
from nasplat.compression.statistics import Batches, Loss
from nasplat.core.channel_graph import ChannelGraph
from nasplat.core.pruning import FROM_LOSS, Importance


def importance_to_all(
    model: nn.Module,
    graph: ChannelGraph,
    settings: Importance,
    losses: Mapping[str, Loss],
    batches: Batches,
    generator: torch.Generator | None = None,
) -> dict[str, Tensor]:
    """As `nasplat.compression.importance.importance`, of a network with one loss a task.

    A criterion that looks at the loss is asked once for each task. Losses of tasks have no common unit, so that each
    task's scores are divided by their mean over the channels that the task's output depends on. A channel then counts
    what the task that needs it most says: a trunk keeps a channel that only one of its tasks lives by, which the
    gradient of a sum of losses would drown in those of the others.

    Args:
        losses: by task.
        batches: a sequence, which is walked once a task.
    """
    if settings.criterion not in FROM_LOSS or len(losses) == 1:
        loss = next(iter(losses.values()))
        return importance(model, graph, settings, batches=batches, loss=loss, generator=generator)
    by_task = [
        _relative(importance(model, graph, settings, batches=batches, loss=loss, generator=generator))
        for loss in losses.values()
    ]
    return {name: torch.stack([scores[name] for scores in by_task if name in scores]).amax(0) for name in by_task[0]}


def _relative(scores: dict[str, Tensor]) -> dict[str, Tensor]:
    reached = [one for one in scores.values() if one.any()]
    if not reached:
        return scores
    mean = torch.cat(reached).abs().mean()
    return {name: one / mean for name, one in scores.items()}


def sum_of(losses: Mapping[str, Loss]) -> Callable[[Any, Any], Tensor]:
    """One loss: the sum of those of all tasks."""
    return lambda outputs, targets: torch.stack([loss(outputs, targets) for loss in losses.values()]).sum()
