"""Every classification data set of torchvision, by name. What is not there is downloaded, but never silently."""

from __future__ import annotations

import hashlib
import inspect
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from nasplat.core.errors import NasplatError
from nasplat.data.arrays import as_images, as_labels
from nasplat.data.images import ImageReader, is_grey
from nasplat.data.source import Part, Source, digest


@dataclass(frozen=True)
class Entry:
    """How a data set's class is called for each part; a part that it lacks is None.

    Args:
        name: of the class in `torchvision.datasets`.
        train, validation, test: what its constructor is given beside the folder.
        has_root: whether it takes a folder at all.
        renumber: whether its labels are numbers of another kind, to be counted from 0.
    """

    name: str
    train: Mapping[str, Any] = field(default_factory=dict)
    validation: Mapping[str, Any] | None = None
    test: Mapping[str, Any] | None = None
    has_root: bool = True
    renumber: bool = False


def _flag(name: str, **more: Any) -> Entry:
    return Entry(name, {"train": True, **more}, None, {"train": False, **more})


def _split(name: str, train: str = "train", validation: str | None = None, test: str = "test", **more: Any) -> Entry:
    held = None if validation is None else {"split": validation, **more}
    return Entry(name, {"split": train, **more}, held, {"split": test, **more})


# Where only one part has labels, or its parts have different classes, the test images are held out by us.
TORCHVISION: dict[str, Entry] = {
    "caltech101": Entry("Caltech101"),
    "caltech256": Entry("Caltech256"),
    "celeba": Entry("CelebA", {"split": "all", "target_type": "identity"}, renumber=True),
    "cifar10": _flag("CIFAR10"),
    "cifar100": _flag("CIFAR100"),
    "clevr": _split("CLEVRClassification", test="val"),
    "country211": _split("Country211", validation="valid"),
    "dtd": _split("DTD", validation="val"),
    "emnist": _flag("EMNIST", split="balanced"),
    "eurosat": Entry("EuroSAT"),
    "fake": Entry("FakeData", {"size": 1000, "image_size": (3, 32, 32)}, has_root=False),
    "fashion_mnist": _flag("FashionMNIST"),
    "fer2013": Entry("FER2013", {"split": "train"}),
    "fgvc_aircraft": _split("FGVCAircraft", validation="val"),
    "flowers102": _split("Flowers102", validation="val"),
    "food101": _split("Food101"),
    "gtsrb": _split("GTSRB"),
    "imagenet": _split("ImageNet", test="val"),
    "imagenette": _split("Imagenette", test="val", size="160px"),
    "inaturalist": Entry("INaturalist", {"version": "2021_train_mini"}, None, {"version": "2021_valid"}),
    "kmnist": _flag("KMNIST"),
    "lfw_people": Entry("LFWPeople", {"split": "10fold"}),
    "lsun": Entry("LSUN", {"classes": "train"}, None, {"classes": "val"}),
    "mnist": _flag("MNIST"),
    "omniglot": Entry("Omniglot", {"background": True}),
    "oxford_iiit_pet": _split("OxfordIIITPet", train="trainval"),
    "pcam": _split("PCAM", validation="val"),
    "places365": _split("Places365", train="train-standard", test="val", small=True),
    "qmnist": Entry("QMNIST", {"what": "train"}, None, {"what": "test"}),
    "rendered_sst2": _split("RenderedSST2", validation="val"),
    "semeion": Entry("SEMEION"),
    "stanford_cars": _split("StanfordCars"),
    "stl10": _split("STL10"),
    "sun397": Entry("SUN397"),
    "svhn": _split("SVHN"),
    "usps": _flag("USPS"),
}


