"""What can be known of a training before it starts: a mistake that stops every candidate is told once, and at once."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nasplat.core.errors import NasplatError, nearest
from nasplat.core.experiment import Score, Train
from nasplat.core.user_function import load_function
from nasplat.data.augment import compose
from nasplat.data.pretexts import PRETEXT_NAMES
from nasplat.data.tasks import check_augmentations
from nasplat.training.evaluate import METRIC_ARGUMENTS
from nasplat.training.multi_task import MultiTask
from nasplat.training.multi_task_metrics import METRICS_OF
from nasplat.training.objectives import make_objective

if TYPE_CHECKING:
    from nasplat.data.datasets import Dataset


def check(dataset: Dataset, train: Train, score: Score) -> None:
    """Whether these images can be trained on and judged in this way.

    Raises:
        NasplatError: an objective, an augmentation or a metric that does not exist or cannot be called; labels are
            needed where there are none.
    """
    compose(train.augment or ())
    named = (*score.maximise, *score.minimise)
    for name in named:
        if ":" in name:
            load_function(name, "metric", METRIC_ARGUMENTS)
    if dataset.tasks:
        _check_tasks(dataset, train, score)
        return
    objective = make_objective(train, dataset.problem, len(dataset.train))
    labelled = dataset.train.labels is not None
    if objective.needs_labels and not labelled:
        raise NasplatError(
            f"objective {train.objective} needs labels, and these data have none",
            "use objective: simclr or memory_bank, or data with labels",
        )
    if score.probe is not None and ":" in score.probe:
        load_function(score.probe, "probe", METRIC_ARGUMENTS)
    elif not labelled and (score.probe is not None or "accuracy" in named):
        raise NasplatError(
            "score: accuracy needs labels, and these images have none",
            'name a metric of your own: score: {maximise: ["my_module:my_metric"]}, and leave out probe',
        )


def _check_tasks(dataset: Dataset, train: Train, score: Score) -> None:
    if train.objective != "supervised":
        raise NasplatError(
            f"objective {train.objective} trains for one task, and there are {len(dataset.tasks)}",
            f"use objective: supervised; tasks without labels are {', '.join(PRETEXT_NAMES)}, among data.tasks",
        )
    for name in ("mixup", "auxiliary", "label_smoothing"):
        if getattr(train, name):
            raise NasplatError(f"{name} is for one classification, not for several tasks", f"use {name}: 0")
    if score.probe is not None:
        raise NasplatError("several tasks are judged by their own heads, not by a probe", "leave out score.probe")
    check_augmentations(dataset.tasks, train.augment or ())
    MultiTask(dataset.tasks, dataset.problem.input_shape, train.weighting, train.weighting_options)
    known = [*(f"{task.name}.{metric}" for task in dataset.tasks for metric in METRICS_OF[task.kind])]
    for name in (*score.maximise, *score.minimise):
        if name == "accuracy" or ("." in name and ":" not in name and name not in known):
            raise NasplatError(
                f"score: there is no metric {name!r}",
                f"{nearest(name, known)}there are delta_m, {', '.join(known)}",
            )
