"""One network trained on the full schedule and scored on the test images: what `nasplat train` runs in every worker."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from nasplat.core.errors import NasplatError
from nasplat.core.experiment import Experiment
from nasplat.jobs.experiment import final_train
from nasplat.search.records import OnProgress, Record, TrialSpec

if TYPE_CHECKING:
    from nasplat.data.datasets import Dataset
    from nasplat.training.distributed import Shard


def final_experiment(experiment: Experiment) -> Experiment:
    """An experiment as `nasplat train` carries it out: full schedule, larger space, fresh weights, no constraints.

    A network that is now trained with labels is judged by its own classifier, others as in the search.

    Raises:
        NasplatError: candidates had their weights from a source and were not trained, and no training is set here.
    """
    assert isinstance(experiment.space, dict)
    train = final_train(experiment)
    if train.epochs == 0 and experiment.weights is not None:
        raise NasplatError(
            f"the final training starts afresh, without the weights of the {experiment.weights.source}, and would last "
            "0 epochs",
            "give it a length: --set final.train.epochs=100; as they are, the networks are what nasplat export writes",
        )
    probe = None if train.objective == "supervised" else experiment.score.probe or "linear"
    return experiment.model_copy(
        update={
            "space": {**experiment.space, **experiment.final.space},
            "train": train,
            "score": experiment.score.model_copy(update={"probe": probe}),
            "search": experiment.search.model_copy(update={"constraints": {}, "screen": None}),
            "weights": None,
        }
    )


def final_data(dataset: Dataset) -> Dataset:
    """Trained on training and validation images together; whatever is judged is judged on the test images."""
    from nasplat.data.joined import join

    return replace(dataset, train=join(dataset.train, dataset.validation), validation=dataset.test)


def evaluate(spec: TrialSpec, on_progress: OnProgress) -> Record:
    """As `nasplat.search.evaluate.evaluate` of a `final_experiment`, measured on the test images.

    Trained by as many processes as `run.processes` says; see `nasplat.training.distributed`.
    """
    from nasplat.training.distributed import ALONE, launch, processes

    world = processes(Experiment.model_validate(spec.experiment).run.processes, spec.device)
    if world == 1:
        return Record(**evaluate_shard(spec.to_json(), ALONE, on_progress))
    return Record(**launch(f"{__name__}:evaluate_shard", spec.to_json(), world, on_progress))


def evaluate_shard(task: Mapping[str, Any], shard: Shard, report: OnProgress) -> dict[str, Any]:
    """The part of one of several processes; the record of the first is that of all.

    Args:
        task: a `TrialSpec` as plain data.
        shard: which of the processes this is.
        report: gets the fields of `nasplat.training.loop.Progress`.
    """
    from nasplat.search.evaluate import load_data, train_and_judge

    spec = TrialSpec(**task)
    experiment = Experiment.model_validate(spec.experiment)
    data = final_data(load_data(experiment.data))
    return train_and_judge(spec, experiment, data, report, shard).to_json()
