"""What benchmark_ranking.py ranks, and by which weights: cells whose truth is known, and sources trained for them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import train_fashion_cells as truth

HERE = Path(__file__).resolve().parent
RUNS = HERE.parent / "runs" / "benchmark_ranking"
# Each source with its section of an experiment, and what its space has beside that of the truth.
SOURCES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "supernet": ({"source": "supernet", "train": {"epochs": 60}}, {}),
    "supernet of nested widths": (
        {"source": "supernet", "options": {"paths": 2}, "train": {"epochs": 30}},
        {"channels": [4, 6, 8]},
    ),
    "smash": ({"source": "smash", "train": {"epochs": 60}}, {}),
    "graph hypernetwork": ({"source": "graph_hypernetwork", "train": {"epochs": 12}}, {}),
}
FEW = 96  # validation images of the quick ranking, whose own statistics batch norm uses
ZERO_COST = ("naswot", "synflow", "jacob_cov", "snip", "grad_norm")
COSTS = ("macs", "params")
FOLDS = 5  # of the predictor: it is fitted to all folds but one, and judged on that
START_CELLS = 6  # that are trained from generated and from random weights
START_EPOCHS = (0, 1, 5)


@cache
def subject(shared: str, changes: str = "{}") -> tuple[Any, Any]:
    """The images, and the space of the truth with changes."""
    from nasplat.spaces.families import load_space

    dataset = truth.data(shared)
    return dataset, load_space({**truth.SPACE, **json.loads(changes)}, dataset.problem)


def cells(shared: str) -> list[Any]:
    """The cells of the truth, in the order of its table."""
    _, space = subject(shared)
    names = dict.fromkeys(row["cell"] for row in truth.table())
    known = {truth.name_of(one): one for one in truth.chosen(space, len(names))}
    return [known[name] for name in names]


def accuracies_of(split: str, seeds: Sequence[int]) -> np.ndarray:
    """What the cells reached when they were trained alone, `(seeds, N)`."""
    found = {(row["cell"], int(row["seed"])): float(row[split]) for row in truth.table()}
    names = dict.fromkeys(row["cell"] for row in truth.table())
    return np.array([[found[name, seed] for name in names] for seed in seeds])


def in_space(space: Any, cell: Any) -> Any:
    """The cell in a space that may have a choice of widths: at the full width."""
    widest = {"channels": truth.SPACE["channels"]} if "channels" in space.choices else {}
    return space.canonical({**cell.values, **widest})


def trained_source(name: str, seed: int, shared: str) -> tuple[Any, Any]:
    """A source and its space; it is trained where it was not."""
    from nasplat.core.experiment import Experiment
    from nasplat.search.weight_sources import read_source
    from nasplat.search.weights import with_weights_trained

    weights, changes = SOURCES[name]
    dataset, space = subject(shared, json.dumps(changes))
    experiment = Experiment.model_validate(
        {
            "space": {**truth.SPACE, **changes},
            "data": {"source": "fashion_mnist", "path": f"{shared}/fashion_mnist"},
            "train": truth.TRAIN,
            "weights": weights,
            "search": {"seed": seed},
            "run": {"device": "cpu", "threads": 1},
        }
    )
    folder = RUNS / f"{name.replace(' ', '-')}-{seed}"
    trained = with_weights_trained(experiment, space, folder, lambda text: print(text, flush=True), lambda: dataset)
    assert trained.weights is not None and trained.weights.file is not None
    return read_source(Path(trained.weights.file), space).eval(), space


def rank(source: Any, space: Any, architectures: Sequence[Any], shared: str, few: bool) -> list[tuple[float, float]]:
    """Accuracy and minus cross-entropy of each: on all validation images, batch norm measured on 512 training
    images; or on a few validation images, batch norm measured on these."""
    import torch
    from torch.nn import functional as F

    from nasplat.training.evaluate import evaluation_loader
    from nasplat.training.weight_source import calibration, predictions

    dataset, _ = subject(shared)
    cpu = torch.device("cpu")
    batches = list(evaluation_loader(dataset, "validation", cpu).ordered())
    images, labels = torch.cat([one.views[0] for one in batches]), torch.cat([one.labels for one in batches])
    if few:
        images, labels = images[:FEW], labels[:FEW]
    measured_on = [images] if few else calibration(dataset, cpu)
    shown = [images] if few else [one.views[0] for one in batches]
    found = []
    for outputs in predictions(source, space, architectures, shown, [] if few else measured_on):
        logits = torch.cat(list(outputs))
        right = (logits.argmax(1) == labels).double().mean().item()
        found.append((right, -F.cross_entropy(logits, labels).item()))
    return found
