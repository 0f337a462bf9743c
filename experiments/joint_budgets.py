"""MACs, parameters and latency at once: the pruned ResNet-20 on the front of all of them, in one picture.

    python experiments/joint_budgets.py [--shared ../shared/data] [--trials 80]

writes experiments/joint_budgets.md and joint_budgets.svg. Resumable: the search lies in runs/joint_budgets. Latency is
measured, so nothing else should run.
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
from html import escape
from importlib.metadata import version
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))
from benchmark_pruning import MEAN, STD, trained  # noqa: E402

RUNS = HERE.parent / "runs"
LIMITS = {"macs": 0.6, "params": 0.6, "latency": 0.8}  # shares of the original's, all at once
GOALS = ("macs", "params", "latency")


def search(shared: str, trials: int) -> tuple[list[dict[str, float]], dict[str, float]]:
    """Metrics of all candidates, with `front` 1 for those on it; and what the original costs."""
    import torch

    from nasplat.artifacts.run_directory import RunDirectory, create_run
    from nasplat.core.experiment import Experiment
    from nasplat.core.front import front_indices, losses
    from nasplat.search.driver import run_search
    from nasplat.search.evaluate import load_data, load_space_of
    from nasplat.search.history import goals_of
    from nasplat.training.latency import latencies

    torch.set_num_threads(1)
    plain = {
        "name": "joint-budgets",
        "space": {
            "family": "pruning",
            "model": "resnet20_cifar:resnet20",
            "arguments": {"shortcut": "B"},
            "checkpoint": str(RUNS / "resnet20_convolutions.safetensors"),
        },
        "data": {
            "path": f"{shared}/cifar10/cifar10_30k_jpeg.npz",
            "train_size": 6000,
            "validation": 1 / 6,
            "mean": MEAN,
            "std": STD,
        },
        "train": {"epochs": 0},
        "score": {"maximise": ["accuracy"], "minimise": GOALS},
        "search": {
            "strategy": "evolution",
            "trials": trials,
            "constraints": {"macs": {"min": 0.4, "max": 0.7}, "params": {"max": 0.7}},
            "produce": {"uniform": {}, "ranked": {}, "sensitivity": {}},
        },
        "run": {"device": "cpu"},
    }
    experiment = Experiment.model_validate(plain)
    directory = RUNS / "joint_budgets"
    resume = directory.exists()
    run = RunDirectory(directory) if resume else create_run(directory, experiment)
    history = run_search(experiment, run, resume=resume).history
    found = [{**one.metrics, "front": 0.0} for one in history.complete]
    for row in front_indices(losses(found, goals_of(experiment.score))):
        found[row]["front"] = 1.0
    space = load_space_of(experiment, load_data(experiment.data))
    network = space.build(space.canonical({})).eval()
    (latency,) = latencies((network,), space.problem.input_shape, torch.device("cpu"))
    return found, {**space.known(space.canonical({})), "latency": latency.median}


def picture(found: list[dict[str, float]], whole: dict[str, float]) -> str:
    """A panel for each cost; filled dots meet all three limits, whose places are the dashed lines."""
    wide, high, gap, left, top = 250.0, 260.0, 40.0, 56.0, 34.0
    low, most = (pick(one["accuracy"] for one in found) for pick in (min, max))
    parts = [
        "<style>.p{fill:#fff}.i{fill:#1d2530}.s{fill:#64707f}.g{stroke:#d6dae0}.m{fill:#2f6fde;stroke:#2f6fde}"
        ".o{fill:none;stroke:#9aa5b4}.l{stroke:#c2571a}"
        "@media (prefers-color-scheme: dark){.p{fill:#12161d}.i{fill:#e4e8ee}"
        ".s{fill:#98a3b3}.g{stroke:#262d38}.m{fill:#6ea0ff;stroke:#6ea0ff}.o{stroke:#66717f}.l{stroke:#ff9a5c}}</style>",
        '<rect class="p" width="100%" height="100%"/>',
    ]
    names = {"macs": "MACs", "params": "parameters", "latency": "latency, batch 1"}
    meets = [all(one[goal] <= LIMITS[goal] * whole[goal] for goal in GOALS) for one in found]
    for place, goal in enumerate(GOALS):
        x0 = left + place * (wide + gap)
        shares = [one[goal] / whole[goal] for one in found]
        first, last = min(shares) - 0.03, max(*shares, LIMITS[goal]) + 0.03

        def across(share: float, x0: float = x0, first: float = first, last: float = last) -> float:
            return x0 + wide * (share - first) / (last - first)

        def up(accuracy: float) -> float:
            return top + high * (1 - (accuracy - low) / (most - low))

        parts.append(f'<text class="i" x="{x0:.0f}" y="20" font-weight="600">{escape(names[goal])}</text>')
        for tick in range(5):
            accuracy = low + (most - low) * tick / 4
            y = up(accuracy)
            parts.append(f'<line class="g" x1="{x0:.1f}" x2="{x0 + wide:.1f}" y1="{y:.1f}" y2="{y:.1f}"/>')
            if place == 0:
                label = f"{100 * accuracy:.0f} %"
                parts.append(f'<text class="s" x="{x0 - 8:.0f}" y="{y + 4:.1f}" text-anchor="end">{label}</text>')
            share = first + (last - first) * tick / 4
            below = f'x="{across(share):.1f}" y="{top + high + 20:.0f}"'
            parts.append(f'<text class="s" {below} text-anchor="middle">{share:.0%}</text>')
        at = across(LIMITS[goal])
        parts.append(
            f'<line class="l" x1="{at:.1f}" x2="{at:.1f}" y1="{top}" y2="{top + high}" stroke-dasharray="4 3"/>'
        )
        for one, share, good in sorted(zip(found, shares, meets, strict=True), key=lambda row: row[2]):
            radius, kind = 4.5 if one["front"] else 2.5, "m" if good else "o"
            middle = f'cx="{across(share):.1f}" cy="{up(one["accuracy"]):.1f}"'
            parts.append(f'<circle class="{kind}" {middle} r="{radius}"/>')
    width, height = left + 3 * (wide + gap), top + high + 36
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:.0f}" height="{height:.0f}" '
        f'viewBox="0 0 {width:.0f} {height:.0f}" role="img" font-family="system-ui, sans-serif" font-size="12">'
        f"<title>Accuracy against MACs, parameters and latency</title>{''.join(parts)}</svg>"
    )


def page(found: list[dict[str, float]], whole: dict[str, float], options: argparse.Namespace) -> str:
    meets = [one for one in found if all(one[goal] <= LIMITS[goal] * whole[goal] for goal in GOALS)]
    best = sorted((one for one in meets if one["front"]), key=lambda one: -one["accuracy"])
    machine = f"{platform.machine()}, {os.cpu_count()} cores, one thread, Python {platform.python_version()}"
    limits = ", ".join(f"{name} {share:.0%}" for name, share in LIMITS.items())
    lines: list[Any] = [
        "# Joint budgets",
        "",
        f"`python experiments/joint_budgets.py --trials {options.trials}`",
        "",
        f"{machine}, torch {version('torch')}; seed 0.",
        "",
        f"{len(found)} networks cut from the ResNet-20 of benchmark_ratios.md (shortcuts B), scored on 1,000 "
        "validation images with batch norm measured anew and no training, by evolution with four goals: accuracy, "
        f"MACs, parameters, and latency at batch 1 (the original: {whole['macs'] / 1e6:.2f} M, "
        f"{whole['params'] / 1e3:.0f} k, {whole['latency']:.2f} ms). Large dots are on the front of all four; filled "
        f"ones meet all limits at once ({limits} of the original's; the dashed lines): {len(meets)} networks, "
        f"{len(best)} of them on the front.",
        "",
        "![Accuracy against MACs, parameters and latency](joint_budgets.svg)",
        "",
        "| accuracy | MACs | parameters | latency |",
        "| --- | --- | --- | --- |",
    ]
    for one in best[:8]:
        costs = (f"{one[goal] / whole[goal]:.0%}" for goal in GOALS)
        lines.append(f"| {100 * one['accuracy']:.1f} % | {' | '.join(costs)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shared", default=str(HERE.parent / "../shared/data"))
    parser.add_argument("--trials", type=int, default=80)
    options = parser.parse_args()
    trained(options.shared, "B")
    found, whole = search(options.shared, options.trials)
    (HERE / "joint_budgets.svg").write_text(picture(found, whole))
    (HERE / "joint_budgets.md").write_text(page(found, whole, options))


if __name__ == "__main__":
    main()
