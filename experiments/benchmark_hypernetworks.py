"""Hypernetworks on Fashion-MNIST: magnitude-invariant parametrisations, and kernels from one static generator.

    python experiments/benchmark_hypernetworks.py [--shared ../shared/data] [--workers 1]

writes experiments/benchmark_hypernetworks.md and .svg. Resumable: what was measured lies in
runs/benchmark_hypernetworks/found.json. With `--tiny` everything runs for a few steps, into a folder of its own.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import os
import platform
import statistics
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
RUNS = HERE.parent / "runs"
Task = tuple[str, str, str, int]  # part, row, optimiser or nothing, seed

# Part 1: a small network without normalisation for images of every resolution.
FORMS = {  # name -> constant norm, base, spread
    "magnitude-invariant": (True, True, 0.25),
    "encoding alone": (True, False, 1.0),
    "base alone": (False, True, 0.25),
    "plain": (False, False, 1.0),
}
OPTIMISERS = {"sgd": {"lr": 0.03, "momentum": 0.9}, "adam": {"lr": 1e-3}}
SCALES = (0.0, 0.25, 0.5, 0.75, 1.0)  # resolutions that are judged: 10 pixels to 28
GOAL = 0.9  # loss that counts as reached
BATCH = 64
SMALL_IMAGES = 12000  # a tenth of them held out

# Part 2: wide residual networks of ten layers.
WIDE = {  # name -> widening factor, and what is generated: nothing, or kernels of 3 x 3 pixels
    "WRN-10-1": (1, None),
    "WRN-10-1, generated": (1, "plain"),
    "WRN-10-2": (2, None),
    "WRN-10-2, generated": (2, "plain"),
    "WRN-10-2, base and generated": (2, "magnitude-invariant"),
}

LENGTH = {
    "steps": 400,
    "every": 25,
    "judged": 300,
    "tested": 2000,
    "wide_images": 12000,
    "wide_epochs": 4,
    "batch": 128,
}
TINY = {"steps": 4, "every": 2, "judged": 20, "tested": 40, "wide_images": 300, "wide_epochs": 1, "batch": 128}


@cache
def dataset(shared: str, images: int) -> Any:
    from nasplat.core.experiment import Data
    from nasplat.data.datasets import load_dataset

    return load_dataset(Data(path=f"{shared}/fashion_mnist", train_size=images, validation=0.1))


def pixels(images: Any) -> Any:
    return (images.float() / 255 - 0.2860) / 0.3530


def plain_network(seed: int) -> Any:
    """Three convolutions, global pooling and a classifier: it takes images of any size."""
    import torch
    from torch import nn

    torch.manual_seed(seed)
    network = nn.Sequential(
        *(nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(32, 32, 3, padding=1), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10)),
    )
    for module in network:
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            nn.init.zeros_(module.bias)
    return network


def resized(images: Any, scale: float) -> Any:
    """Square images of 10 pixels where the scale is 0, up to their own 28 where it is 1."""
    from torch.nn import functional as F

    side = round(10 + 18 * scale)
    if side == images.shape[-1]:
        return images
    return F.interpolate(images, size=(side, side), mode="bilinear", antialias=True, align_corners=False)


def small_hypernetwork(row: str, seed: int) -> tuple[Any, bool]:
    """And whether it has a condition. The last word of the row says so."""
    import torch

    from nasplat.networks.hypernetwork import hypernetwork
    from nasplat.networks.perceptron_weights import Dense
    from nasplat.networks.weight_conditions import Continuous, Parametrisation

    form, _, given = row.partition(" / ")
    network = plain_network(seed)
    if form == "no hypernetwork":
        return network, False
    condition = Continuous(1) if given == "resolution" else None
    rng = torch.Generator().manual_seed(seed)
    return hypernetwork(network, Dense((32, 32)), None, condition, Parametrisation(*FORMS[form]), rng), bool(condition)


def train_small(task: Task, shared: str, length: dict[str, int]) -> dict[str, Any]:
    """A run: at every step a batch of another resolution, which is the condition where there is one."""
    import torch
    from torch.nn import functional as F

    _, row, optimiser_name, seed = task
    data = dataset(shared, SMALL_IMAGES)
    hyper, conditioned = small_hypernetwork(row, seed)
    train, labels = pixels(data.train.images), data.train.labels
    judged = pixels(data.validation.images[: length["judged"]]), data.validation.labels[: length["judged"]]
    tested = pixels(data.test.images[: length["tested"]]), data.test.labels[: length["tested"]]
    kind = torch.optim.SGD if optimiser_name == "sgd" else torch.optim.Adam
    optimiser = kind(hyper.parameters(), **OPTIMISERS[optimiser_name])
    draw = torch.Generator().manual_seed(1000 + seed)

    def logits(images: Any, scale: float) -> Any:
        shown = resized(images, scale)
        return hyper(shown, condition=torch.tensor([scale])) if conditioned else hyper(shown)

    def judge(images: Any, wanted: Any) -> tuple[float, float]:
        """Mean loss and accuracy over the resolutions."""
        hyper.eval()
        losses, right = [], []
        with torch.no_grad():
            for scale in SCALES:
                out = logits(images, scale)
                losses.append(F.cross_entropy(out, wanted).item())
                right.append((out.argmax(1) == wanted).float().mean().item())
        hyper.train()
        return statistics.mean(losses), statistics.mean(right)

    curve, norms, losses = [], [], []
    begin = time.process_time()
    for step in range(length["steps"]):
        if step % length["every"] == 0:
            curve.append(judge(*judged)[0])
        which = torch.randint(len(labels), (BATCH,), generator=draw)
        scale = torch.rand((), generator=draw).item()
        loss = F.cross_entropy(logits(train[which], scale), labels[which])
        optimiser.zero_grad()
        loss.backward()
        norms.append(torch.nn.utils.get_total_norm([one.grad for one in hyper.parameters()]).item())
        losses.append(loss.item())
        optimiser.step()
    curve.append(judge(*judged)[0])
    loss, accuracy = judge(*tested)
    return {
        "curve": curve,
        "norms": norms,
        "losses": losses,
        "loss": loss,
        "accuracy": accuracy,
        "params": sum(one.numel() for one in hyper.parameters()),
        "seconds": time.process_time() - begin,
    }


def wide_hypernetwork(row: str, seed: int) -> Any:
    """Kernels of 3 x 3 pixels are generated; shortcuts, normalisation and classifier are ordinary."""
    import torch
    from wide_resnet import wide_resnet

    from nasplat.networks.hypernetwork import hypernetwork
    from nasplat.networks.static_kernels import Static
    from nasplat.networks.weight_conditions import Parametrisation

    widen, form = WIDE[row]
    torch.manual_seed(seed)
    network = wide_resnet(widen)
    if form is None:
        return network
    rng = torch.Generator().manual_seed(seed)
    return hypernetwork(network, Static(), "*.conv?.weight", parametrisation=Parametrisation(*FORMS[form]), rng=rng)


def train_wide(task: Task, shared: str, length: dict[str, int]) -> dict[str, Any]:
    import torch

    from nasplat.compression.images import test_metrics
    from nasplat.core.experiment import Train
    from nasplat.training.fit import fit

    _, row, _, seed = task
    data = dataset(shared, length["wide_images"])
    network = wide_hypernetwork(row, seed)
    settings = Train.model_validate(
        {
            "epochs": length["wide_epochs"],
            "batch_size": length["batch"],
            "optimiser": "adam",
            "lr": 2e-3,
            "weight_decay": 0.0,  # it would act on the generator, and compare other things
            "augment": ["flip"],
        }
    )
    cpu = torch.device("cpu")
    begin = time.process_time()
    fit(network, data, settings, device=cpu, seed=seed)
    seconds = time.process_time() - begin
    params = sum(one.numel() for one in network.parameters())
    return {**test_metrics(network, data, cpu), "params": params, "seconds": seconds}


def measure(task: Task, shared: str, length: dict[str, int]) -> dict[str, Any]:
    import torch

    torch.set_num_threads(1)
    return (train_small if task[0] == "small" else train_wide)(task, shared, length)


def small_rows() -> list[str]:
    return [
        *(f"{form} / resolution" for form in FORMS),
        *(f"{form} / nothing" for form in ("magnitude-invariant", "plain")),
        "no hypernetwork / nothing",
    ]


def tasks(options: argparse.Namespace) -> Iterator[Task]:
    for seed in range(options.seeds):
        for optimiser in OPTIMISERS:
            for row in small_rows():
                yield "small", row, optimiser, seed
    for seed in range(options.wide_seeds):
        for row in WIDE:
            yield "wide", row, "", seed


def reached(run: dict[str, Any], every: int) -> float:
    """The first step at which the loss on held-out images was no larger than the goal, or infinity."""
    return next((every * at for at, loss in enumerate(run["curve"]) if loss <= GOAL), math.inf)


def spread(values: list[float], digits: int = 3) -> str:
    return f"{statistics.mean(values):.{digits}f} ± {statistics.stdev(values) if len(values) > 1 else 0:.{digits}f}"


def middle(values: list[float], digits: int) -> str:
    """Median and range; what is no number is larger than all."""
    known = sorted(value if math.isfinite(value) else math.inf for value in values)
    shown = [f"{value:.{digits}f}" for value in (statistics.median(known), known[0], known[-1])]
    spread_out = f" ({shown[1]} to {shown[2]})" if shown[1] != shown[2] else ""
    return f"{shown[0]}{spread_out}".replace("inf", "∞")


def failed(run: dict[str, Any]) -> bool:
    """Whether the held-out loss was no number, or no better than that of guessing, when training ended."""
    return not run["curve"][-1] < math.log(10) - 0.01


def unsteadiness(run: dict[str, Any]) -> float:
    """Standard deviation over mean of the gradient's norm, over the second half of the steps."""
    norms = run["norms"][len(run["norms"]) // 2 :]
    if not all(math.isfinite(norm) for norm in norms):
        return math.inf
    return statistics.pstdev(norms) / statistics.mean(norms)


def page(found: dict[str, Any], options: argparse.Namespace, length: dict[str, int]) -> str:
    machine = f"{platform.machine()}, {os.cpu_count()} cores, one thread each, Python {platform.python_version()}"
    command = "python experiments/benchmark_hypernetworks.py"
    lines = [
        "# Hypernetworks on Fashion-MNIST",
        "",
        f"`{command} --seeds {options.seeds} --wide-seeds {options.wide_seeds}`",
        "",
        f"{machine}, torch {version('torch')}. Seeds 0 to {options.seeds - 1}, in the second part 0 to "
        f"{options.wide_seeds - 1}.",
        "",
        "## One network for every resolution",
        "",
        "A network of three convolutions and a classifier, without normalisation, whose kernels and matrix come from a "
        "perceptron (`Dense((32, 32))`). At every step a batch of 64 images is brought to a side between 10 and 28 "
        f"pixels, drawn anew; {length['steps']} steps, {0.9 * SMALL_IMAGES:,.0f} images. *Resolution*: the side, "
        "scaled to [0, 1], is the hypernetwork's condition. *Nothing*: the same batches, weights that depend on "
        "nothing; *no hypernetwork*: the "
        "same network with ordinary weights. Loss and accuracy in percent are means over five resolutions of "
        f"{length['tested']:,} test images. *Failed*: runs whose loss on {length['judged']} held-out images was no "
        "number, or no better than that of guessing, at the end. *Steps*: how many until that loss was "
        f"{GOAL} or less, looked at every {length['every']} steps. *Unsteadiness*: the standard deviation of the "
        "gradient's norm over its mean, in the second half of a run. All are medians over seeds, with the range; ∞ is "
        "no number, or never. Seconds are of one core, judging included.",
        "",
        "Rates are those that were written down first: "
        + ", ".join(f"{name} {json.dumps(kwargs)}" for name, kwargs in OPTIMISERS.items())
        + ". Encoding alone and base alone are the two halves of the magnitude-invariant form.",
        "",
        "![Loss on held-out images, median and range over seeds](benchmark_hypernetworks.svg)",
        "",
        "| weights depend on | form | optimiser | parameters | failed | test loss | accuracy | steps | unsteadiness "
        "| seconds |",
        f"|{' --- |' * 10}",
    ]
    for optimiser in OPTIMISERS:
        for row in small_rows():
            runs = [found[json.dumps(["small", row, optimiser, seed])] for seed in range(options.seeds)]
            form, _, given = row.partition(" / ")
            lines.append(
                f"| {given} | {form} | {optimiser} | {runs[0]['params']:,} | {sum(map(failed, runs))} of {len(runs)} | "
                f"{middle([run['loss'] for run in runs], 3)} | {middle([100 * run['accuracy'] for run in runs], 1)} | "
                f"{middle([reached(run, length['every']) for run in runs], 0)} | "
                f"{middle([unsteadiness(run) for run in runs], 2)} | "
                f"{statistics.mean(run['seconds'] for run in runs):.0f} |"
            )
    lines += [
        "",
        "## Kernels from one generator",
        "",
        "Wide residual networks of ten layers with a stem of stride 2. Their kernels of 3 × 3 pixels are ordinary, or "
        "come from a static hypernetwork (basic kernels of 16 × 16 channels, embeddings of 64); shortcuts, "
        "normalisation and classifier are ordinary in all. *Base and generated* adds what is generated to ordinary "
        f"kernels. {length['wide_images']:,} images less a tenth, {length['wide_epochs']} epochs, Adam with 2e-3 along "
        "a cosine, no weight decay. Accuracy in percent on all 10,000 test images, with the standard deviation over "
        "seeds.",
        "",
        "| network | parameters | accuracy | seconds |",
        "| --- | --- | --- | --- |",
    ]
    for row in WIDE:
        runs = [found[json.dumps(["wide", row, "", seed])] for seed in range(options.wide_seeds)]
        lines.append(
            f"| {row} | {runs[0]['params']:,} | {spread([100 * run['accuracy'] for run in runs], 2)} | "
            f"{statistics.mean(run['seconds'] for run in runs):.0f} |"
        )
    return "\n".join(lines) + "\n"


def picture(found: dict[str, Any], options: argparse.Namespace, length: dict[str, int]) -> str:
    """Curves of the held-out loss by optimiser, as SVG: medians over seeds, a band from the least to the largest."""
    colours = {"magnitude-invariant": "#0a6", "encoding alone": "#38c", "base alone": "#a6c", "plain": "#c33"}
    width, height, left, top, most = 360, 260, 45, 30, 2.6
    shapes: list[str] = []
    for panel, optimiser in enumerate(OPTIMISERS):
        start = left + panel * (width + 60)
        shapes.append(f'<text x="{start}" y="{top - 10}">{optimiser}, weights depend on the resolution</text>')
        shapes.append(f'<rect x="{start}" y="{top}" width="{width}" height="{height}" fill="none" stroke="#999"/>')

        def point(step: int, loss: float, start: int = start) -> str:
            return f"{start + width * step / length['steps']:.1f},{top + height * (1 - loss / most):.1f}"

        for loss in (0.5, 1.0, 1.5, 2.0, 2.5):
            y = top + height * (1 - loss / most)
            shapes.append(f'<text x="{start - 25}" y="{y + 4:.1f}">{loss}</text>')
        shapes.append(f'<text x="{start + width - 60}" y="{top + height + 18}">{length["steps"]} steps</text>')
        for line, (form, colour) in enumerate(colours.items()):
            keys = [json.dumps(["small", f"{form} / resolution", optimiser, seed]) for seed in range(options.seeds)]
            seen = enumerate(zip(*(found[key]["curve"] for key in keys), strict=True))
            # What is above the panel, or no number, is drawn at its top.
            curve = [(length["every"] * at, [x if x < most else most for x in values]) for at, values in seen]
            upper = [point(step, max(values)) for step, values in curve]
            lower = [point(step, min(values)) for step, values in curve]
            median = [point(step, statistics.median(values)) for step, values in curve]
            shapes.append(f'<polygon points="{" ".join([*upper, *lower[::-1]])}" fill="{colour}" opacity="0.15"/>')
            shapes.append(f'<polyline points="{" ".join(median)}" fill="none" stroke="{colour}" stroke-width="1.5"/>')
            if panel == 0:
                shapes.append(
                    f'<text x="{start + 10}" y="{top + height - 58 + 16 * line}" fill="{colour}">{form}</text>'
                )
    size = f'width="{left + 2 * width + 75}" height="{top + height + 30}"'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-family="sans-serif" font-size="12">'
    return "\n".join([head, '<rect width="100%" height="100%" fill="#fff"/>', *shapes, "</svg>"]) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shared", default=str(HERE.parent / "../shared/data"))
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--seeds", type=int, default=5, help="of the first part")
    parser.add_argument("--wide-seeds", type=int, default=3, help="of the second part")
    parser.add_argument("--tiny", action="store_true", help="try the script: pages are written beside what is found")
    options = parser.parse_args()
    length = TINY if options.tiny else LENGTH
    folder = RUNS / ("benchmark_hypernetworks_tiny" if options.tiny else "benchmark_hypernetworks")
    folder.mkdir(parents=True, exist_ok=True)
    kept = folder / "found.json"
    found: dict[str, Any] = json.loads(kept.read_text()) if kept.exists() else {"length": length}
    if found["length"] != length:
        parser.error(f"{kept} was measured with {found['length']}; move it away")
    missing = [task for task in tasks(options) if json.dumps(task) not in found]
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(options.workers, mp_context=context) as pool:
        running = {pool.submit(measure, task, options.shared, length): task for task in missing}
        for done in as_completed(running):
            found[json.dumps(running[done])] = done.result()
            partial = kept.with_suffix(".partial")
            partial.write_text(json.dumps(found))
            partial.replace(kept)
            shown = {key: round(value, 4) for key, value in done.result().items() if isinstance(value, int | float)}
            print(*running[done], shown, flush=True)
    goal = folder if options.tiny else HERE
    (goal / "benchmark_hypernetworks.md").write_text(page(found, options, length))
    (goal / "benchmark_hypernetworks.svg").write_text(picture(found, options, length))


if __name__ == "__main__":
    main()
