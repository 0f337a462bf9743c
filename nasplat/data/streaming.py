"""Batches of images from where they are held: on the device, or streamed to it by a thread that works ahead."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch
from torch import Tensor

from nasplat.data.images import Images

AHEAD = 3  # batches

T = TypeVar("T")


def resident_batches(images: Tensor, rows: Iterator[Tensor]) -> Iterator[Tensor]:
    """The images of each of the given rows `(B,)`, which are on the images' device."""
    for chosen in rows:
        yield images.index_select(0, chosen)


def streamed_batches(images: Tensor | Images, rows: Iterator[Tensor], device: torch.device) -> Iterator[Tensor]:
    """The images of each of the given rows `(B,)`, which are on the host, read ahead and copied to the device.

    On a GPU they go through pinned memory and a stream of their own, so that copying runs beside computing.
    """
    if device.type != "cuda":
        yield from ahead(_read(images, chosen).to(device) for chosen in rows)
        return
    stream = torch.cuda.Stream(device)
    for images_there, ready in ahead(_copied(_read(images, chosen), device, stream) for chosen in rows):
        current = torch.cuda.current_stream(device)
        current.wait_event(ready)
        images_there.record_stream(current)  # its memory is not given away before this stream is done with it
        yield images_there


def _read(images: Tensor | Images, rows: Tensor) -> Tensor:
    return images.index_select(0, rows) if isinstance(images, Tensor) else images.read(rows)


def _copied(images: Tensor, device: torch.device, stream: torch.cuda.Stream) -> tuple[Tensor, torch.cuda.Event]:
    with torch.cuda.stream(stream):
        there = images.pin_memory().to(device, non_blocking=True)
        return there, stream.record_event()


@dataclass(frozen=True)
class _End(Generic[T]):
    """The last thing in a queue, with what went wrong."""

    error: BaseException | None


def ahead(items: Iterator[T], depth: int = AHEAD) -> Iterator[T]:
    """The same items, made by a thread that is up to `depth` of them ahead; what it raises is raised here.

    Whoever stops early ends the thread too.
    """
    waiting: queue.Queue[T | _End[T]] = queue.Queue(depth)
    stopped = threading.Event()

    def put(item: T | _End[T]) -> None:
        while not stopped.is_set():
            try:
                waiting.put(item, timeout=0.1)
                return
            except queue.Full:
                pass

    def work() -> None:
        error: BaseException | None = None
        try:
            for item in items:
                put(item)
                if stopped.is_set():
                    return
        except BaseException as raised:
            error = raised
        put(_End(error))

    thread = threading.Thread(target=work, name="images", daemon=True)
    thread.start()
    try:
        while not isinstance(item := waiting.get(), _End):
            yield item
        if item.error is not None:
            raise item.error
    finally:
        stopped.set()
        thread.join()
