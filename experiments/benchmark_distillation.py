"""Distillation alone: a small cell network taught by larger ones on Fashion-MNIST, each objective against labels alone.

    python experiments/benchmark_distillation.py [--shared ../shared/data] [--workers 2] [--seeds 3]

writes experiments/benchmark_distillation.md. Resumable: what was measured lies in runs/benchmark_distillation.json.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import statistics
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import replace
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
RUNS = HERE.parent / "runs"
KEPT, TEACHERS = RUNS / "benchmark_distillation.json", RUNS / "benchmark_distillation"
IMAGES = 6000
STUDENT, TEACHER = 4, 16  # channels of the first stage
TRAIN = {"epochs": 5, "lr": 0.1, "weight_decay": 5e-4, "augment": ("flip",)}
LONG = {**TRAIN, "epochs": 10}
GROUPS = ([0, 2, 4, 6], [1, 3, 8], [5, 7, 9])  # tops; trousers, dress and bag; shoes
LAYERS = {one: one for one in ("cells.0.edge_2_3.norm", "cells.2.edge_2_3.norm", "last.norm")}
SOFT = {"weights": {"logits": 0.9}, "labels": 0.1}
# Name -> the section distill, and its teachers: numbers, or the specialists. None is labels alone.
ROWS: dict[str, tuple[dict[str, Any] | None, tuple[Any, ...]]] = {
    "labels alone": (None, ()),
    "logits": (SOFT, (0,)),
    "logits, three teachers": (SOFT, (0, 1, 2)),
    "decoupled": ({"weights": {"decoupled": 0.1}, "labels": 1.0}, (0,)),
    "logit_mse": ({"weights": {"logit_mse": 1.0}, "labels": 0.1}, (0,)),
    "hint": ({"weights": {"logits": 0.9, "hint": 1.0}, "labels": 0.1, "pairs": LAYERS}, (0,)),
    "attention": ({"weights": {"logits": 0.9, "attention": 100.0}, "labels": 0.1, "pairs": LAYERS}, (0,)),
    "relation": ({"weights": {"logits": 0.9, "relation": 1.0}, "labels": 0.1, "pairs": LAYERS}, (0,)),
    "three teachers and a discriminator": (
        {"weights": {"logits": 1.0}, "temperature": 1.0, "discriminator": 0.1},
        (0, 1, 2),
    ),
    "specialists": ({"weights": {"specialists": 1.0}, "labels": 1.0}, ("s0", "s1", "s2")),
    "no labels: logits": ({"weights": {"logits": 1.0}}, (0,)),
    "no labels: logits, three teachers": ({"weights": {"logits": 1.0}}, (0, 1, 2)),
    "no labels: logit_mse": ({"weights": {"logit_mse": 1.0}}, (0,)),
    "trained student: labels again": (None, ()),
    "trained student: logits": ({"weights": {"logits": 1.0}}, (0,)),
    "trained student: the better of both": ({"weights": {"logits": 1.0}, "choice": "better"}, (0,)),
}
Task = tuple[str, int]


@cache
def dataset(shared: str) -> Any:
    from nasplat.core.experiment import Data
    from nasplat.data.datasets import load_dataset

    return load_dataset(Data(path=f"{shared}/fashion_mnist", train_size=IMAGES, validation=0.01))


def cell_network(problem: Any, channels: int, seed: int) -> Any:
    """The best cell of NAS-Bench-201, one a stage."""
    import torch

    from nasplat.spaces.known import known_network
    from nasplat.spaces.nasbench201 import NasBench201Space

    space = NasBench201Space(problem, cells=1, channels=channels)
    torch.manual_seed(seed)
    return space.build(known_network(space, "nasbench201_best"))


def teacher(shared: str, which: Any) -> Any:
    """A trained network: of all classes by a number, of one group of classes by `s0` and so on."""
    import torch

    from nasplat.artifacts.weights import load_into, save_weights
    from nasplat.core.experiment import Train
    from nasplat.core.problem import classification
    from nasplat.data.datasets import Split
    from nasplat.training.fit import fit

    data = dataset(shared)
    if isinstance(which, str):
        group = GROUPS[int(which[1:])]
        labels = torch.full((10,), -1)
        labels[group] = torch.arange(len(group))
        mine = torch.isin(data.train.labels, torch.tensor(group))
        split = Split(data.train.images[mine], labels[data.train.labels[mine]])
        problem = classification(data.problem.input_shape, len(group))
        data = replace(data, train=split, problem=problem, classes=tuple(data.classes[one] for one in group))
    seed = 100 + (int(which[1:]) + 10 if isinstance(which, str) else which)
    network = cell_network(data.problem, TEACHER, seed)
    kept = TEACHERS / f"teacher-{which}.safetensors"
    if kept.exists():
        load_into(network, kept)
    else:
        fit(network, data, Train.model_validate(LONG), device=torch.device("cpu"), seed=seed)
        TEACHERS.mkdir(parents=True, exist_ok=True)
        save_weights(network, kept)
    return network.eval()


def student(shared: str, seed: int, trained: bool) -> Any:
    import torch

    from nasplat.artifacts.weights import load_into, save_weights
    from nasplat.core.experiment import Train
    from nasplat.training.fit import fit

    network = cell_network(dataset(shared).problem, STUDENT, seed)
    if not trained:
        return network
    kept = TEACHERS / f"student-{seed}.safetensors"
    if kept.exists():
        load_into(network, kept)
    else:
        fit(network, dataset(shared), Train.model_validate(TRAIN), device=torch.device("cpu"), seed=seed)
        save_weights(network, kept)
    return network


def measure(task: Task, shared: str) -> dict[str, float]:
    import torch

    from nasplat.compression.images import test_metrics
    from nasplat.core.experiment import Train
    from nasplat.training.distillation import distillation
    from nasplat.training.fit import fit

    torch.set_num_threads(1)
    name, seed = task
    cpu = torch.device("cpu")
    if name.startswith("teacher"):
        which = name.removeprefix("teacher ")
        network = teacher(shared, which if which.startswith("s") else int(which))
        return {} if which.startswith("s") else test_metrics(network, dataset(shared), cpu)
    section, which = ROWS[name]
    plain: dict[str, Any] = dict(TRAIN)
    again = name.startswith("trained")
    if again:
        plain["lr"] = 0.02  # gently: it is to keep what it knows
    network, objective = student(shared, seed, again), None
    if section is not None:
        teachers = [teacher(shared, one) for one in which]
        named = [
            {"model": "a:b", **({"classes": GROUPS[int(one[1:])]} if isinstance(one, str) else {})} for one in which
        ]
        settings = Train.model_validate({**plain, "distill": {**section, "teachers": named}})
        objective = distillation(settings, dataset(shared), network, teachers=teachers, device=cpu)
    begin = time.perf_counter()
    fit(network, dataset(shared), Train.model_validate(plain), device=cpu, seed=seed, objective=objective)
    seconds = time.perf_counter() - begin
    return {**test_metrics(network, dataset(shared), cpu), "seconds": seconds}


def tasks(seeds: int) -> Iterator[Task]:
    for seed in range(seeds):
        for name in ROWS:
            yield name, seed


def page(found: dict[str, Any], options: argparse.Namespace) -> str:
    from nasplat.networks.counter import count

    machine = f"{platform.machine()}, {os.cpu_count()} cores, one thread each, Python {platform.python_version()}"
    problem = dataset(options.shared).problem
    small, large = (count(cell_network(problem, one, 0), problem.input_shape) for one in (STUDENT, TEACHER))
    teachers = ", ".join(f"{100 * found[json.dumps([f'teacher {one}', 0])]['accuracy']:.2f}" for one in range(3))
    lines = [
        "# Distillation on Fashion-MNIST",
        "",
        f"`python experiments/benchmark_distillation.py --seeds {options.seeds}`",
        "",
        f"{machine}, torch {version('torch')}.",
        "",
        f"Student and teachers are stacks of the best cell of NAS-Bench-201: {small.macs / 1e6:.2f} M MACs and "
        f"{small.params / 1e3:.0f} k parameters, taught by {large.macs / 1e6:.1f} M and {large.params / 1e3:.0f} k. "
        f"All see the same {len(dataset(options.shared).train):,} images: students for {TRAIN['epochs']} epochs, "
        f"teachers for {LONG['epochs']} (test accuracies {teachers}). Test accuracy in percent on all 10,000 test "
        "images, mean and standard deviation over the seeds, and the difference to the same student and seed trained "
        "on labels alone, with its standard error. Rows without `no labels` also see labels with weight 0.1 (1 for "
        "decoupled and specialists). A trained student has been through the first row and is trained as long again at "
        "a fifth of the learning rate; its difference is to its own second training on labels.",
        "",
        "| taught by | accuracy | difference | seconds |",
        "| --- | --- | --- | --- |",
    ]
    for name in ROWS:
        ones = [found[json.dumps([name, seed])] for seed in range(options.seeds)]
        base = "trained student: labels again" if name.startswith("trained") else "labels alone"
        gains = [100 * (one["accuracy"] - found[json.dumps([base, seed])]["accuracy"]) for seed, one in enumerate(ones)]
        accuracies = [100 * one["accuracy"] for one in ones]
        error = statistics.stdev(gains) / len(gains) ** 0.5
        difference = "" if name == base else f"{statistics.mean(gains):+.2f} ± {error:.2f}"
        seconds = statistics.mean(one["seconds"] for one in ones)
        lines.append(
            f"| {name} | {statistics.mean(accuracies):.2f} ± {statistics.stdev(accuracies):.2f} | {difference} | "
            f"{seconds:.0f} |"
        )
    lines += [
        "",
        "The weights of logit_mse (0.1) and attention (1000) were others by a factor of ten in a first run, below "
        "labels alone (66.46, 51.92 without labels, and 78.63); all others are as they were first written down. "
        "Seconds are those of a machine that was doing other things as well.",
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shared", default=str(HERE.parent / "../shared/data"))
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    RUNS.mkdir(exist_ok=True)
    found: dict[str, Any] = json.loads(KEPT.read_text()) if KEPT.exists() else {}
    first: list[Task] = [(f"teacher {one}", 0) for one in (0, 1, 2, "s0", "s1", "s2")]
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(options.workers, mp_context=context) as pool:
        for stage in (first, [("labels alone", seed) for seed in range(options.seeds)], list(tasks(options.seeds))):
            missing = [task for task in stage if json.dumps(task) not in found]
            running = {pool.submit(measure, task, options.shared): task for task in missing}
            for done in as_completed(running):
                found[json.dumps(running[done])] = done.result()
                KEPT.write_text(json.dumps(found))
                print(*running[done], {key: round(value, 4) for key, value in done.result().items()}, flush=True)
    (HERE / "benchmark_distillation.md").write_text(page(found, options))


if __name__ == "__main__":
    main()
