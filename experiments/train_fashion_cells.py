"""Cells trained alone on Fashion-MNIST: the truth that rankings by shared and generated weights are judged by.

    python experiments/train_fashion_cells.py [--shared ../shared/data] [--cells 100] [--seeds 2] [--workers 2]

appends to experiments/fashion_cells.csv, a row a training; what is there already is not trained again.
"""

from __future__ import annotations

import argparse
import csv
import multiprocessing
from concurrent.futures import ProcessPoolExecutor, as_completed
from functools import cache
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
TABLE = HERE / "fashion_cells.csv"
COLUMNS = ("cell", "seed", "macs", "params", "validation", "test", "seconds")
SPACE = {"family": "nasbench201", "cells": 1, "channels": 8}
TRAIN = {"epochs": 8, "batch_size": 128, "lr": 0.1, "augment": ["flip"], "label_smoothing": 0.1}
IMAGES = 10_000  # a fifth of them for validation
SIDE = 14  # of the images: a quarter of the work of 28, which is spent on epochs, for two seeds to agree
STRATA = 10


@cache
def data(shared: str) -> Any:
    from nasplat.core.experiment import Data
    from nasplat.data.datasets import load_dataset

    return load_dataset(
        Data(source="fashion_mnist", path=f"{shared}/fashion_mnist", train_size=IMAGES, image_size=SIDE)
    )


def space_of(dataset: Any) -> Any:
    from nasplat.spaces.families import load_space

    return load_space(SPACE, dataset.problem)


def chosen(space: Any, count: int) -> list[Any]:
    """Distinct cells, as many of each tenth of the space by MACs, in an order in which every first part is mixed."""
    import numpy as np

    rng = np.random.default_rng(0)
    pool: dict[str, Any] = {}
    while len(pool) < 2000:
        architecture = space.sample(rng)
        pool.setdefault(architecture.digest, architecture)
    ordered = sorted(pool.values(), key=lambda one: (space.cost(one).macs, one.digest))
    strata = np.array_split(np.arange(len(ordered)), STRATA)
    picked = [rng.permutation(stratum)[: -(-count // STRATA)] for stratum in strata]
    return [ordered[rows[turn]] for turn in range(-(-count // STRATA)) for rows in picked][:count]


def name_of(architecture: Any) -> str:
    return "|".join(str(option) for option in architecture.values.values())


def train(values: dict[str, Any], seed: int, shared: str) -> dict[str, Any]:
    """One training: a row of the table."""
    import torch

    from nasplat.core.experiment import Train
    from nasplat.search.evaluate import build
    from nasplat.training.evaluate import accuracy, evaluation_loader
    from nasplat.training.fit import fit

    torch.set_num_threads(1)
    dataset = data(shared)
    space = space_of(dataset)
    architecture = space.canonical(values)
    network, cpu = build(space, architecture, seed), torch.device("cpu")
    result = fit(network, dataset, Train(**TRAIN), device=cpu, seed=seed)
    cost = space.cost(architecture)
    scores = {split: accuracy(network, evaluation_loader(dataset, split, cpu), cpu) for split in ("validation", "test")}
    return {
        "cell": name_of(architecture),
        "seed": seed,
        "macs": cost.macs,
        "params": cost.params,
        "validation": f"{scores['validation']:.4f}",
        "test": f"{scores['test']:.4f}",
        "seconds": f"{result.seconds:.1f}",
    }


def table() -> list[dict[str, str]]:
    """What was trained so far."""
    if not TABLE.exists():
        return []
    with TABLE.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shared", default=str(HERE.parent / "../shared/data"))
    parser.add_argument("--cells", type=int, default=100)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    cells = chosen(space_of(data(options.shared)), options.cells)
    there = {(row["cell"], int(row["seed"])) for row in table()}
    todo = [(cell, seed) for cell in cells for seed in range(options.seeds) if (name_of(cell), seed) not in there]
    if not TABLE.exists():
        TABLE.write_text(",".join(COLUMNS) + "\n", encoding="utf-8")
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(options.workers, mp_context=context) as pool:
        running = [pool.submit(train, dict(cell.values), seed, options.shared) for cell, seed in todo]
        for number, done in enumerate(as_completed(running), 1):
            row = done.result()
            with TABLE.open("a", encoding="utf-8", newline="") as file:
                csv.DictWriter(file, COLUMNS, lineterminator="\n").writerow(row)
            print(f"{number} of {len(todo)}: {row['cell']} seed {row['seed']}: {row['test']}", flush=True)


if __name__ == "__main__":
    main()
