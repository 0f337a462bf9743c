"""Data sets of several tasks that are there already: CelebA, and tasks derived from Fashion-MNIST."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from nasplat.core.errors import NasplatError, nearest
from nasplat.core.tasks import Task
from nasplat.data.datasets import Dataset, Split
from nasplat.data.files import read_idx
from nasplat.data.images import ImageReader, naming
from nasplat.data.pretexts import PRETEXT_NAMES, pretext_task
from nasplat.data.tasks import make_dataset

_GARMENTS = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip
_KINDS = ("top", "trousers", "dress", "shoe", "bag")
_KIND_OF = (0, 1, 0, 2, 0, 3, 0, 3, 4, 3)
_SLEEVES = ("none", "short", "long")
_SLEEVES_OF = (1, 0, 2, -1, 2, 0, -1, 0, 0, 0)  # dresses and shirts come with either, and nobody has looked
_COVERS = ("upper body", "legs", "feet")
_COVERS_OF = (
    (1, 0, 0), (0, 1, 0), (1, 0, 0), (1, 1, 0), (1, 0, 0), (0, 0, 1), (1, 0, 0), (0, 0, 1), (0, 0, 0), (0, 0, 1),
)  # fmt: skip
_INK = 25  # of 255; a pixel above it is of the garment


def _symmetry(images: Tensor, garments: Tensor) -> Tensor:
    """1 where left and right are alike, 0 where no pixel has a counterpart: `(N, 1)`."""
    pixels = images.float()
    mirrored = pixels.flip(3)
    total = (pixels + mirrored).sum((1, 2, 3)).clamp(min=1.0)
    return 1 - (pixels - mirrored).abs().sum((1, 2, 3), keepdim=False)[:, None] / total[:, None]


def _by_garment(table: Sequence[int]) -> Callable[[Tensor, Tensor], Tensor]:
    return lambda images, garments: torch.tensor(table)[garments]


# Task -> what makes its labels from images and garments.
_DERIVED: dict[str, tuple[Task, Callable[[Tensor, Tensor], Tensor]]] = {
    "garment": (Task("garment", "classification", 10, _GARMENTS), lambda images, garments: garments),
    "kind": (Task("kind", "classification", 5, _KINDS), _by_garment(_KIND_OF)),
    "sleeves": (Task("sleeves", "classification", 3, _SLEEVES), _by_garment(_SLEEVES_OF)),
    "covers": (
        Task("covers", "multi_label", 3, _COVERS),
        lambda images, garments: torch.tensor(_COVERS_OF, dtype=torch.int8)[garments],
    ),
    "symmetry": (Task("symmetry", "regression", 1), _symmetry),
    "silhouette": (
        Task("silhouette", "dense", 2, ("ground", "garment")),
        lambda images, garments: (images[:, 0] > _INK).to(torch.int16),
    ),
}
FASHION_TASKS = (*_DERIVED, *PRETEXT_NAMES)


def fashion_tasks(
    folder: Path,
    tasks: Sequence[str] = ("garment", "kind", "sleeves", "symmetry", "rotation"),
    *,
    train_size: int | None = None,
    validation_share: float = 0.2,
    split_seed: int = 0,
) -> Dataset:
    """Fashion-MNIST (Xiao et al., 2017) with tasks derived from its ten classes and from its pixels.

    `garment` is the ten classes; `kind`, `sleeves` (of shirts and dresses missing) and the multi-label `covers` follow
    from them; `symmetry` is a regression, `silhouette` is dense; `rotation`, `jigsaw` and `contrastive` are pretexts.

    Args:
        folder: with the four IDX files.

    Raises:
        NasplatError: files that are missing or broken, or an unknown task.
    """
    odd = next((name for name in tasks if name not in FASHION_TASKS), None)
    if odd is not None:
        raise NasplatError(
            f"Fashion-MNIST has no task {odd!r}", nearest(odd, FASHION_TASKS) + f"there are {', '.join(FASHION_TASKS)}"
        )

    def part(images: Tensor, garments: Tensor) -> Split:
        return Split(
            images, task_labels={name: _DERIVED[name][1](images, garments) for name in tasks if name in _DERIVED}
        )

    (train, train_labels), (test, test_labels) = _fashion(folder)
    shape = (int(train.shape[1]), int(train.shape[2]), int(train.shape[3]))
    return make_dataset(
        "fashion_tasks",
        [pretext_task(name, shape) if name in PRETEXT_NAMES else _DERIVED[name][0] for name in tasks],
        part(train, train_labels),
        None,
        part(test, test_labels),
        train_size=train_size,
        validation_share=validation_share,
        split_seed=split_seed,
    )


def fashion_pairs(
    folder: Path,
    *,
    count: int = 20_000,
    test_count: int = 4_000,
    train_size: int | None = None,
    validation_share: float = 0.2,
    split_seed: int = 0,
    seed: int = 0,
) -> Dataset:
    """Two garments in one frame: two classifications and where they are, after MultiMNIST (Sabour et al., Dynamic
    Routing Between Capsules, 2017) but side by side.

    Two images of Fashion-MNIST, halved to 14 x 14, lie in a frame of 32 x 32, one in its left half and one in its
    right, each moved at random. Tasks: `left` and `right`, ten classes each; `position`, a regression of how far the
    right one lies below and to the right of the other, in pixels.

    Args:
        count, test_count: frames, of which none of the first shows a test image.
        seed: of which images are paired and where they lie; `split_seed` is of the split.
    """
    parts = []
    for number, ((images, garments), wanted) in enumerate(zip(_fashion(folder), (count, test_count), strict=True)):
        rng = np.random.Generator(np.random.PCG64([seed, number]))
        parts.append(_pairs(F.avg_pool2d(images.float(), 2).round().to(torch.uint8), garments, wanted, rng))
    tasks = (
        Task("left", "classification", 10, _GARMENTS),
        Task("right", "classification", 10, _GARMENTS),
        Task("position", "regression", 2),
    )
    return make_dataset(
        "fashion_pairs",
        tasks,
        parts[0],
        None,
        parts[1],
        train_size=train_size,
        validation_share=validation_share,
        split_seed=split_seed,
    )


def _pairs(images: Tensor, garments: Tensor, count: int, rng: np.random.Generator) -> Split:
    size, frame = int(images.shape[2]), 32
    chosen = torch.from_numpy(rng.integers(len(images), size=(2, count)))
    down = torch.from_numpy(rng.integers(frame - size + 1, size=(2, count)))
    across = torch.from_numpy(rng.integers(frame // 2 - size + 1, size=(2, count)))
    across[1] += frame // 2
    frames = torch.zeros(count, 1, frame, frame, dtype=torch.uint8)
    rows, places = torch.arange(count)[:, None, None], torch.arange(size)
    for side in range(2):
        y = (down[side, :, None] + places)[:, :, None]
        x = (across[side, :, None] + places)[:, None, :]
        frames[rows, 0, y, x] = images[chosen[side], 0]
    position = torch.stack([down[1] - down[0], across[1] - across[0]], dim=1).float()
    return Split(frames, task_labels={"left": garments[chosen[0]], "right": garments[chosen[1]], "position": position})


def _fashion(folder: Path) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Images and garments, of training and of test."""
    if not folder.is_dir():
        raise NasplatError(f"{folder} is not a folder", "it should hold the four IDX files of Fashion-MNIST")
    source = read_idx(folder)
    found = []
    for part in (source.train, source.test):
        if part is None or part.labels is None or not isinstance(part.images, Tensor):
            raise NasplatError(f"{folder} lacks labels or test images", "it should hold all four IDX files")
        if int(part.labels.max()) > 9 or tuple(part.images.shape[1:]) != (1, 28, 28):
            raise NasplatError(f"{folder} is not Fashion-MNIST", "its images are 28 x 28, grey, of ten classes")
        found.append((part.images, part.labels))
    return found[0], found[1]


