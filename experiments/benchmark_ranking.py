"""How well shared and generated weights rank cells, beside what costs nothing; and what a rank costs.

    python experiments/train_fashion_cells.py          # the truth: 100 cells trained alone, with 2 seeds
    python experiments/benchmark_ranking.py [--shared ../shared/data] [--seeds 2]
    python experiments/benchmark_ranking.py --speed    # on a quiet machine

writes experiments/benchmark_ranking.md. Resumable: what is found lies in runs/benchmark_ranking/.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import train_fashion_cells as truth
from ranking_page import page
from ranking_subjects import (
    FEW,
    FOLDS,
    HERE,
    RUNS,
    SOURCES,
    START_CELLS,
    START_EPOCHS,
    ZERO_COST,
    accuracies_of,
    cells,
    in_space,
    rank,
    subject,
    trained_source,
)


def train_source(name: str, seed: int, shared: str) -> float:
    """CPU seconds of the training."""
    import torch

    torch.set_num_threads(1)
    begin = time.process_time()
    trained_source(name, seed, shared)
    return time.process_time() - begin


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
