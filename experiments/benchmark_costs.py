"""Costs per second: `space.cost(architecture)` of every family against fvcore and thop on the built module, in one run.

    python experiments/benchmark_costs.py [--write]

`--write` puts the table into benchmark_costs.md beside this file. Ends with 1 where a goal is missed: at least 1,000
times fvcore in every space of ours, at most 50 µs a candidate in mbconv. The family of a user's own functions has no
goal: its cost is that of running the function on torch's `meta` device.
"""

from __future__ import annotations

import argparse
import logging
import platform
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from time import perf_counter

import numpy as np
import torch
from torch import nn

from nasplat import choice
from nasplat.core.architecture import Architecture
from nasplat.core.problem import Problem, classification
from nasplat.core.space import SearchSpace
from nasplat.spaces.families import FAMILIES, load_space, make_space

ROOT = Path(__file__).resolve().parents[1]
INPUT_SHAPE = (3, 32, 32)
CANDIDATES = 2_000  # costed by us, each once, in a fresh space
CANDIDATES_OF_USER = 20
MODULES = 5  # of them, counted by the other tools
RUNS = 3  # of which the quickest is reported
LEAST_RATIO = 1_000
MOST_MICROSECONDS = {"mbconv": 50.0}
NO_GOAL = {"user"}


def network(problem: Problem) -> nn.Module:
    """A user's own space."""
    channels, layers = problem.input_shape[0], []
    width = choice("width", [8, 16, 24, 32, 48, 64])
    for stage in range(choice("depth", [1, 2, 3])):
        kernel = choice(f"kernel{stage}", [3, 5, 7])
        layers += [nn.Conv2d(channels, width, kernel, padding=kernel // 2), nn.BatchNorm2d(width), nn.ReLU()]
        channels = width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, problem.outputs[0].size))


@dataclass(frozen=True)
class Row:
    """Seconds a candidate by tool, and whether fvcore's convolutions and linear layers add up to the same."""

    family: str
    ours: float
    fvcore: float
    thop: float
    agrees: bool

    @property
    def ratio(self) -> float:
        return self.fvcore / self.ours

    @property
    def reached(self) -> bool | None:
        if self.family in NO_GOAL:
            return None
        return self.ratio >= LEAST_RATIO and self.ours * 1e6 <= MOST_MICROSECONDS.get(self.family, float("inf"))


def measure(family: str) -> Row:
    problem = classification(INPUT_SHAPE, 10)

    def make_fresh_space() -> SearchSpace:
        if family == "user":
            return make_space({"family": "user", "function": f"{Path(__file__).stem}:network"}, problem)
        return load_space(ROOT / "search_spaces" / f"{family}.yaml", problem)

    space = make_fresh_space()
    rng = np.random.default_rng(0)
    architectures = [space.sample(rng) for _ in range(CANDIDATES_OF_USER if family == "user" else CANDIDATES)]
    ours = min(_seconds_of_ours(make_fresh_space(), architectures) for _ in range(RUNS))
    fvcore = thop = 0.0
    agrees = True
    for architecture in architectures[:MODULES]:
        module = space.build(architecture).eval()
        images = torch.zeros(1, *INPUT_SHAPE)
        agrees &= count_with_fvcore(module, images, only_products=True) == space.cost(architecture).macs
        fvcore += _least_seconds(lambda module=module, images=images: count_with_fvcore(module, images)) / MODULES
        thop += _least_seconds(lambda module=module, images=images: count_with_thop(module, images)) / MODULES
    return Row(family, ours, fvcore, thop, agrees)


def _seconds_of_ours(space: SearchSpace, architectures: list[Architecture]) -> float:
    start = perf_counter()
    for architecture in architectures:
        space.cost(architecture)
    return (perf_counter() - start) / len(architectures)


def _least_seconds(function: Callable[[], object]) -> float:
    times = []
    for _ in range(RUNS):
        start = perf_counter()
        function()
        times.append(perf_counter() - start)
    return min(times)


def count_with_fvcore(module: nn.Module, images: torch.Tensor, only_products: bool = False) -> int:
    from fvcore.nn import FlopCountAnalysis

    analysis = FlopCountAnalysis(module, (images,)).unsupported_ops_warnings(False).uncalled_modules_warnings(False)
    if only_products:
        return int(sum(number for operator, number in analysis.by_operator().items() if operator in ("conv", "linear")))
    return int(analysis.total())


def count_with_thop(module: nn.Module, images: torch.Tensor) -> int:
    from thop import profile

    return int(profile(module, inputs=(images,), verbose=False)[0])


def table(rows: list[Row]) -> str:
    lines = [
        "| family | ours, µs a candidate | ours, costs/s | fvcore, costs/s | thop, costs/s | ours / fvcore "
        "| ours / thop | equal MACs | goal |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    words = {True: "reached", False: "missed", None: "none"}
    for row in rows:
        cells = [row.family, f"{row.ours * 1e6:,.1f}", f"{1 / row.ours:,.0f}", f"{1 / row.fvcore:.2f}"]
        cells += [f"{1 / row.thop:.2f}", f"{row.ratio:,.1f}", f"{row.thop / row.ours:,.1f}"]
        lines.append(f"| {' | '.join([*cells, 'yes' if row.agrees else 'NO', words[row.reached]])} |")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="write benchmark_costs.md")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    logging.getLogger("fvcore").setLevel(logging.ERROR)
    warnings.simplefilter("ignore")
    rows = []
    for family in FAMILIES:
        rows.append(measure(family))
        print(f"{family}: {rows[-1].ours * 1e6:,.1f} µs, {rows[-1].ratio:,.0f} times fvcore", flush=True)
    text = table(rows)
    print(f"\n{text}")
    if arguments.write:
        packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "fvcore", "thop"))
        page = PAGE.format(
            python=platform.python_version(),
            packages=packages,
            table=text,
            candidates=CANDIDATES,
            modules=MODULES,
            runs=RUNS,
        )
        Path(__file__).with_suffix(".md").write_text(page, encoding="utf-8")
    return int(any(row.reached is False or not row.agrees for row in rows))


PAGE = """# What a cost costs

`python experiments/benchmark_costs.py --write` made this page: one thread of a CPU, Python {python},
{packages}. It takes about a minute.

{table}

- Ours is `space.cost(architecture)`: MACs, parameters and peak activation bytes, without torch; the mean of
  {candidates:,} random candidates at 3×32×32, each once, in a fresh space, in the quickest of {runs} runs. What one
  operation costs in one place is counted once in a lifetime; a candidate is a sum over its layers or cells.
- fvcore and thop count the built module (building it is not in their time): the mean of {modules} candidates, the
  quickest of {runs} runs each.
- Equal MACs: what fvcore counts for convolutions and linear layers is our number, integer for integer, on these
  candidates. Its totals and thop's hold more than that; `nasplat profile` says what, layer by layer.
- Goals: at least 1,000 times fvcore in every space of ours, and at most 50 µs a candidate in mbconv (the time here
  includes the peak). The cost of a user's own network function is found by running it on torch's `meta` device, once
  for each architecture; no goal is set for it.
"""


if __name__ == "__main__":
    sys.exit(main())
