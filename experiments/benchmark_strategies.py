"""Every strategy on NAS-Bench-Macro, side by side: one metric and two, without noise and with that of one training run.

    python experiments/benchmark_strategies.py [--seeds 20] [--noisy-seeds 60] [--workers 2] [--table FILE]

writes experiments/benchmark_strategies.md. Resumable: what was found is kept under runs/benchmark_strategies.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from functools import cache
from importlib.metadata import version
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import yaml
from prototype_gp import prototype_gp
from strategies_on_tables import Found, best_observed, regret, search, volume

from nasplat.core.front import Goal
from nasplat.core.problem import classification
from nasplat.search.strategies import make_strategy
from nasplat.search.suggestion import Strategy
from nasplat.spaces.tabular import TabularSpace

HERE = Path(__file__).resolve().parent
TABLE = HERE.parents[1] / "shared/data/nas_bench_macro/nas-bench-macro_cifar10.json"
GOALS = {1: (Goal("accuracy", "maximize"),), 2: (Goal("accuracy", "maximize"), Goal("macs", "minimize"))}
AT = (50, 100, 300)
AGAIN = "gp, again 0.5"
LEAST_ACCURACY = 0.8  # the hypervolume counts errors below 20 %


def optuna_tpe() -> Strategy:
    """Optuna's sampler with Optuna's defaults: what `optuna.create_study` gives."""
    from optuna.samplers import TPESampler

    from nasplat.search.optuna_strategies import from_sampler

    return from_sampler(lambda seed: TPESampler(seed=seed))


METHODS: dict[str, Callable[[], Strategy]] = {
    "random": lambda: make_strategy("random"),
    "regularised evolution (population 30, sample 10)": lambda: make_strategy(
        "evolution", {"population": 30, "tournament": 10}
    ),
    "local search": lambda: make_strategy("local_search"),
    "Optuna TPE (its defaults)": optuna_tpe,
    "Optuna TPE (multivariate: `tpe`)": lambda: make_strategy("tpe"),
    "Optuna NSGA-II (population 20)": lambda: make_strategy("nsga2", {"population": 20}),
    "GP on Hamming distance, EI over mutations (prototype)": prototype_gp,
    "reinforce": lambda: make_strategy("reinforce"),
    "expansion": lambda: make_strategy("expansion"),
    "gp": lambda: make_strategy("gp"),
    "gp, 16 at once": lambda: make_strategy("gp"),
    AGAIN: lambda: make_strategy("gp", {"again": 0.5}),
}


@cache
def table(path: str, canonical: bool, answer: str) -> TabularSpace:
    network = yaml.safe_load((HERE.parent / "search_spaces/nas_bench_macro.yaml").read_text()) if canonical else None
    metrics = {"accuracy": {"columns": "test_acc", "scale": 0.01}, "macs": "flops", "params": "params"}
    problem = classification((3, 32, 32), 10)
    return TabularSpace(problem, table=path, metrics=metrics, network=network, answer=answer)  # type: ignore[arg-type]


@cache
def truth(path: str, canonical: bool) -> tuple[float, tuple[float, float], float]:
    """Of the whole table: the best mean accuracy, the corner of the hypervolume in losses, and the hypervolume."""
    space = table(path, canonical, "mean")
    rows = [space.mean(one) for one in space.enumerate()]
    corner = (-LEAST_ACCURACY, max(row["macs"] for row in rows))
    return max(row["accuracy"] for row in rows), corner, volume(rows, GOALS[2], corner)


def run(path: str, method: str, canonical: bool, answer: str, goals: int, seed: int) -> dict[str, Any]:
    """One search, and what it has to show after N evaluations."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    space = table(path, canonical, answer)
    batch = 16 if method.endswith("16 at once") else 1
    found = search(METHODS[method](), space, GOALS[goals], AT[-1], seed, batch=batch, repeats_count=not canonical)
    best, corner, whole = truth(path, canonical)
    shown: dict[str, Any] = {"repeats": found.repeats}
    for at in AT:
        if goals == 2:
            rows = [space.mean(one) for one in found.architectures[:at]]
            shown[str(at)] = volume(rows, GOALS[2], corner) / whole
        else:
            shown[str(at)] = 100 * regret(space, returned(method, found, space, at), best)
    return shown


def returned(method: str, found: Found, space: TabularSpace, at: int) -> Any:
    """What a search of one metric gives back.

    The best that was observed; with noise, where the best is also the luckiest, gp gives the best by posterior mean.
    """
    if not method.startswith("gp") or space.answer == "mean":
        return best_observed(found, at)
    from nasplat.search.expected import expected
    from nasplat.search.history import History

    history = History([one for one in found.history if one.state == "complete"][:at])
    believed = expected(history, space, GOALS[1])
    chosen = max(history.complete, key=lambda one: believed[one.number]["accuracy"])
    return space.canonical(chosen.values)


def jobs(path: str, seeds: int, noisy_seeds: int) -> list[tuple[Any, ...]]:
    found = []
    each = product(range(max(seeds, noisy_seeds)), METHODS, (True, False), ("mean", "run"), GOALS)
    for seed, method, canonical, answer, goals in each:
        if seed >= (noisy_seeds if (answer, goals) == ("run", 1) else seeds):
            continue
        if method == "Optuna TPE (its defaults)" and (answer == "run" or goals == 1):
            continue  # with one metric its proposals are those of the multivariate one
        if method == AGAIN and (answer == "mean" or goals == 2):
            continue
        found.append((path, method, canonical, answer, goals, seed))
    return found


