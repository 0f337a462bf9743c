"""Bad images, labels and names: each is answered with what is wrong, where, and what to do; never with a traceback."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from nasplat.core.errors import NasplatError
from nasplat.core.experiment import Data
from nasplat.data.datasets import load_dataset
from nasplat.data.files import from_arrays, read_idx_file
from nasplat.data.loader import Loader
from tests.data.test_datasets import arrays, write_folder, write_idx


def refused(**data: Any) -> str:
    """Message and advice for what a user wrote in the section data."""
    with pytest.raises(NasplatError) as caught:
        load_dataset(Data(**data))
    assert "\n" not in caught.value.message
    return str(caught.value)


@pytest.mark.parametrize(
    ("source", "near"),
    [("cifar", "cifar10"), ("fashon mnist", "fashion_mnist"), ("digit", "digits"), ("Food-11", "food101")],
)
def test_unknown_source(source: str, near: str) -> None:
    assert f"did you mean {near!r}?" in refused(source=source)


def test_missing_path() -> None:
    assert "path no/such/folder does not exist" in refused(path="no/such/folder")


@pytest.mark.parametrize("source", ["idx", "npz", "folder"])
def test_path_left_out(source: str) -> None:
    assert f"source {source} needs a path" in refused(source=source)


def test_a_file_that_is_no_npz(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("hello")
    assert "neither an .npz nor a folder" in refused(path=str(tmp_path / "notes.txt"))
    for content in (b"hello", b"", b"PK\x03\x04 cut off"):
        (tmp_path / "broken.npz").write_bytes(content)
        assert "broken.npz is not a readable .npz" in refused(path=str(tmp_path / "broken.npz"))


def test_pickled_arrays_are_never_read(tmp_path: Path) -> None:
    images = np.empty(2, dtype=object)
    images[:] = [np.zeros((4, 4)), np.zeros((5, 5))]
    np.savez(tmp_path / "mixed.npz", images=images)
    assert "mixed shapes" in refused(path=str(tmp_path / "mixed.npz"))


@pytest.mark.parametrize("folder", ["", "train", "class_a"])
def test_empty_folder(tmp_path: Path, folder: str) -> None:
    (tmp_path / folder).mkdir(exist_ok=True)
    assert "no images" in refused(path=str(tmp_path))
    assert "no images" in refused(path=str(tmp_path), labels=False)


def test_empty_class_folder(tmp_path: Path) -> None:
    write_folder(tmp_path, *arrays(12))
    (tmp_path / "class9").mkdir()
    assert f"{tmp_path / 'class9'} holds no images" in refused(path=str(tmp_path))


def test_class_that_only_the_test_images_have(tmp_path: Path) -> None:
    write_folder(tmp_path / "train", *arrays(12))
    write_folder(tmp_path / "test", *arrays(12, classes=4))
    assert "class3 is no class that the training images have" in refused(path=str(tmp_path))


def test_images_beside_class_folders(tmp_path: Path) -> None:
    write_folder(tmp_path, *arrays(12))
    Image.new("RGB", (7, 9)).save(tmp_path / "loose.png")
    assert "labels: false" in refused(path=str(tmp_path))
    assert load_dataset(Data(path=str(tmp_path), labels=False)).train.labels is None


@pytest.mark.parametrize("resident", ["device", "stream"])
def test_image_of_another_size(tmp_path: Path, resident: str) -> None:
    write_folder(tmp_path, *arrays(12))
    Image.new("RGB", (30, 32)).save(tmp_path / "class1" / "odd.png")
    answer = refused(path=str(tmp_path), resident=resident)
    assert f"{tmp_path / 'class1' / 'odd.png'} is 30 × 32 pixels" in answer and "image_size: 7" in answer
    assert load_dataset(Data(path=str(tmp_path), resident=resident, image_size=7)).problem.input_shape == (3, 7, 7)


def test_corrupt_image_found_by_its_header(tmp_path: Path) -> None:
    write_folder(tmp_path, *arrays(12))
    (tmp_path / "class0" / "broken.png").write_bytes(b"this is no image")
    assert f"{tmp_path / 'class0' / 'broken.png'} is not an image" in refused(path=str(tmp_path))


@pytest.mark.parametrize("suffix", [".png", ".jpg"])
def test_image_cut_off_in_the_middle(tmp_path: Path, suffix: str) -> None:
    """Held, it is named when loading; streamed, when training comes to it, through the thread that reads ahead."""
    write_folder(tmp_path, *arrays(30, shape=(40, 40, 3)), suffix)
    victim = tmp_path / "class1" / f"004{suffix}"
    victim.write_bytes(victim.read_bytes()[:-400])
    assert f"{victim} is corrupt" in refused(path=str(tmp_path))
    with pytest.raises(NasplatError, match="is corrupt"):
        found = load_dataset(Data(path=str(tmp_path), resident="stream"))
        for split in (found.train, found.validation, found.test):
            list(Loader(split, batch_size=4, device="cpu", mean=found.mean, std=found.std).ordered())


def test_image_of_sixteen_bits(tmp_path: Path) -> None:
    write_folder(tmp_path, *arrays(12))
    Image.fromarray(np.full((9, 7), 60_000, dtype=np.uint16)).save(tmp_path / "class0" / "deep.png")
    assert "deep.png has more than 8 bits" in refused(path=str(tmp_path))


IMAGES, LABELS = arrays(30)


@pytest.mark.parametrize(
    ("changes", "answer"),
    [
        ({"labels": LABELS[:-1]}, "29 labels for 30 images"),
        ({"labels": LABELS.astype(float) + 0.5}, "not whole numbers, such as 0.5"),
        ({"labels": np.where(LABELS == 1, np.nan, LABELS)}, "not whole numbers, such as nan"),
        ({"labels": LABELS.astype(str)}, "not whole numbers"),
        ({"labels": LABELS - 1}, "the label of image 0 is -1"),
        ({"labels": LABELS * 2}, "labels run to 4, but no image has label 1"),
        ({"labels": LABELS + 10**12}, "no image has label 0"),
        ({"labels": LABELS * 0}, "all images have one label"),
        ({"labels": np.eye(3)[LABELS]}, "not one label an image"),
        ({"classes": ["a", "b"]}, "a label is 2, but there are 2 classes"),
        ({"images": IMAGES[:, 0, 0, 0]}, "has shape (30,), which are not images"),
        ({"images": IMAGES[..., None]}, "which are not images"),
        ({"images": IMAGES[:0], "labels": LABELS[:0]}, "holds no images"),
        ({"images": IMAGES[:, :0]}, "which are not images"),
        ({"images": IMAGES.astype(float)}, "pixels from 0.0 to 255.0"),
        ({"images": IMAGES.astype(int) - 1}, "pixels from -1"),
        ({"images": np.full((30, 4, 4), np.nan)}, "pixels from nan"),
        ({"images": IMAGES.astype(str)}, "not pixels"),
        ({"images": [np.zeros((4, 4)), np.zeros((5, 5))]}, "mixes shapes"),
        ({"test_images": IMAGES[:, :5], "test_labels": LABELS}, "image_size: 9"),
        ({"test_images": IMAGES}, "only some of the parts have labels"),
        ({"test_images": IMAGES, "test_labels": LABELS + 1}, "a label is 3"),
        ({"images": None, "pictures": IMAGES}, "no array of training images; it holds labels, pictures"),
        ({"images": IMAGES[:4], "labels": LABELS[:4]}, "only 4 images"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_wrong_arrays(changes: dict[str, Any], answer: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    given = {"images": IMAGES, "labels": LABELS, **changes}
    if "a label is 3" in answer:
        given["classes"] = ["a", "b", "c"]
    (tmp_path / "wrong_arrays.py").write_text("given = {}\ndef load():\n    return given\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    import wrong_arrays  # type: ignore[import-not-found]

    monkeypatch.setattr(wrong_arrays, "given", given)
    assert answer in refused(source="wrong_arrays:load")
    monkeypatch.delitem(__import__("sys").modules, "wrong_arrays")


def test_an_image_size_does_not_hide_wrong_labels() -> None:
    with pytest.raises(NasplatError, match="labels for"):
        from_arrays({"images": torch.zeros(3, 4, 4), "labels": torch.zeros(4)}, "mine", 8)


def test_train_size_above_what_there_is() -> None:
    assert "train_size 5000 is more than the 1438 images of digits" in refused(train_size=5000)


@pytest.mark.parametrize("end", ["", ".gz"])
def test_idx_files_that_are_broken(tmp_path: Path, end: str) -> None:
    path = tmp_path / f"train-images-idx3-ubyte{end}"
    write_idx(path, IMAGES[..., 0], packed=bool(end))
    whole = path.read_bytes()
    for data in (whole[:-10], whole[:5], b"", b"\x1f\x8b broken", b"no idx file at all"):
        path.write_bytes(data)
        with pytest.raises(NasplatError, match="train-images"):
            read_idx_file(path)
    assert "train-images" in refused(source="idx", path=str(tmp_path))
    path.unlink()
    assert "no IDX file of training images" in refused(source="idx", path=str(tmp_path))


def test_idx_files_with_too_few_labels(tmp_path: Path) -> None:
    write_idx(tmp_path / "train-images-idx3-ubyte", IMAGES[..., 0], packed=False)
    write_idx(tmp_path / "train-labels-idx1-ubyte", LABELS[:20], packed=False)
    assert "20 labels for 30 images" in refused(path=str(tmp_path))


@pytest.mark.parametrize("offsets", [[0, 5, 5, 9], [0, 3, 100], [3, 1], [[0, 1]], []])
def test_coded_images_whose_places_do_not_fit(offsets: list[Any]) -> None:
    with pytest.raises(NasplatError, match="offset"):
        from_arrays({"jpeg": np.zeros(9, np.uint8), "offset": np.array(offsets, dtype=int)}, "mine", None)


def test_coded_image_that_is_corrupt(tmp_path: Path) -> None:
    arrays = {"jpeg": np.zeros(9, np.uint8), "offset": np.arange(10)}
    with pytest.raises(NasplatError, match="jpeg image 0 is not an image"):
        from_arrays(arrays, "mine", None)
