"""Searched ratios and distillation: ResNet-20 on CIFAR-10 to half and to 30 % of its MACs, beside torch-pruning.

    python experiments/benchmark_ratios.py [--shared ../shared/data] [--workers 2] [--seeds 3]

writes experiments/benchmark_ratios.md; needs `pip install torch-pruning`. Resumable: what was measured lies in
runs/benchmark_ratios.json, and searches in runs/benchmark_ratios.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import shutil
import statistics
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from importlib.metadata import version
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))
from benchmark_pruning import BUDGETS, MEAN, STD, THEIRS, TRAIN, by_torch_pruning, costs, images, trained  # noqa: E402

RUNS = HERE.parent / "runs"
KEPT, SEARCHES = RUNS / "benchmark_ratios.json", RUNS / "benchmark_ratios"
TABLE = SEARCHES / "sensitivity.json"
CHECKPOINT = RUNS / "resnet20_convolutions.safetensors"
SPACE = {
    "family": "pruning",
    "model": "resnet20_cifar:resnet20",
    "arguments": {"shortcut": "B"},
    "checkpoint": str(CHECKPOINT),
}
PIXELS = {"mean": MEAN, "std": STD}
TRIALS = 60
STUDENTS = 100
MEMBERS = 50
# Name -> what it changes in the experiment, and the trials. The seed of a search is that of its row, where they differ.
SEARCHED: dict[str, dict[str, Any]] = {
    "tpe": {"search": {"strategy": "tpe", "trials": TRIALS}},
    "evolution": {"search": {"strategy": "evolution", "trials": TRIALS}},
    "transformable": {
        "search": {"strategy": "random", "trials": 1},
        "produce": {"transformable": {"epochs": 8}},
    },
    "n2n": {
        "search": {"strategy": "n2n", "trials": STUDENTS, "options": {"cost": "macs"}},
        "data": {"train_size": 3000, "validation": 1 / 3},
        "train": {"epochs": 1, "lr": 0.02, "distill": {"weights": {"logit_mse": 1.0}}},
        "produce": {},
    },
}
ONE_SEARCH = ("n2n", "transformable")  # one a budget, whose network is fine-tuned with every seed
FIXED = ("uniform l1", "group norm", "sensitivity")
TAUGHT = {"weights": {"logits": 0.9}, "labels": 0.1, "temperature": 4.0}
Task = tuple[str, str, float, int]  # what, method, share of the MACs, seed


def searches(seed: int) -> Iterator[Task]:
    for share in BUDGETS:
        for name in SEARCHED:
            if seed == 0 or name not in ONE_SEARCH:
                yield "search", name, share, seed


def tunings(seed: int) -> Iterator[Task]:
    for share in BUDGETS:
        for method in (*FIXED, *SEARCHED, *THEIRS):
            yield "plain", method, share, seed
            yield "taught", method, share, seed
    yield "plain", "unpruned", 1.0, seed
    yield "taught", "unpruned", 1.0, seed


def stages(seeds: int) -> Iterator[list[Task]]:
    """Tasks that do not need each other's results, one list after the other."""
    for seed in range(seeds):
        yield list(searches(seed))
        yield list(tunings(seed))
    yield [("population", "pruning_population", BUDGETS[0], 0)]


