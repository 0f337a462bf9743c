"""Searches by gradients: a network's weights and the logits of its choices learn in turn, or together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from nasplat.core.errors import NasplatError
from nasplat.training import checkpoint as files

_CLIP = 5.0  # norm of gradients, of weights and of logits


class Alternation:
    """Two optimisers over one relaxed network, and where the search stands as a checkpoint.

    Args:
        network: whose parameters are the weights.
        logits: of the choices, by name; on the CPU, where they are drawn from without a wait for the device.
        weights, choices: optimisers of the one and of the other.
        generator: whatever the search draws comes from it.
        identity: of the search; a checkpoint of another one is refused.
        folder: that the search owns; None keeps nothing.
    """

    def __init__(
        self,
        network: nn.Module,
        logits: Mapping[str, Tensor],
        weights: torch.optim.Optimizer,
        choices: torch.optim.Optimizer,
        generator: torch.Generator,
        identity: str,
        folder: Path | None,
    ) -> None:
        self.network, self.logits = network, dict(logits)
        self.weights, self.choices = weights, choices
        self.generator, self.identity, self.folder = generator, identity, folder

    def step(self, loss: Tensor, *optimisers: torch.optim.Optimizer) -> None:
        """One step of the weights, of the choices, or of both; gradients of nothing else are worked out."""
        parts = [[one for group in optimiser.param_groups for one in group["params"]] for optimiser in optimisers]
        learning = list(chain.from_iterable(parts))
        for parameter, gradient in zip(learning, torch.autograd.grad(loss, learning, allow_unused=True), strict=True):
            parameter.grad = gradient
        for optimiser, part in zip(optimisers, parts, strict=True):
            nn.utils.clip_grad_norm_(part, _CLIP)
            optimiser.step()

    def save(self, record: Sequence[Mapping[str, Any]]) -> None:
        """Writes everything, with what the search wants to remember: one entry an epoch."""
        if self.folder is None:
            return
        tensors = files.module_tensors("network", self.network)
        tensors |= {f"logits.{name}": one for name, one in self.logits.items()}
        tensors |= files.optimiser_tensors("weights", self.weights) | files.optimiser_tensors("choices", self.choices)
        tensors["generator"] = self.generator.get_state()
        tensors["torch"] = torch.get_rng_state()  # of dropout in the network
        files.write(self.folder, tensors, {"identity": self.identity, "snapshots": list(record)})

    def restore(self) -> list[dict[str, Any]]:
        """Goes back to where `save` was; what it was given, which is empty at the beginning.

        Raises:
            NasplatError: the checkpoint is of another search.
        """
        found = None if self.folder is None else files.read(self.folder)
        if found is None:
            return []
        tensors, record = found
        if record["identity"] != self.identity:
            raise NasplatError(f"{self.folder} is of another search", "remove it, or choose another folder")
        prefix = "network."
        state = {name.removeprefix(prefix): one for name, one in tensors.items() if name.startswith(prefix)}
        self.network.load_state_dict(state)
        with torch.no_grad():
            for name, logits in self.logits.items():
                logits.copy_(tensors[f"logits.{name}"])
        files.restore_optimiser("weights", self.weights, tensors)
        files.restore_optimiser("choices", self.choices, tensors)
        self.generator.set_state(tensors["generator"])
        torch.set_rng_state(tensors["torch"])
        snapshots: list[dict[str, Any]] = record["snapshots"]
        return snapshots
