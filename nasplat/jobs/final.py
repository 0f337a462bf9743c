"""One network trained on the full schedule and scored on the test images: what `nasplat train` runs in every worker."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from nasplat.core.experiment import Experiment
from nasplat.jobs.experiment import final_train
from nasplat.search.records import OnProgress, Record, TrialSpec

if TYPE_CHECKING:
    from nasplat.data.datasets import Dataset


def final_experiment(experiment: Experiment) -> Experiment:
    """An experiment as `nasplat train` carries it out: the full schedule, the larger space, and no constraints.

    A network that is now trained with labels is judged by its own classifier, others as in the search.
    """
    assert isinstance(experiment.space, dict)
    train = final_train(experiment)
    probe = None if train.objective == "supervised" else experiment.score.probe or "linear"
    return experiment.model_copy(
        update={
            "space": {**experiment.space, **experiment.final.space},
            "train": train,
            "score": experiment.score.model_copy(update={"probe": probe}),
            "search": experiment.search.model_copy(update={"constraints": {}}),
        }
    )


def final_data(dataset: Dataset) -> Dataset:
    """Trained on training and validation images together; whatever is judged is judged on the test images."""
    from nasplat.data.joined import join

    return replace(dataset, train=join(dataset.train, dataset.validation), validation=dataset.test)


def evaluate(spec: TrialSpec, on_progress: OnProgress) -> Record:
    """As `nasplat.search.evaluate.evaluate` of a `final_experiment`, measured on the test images."""
    from nasplat.search.evaluate import load_data, train_and_judge

    experiment = Experiment.model_validate(spec.experiment)
    return train_and_judge(spec, experiment, final_data(load_data(experiment.data)), on_progress)
