"""How long networks take, measured beside each other: in turns, so that a busy moment of the machine hits them all."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import torch
from torch import nn

from nasplat.training.features import evaluating


@dataclass(frozen=True, slots=True)
class Latency:
    """Milliseconds for one forward pass: the median, and the spread (the interquartile range)."""

    median: float
    spread: float


def latencies(
    networks: Sequence[nn.Module],
    input_shape: tuple[int, int, int],
    device: torch.device,
    batch: int = 1,
    *,
    rounds: int = 30,
    seconds: float = 1.0,
) -> tuple[Latency, ...]:
    """Times the forward passes in eval mode and float32, the copy of the images to the device left out.

    Args:
        networks: on the device.
        batch: images at once.
        rounds: at most so many, in each of which every network runs once, after a fifth as many to warm up.
        seconds: for each network; no further round starts after that, but there are at least three.
    """
    images = torch.randn(batch, *input_shape, generator=torch.Generator().manual_seed(0)).to(device)
    times: list[list[float]] = [[] for _ in networks]
    with torch.inference_mode(), ExitStack() as stack:  # in this order: each gives back the mode that it found
        for network in networks:
            stack.enter_context(evaluating(network))
        for _ in range(max(1, rounds // 5)):
            for network in networks:
                network(images)
        begin = time.perf_counter()
        for done in range(rounds):
            if done >= 3 and time.perf_counter() - begin > seconds * len(networks):
                break
            for network, own in zip(networks, times, strict=True):
                _wait(device)
                start = time.perf_counter()
                network(images)
                _wait(device)
                own.append((time.perf_counter() - start) * 1000)
    return tuple(_latency(own) for own in times)


def is_faster(before: Latency, after: Latency) -> bool:
    """By more than half of the larger spread, so that the difference is not only noise."""
    return before.median - after.median > max(before.spread, after.spread) / 2


def _latency(times: Sequence[float]) -> Latency:
    quartiles = statistics.quantiles(times, n=4)
    return Latency(quartiles[1], quartiles[2] - quartiles[0])


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
