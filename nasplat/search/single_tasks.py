"""Networks of one task each, trained as the candidates are: what delta_m is relative to, and what affinity compares."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from nasplat.artifacts.files import read_json, write_json
from nasplat.core.errors import NasplatError
from nasplat.core.experiment import Experiment
from nasplat.core.space import SearchSpace
from nasplat.search.seeds import candidate_seed

if TYPE_CHECKING:
    from nasplat.data.datasets import Dataset
    from nasplat.networks.branched import BranchedNetwork
    from nasplat.spaces.branching import BranchingSpace

DELTA_M = "delta_m"
FOLDER = "single_tasks"

Say = Callable[[str], None]


def with_single_tasks(
    experiment: Experiment, space: SearchSpace, root: Path, say: Say, load: Callable[[], Dataset] | None = None
) -> Experiment:
    """The experiment with the metrics of single-task networks in `score.single_task`, where its score needs them.

    Args:
        root: the folder to keep the networks in.
        say: is told which network is trained.
        load: gives the data to train and to judge on; default: those of the experiment.

    Raises:
        NasplatError: a space that is not of family branching; see `nasplat.training.fit.fit`.
    """
    from nasplat.spaces.branching import BranchingSpace

    score = experiment.score
    if DELTA_M not in (*score.maximise, *score.minimise, *experiment.search.constraints) or score.single_task:
        return experiment
    if not isinstance(space, BranchingSpace):
        raise NasplatError(
            "score: delta_m compares with networks of one task, which a space of family branching has",
            "use family: branching, or another metric",
        )
    found: dict[str, float] = {}
    for name in space.tasks:
        found |= single_task(experiment, space, name, root, say, load)[1]
    return experiment.model_copy(update={"score": score.model_copy(update={"single_task": found})})


def single_task(
    experiment: Experiment,
    space: BranchingSpace,
    name: str,
    root: Path,
    say: Say,
    load: Callable[[], Dataset] | None = None,
) -> tuple[BranchedNetwork, dict[str, float]]:
    """A network that has the space's whole backbone for one task, trained with the settings of the experiment.

    What was trained in this folder before is not trained again.

    Returns:
        The network on its device, and its metrics by `task.metric`.
    """
    from nasplat.artifacts.weights import load_weights, save_weights
    from nasplat.data.tasks import only_tasks
    from nasplat.search.evaluate import build, load_data
    from nasplat.training.devices import resolve_device, set_threads
    from nasplat.training.evaluate import judge
    from nasplat.training.fit import fit

    place = space.tasks.index(name)
    metrics, weights = (root / FOLDER / f"{place}{suffix}" for suffix in (".json", ".safetensors"))
    device = resolve_device(experiment.run.device)
    architecture = space.separate()
    seed = candidate_seed(experiment.search.seed, architecture.digest, 0)
    network = build(space, architecture, seed).only([name])  # type: ignore[operator]
    if metrics.is_file():
        network.load_state_dict(load_weights(weights))
        return network.to(device), read_json(metrics)
    say(f"single-task networks: {name}, {place + 1} of {len(space.tasks)}")
    set_threads(experiment.run.threads)
    metrics.parent.mkdir(parents=True, exist_ok=True)
    dataset = only_tasks(load() if load else load_data(experiment.data), [name])
    fit(network, dataset, experiment.train, device=device, seed=seed, resident=experiment.data.resident)
    plain = experiment.score.model_copy(update={"maximise": (), "minimise": (), "probe": None})
    found = judge(network, dataset, plain, device, seed=seed)
    save_weights(network, weights, {"task": name})
    write_json(metrics, found)
    return network, found
