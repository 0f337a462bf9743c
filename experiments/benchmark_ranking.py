"""How well shared and generated weights rank cells, beside what costs nothing; and what a rank costs.

    python experiments/train_fashion_cells.py          # the truth: 100 cells trained alone, with 2 seeds
    python experiments/benchmark_ranking.py [--shared ../shared/data] [--seeds 2]
    python experiments/benchmark_ranking.py --speed    # on a quiet machine

writes experiments/benchmark_ranking.md. Resumable: what is found lies in runs/benchmark_ranking/.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import train_fashion_cells as truth

HERE = Path(__file__).resolve().parent
RUNS = HERE.parent / "runs" / "benchmark_ranking"
# Each source with its section of an experiment, and what its space has beside that of the truth.
SOURCES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "supernet": ({"source": "supernet", "train": {"epochs": 60}}, {}),
    "supernet of nested widths": (
        {"source": "supernet", "options": {"paths": 2}, "train": {"epochs": 30}},
        {"channels": [4, 6, 8]},
    ),
    "smash": ({"source": "smash", "train": {"epochs": 60}}, {}),
    "graph hypernetwork": ({"source": "graph_hypernetwork", "train": {"epochs": 12}}, {}),
}
ZERO_COST = ("naswot", "synflow", "jacob_cov", "snip", "grad_norm")
COSTS = ("macs", "params")
FEW = 96  # validation images of the quick ranking, whose own statistics batch norm uses
FOLDS = 5  # of the predictor: it is fitted to all folds but one, and judged on that
START_CELLS = 6  # that are trained from generated and from random weights
START_EPOCHS = (0, 1, 5)


@cache
def subject(shared: str, changes: str = "{}") -> tuple[Any, Any]:
    """The images, and the space of the truth with changes."""
    from nasplat.spaces.families import load_space

    dataset = truth.data(shared)
    return dataset, load_space({**truth.SPACE, **json.loads(changes)}, dataset.problem)


def cells(shared: str) -> list[Any]:
    """The cells of the truth, in the order of its table."""
    _, space = subject(shared)
    names = dict.fromkeys(row["cell"] for row in truth.table())
    known = {truth.name_of(one): one for one in truth.chosen(space, len(names))}
    return [known[name] for name in names]


def accuracies_of(split: str, seeds: Sequence[int]) -> np.ndarray:
    """What the cells reached when they were trained alone, `(seeds, N)`."""
    found = {(row["cell"], int(row["seed"])): float(row[split]) for row in truth.table()}
    names = dict.fromkeys(row["cell"] for row in truth.table())
    return np.array([[found[name, seed] for name in names] for seed in seeds])


def in_space(space: Any, cell: Any) -> Any:
    """The cell in a space that may have a choice of widths: at the full width."""
    widest = {"channels": truth.SPACE["channels"]} if "channels" in space.choices else {}
    return space.canonical({**cell.values, **widest})


def trained_source(name: str, seed: int, shared: str) -> tuple[Any, Any]:
    """A source and its space; it is trained where it was not."""
    from nasplat.core.experiment import Experiment
    from nasplat.search.weight_sources import read_source
    from nasplat.search.weights import with_weights_trained

    weights, changes = SOURCES[name]
    dataset, space = subject(shared, json.dumps(changes))
    experiment = Experiment.model_validate(
        {
            "space": {**truth.SPACE, **changes},
            "data": {"source": "fashion_mnist", "path": f"{shared}/fashion_mnist"},
            "train": truth.TRAIN,
            "weights": weights,
            "search": {"seed": seed},
            "run": {"device": "cpu", "threads": 1},
        }
    )
    folder = RUNS / f"{name.replace(' ', '-')}-{seed}"
    trained = with_weights_trained(experiment, space, folder, lambda text: print(text, flush=True), lambda: dataset)
    assert trained.weights is not None and trained.weights.file is not None
    return read_source(Path(trained.weights.file), space).eval(), space


def train_source(name: str, seed: int, shared: str) -> float:
    """CPU seconds of the training."""
    import torch

    torch.set_num_threads(1)
    begin = time.process_time()
    trained_source(name, seed, shared)
    return time.process_time() - begin


def rank(source: Any, space: Any, architectures: Sequence[Any], shared: str, few: bool) -> list[tuple[float, float]]:
    """Accuracy and minus cross-entropy of each: on all validation images, batch norm measured on 512 training
    images; or on a few validation images, batch norm measured on these."""
    import torch
    from torch.nn import functional as F

    from nasplat.training.evaluate import evaluation_loader
    from nasplat.training.weight_source import calibration, predictions

    dataset, _ = subject(shared)
    cpu = torch.device("cpu")
    batches = list(evaluation_loader(dataset, "validation", cpu).ordered())
    images, labels = torch.cat([one.views[0] for one in batches]), torch.cat([one.labels for one in batches])
    if few:
        images, labels = images[:FEW], labels[:FEW]
    measured_on = [images] if few else calibration(dataset, cpu)
    shown = [images] if few else [one.views[0] for one in batches]
    found = []
    for outputs in predictions(source, space, architectures, shown, [] if few else measured_on):
        logits = torch.cat(list(outputs))
        right = (logits.argmax(1) == labels).double().mean().item()
        found.append((right, -F.cross_entropy(logits, labels).item()))
    return found


def by_source(name: str, seed: int, shared: str) -> dict[str, Any]:
    import torch

    torch.set_num_threads(1)
    source, space = trained_source(name, seed, shared)
    architectures = [in_space(space, cell) for cell in cells(shared)]
    begin = time.process_time()
    full = rank(source, space, architectures, shared, few=False)
    between = time.process_time()
    few = rank(source, space, architectures, shared, few=True)
    seconds = {"full_seconds": between - begin, "few_seconds": time.process_time() - between}
    return {"full": full, "few": few, **seconds}


def by_zero_cost(shared: str) -> dict[str, Any]:
    """Every score of every cell, from one batch of 64 training images; and the seconds of each score."""
    import torch

    from nasplat.search.evaluate import build
    from nasplat.training.evaluate import evaluation_loader
    from nasplat.training.zero_cost import zero_cost_scores

    torch.set_num_threads(1)
    dataset, space = subject(shared)
    batch = next(iter(evaluation_loader(dataset, "train", torch.device("cpu"), batch_size=64).ordered()))
    scores: dict[str, list[float]] = {name: [] for name in ZERO_COST}
    seconds = dict.fromkeys(ZERO_COST, 0.0)
    for cell in cells(shared):
        network = build(space, cell, 0)
        for name in ZERO_COST:
            begin = time.process_time()
            scores[name].append(zero_cost_scores(network, batch.views[0], batch.labels, [name])[name])
            seconds[name] += time.process_time() - begin
    return {"scores": scores, "seconds": seconds}


def by_predictor(shared: str) -> dict[str, Any]:
    """Each cell's prediction by a predictor that was fitted to the validation accuracies of the other folds."""
    import torch

    from nasplat.training.predictor import SpaceData, fit_predictor

    torch.set_num_threads(1)
    _, space = subject(shared)
    ones, known = cells(shared), accuracies_of("validation", [0]).mean(0)
    predicted = np.zeros(len(ones))
    begin = time.process_time()
    for fold in range(FOLDS):
        own = np.arange(fold, len(ones), FOLDS)
        others = np.setdiff1d(np.arange(len(ones)), own)
        data = SpaceData(space, [ones[row] for row in others], known[others])
        predicted[own] = fit_predictor([data], seed=0).predict(space, [ones[row] for row in own])
    return {"scores": predicted.tolist(), "seconds": time.process_time() - begin}


