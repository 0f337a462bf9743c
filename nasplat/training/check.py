"""What can be known of a training before it starts: a mistake that stops every candidate is told once, and at once."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nasplat.core.errors import NasplatError
from nasplat.core.experiment import Score, Train
from nasplat.core.user_function import load_function
from nasplat.data.augment import compose
from nasplat.training.evaluate import METRIC_ARGUMENTS
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
    objective = make_objective(train, dataset.problem, len(dataset.train))
    labelled = dataset.train.labels is not None
    if objective.needs_labels and not labelled:
        raise NasplatError(
            f"objective {train.objective} needs labels, and these data have none",
            "use objective: simclr or memory_bank, or data with labels",
        )
    named = (*score.maximise, *score.minimise)
    for name in named:
        if ":" in name:
            load_function(name, "metric", METRIC_ARGUMENTS)
    if score.probe is not None and ":" in score.probe:
        load_function(score.probe, "probe", METRIC_ARGUMENTS)
    elif not labelled and (score.probe is not None or "accuracy" in named):
        raise NasplatError(
            "score: accuracy needs labels, and these images have none",
            'name a metric of your own: score: {maximise: ["my_module:my_metric"]}, and leave out probe',
        )
