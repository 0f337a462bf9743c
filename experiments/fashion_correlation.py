"""Does a score without labels rank cells as training with labels does? And better than counting parameters?

Random DARTS cells (8 channels, 3 cells) on 10,000 images of Fashion-MNIST, each scored twice by SimCLR with a linear
probe, and twice by training with labels; and once by the probe on a network that learned nothing, to tell what SimCLR
adds. Resumable: a score that is there is not made again.

    python experiments/fashion_correlation.py --data DIRECTORY [--workers 2]

writes experiments/fashion_correlation.md. DIRECTORY holds the four IDX files of Fashion-MNIST.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
from pathlib import Path
from typing import Any

import numpy as np

from nasplat.core.experiment import Experiment
from nasplat.core.problem import classification
from nasplat.search.executors import run_all
from nasplat.search.processes import ProcessExecutor
from nasplat.search.records import Record, TrialSpec, read_record
from nasplat.search.seeds import candidate_seed
from nasplat.spaces.families import make_space

HERE = Path(__file__).resolve().parent
SPACE = {"family": "darts", "cells": [1, 0, 0], "channels": 8}
DATA = {"source": "fashion_mnist", "train_size": 12_500, "validation": 0.2}
OBJECTIVES: dict[str, dict[str, Any]] = {
    "simclr": {
        "train": {"objective": "simclr", "epochs": 1, "batch_size": 128, "optimiser": "adamw", "lr": 3e-3},
        "score": {"probe": "linear"},
    },
    "supervised": {
        "train": {"objective": "supervised", "epochs": 2, "batch_size": 32, "lr": 0.05},
        "score": {},
    },
    # Nothing is learned at this rate; the steps are there for the statistics of the batch norms.
    "untrained": {
        "train": {"objective": "simclr", "steps": 30, "batch_size": 128, "optimiser": "adamw", "lr": 1e-12},
        "score": {"probe": "linear"},
    },
}
ONCE = ("untrained",)


def experiment_of(objective: str, data: Path) -> Experiment:
    return Experiment(
        name=f"fashion-{objective}",
        space=SPACE,
        data={**DATA, "path": str(data)},
        run={"device": "cpu"},
        **OBJECTIVES[objective],
    )


def specs_of(architectures: int, seeds: int, data: Path, directory: Path) -> dict[tuple[str, int, int], TrialSpec]:
    """The trials by objective, architecture and seed; all of the first seed first."""
    space = make_space(SPACE, classification((1, 28, 28), 10))
    sampled = [space.sample(np.random.default_rng([2026, number])) for number in range(architectures)]
    keys = [
        (objective, number, seed)
        for seed in range(seeds)
        for number in range(architectures)
        for objective in OBJECTIVES
        if seed == 0 or objective not in ONCE
    ]
    plain = {objective: experiment_of(objective, data).model_dump(mode="json") for objective in OBJECTIVES}
    return {
        (objective, number, seed): TrialSpec(
            index,
            plain[objective],
            sampled[number].to_json(),
            candidate_seed(seed, sampled[number].digest),
            str(directory / f"{objective}-{number:02d}-{seed}"),
        )
        for index, (objective, number, seed) in enumerate(keys)
    }


def measure(specs: dict[tuple[str, int, int], TrialSpec], workers: int) -> dict[tuple[str, int, int], Record]:
    """The record of every trial; those that are there are not made again."""
    found = {key: record for key, spec in specs.items() if (record := read_record(Path(spec.directory))) is not None}
    left = {spec.number: key for key, spec in specs.items() if key not in found}
    print(f"{len(found)} of {len(specs)} scores are there", flush=True)

    def tell(number: int, record: Record) -> None:
        found[left[number]] = record
        print(len(found), *left[number], record.state, record.metrics.get("accuracy", record.reason), flush=True)

    executor = ProcessExecutor("nasplat.search.evaluate:evaluate", workers)
    run_all(executor, [specs[key] for key in left.values()], on_finished=tell)
    return found


def ranks(values: np.ndarray) -> np.ndarray:
    """Ranks with ties at their mean."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return ((last - counts + 1 + last) / 2)[inverse]


def spearman(one: np.ndarray, two: np.ndarray) -> float:
    return float(np.corrcoef(ranks(one), ranks(two))[0, 1])


def interval(one: np.ndarray, two: np.ndarray, rng: np.random.Generator) -> tuple[float, float]:
    """95 % bootstrap interval over architectures."""
    draws = [rng.integers(len(one), size=len(one)) for _ in range(2000)]
    low, high = np.nanpercentile([spearman(one[draw], two[draw]) for draw in draws], [2.5, 97.5])
    return float(low), float(high)