def default_folder() -> Path:
    """Where data sets are kept that come without a path: NASPLAT_DATA, or the user's cache."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("NASPLAT_DATA") or Path(cache) / "nasplat" / "data")


def read_torchvision(key: str, folder: Path | None, image_size: int | None) -> Source:
    """A data set of torchvision from its own files in a folder; what is missing there is downloaded, which it says.

    Raises:
        NasplatError: files that are missing and cannot be downloaded, or images of several sizes.
    """
    entry = TORCHVISION[key]
    root = folder or default_folder()
    sets = {
        split: None if arguments is None else _construct(entry, arguments, root)
        for split, arguments in (("train", entry.train), ("validation", entry.validation), ("test", entry.test))
    }
    train = sets["train"]
    parts = {split: None if found is None else _part(key, split, found, image_size) for split, found in sets.items()}
    train_part = parts["train"]
    assert train_part is not None
    if entry.renumber and train_part.labels is not None:
        parts["train"] = train_part = Part(train_part.images, train_part.labels.unique(return_inverse=True)[1])
    names = _class_names(train)
    if names is not None and train_part.labels is not None and len(names) <= int(train_part.labels.max()):
        names = None
    return Source(key, train_part, parts["validation"], parts["test"], names, _content(key, parts))


def _construct(entry: Entry, arguments: Mapping[str, Any], root: Path) -> Any:
    """The data set; the one place that calls torchvision's constructors."""
    from nasplat.data.torchvision_import import torchvision

    kind = getattr(torchvision.datasets, entry.name)
    if not entry.has_root:
        return kind(**arguments)
    downloads = can_download(kind)
    try:
        # Said in so many words, for one class downloads unless it is told not to.
        return kind(str(root), **arguments, **({"download": False} if downloads else {}))
    except (RuntimeError, OSError) as error:
        if "pip install" in str(error):
            raise NasplatError(f"{entry.name} needs a package: {_first_line(error)}") from error
        if not downloads:
            raise NasplatError(
                f"{root} does not hold {entry.name}: {_first_line(error)}",
                "torchvision cannot download it; get its files and give their folder as `path`",
            ) from error
    except (ImportError, ModuleNotFoundError) as error:
        raise NasplatError(f"{entry.name} needs a package: {error}", f"pip install {error.name}") from error
    print(f"{entry.name} is not in {root}: downloading it there, with torchvision", file=sys.stderr, flush=True)
    try:
        root.mkdir(parents=True, exist_ok=True)
        return kind(str(root), download=True, **arguments)
    except Exception as error:  # whatever network, archive and disk can raise
        raise NasplatError(
            f"{entry.name} could not be downloaded to {root}: {_first_line(error)}",
            "download its files elsewhere, and give their folder as `path`",
        ) from error


def can_download(kind: type) -> bool:
    # A class that hands its keywords on to its parent takes what the parent takes.
    return any("download" in inspect.signature(cls.__init__).parameters for cls in kind.__mro__)  # type: ignore[misc]


def _part(key: str, split: str, found: Any, image_size: int | None) -> Part:
    where = f"{key} ({split})"
    data = getattr(found, "data", None)
    images: Tensor | ImageReader
    if isinstance(data, np.ndarray | Tensor) and data.ndim >= 3 and len(data) == len(found):
        images = as_images(data, where)
    else:
        images = _reader(found, where, image_size)
    return Part(images, as_labels(_labels(found, where), len(found), where))


def _reader(found: Any, where: str, image_size: int | None) -> ImageReader:
    def open_image(number: int) -> Image.Image:
        image = found[number][0]
        if not isinstance(image, Image.Image):
            raise NasplatError(f"{where}: item {number} is a {type(image).__name__}, not an image")
        return image

    first = open_image(0)
    size = (image_size, image_size) if image_size else (first.height, first.width)
    channels = 1 if is_grey(first) else 3
    return ImageReader(
        open_image,
        lambda number: f"{where}: image {number}",
        torch.arange(len(found)),
        channels,
        size,
        bool(image_size),
    )


def _labels(found: Any, where: str) -> np.ndarray:
    """The labels of all items, without decoding an image where the data set keeps them in a list."""
    for candidate in _listed_labels(found):
        places = {0, len(found) // 2, len(found) - 1}
        if all(int(found[place][1]) == int(candidate[place]) for place in places):
            return candidate
    return np.array([int(found[index][1]) for index in range(len(found))])


def _listed_labels(found: Any) -> list[np.ndarray]:
    """What looks like the labels; torchvision has no one name for them."""
    candidates: list[Any] = [getattr(found, name, None) for name in ("targets", "labels", "_labels", "y", "identity")]
    for name in ("samples", "_samples", "index", "_flat_character_images"):
        items = getattr(found, name, None)
        if isinstance(items, list) and items and isinstance(items[0], tuple) and len(items[0]) == 2:
            candidates += [[item[column] for item in items] for column in (1, 0)]
    arrays = []
    for candidate in candidates:
        if isinstance(candidate, list | tuple | np.ndarray | Tensor) and len(candidate) == len(found):
            try:
                array = np.asarray(candidate).reshape(len(found))
            except ValueError:
                continue
            if array.dtype.kind in "iu":
                arrays.append(array)
    return arrays


def _class_names(found: Any) -> tuple[str, ...] | None:
    names = getattr(found, "classes", None) or getattr(found, "categories", None)
    if not isinstance(names, list | tuple) or not names:
        return None
    return tuple(name if isinstance(name, str) else ", ".join(map(str, np.ravel(name))) for name in names)


def _content(key: str, parts: Mapping[str, Part | None]) -> str:
    sha = hashlib.sha256(key.encode())
    for part in parts.values():
        if part is not None and part.labels is not None:
            sha.update(part.labels.numpy().tobytes())
    return sha.hexdigest() + digest(parts.values())


def _first_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