def search(task: Task, shared: str) -> dict[str, Any]:
    """The best network of a search by its score on validation images, and what the search cost."""
    from nasplat.artifacts.run_directory import RunDirectory, create_run
    from nasplat.core.experiment import Experiment
    from nasplat.search.driver import run_search

    what, method, share, seed = task
    changes = SEARCHED.get(method, {})
    limits = {"min": share - 0.03, "max": share}  # or n2n, which is rewarded for it, would go far below the budget
    plain: dict[str, Any] = {
        "name": "it",
        "space": SPACE,
        "data": {
            "path": f"{shared}/cifar10/cifar10_30k_jpeg.npz",
            "train_size": 6000,
            "validation": 1 / 6,
            **PIXELS,
        },
        "train": {"epochs": 0},
        "score": {"maximise": ["accuracy"], "minimise": []},
        "search": {
            "seed": seed,
            "constraints": {"macs": limits},
            "produce": {"uniform": {}, "ranked": {}, "sensitivity": {}},
        },
        "run": {"device": "cpu"},
    }
    if what == "population":
        plain["data"] |= {"train_size": 5000, "validation": 0.4}
        plain["train"] = {**TRAIN, "steps": 16}
        options = {"members": MEMBERS}
        plain["search"] = {
            "strategy": "pruning_population",
            "trials": 2 * MEMBERS,
            "options": options,
            "constraints": {"macs": {"min": share - 0.01, "max": share}},
            "seed": seed,
        }
    plain["data"] |= changes.get("data", {})
    plain["train"] = changes.get("train", plain["train"])
    plain["search"] |= changes.get("search", {})
    if "produce" in changes:
        plain["search"]["produce"] = changes["produce"]
    experiment = Experiment.model_validate(plain)
    directory = SEARCHES / f"{method}-{share}-{seed}"
    resume = directory.exists()
    run = RunDirectory(directory) if resume else create_run(directory, experiment)
    # It does not depend on the budget or the seed, and is measured once.
    table = directory / "produced/sensitivity/sensitivity.json"
    if TABLE.exists() and "sensitivity" in plain["search"].get("produce", {}) and not table.exists():
        table.parent.mkdir(parents=True)
        shutil.copy(TABLE, table)
    begin = time.perf_counter()
    history = run_search(experiment, run, resume=resume).history
    if table.exists() and not TABLE.exists():
        shutil.copy(table, TABLE)
    complete = [one for one in history if one.state == "complete"]
    best = max(complete, key=lambda one: one.metrics["accuracy"])
    found: dict[str, Any] = {
        "values": dict(best.values),
        "accuracy": best.metrics["accuracy"],
        "from": best.landmark or method,
        "landmarks": {one.landmark: one.metrics["accuracy"] for one in complete if one.landmark},
        "sensitivity": next((dict(one.values) for one in complete if one.landmark == "sensitivity"), None),
        "evaluated": len(complete),
        "seconds": time.perf_counter() - begin,
    }
    if what == "population":
        found["members"] = [[one.metrics["accuracy"], one.metrics["macs"], one.metrics["params"]] for one in complete]
    return found


def tune(task: Task, shared: str, searched: dict[str, Any]) -> dict[str, Any]:
    import copy

    import torch

    from nasplat.compression.images import recalibrated, test_metrics
    from nasplat.core.experiment import Train
    from nasplat.training.fit import fit, objective_of

    cpu = torch.device("cpu")
    how, method, share, seed = task
    teacher = trained(shared, "B")
    network = pruned(method, share, seed, shared, searched)
    recalibrated(network, images(shared), cpu, seed)
    cut = test_metrics(network, images(shared, few=True), cpu)["accuracy"]
    begin = time.perf_counter()
    settings = Train.model_validate({**TRAIN, **({"distill": TAUGHT} if how == "taught" else {})})
    objective = objective_of(settings, images(shared), network, cpu, copy.deepcopy(teacher))
    fit(network, images(shared), settings, device=cpu, seed=seed, objective=objective)
    seconds = time.perf_counter() - begin
    after = test_metrics(network, images(shared), cpu)["accuracy"]
    return {"cut": cut, "after": after, "cost": costs(network), "seconds": seconds}


