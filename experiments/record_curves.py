"""Records learning curves of real trials: validation accuracy after every epoch, MACs, parameters.

    python experiments/record_curves.py [--data digits_short digits fashion_mnist] [--images DIRECTORY]

writes a JSON file each into runs/curves. Random nasbench201 cells and the training of experiments/quickstart.yaml, no
two cells the same, with the learning rate scheduled over all epochs: 9 or 27 of 17 steps on digits, 9 of 62 steps on
Fashion-MNIST. Every candidate is trained once more, with another seed: what it is worth, apart from luck. DIRECTORY
holds the four IDX files of Fashion-MNIST. Resumable: what is there is not made again. One thread; about 5, 15 and 15
minutes.
"""

from __future__ import annotations

import argparse
import copy
import json
import platform
import tempfile
import time
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from nasplat.artifacts.files import write_json
from nasplat.core.architecture import Architecture
from nasplat.core.experiment import Data, Experiment
from nasplat.core.space import SearchSpace
from nasplat.data.datasets import Dataset, load_dataset
from nasplat.jobs.experiment import load_experiment
from nasplat.search.evaluate import build
from nasplat.search.seeds import candidate_seed
from nasplat.spaces.families import make_space
from nasplat.training.evaluate import accuracy, evaluation_loader
from nasplat.training.fit import fit

HERE = Path(__file__).resolve().parent
CPU = torch.device("cpu")
FASHION = {"source": "fashion_mnist", "train_size": 6_000, "validation": 1 / 3, "image_size": 14}
SETS: dict[str, tuple[int, int, dict[str, Any]]] = {  # candidates, epochs, images
    "digits_short": (81, 9, {"source": "digits"}),
    "digits": (81, 27, {"source": "digits"}),
    "fashion_mnist": (54, 9, FASHION),
}


def settled(network: nn.Module, dataset: Dataset, batches: int = 8) -> nn.Module:
    """A copy of a paused network whose batch norms average over 128 training images a batch as they see them now.

    While the learning rate is high their running averages lag behind the weights (Yu & Huang, Universally Slimmable
    Networks, 2019, re-estimate them for another reason). In random order: some data sets are sorted by class.
    """
    network = copy.deepcopy(network).eval()
    for norm in network.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.reset_running_stats()
            norm.momentum = None  # the plain average
            norm.train()
    loader = evaluation_loader(dataset, "train", CPU, batch_size=128)
    with torch.no_grad():
        for batch in islice(loader.epoch(torch.Generator().manual_seed(0)), batches):
            network(batch.views[0])
    return network.eval()


def curve(experiment: Experiment, dataset: Dataset, space: SearchSpace, one: Architecture) -> dict[str, list[float]]:
    """Accuracy on the validation images after each epoch, and up to a third of the budget that with settled batch
    norms, as at a rung: one training with as many pauses."""
    epochs = int(experiment.train.epochs or 0)
    seed = candidate_seed(experiment.search.seed, one.digest)
    network = build(space, one, seed)
    loader = evaluation_loader(dataset, "validation", CPU)
    plain, settled_too = [], []
    with tempfile.TemporaryDirectory() as folder:
        keep = Path(folder)
        for epoch in range(1, epochs + 1):
            fit(network, dataset, experiment.train, device=CPU, seed=seed, checkpoint=keep, until=epoch / epochs)
            plain.append(accuracy(network, loader, CPU))
            if 3 * epoch <= epochs:
                settled_too.append(accuracy(settled(network, dataset), loader, CPU))
    return {"accuracy": plain, "settled": settled_too}


def once_more(experiment: Experiment, dataset: Dataset, space: SearchSpace, one: Architecture) -> float:
    """Accuracy on the validation images after a full training with another seed."""
    seed = candidate_seed(experiment.search.seed, one.digest, 1)
    network = build(space, one, seed)
    fit(network, dataset, experiment.train, device=CPU, seed=seed)
    return accuracy(network, evaluation_loader(dataset, "validation", CPU), CPU)


def record(name: str, images: Path, file: Path) -> None:
    """Trains what is not in the file yet; the file is whole after every candidate."""
    count, epochs, data = SETS[name]
    experiment = load_experiment(HERE / "quickstart.yaml", [f"train.epochs={epochs}"])
    dataset = load_dataset(Data.model_validate(data if data["source"] == "digits" else {**data, "path": str(images)}))
    assert isinstance(experiment.space, dict)
    space = make_space(experiment.space, dataset.problem)
    curves: list[dict[str, Any]] = json.loads(file.read_text())["curves"] if file.exists() else []
    seen = {one["digest"] for one in curves}
    rng = np.random.default_rng(2020)
    wanted: dict[str, Architecture] = {}
    while len(wanted) < count:
        one = space.sample(rng)
        wanted.setdefault(one.digest, one)
    versions = f"Python {platform.python_version()}, torch {version('torch')}"
    head = {
        "data": data,
        "images": {"train": len(dataset.train), "validation": len(dataset.validation)},
        "space": experiment.space,
        "train": experiment.train.model_dump(mode="json"),
        "machine": f"{platform.machine()}, one thread; {versions}",
    }
    for one in wanted.values():
        if one.digest in seen:
            continue
        started = time.perf_counter()
        accuracies = curve(experiment, dataset, space, one)
        seconds = time.perf_counter() - started
        known = space.known(one)
        costs = {"macs": known["macs"], "params": known["params"]}
        curves.append({"digest": one.digest, **costs, **accuracies, "seconds": seconds})
        write_json(file, {**head, "curves": curves})
        print(name, len(curves), f"{seconds:.1f} s", known["macs"], accuracies["accuracy"][-1], flush=True)
    for found in curves:
        if "again" not in found:
            found["again"] = once_more(experiment, dataset, space, wanted[found["digest"]])
            write_json(file, {**head, "curves": curves})
            print(name, "again", found["accuracy"][-1], found["again"], flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", nargs="+", choices=SETS, default=list(SETS))
    parser.add_argument("--images", type=Path, default=HERE.parent / "../shared/data/fashion_mnist")
    parser.add_argument("--runs", type=Path, default=HERE.parent / "runs/curves")
    options = parser.parse_args()
    torch.set_num_threads(1)
    for name in options.data:
        record(name, options.images, options.runs / f"{name}.json")


if __name__ == "__main__":
    main()
