"""How fast images are made ready: our loader, DataLoader with torchvision's transforms, and kornia's augmentation.

    python experiments/benchmark_input.py [--data FILE] [--threads 2] [--repetitions 5] [--write]

With `--write` it makes experiments/benchmark_input.md. Each pipeline ends in the same thing: normalised float32
batches, shuffled, with crop and flip, or two SimCLR views of each image. They take turns within one run; ratios are
what counts. FILE is an .npz of colour images of 32 × 32, such as CIFAR-10; without one, random bytes serve, which cost
the same.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from nasplat.core.experiment import Data
from nasplat.data.augment import default_augmentations
from nasplat.data.datasets import Split, load_dataset
from nasplat.data.loader import Loader
from nasplat.data.torchvision_import import torchvision

HERE = Path(__file__).resolve().parent
MEAN, STD = (0.4914, 0.4822, 0.4465), (0.247, 0.2435, 0.2616)
SIMCLR = default_augmentations("simclr", (3, 32, 32))
GOALS = {("crop and flip", "DataLoader"): 5.0, ("SimCLR views", "DataLoader"): 1.5}
SEED = 0


class Pictures(TorchDataset):
    """What a user writes: Pillow images one by one, through transforms."""

    def __init__(self, images: Tensor, transform: Callable, views: int) -> None:
        self.images = images.permute(0, 2, 3, 1).contiguous().numpy()
        self.transform, self.views = transform, views

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, ...]:
        from PIL import Image

        image = Image.fromarray(self.images[index])
        return tuple(self.transform(image) for _ in range(self.views))


def ours(images: Tensor, augment: tuple[str, ...], views: int, batch: int) -> Iterator[Tensor]:
    loader = Loader(Split(images), batch_size=batch, device="cpu", mean=MEAN, std=STD, augment=augment, views=views)
    generator = torch.Generator().manual_seed(SEED)
    for made in loader.epoch(generator):
        yield made.views[0]


def torchvision_transform(views: int) -> Callable:
    t = torchvision.transforms
    ending = [t.ToTensor(), t.Normalize(MEAN, STD)]
    if views == 1:
        return t.Compose([t.RandomCrop(32, padding=4), t.RandomHorizontalFlip(), *ending])
    jitter = t.RandomApply([t.ColorJitter(0.4, 0.4, 0.4, 0.1)], p=0.8)
    crop = t.RandomResizedCrop(32, scale=(0.2, 1.0))
    return t.Compose([crop, t.RandomHorizontalFlip(), jitter, t.RandomGrayscale(0.2), *ending])


def data_loader(images: Tensor, views: int, batch: int, workers: int) -> Iterator[Tensor]:
    loader = DataLoader(
        Pictures(images, torchvision_transform(views), views),
        batch_size=batch,
        shuffle=True,
        drop_last=True,
        num_workers=workers,
        generator=torch.Generator().manual_seed(SEED),
    )
    for made in loader:
        yield made[0]


def kornia_batches(images: Tensor, views: int, batch: int) -> Iterator[Tensor]:
    """kornia's augmentation on whole batches of a tensor in memory."""
    import kornia.augmentation as k

    normalise = k.Normalize(torch.tensor(MEAN), torch.tensor(STD))
    if views == 1:
        augment = torch.nn.Sequential(k.RandomCrop((32, 32), padding=4), k.RandomHorizontalFlip(), normalise)
    else:
        augment = torch.nn.Sequential(
            k.RandomResizedCrop((32, 32), scale=(0.2, 1.0)),
            k.RandomHorizontalFlip(),
            k.ColorJitter(0.4, 0.4, 0.4, 0.1, p=0.8),
            k.RandomGrayscale(p=0.2),
            normalise,
        )
    torch.manual_seed(SEED)  # kornia draws from the default generator
    order = torch.randperm(len(images))
    for rows in order.split(batch)[: len(images) // batch]:
        floats = images[rows].float() / 255
        made = [augment(floats) for _ in range(views)]
        yield made[0]


def rate(batches: Iterator[Tensor], limit: float) -> float:
    """Images a second over an epoch, or over as much of it as `limit` seconds allow, from its first batch on.

    So nobody is charged for starting: DataLoader forks its workers before the first batch.
    """
    made = next(batches)
    assert made.shape[1:] == (3, 32, 32) and made.dtype == torch.float32
    count, start = 0, time.perf_counter()
    for made in batches:
        count += len(made)
        if time.perf_counter() - start > limit:
            break
    return count / (time.perf_counter() - start)


def measure(
    images: Tensor, threads: int, repetitions: int, limit: float, batch: int
) -> dict[str, dict[str, list[float]]]:
    """Images a second by task and pipeline, one for each repetition, the pipelines taking turns."""
    tasks = {"crop and flip": (("crop", "flip"), 1), "SimCLR views": (SIMCLR, 2)}
    found: dict[str, dict[str, list[float]]] = {}
    for task, (augment, views) in tasks.items():
        pipelines: dict[str, Callable[[], Iterator[Tensor]]] = {
            "ours": lambda augment=augment, views=views: ours(images, augment, views, batch),
            "DataLoader": lambda views=views: data_loader(images, views, batch, threads),
            "kornia": lambda views=views: kornia_batches(images, views, batch),
        }
        found[task] = {name: [] for name in pipelines}
        for repetition in range(repetitions + 1):
            for name, make in pipelines.items():
                speed = rate(make(), limit)
                if repetition:  # the first is to warm up
                    found[task][name].append(speed)
                print(f"{task}, {name}: {speed:,.0f} images/s", flush=True)
    return found


def page(
    found: dict[str, dict[str, list[float]]], command: str, images: Tensor, source: str, threads: int, batch: int
) -> str:
    import kornia
    import PIL

    lines = [
        "# Making images ready, beside DataLoader and kornia",
        "",
        f"`{command}`",
        "",
        f"{len(images):,} images of 3 × 32 × 32 ({source}), batches of {batch}, float32 on the CPU; "
        f"{platform.machine()}, {cpu()}, {os.cpu_count()} cores, {threads} threads (for DataLoader {threads} worker "
        f"processes). Python {platform.python_version()}, torch {torch.__version__}, torchvision "
        f"{torchvision.__version__}, kornia {kornia.__version__}, Pillow {PIL.__version__}. Seed {SEED}.",
        "",
        "Images a second, two views of an image counted as one image: the median of "
        f"{len(found['SimCLR views']['ours'])} epochs (or of what was done of them in the time allowed), "
        "taking turns, and the lowest and highest. Ratios are of medians.",
        "",
        "| task | pipeline | images/s | lowest | highest | ours is faster by | goal |",
        "|---|---|---|---|---|---|---|",
    ]
    met = True
    for task, speeds in found.items():
        mine = statistics.median(speeds["ours"])
        for name, values in speeds.items():
            middle = statistics.median(values)
            ratio, goal = "", ""
            if name != "ours":
                wanted = GOALS.get((task, name), 1.0)
                met &= mine / middle >= wanted
                ratio, goal = f"{mine / middle:.1f} ×", f"≥ {wanted:g} × {'✓' if mine / middle >= wanted else '✗'}"
            lines.append(
                f"| {task} | {name} | {middle:,.0f} | {min(values):,.0f} | {max(values):,.0f} | {ratio} | {goal} |"
            )
    lines += [
        "",
        f"**{'All goals are met.' if met else 'Not all goals are met.'}** SimCLR views are {', '.join(SIMCLR)}; "
        "the others draw alike (crops of 0.2 to 1 of the area, jitter 0.4, 0.4, 0.4, 0.1 for 80 %, grey for 20 %), "
        "with two differences: our hue turns in YIQ, theirs in HSV, and kornia resizes without antialiasing. The clock "
        "starts at the first batch, so DataLoader's time to start its workers is not in it.",
        "",
    ]
    return "\n".join(lines)


def cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or "unknown processor"


def pictures(path: Path | None, count: int) -> tuple[Tensor, str]:
    if path is not None:
        dataset = load_dataset(Data(path=str(path), resident="device"))
        images = torch.cat([dataset.train.on(torch.device("cpu")), dataset.validation.on(torch.device("cpu"))])
        return images.repeat(-(-count // len(images)), 1, 1, 1)[:count], path.name
    generator = torch.Generator().manual_seed(SEED)
    return torch.randint(256, (count, 3, 32, 32), generator=generator, dtype=torch.uint8), "random bytes"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path)
    parser.add_argument("--threads", type=int, default=min(2, os.cpu_count() or 1), help="and worker processes")
    parser.add_argument("--images", type=int, default=20_000)
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=6.0, help="the longest that one epoch is followed")
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--write", action="store_true", help="make the page")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    images, source = pictures(arguments.data, arguments.images)
    found = measure(images, arguments.threads, arguments.repetitions, arguments.seconds, arguments.batch)
    data = "--data FILE " if arguments.data else ""
    command = (
        f"python experiments/benchmark_input.py {data}--threads {arguments.threads} --images {arguments.images} "
        f"--repetitions {arguments.repetitions} --seconds {arguments.seconds:g} --batch {arguments.batch} --write"
    )
    text = page(found, command, images, source, arguments.threads, arguments.batch)
    if arguments.write:
        (HERE / "benchmark_input.md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