def key(job: Sequence[Any]) -> str:
    return "|".join(str(part) for part in job[1:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--noisy-seeds", type=int, default=60, help="of one metric with noise, which scatters most")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--table", type=Path, default=TABLE)
    parser.add_argument("--only", default="", help="methods whose name contains this; the page is not written")
    options = parser.parse_args()
    kept = HERE.parent / "runs/benchmark_strategies/found.jsonl"
    kept.parent.mkdir(parents=True, exist_ok=True)
    lines = kept.read_text().splitlines() if kept.exists() else []
    found = dict(json.loads(line) for line in lines)
    wanted = [job for job in jobs(str(options.table), options.seeds, options.noisy_seeds) if options.only in job[1]]
    left = [job for job in wanted if key(job) not in found]
    with ProcessPoolExecutor(options.workers, multiprocessing.get_context("spawn")) as pool, kept.open("a") as file:
        futures = {pool.submit(run, *job): key(job) for job in left}
        for done, future in enumerate(as_completed(futures), start=1):
            found[futures[future]] = future.result()
            print(json.dumps([futures[future], found[futures[future]]]), file=file, flush=True)
            print(f"{done}/{len(left)} {futures[future]}", flush=True)
    if not options.only:
        text = page(found, options.seeds, options.noisy_seeds)
        (HERE / "benchmark_strategies.md").write_text(text)
        print(text)


def page(found: dict[str, Any], seeds: int, noisy_seeds: int) -> str:
    lines = [
        "# Strategies on NAS-Bench-Macro",
        "",
        f"`python experiments/benchmark_strategies.py --seeds {seeds} --noisy-seeds {noisy_seeds}`",
        "",
        "6,561 networks that were trained three times each on CIFAR-10 (Su et al., 2021), 3,969 of them distinct. "
        f"Seeds 0 to {seeds - 1} (regret with noise: 0 to {noisy_seeds - 1}), paired over methods; mean ± standard "
        f"deviation over seeds. {platform.machine()}, {os.cpu_count()} cores, one thread a search; Python "
        f"{platform.python_version()}, Optuna {version('optuna')}, numpy {version('numpy')}.",
        "",
        "One metric: regret in points of mean accuracy of the architecture that is returned, the best that was "
        "observed; with noise, gp returns the best by its posterior mean (nasplat.search.expected). Two metrics (error "
        "below 20 %, MACs): hypervolume by mean accuracies of all that was evaluated, as a fraction of the whole "
        "table's. `ahead by` is the paired difference of gp to the method with its 95 % interval (t distribution); an "
        "interval above 0 is in bold. Of regret with noise it is that of `gp, again 0.5`, which spends half of its "
        "evaluations on a new seed for a known network; all evaluations count.",
        "",
        "With canonical de-duplication equal networks are one, their runs are pooled, and a repeat is answered from "
        "the record; without it every row is a network of its own, and a repeat is evaluated again and spends budget.",
        "",
        "The strategies' defaults were chosen on synthetic landscapes (experiments/choose_gp_defaults.py), not here.",
    ]
    for answer, canonical, goals in product(("mean", "run"), (True, False), GOALS):
        noisy = (answer, goals) == ("run", 1)
        lines += section(found, noisy_seeds if noisy else seeds, canonical, answer, goals, AGAIN if noisy else "gp")
    return "\n".join(lines) + "\n"


def section(found: dict[str, Any], seeds: int, canonical: bool, answer: str, goals: int, best: str) -> list[str]:
    noise = "without noise" if answer == "mean" else "with the noise of one training run"
    what = "Regret" if goals == 1 else "Hypervolume"
    lines = ["", f"## {what}, {noise}, {'with' if canonical else 'without'} canonical de-duplication", ""]
    heads = [f"N={at}" for at in AT]
    lines.append(
        "| method | " + " | ".join(heads) + " | repeats | " + " | ".join(f"ahead by, {h}" for h in heads) + " |"
    )
    lines.append("|---|" + "---|" * (2 * len(AT) + 1))

    def rows(method: str) -> np.ndarray | None:
        keys = [key(("", method, canonical, answer, goals, seed)) for seed in range(seeds)]
        if any(one not in found for one in keys):
            return None
        return np.array([[*(found[one][str(at)] for at in AT), found[one]["repeats"]] for one in keys])

    ours = rows(best)
    assert ours is not None
    for method in METHODS:
        own = rows(method)
        if own is None:
            continue
        digits = 3 if goals == 1 else 4
        cells = [
            f"{m:.{digits}f} ± {s:.{digits}f}" for m, s in zip(own.mean(0)[:-1], own.std(0, ddof=1)[:-1], strict=True)
        ]
        gain = (own - ours if goals == 1 else ours - own)[:, :-1]
        ahead = [interval(gain[:, column], digits) if method != best else "" for column in range(len(AT))]
        lines.append(f"| {method} | {' | '.join(cells)} | {own[:, -1].mean():.0f} | {' | '.join(ahead)} |")
    return lines


def interval(gain: np.ndarray, digits: int) -> str:
    from scipy.stats import t

    half = float(t.ppf(0.975, len(gain) - 1) * gain.std(ddof=1) / np.sqrt(len(gain)))
    text = f"{gain.mean():.{digits}f} [{gain.mean() - half:.{digits}f}, {gain.mean() + half:.{digits}f}]"
    return f"**{text}**" if gain.mean() - half > 0 else text


if __name__ == "__main__":
    main()
