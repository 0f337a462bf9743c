"""What proposes architectures before the strategy does, from a look at the network or from a training of its own.

Each producer leaves its architectures in the run directory, so that a resumed search does not produce them again. They
are evaluated like any other, and are landmarks beside the front.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from nasplat.artifacts.files import read_json, write_json
from nasplat.core.architecture import Architecture
from nasplat.core.errors import NasplatError
from nasplat.core.experiment import Bounds, Experiment
from nasplat.core.space import SearchSpace
from nasplat.search.constraints import excess, violations
from nasplat.search.options import AtLeast1, AtLeast2, Positive, make_one
from nasplat.spaces.pruning import PruningSpace

FOLDER = "produced"


@dataclass(frozen=True)
class Task:
    """What a producer works with.

    Args:
        experiment: with constraints in numbers.
        folder: its own, for what it wants to find again.
        say: is told in words what is going on.
    """

    experiment: Experiment
    space: SearchSpace
    folder: Path
    say: Callable[[str], None]

    def pruning_space(self, name: str) -> PruningSpace:
        if not isinstance(self.space, PruningSpace):
            raise NasplatError(
                f"search.produce: {name} is for networks that are pruned", "use a space of family pruning"
            )
        if not self.budget:
            raise NasplatError(
                f"search.produce: {name} needs a budget", "search.constraints: {macs: {max: 0.5}}, or params"
            )
        return self.space

    def too_much(self, architecture: Architecture) -> float:
        """By how much it exceeds the budget; 0 where it meets it."""
        return excess(violations(self.space.known(architecture), self.budget))

    @property
    def budget(self) -> dict[str, Bounds]:
        found = {name: one for name, one in self.experiment.search.constraints.items() if name in ("macs", "params")}
        return {name: Bounds(max=one.max) for name, one in found.items() if one.max is not None}


Produced = Mapping[str, Architecture]
Producer = Callable[[Task], Produced]


def produce(
    experiment: Experiment, space: SearchSpace, root: Path, say: Callable[[str], None]
) -> dict[str, Architecture]:
    """The architectures that `search.produce` asks for, by name.

    Raises:
        NasplatError: no such producer or option, or one that does not fit the space or its constraints.
    """
    found: dict[str, Architecture] = {}
    for name, options in experiment.search.produce.items():
        make = make_one(PRODUCERS, name, options, "producer", f"search.produce.{name}")
        folder = root / FOLDER / name
        kept = folder / "architectures.json"
        if kept.is_file():
            ones = {key: Architecture.from_json(one) for key, one in read_json(kept).items()}
        else:
            folder.mkdir(parents=True, exist_ok=True)
            ones = dict(make(Task(experiment, space, folder, say)))
            write_json(kept, {key: one.to_json() for key, one in ones.items()})
        found |= ones
    return found


def uniform() -> Producer:
    """One ratio for all groups, as large as the budget allows."""

    def find(task: Task) -> Produced:
        from nasplat.compression.sensitivity import filled

        space = task.pruning_space("uniform")
        ratios = {name: choice.options for name, choice in space.choices.items() if name.endswith(".ratio")}
        for place in range(max(map(len, ratios.values()))):
            architecture = space.canonical({name: options[place] for name, options in ratios.items()})
            if task.too_much(architecture) <= 0:
                return {"uniform": filled(space, architecture, task.too_much)}
        raise NasplatError("search.produce: no uniform ratio meets the budget", "allow smaller ratios, or ask for less")

    return find


def ranked() -> Producer:
    """The least important channels of all groups go first, by their group norm (as in `nasplat prune`)."""

    def find(task: Task) -> Produced:
        from nasplat.compression.importance import importance
        from nasplat.compression.selection import select
        from nasplat.compression.sensitivity import filled
        from nasplat.core.pruning import Importance

        space = task.pruning_space("ranked")
        original = space.original(space.canonical({}))
        if original is None:
            raise NasplatError("search.produce: ranked needs a trained network", "give the space a checkpoint")
        scores = {name: one.numpy() for name, one in importance(original[0], space.channels, Importance()).items()}
        groups = {name.removesuffix(".ratio") for name in space.choices if name.endswith(".ratio")}
        mine = {name: one for name, one in scores.items() if name in groups}
        limits = {name: one.max for name, one in task.budget.items() if one.max is not None}
        selection = select(space.channels, mine, limits)
        widths = {name: len(kept) for name, kept in selection.keep.items()}
        return {"ranked": filled(space, space.with_widths(widths), task.too_much)}

    return find


def sensitivity(images: AtLeast1 = 1024, points: AtLeast2 = 4) -> Producer:
    """Each group is cut alone, and the budget is met where that moved the network's answers least.

    Args:
        images: validation images that are looked at.
        points: ratios of every group that are measured.
    """

    def find(task: Task) -> Produced:
        from nasplat.compression.sensitivity import least_sensitive
        from nasplat.compression.sensitivity import sensitivity as measure
        from nasplat.search.evaluate import load_data
        from nasplat.training.devices import resolve_device, set_threads

        space = task.pruning_space("sensitivity")
        run = task.experiment.run
        set_threads(run.threads)
        kept = task.folder / "sensitivity.json"

        def on_found(table: dict[str, dict[str, float]], total: int) -> None:
            write_json(kept, table)
            task.say(f"sensitivity: {len(table)} of {total} choices")

        table = measure(
            space,
            load_data(task.experiment.data),
            device=resolve_device(run.device),
            images=images,
            points=points,
            found=read_json(kept) if kept.is_file() else None,
            on_found=on_found,
        )
        return {"sensitivity": least_sensitive(space, table, task.too_much)}

    return find


def transformable(
    epochs: AtLeast1 = 10,
    batch_size: AtLeast2 = 128,
    lr: Positive = 0.02,
    architecture_lr: Positive = 0.05,
    penalty: Positive = 2.0,
) -> Producer:
    """Widths and depths by gradients (Transformable Architecture Search, Dong & Yang, 2019).

    Args:
        epochs: over the training images.
        batch_size: of images.
        lr: of the weights.
        architecture_lr: of the probabilities of widths and depths.
        penalty: weight of the expected MACs.
    """

    def find(task: Task) -> Produced:
        from nasplat.compression.sensitivity import filled, shrunk
        from nasplat.compression.transformable import Settings, best_of, transformable_search
        from nasplat.search.evaluate import load_data
        from nasplat.training.devices import memory_guard, resolve_device, set_threads

        space = task.pruning_space("transformable")
        if "macs" not in task.budget:
            raise NasplatError(
                "search.produce: transformable needs a budget of macs", "constraints: {macs: {max: 0.5}}"
            )
        target = float(task.budget["macs"].max or 0)
        run = task.experiment.run
        set_threads(run.threads)
        whole = space.whole["macs"]
        with memory_guard("the transformable search"):
            snapshots = transformable_search(
                space,
                load_data(task.experiment.data),
                target,
                Settings(epochs, batch_size, lr, architecture_lr, penalty=penalty),
                device=resolve_device(run.device),
                seed=task.experiment.search.seed,
                checkpoint=task.folder / "progress",
                on_epoch=lambda one: task.say(
                    f"transformable: epoch {one.epoch + 1} of {epochs}, loss {one.loss:.3f}, "
                    f"{one.macs / whole:.0%} of the MACs"
                ),
            )
        best = best_of(snapshots, space, target)
        chosen = best.architecture if best is not None else snapshots[-1].architecture
        return {"transformable": filled(space, shrunk(space, chosen, task.too_much), task.too_much)}

    return find


PRODUCERS: dict[str, Callable[..., Producer]] = {
    "uniform": uniform,
    "ranked": ranked,
    "sensitivity": sensitivity,
    "transformable": transformable,
}
