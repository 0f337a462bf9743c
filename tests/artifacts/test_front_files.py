"""The front as a table and as a picture, for whoever has no nasplat."""

import csv
import re
from pathlib import Path
from xml.etree import ElementTree

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nasplat.artifacts import metric_names
from nasplat.artifacts.front_csv import FrontRow, read_front, write_front
from nasplat.artifacts.front_picture import PicturePoint, front_svg
from nasplat.core.errors import NasplatError
from nasplat.core.front import Goal

DOWN, UP = Goal("macs", "minimize"), Goal("accuracy", "maximize")
ROWS = [
    FrontRow(1, "ab" * 32, 7, {"accuracy": 0.1 + 0.2, "macs": 123_456_789.0}, {"trial": "trials/0007-abababab"}),
    FrontRow(2, "cd" * 32, 3, {"accuracy": 0.9}, {"trial": "trials/0003, odd", "export": "exports/é"}),
]


def test_front_round_trip(tmp_path: Path) -> None:
    write_front(ROWS, tmp_path / "front.csv")
    assert read_front(tmp_path / "front.csv") == ROWS


def test_front_columns(tmp_path: Path) -> None:
    write_front(ROWS, tmp_path / "front.csv")
    lines = list(csv.reader((tmp_path / "front.csv").open(encoding="utf-8")))
    assert lines[0] == ["rank", "digest", "trial", "accuracy", "macs", "trial_path", "export_path"]
    assert lines[1][4] == "123456789"  # a spreadsheet must not make 1.23e8 of it


def test_an_empty_front_is_a_table_too(tmp_path: Path) -> None:
    write_front([], tmp_path / "front.csv")
    assert read_front(tmp_path / "front.csv") == []


@pytest.mark.parametrize(
    "text", ["a,b\n1,2\n", "rank,digest,trial\nx,y,z\n", 'rank,digest,trial\n"1', "rank,digest,trial\n1\n"]
)
def test_damaged_front(tmp_path: Path, text: str) -> None:
    (tmp_path / "front.csv").write_text(text)
    with pytest.raises(NasplatError, match="damaged"):
        read_front(tmp_path / "front.csv")


values = st.floats(1e-6, 1e12) | st.just(0.0)
points = st.lists(st.builds(PicturePoint, values, values), max_size=12)


@given(points, st.sampled_from([DOWN, Goal("x", "maximize")]), st.sampled_from([UP, Goal("y", "minimize")]))
@settings(max_examples=60, deadline=None)
def test_every_candidate_is_in_the_picture(found: list[PicturePoint], x: Goal, y: Goal) -> None:
    root = ElementTree.fromstring(front_svg(found, x, y, title="a < b", width=700, height=400))
    circles = list(root.iter("{http://www.w3.org/2000/svg}circle"))
    edge = [path for path in root.iter("{http://www.w3.org/2000/svg}path") if path.attrib.get("class") == "fp-dot"]
    assert len(circles) + len(edge) == len(found)
    for circle in circles:
        assert 0 <= float(circle.attrib["cx"]) <= 700
        assert 0 <= float(circle.attrib["cy"]) <= 400


def test_one_candidate_that_learned_nothing_does_not_press_the_others_together() -> None:
    found = [PicturePoint(2.0 + index, 0.9 + 0.01 * index) for index in range(8)]
    heights = lambda svg: [float(y) for y in re.findall(r'cy="([\d.]+)"', svg)]  # noqa: E731
    alone = heights(front_svg(found, DOWN, UP))
    beside = front_svg([*found, PicturePoint(2.0, 0.1)], DOWN, UP)
    assert heights(beside) == alone and beside.count("8l-4") == 1
    on_front = front_svg([*found, PicturePoint(1.0, 0.1)], DOWN, UP)  # nothing is cheaper: it must be seen as it is
    assert len(heights(on_front)) == 9


def test_the_front_stands_out_in_the_picture() -> None:
    found = [PicturePoint(1, 0.8), PicturePoint(2, 0.7), PicturePoint(3, 0.9, 0.88, 0.92)]
    svg = front_svg(found, DOWN, UP)
    assert svg.count('class="fp-front') == 2
    assert svg.count('class="fp-dot"') == 1
    assert svg.count('class="fp-bar"') == 1
    assert "http" not in svg.replace('xmlns="http://www.w3.org/2000/svg"', "")


@pytest.mark.parametrize("accuracies", [[1.0], [1.0, 1.0], [0.99, 1.0], [0.0], [0.0, 1.0]])
def test_no_axis_goes_above_all_or_below_nothing(accuracies: list[float]) -> None:
    svg = front_svg([PicturePoint(1, accuracy) for accuracy in accuracies], DOWN, UP)
    shown = [float(tick) for tick in re.findall(r">(-?[\d.]+) %<", svg)]
    assert shown
    assert all(0 <= tick <= 100 for tick in shown)


def test_what_is_called_a_share_and_is_none_is_drawn_all_the_same() -> None:
    svg = front_svg([PicturePoint(1, 50.0), PicturePoint(2, 90.0)], DOWN, UP)
    assert all(0 <= float(y) <= 440 for y in re.findall(r'cy="([-\d.]+)"', svg))


def test_one_network_is_not_many() -> None:
    assert "MACs, 1 network<" in front_svg([PicturePoint(1, 0.5)], DOWN, UP)
    assert "MACs, 2 networks<" in front_svg([PicturePoint(1, 0.5), PicturePoint(2, 0.6)], DOWN, UP)


@pytest.mark.parametrize(
    ("metric", "text", "unit"),
    [
        ("params", "Parameters", "count"),
        ("top5_accuracy", "Top5 accuracy", "percent"),
        ("my_metric:width", "width", "number"),
        ("pr:mean_accuracy", "mean_accuracy", "percent"),
    ],
)
def test_a_metric_of_ones_own_is_called_as_its_function(metric: str, text: str, unit: str) -> None:
    assert (metric_names.label(metric), metric_names.unit(metric)) == (text, unit)


@pytest.mark.parametrize(
    ("metric", "value", "text"),
    [
        ("accuracy", 0.91254, "91.25 %"),
        ("top5_accuracy", 1.0, "100.00 %"),
        ("macs", 12_345_678, "12.3 M"),
        ("macs", 999_999, "1.00 M"),
        ("params", 42, "42"),
        ("peak_bytes", 1_500_000, "1.50 MB"),
        ("latency", 3.21, "3.21 ms"),
        ("seconds", 61.4, "61.4 s"),
        ("seconds", 121.4, "2 min 01 s"),
        ("seconds", 7325, "2 h 02 min"),
        ("loss", 0.123456, "0.1235"),
        ("my_metric", float("nan"), "nan"),
        ("macs", 0, "0"),
    ],
)
def test_numbers_as_people_read_them(metric: str, value: float, text: str) -> None:
    assert metric_names.text(metric, value) == text


def test_landmarks_stand_beside_their_dots_within_the_picture() -> None:
    """A name that runs out of the picture cannot be read."""
    names = ("a_rather_long_name_of_a_network", "darts_v2")
    found = [PicturePoint(1, 0.5), PicturePoint(2, 0.6, landmark=names[1]), PicturePoint(9, 0.9, landmark=names[0])]
    svg = front_svg(found, DOWN, UP)
    root = ElementTree.fromstring(svg)
    texts = {one.text: one for one in root.iter() if one.text in names}
    assert texts[names[1]].get("text-anchor") == "start" and texts[names[0]].get("text-anchor") == "end"
