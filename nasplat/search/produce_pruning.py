"""What proposes how to cut a network: uniformly, by importance, by sensitivity, or by gradients."""

from __future__ import annotations

from nasplat.artifacts.files import read_json, write_json
from nasplat.core.errors import NasplatError
from nasplat.search.options import AtLeast1, AtLeast2, Positive
from nasplat.search.producer import Brief, Produced, Producer


def uniform() -> Producer:
    """One ratio for all groups, as large as the budget allows."""

    def find(brief: Brief) -> Produced:
        from nasplat.compression.sensitivity import filled

        space = brief.pruning_space("uniform")
        ratios = {name: choice.options for name, choice in space.choices.items() if name.endswith(".ratio")}
        for place in range(max(map(len, ratios.values()))):
            architecture = space.canonical({name: options[place] for name, options in ratios.items()})
            if brief.too_much(architecture) <= 0:
                return {"uniform": filled(space, architecture, brief.too_much)}
        raise NasplatError("search.produce: no uniform ratio meets the budget", "allow smaller ratios, or ask for less")

    return find


def ranked() -> Producer:
    """The least important channels of all groups go first, by their group norm (as in `nasplat prune`)."""

    def find(brief: Brief) -> Produced:
        from nasplat.compression.importance import importance
        from nasplat.compression.selection import select
        from nasplat.compression.sensitivity import filled
        from nasplat.core.pruning import Importance

        space = brief.pruning_space("ranked")
        original = space.original(space.canonical({}))
        if original is None:
            raise NasplatError("search.produce: ranked needs a trained network", "give the space a checkpoint")
        scores = {name: one.numpy() for name, one in importance(original[0], space.channels, Importance()).items()}
        groups = {name.removesuffix(".ratio") for name in space.choices if name.endswith(".ratio")}
        mine = {name: one for name, one in scores.items() if name in groups}
        limits = {name: one.max for name, one in brief.budget.items() if one.max is not None}
        selection = select(space.channels, mine, limits)
        widths = {name: len(kept) for name, kept in selection.keep.items()}
        return {"ranked": filled(space, space.with_widths(widths), brief.too_much)}

    return find


def sensitivity(images: AtLeast1 = 1024, points: AtLeast2 = 4) -> Producer:
    """Each group is cut alone, and the budget is met where that moved the network's answers least.

    Args:
        images: validation images that are looked at.
        points: ratios of every group that are measured.
    """

    def find(brief: Brief) -> Produced:
        from nasplat.compression.sensitivity import least_sensitive
        from nasplat.compression.sensitivity import sensitivity as measure
        from nasplat.search.evaluate import load_data
        from nasplat.training.devices import resolve_device, set_threads

        space = brief.pruning_space("sensitivity")
        run = brief.experiment.run
        set_threads(run.threads)
        kept = brief.folder / "sensitivity.json"

        def on_found(table: dict[str, dict[str, float]], total: int) -> None:
            write_json(kept, table)
            brief.say(f"sensitivity: {len(table)} of {total} choices")

        table = measure(
            space,
            load_data(brief.experiment.data),
            device=resolve_device(run.device),
            images=images,
            points=points,
            found=read_json(kept) if kept.is_file() else None,
            on_found=on_found,
        )
        return {"sensitivity": least_sensitive(space, table, brief.too_much)}

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

    def find(brief: Brief) -> Produced:
        from nasplat.compression.sensitivity import filled, shrunk
        from nasplat.compression.transformable import Settings, best_of, transformable_search
        from nasplat.search.evaluate import load_data
        from nasplat.training.devices import memory_guard, resolve_device, set_threads

        space = brief.pruning_space("transformable")
        if "macs" not in brief.budget:
            raise NasplatError(
                "search.produce: transformable needs a budget of macs", "constraints: {macs: {max: 0.5}}"
            )
        target = float(brief.budget["macs"].max or 0)
        run = brief.experiment.run
        set_threads(run.threads)
        whole = space.whole["macs"]
        with memory_guard("the transformable search"):
            snapshots = transformable_search(
                space,
                load_data(brief.experiment.data),
                target,
                Settings(epochs, batch_size, lr, architecture_lr, penalty=penalty),
                device=resolve_device(run.device),
                seed=brief.experiment.search.seed,
                checkpoint=brief.folder / "progress",
                on_epoch=lambda one: brief.say(
                    f"transformable: epoch {one.epoch + 1} of {epochs}, loss {one.loss:.3f}, "
                    f"{one.macs / whole:.0%} of the MACs"
                ),
            )
        best = best_of(snapshots, space, target)
        chosen = best.architecture if best is not None else snapshots[-1].architecture
        return {"transformable": filled(space, shrunk(space, chosen, brief.too_much), brief.too_much)}

    return find