def by_start(place: int, shared: str) -> dict[str, Any]:
    """Test accuracy after some epochs from generated and from random weights, of a cell that stands at `place`."""
    import torch

    from nasplat.compression.images import test_metrics
    from nasplat.core.experiment import Train
    from nasplat.search.evaluate import build
    from nasplat.training.fit import fit
    from nasplat.training.initialisation import initialise_from
    from nasplat.training.recalibrate import recalibrate
    from nasplat.training.weight_source import calibration

    torch.set_num_threads(1)
    cpu = torch.device("cpu")
    dataset, space = subject(shared)
    source, _ = trained_source("graph hypernetwork", 0, shared)
    cell = cells(shared)[place]
    found: dict[str, list[float]] = {}
    for start in ("random", "generated"):
        found[start] = []
        for epochs in START_EPOCHS:
            network = build(space, cell, place)
            if start == "generated":
                noise = torch.Generator().manual_seed(place)
                initialise_from(source, network, space.problem, noise)
            if epochs:
                fit(network, dataset, Train(**{**truth.TRAIN, "epochs": epochs}), device=cpu, seed=place)
            else:
                recalibrate(network, calibration(dataset, cpu))
            found[start].append(test_metrics(network, dataset, cpu)["accuracy"])
    return found


def after_an_epoch(shared: str) -> dict[str, Any]:
    """Validation accuracy of every second cell after one epoch of its own, from fresh and from the supernet's weights;
    and CPU seconds."""
    import torch

    from nasplat.core.experiment import Train
    from nasplat.search.evaluate import build
    from nasplat.training.evaluate import accuracy, evaluation_loader
    from nasplat.training.fit import fit
    from nasplat.training.weight_source import calibration, with_weights

    torch.set_num_threads(1)
    cpu = torch.device("cpu")
    dataset, space = subject(shared)
    source, _ = trained_source("supernet", 0, shared)
    images = calibration(dataset, cpu)
    settings = Train(**{**truth.TRAIN, "epochs": 1})
    validation = evaluation_loader(dataset, "validation", cpu)
    found: dict[str, Any] = {"seconds": {}}
    for start in ("fresh", "supernet"):
        begin, found[start] = time.process_time(), []
        for cell in cells(shared)[::2]:
            fresh = start == "fresh"
            network = build(space, cell, 0) if fresh else with_weights(source, space, cell, images)
            fit(network, dataset, settings, device=cpu, seed=0)
            found[start].append(accuracy(network, validation, cpu))
        found["seconds"][start] = time.process_time() - begin
    return found


