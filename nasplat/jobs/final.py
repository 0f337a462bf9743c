"""One network trained on the full schedule and scored on the test images: what `nasplat train` runs in every worker."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

from nasplat.artifacts.run_directory import TrialFolder, short
from nasplat.core.architecture import Architecture
from nasplat.core.experiment import Experiment, Score
from nasplat.core.problem import Problem
from nasplat.core.space import SearchSpace
from nasplat.jobs.experiment import final_train
from nasplat.search.records import OnProgress, Record, TrialSpec

if TYPE_CHECKING:
    from nasplat.data.datasets import Dataset


def final_space(experiment: Experiment, problem: Problem) -> SearchSpace:
    """The space in which the found architectures are rebuilt, larger where `final.space` says so."""
    from nasplat.spaces.families import make_space

    assert isinstance(experiment.space, dict)
    return make_space({**experiment.space, **experiment.final.space}, problem)


def final_score(experiment: Experiment) -> Score:
    """A network that is now trained with labels is judged by its own classifier, others as in the search."""
    if final_train(experiment).objective == "supervised":
        return experiment.score.model_copy(update={"probe": None})
    return experiment.score


def final_data(dataset: Dataset) -> Dataset:
    """Trained on training and validation images together; whatever is judged is judged on the test images."""
    from nasplat.data.joined import join

    return replace(dataset, train=join(dataset.train, dataset.validation), validation=dataset.test)


def evaluate(spec: TrialSpec, on_progress: OnProgress) -> Record:
    """Trains one architecture of the final space. The metrics are those of the search, measured on the test images.

    Raises:
        TrialFailed: training diverged.
        Infeasible: the memory does not suffice.
        NasplatError: something that concerns every candidate.
    """
    from nasplat.artifacts.weights import save_weights
    from nasplat.search.evaluate import build, load_data
    from nasplat.training.devices import resolve_device, set_threads
    from nasplat.training.evaluate import judge
    from nasplat.training.fit import fit

    experiment = Experiment.model_validate(spec.experiment)
    set_threads(spec.threads)
    device = resolve_device(spec.device)
    dataset = final_data(load_data(experiment.data))
    space = final_space(experiment, dataset.problem)
    architecture = Architecture.from_json(spec.architecture)
    folder = TrialFolder(Path(spec.directory), spec.number, short(architecture.digest))
    network = build(space, architecture, spec.seed)
    trained = fit(
        network,
        dataset,
        final_train(experiment),
        device=device,
        seed=spec.seed,
        resident=experiment.data.resident,
        checkpoint=folder.checkpoint,
        on_progress=lambda progress: on_progress(asdict(progress)),
    )
    metrics = {**asdict(space.cost(architecture)), "train_seconds": trained.seconds}
    metrics |= judge(network, dataset, final_score(experiment), device, seed=spec.seed)
    save_weights(network, folder.weights, {"digest": architecture.digest, "seed": str(spec.seed)})
    folder.write_architecture(architecture)
    return Record("complete", metrics)