def pruned(method: str, share: float, seed: int, shared: str, searched: dict[str, Any]) -> Any:
    import copy

    import torch

    from nasplat.compression.prune import prune_network
    from nasplat.core.pruning import Pruning
    from nasplat.spaces.pruning import PruningSpace

    network = trained(shared, "B")
    if method == "unpruned":
        return copy.deepcopy(network)
    if method in THEIRS:
        return by_torch_pruning(network, share, method.endswith("global"))
    if method in ("uniform l1", "group norm"):
        importance = {"uniform l1": {"criterion": "l1", "scope": "local"}, "group norm": {"criterion": "group_norm"}}
        plain = {"importance": importance[method], "budget": {"macs": share}, "device": "cpu", "seed": seed}
        return prune_network(network, (torch.zeros(1, 3, 32, 32),), Pruning.model_validate(plain)).module
    parameters = {key: value for key, value in SPACE.items() if key != "family"}
    space = PruningSpace(images(shared).problem, **parameters)
    if method == "sensitivity":
        return space.build(space.canonical(searched[key_of(("search", "tpe", share, seed))]["sensitivity"]))
    seed = 0 if method in ONE_SEARCH else seed
    return space.build(space.canonical(searched[key_of(("search", method, share, seed))]["values"]))


def measure(task: Task, shared: str, found: dict[str, Any]) -> dict[str, Any]:
    import torch

    torch.set_num_threads(1)
    return search(task, shared) if task[0] in ("search", "population") else tune(task, shared, found)


def key_of(task: Task) -> str:
    return json.dumps(task)


def spread(values: list[float]) -> str:
    return f"{statistics.mean(values):.2f} ± {statistics.stdev(values):.2f}" if len(values) > 1 else f"{values[0]:.2f}"


def table(found: dict[str, Any], share: float) -> list[str]:
    rows = {}
    for method in ("unpruned", *FIXED, *SEARCHED, *THEIRS):
        ones = {
            how: [
                one
                for key, one in found.items()
                if json.loads(key)[:3] == [how, method, 1.0 if method == "unpruned" else share]
            ]
            for how in ("plain", "taught")
        }
        if all(ones.values()):
            rows[method] = ones
    lines = [
        "| ratios | MACs | params | cut | fine-tuned | and taught |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for method, ones in sorted(
        rows.items(), key=lambda row: -statistics.mean(one["after"] for one in row[1]["taught"])
    ):
        macs, params = (statistics.mean(one["cost"][place] for one in ones["plain"]) for place in (0, 1))
        cut = statistics.mean(100 * one["cut"] for one in ones["plain"])
        after = (spread([100 * one["after"] for one in ones[how]]) for how in ("plain", "taught"))
        lines.append(f"| {method} | {macs / 1e6:.2f} M | {params / 1e3:.0f} k | {cut:.2f} | {' | '.join(after)} |")
    return lines


