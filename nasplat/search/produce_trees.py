"""What proposes branching trees: the two ends, by hand, random ones of a cost, of task affinity, and by gradients."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import numpy as np
from pydantic import Field

from nasplat.core.architecture import Architecture
from nasplat.core.errors import NasplatError
from nasplat.search.options import AtLeast1, AtLeast2, Part, Positive
from nasplat.search.producer import Brief, Produced, Producer

_DRAWN = 2000


def shared() -> Producer:
    """All tasks on one backbone."""
    return lambda brief: {"shared": brief.branching_space("shared").shared()}


def separate() -> Producer:
    """A backbone for every task."""
    return lambda brief: {"separate": brief.branching_space("separate").separate()}


def hand(trees: dict[str, list[list[int]]]) -> Producer:
    """Trees that a person thought of.

    Args:
        trees: by name, for each layer a label for each task; tasks with equal labels share the layer.
    """

    def find(brief: Brief) -> Produced:
        space = brief.branching_space("hand")
        return {name: space.of_tree([tuple(layer) for layer in layers]) for name, layers in trees.items()}

    return find


def random_trees(macs: Positive | None = None, count: AtLeast1 = 5) -> Producer:
    """Trees drawn uniformly from all of them; what searched trees of equal cost must be better than.

    Args:
        macs: those whose MACs are nearest to this number are taken of many; up to 1 it is a share of the MACs of all
            separate. Default: whatever meets the constraints.
        count: of trees.
    """

    def find(brief: Brief) -> Produced:
        space = brief.branching_space("random_trees")
        rng = np.random.default_rng([brief.experiment.search.seed, 0])
        drawn = list(dict.fromkeys(space.sample(rng) for _ in range(_DRAWN)))
        drawn = [one for one in drawn if brief.too_much(one) <= 0]
        if not drawn:
            raise NasplatError("search.produce: random_trees finds no tree within the constraints", "allow more")
        if macs is not None:
            wanted = macs * space.cost(space.separate()).macs if macs <= 1 else macs
            drawn.sort(key=lambda one: abs(space.cost(one).macs - wanted))
        return {f"random {place}": one for place, one in enumerate(drawn[:count], 1)}

    return find


def affinity(images: AtLeast1 = 256, count: AtLeast1 = 5) -> Producer:
    """Tasks share where single-task networks see images alike (Vandenhende et al., 2020).

    Args:
        images: validation images on which representations are compared.
        count: of trees, spread over the front of cost against how much the tasks that share differ.
    """

    def find(brief: Brief) -> Produced:
        from nasplat.search.evaluate import load_data
        from nasplat.search.single_tasks import single_task
        from nasplat.training.devices import resolve_device, set_threads
        from nasplat.training.evaluate import evaluation_loader
        from nasplat.training.task_affinity import affine_trees, affinities, layer_outputs, probe_images

        space = brief.branching_space("affinity")
        run = brief.experiment.run
        set_threads(run.threads)
        dataset = load_data(brief.experiment.data)
        loader = evaluation_loader(dataset, "validation", resolve_device(run.device))
        seen = probe_images((batch.views[0] for batch in loader.ordered()), images)
        features = []
        for name in space.tasks:
            network, _ = single_task(brief.experiment, space, name, brief.root, brief.say)
            chain = list(network.alone(name))[:-1]  # without the head
            features.append(layer_outputs(chain, seen))
        trees = affine_trees(
            affinities(features),
            lambda tree: space.cost(space.of_tree(tree)).macs,
            lambda tree: brief.too_much(space.of_tree(tree)) <= 0,
        )
        if not trees:
            raise NasplatError("search.produce: affinity finds no tree within the constraints", "allow more")
        return {f"affinity {place}": one for place, one in enumerate(spread(list(map(space.of_tree, trees)), count), 1)}

    return find


Costs = Annotated[tuple[Annotated[float, Field(ge=0)], ...], Field(min_length=1)]


def bmtas(
    cost: Costs = (0.03, 0.1, 0.3, 1.0),
    epochs: AtLeast2 = 20,
    lr: Positive = 1e-3,
    choice_lr: Positive = 0.05,
    warmup: Part = 0.1,
    held: Part = 0.2,
) -> Producer:
    """Every task mixes copies of each layer, and the mixtures settle on a tree (Bruggemann et al., 2020).

    Args:
        cost: weights of the expected MACs; each is a search of its own, and together they are a front.
        epochs: over the training images, of each search.
        lr: of the weights.
        choice_lr: of the choices.
        warmup: share of the epochs in which nothing is chosen.
        held: share of the training images from which the choices learn; 0: in the same steps as the weights.
    """
    return _by_gradients("bmtas", cost, epochs=epochs, lr=lr, choice_lr=choice_lr, warmup=warmup, held=held)


def learning_to_branch(
    cost: Costs = (0.0, 0.1, 0.3, 1.0),
    epochs: AtLeast2 = 20,
    lr: Positive = 1e-3,
    choice_lr: Positive = 0.05,
    warmup: Part = 0.1,
    held: Part = 0.0,
) -> Producer:
    """Every branch chooses the one before it (Guo et al., 2020); the paper has no cost, which is `cost: [0]`.

    Args:
        cost, epochs, lr, choice_lr, warmup, held: as of `bmtas`.
    """
    return _by_gradients(
        "learning_to_branch", cost, epochs=epochs, lr=lr, choice_lr=choice_lr, warmup=warmup, held=held
    )


def _by_gradients(method: str, costs: Sequence[float], **settings: Any) -> Producer:
    def find(brief: Brief) -> Produced:
        from nasplat.search.evaluate import load_data
        from nasplat.training.branching_search import Settings, Snapshot, search_tree
        from nasplat.training.devices import memory_guard, resolve_device, set_threads

        space, run = brief.branching_space(method), brief.experiment.run
        set_threads(run.threads)
        found: dict[str, Architecture] = {}
        for cost in costs:
            name = f"{method} {cost:g}"

            def say(one: Snapshot, name: str = name) -> None:
                epochs = settings["epochs"]
                error = f" ± {one.error:.1%}" if one.error else ""  # of Monte Carlo, with many tasks
                share = f"{one.share:.0%}{error} separate"
                brief.say(f"{name}: epoch {one.epoch + 1} of {epochs}, loss {one.loss:.3f}, {share}")

            with memory_guard(method):
                snapshots = search_tree(
                    space,
                    load_data(brief.experiment.data),
                    method,
                    Settings(cost, **settings),
                    brief.experiment.train,
                    device=resolve_device(run.device),
                    seed=brief.experiment.search.seed,
                    checkpoint=brief.folder / f"cost-{cost:g}",
                    on_epoch=say,
                )
            tree = snapshots[-1].architecture
            if tree not in found.values() and brief.too_much(tree) <= 0:
                found[name] = tree
        if not found:
            raise NasplatError(
                f"search.produce: {method} finds no tree within the constraints", f"raise search.produce.{method}.cost"
            )
        return found

    return find


def spread(ones: Sequence[Architecture], count: int) -> list[Architecture]:
    """At most so many of a list, evenly spaced, the first and the last among them."""
    places = np.linspace(0, len(ones) - 1, min(count, len(ones))).round().astype(int)
    return [ones[place] for place in dict.fromkeys(places.tolist())]
