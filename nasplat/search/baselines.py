"""What a ranking by a source of weights is held against: networks trained alone, and scores without training.

What stands for the search as a whole lies in `nasplat.jobs.ranking`; these are the evaluations that its workers run.
"""

from __future__ import annotations

import shutil
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from nasplat.artifacts.run_directory import TrialFolder, short
from nasplat.core.architecture import Architecture
from nasplat.core.errors import NasplatError
from nasplat.core.experiment import Experiment
from nasplat.search.evaluate import build, load_data, load_space_of, train_and_judge, zero_cost_batch
from nasplat.search.records import OnProgress, Record, TrialSpec

if TYPE_CHECKING:
    from nasplat.data.datasets import Dataset

BASELINES = ("naswot", "synflow", "jacob_cov", "snip", "grad_norm")  # beside the costs, which are known


def alone(spec: TrialSpec, on_progress: OnProgress) -> Record:
    """As `nasplat.search.evaluate.evaluate`, with the baselines of the network before its training among the metrics.

    Its weights are not kept: they are of a check and of nothing else.
    """
    experiment = Experiment.model_validate(spec.experiment)
    dataset = load_data(experiment.data)
    record = train_and_judge(spec, experiment, dataset, on_progress)
    folder = TrialFolder(Path(spec.directory), spec.number, short(Architecture.from_json(spec.architecture).digest))
    folder.weights.unlink(missing_ok=True)
    shutil.rmtree(folder.checkpoint, ignore_errors=True)
    if record.state != "complete":
        return record
    return replace(record, metrics={**_baselines(spec, experiment, dataset), **record.metrics})


def untrained(spec: TrialSpec, on_progress: OnProgress) -> Record:
    """The baselines alone, of a network that the search trained."""
    experiment = Experiment.model_validate(spec.experiment)
    return Record("complete", _baselines(spec, experiment, load_data(experiment.data)))


def _baselines(spec: TrialSpec, experiment: Experiment, dataset: Dataset) -> dict[str, float]:
    """The zero-cost scores of a network as it is initialised; those that say nothing of it are left out."""
    from nasplat.training.devices import resolve_device, set_threads
    from nasplat.training.zero_cost import zero_cost_scores

    set_threads(spec.threads)
    device = resolve_device(spec.device)
    space = load_space_of(experiment, dataset)
    network = build(space, Architecture.from_json(spec.architecture), spec.seed).to(device)
    batch = zero_cost_batch(dataset, device, experiment.search.seed)  # one for all candidates
    scores: dict[str, float] = {}
    for name in BASELINES:
        with suppress(NasplatError):  # no labels, no rectifiers, no memory: another reason for each score
            scores |= zero_cost_scores(network, batch.views[0], batch.labels, [name])
    return scores
