"""The evaluation of a candidate by looking it up in a table of what was measured before."""

from __future__ import annotations

from functools import lru_cache

from nasplat.core.architecture import Architecture, canonical_json
from nasplat.core.experiment import Experiment
from nasplat.search.evaluate import know_all, refused
from nasplat.search.records import OnProgress, Record, TrialSpec
from nasplat.spaces.tabular import TabularSpace


def evaluate(spec: TrialSpec, on_progress: OnProgress) -> Record:
    """What the experiment's table says of a candidate; with `answer: run` the run that the candidate's seed picks.

    Raises:
        NasplatError: the table has no such metric.
    """
    experiment = Experiment.model_validate(spec.experiment)
    space = load_table(experiment)
    architecture = Architecture.from_json(spec.architecture)
    metrics = {**space.known(architecture), **space.measure(architecture, spec.seed)}
    know_all(metrics, experiment)
    return refused(metrics, experiment) or Record("complete", metrics)


def load_table(experiment: Experiment) -> TabularSpace:
    """The tabular space of an experiment, read once a process."""
    return _load_table(canonical_json(experiment.space))


@lru_cache(maxsize=1)
def _load_table(space: str) -> TabularSpace:
    import json

    from nasplat.core.problem import classification
    from nasplat.spaces.families import make_space

    # A table says itself what was learned.
    made = make_space(json.loads(space), classification((1, 1, 1), 1))
    assert isinstance(made, TabularSpace)
    return made
