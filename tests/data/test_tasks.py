"""Without these a network would be trained on labels of other images, or on labels that are not there."""

from __future__ import annotations

from itertools import permutations
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from nasplat.core.errors import NasplatError
from nasplat.core.tasks import Task
from nasplat.data.datasets import Dataset, Split
from nasplat.data.loader import Loader
from nasplat.data.pretexts import PRETEXTS, change, pretext_task
from nasplat.data.task_sources import celeba, fashion_pairs, fashion_tasks
from nasplat.data.tasks import check_augmentations, make_dataset, only_tasks
from tests.data.helpers import NoWaiting, pictures, seeded

FASHION = Path(__file__).resolve().parents[2] / "../shared/data/fashion_mnist"
NUMBER, SHADE, MARKS, MAP = (
    Task("number", "classification", 4),
    Task("shade", "regression", 1),
    Task("marks", "multi_label", 3),
    Task("map", "dense", 2),
)


def numbered(count: int = 40) -> tuple[Tensor, dict[str, Tensor]]:
    """Images whose every pixel is their row; labels follow from it, every fifth is missing."""
    rows = torch.arange(count)
    images = rows[:, None, None, None].expand(count, 1, 6, 6).to(torch.uint8).contiguous()
    missing = rows % 5 == 0
    labels = {
        "number": torch.where(missing, -1, rows % 4),
        "shade": torch.where(missing, float("nan"), rows * 10.0 + 3)[:, None],
        "marks": torch.where(missing[:, None], -1, torch.stack([rows % 2, rows % 3 % 2, rows % 7 % 2], 1)).to(
            torch.int8
        ),
        "map": torch.where(missing[:, None, None], -1, (rows % 2)[:, None, None].expand(count, 6, 6)).to(torch.int16),
    }
    return images, labels


def dataset(tasks: tuple[Task, ...] = (NUMBER, SHADE, MARKS, MAP), **options: object) -> Dataset:
    images, labels = numbered()
    return make_dataset("numbered", tasks, Split(images, task_labels=labels), **options)  # type: ignore[arg-type]


def test_labels_stay_with_their_images() -> None:
    found = dataset()
    seen = []
    for name in ("train", "validation", "test"):
        loader = Loader(getattr(found, name), batch_size=8, device="cpu", mean=found.mean, std=found.std)
        for batch in (*loader.ordered(), *(loader.epoch(seeded()) if name == "train" else ())):
            pixel = batch.views[0][:, 0, 0, 0] * found.std[0] + found.mean[0]
            rows = (pixel * 255).round().long()
            there = rows % 5 != 0
            labels = batch.task_labels
            assert torch.equal(labels["number"], torch.where(there, rows % 4, -1))
            scale = found.tasks[1]
            shade = labels["shade"][:, 0].double() * scale.std[0] + scale.mean[0]
            assert torch.equal(labels["shade"][:, 0].isnan(), ~there)
            torch.testing.assert_close(shade[there], rows[there] * 10.0 + 3, rtol=1e-5, atol=1e-4, check_dtype=False)
            assert torch.equal(labels["map"][there][:, 2, 3].long(), rows[there] % 2)
            assert bool((labels["marks"][~there] == -1).all())
        seen += (loader_rows(found, name)).tolist()
    assert sorted(seen) == list(range(40))  # each image in one part


def loader_rows(found: Dataset, name: str) -> Tensor:
    images = getattr(found, name).images
    assert isinstance(images, Tensor)
    return images[:, 0, 0, 0]


def test_regressions_are_scaled_by_training_labels_alone() -> None:
    found = dataset()
    shade = found.train.task_labels["shade"]
    there = shade[~shade.isnan()].numpy()
    assert there.mean() == pytest.approx(0, abs=1e-6) and there.std() == pytest.approx(1, rel=1e-6)
    raw = np.array([row * 10 + 3 for row in loader_rows(found, "train").tolist() if row % 5])
    assert found.tasks[1].mean[0] == pytest.approx(raw.mean())
    assert found.tasks[1].std[0] == pytest.approx(raw.std())