def speed(shared: str) -> dict[str, Any]:
    """Candidates a second by each method and by one epoch each; and the step of a supernet beside a plain one."""
    import torch

    from nasplat.core.experiment import Train
    from nasplat.search.evaluate import build
    from nasplat.training.evaluate import accuracy, evaluation_loader
    from nasplat.training.fit import fit

    torch.set_num_threads(1)
    cpu = torch.device("cpu")
    dataset, space = subject(shared)
    some = cells(shared)[::10]
    epoch = Train(**{**truth.TRAIN, "epochs": 1})

    def a_second(work: Callable[[], Any]) -> float:
        begin = time.perf_counter()
        work()
        return len(some) / (time.perf_counter() - begin)

    def one_epoch_each() -> None:
        validation = evaluation_loader(dataset, "validation", cpu)
        for cell in some:
            network = build(space, cell, 0)
            fit(network, dataset, epoch, device=cpu, seed=0)
            accuracy(network, validation, cpu)

    rates = {"one epoch each": a_second(one_epoch_each)}
    for name in SOURCES:
        source, own = trained_source(name, 0, shared)
        ones = [in_space(own, cell) for cell in some]
        for few in (False, True):
            rank(source, own, ones[:2], shared, few)
            rates[f"{name}, {FEW if few else 'all'} images"] = a_second(
                lambda source=source, own=own, ones=ones, few=few: rank(source, own, ones, shared, few)
            )
    return {"rates": rates, "steps": steps(shared)}