def page(table: dict[tuple[str, int, int], Record], convolutions: list[int], architectures: int, seeds: int) -> str:
    import torch

    failed = {number for (_, number, _), record in table.items() if record.state != "complete"}
    numbers = [number for number in range(architectures) if number not in failed]
    seeds_of = {objective: 1 if objective in ONCE else seeds for objective in OBJECTIVES}
    accuracy = {
        objective: np.array(
            [[table[objective, n, seed].metrics["accuracy"] for seed in range(seeds_of[objective])] for n in numbers]
        )
        for objective in OBJECTIVES
    }
    costs = {
        name: np.array([table["supervised", number, 0].metrics[name] for number in numbers])
        for name in ("params", "macs")
    }
    truth = accuracy["supervised"].mean(1)
    rng = np.random.default_rng(0)
    lines = [
        "# Scoring cells without labels, beside training them with labels",
        "",
        f"`python experiments/fashion_correlation.py --data DIRECTORY --architectures {architectures} --seeds {seeds}`",
        "",
        f"Fashion-MNIST, {int(DATA['train_size'] * 0.8):,} training and {int(DATA['train_size'] * 0.2):,} validation "
        f"images; {len(numbers)} random DARTS cells ({SPACE['channels']} channels, cells {SPACE['cells']}: 3 cells), "
        f"{seeds} seeds each. {platform.machine()}, {os.cpu_count()} cores, one thread a trial; Python "
        f"{platform.python_version()}, torch {torch.__version__}. "
        f"{len(failed)} architectures are left out because a score of theirs failed.",
        "",
        *(f"- {name}: `{json.dumps(settings)}`" for name, settings in OBJECTIVES.items()),
        "",
        "Spearman's ρ with the validation accuracy of training with labels (mean of the seeds), and its 95 % bootstrap "
        "interval over architectures:",
        "",
        "| score | ρ | 95 % interval | ρ with SimCLR's score |",
        "|---|---|---|---|",
    ]
    simclr = accuracy["simclr"].mean(1)
    untrained = accuracy["untrained"].mean(1)
    predictors = {
        "SimCLR + linear probe": simclr,
        "parameters": costs["params"],
        "MACs": costs["macs"],
        "linear probe, untrained network": untrained,
        "what SimCLR adds to that": simclr - untrained,
        "convolutions among the 16 operations": np.array([convolutions[n] for n in numbers]),
    }
    for name, values in predictors.items():
        low, high = interval(values, truth, rng)
        lines.append(
            f"| {name} | {spearman(values, truth):.3f} | {low:.3f} to {high:.3f} | {spearman(values, simclr):.3f} |"
        )
    draws = [rng.integers(len(numbers), size=len(numbers)) for _ in range(2000)]
    gains = [spearman(simclr[d], truth[d]) - spearman(costs["params"][d], truth[d]) for d in draws]
    low, high = np.nanpercentile(gains, [2.5, 97.5])
    ahead = "ahead of" if low > 0 else "behind" if high < 0 else "not told apart from"
    reason = (
        "Why: so short a training without labels mostly measures what the features of the untrained network are worth "
        f"already (ρ {spearman(untrained, simclr):.3f} with SimCLR's score, to which SimCLR added "
        f"{100 * (simclr - untrained).mean():.1f} points on average), which does not say how well a cell learns from "
        f"labels (ρ {spearman(untrained, truth):.3f}). Longer training without labels was not measured here."
    )
    lines += [
        "",
        f"SimCLR is **{ahead}** counting parameters: paired difference {np.mean(gains):+.3f} "
        f"({low:+.3f} to {high:+.3f}).",
        "",
        *([] if ahead == "ahead of" else [reason, ""]),
        "What the noise allows, ρ between two seeds of one score: "
        + ", ".join(
            f"{name} {spearman(values[:, 0], values[:, 1]):.3f}"
            for name, values in accuracy.items()
            if seeds_of[name] > 1
        )
        + ".",
        "",
        "| objective | mean accuracy | lowest | highest | spread over architectures | spread over seeds | s a score |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, values in accuracy.items():
        seconds = np.mean([record.seconds for key, record in table.items() if key[0] == name])
        noise = f"{values.std(1, ddof=1).mean():.4f}" if seeds_of[name] > 1 else ""
        lines.append(
            f"| {name} | {values.mean():.4f} | {values.min():.4f} | {values.max():.4f} "
            f"| {values.mean(1).std(ddof=1):.4f} | {noise} | {seconds:.0f} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--run", type=Path, default=HERE.parent / "runs/fashion_correlation")
    parser.add_argument("--architectures", type=int, default=30)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    specs = specs_of(options.architectures, options.seeds, options.data, options.run)
    convolutions = [
        sum("conv" in str(value) for value in specs["simclr", number, 0].architecture["values"].values())
        for number in range(options.architectures)
    ]
    text = page(measure(specs, options.workers), convolutions, options.architectures, options.seeds)
    (HERE / "fashion_correlation.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