def test_the_same_seed_splits_alike_and_sizes_are_kept() -> None:
    first, again, other = (dataset(train_size=20, validation_share=0.25, split_seed=seed) for seed in (1, 1, 2))
    assert first.fingerprint == again.fingerprint != other.fingerprint
    assert (len(first.train), len(first.validation), len(first.test)) == (15, 5, 8)
    assert torch.equal(loader_rows(first, "test"), loader_rows(other, "test"))


def test_a_single_task_can_be_taken_out_to_compare_with() -> None:
    found = only_tasks(dataset(), ["shade"])
    assert [task.name for task in found.tasks] == ["shade"] and set(found.train.task_labels) == {"shade"}
    assert [output.name for output in found.problem.outputs] == ["shade"]
    with pytest.raises(NasplatError, match="no task 'shape'"):
        only_tasks(found, ["shape"])


def test_batches_do_not_wait_for_the_device() -> None:
    found = dataset()
    loader = Loader(found.train, batch_size=8, device="cpu", mean=found.mean, std=found.std)
    with NoWaiting():
        assert len(list(loader.epoch(seeded()))) == loader.batches_per_epoch == 3


@pytest.mark.parametrize(
    ("name", "labels", "words"),
    [
        ("number", torch.zeros(40), "is classification, and its labels are torch.float32"),
        ("number", torch.full((40,), 4), "image 0 is 4"),
        ("number", torch.zeros(40, 2, dtype=torch.long), "labels have shape (40, 2), not (40,)"),
        ("shade", torch.zeros(40, 1, dtype=torch.long), "is regression, and its labels are torch.int64"),
        ("shade", torch.full((40, 1), float("inf")), "image 0 is inf"),
        ("marks", torch.full((40, 3), 2), "image 0 is 2"),
        ("map", torch.zeros(40, 5, 6, dtype=torch.long), "labels have shape (40, 5, 6), not (40, 6, 6)"),
        ("number", torch.full((40,), -1), "task number has no label among the 26 training images"),
        ("number", None, "task number has no labels"),
    ],
)
def test_bad_labels_are_told_by_task(name: str, labels: Tensor | None, words: str) -> None:
    images, good = numbered()
    bad = {key: value for key, value in {**good, name: labels}.items() if value is not None}
    with pytest.raises(NasplatError) as caught:
        make_dataset("numbered", (NUMBER, SHADE, MARKS, MAP), Split(images, task_labels=bad))
    assert words in str(caught.value) and name in str(caught.value)


def test_two_tasks_of_one_name_are_told() -> None:
    with pytest.raises(NasplatError, match="two tasks are named number"):
        dataset((NUMBER, NUMBER))


def test_augmentations_that_leave_the_labels_of_pixels_behind_are_told() -> None:
    with pytest.raises(NasplatError, match="flip moves pixels, but not their labels, which task map has"):
        check_augmentations((NUMBER, MAP), ("color_jitter", "flip"))
    check_augmentations((NUMBER, MAP), ("color_jitter",))
    check_augmentations((NUMBER, SHADE), ("flip",))


def test_rotation_is_numpys() -> None:
    images = torch.randn(32, 3, 8, 8, generator=seeded())
    changed, ways = change("rotation", images, seeded(1))
    assert set(ways.tolist()) == {0, 1, 2, 3}
    for image, found, way in zip(images.numpy(), changed.numpy(), ways.tolist(), strict=True):
        assert np.array_equal(found, np.rot90(image, way, (1, 2)))


def test_colours_are_all_orders() -> None:
    images = torch.randn(64, 3, 4, 5, generator=seeded())
    changed, ways = change("colours", images, seeded(1))
    orders = list(permutations(range(3)))
    assert set(ways.tolist()) == set(range(6))
    for image, found, way in zip(images, changed, ways.tolist(), strict=True):
        assert torch.equal(found, image[list(orders[way])])