def search_table(found: dict[str, Any]) -> list[str]:
    lines = [
        "| search | MACs | networks | seconds | best on validation | uniform | ranked | sensitivity | best is of |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name in SEARCHED:
        for share in BUDGETS:
            ones = [one for key, one in found.items() if json.loads(key)[:3] == ["search", name, share]]
            if not ones:
                continue
            marks = (
                f"{100 * statistics.mean(one['landmarks'][mark] for one in ones):.1f}"
                if mark in ones[0]["landmarks"]
                else ""
                for mark in ("uniform", "ranked", "sensitivity")
            )
            origins = ", ".join(sorted({one["from"] for one in ones}))
            lines.append(
                f"| {name} | {share:.0%} | {statistics.mean(one['evaluated'] for one in ones):.0f} | "
                f"{statistics.mean(one['seconds'] for one in ones):.0f} | "
                f"{spread([100 * one['accuracy'] for one in ones])} | {' | '.join(marks)} | {origins} |"
            )
    return lines


def population(found: dict[str, Any]) -> list[str]:
    import numpy as np

    from nasplat.compression.population import compare, error_distribution

    one = found.get(key_of(("population", "pruning_population", BUDGETS[0], 0)))
    if one is None:
        return []
    errors = [1 - row[0] for row in one["members"]]
    random, refined = errors[:MEMBERS], errors[MEMBERS:]
    at = np.quantile(errors, (0.05, 0.1, 0.25, 0.5, 0.75, 0.9))
    result = compare(refined, random)
    lines = [
        "## Network Pruning Spaces",
        "",
        f"{len(random)} random members of the space at 49–50 % of the MACs, then {len(refined)} of the refined space, "
        "each fine-tuned for 16 steps on 3,000 images and judged on 2,000. F(e) is the share of members whose error is "
        "below e.",
        "",
        "| error below | " + " | ".join(f"{100 * value:.1f} %" for value in at) + " |",
        "| --- |" + " --- |" * len(at),
    ]
    for name, ones in (("random", random), ("refined", refined)):
        lines.append(f"| {name} | " + " | ".join(f"{share:.2f}" for share in error_distribution(ones, at)) + " |")
    error = float(np.sqrt(np.var(random, ddof=1) / len(random) + np.var(refined, ddof=1) / len(refined)))
    better = "better" if result.area > 0 else "worse"
    lines += [
        "",
        f"Mean error {100 * np.mean(random):.2f} % (random) and {100 * np.mean(refined):.2f} % (refined): refined "
        f"members are {better} by {abs(100 * result.area):.2f} points on average, with a standard error of "
        f"{100 * error:.2f}; one of them beats a random one with a frequency of {result.dominance:.2f}; the refined "
        f"distribution is {'' if result.everywhere else 'not '}above everywhere.",
    ]
    return lines


def page(found: dict[str, Any], options: argparse.Namespace) -> str:
    machine = f"{platform.machine()}, {os.cpu_count()} cores, one thread each, Python {platform.python_version()}"
    versions = ", ".join(f"{name} {version(name)}" for name in ("torch", "optuna", "torch-pruning"))
    lines = [
        "# Searched ratios and distillation",
        "",
        f"`python experiments/benchmark_ratios.py --seeds {options.seeds}`",
        "",
        f"{machine}, {versions}.",
        "",
        "The network is the ResNet-20 of benchmark_pruning.md with convolutional shortcuts, which torch-pruning "
        "can analyse, on the same JPEG-coded images and with the same fine-tuning of 80 steps. `taught` has the "
        "unpruned network as teacher in the same fine-tuning: 0.9 of the loss from its soft labels at temperature "
        "4, 0.1 from the labels. Accuracies in percent on all 10,000 test images, mean and standard deviation "
        "over the seeds; `cut` is before fine-tuning, on 2,000 of them, with batch norm measured anew for all. "
        "Searches see training and validation images only: candidates inherit their weights, batch norm is "
        "measured anew on 2,048 images, and 1,000 others give the score. N2N trains its students on 2,000 images "
        "for one epoch; its network and the transformable one are searched once a budget.",
    ]
    for share in BUDGETS:
        lines += ["", f"## {share:.0%} of the MACs", "", *table(found, share)]
    lines += [
        "",
        "`transformable` and `n2n` were made for another setting, and both take several whole blocks out, where the "
        "other searches take none, or one at most: trained weights do not get over that in 80 steps. The relaxed "
        "network of the first trains weights of its own and hands over widths and depths alone, which the paper then "
        "trains from scratch for 300 epochs. The second scores each student after one epoch of 2,000 images, and has "
        "few students to learn from.",
        "",
        "## The searches",
        "",
        *search_table(found),
        "",
        *population(found),
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
    trained(options.shared, "B")  # once, for all
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(options.workers, mp_context=context) as pool:
        for tasks in stages(options.seeds):
            missing = [task for task in tasks if key_of(task) not in found]
            running = {pool.submit(measure, task, options.shared, found): task for task in missing}
            for done in as_completed(running):
                one = found[key_of(running[done])] = done.result()
                KEPT.write_text(json.dumps(found))
                told = {key: round(value, 4) for key, value in one.items() if isinstance(value, float)}
                print(*running[done], told, flush=True)
    (HERE / "benchmark_ratios.md").write_text(page(found, options))


if __name__ == "__main__":
    main()
