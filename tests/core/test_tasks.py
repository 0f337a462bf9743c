"""Without these a user's table would be learned as something that it is not."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nasplat.core.errors import NasplatError
from nasplat.core.tasks import Task, check_several, encode, infer_kind, infer_task


@pytest.mark.parametrize(
    ("cells", "kind"),
    [
        (["shirt", "bag", "shirt"], "classification"),
        (["0", "1", "", "2"], "classification"),
        (["red|blue", "red", "-"], "multi_label"),
        (["a; b", "c"], "multi_label"),
        (["0.5", "1", "nan"], "regression"),
        (["1e3", "2"], "regression"),
        (["0 1", "2 3"], "regression"),
        (["1;2", "3;4"], "regression"),
        ([str(number) for number in range(21)], "regression"),
        ([str(number) for number in range(20)], "classification"),
        (["masks/a.png", "masks/b.png", ""], "dense"),
    ],
)
def test_kinds_are_inferred(cells: list[str], kind: str) -> None:
    assert infer_kind(cells, frozenset({".png"})) == kind


def test_classes_are_in_order_of_number_or_text() -> None:
    assert infer_task("t", "classification", ["10", "9", "2", ""]).classes == ("2", "9", "10")
    assert infer_task("t", "classification", ["b", "a", "?"]).classes == ("a", "b")
    assert infer_task("t", "multi_label", ["red|blue", "-", "green"]).classes == ("blue", "green", "red")
    assert infer_task("t", "regression", ["1 2 3"]).size == 3


def test_cells_become_labels() -> None:
    classes = Task("t", "classification", 2, ("a", "b"))
    assert [encode(classes, cell) for cell in ("a", " b ", "", "NA")] == [0, 1, -1, -1]
    labels = Task("t", "multi_label", 3, ("a", "b", "c"))
    assert [encode(labels, cell) for cell in ("c|a", "-", "?")] == [(1, 0, 1), (0, 0, 0), (-1, -1, -1)]
    pair = Task("t", "regression", 2)
    assert encode(pair, "1 -2.5") == (1.0, -2.5)
    missing = encode(pair, "")
    assert isinstance(missing, tuple) and all(math.isnan(number) for number in missing)


@given(st.lists(st.text(st.characters(codec="ascii", categories=["L"]), min_size=3), min_size=2, unique=True))
def test_every_class_is_its_own_label(names: list[str]) -> None:
    names = [name for name in names if name.lower() != "nan"]
    if len(names) > 1:
        task = infer_task("t", "classification", names)
        assert sorted(encode(task, name) for name in names) == list(range(len(names)))
        assert all(task.classes[encode(task, name)] == name for name in names)  # type: ignore[index]


@pytest.mark.parametrize(
    ("task", "cell", "words"),
    [
        (Task("t", "classification", 2, ("shirt", "bag")), "shirts", "'shirts' is not a class"),
        (Task("t", "multi_label", 2, ("red", "blue")), "red|blu", "'blu' is not a label"),
        (Task("t", "regression", 1), "heavy", "'heavy' is not a number"),
        (Task("t", "regression", 2), "1", "not 2 numbers"),
        (Task("t", "regression", 1), "inf", "not a number"),
    ],
)
def test_labels_of_the_wrong_kind_are_told(task: Task, cell: str, words: str) -> None:
    with pytest.raises(NasplatError, match=words):
        encode(task, cell)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("", "regression", 1), "cannot be named"),
        (("a.b", "regression", 1), "cannot be named"),
        (("a", "regresion", 1), "no kind 'regresion'"),
        (("a", "classification", 1), "least size is 2"),
        (("a", "multi_label", 2, ("x",)), "1 names of classes"),
        (("a", "classification", 2, (), (0.0,), (1.0,)), "mean and std"),
    ],
)
def test_tasks_that_cannot_be(arguments: tuple[object, ...], words: str) -> None:
    with pytest.raises(NasplatError) as caught:
        Task(*arguments)  # type: ignore[arg-type]
    assert words in str(caught.value)


def test_one_task_alone_and_two_of_one_name_are_told() -> None:
    one = Task("kind", "classification", 2)
    with pytest.raises(NasplatError, match="only one task, kind"):
        check_several([one])
    with pytest.raises(NasplatError, match="no task"):
        check_several([])
    with pytest.raises(NasplatError, match="two tasks are named kind"):
        check_several([one, one])


def test_columns_with_nothing_to_learn_are_told() -> None:
    with pytest.raises(NasplatError, match="task t has no label at all"):
        infer_task("t", "classification", ["", "?", "nan"])
    with pytest.raises(NasplatError, match="all labels are 'a'"):
        infer_task("t", "classification", ["a", "a", ""])
    with pytest.raises(NasplatError, match="no image has any"):
        infer_task("t", "multi_label", ["-", ""])


def test_a_task_survives_its_file() -> None:
    task = Task("t", "regression", 2, ("x", "y"), (0.5, 1.0), (2.0, 3.0))
    assert Task.from_json(json.loads(json.dumps(task.to_json()))) == task
