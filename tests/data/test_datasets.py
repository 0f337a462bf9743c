"""Every way in for images, and the same images, labels and splits out of each of them."""

from __future__ import annotations

import gzip
import io
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from nasplat.core.errors import NasplatError
from nasplat.core.experiment import Data
from nasplat.core.problem import Output, Problem
from nasplat.data import datasets, torchvision_sets
from nasplat.data.datasets import Dataset, load_dataset
from nasplat.data.images import read_all
from nasplat.data.splits import hold_out
from nasplat.data.torchvision_import import non_maximum_suppression, torchvision
from nasplat.data.torchvision_sets import TORCHVISION, read_torchvision

FASHION = Path(__file__).resolve().parents[2] / "../shared/data/fashion_mnist"


def arrays(count: int = 60, shape: tuple[int, ...] = (9, 7, 3), classes: int = 3) -> tuple[np.ndarray, np.ndarray]:
    """Pictures whose first pixel tells their number, and labels that follow from it."""
    rng = np.random.default_rng(0)
    images = rng.integers(256, size=(count, *shape), dtype=np.uint8)
    images.reshape(count, -1)[:, 0] = np.arange(count)
    return images, np.arange(count) % classes


def numbers(split: datasets.Split) -> list[int]:
    return read_all(split.images)[:, 0, 0, 0].tolist()


def check(dataset: Dataset, count: int, classes: int = 3) -> None:
    """Every picture is in one split, with its own label."""
    splits = (dataset.train, dataset.validation, dataset.test)
    assert sorted(number for split in splits for number in numbers(split)) == list(range(count))
    for split in splits:
        assert isinstance(split.labels, Tensor) and split.labels.dtype == torch.int64
        assert [number % classes for number in numbers(split)] == split.labels.tolist()
    assert dataset.problem.outputs == (Output("logits", "classification", classes),)


def write_folder(root: Path, images: np.ndarray, labels: np.ndarray | None, suffix: str = ".png") -> None:
    for number, image in enumerate(images):
        folder = root if labels is None else root / f"class{labels[number]}"
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(folder / f"{number:03d}{suffix}")


def write_idx(path: Path, array: np.ndarray, packed: bool) -> None:
    data = struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.astype(np.uint8).tobytes()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(data) if packed else data)


def test_digits_need_no_files_and_have_a_test_split_that_never_moves() -> None:
    found, other = load_dataset(Data()), load_dataset(Data(split_seed=1, train_size=500, validation=0.5))
    assert (len(found.train), len(found.validation), len(found.test)) == (1150, 288, 359)
    assert (len(other.train), len(other.validation), len(other.test)) == (250, 250, 359)
    assert found.problem == Problem((1, 8, 8), (Output("logits", "classification", 10),))
    assert found.classes == tuple("0123456789")
    assert torch.equal(read_all(found.test.images), read_all(other.test.images))
    assert not torch.equal(read_all(found.train.images)[:200], read_all(other.train.images)[:200])
    assert read_all(found.train.images).max() == 255
    assert found.fingerprint == load_dataset(Data()).fingerprint != other.fingerprint


def test_splits_are_those_of_every_machine() -> None:
    """Golden rows: another split on another machine, or after an update, would make scores incomparable."""
    labels = torch.arange(20) % 3
    assert hold_out(labels, 20, 5, 0)[1].tolist() == [2, 3, 4, 6, 19]
    assert hold_out(None, 20, 5, 0)[1].tolist() == [2, 4, 6, 13, 19]


def test_each_class_is_split_alike_and_keeps_an_image() -> None:
    labels = torch.tensor([0] * 1000 + [1] * 100 + [2] * 10 + [3] * 2 + [4])
    stay, held = hold_out(labels, len(labels), 223, 7)
    assert len(held) == 223 and sorted([*stay.tolist(), *held.tolist()]) == list(range(len(labels)))
    assert torch.bincount(labels[stay], minlength=5).tolist()[3:] in ([1, 1], [2, 1])
    assert torch.bincount(labels[held], minlength=5).tolist()[:3] == [200, 20, 2]


@pytest.mark.parametrize("labels", [None, torch.arange(6), torch.zeros(6, dtype=torch.int64)])
@pytest.mark.parametrize("held", [0, 1, 5, 6])
def test_no_side_of_a_split_is_ever_empty(labels: Tensor | None, held: int) -> None:
    stay, out = hold_out(labels, 6, held, 0)
    assert len(stay) >= 1 and len(out) >= 1 and len(stay) + len(out) == 6


