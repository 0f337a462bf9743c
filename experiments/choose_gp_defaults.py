"""How the defaults of `gp` were chosen: variants side by side on synthetic landscapes, never on a table that judges it.

    python experiments/choose_gp_defaults.py [--seeds 8] [--workers 2]

writes experiments/choose_gp_defaults.md.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import platform
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from landscapes import SHAPES, Landscape
from strategies_on_tables import search, volume

from nasplat.core.front import Goal
from nasplat.search import gp as gp_module
from nasplat.search import surrogate
from nasplat.search.gp import gp
from nasplat.search.strategies import make_strategy

HERE = Path(__file__).resolve().parent
ONE = (Goal("accuracy", "maximize"),)
TWO = (Goal("accuracy", "maximize"), Goal("macs", "minimize"))
AT = (20, 40, 60)
# What differs from the defaults: options of the strategy, or constants of its modules.
VARIANTS: dict[str, dict[str, Any]] = {
    "gp (defaults)": {},
    "startup 3": {"startup": 3},
    "startup 12": {"startup": 12},
    "elite 4": {"elite": 4},
    "walks 32": {"walks": 32},
    "screened 64": {"screened": 64},
    "corner a tenth beyond": {"MARGIN": 0.1},
    "corner twice as far": {"MARGIN": 1.0},
    "all unexplained is noise": {"MOST_NOISE": 1.0},
    "a third of the unexplained is noise": {"MOST_NOISE": 0.33},
    "parameters chosen more often": {"GROWTH": 1.1},
    "random": {"strategy": "random"},
    "local_search": {"strategy": "local_search"},
    "evolution": {"strategy": "evolution"},
}
_HOMES = {"MARGIN": gp_module, "MOST_NOISE": surrogate, "GROWTH": surrogate}


def run(name: str, shape: str, seed: int) -> list[float]:
    """Best true accuracy with one goal and the hypervolume with two, after N candidates; without and with noise."""
    options = {key: value for key, value in VARIANTS[name].items() if key not in _HOMES}
    for constant, home in _HOMES.items():
        if constant in VARIANTS[name]:
            setattr(home, constant, VARIANTS[name][constant])
    try:
        found: list[float] = []
        for noise in (0.0, 0.02):
            space = Landscape(shape, seed, noise=noise)
            corner = (-0.5, 1.05e6 * sum(cost.max() for cost in space.option_costs))
            for goals in (ONE, TWO):
                strategy = make_strategy(options["strategy"]) if "strategy" in options else gp(**options)
                tried = search(strategy, space, goals, AT[-1], seed)  # type: ignore[arg-type]
                true = [space.mean(one) for one in tried.architectures]
                if goals == ONE:
                    found += [100 * max(one["accuracy"] for one in true[:at]) for at in AT]
                else:
                    found += [100 * volume(true[:at], goals, corner) / (0.5 * corner[1]) for at in AT]
        return found
    finally:
        for constant, value in _DEFAULTS.items():
            setattr(_HOMES[constant], constant, value)


_DEFAULTS = {constant: getattr(home, constant) for constant, home in _HOMES.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=8)
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    jobs = [(name, shape, seed) for name in VARIANTS for shape in SHAPES for seed in range(options.seeds)]
    with ProcessPoolExecutor(options.workers, multiprocessing.get_context("spawn")) as pool:
        rows = list(pool.map(run, *zip(*jobs, strict=True)))
    found = {name: np.array([row for job, row in zip(jobs, rows, strict=True) if job[0] == name]) for name in VARIANTS}
    heads = [
        f"{what}, N={at}" for what in ("accuracy", "hypervolume", "accuracy, noisy", "hypervolume, noisy") for at in AT
    ]
    lines = [
        "# How the defaults of gp were chosen",
        "",
        f"`python experiments/choose_gp_defaults.py --seeds {options.seeds}`",
        "",
        f"Landscapes of experiments/landscapes.py ({', '.join(SHAPES)}), {options.seeds} of each, without noise and "
        "with a standard deviation of 2 points. True values in percent, the hypervolume of accuracies above 50 % as a "
        "share of its box; each row is the difference to the defaults with its standard error over the landscapes. "
        f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}.",
        "",
        "| | " + " | ".join(heads) + " |",
        "|---|" + "---|" * len(heads),
    ]
    base = found["gp (defaults)"]
    lines.append("| gp (defaults) | " + " | ".join(f"{one:.2f}" for one in base.mean(0)) + " |")
    for name, own in found.items():
        if name != "gp (defaults)":
            gain = own - base
            error = gain.std(0, ddof=1) / np.sqrt(len(gain))
            cells = [f"{mean:+.2f} ± {each:.2f}" for mean, each in zip(gain.mean(0), error, strict=True)]
            lines.append(f"| {name} | {' | '.join(cells)} |")
    text = "\n".join(lines) + "\n"
    (HERE / "choose_gp_defaults.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
