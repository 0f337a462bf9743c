"""What each group of channels and each block of a network is worth alone, and the ratios that this suggests."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nasplat.core.architecture import Architecture
from nasplat.core.choice import Choice, Option
from nasplat.core.errors import NasplatError
from nasplat.spaces.pruning import PruningSpace
from nasplat.training.evaluate import evaluation_loader
from nasplat.training.recalibrate import recalibrate_on
from nasplat.training.teachers import answer

if TYPE_CHECKING:
    from nasplat.data.datasets import Dataset

Table = dict[str, dict[str, float]]  # choice -> option, as text -> divergence
BATCH = 512
CALIBRATION = 512


def sensitivity(
    space: PruningSpace,
    dataset: Dataset,
    *,
    device: torch.device,
    images: int = 1024,
    points: int = 4,
    found: Table | None = None,
    on_found: Callable[[Table, int], None] = lambda table, total: None,
) -> Table:
    """How far the network's answers move when one choice alone is made smaller.

    By choice and option the mean Kullback-Leibler divergence from the answers of the whole network to those of the
    smaller one, with batch norm measured anew, on validation images; labels are not looked at.

    Args:
        space: with a checkpoint.
        images: so many validation images at most.
        points: options of every choice that are measured, the smallest among them; those between are interpolated.
        found: what an earlier call has measured already.
        on_found: is told after every choice, with how many there are.

    Raises:
        NasplatError: the space has fresh weights, of which this says nothing.
    """
    if space.original(space.canonical({})) is None:
        raise NasplatError("sensitivity needs a trained network", "give the space a checkpoint")
    table = dict(found or {})
    loader = evaluation_loader(dataset, "validation", device, min(BATCH, images))
    batches = [batch.views[0] for batch in islice(loader.ordered(), max(1, images // BATCH))]
    network = space.build(space.canonical({}))
    recalibrate_on(network, dataset, device, 0, CALIBRATION)  # as the smaller ones, whose difference it is not
    whole = _answers(network, batches, device)
    for name, choice in space.choices.items():
        if name in table:
            continue
        row = {}
        for option in _measured(choice, points):
            network = space.build(space.canonical({name: option}))
            recalibrate_on(network, dataset, device, 0, CALIBRATION)
            own = _answers(network, batches, device)
            row[str(option)] = float(F.kl_div(own, whole, reduction="batchmean", log_target=True))
        table[name] = row
        on_found(table, len(space.choices))
    return table


def least_sensitive(space: PruningSpace, table: Table, too_much: Callable[[Architecture], float]) -> Architecture:
    """The architecture that greedy steps lead to: each where the least is lost for what is saved.

    Args:
        table: see `sensitivity`.
        too_much: by how much an architecture exceeds the budget; 0 or less where it meets it.

    Raises:
        NasplatError: the smallest architecture does not meet it.
    """
    curves = {name: _curve(choice, table[name]) for name, choice in space.choices.items()}
    places = dict.fromkeys(space.choices, 0)

    def at(places: Mapping[str, int]) -> Architecture:
        return space.canonical({name: space.choices[name].options[place] for name, place in places.items()})

    here = at(places)
    excess = too_much(here)
    while excess > 0:
        best: tuple[float, dict[str, int], Architecture, float] | None = None
        for name, place in places.items():
            # The next options that make a difference: several ratios may be one width.
            for step in range(place + 1, len(space.choices[name].options)):
                other = {**places, name: step}
                there = at(other)
                saved = excess - too_much(there)
                if saved > 0:
                    price = (curves[name][step] - curves[name][place]) / saved
                    if best is None or price < best[0]:
                        best = (price, other, there, excess - saved)
                    break
        if best is None:
            raise NasplatError("the budget cannot be met by this space", "allow smaller ratios, or ask for less")
        _, places, here, excess = best
    return filled(space, here, too_much)


def shrunk(space: PruningSpace, architecture: Architecture, too_much: Callable[[Architecture], float]) -> Architecture:
    """Takes from all groups in turn, one step each, until the budget is met.

    Raises:
        NasplatError: the smallest architecture does not meet it.
    """
    ratios = [name for name in space.choices if name.endswith(".ratio")]
    while too_much(architecture) > 0:
        before = architecture
        for name in ratios:
            options = space.choices[name].options
            place = options.index(architecture.values[name])
            less = [space.canonical({**architecture.values, name: option}) for option in options[place + 1 :]]
            architecture = next((one for one in less if one != architecture), architecture)
            if too_much(architecture) <= 0:
                break
        if architecture == before:
            raise NasplatError("the budget cannot be met by this space", "allow smaller ratios, or ask for less")
    return architecture


def filled(space: PruningSpace, architecture: Architecture, too_much: Callable[[Architecture], float]) -> Architecture:
    """Gives back ratios, one step after the other, as long as the budget holds."""
    open_ones = [name for name in space.choices if name.endswith(".ratio")]
    while open_ones:
        for name in list(open_ones):
            options = space.choices[name].options
            place = options.index(architecture.values[name])
            more = space.canonical({**architecture.values, name: options[max(0, place - 1)]})
            if more == architecture or too_much(more) > 0:
                open_ones.remove(name)
            else:
                architecture = more
    return architecture


def _measured(choice: Choice, points: int) -> list[Option]:
    options = choice.options
    places = np.unique(np.linspace(0, len(options) - 1, min(points + 1, len(options))).round().astype(int))[1:]
    return [options[place] for place in places]


def _curve(choice: Choice, row: Mapping[str, float]) -> np.ndarray:
    """Divergence of every option, 0 for the first; never less for a smaller one."""
    known = [0, *(place for place, option in enumerate(choice.options) if str(option) in row)]
    values = [0.0, *(row[str(choice.options[place])] for place in known[1:])]
    return np.maximum.accumulate(np.interp(np.arange(len(choice.options)), known, values))


@torch.no_grad()
def _answers(network: nn.Module, batches: list[Tensor], device: torch.device) -> Tensor:
    network.to(device).eval()
    return torch.cat([answer(network, images).log_softmax(1) for images in batches])
