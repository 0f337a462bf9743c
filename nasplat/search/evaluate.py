"""The evaluation of one candidate: stages that get dearer, each of which may drop it and says why."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nasplat.artifacts.run_directory import TrialFolder, short
from nasplat.core.architecture import Architecture, canonical_json
from nasplat.core.errors import NasplatError
from nasplat.core.experiment import Data, Experiment
from nasplat.core.space import SearchSpace
from nasplat.search.constraints import describe, excess, violations
from nasplat.search.records import OnProgress, Record, TrialSpec
from nasplat.search.screening import PREDICTOR, dropped
from nasplat.search.weights import WEIGHTS, score, started

SCREENING_IMAGES = 32

if TYPE_CHECKING:
    import torch
    from torch import nn

    from nasplat.data.datasets import Dataset
    from nasplat.data.loader import Batch
    from nasplat.training.distributed import Shard


def evaluate(spec: TrialSpec, on_progress: OnProgress) -> Record:
    """Scores one candidate; see `train_and_judge`."""
    experiment = Experiment.model_validate(spec.experiment)
    return train_and_judge(spec, experiment, load_data(experiment.data), on_progress)


def train_and_judge(
    spec: TrialSpec, experiment: Experiment, dataset: Dataset, on_progress: OnProgress, shard: Shard | None = None
) -> Record:
    """Costs, constraints, training, score. Leaves the weights in the trial's folder.

    The metrics are `macs`, `params` and `peak_bytes`; what the score section asks for (`accuracy`, `latency` in
    milliseconds, a user's own); `loss` of the last epoch and `train_seconds`.

    Args:
        spec: of the trial.
        experiment: of the spec, with its space as plain data.
        dataset: to train on, and on whose validation images to judge.
        on_progress: gets the fields of `nasplat.training.loop.Progress`.
        shard: of a network that several processes train; only the first of them judges it.

    Raises:
        TrialFailed: training diverged.
        Infeasible: the memory does not suffice.
        NasplatError: something that concerns every candidate.
    """
    from nasplat.training.devices import memory_guard, resolve_device, set_threads
    from nasplat.training.distributed import ALONE
    from nasplat.training.evaluate import judge
    from nasplat.training.fit import fit, objective_of

    shard = shard or ALONE
    set_threads(spec.threads)
    device = resolve_device(spec.device)
    space = load_space_of(experiment, dataset)
    architecture = Architecture.from_json(spec.architecture)
    folder = TrialFolder(Path(spec.directory), spec.number, short(architecture.digest))

    metrics = dict(space.known(architecture))
    against = refused(metrics, experiment)
    if against is not None:
        return against

    network = build(space, architecture, spec.seed)
    by = experiment.search.screen.by if experiment.search.screen is not None else PREDICTOR
    if experiment.weights is not None and by != WEIGHTS:
        network = started(experiment, space, architecture, dataset, device)
    if by != PREDICTOR:
        if by == WEIGHTS:
            metrics[by] = score(experiment, space, architecture, dataset, device)
        else:
            metrics[by] = _screening_score(by, network.to(device), dataset, spec.seed)
        if spec.threshold is not None and metrics[by] < spec.threshold:
            return Record("screened", metrics, dropped(by, metrics[by], spec.threshold))
    original, kept = space.original(architecture) or (None, None)
    with memory_guard("preparing the objective"):
        objective = objective_of(experiment.train, dataset, network, device, original, kept)
    trained = fit(
        network,
        dataset,
        experiment.train,
        objective=objective,
        device=device,
        seed=spec.seed,
        resident=experiment.data.resident,
        checkpoint=folder.checkpoint,
        on_progress=lambda progress: on_progress(asdict(progress)),
        until=spec.until,
        shard=shard,
    )
    if shard.rank:
        return Record("complete", metrics)
    metrics["train_seconds"] = trained.seconds
    if trained.losses:
        metrics["loss"] = trained.losses[-1]

    metrics |= judge(network, dataset, experiment.score, device, seed=spec.seed)
    know_all(metrics, experiment)
    if spec.until < 1:
        return Record("complete", metrics)  # a constraint on what training tells is for the end of it
    against = refused(metrics, experiment)
    if against is not None:
        return against
    _save(network, architecture, spec, folder)
    return Record("complete", metrics)


def warm_up() -> None:
    """Imports what an evaluation needs; a worker process does it before its first trial."""
    import nasplat.data.datasets
    import nasplat.spaces.families
    import nasplat.training.evaluate
    import nasplat.training.fit  # noqa: F401


def load_data(data: Data) -> Dataset:
    """The data set of an experiment, read once a process, unless it was given to this one."""
    key = data_key(data)
    return _given.get(key) or _load_data(key)


def give_data(key: str, dataset: Dataset) -> None:
    """Lets this process use a data set that another one has read. See `data_key`."""
    _given[key] = dataset


def data_key(data: Data) -> str:
    """What a data set is known by."""
    return canonical_json(data.model_dump(mode="json"))


_given: dict[str, Dataset] = {}


@lru_cache(maxsize=1)
def _load_data(data: str) -> Dataset:
    from nasplat.data.datasets import load_dataset

    return load_dataset(Data.model_validate_json(data))


def load_space_of(experiment: Experiment, dataset: Dataset) -> SearchSpace:
    """The space of an experiment, bound to the problem of its data; made once a process."""
    problem = canonical_json(dataset.problem.to_json())
    space = experiment.space if isinstance(experiment.space, str) else canonical_json(experiment.space)
    return _load_space(space, isinstance(experiment.space, str), problem)


@lru_cache(maxsize=1)
def _load_space(space: str, is_path: bool, problem: str) -> SearchSpace:
    import json

    from nasplat.core.problem import Problem
    from nasplat.spaces.families import load_space

    return load_space(space if is_path else json.loads(space), Problem.from_json(json.loads(problem)))


def build(space: SearchSpace, architecture: Architecture, seed: int) -> nn.Module:
    """The network of an architecture, initialised from a seed; torch's default generator is left as it was."""
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return space.build(architecture)


def zero_cost_batch(dataset: Dataset, device: torch.device, seed: int) -> Batch:
    """The training images, not augmented, on which a candidate is scored without training."""
    import torch

    from nasplat.data.loader import Loader

    size = min(SCREENING_IMAGES, len(dataset.train))
    loader = Loader(
        dataset.train, batch_size=size, device=device, mean=dataset.mean, std=dataset.std, augment=(), resident="auto"
    )
    return next(iter(loader.epoch(torch.Generator().manual_seed(seed % 2**63))))


def _screening_score(by: str, network: nn.Module, dataset: Dataset, seed: int) -> float:
    from nasplat.training.zero_cost import zero_cost_scores

    batch = zero_cost_batch(dataset, next(network.parameters()).device, seed)
    return zero_cost_scores(network, batch.views[0], batch.labels, [by])[by]


def refused(metrics: Mapping[str, float], experiment: Experiment) -> Record | None:
    """The record of a candidate whose metrics violate a hard constraint; None where they meet all."""
    constraints = experiment.search.constraints
    found = violations(metrics, constraints)
    if excess(found) == 0:
        return None
    return Record("infeasible", dict(metrics), describe(metrics, found, constraints), violations=found)


def know_all(metrics: Mapping[str, float], experiment: Experiment) -> None:
    """A name that nothing measures is a mistake in the experiment, not a property of the candidate."""
    score = experiment.score
    places = {"score.maximise": score.maximise, "score.minimise": score.minimise}
    names: list[tuple[str, Any]] = [*places.items(), ("search.constraints", tuple(experiment.search.constraints))]
    for place, wanted in names:
        for name in wanted:
            if name not in metrics:
                raise NasplatError(
                    f"{place}: nothing measures {name!r}",
                    f"these were measured: {', '.join(metrics)}; latency is measured where score names it",
                )


def _save(network: nn.Module, architecture: Architecture, spec: TrialSpec, folder: TrialFolder) -> None:
    from nasplat.artifacts.weights import save_weights

    save_weights(network, folder.weights, {"digest": architecture.digest, "seed": str(spec.seed)})