def test_mean_and_deviation_are_of_the_training_pixels() -> None:
    found = load_dataset(Data())
    pixels = read_all(found.train.images).double() / 255
    assert found.mean[0] == pytest.approx(float(pixels.mean()), abs=1e-9)
    assert found.std[0] == pytest.approx(float(pixels.std(correction=0)), abs=1e-9)


def test_labels_false_reads_none_even_where_there_are_some() -> None:
    found = load_dataset(Data(labels=False))
    assert found.train.labels is found.validation.labels is found.test.labels is None
    assert found.problem.outputs == (Output("embedding", "embedding", 1),) and found.classes == ()


@pytest.mark.parametrize("names", [("images", "labels"), ("x_train", "y_train"), ("train_image", "train_label")])
@pytest.mark.parametrize("form", ["NHWC", "NCHW", "NHW", "float", "bool"])
def test_npz(tmp_path: Path, names: tuple[str, str], form: str) -> None:
    images, labels = arrays(shape=(9, 7) if form == "NHW" else (9, 7, 3))
    written: np.ndarray = images.transpose(0, 3, 1, 2) if form == "NCHW" else images
    if form == "float":
        written = images.astype(np.float32) / 255
    if form == "bool":
        written = images > 127
    np.savez(tmp_path / "my.npz", **{names[0]: written, names[1]: labels[:, None]})
    found = load_dataset(Data(path=str(tmp_path / "my.npz")))
    assert found.problem.input_shape == (1 if form == "NHW" else 3, 9, 7)
    if form != "bool":
        check(found, 60)


def test_npz_with_parts_of_its_own_keeps_them(tmp_path: Path) -> None:
    images, labels = arrays()
    parts = {"train": slice(0, 30), "val": slice(30, 40), "test": slice(40, 60)}
    named = {f"{name}_images": images[rows] for name, rows in parts.items()}
    named |= {f"{name}_labels": labels[rows] for name, rows in parts.items()}
    np.savez_compressed(tmp_path / "my.npz", classes=["cat", "dog", "owl", "eel"], **named)
    found = load_dataset(Data(path=str(tmp_path / "my.npz")))
    assert [len(found.train), len(found.validation), len(found.test)] == [30, 10, 20]
    assert numbers(found.test) == list(range(40, 60)) and found.classes == ("cat", "dog", "owl", "eel")


def test_npz_of_coded_images(tmp_path: Path) -> None:
    images, labels = arrays(shape=(8, 8, 3))
    coded = []
    for image in images:
        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, "png")
        coded.append(np.frombuffer(buffer.getvalue(), dtype=np.uint8))
    offsets = np.cumsum([0, *map(len, coded)])
    path = tmp_path / "coded.npz"
    np.savez(path, train_jpeg=np.concatenate(coded), train_offset=offsets, train_label=labels)
    check(load_dataset(Data(path=str(path))), 60)
    streamed = load_dataset(Data(path=str(path), resident="stream"))
    assert not isinstance(streamed.train.images, Tensor)
    check(streamed, 60)


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("source", ["idx", None, "Fashion-MNIST"])
def test_idx_files(tmp_path: Path, packed: bool, source: str) -> None:
    images, labels = arrays(shape=(6, 5))
    end = ".gz" if packed else ""
    for name, rows in (("train", slice(0, 40)), ("t10k", slice(40, 60))):
        write_idx(tmp_path / f"{name}-images-idx3-ubyte{end}", images[rows], packed)
        write_idx(tmp_path / f"{name}-labels-idx1-ubyte{end}", labels[rows], packed)
    found = load_dataset(Data(source=source, path=str(tmp_path), validation=0.25))
    check(found, 60)
    assert numbers(found.test) == list(range(40, 60)) and len(found.train) == 30


@pytest.mark.skipif(not FASHION.is_dir(), reason="Fashion-MNIST is not there; its format is tested above")
def test_fashion_mnist_is_read_whole() -> None:
    found = load_dataset(Data(source="fashion_mnist", path=str(FASHION), train_size=10_000))
    assert (len(found.train), len(found.validation), len(found.test)) == (8_000, 2_000, 10_000)
    assert found.train.labels is not None and torch.bincount(found.train.labels).tolist() == [800] * 10
    assert found.mean[0] == pytest.approx(72.94 / 255, abs=0.003)


