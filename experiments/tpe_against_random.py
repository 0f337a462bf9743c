"""TPE against random proposals on the quickstart, best so far over several seeds.

    python experiments/tpe_against_random.py [--seeds 6] [--workers 2]

writes experiments/tpe_against_random.md. Resumable: a search that is there goes on where it was.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import platform
from concurrent.futures import ProcessPoolExecutor
from importlib.metadata import version
from pathlib import Path

import numpy as np

HERE = Path(__file__).resolve().parent
STRATEGIES = ("random", "tpe")
AT = (5, 10, 15, 20, 24)
# Hypervolume of (error, MACs) below an error of 60 % and 3 million MACs, as a fraction of that box.
REFERENCE = (0.6, 3e6)


def search(strategy: str, seed: int, runs: str) -> list[tuple[float, float]]:
    """Accuracy and MACs of the distinct candidates of one search, in the order of their numbers."""
    from nasplat.artifacts.run_directory import RunDirectory, create_run
    from nasplat.jobs.experiment import load_experiment
    from nasplat.search.driver import run_search

    changes = [f"search.strategy={strategy}", f"search.seed={seed}", f"search.trials={AT[-1]}", "run.executor=inline"]
    experiment = load_experiment(HERE / "quickstart.yaml", [*changes, "run.device=cpu", "run.workers=1"])
    directory = Path(runs) / f"{strategy}-{seed}"
    resume = directory.exists()
    run = RunDirectory(directory) if resume else create_run(directory, experiment)
    history = run_search(experiment, run, resume=resume).history
    return [(one.metrics["accuracy"], one.metrics["macs"]) for one in history if one.state == "complete"]


def best_so_far(found: list[tuple[float, float]]) -> list[float]:
    return [max(accuracy for accuracy, _ in found[:at]) for at in AT]


def volumes(found: list[tuple[float, float]]) -> list[float]:
    from nasplat.core.front import hypervolume

    points = np.array([[1 - accuracy, macs] for accuracy, macs in found])
    return [hypervolume(points[:at], REFERENCE) / (REFERENCE[0] * REFERENCE[1]) for at in AT]


def table(title: str, values: dict[str, np.ndarray]) -> list[str]:
    """Mean and standard deviation by strategy, and the paired difference with its standard error."""
    lines = ["", f"{title} after N distinct candidates:", "", "| | " + " | ".join(f"N={at}" for at in AT) + " |"]
    lines.append("|---|" + "---|" * len(AT))
    for name, rows in values.items():
        cells = [f"{mean:.4f} ± {sd:.4f}" for mean, sd in zip(rows.mean(0), rows.std(0, ddof=1), strict=True)]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    gain = values["tpe"] - values["random"]
    error = gain.std(0, ddof=1) / np.sqrt(len(gain))
    cells = [f"{mean:+.4f} ± {sem:.4f}" for mean, sem in zip(gain.mean(0), error, strict=True)]
    lines.append("| tpe − random (± standard error) | " + " | ".join(cells) + " |")
    share = gain.mean(0)[-1] / error[-1]
    verdict = "ahead of" if share > 2 else "behind" if share < -2 else "not told apart from"
    return [*lines, "", f"After {AT[-1]} candidates, TPE is **{verdict}** random proposals (two standard errors)."]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=6)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--runs", type=Path, default=HERE.parent / "runs/tpe_against_random")
    options = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    jobs = [(strategy, seed, str(options.runs)) for seed in range(options.seeds) for strategy in STRATEGIES]
    with ProcessPoolExecutor(options.workers, multiprocessing.get_context("spawn")) as pool:
        found = dict(zip([job[:2] for job in jobs], pool.map(search, *zip(*jobs, strict=True)), strict=True))
    by_strategy = {name: [found[name, seed] for seed in range(options.seeds)] for name in STRATEGIES}
    lines = [
        "# TPE against random proposals on the quickstart",
        "",
        f"`python experiments/tpe_against_random.py --seeds {options.seeds}`",
        "",
        f"experiments/quickstart.yaml with {AT[-1]} trials, inline, seeds 0 to {options.seeds - 1}; goals accuracy, "
        "MACs and parameters, one proposal at a time, no repeats in either. "
        f"{platform.machine()}, {os.cpu_count()} cores, one thread a search; Python {platform.python_version()}, "
        f"torch {version('torch')}, Optuna {version('optuna')}. Mean ± standard deviation over seeds.",
        *table("Best validation accuracy", {k: np.array([best_so_far(f) for f in v]) for k, v in by_strategy.items()}),
        *table(
            f"Hypervolume of error and MACs (share of the box up to {REFERENCE[0]:.0%} error, {REFERENCE[1]:.0e} MACs)",
            {k: np.array([volumes(f) for f in v]) for k, v in by_strategy.items()},
        ),
    ]
    text = "\n".join(lines) + "\n"
    (HERE / "tpe_against_random.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
