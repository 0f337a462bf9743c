"""A small space and evaluations that cost nothing, for tests of the search itself. Imports no torch and no Optuna."""

from __future__ import annotations

import json
import math
import os
import signal
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from nasplat.core.architecture import Architecture
from nasplat.core.choice import Choice, Values
from nasplat.core.cost import Cost
from nasplat.core.errors import Infeasible, NasplatError, TrialFailed
from nasplat.core.experiment import Experiment
from nasplat.core.graph import OperationGraph
from nasplat.core.problem import classification
from nasplat.core.space import SearchSpace
from nasplat.search.history import Proposal
from nasplat.search.records import OnProgress, Record, TrialSpec

OPERATIONS = ("none", "skip", "conv", "pool")


class ToySpace(SearchSpace):
    """Layers with an operation and a width each. The width of a layer without an operation is a dead choice."""

    def __init__(
        self, layers: int = 4, widths: tuple[int, ...] = (8, 16, 32), operations: tuple[str, ...] = OPERATIONS
    ):
        self.problem = classification((1, 8, 8), 10)
        self.layers = layers
        self.choices = {}
        for layer in range(layers):
            self.choices[f"op{layer}"] = Choice(f"op{layer}", operations)
            self.choices[f"width{layer}"] = Choice(f"width{layer}", widths, ordered=True)
        self.identity = {"family": "toy", "layers": layers, "widths": list(widths), "operations": list(operations)}

    def settle(self, values: Values) -> Values:
        return {
            name: self.choices[name].default
            if name.startswith("width") and values["op" + name[5:]] == "none"
            else option
            for name, option in values.items()
        }

    def cost(self, architecture: Architecture) -> Cost:
        params = 10
        for layer in range(self.layers):
            width = int(architecture.values[f"width{layer}"])
            params += {"none": 0, "skip": 1, "conv": width * width, "pool": width}[
                str(architecture.values[f"op{layer}"])
            ]
        return Cost(64 * params, params, 1000 + params)

    def graph(self, architecture: Architecture) -> OperationGraph:
        return OperationGraph((), {})

    def build(self, architecture: Architecture) -> Any:
        return None


def accuracy(architecture: Architecture, seed: int) -> float:
    """Grows with the costs, with diminishing returns and a little noise from the seed."""
    values = architecture.values
    gain = {"none": 0.0, "skip": 0.3, "conv": 1.0, "pool": 0.5}
    layers = len(values) // 2
    total = sum(gain[str(values[f"op{i}"])] * math.log2(int(values[f"width{i}"])) for i in range(layers))
    return 1 - math.exp(-total / (3 * layers)) + 1e-3 * (seed % 97) / 97


def metrics(spec: TrialSpec, space: SearchSpace | None = None) -> dict[str, float]:
    architecture = Architecture.from_json(spec.architecture)
    space = space or ToySpace(len(architecture.values) // 2)
    cost = space.cost(architecture)
    return {
        "accuracy": accuracy(architecture, spec.seed),
        "macs": float(cost.macs),
        "params": float(cost.params),
        "peak_bytes": float(cost.peak_bytes),
    }


def quick(spec: TrialSpec, on_progress: OnProgress) -> Record:
    on_progress({"epoch": 1, "epochs": 1})
    return Record("complete", metrics(spec))


def slow(spec: TrialSpec, on_progress: OnProgress) -> Record:
    """A tenth of a second, in ten reports."""
    for step in range(10):
        time.sleep(0.01)
        on_progress({"step": step})
    return Record("complete", metrics(spec))


def eternal(spec: TrialSpec, on_progress: OnProgress) -> Record:
    """Never ends, where the architecture's first operation is none."""
    while spec.architecture["values"]["op0"] == "none":
        time.sleep(0.01)
        on_progress({})
    return quick(spec, on_progress)


def moody(spec: TrialSpec, on_progress: OnProgress) -> Record:
    """By its first operation: diverges, does not fit, raises, returns NaN, or works."""
    operation = spec.architecture["values"]["op0"]
    if operation == "none":
        raise TrialFailed("the loss became NaN in epoch 2")
    if operation == "skip":
        raise Infeasible("out of memory")
    if operation == "pool":
        return Record("complete", {**metrics(spec), "accuracy": math.nan})
    return quick(spec, on_progress)


def broken(spec: TrialSpec, on_progress: OnProgress) -> Record:
    raise ValueError("mistake in the user's code")


def no_data(spec: TrialSpec, on_progress: OnProgress) -> Record:
    raise NasplatError("the folder of images is gone", "mount it again")


def suicidal(spec: TrialSpec, on_progress: OnProgress) -> Record:
    """Is killed in the first attempt, and where the first operation is none in every one."""
    marker = Path(spec.directory) / "attempts"
    attempts = len(marker.read_text()) if marker.exists() else 0
    marker.write_text("x" * (attempts + 1))
    if attempts == 0 or spec.architecture["values"]["op0"] == "none":
        os.kill(os.getpid(), signal.SIGKILL)
    return quick(spec, on_progress)


def greedy(spec: TrialSpec, on_progress: OnProgress) -> Record:
    """Runs out of memory with less than a whole GPU where the first operation is conv, and always where it is none."""
    import ray

    share = ray.get_runtime_context().get_assigned_resources()["GPU"]
    if share < {"none": 2.0, "conv": 1.0}.get(spec.architecture["values"]["op0"], 0.5):
        raise Infeasible("out of memory while training")
    return Record("complete", {**metrics(spec), "gpus": float(share)})


def save_checkpoint(directory: Path, state: Mapping[str, Any]) -> None:
    temporary = directory / f".checkpoint.{os.getpid()}"
    temporary.write_text(json.dumps(state))
    temporary.replace(directory / "checkpoint.json")


def stepwise(spec: TrialSpec, on_progress: OnProgress) -> Record:
    """Three steps with a checkpoint after each; goes on from the checkpoint, and says where it began."""
    directory = Path(spec.directory)
    path = directory / "checkpoint.json"
    first = json.loads(path.read_text())["step"] if path.exists() else 0
    for step in range(first, math.ceil(3 * spec.until)):
        time.sleep(0.002)
        save_checkpoint(directory, {"step": step + 1})
        on_progress({"step": step})
    found = metrics(spec)
    found["accuracy"] *= 0.5 + 0.5 * spec.until
    return Record("complete", {**found, "resumed_at": float(first)})


def falling(spec: TrialSpec, on_progress: OnProgress) -> Record:
    """As `stepwise`, but killed after the second step of the first attempt."""
    directory = Path(spec.directory)
    if not (directory / "checkpoint.json").exists():
        save_checkpoint(directory, {"step": 2})
        os.kill(os.getpid(), signal.SIGKILL)
    return stepwise(spec, on_progress)


def experiment(strategy: str = "random", trials: int | None = 10, **sections: Any) -> Experiment:
    search = {"strategy": strategy, "trials": trials, **sections.pop("search", {})}
    return Experiment.model_validate({"name": "toy", "space": {"family": "toy"}, "search": search, **sections})


def table(history: Iterable[Proposal]) -> dict[str, dict[str, float]]:
    """What a search found: digest and metrics of every evaluated candidate."""
    return {one.digest: dict(one.metrics) for one in history if one.state == "complete"}


def proposals(history: Iterable[Proposal]) -> list[tuple[int, str, str]]:
    return [(one.number, one.digest, one.state) for one in history]