def celeba(
    folder: Path,
    tasks: Mapping[str, str | Sequence[str]] | None = None,
    *,
    image_size: int | None = 64,
    train_size: int | None = None,
    split_seed: int = 0,
) -> Dataset:
    """CelebA (Liu et al., Deep Learning Face Attributes in the Wild, 2015), as torchvision leaves it in a folder.

    Args:
        folder: it holds `celeba/img_align_celeba` and `celeba/list_*.txt`; or that folder `celeba` itself.
        tasks: by name, one attribute (a classification of two classes), several (a multi-label task), or `landmarks`
            (a regression of ten places, in pixels of the original images). None: each of the 40 attributes is a task.
        image_size: height and width that images are resized to; None leaves them at 218 x 178.

    Raises:
        NasplatError: a file that is missing or not as it should be, or an unknown attribute.
    """
    base = folder / "celeba" if (folder / "celeba").is_dir() else folder
    names, header, attributes = _list_file(base / "list_attr_celeba.txt", True)
    odd = int(((attributes != 1) & (attributes != -1)).any(1).int().argmax())
    if not bool(((attributes == 1) | (attributes == -1)).all()):
        raise NasplatError(f"{base / 'list_attr_celeba.txt'}, line {odd + 3}: an attribute is neither 1 nor -1")
    chosen = {name: name for name in header} if tasks is None else tasks
    found: list[Task] = []
    labels: dict[str, Tensor] = {}
    for name, what in chosen.items():
        if what == "landmarks":
            _, columns, places = _list_file(base / "list_landmarks_align_celeba.txt", True, names)
            found.append(Task(name, "regression", len(columns), tuple(columns)))
            labels[name] = places.float()
            continue
        listed = (what,) if isinstance(what, str) else tuple(what)
        wrong = next((one for one in listed if one not in header), None)
        if wrong is not None or not listed:
            known = f"there are landmarks, {', '.join(header)}"
            raise NasplatError(
                f"CelebA: task {name}: there is no attribute {wrong!r}", nearest(str(wrong), header) + known
            )
        values = (attributes[:, [header.index(one) for one in listed]] + 1) // 2
        single = isinstance(what, str)
        found.append(
            Task(name, "classification", 2, ("no", "yes")) if single else Task(name, "multi_label", len(listed), listed)
        )
        labels[name] = values[:, 0] if single else values.to(torch.int8)
    _, _, partition = _list_file(base / "list_eval_partition.txt", False, names)
    everything = Split(_celeba_images(base, names, image_size), task_labels=labels)
    parts = [everything.select((partition[:, 0] == number).nonzero().flatten()) for number in range(3)]
    if not all(len(part) for part in parts):
        raise NasplatError(f"{base / 'list_eval_partition.txt'} leaves one of its three parts without images")
    content = hashlib.sha256(repr((names, image_size)).encode()).hexdigest()
    return make_dataset("celeba", found, *parts, content=content, train_size=train_size, split_seed=split_seed)