def test_jigsaw_moves_whole_tiles_and_nothing_is_lost() -> None:
    images = torch.arange(5 * 7).float().view(1, 1, 5, 7).expand(64, 1, 5, 7)
    changed, ways = change("jigsaw", images, seeded(1))
    tiles = [images[0, 0, y : y + 2, x : x + 3] for y in (0, 2) for x in (0, 3)]
    seen = {}
    for found, way in zip(changed[:, 0], ways.tolist(), strict=True):
        places = [found[y : y + 2, x : x + 3] for y in (0, 2) for x in (0, 3)]
        order = tuple(next(n for n, tile in enumerate(tiles) if torch.equal(tile, place)) for place in places)
        assert sorted(order) == [0, 1, 2, 3]
        assert torch.equal(found[4], images[0, 0, 4]) and torch.equal(found[:, 6], images[0, 0, :, 6])
        assert seen.setdefault(way, order) == order
    assert len(set(seen.values())) == pretext_task("jigsaw", (1, 5, 7)).size == 8
    assert seen[0] == (0, 1, 2, 3)


def test_pretexts_do_not_wait_and_keep_the_memory_format() -> None:
    images = pictures(4, 3, 8, 8).float().contiguous(memory_format=torch.channels_last)
    for name in PRETEXTS:
        change(name, images, seeded())
        with NoWaiting():
            changed, _ = change(name, images, seeded())
        assert changed.is_contiguous(memory_format=torch.channels_last)


def test_pretexts_that_images_do_not_allow_are_told() -> None:
    with pytest.raises(NasplatError, match="square"):
        pretext_task("rotation", (1, 4, 6))
    with pytest.raises(NasplatError, match="3 channels"):
        pretext_task("colours", (1, 4, 4))
    with pytest.raises(NasplatError, match="no pretext 'rotations'"):
        pretext_task("rotations", (1, 4, 4))


def fake_celeba(base: Path, count: int = 12) -> Path:
    folder = base / "celeba"
    (folder / "img_align_celeba").mkdir(parents=True)
    names = [f"{number:06}.jpg" for number in range(1, count + 1)]
    for number, name in enumerate(names):
        Image.new("RGB", (18, 22), (20 * number, 0, 0)).save(folder / "img_align_celeba" / name, quality=100)
    marks = [" 1 -1  1" if number % 2 else "-1  1  1" for number in range(count)]
    lines = [str(count), "Bald Smiling Young", *(f"{name} {mark}" for name, mark in zip(names, marks, strict=True))]
    (folder / "list_attr_celeba.txt").write_text("\n".join(lines) + "\n")
    lines = [str(count), "lefteye_x lefteye_y", *(f"{name} {7 + n} {9 - n}" for n, name in enumerate(names))]
    (folder / "list_landmarks_align_celeba.txt").write_text("\n".join(lines) + "\n")
    lines = [f"{name} {min(number // 6, 1) + (number > 8)}" for number, name in enumerate(names)]
    (folder / "list_eval_partition.txt").write_text("\n".join(lines) + "\n")
    return base


def test_celeba_loads_as_torchvision_leaves_it(tmp_path: Path) -> None:
    root = fake_celeba(tmp_path)
    found = celeba(root, {"smile": "Smiling", "rest": ("Bald", "Young"), "eye": "landmarks"}, image_size=8)
    assert [(task.kind, task.size) for task in found.tasks] == [
        ("classification", 2),
        ("multi_label", 2),
        ("regression", 2),
    ]
    assert (len(found.train), len(found.validation), len(found.test)) == (6, 3, 3)
    assert found.problem.input_shape == (3, 8, 8)
    assert found.train.task_labels["smile"].tolist() == [1, 0, 1, 0, 1, 0]
    assert found.train.task_labels["rest"].tolist() == [[0, 1], [1, 1]] * 3
    eye = found.test.task_labels["eye"].double() * torch.tensor(found.tasks[2].std) + torch.tensor(found.tasks[2].mean)
    torch.testing.assert_close(eye, torch.tensor([[16.0, 0], [17, -1], [18, -2]]), check_dtype=False, atol=1e-4, rtol=0)
    images = found.validation.images
    assert isinstance(images, Tensor) and abs(int(images[0, 0, 0, 0]) - 120) < 4
    every = celeba(root / "celeba")
    assert [task.name for task in every.tasks] == ["Bald", "Smiling", "Young"]