@pytest.mark.parametrize("resident", ["device", "stream"])
def test_folder_of_class_folders(tmp_path: Path, resident: Any) -> None:
    write_folder(tmp_path, *arrays())
    (tmp_path / "class1" / "notes.txt").write_text("not an image")
    (tmp_path / ".cache").mkdir()
    found = load_dataset(Data(path=str(tmp_path), resident=resident))
    check(found, 60)
    assert found.classes == ("class0", "class1", "class2")
    assert isinstance(found.train.images, Tensor) == (resident == "device")


def test_a_folder_gives_the_same_data_held_or_streamed(tmp_path: Path) -> None:
    write_folder(tmp_path, *arrays())
    held, streamed = (load_dataset(Data(path=str(tmp_path), resident=how)) for how in ("device", "stream"))
    assert (held.fingerprint, held.mean, held.std) == (streamed.fingerprint, streamed.mean, streamed.std)
    assert torch.equal(read_all(held.train.images), read_all(streamed.train.images))


@pytest.mark.parametrize("names", [("train", "val", "test"), ("train", "test"), ("Train", "valid")])
def test_folder_with_parts_of_its_own_keeps_them(tmp_path: Path, names: tuple[str, ...]) -> None:
    images, labels = arrays()
    for index, name in enumerate(names):
        rows = slice(index * 60 // len(names), (index + 1) * 60 // len(names))
        write_folder(tmp_path / name, images[rows], labels[rows])
    found = load_dataset(Data(path=str(tmp_path)))
    check(found, 60)
    if "test" in names:
        assert sorted(numbers(found.test)) == list(range(60 - 60 // len(names), 60))
    if "valid" in names:
        assert sorted(numbers(found.validation)) == list(range(30, 60))


@pytest.mark.parametrize("in_folders", [True, False])
def test_images_without_labels_are_first_class(tmp_path: Path, in_folders: bool) -> None:
    images, labels = arrays(shape=(6, 6))
    write_folder(tmp_path, images, labels if in_folders else None)
    found = load_dataset(Data(path=str(tmp_path), labels=not in_folders))
    assert found.train.labels is None and found.problem.outputs[0].kind == "embedding"
    assert sorted(n for split in (found.train, found.validation, found.test) for n in numbers(split)) == list(range(60))
    assert found.problem.input_shape == (1, 6, 6), "grey images stay grey"


def test_one_coloured_image_among_grey_ones_makes_all_three_channels(tmp_path: Path) -> None:
    images, _ = arrays(6, shape=(6, 6))
    write_folder(tmp_path, images, None)
    Image.new("RGB", (6, 6), "red").save(tmp_path / "red.png")
    Image.new("RGBA", (6, 6), "blue").save(tmp_path / "see_through.png")
    assert load_dataset(Data(path=str(tmp_path))).problem.input_shape == (3, 6, 6)


def test_image_size_resizes_images_of_any_size(tmp_path: Path) -> None:
    for number in range(12):
        Image.new("L", (5 + number, 20 - number), 200).save(tmp_path / f"{number}.png")
    found = load_dataset(Data(path=str(tmp_path), image_size=10))
    assert found.problem.input_shape == (1, 10, 10) and int(read_all(found.train.images).min()) == 200
    digits = load_dataset(Data(image_size=16))
    assert digits.problem.input_shape == (1, 16, 16)
    small, large = read_all(load_dataset(Data()).train.images), read_all(digits.train.images)
    assert (large.float().mean() - small.float().mean()).abs() < 1


def test_a_function_of_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = (datasets.__doc__ or "").splitlines()
    start = next(index for index, line in enumerate(lines) if "# my_data.py" in line)
    code = "\n".join(
        line.strip() if not line.startswith(" " * 10) else line[6:] for line in lines[start + 1 : start + 11]
    )
    (tmp_path / "my_documented_data.py").write_text(code + "\n")
    (tmp_path / "my_other_data.py").write_text(
        "import numpy, nasplat.data.datasets as d, nasplat.core.experiment as e\n"
        "def unlabelled(path): return numpy.zeros((20, 4, 4), 'uint8') + len(path)\n"
        "def named(): return {'train_images': numpy.zeros((9, 4, 4)), 'test_images': numpy.ones((3, 4, 4))}\n"
        "def whole(): return d.load_dataset(e.Data())\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    stripes = load_dataset(Data(source="my_documented_data:stripes"))
    assert stripes.problem == Problem((3, 16, 16), (Output("logits", "classification", 2),))
    assert len(stripes.train) + len(stripes.validation) + len(stripes.test) == 1000
    unlabelled = load_dataset(Data(source="my_other_data:unlabelled", path=str(tmp_path)))
    assert unlabelled.train.labels is None and int(read_all(unlabelled.test.images)[0, 0, 0, 0]) == len(str(tmp_path))
    assert len(load_dataset(Data(source="my_other_data:named")).test) == 3
    assert load_dataset(Data(source="my_other_data:whole")).name == "digits"


@pytest.mark.parametrize("name", TORCHVISION)
def test_every_classification_set_of_torchvision_is_called_as_it_wants(name: str, tmp_path: Path) -> None:
    """A wrong argument would show only when somebody has downloaded gigabytes."""
    entry = TORCHVISION[name]
    for arguments in (entry.train, entry.validation, entry.test):
        if arguments is None:
            continue
        if not entry.has_root:
            assert len(getattr(torchvision.datasets, entry.name)(**arguments)) > 0
            continue
        with pytest.raises(Exception) as caught:
            kind = getattr(torchvision.datasets, entry.name)
            more = {"download": False} if torchvision_sets.can_download(kind) else {}
            kind(str(tmp_path), **arguments, **more)
        assert not isinstance(caught.value, TypeError | ValueError | AttributeError), caught.value
        assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_torchvision_reads_its_own_files(tmp_path: Path) -> None:
    images, labels = arrays(shape=(28, 28))
    for name, rows in (("train", slice(0, 40)), ("t10k", slice(40, 60))):
        write_idx(tmp_path / "KMNIST/raw" / f"{name}-images-idx3-ubyte", images[rows], packed=False)
        write_idx(tmp_path / "KMNIST/raw" / f"{name}-labels-idx1-ubyte", labels[rows], packed=False)
    source = read_torchvision("kmnist", tmp_path, None)
    assert source.test is not None and len(source.test.images) == 20
    assert isinstance(source.train.images, Tensor)
    assert source.train.images[:, 0, 0, 0].tolist() == list(range(40))


def test_torchvision_sets_of_files_are_decoded_when_asked(tmp_path: Path) -> None:
    images, labels = arrays(shape=(12, 12, 3), classes=10)
    write_folder(tmp_path / "eurosat" / "2750", images, labels)
    found = load_dataset(Data(source="EuroSAT", path=str(tmp_path), resident="stream"))
    assert not isinstance(found.train.images, Tensor)
    check(found, 60, classes=10)
    assert found.classes[3] == "class3"
    assert load_dataset(Data(source="euro_sat", path=str(tmp_path), image_size=5)).problem.input_shape == (3, 5, 5)


def test_a_download_is_never_silent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def unreachable(*arguments: object, **options: object) -> None:
        raise OSError("no network\nat all")

    monkeypatch.setattr(torchvision.datasets.CIFAR10, "download", unreachable)
    monkeypatch.setenv("NASPLAT_DATA", str(tmp_path / "kept"))
    with pytest.raises(NasplatError, match=r"CIFAR10 could not be downloaded to .*kept: no network\n") as caught:
        load_dataset(Data(source="CIFAR-10"))
    assert "path" in caught.value.advice
    assert "CIFAR10 is not in" in capsys.readouterr().err


def test_the_import_of_torchvision_works_beside_a_cpu_torch() -> None:
    network = torchvision.models.resnet18(weights=None).eval()
    with torch.no_grad():
        assert network(torch.zeros(1, 3, 32, 32)).shape == (1, 1000)


def test_overlapping_boxes_are_suppressed_best_first() -> None:
    boxes = torch.tensor([[0, 0, 10, 10], [1, 1, 10, 10], [20, 20, 30, 30], [0, 0, 10, 5.1]])
    scores = torch.tensor([0.5, 0.9, 0.1, 0.8])
    assert non_maximum_suppression(boxes, scores, 0.5).tolist() == [1, 3, 2]
    assert non_maximum_suppression(boxes, scores, 0.9).tolist() == [1, 3, 0, 2]