def steps(shared: str) -> list[tuple[float, float]]:
    """Seconds of an epoch of a supernet, and of the sampled networks' plain training steps, side by side."""
    import torch

    from nasplat.core.experiment import Train
    from nasplat.search.weight_sources import make, source_of
    from nasplat.training.fit import fit
    from nasplat.training.objectives import make_objective
    from nasplat.training.weight_source import SourceObjective, uniform

    dataset, space = subject(shared)
    cpu = torch.device("cpu")
    settings = Train(**{**truth.TRAIN, "epochs": 1})
    inner = make_objective(settings, dataset.problem, len(dataset.train))

    class Plain:
        """The same networks, drawn by the same rule and built before, one a step."""

        views, needs_labels, first_plain = inner.views, inner.needs_labels, False

        def __init__(self, networks: list[Any]) -> None:
            self.networks = iter(networks)

        def module(self, network: Any) -> None:
            return None

        def loss(self, network: Any, extra: Any, batch: Any, generator: Any) -> Any:
            return inner.loss(next(self.networks), extra, batch, generator)

    found = []
    for repeat in range(5):
        rng = np.random.default_rng(repeat)
        count = -(-len(dataset.train) // settings.batch_size)
        networks = [space.build(space.sample(rng)).train() for _ in range(count)]
        # One optimiser over all of them would step through 63 networks: each step has gradients of one, as plain
        # training has, and the others are skipped.
        holder = torch.nn.ModuleList(networks)
        begin = time.perf_counter()
        fit(holder, dataset, settings, device=cpu, seed=repeat, objective=Plain(networks))
        plain = time.perf_counter() - begin
        supernet = make(source_of("supernet", {}), space, repeat)

        class Same:
            """Draws what the plain ones are."""

            def __init__(self, seed: int) -> None:
                self.rng, self.rule = np.random.default_rng(seed), uniform(space, 1)

            def __call__(self, rng: Any, share: float) -> Any:
                return self.rule(self.rng, share)

        begin = time.perf_counter()
        fit(
            supernet,
            dataset,
            settings,
            device=cpu,
            seed=repeat,
            objective=SourceObjective(space, Same(repeat), inner),
        )
        found.append((time.perf_counter() - begin, plain))
    return found


def bracket(bounded: Any) -> str:
    return f"{bounded.value:+.2f} [{bounded.low:+.2f}, {bounded.high:+.2f}]"


def page(found: Mapping[str, Any], options: argparse.Namespace) -> str:
    from nasplat.core.rank_correlation import kendall, rank_intervals, spearman

    ones = cells(options.shared)
    test = accuracies_of("test", range(options.truth_seeds))
    mean = test.mean(0)
    _, space = subject(options.shared)
    table: dict[str, tuple[np.ndarray, str]] = {
        name: (np.array([float(getattr(space.cost(one), name)) for one in ones]), "0") for name in COSTS
    }
    zero = found["zero cost"]
    for name in ZERO_COST:
        table[name] = np.array(zero["scores"][name]), f"{zero['seconds'][name]:.0f}"
    predictor = found["predictor"]
    trainings = len(ones) * (1 - 1 / FOLDS) * truth.TRAIN["epochs"] / found["speed"]["rates"]["one epoch each"]
    cost = f"{trainings:.0f} + {predictor['seconds'] / FOLDS:.1f}"
    table[f"predictor, of the other {FOLDS - 1} fifths of seed 0"] = np.array(predictor["scores"]), cost
    runs: dict[str, list[dict[str, Any]]] = {
        name: [found[f"{name} {seed}"] for seed in range(options.seeds) if f"{name} {seed}" in found]
        for name in SOURCES
    }
    for name, seeds in runs.items():
        trained = statistics.mean(found[f"train {name} {seed}"] for seed in range(len(seeds)))
        for what, images in (("full", "all"), ("few", f"{FEW}")):
            seconds = f"{trained:.0f} + {statistics.mean(one[f'{what}_seconds'] for one in seeds):.1f}"
            for column, metric in enumerate(("accuracy", "cross-entropy")):
                scores = np.mean([[one[column] for one in run[what]] for run in seeds[:1]], axis=0)
                table[f"{name}, {metric} on {images}"] = scores, seconds
    ceiling, ceiling_rho = kendall(test[0], test[1]), spearman(test[0], test[1])
    lines = [
        "# Ranking by shared and by generated weights",
        "",
        "`python experiments/train_fashion_cells.py`, then `python experiments/benchmark_ranking.py "
        f"--seeds {options.seeds}`, then the same with `--speed`",
        "",
        f"{platform.machine()}, {os.cpu_count()} cores, one thread, Python {platform.python_version()}, torch "
        f"{version('torch')}.",
        "",
        "## The truth, and its ceiling",
        "",
        f"{len(ones)} cells of NAS-Bench-201's space, as many of each tenth of it by MACs, stacked once a stage with "
        f"{truth.SPACE['channels']} channels, and trained alone with {options.truth_seeds} seeds: Fashion-MNIST, "
        f"{truth.IMAGES:,} images of which a fifth is for validation, brought to {truth.SIDE} × {truth.SIDE} pixels; "
        f"{truth.TRAIN['epochs']} epochs, batches of {truth.TRAIN['batch_size']} ([the table](fashion_cells.csv)). "
        f"Test accuracies from {100 * mean.min():.1f} to {100 * mean.max():.1f} %, on average "
        f"{100 * np.abs(test[0] - test[1]).mean():.2f} points apart between the seeds.",
        "",
        f"**The ceiling: Kendall's τ between the two seeds is {ceiling:.2f}, Spearman's ρ {ceiling_rho:.2f}.** No "
        "ranking can be expected to agree better with one training than a second training does. *Of the ceiling* is "
        "the mean τ with the single seeds over that.",
        "",
        "## How well each method ranks",
        "",
        f"Against the mean test accuracy of both seeds; brackets are 95 % intervals of {len(ones)} cells drawn again "
        "with replacement, those of differences by the same draws for both. Regret: how much better, in points of "
        "accuracy, the best cell is than the best of the method's top five. Recall: how many of the truly best ten are "
        "among the method's ten. CPU seconds: of training the source, and of ranking all cells. Sources have their "
        "first seed here.",
        "",
        "| ranked by | τ | ρ | of the ceiling | τ ahead of MACs | τ ahead of parameters | regret | recall | seconds |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    shares: dict[str, float] = {}
    for name, (scores, seconds) in table.items():
        rows = rank_intervals(
            {name: scores, "as macs": table["macs"][0], "as params": table["params"][0]},
            mean,
            np.random.default_rng(0),
        )
        share = shares[name] = statistics.mean(kendall(scores, each) for each in test) / ceiling
        top = np.argsort(-scores, kind="stable")
        regret = 100 * (mean.max() - mean[top[:5]].max())
        best = set(np.argsort(-mean, kind="stable")[:10].tolist())
        recall = len(best & set(top[:10].tolist()))
        leads = ["" if name == cost else bracket(row.kendall_lead) for row, cost in zip(rows[1:], COSTS, strict=True)]
        lines.append(
            f"| {name} | {bracket(rows[0].kendall)} | {bracket(rows[0].spearman)} | {share:.0%} | {leads[0]} | "
            f"{leads[1]} | {regret:.2f} | {recall} | {seconds} |"
        )
    sources = {name: share for name, share in shares.items() if name.split(",")[0] in SOURCES}
    best = max(sources, key=lambda name: sources[name])
    costless = max((*COSTS, *ZERO_COST), key=lambda name: shares[name])
    lines += [
        "",
        f"The goals were 80 % of the ceiling for a supernet, and a hypernetwork ahead of the parameter count. The best "
        f"source ({best}) reaches {sources[best]:.0%} of the ceiling, the parameter count {shares['params']:.0%}, and "
        f"{costless}, which costs no training, {shares[costless]:.0%}.",
    ]
    lines += ["", "τ by the seed of the source, where several were trained:", ""]
    lines += ["| source | " + " | ".join(map(str, range(options.seeds))) + " |", "| --- |" + " --- |" * options.seeds]
    for name, seeds in runs.items():
        for what, images in (("full", "all"), ("few", f"{FEW}")):
            for column, metric in enumerate(("accuracy", "cross-entropy")):
                taus = [kendall(np.array([one[column] for one in run[what]]), mean) for run in seeds]
                shown = [f"{tau:.2f}" for tau in taus] + [""] * (options.seeds - len(taus))
                lines.append(f"| {name}, {metric} on {images} | {' | '.join(shown)} |")
    lines += ["", *_why(found, ones, mean), *_starts(found), *_speed(found)]
    return "\n".join(lines) + "\n"


def _why(found: Mapping[str, Any], ones: Sequence[Any], mean: np.ndarray) -> list[str]:
    """What the supernet's ranking lacks, looked at."""
    from nasplat.core.rank_correlation import kendall

    convolutions = np.array([sum("conv" in str(option) for option in one.values.values()) for one in ones])
    scores = np.array([accuracy for accuracy, _ in found["supernet 0"]["full"]])
    lines = [
        "## Why the supernet is not ahead of MACs",
        "",
        "What a cell is worth here is above all how many convolutions it has: their number alone ranks with τ "
        f"{kendall(convolutions, mean):.2f}. A single path trains an edge's convolution in a fifth of the steps, but "
        "what all paths share (stem, reductions, classifier) in every one, so that with the supernet's weights a cell "
        "of more convolutions is worth less than alone:",
        "",
        "| convolutions | cells | alone, test | with the supernet's weights, validation | τ among them |",
        "| --- | --- | --- | --- | --- |",
    ]
    for count in range(7):
        rows = convolutions == count
        if rows.any():
            among = kendall(scores[rows], mean[rows]) if rows.sum() >= 5 else float("nan")
            lines.append(
                f"| {count} | {rows.sum()} | {100 * mean[rows].mean():.1f} % | {100 * scores[rows].mean():.1f} % | "
                + ("|" if among != among else f"{among:+.2f} |")
            )
    epoch, half = found["after an epoch"], mean[::2]
    shown = {
        "the supernet's weights as they are": kendall(scores[::2], half),
        "an epoch from the supernet's weights": kendall(np.array(epoch["supernet"]), half),
        "an epoch from fresh weights": kendall(np.array(epoch["fresh"]), half),
        "the number of convolutions": kendall(convolutions[::2], half),
    }
    return [
        *lines,
        "",
        "Were that all, a little training of its own would mend it. It does not, and even an epoch from fresh weights "
        "ranks worse than counting convolutions: which of these cells is best is decided late in a training, by "
        f"capacity, and the cells from two convolutions on lie within two points. {len(half)} of the cells (every "
        "second), ranked by validation accuracy:",
        "",
        "| ranked by | τ |",
        "| --- | --- |",
        *(f"| {name} | {tau:+.2f} |" for name, tau in shown.items()),
        "",
    ]


def _starts(found: Mapping[str, Any]) -> list[str]:
    starts = [found[f"start {place}"] for place in range(START_CELLS)]
    lines = [
        "## Weights to begin with",
        "",
        f"The first {START_CELLS} cells of the table, trained from the graph hypernetwork's weights (seed 0, a tenth "
        "of noise) and from random ones, each number of epochs a training of its own: test accuracy in percent, mean "
        "over the cells, and the mean difference with its standard error. With no epoch batch norm is measured on 512 "
        "training images.",
        "",
        "| epochs | random | generated | difference |",
        "| --- | --- | --- | --- |",
    ]
    for column, epochs in enumerate(START_EPOCHS):
        random = [100 * one["random"][column] for one in starts]
        generated = [100 * one["generated"][column] for one in starts]
        gains = [one - other for one, other in zip(generated, random, strict=True)]
        error = statistics.stdev(gains) / len(gains) ** 0.5
        lines.append(
            f"| {epochs} | {statistics.mean(random):.1f} | {statistics.mean(generated):.1f} | "
            f"{statistics.mean(gains):+.1f} ± {error:.1f} |"
        )
    return lines


def _speed(found: Mapping[str, Any]) -> list[str]:
    rates, pairs = found["speed"]["rates"], found["speed"]["steps"]
    base = rates["one epoch each"]
    lines = [
        "",
        "## Speed",
        "",
        "Candidates a second, in one run on a quiet machine: building each, training it for one epoch and judging it "
        "on all validation images; and judging each with a source's weights, batch norm measured anew for each. A "
        "first run with 128 images and twice the cells had given SMASH 92 times the rate of one epoch each; the number "
        "of images was lowered to 96 after that. The graph hypernetwork has one seed (`--first`).",
        "",
        "| ranked by | candidates a second | against one epoch each |",
        "| --- | --- | --- |",
    ]
    lines += [f"| {name} | {rate:.2f} | {rate / base:.0f} |" for name, rate in rates.items()]
    ratios = [supernet / plain for supernet, plain in pairs]
    return [
        *lines,
        "",
        f"An epoch of the supernet, one path a step, took {statistics.median(ratios):.2f} times as long as plain "
        "training steps of the same networks on the same batches, built before (median of "
        f"{len(ratios)} pairs, from {min(ratios):.2f} to {max(ratios):.2f}).",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shared", default=str(HERE.parent / "../shared/data"))
    parser.add_argument("--seeds", type=int, default=2, help="of the sources")
    parser.add_argument("--truth-seeds", type=int, default=2)
    parser.add_argument("--only", help="trains the source of this name, and ends there")
    parser.add_argument("--first", action="store_true", help="of all sources the first seed only, the others as found")
    parser.add_argument("--speed", action="store_true", help="time candidates and steps as well")
    options = parser.parse_args()
    RUNS.mkdir(parents=True, exist_ok=True)
    seeds = range(1 if options.first else options.seeds)
    chosen = [(name, seed) for seed in seeds for name in SOURCES if options.only in (None, name)]
    work: dict[str, Callable[[], Any]] = {
        f"train {name} {seed}": lambda name=name, seed=seed: train_source(name, seed, options.shared)
        for name, seed in chosen
    }
    if not options.only:
        work |= {
            f"{name} {seed}": lambda name=name, seed=seed: by_source(name, seed, options.shared)
            for name, seed in chosen
        }
        work |= {
            "zero cost": lambda: by_zero_cost(options.shared),
            "predictor": lambda: by_predictor(options.shared),
            "after an epoch": lambda: after_an_epoch(options.shared),
            **{f"start {place}": lambda place=place: by_start(place, options.shared) for place in range(START_CELLS)},
        }
        if options.speed:
            work["speed"] = lambda: speed(options.shared)
    for name, do in work.items():
        kept = RUNS / f"{name.replace(' ', '-')}.json"
        if not kept.exists():
            result = do()
            partial = kept.with_suffix(".partial")
            partial.write_text(json.dumps(result))
            partial.replace(kept)
            print(name, "done", flush=True)
    if not options.only:
        every = [f"{kind}{name} {seed}" for kind in ("", "train ") for name in SOURCES for seed in range(options.seeds)]
        places = {name: RUNS / f"{name.replace(' ', '-')}.json" for name in dict.fromkeys([*work, "speed", *every])}
        found = {name: json.loads(place.read_text()) for name, place in places.items() if place.exists()}
        (HERE / "benchmark_ranking.md").write_text(page(found, options))


if __name__ == "__main__":
    main()
