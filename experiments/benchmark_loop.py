"""What the training loop costs over a loop written by hand that does the same work.

    python experiments/benchmark_loop.py [--repetitions 15] [--epochs 2] [--write]

Both train the same network on the same batches (8x8 and 32x32 images, already on the device and without augmentation,
so that the loop is all there is to see) with the same optimiser, schedule and clipping. They take turns within one
run, and the ratio of the medians is printed; the goal is at most 1.05. Small networks are the hard case: a step that
takes long hides whatever the loop does beside it.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass
from math import cos, pi
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nasplat.core.experiment import Train
from nasplat.core.problem import classification
from nasplat.training.devices import resolve_device
from nasplat.training.loop import train
from nasplat.training.objectives import make_objective

GOAL = 1.05
BATCH = 128


@dataclass(frozen=True)
class Batch:
    views: tuple[Tensor, ...]
    labels: Tensor
    indices: Tensor


@dataclass(frozen=True)
class Source:
    """Batches of random images that lie on the device."""

    images: Tensor
    labels: Tensor

    @property
    def batches_per_epoch(self) -> int:
        return len(self.images) // BATCH

    def epoch(self, generator: torch.Generator) -> Iterator[Batch]:
        order = torch.randperm(len(self.images), generator=generator).to(self.images.device)
        for rows in order.split(BATCH)[: self.batches_per_epoch]:
            yield Batch((self.images[rows],), self.labels[rows], rows)


def network(channels: int) -> nn.Module:
    """Four convolutions; about the size of a cell network's candidate."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layers: list[nn.Module] = []
        previous = 3
        for width, stride in ((channels, 1), (channels, 1), (2 * channels, 2), (2 * channels, 1)):
            layers += [nn.Conv2d(previous, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
            previous = width
        return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(previous, 10))


def by_hand(model: nn.Module, source: Source, settings: Train, epochs: int, device: torch.device) -> list[float]:
    """What a user would write."""
    model.to(device).to(memory_format=torch.channels_last).train()  # type: ignore[call-overload]
    decaying = [p for p in model.parameters() if p.dim() > 1]
    others = [p for p in model.parameters() if p.dim() <= 1]
    groups = [{"params": decaying, "weight_decay": settings.weight_decay}, {"params": others, "weight_decay": 0.0}]
    optimiser = torch.optim.SGD(groups, lr=settings.lr, momentum=settings.momentum, nesterov=True, fused=True)
    generator = torch.Generator().manual_seed(0)
    steps, step, losses = epochs * source.batches_per_epoch, 0, []
    for _ in range(epochs):
        total = torch.zeros((), device=device)
        for batch in source.epoch(generator):
            for group in optimiser.param_groups:
                group["lr"] = settings.lr * (1 + cos(pi * (step + 0.5) / steps)) / 2
            optimiser.zero_grad(set_to_none=True)
            loss = F.cross_entropy(model(batch.views[0]), batch.labels)
            loss.backward()
            nn.utils.clip_grad_norm_(decaying + others, settings.clip_norm or 0.0, foreach=True)
            optimiser.step()
            total += loss.detach()
            step += 1
        losses.append(float(total) / source.batches_per_epoch)
    return losses


def compare(
    size: int, channels: int, images: int, epochs: int, repetitions: int, device: torch.device
) -> tuple[float, float, float]:
    """Images a second of ours and by hand, and the ratio of the median times."""
    generator = torch.Generator().manual_seed(0)
    pictures = torch.randn(images, 3, size, size, generator=generator).to(device, memory_format=torch.channels_last)
    source = Source(pictures, torch.randint(10, (images,), generator=generator).to(device))
    settings = Train(epochs=epochs, batch_size=BATCH, warmup=0.0, precision="float32", channels_last=True)
    problem = classification((3, size, size), 10)

    def ours() -> None:
        train(network(channels), make_objective(settings, problem, images), source, settings, device=device, seed=0)  # type: ignore[arg-type]

    def hand() -> None:
        by_hand(network(channels), source, settings, epochs, device)

    times: dict[str, list[float]] = {"ours": [], "hand": []}
    for repetition in range(repetitions + 1):
        pair = [("ours", ours), ("hand", hand)]
        for name, function in pair if repetition % 2 else reversed(pair):
            start = time.perf_counter()
            function()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            if repetition:  # the first is to warm up
                times[name].append(time.perf_counter() - start)
    medians = {name: statistics.median(values) for name, values in times.items()}
    rates = [images * epochs / medians[name] for name in ("ours", "hand")]
    return rates[0], rates[1], medians["ours"] / medians["hand"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=15)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--write", action="store_true", help="write the page benchmark_loop.md beside this file")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    device = resolve_device(arguments.device)
    command = "python experiments/benchmark_loop.py --write"
    page = [
        "# What the training loop costs",
        "",
        f"`{command}` made this page: {device}, one thread of a CPU, Python {platform.python_version()}, torch",
        f"{torch.__version__}, seed 0, medians of {arguments.repetitions} interleaved repetitions. About a minute.",
        "",
        "| images | channels | ours, images/s | by hand, images/s | ours / by hand, time | goal |",
        "|---|---|---|---|---|---|",
    ]
    print("\n".join(page))
    for size, channels, images in ((8, 8, 2560), (32, 8, 1280), (32, 32, 512)):
        ours, hand, ratio = compare(size, channels, images, arguments.epochs, arguments.repetitions, device)
        reached = "reached" if ratio <= GOAL else "missed"
        row = f"| {size}x{size} | {channels} | {ours:,.0f} | {hand:,.0f} | {ratio:.3f} | <= {GOAL}: {reached} |"
        page.append(row)
        print(row, flush=True)
    if arguments.write:
        Path(__file__).with_suffix(".md").write_text("\n".join(page) + "\n")


if __name__ == "__main__":
    main()