def _list_file(path: Path, has_header: bool, names: Sequence[str] | None = None) -> tuple[list[str], list[str], Tensor]:
    """Names of images, of columns, and whole numbers `(images, columns)`; `names` are those that it must have."""
    if not path.is_file():
        advice = "torchvision.datasets.CelebA(folder, download=True) fetches it; then give that folder"
        raise NasplatError(f"there is no file {path}", advice)
    lines = path.read_text().splitlines()
    header = lines[1].split() if has_header and len(lines) > 1 else []
    skipped = 2 if has_header else 0
    found: list[str] = []
    rows: list[list[int]] = []
    for number, line in enumerate(lines[skipped:], start=skipped + 1):
        name, *cells = line.split() or [""]
        if not name:
            continue
        try:
            rows.append([int(cell) for cell in cells])
        except ValueError as error:
            raise NasplatError(f"{path}, line {number}: {error}", "fetch the file again") from error
        if len(cells) != (len(header) or len(rows[0])):
            raise NasplatError(f"{path}, line {number}: {len(cells)} numbers, not {len(header) or len(rows[0])}")
        if names is not None and (len(found) >= len(names) or names[len(found)] != name):
            raise NasplatError(f"{path}, line {number}: {name} is not the image that the attributes have there")
        found.append(name)
    if not found or (names is not None and len(found) != len(names)):
        raise NasplatError(f"{path} lists {len(found)} images" + ("" if names is None else f", not {len(names)}"))
    return found, header, torch.tensor(rows)


def _celeba_images(base: Path, names: Sequence[str], image_size: int | None) -> ImageReader:
    def path(number: int) -> Path:
        return base / "img_align_celeba" / names[number]

    with naming(lambda: str(path(0))), Image.open(path(0)) as first:
        size = (image_size, image_size) if image_size else (first.height, first.width)
    numbers = torch.arange(len(names))
    return ImageReader(
        lambda number: Image.open(path(number)), lambda number: str(path(number)), numbers, 3, size, bool(image_size)
    )
