"""Training that makes channels unimportant, so that little is lost when they are removed: penalties on an objective."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from torch import Tensor, nn

from nasplat.core.channel_graph import Group
from nasplat.core.errors import NasplatError
from nasplat.networks.surgery import bare
from nasplat.training.objectives import Objective

if TYPE_CHECKING:
    from nasplat.data.loader import Batch

Kind = Literal["slimming", "group_lasso", "growing"]
Penalty = Callable[[Mapping[str, Tensor]], Tensor]


def slimming(model: nn.Module, groups: Sequence[Group]) -> Penalty:
    """Sum of the absolute scales of batch norm (Liu et al., Learning Efficient Convolutional Networks, 2017).

    Raises:
        NasplatError: no group has a batch norm with scales.
    """
    scales = {f"{path}.weight" for path, module in model.named_modules() if _is_norm(module)}
    names = sorted({member.tensor for group in groups for member in group.members} & scales)
    if not names:
        raise NasplatError(
            "slimming shrinks the scales of batch norm, and these channels have none", "use group_lasso or growing"
        )
    return lambda parameters: torch.stack([parameters[name].abs().sum() for name in names]).sum()


def group_lasso(model: nn.Module, groups: Sequence[Group]) -> Penalty:
    """Norms of all that a channel has, over the root of how many numbers that is, so that groups weigh alike.

    Wen et al., Learning Structured Sparsity in Deep Neural Networks, 2016, over coupled channels as in DepGraph (Fang
    et al., 2023).
    """
    squares = _Squares(model, groups)

    def penalty(parameters: Mapping[str, Tensor]) -> Tensor:
        pairs = zip(squares(parameters), squares.numbers, strict=True)
        return torch.cat([(total / number + 1e-12).sqrt() for total, number in pairs]).sum()

    return penalty


def growing(model: nn.Module, groups: Sequence[Group], keep: Mapping[str, Sequence[int]]) -> Penalty:
    """Half the sum of squares of all that will be removed.

    Wang et al., Neural Pruning via Growing Regularization, 2021. Its factor grows with every step, see `Sparse`.

    Args:
        keep: by group, the atoms that will stay.
    """
    doomed = [group for group in groups if group.name in keep]
    squares = _Squares(model, doomed)
    gone = []
    for group in doomed:
        mask = torch.ones(group.size)
        mask[list(keep[group.name])] = 0
        gone.append(mask)

    def penalty(parameters: Mapping[str, Tensor]) -> Tensor:
        totals = squares(parameters)
        for place, total in enumerate(totals):
            gone[place] = gone[place].to(total)
        return 0.5 * torch.cat([total * mask for total, mask in zip(totals, gone, strict=True)]).sum()

    return penalty


class Sparse:
    """An objective with a penalty on the network's channels.

    Args:
        objective: what is learned.
        penalty: of the network's parameters, by name.
        strength: factor of the penalty.
        grows: whether the factor is `strength` times the number of steps done; otherwise it is constant.
    """

    def __init__(self, objective: Objective, penalty: Penalty, strength: float, grows: bool = False) -> None:
        self.objective, self.penalty, self.strength, self.grows = objective, penalty, strength, grows
        self.views, self.needs_labels = objective.views, objective.needs_labels
        self.first_plain = getattr(objective, "first_plain", False)
        self.identity = f"{strength} {grows} {getattr(objective, 'identity', '')}"

    def module(self, network: nn.Module) -> nn.Module:
        return _Counting(self.objective.module(network))

    def loss(self, network: nn.Module, extra: nn.Module | None, batch: Batch, generator: torch.Generator) -> Tensor:
        counting = bare(extra) if extra is not None else None
        assert isinstance(counting, _Counting)
        loss = self.objective.loss(network, counting.inner, batch, generator)
        factor: float | Tensor = self.strength
        if self.grows:
            counting.steps += 1
            factor = self.strength * counting.steps
        return loss + factor * self.penalty(dict(bare(network).named_parameters()))


class _Counting(nn.Module):
    """The objective's own parts, and the number of steps, which a checkpoint must hold."""

    steps: Tensor

    def __init__(self, inner: nn.Module | None) -> None:
        super().__init__()
        self.inner = inner
        self.register_buffer("steps", torch.zeros(()))


class _Squares:
    """Sums of the squares of the weights of every atom, by group: `(atoms,)` each.

    Attributes:
        numbers: how many weights an atom has, by group.
    """

    def __init__(self, model: nn.Module, groups: Sequence[Group]) -> None:
        shapes = {name: tuple(value.shape) for name, value in model.named_parameters()}
        self._members = [
            [
                # Most members are whole dimensions in their order, and need no gather.
                (member.tensor, member.dim, None if _plain(member.indices) else torch.from_numpy(member.indices))
                for member in group.members
                if len(shapes.get(member.tensor, ())) > 1
            ]
            for group in groups
        ]
        sizes = {name: math.prod(shape) for name, shape in shapes.items()}
        self.numbers = [
            sum(
                member.indices.shape[1] * sizes[member.tensor] // shapes[member.tensor][member.dim]
                for member in group.members
                if len(shapes.get(member.tensor, ())) > 1
            )
            for group in groups
        ]

    def __call__(self, parameters: Mapping[str, Tensor]) -> list[Tensor]:
        totals = []
        for members in self._members:
            terms = []
            for place, (name, dim, indices) in enumerate(members):
                tensor = parameters[name]
                rows = tensor.square().sum([other for other in range(tensor.dim()) if other != dim])
                if indices is not None:
                    indices = indices.to(tensor.device)
                    members[place] = (name, dim, indices)
                    rows = rows[indices].sum(1)
                terms.append(rows)
            totals.append(torch.stack(terms).sum(0))
        return totals


def _plain(indices: np.ndarray) -> bool:
    return indices.shape[1] == 1 and bool((indices[:, 0] == np.arange(len(indices))).all())


def _is_norm(module: nn.Module) -> bool:
    return isinstance(module, nn.modules.batchnorm._BatchNorm) and module.affine


def sparse_objective(
    objective: Objective,
    kind: Kind,
    strength: float,
    model: nn.Module,
    groups: Sequence[Group],
    keep: Mapping[str, Sequence[int]],
) -> Sparse:
    """The objective with the penalty of that kind; `keep` is what `growing` will leave."""
    inner = bare(model)
    if kind == "slimming":
        return Sparse(objective, slimming(inner, groups), strength)
    if kind == "group_lasso":
        return Sparse(objective, group_lasso(inner, groups), strength)
    return Sparse(objective, growing(inner, groups, keep), strength, grows=True)
