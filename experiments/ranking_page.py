"""experiments/benchmark_ranking.md, from what benchmark_ranking.py found."""

from __future__ import annotations

import argparse
import os
import platform
import statistics
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Any

import numpy as np
import train_fashion_cells as truth
from ranking_subjects import (
    COSTS,
    FEW,
    FOLDS,
    SOURCES,
    START_CELLS,
    START_EPOCHS,
    ZERO_COST,
    accuracies_of,
    cells,
    subject,
)


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
