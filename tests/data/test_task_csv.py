"""Without these a table's mistake would become a label, and nobody would know in which line."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from nasplat.core.errors import NasplatError
from nasplat.core.experiment import Data
from nasplat.data.datasets import load_dataset
from nasplat.data.task_csv import read_task_folder

HEADER = "file, kind, colours, weight, outline, split"


def rows(count: int = 12) -> list[str]:
    parts = ["train"] * 8 + ["val"] * 2 + ["test"] * 2
    made = []
    for number in range(count):
        kind = ("shirt", "bag")[number % 2] if number != 3 else "?"
        colours = ("red|blue", "-", "blue")[number % 3] if number != 4 else ""
        weight = f"{number / 2}" if number != 5 else "nan"
        mask = f"masks/{number}.png" if number != 6 else ""
        made.append(f"images/{number}.png, {kind}, {colours}, {weight}, {mask}, {parts[number]}")
    return made


def folder(base: Path, lines: list[str], header: str = HEADER, count: int = 12) -> Path:
    (base / "images").mkdir()
    (base / "masks").mkdir()
    for number in range(count):
        Image.new("L", (6, 4), 10 * number).save(base / "images" / f"{number}.png")
        mask = np.zeros((4, 6), dtype=np.uint8)
        mask[:2], mask[3, 5] = number % 3, 255
        Image.fromarray(mask).save(base / "masks" / f"{number}.png")
    (base / "labels.csv").write_text("\n".join([header, *lines]) + "\n")
    return base


def test_a_folder_with_a_table_loads(tmp_path: Path) -> None:
    found = read_task_folder(folder(tmp_path, rows()))
    assert [(task.name, task.kind, task.size) for task in found.tasks] == [
        ("kind", "classification", 2),
        ("colours", "multi_label", 2),
        ("weight", "regression", 1),
        ("outline", "dense", 3),
    ]
    assert (len(found.train), len(found.validation), len(found.test)) == (8, 2, 2)
    images = found.train.images
    assert isinstance(images, Tensor) and images[:, 0, 0, 0].tolist() == [10 * number for number in range(8)]
    labels = found.train.task_labels
    assert found.tasks[0].classes == ("bag", "shirt")
    assert labels["kind"].tolist() == [1, 0, 1, -1, 1, 0, 1, 0]
    assert labels["colours"].tolist()[:5] == [[1, 1], [0, 0], [1, 0], [1, 1], [-1, -1]]
    assert labels["weight"][:, 0].isnan().nonzero().flatten().tolist() == [5]
    assert labels["outline"][2, :, 5].tolist() == [2, 2, 0, -1] and bool((labels["outline"][6] == -1).all())


def test_kinds_columns_and_sizes_can_be_given(tmp_path: Path) -> None:
    made = folder(tmp_path, rows(), HEADER.replace("file", "photo"))
    found = read_task_folder(
        made,
        file_column="photo",
        kinds={"weight": "classification"},
        tasks=["weight", "outline"],
        image_size=8,
        validation_share=0.3,
    )
    assert [(task.kind, task.size) for task in found.tasks] == [("classification", 11), ("dense", 3)]
    assert found.problem.input_shape == (1, 8, 8) and tuple(found.train.task_labels["outline"].shape[1:]) == (8, 8)


def test_without_a_column_split_images_are_held_out(tmp_path: Path) -> None:
    lines = [line.rpartition(",")[0] for line in rows()]
    made = folder(tmp_path, lines, HEADER.removesuffix(", split"))
    found = read_task_folder(made, tasks=["kind", "weight"])
    assert len(found.train) + len(found.validation) + len(found.test) == 12
    images = torch.cat([part.images for part in (found.train, found.validation, found.test)])  # type: ignore[misc]
    assert sorted(images[:, 0, 0, 0].tolist()) == [10 * number for number in range(12)]


def changed(row: int, old: str, new: str) -> list[str]:
    lines = rows()
    assert old in lines[row]
    lines[row] = lines[row].replace(old, new, 1)
    return lines


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        (changed(3, "images/3.png", "images/1.png"), "line 5, column file: images/1.png is also in line 3"),
        (changed(3, "images/3.png", "./images/1.png"), "is also in line 3"),
        (changed(2, "images/2.png", "images/99.png"), "line 4, column file: there is no file"),
        (changed(2, "masks/2.png", "masks/99.png"), "line 4, column outline: there is no file"),
        (changed(2, "images/2.png", "../2.png"), "line 4, column file: '../2.png' is not the name of a file"),
        (changed(2, "train", "trian"), "line 4, column split: 'trian'"),
        (changed(2, ", train", ""), "line 4: 5 cells, and 6 columns"),
        (changed(2, "shirt", '"shirt'), "close every quotation mark"),
        ([], "has no rows"),
    ],
)
def test_mistakes_are_told_with_line_and_column(tmp_path: Path, lines: list[str], words: str) -> None:
    with pytest.raises(NasplatError) as caught:
        read_task_folder(folder(tmp_path, lines))
    assert words in str(caught.value) and "labels.csv" in str(caught.value)


def test_labels_of_the_wrong_kind_are_told_with_line_and_column(tmp_path: Path) -> None:
    made = folder(tmp_path, changed(7, "3.5", "heavy"))
    with pytest.raises(NasplatError, match=r"labels\.csv, line 9, column weight: 'heavy' is not a number"):
        read_task_folder(made, kinds={"weight": "regression"})
    with pytest.raises(NasplatError, match="no kind 'regresion' of labels") as caught:
        read_task_folder(made, kinds={"weight": "regresion"})  # type: ignore[dict-item]
    assert "did you mean 'regression'" in caught.value.advice and "contrastive" not in caught.value.advice


@pytest.mark.parametrize(
    ("header", "words"),
    [
        (HEADER.replace("kind", "weight"), "two columns are named weight"),
        (HEADER.replace("kind", ""), "column 2 has no name"),
        (HEADER.replace("file", "picture"), "no column with the names of images"),
    ],
)
def test_headers_with_something_wrong_are_told(tmp_path: Path, header: str, words: str) -> None:
    with pytest.raises(NasplatError, match=words):
        read_task_folder(folder(tmp_path, rows(), header))


def test_tasks_without_labels_and_one_task_only_are_told(tmp_path: Path) -> None:
    made = folder(tmp_path, [line.replace("shirt", "").replace("bag", "") for line in rows()])
    with pytest.raises(NasplatError, match="task kind has no label at all"):
        read_task_folder(made)
    with pytest.raises(NasplatError, match="only one task, weight"):
        load_dataset(Data(path=str(made), tasks=("weight",)))
    with pytest.raises(NasplatError, match="did you mean 'weight'"):
        read_task_folder(made, tasks=["wieght", "outline"])


def test_folders_without_one_table_are_told(tmp_path: Path) -> None:
    with pytest.raises(NasplatError, match="no CSV file"):
        read_task_folder(tmp_path)
    with pytest.raises(NasplatError, match="is not a folder"):
        read_task_folder(tmp_path / "absent")
    (tmp_path / "a.csv").write_bytes(b"file,\xff\xfe\n")
    with pytest.raises(NasplatError, match="UTF-8"):
        read_task_folder(tmp_path)
    (tmp_path / "b.csv").write_text("file\n")
    with pytest.raises(NasplatError, match=r"several CSV files: a\.csv, b\.csv"):
        read_task_folder(tmp_path)