def test_celeba_with_something_wrong_is_told(tmp_path: Path) -> None:
    with pytest.raises(NasplatError, match=r"there is no file .*list_attr_celeba.txt"):
        celeba(tmp_path)
    root = fake_celeba(tmp_path)
    with pytest.raises(NasplatError, match="no attribute 'Smilling'"):
        celeba(root, {"a": "Smilling", "b": "Bald"})
    path = root / "celeba" / "list_attr_celeba.txt"
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines[:4], lines[4].replace("-1", "x", 1), *lines[5:]]))
    with pytest.raises(NasplatError, match="line 5"):
        celeba(root)
    path.write_text("\n".join([*lines[:4], lines[4].replace("-1", "2", 1), *lines[5:]]))
    with pytest.raises(NasplatError, match="line 5: an attribute is neither"):
        celeba(root)


@pytest.mark.skipif(not FASHION.exists(), reason="the file itself is the point")
def test_tasks_of_fashion_mnist_follow_from_its_garments() -> None:
    names = ("garment", "kind", "sleeves", "covers", "symmetry", "silhouette", "rotation", "jigsaw")
    found = fashion_tasks(FASHION, names, train_size=500)
    labels = found.train.task_labels
    by_name = {task.name: task for task in found.tasks}
    assert by_name["rotation"].size == 4 and by_name["rotation"].pretext == "rotation"
    assert set(labels) == set(names[:6])
    garments = [by_name["garment"].classes[number] for number in labels["garment"].tolist()]
    kinds = [by_name["kind"].classes[number] for number in labels["kind"].tolist()]
    assert {kind for name, kind in zip(garments, kinds, strict=True) if "boot" in name} == {"shoe"}
    hidden = {name for name, sleeve in zip(garments, labels["sleeves"].tolist(), strict=True) if sleeve == -1}
    assert hidden == {"Dress", "Shirt"}
    images = found.train.images
    assert isinstance(images, Tensor)
    assert torch.equal(labels["silhouette"] == 1, images[:, 0] > 25)
    scale = by_name["symmetry"]
    image = images[3, 0].numpy().astype(float)
    by_hand = 1 - abs(image - image[:, ::-1]).sum() / (image + image[:, ::-1]).sum()
    assert labels["symmetry"][3, 0].item() * scale.std[0] + scale.mean[0] == pytest.approx(by_hand, abs=1e-5)
    with pytest.raises(NasplatError, match="did you mean 'sleeves'"):
        fashion_tasks(FASHION, ("garment", "sleeve"))


@pytest.mark.skipif(not FASHION.exists(), reason="the file itself is the point")
def test_pairs_lie_where_the_labels_say() -> None:
    found = fashion_pairs(FASHION, count=300, test_count=50)
    task = found.tasks[2]
    raw = found.train.task_labels["position"].double() * torch.tensor(task.std) + torch.tensor(task.mean)
    assert found.problem.input_shape == (1, 32, 32)
    assert raw[:, 0].abs().max() <= 18.01 and raw[:, 1].min() >= 14 and raw[:, 1].max() <= 18.01
    images = found.train.images
    assert isinstance(images, Tensor)
    # Bags fill their 14 rows nearly always: the rows where the halves' ink begins differ as the label says.
    sneakers = (found.train.task_labels["left"] == 1) & (
        found.train.task_labels["right"] == 1
    )  # trousers: from top to bottom
    for image, (down, _) in zip(images[sneakers, 0], raw[sneakers].tolist(), strict=True):
        tops = [int((half > 60).any(1).int().argmax()) for half in image.split(16, dim=1)]
        assert abs(tops[1] - tops[0] - down) <= 2
    again = fashion_pairs(FASHION, count=300, test_count=50)
    assert again.fingerprint == found.fingerprint
