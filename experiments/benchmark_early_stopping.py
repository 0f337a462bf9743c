"""Early stopping for several metrics on recorded learning curves: epochs until the front of full training is found.

    python experiments/record_curves.py
    python experiments/benchmark_early_stopping.py [--seeds 20]

writes experiments/benchmark_early_stopping.md. Random search proposes, one trial at a time, in as many random orders as
there are seeds; every rule sees the same orders.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import spearmanr

from nasplat.core.front import Goal, front_indices, hypervolume
from nasplat.search.early_stopping import RULES, Rule, rung_shares

HERE = Path(__file__).resolve().parent
GOALS = (Goal("accuracy", "maximize"), Goal("macs", "minimize"))
WITHIN = 0.995  # of the hypervolume of all candidates, fully trained
SETS = {  # title, and the error up to which the hypervolume counts
    "digits_short": ("Digits, 9 epochs of 17 steps", 0.2),
    "digits": ("Digits, 27 epochs of 17 steps", 0.2),
    "fashion_mnist": ("Fashion-MNIST, 9 epochs of 62 steps", 0.4),
}


@dataclass(frozen=True)
class Method:
    """A rule with its rungs; None trains every candidate in full.

    Args:
        settled: at a rung, the batch norms are settled before the network is judged.
    """

    rule: Rule | None
    reduction: int = 3
    rungs: int = 3
    goals: Sequence[Goal] = GOALS
    settled: bool = False


RANDOM = "random, full training"
METHODS = {
    RANDOM: Method(None),
    "asha": Method(RULES["asha"]()),
    "halving, brackets of 27": Method(RULES["halving"](bracket=27)),
    "asha, 2 rungs": Method(RULES["asha"](), rungs=2),
    "halving, 2 rungs": Method(RULES["halving"](bracket=27), rungs=2),
    "asha, 2 rungs, a quarter goes on": Method(RULES["asha"](), reduction=4, rungs=2),
    "asha, settled": Method(RULES["asha"](), settled=True),
    "asha, 2 rungs, settled": Method(RULES["asha"](), rungs=2, settled=True),
    "asha, 2 rungs, on accuracy alone": Method(RULES["asha"](), rungs=2, goals=GOALS[:1]),
}


@dataclass(frozen=True)
class Curves:
    """Recorded trials.

    Args:
        accuracy: `(N, epochs)`, after each epoch.
        settled: `(N, epochs // 3)`, the same with settled batch norms.
        macs: `(N,)`.
        again: `(N,)`, the accuracy of another full training.
    """

    accuracy: np.ndarray
    settled: np.ndarray
    macs: np.ndarray
    again: np.ndarray

    @property
    def epochs(self) -> int:
        return int(self.accuracy.shape[1])

    def at(self, epoch: int, settled: bool) -> np.ndarray:
        """`(N,)`, what a judgement after an epoch finds; of a training that is done, the network as it is."""
        return self.settled[:, epoch - 1] if settled and epoch < self.epochs else self.accuracy[:, epoch - 1]


@dataclass(frozen=True)
class Step:
    """One training, to a rung: epochs spent up to its end by all, the row of the candidate, epochs it has had."""

    spent: int
    row: int
    epochs: int


def replay(method: Method, curves: Curves, order: Sequence[int]) -> list[Step]:
    """A search that answers from curves; it ends when all were started and none is promoted."""
    shares = rung_shares(method.reduction, method.rungs) if method.rule else (1.0,)
    ends = [round(share * curves.epochs) for share in shares]
    results: list[dict[int, dict[str, float]]] = [{} for _ in ends]
    begun: list[list[int]] = [[] for _ in ends]
    steps: list[Step] = []
    spent = 0
    while True:
        last = len(begun[0]) == len(order)
        chosen = method.rule(results, begun, method.goals, method.reduction, last=last) if method.rule else None
        if chosen is None and last:
            return steps
        number, rung = chosen or (len(begun[0]), 0)
        begun[rung].append(number)
        row = order[number]
        spent += ends[rung] - (ends[rung - 1] if rung else 0)
        found = {"accuracy": curves.at(ends[rung], method.settled)[row], "macs": curves.macs[row]}
        results[rung][number] = {name: float(value) for name, value in found.items()}
        steps.append(Step(spent, row, ends[rung]))


@dataclass(frozen=True)
class Outcome:
    """Of one search, hypervolumes as shares of those of the front of all candidates.

    Args:
        total: epochs in all.
        full: candidates trained in full.
        observed: in the end, by the accuracies that the search saw.
        halfway: the same, when half of the epochs were spent that training all candidates in full takes.
        confirmed: in the end, by the accuracies of another training.
        arrival: the epochs until `observed` was within .5 %; None: it never was.
    """

    total: int
    full: int
    observed: float
    halfway: float
    confirmed: float
    arrival: int | None


class Measure:
    """Hypervolumes of the front of candidates trained in full, below an error and up to the most MACs.

    The observed front of many is in part the front of the lucky, which no search that trains fewer in full can match;
    so the same front is measured by another training as well.
    """

    def __init__(self, curves: Curves, error: float) -> None:
        self.observed, self.confirmed = (
            np.stack([1 - accuracy, curves.macs], 1) for accuracy in (curves.accuracy[:, -1], curves.again)
        )
        self.corner = (error, float(curves.macs.max()) * 1.001)
        self.epochs, self.everything = curves.epochs, curves.accuracy.size
        self.whole = self.volumes(list(range(len(curves.macs))))
        self.front = len(np.unique(self.observed[front_indices(self.observed)], axis=0))

    def volumes(self, rows: list[int]) -> tuple[float, float]:
        front = [rows[index] for index in front_indices(self.observed[rows])]
        return hypervolume(self.observed[front], self.corner), hypervolume(self.confirmed[front], self.corner)

    def outcome(self, steps: Sequence[Step]) -> Outcome:
        found: list[int] = []
        observed = halfway = confirmed = 0.0
        arrival: int | None = None
        for step in steps:
            if step.epochs < self.epochs:
                continue
            found.append(step.row)
            observed, confirmed = (share / whole for share, whole in zip(self.volumes(found), self.whole, strict=True))
            if 2 * step.spent <= self.everything:
                halfway = observed
            if arrival is None and observed >= WITHIN:
                arrival = step.spent
        return Outcome(steps[-1].spent, len(found), observed, halfway, confirmed, arrival)


def spread(values: Sequence[float], form: str) -> str:
    """Mean, standard deviation, and the extremes."""
    array = np.array(values, dtype=float)
    return f"{array.mean():{form}} ± {array.std(ddof=1):{form}} ({array.min():{form}} to {array.max():{form}})"


def table(found: dict[str, list[Outcome]], everything: int) -> list[str]:
    """A line a method, and which of them pass; `everything` is what training all candidates in full takes."""
    columns = (
        "",
        "hypervolume after half of all epochs",
        "orders within .5 % by then",
        "epochs until within .5 %, share of all",
        "the same, share of random's in the same order",
        "trained in full",
        "epochs in all, share",
        "hypervolume in the end",
        "confirmed",
    )
    lines = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    first = [one.arrival for one in found[RANDOM]]
    verdicts: list[str] = []
    stricter: list[str] = []
    for name, outcomes in found.items():
        halfway = [one.halfway for one in outcomes]
        there = [(one.arrival, at) for one, at in zip(outcomes, first, strict=True) if one.arrival and at]
        arrivals = ["–", "–"]
        if len(there) > 1:
            arrivals = [
                f"{spread([arrival / everything for arrival, _ in there], '.2f')}, {len(there)} orders",
                spread([arrival / at for arrival, at in there], ".2f"),
            ]
        cells = [
            spread(halfway, ".4f"),
            f"{sum(one >= WITHIN for one in halfway)} of {len(outcomes)}",
            *arrivals,
            f"{np.mean([one.full for one in outcomes]):.0f}",
            f"{np.mean([one.total for one in outcomes]) / everything:.2f}",
            spread([one.observed for one in outcomes], ".4f"),
            spread([one.confirmed for one in outcomes], ".4f"),
        ]
        lines.append(f"| {name} | {' | '.join(cells)} |")
        if np.mean(halfway) >= WITHIN:
            verdicts.append(f"“{name}”")
        if len(there) == len(outcomes) and np.mean([arrival / at for arrival, at in there]) <= 0.5:
            stricter.append(f"“{name}”")
    verdict = f"Within .5 % after half of all epochs, in the mean over the orders: {'; '.join(verdicts) or 'none'}."
    strict = f"In half of the epochs that random search needs in the same order: {'; '.join(stricter) or 'none'}."
    return [*lines, "", verdict, strict]


def agreement(curves: Curves) -> str:
    """How well a judgement at a rung ranks the candidates as another full training does."""
    parts = [
        f"after {round(share * curves.epochs)} epochs "
        + " and ".join(
            f"{spearmanr(curves.at(round(share * curves.epochs), settled), curves.again).statistic:.2f} {name}"
            for settled, name in ((False, "as it is"), (True, "settled"))
        )
        for share in rung_shares()[:-1]
    ]
    ceiling = spearmanr(curves.accuracy[:, -1], curves.again).statistic
    return (
        "Spearman's rank correlation with the accuracy of a full training with another seed: "
        f"{', '.join(parts)}, after full training {ceiling:.2f}."
    )


def section(title: str, error: float, recorded: dict[str, Any], seeds: int) -> list[str]:
    """What was found on the curves of one data set."""
    trials = recorded["curves"]
    curves = Curves(*(np.array([one[name] for one in trials]) for name in ("accuracy", "settled", "macs", "again")))
    measure = Measure(curves, error)
    everything = len(trials) * curves.epochs
    orders = [np.random.default_rng([5, seed]).permutation(len(trials)).tolist() for seed in range(seeds)]
    found: dict[str, list[Outcome]] = {name: [] for name in METHODS}
    for order in orders:
        for name, method in METHODS.items():
            found[name].append(measure.outcome(replay(method, curves, order)))
    return [
        "",
        f"## {title}",
        "",
        f"{len(trials)} candidates, {recorded['images']['train']} training and {recorded['images']['validation']} "
        f"validation images; {everything} epochs to train all in full. Their front has {measure.front} networks; "
        f"hypervolume below an error of {error:.0%} and {measure.corner[1]:.3g} MACs. {agreement(curves)}",
        "",
        *table(found, everything),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--curves", type=Path, default=HERE.parent / "runs/curves")
    options = parser.parse_args()
    recorded = {name: json.loads((options.curves / f"{name}.json").read_text()) for name in SETS}
    lines = [
        "# Early stopping for several metrics",
        "",
        f"`python experiments/benchmark_early_stopping.py --seeds {options.seeds}`",
        "",
        "Learning curves of random nasbench201 cells with the training of experiments/quickstart.yaml "
        f"(experiments/record_curves.py; {recorded['digits']['machine']}), answered from the record by the rules of "
        f"`nasplat.search.early_stopping`, one trial at a time, in {options.seeds} random orders (seeds 0 to "
        f"{options.seeds - 1}); NumPy {version('numpy')}. Goals: accuracy and MACs. Rungs at 1/9, 1/3 and all of the "
        "budget and a third goes on; with two rungs at 1/3 and all of it, or at 1/4 where a quarter goes on. Mean ± "
        "standard deviation (least to most) over the orders.",
        "",
        "- *Hypervolume*: of accuracy and MACs, as a share of what training all candidates in full finds. Only "
        "candidates that were trained **in full** count as found; what is paused counts for nothing.",
        "- *All epochs*: what training all candidates in full takes.",
        "- *Confirmed*: the front that the search returns, by the accuracies of another training with another seed, as "
        "a share of the front of all, confirmed in the same way. It tells how much of the front was luck in one "
        "training; shares above 1 are luck in the other.",
        "- *Settled*: before a network is judged at a rung, its batch norms average over up to 1,024 training images: "
        "one forward pass, which is not counted as epochs. Nasplat does not do so; it is here for comparison.",
        "",
        "Not held out: two rungs, the longer budget on digits and the boxes of the hypervolume were chosen after "
        "looking at curves like these. Each data set is one pool of candidates, so the spread is that of the order "
        "alone.",
        *(
            line
            for name, (title, error) in SETS.items()
            for line in section(title, error, recorded[name], options.seeds)
        ),
    ]
    text = "\n".join(lines) + "\n"
    (HERE / "benchmark_early_stopping.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
