"""Branching trees: do related tasks end up together, and what are found trees worth beside the baselines?

    python experiments/benchmark_branching.py [--shared ../shared/data] [--workers 2] [--related 10] [--seeds 3]

writes experiments/benchmark_branching.md. Resumable: runs lie in runs/benchmark_branching/.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import statistics
import time
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
RUNS = HERE.parent / "runs" / "benchmark_branching"
BACKBONE = {
    "family": "mbconv",
    "stem_channels": 8,
    "stages": [
        {"channels": 8, "stride": 2, "layers": 1},
        {"channels": 16, "stride": 2, "layers": 1},
        {"channels": 24, "stride": 1, "layers": 1},
        {"channels": 32, "stride": 2, "layers": 1},
    ],
    "operations": ["mb_k3_e3"],
    "last_channels": 0,
}
SPACE = {"family": "branching", "backbone": {"space": BACKBONE}}
TASKS = ["garment", "sleeves", "symmetry", "rotation"]
TRAIN = {"epochs": 4, "batch_size": 64, "lr": 0.2, "weighting": "uncertainty"}
TRIALS = 32  # baselines and trees by gradients included
GRADIENTS = {"epochs": 3, "choice_lr": 0.1, "held": 0.2}
PRODUCE = {
    "shared": {},
    "separate": {},
    "hand": {
        "trees": {
            # What a person would try: what a garment is together, and what needs places or turns apart.
            "by hand, late": [[0, 0, 0, 0], [0, 0, 0, 0], [0, 0, 2, 3], [0, 0, 2, 3]],
            "by hand, early": [[0, 0, 0, 0], [0, 0, 2, 3], [0, 0, 2, 3], [0, 0, 2, 3]],
        }
    },
    "random_trees": {"count": 4},
    "affinity": {"count": 3},
    "bmtas": {"cost": [0.3], **GRADIENTS},
    "learning_to_branch": {"cost": [0.0, 1.0], **GRADIENTS},
}
BASELINES = ("shared", "separate", "hand", "random_trees", "affinity")
FOUND = ("evolution", "bmtas", "learning_to_branch")

# Of the tasks with known relatedness: two groups of two. What follows was chosen on seeds below the first.
FIRST_SEED = 10
RELATED_BACKBONE = "benchmark_branching:plain"
RELATED_TRAIN = {"epochs": 10, "batch_size": 64, "lr": 0.1, "augment": []}
BUDGET = 0.35  # of the MACs of all separate; all shared has 0.25
RELATED_GRADIENTS: dict[str, dict[str, Any]] = {
    "bmtas": {"cost": 0.3, "epochs": 25},
    "learning_to_branch": {"cost": 0.0, "held": 0.0, "epochs": 25},  # as in its paper
}
RELATED_IMAGES = 6000
METHODS = ("affinity", "bmtas", "learning_to_branch")

Task = tuple[Any, ...]  # "fashion" and a seed, or "related", a seed and a method


def plain() -> Any:
    """Four convolutions, each a layer that may branch."""
    from torch import nn

    layers, channels = [], 1
    for width, stride in ((8, 2), (16, 1), (16, 2), (16, 1)):
        conv = nn.Conv2d(channels, width, 3, stride, padding=1, bias=False)
        layers.append(nn.Sequential(conv, nn.BatchNorm2d(width), nn.ReLU()))
        channels = width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 1))


def related(seed: int, method: str) -> dict[str, Any]:
    """The tree that one method finds, and whether it has related tasks together."""
    import numpy as np
    import torch

    from nasplat.core.experiment import Experiment
    from nasplat.data.related_tasks import related_tasks
    from nasplat.data.tasks import only_tasks
    from nasplat.search.evaluate import data_key, give_data
    from nasplat.spaces.branching import BranchingSpace
    from nasplat.training.branching_search import Settings, search_tree

    torch.set_num_threads(1)
    made = related_tasks((2, 2), 0.9, count=RELATED_IMAGES, image_size=16, seed=seed)
    order = np.random.default_rng(seed).permutation(4)  # so that no method is helped by how they are listed
    dataset = only_tasks(made.dataset, [made.dataset.tasks[place].name for place in order])
    groups = [made.groups[place] for place in order]
    start = time.perf_counter()
    folder = RUNS / f"related-{seed}-{method}"
    space = BranchingSpace(dataset.problem, backbone=RELATED_BACKBONE, cuts=["0", "1", "2", "3"])
    experiment = Experiment.model_validate(
        {
            "space": {"family": "branching", "backbone": RELATED_BACKBONE, "cuts": ["0", "1", "2", "3"]},
            "data": {"source": f"related_tasks:{seed}", "tasks": [task.name for task in dataset.tasks]},
            "train": RELATED_TRAIN,
            "score": {"maximise": ["delta_m"], "minimise": []},
            "search": {
                "strategy": "random",
                "trials": 1,
                "seed": seed,
                "constraints": {"macs": {"max": BUDGET}},
                "produce": {"affinity": {"count": 100}},
            },
            "run": {"device": "cpu", "threads": 1, "executor": "inline"},
        }
    )
    if method == "affinity":
        from nasplat.artifacts.run_directory import create_run
        from nasplat.search.driver import run_search

        give_data(data_key(experiment.data), dataset)
        run_search(experiment, create_run(folder, experiment), space, resume=(folder / "study.journal").exists())
        kept = json.loads((folder / "produced" / "affinity" / "architectures.json").read_text())
        # The trees are a front: the last one that the budget allows for has tasks differ least.
        tree = space.tree(space.canonical(list(kept.values())[-1]["values"]))
    else:
        settings = Settings(**RELATED_GRADIENTS[method])
        cpu = torch.device("cpu")
        snapshots = search_tree(
            space, dataset, method, settings, experiment.train, device=cpu, seed=seed, checkpoint=folder
        )
        tree = space.tree(snapshots[-1].architecture)
    return {"tree": tree, "groups": groups, "right": grouped(tree, groups), "seconds": time.perf_counter() - start}


def grouped(tree: Any, groups: list[int]) -> bool:
    """Whether any two related tasks share more layers than any two that are not."""
    pairs = [(first, second) for first in range(len(groups)) for second in range(first)]
    shared = {(one, two): sum(partition[one] == partition[two] for partition in tree) for one, two in pairs}
    kin = [depth for (one, two), depth in shared.items() if groups[one] == groups[two]]
    others = [depth for (one, two), depth in shared.items() if groups[one] != groups[two]]
    return min(kin) > max(others)


def fashion(seed: int, shared: str) -> list[dict[str, Any]]:
    """Every tree of one search: who proposed it, its MACs, and the gain over single tasks on both splits."""
    import torch

    from nasplat.artifacts.run_directory import create_run
    from nasplat.core.architecture import Architecture
    from nasplat.core.experiment import Experiment
    from nasplat.search.driver import run_search

    torch.set_num_threads(1)
    plain = {
        "space": SPACE,
        "data": {"source": "fashion_mnist", "path": f"{shared}/fashion_mnist", "tasks": TASKS, "train_size": 4000},
        "train": TRAIN,
        "score": {"maximise": ["delta_m"], "minimise": ["macs"]},
        "search": {"strategy": "evolution", "trials": TRIALS, "seed": seed, "produce": PRODUCE},
        "run": {"device": "cpu", "threads": 1, "executor": "inline"},
    }
    experiment = Experiment.model_validate(plain)
    folder = RUNS / f"fashion-{seed}"
    run = create_run(folder, experiment)
    run_search(experiment, run, resume=(folder / "study.journal").exists(), evaluate=train_and_judge_twice)
    makers: dict[str, list[str]] = {}
    for name in PRODUCE:
        kept = json.loads((folder / "produced" / name / "architectures.json").read_text())
        for one in kept.values():
            makers.setdefault(Architecture.from_json(one).digest, []).append(name)
    found = []
    for trial in sorted((folder / "trials").iterdir()):
        record = json.loads((trial / "record.json").read_text())
        if record["state"] == "complete":
            digest = json.loads((trial / "architecture.json").read_text())["digest"]
            names = ("macs", "delta_m", "test_delta_m")
            metrics = {name: record["metrics"][name] for name in names}
            found.append({"by": makers.get(digest, ["evolution"]), **metrics})
    return found


def train_and_judge_twice(spec: Any, on_progress: Any) -> Any:
    """As a search does, and on the test images as well, which nothing is chosen by."""
    from dataclasses import replace

    import torch

    from nasplat.artifacts.run_directory import TrialFolder, short
    from nasplat.artifacts.weights import load_into
    from nasplat.core.architecture import Architecture
    from nasplat.core.experiment import Experiment
    from nasplat.search.evaluate import load_data, load_space_of, train_and_judge
    from nasplat.training.evaluate import evaluation_loader
    from nasplat.training.multi_task_metrics import delta_m, judge_tasks

    experiment = Experiment.model_validate(spec.experiment)
    data = load_data(experiment.data)
    record = train_and_judge(spec, experiment, data, on_progress)
    if record.state != "complete":
        return record
    architecture = Architecture.from_json(spec.architecture)
    network = load_space_of(experiment, data).build(architecture)
    folder = TrialFolder(Path(spec.directory), spec.number, short(architecture.digest))
    load_into(network, folder.weights, architecture.digest)
    test = judge_tasks(network, evaluation_loader(data, "test", torch.device("cpu")), data.tasks)
    gain = delta_m(data.tasks, test, singles_on_test(spec.directory, spec.experiment["data"]["path"]))
    return replace(record, metrics={**record.metrics, "test_delta_m": gain})


@cache
def singles_on_test(directory: str, path: str) -> Mapping[str, float]:
    """The networks of one task each, on the test images."""
    import torch

    from nasplat.artifacts.weights import load_weights
    from nasplat.core.experiment import Experiment
    from nasplat.data.tasks import only_tasks
    from nasplat.search.evaluate import load_data, load_space_of
    from nasplat.training.evaluate import evaluation_loader
    from nasplat.training.multi_task_metrics import judge_tasks

    root = next(parent for parent in Path(directory).resolve().parents if (parent / "single_tasks").is_dir())
    import yaml

    experiment = Experiment.model_validate(yaml.safe_load((root / "experiment.yaml").read_text()))
    data = load_data(experiment.data)
    space: Any = load_space_of(experiment, data)
    found: dict[str, float] = {}
    for place, name in enumerate(space.tasks):
        network = space.build(space.separate()).only([name])
        network.load_state_dict(load_weights(root / "single_tasks" / f"{place}.safetensors"))
        part = only_tasks(data, [name])
        found |= judge_tasks(network, evaluation_loader(part, "test", torch.device("cpu")), part.tasks)
    return found


def measure(task: Task, shared: str) -> Any:
    """One part of the page, or what an earlier run kept of it."""
    kept = RUNS / "found" / f"{'-'.join(map(str, task))}.json"
    if not kept.exists():
        kind, seed, *method = task
        found = related(seed, method[0]) if kind == "related" else fashion(seed, shared)
        kept.parent.mkdir(parents=True, exist_ok=True)
        kept.write_text(json.dumps(found))
    return json.loads(kept.read_text())


def related_seeds(options: argparse.Namespace) -> range:
    return range(FIRST_SEED, FIRST_SEED + options.related)


def best_within(trees: list[dict[str, Any]], makers: tuple[str, ...], macs: float) -> dict[str, Any] | None:
    """Of what some found, the tree within so many MACs that was best on the validation images."""
    fit = [one for one in trees if set(one["by"]) & set(makers) and one["macs"] <= macs]
    return max(fit, key=lambda one: one["delta_m"], default=None)


def page(found: Mapping[Task, Any], options: argparse.Namespace) -> str:
    kit = f"Python {platform.python_version()}, torch {version('torch')}, optuna {version('optuna')}"
    lines = [
        "# Branching trees",
        "",
        f"`python experiments/benchmark_branching.py --related {options.related} --seeds {options.seeds}`",
        "",
        f"{platform.machine()}, {os.cpu_count()} cores, one thread each, {kit}.",
        "",
        "## Related tasks end up together",
        "",
        "Four regressions in two groups, in an order drawn anew: the cosine between the targets' weights is 0.9 within "
        f"a group and 0 between groups (`nasplat.data.related_tasks`, {RELATED_IMAGES:,} images). Affinity may use "
        f"{BUDGET:.0%} of the MACs of all separate, of which all shared has 25 %; BMTAS has a cost of weight "
        f"{RELATED_GRADIENTS['bmtas']['cost']:g}, Learning to Branch none, and its choices and weights learn together, "
        f"as in its paper; both {RELATED_GRADIENTS['bmtas']['epochs']} epochs. A tree "
        "is right where any two related tasks share more layers than any two that are not. Seeds "
        f"{FIRST_SEED} to {FIRST_SEED + options.related - 1}; all settings were chosen on others. Seconds are of a "
        "machine that was doing other things as well.",
        "",
        "| search | right | seconds |",
        "| --- | --- | --- |",
    ]
    for method in METHODS:
        ones = [found["related", seed, method] for seed in related_seeds(options)]
        seconds = statistics.mean(one["seconds"] for one in ones)
        lines.append(f"| {method} | {sum(one['right'] for one in ones)} of {len(ones)} | {seconds:.0f} |")
    if not options.seeds:
        return "\n".join(lines) + "\n"
    runs = [found["fashion", seed] for seed in range(options.seeds)]
    lines += [
        "",
        "## Fashion-MNIST",
        "",
        f"Tasks: {', '.join(TASKS)}. 3,200 training and 800 validation images; every tree of a seed is trained alike "
        f"({TRAIN['epochs']} epochs), all in one search of {TRIALS} trees, baselines and trees by gradients included. "
        "The gain over networks of one task each (delta_m), in percent. For each baseline, at its MACs: the tree that "
        "was best on validation images among those that evolution, BMTAS and Learning to Branch found within the MACs "
        "of the baseline's, which is likewise its best there; both on the test images, which nothing was chosen by. "
        f"Mean and standard deviation over the seeds. BMTAS has {GRADIENTS['epochs']} epochs and a cost of weight "
        f"{PRODUCE['bmtas']['cost'][0]:g}, Learning to Branch as many, with "
        f"{' and '.join(f'{cost:g}' for cost in PRODUCE['learning_to_branch']['cost'])}.",
        "",
        "| baseline | MACs | gain | found within its MACs | gain | difference |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    least: tuple[float, str] = (float("inf"), "")
    for baseline in BASELINES:
        rows = []
        for trees in runs:
            own = best_within(trees, (baseline,), float("inf"))
            if own is None:
                continue
            other = best_within(trees, FOUND, own["macs"])
            rows.append((own, other))
        both = [(own, other) for own, other in rows if other is not None]
        gains = [100 * own["test_delta_m"] for own, _ in rows]
        cells = [baseline, f"{statistics.mean(own['macs'] for own, _ in rows) / 1e6:.2f} M", spread(gains)]
        if both:
            differences = [100 * (other["test_delta_m"] - own["test_delta_m"]) for own, other in both]
            cells += [f"{statistics.mean(other['macs'] for _, other in both) / 1e6:.2f} M"]
            cells += [spread([100 * other["test_delta_m"] for _, other in both]), spread(differences)]
            mean, share = (
                statistics.mean(differences),
                statistics.mean(other["macs"] / own["macs"] for own, other in both),
            )
            error = statistics.stdev(differences) / len(differences) ** 0.5 if len(differences) > 1 else float("nan")
            told = f"{baseline}, {mean:+.2f} with a standard error of {error:.2f}, at {share:.0%} of its MACs"
            least = min(least, (mean, told))
        else:
            cells += ["", "", ""]
        lines.append(f"| {' | '.join(cells)} |")
    lines += [
        "",
        f"The least of the differences is that to {least[1]}.",
        "",
        "| found by | trees | on the front of validation images | best there, on test images |",
        "| --- | --- | --- | --- |",
    ]
    for maker in (*BASELINES, *FOUND):
        own = [[one for one in trees if maker in one["by"]] for trees in runs]
        fronts = [[one for one in mine if on_front(one, trees)] for mine, trees in zip(own, runs, strict=True)]
        best = [100 * max(mine, key=lambda one: one["delta_m"])["test_delta_m"] for mine in own if mine]
        lines.append(f"| {maker} | {sum(map(len, own))} | {sum(map(len, fronts))} | {spread(best) if best else ''} |")
    return "\n".join(lines) + "\n"


def on_front(one: dict[str, Any], trees: list[dict[str, Any]]) -> bool:
    return not any(
        other["macs"] <= one["macs"] and other["delta_m"] >= one["delta_m"] and other is not one for other in trees
    )


def spread(values: list[float]) -> str:
    if len(values) < 2:
        return " ".join(f"{value:+.2f}" for value in values)
    return f"{statistics.mean(values):+.2f} ± {statistics.stdev(values):.2f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shared", default=str(HERE.parent / "../shared/data"))
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--related", type=int, default=10)
    parser.add_argument("--seeds", type=int, default=3, help="of the second part; 0 leaves it out")
    options = parser.parse_args()
    tasks: list[Task] = [("fashion", seed) for seed in range(options.seeds)]
    tasks += [("related", seed, method) for seed in related_seeds(options) for method in METHODS]
    found: dict[Task, Any] = {}
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(options.workers, mp_context=context) as pool:
        running = {pool.submit(measure, task, options.shared): task for task in tasks}
        for done in as_completed(running):
            found[running[done]] = done.result()
            print(*running[done], flush=True)
    (HERE / "benchmark_branching.md").write_text(page(found, options))


if __name__ == "__main__":
    main()
