"""Images from a folder: class folders, or images without labels; with sub-folders train, val and test, or without."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image

from nasplat.core.errors import NasplatError
from nasplat.data.images import ImageReader, is_grey, naming, wrong_size
from nasplat.data.source import Part, Source

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm", ".pbm"})
_SPLITS = {"train": ("train", "training"), "validation": ("val", "valid", "validation"), "test": ("test", "testing")}


@dataclass(frozen=True)
class _Listed:
    """The files of one part, and the class of each (-1 where there are no classes)."""

    files: list[Path]
    labels: list[int]


def read_folder(folder: Path, labels: bool, image_size: int | None) -> Source:
    """A folder of class folders (or of images alone), possibly one for each of train, val and test.

    Class folders may hold folders in turn. Hidden files and files that are no images by their suffix are left out.
    Sizes are read from the headers of all files; pixels are decoded later.

    Args:
        labels: whether the names of folders are classes; otherwise all images below the folder are taken.
        image_size: resize to this height and width when decoding.

    Raises:
        NasplatError: no images, an empty class folder, images of several sizes, a file that is no image.
    """
    roots = {split: _sub_folder(folder, names) for split, names in _SPLITS.items()}
    if roots["train"] is None:
        roots = {"train": folder, "validation": None, "test": None}
    classes = _classes(roots["train"]) if labels and roots["train"] is not None else ()
    listed = {split: None if root is None else _list(root, classes) for split, root in roots.items()}
    files = [path for part in listed.values() if part is not None for path in part.files]
    channels, size = _shape(files, folder, image_size)
    numbers = iter(torch.arange(len(files)).split([len(part.files) for part in listed.values() if part is not None]))

    def open_image(number: int) -> Image.Image:
        return Image.open(files[number])

    def part(found: _Listed | None) -> Part | None:
        if found is None:
            return None
        reader = ImageReader(
            open_image, lambda number: str(files[number]), next(numbers), channels, size, image_size is not None
        )
        return Part(reader, torch.tensor(found.labels) if classes else None)

    parts = {split: part(found) for split, found in listed.items()}
    train = parts["train"]
    assert train is not None
    content = hashlib.sha256()
    for path in files:
        content.update(f"{path.relative_to(folder).as_posix()}\0{path.stat().st_size}\n".encode())
    return Source(str(folder), train, parts["validation"], parts["test"], classes or None, content.hexdigest())


def _sub_folder(folder: Path, names: tuple[str, ...]) -> Path | None:
    return next((path for path in _folders(folder) if path.name.lower() in names), None)


def _folders(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


def _images(folder: Path, deep: bool) -> list[Path]:
    found = folder.rglob("*") if deep else folder.iterdir()
    return sorted(
        path
        for path in found
        if path.suffix.lower() in SUFFIXES
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
        and path.is_file()
    )


def _classes(root: Path) -> tuple[str, ...]:
    """The names of the class folders; none where the folder holds images only."""
    folders, loose = _folders(root), _images(root, deep=False)
    if folders and loose:
        raise NasplatError(
            f"{root} holds both folders and images, such as {loose[0].name}",
            "put every image into its class's folder, or use `labels: false`",
        )
    return tuple(path.name for path in folders)


def _list(root: Path, classes: tuple[str, ...]) -> _Listed:
    if not classes:
        files = _images(root, deep=True)
        if not files:
            raise NasplatError(f"{root} holds no images", f"images end in {', '.join(sorted(SUFFIXES))}")
        return _Listed(files, [-1] * len(files))
    numbers = {name: index for index, name in enumerate(classes)}
    found = _Listed([], [])
    for folder in _folders(root):
        if folder.name not in numbers:
            advice = f"the classes are those of the training images: {', '.join(classes[:10])}"
            raise NasplatError(f"{folder} is no class that the training images have", advice)
        files = _images(folder, deep=True)
        if not files:
            raise NasplatError(f"the class folder {folder} holds no images", "fill it, or remove it")
        found.files.extend(files)
        found.labels.extend([numbers[folder.name]] * len(files))
    if not found.files:
        raise NasplatError(f"{root} holds no class folders", f"the classes are {', '.join(classes[:10])}")
    return found


def _shape(files: list[Path], folder: Path, image_size: int | None) -> tuple[int, tuple[int, int]]:
    """Channels, height and width of all images, from their headers. Grey only where all are."""
    first: tuple[int, int] | None = None
    grey = True
    for path in files:
        with naming(lambda path=path: str(path)), Image.open(path) as image:  # type: ignore[misc]
            grey = grey and is_grey(image)
            first = first or image.size
            if image_size is None and image.size != first:
                raise wrong_size(str(path), image.size, first)
    if first is None:
        raise NasplatError(f"{folder} holds no images")
    return 1 if grey else 3, (image_size, image_size) if image_size else (first[1], first[0])
