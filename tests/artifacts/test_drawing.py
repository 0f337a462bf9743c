"""Drawings that people read: nothing overlaps, arrows lead onwards, every label is there."""

from itertools import combinations, pairwise
from xml.etree import ElementTree

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nasplat.artifacts.drawing import draw_svg, draw_text
from nasplat.artifacts.layout import layout
from nasplat.core.drawing import KINDS, Bar, Bars, Drawing, Edge, Node
from nasplat.core.errors import NasplatError

CELL = Drawing(
    (
        Node("a", "c[k-2]", "input"),
        Node("b", "c[k-1]", "input"),
        Node("0", "0", "combine"),
        Node("1", "1", "combine"),
        Node("out", "c[k]", "output"),
    ),
    (
        Edge("a", "0", "sep conv 3x3", "separable"),
        Edge("b", "0", "skip connect", "identity"),
        Edge("b", "1", "max pool 3x3", "pooling"),
        Edge("0", "1", "conv <1x1> & more", "convolution"),
        Edge("0", "out"),
        Edge("1", "out"),
    ),
)


DRAWN = [kind for kind in KINDS if kind != "combine"]  # a join without arrows is not drawn


@st.composite
def drawings(draw: st.DrawFn) -> Drawing:
    count = draw(st.integers(1, 12))
    labels = st.text(st.characters(codec="utf-8", categories=["L", "N", "P", "S"]), min_size=1, max_size=14)
    nodes = tuple(Node(str(index), draw(labels), draw(st.sampled_from(DRAWN))) for index in range(count))
    pairs = list(combinations(range(count), 2))
    chosen = draw(st.lists(st.sampled_from(pairs), max_size=20)) if pairs else []  # the same arrow may come twice
    edges = tuple(Edge(str(one), str(two), draw(st.one_of(st.just(""), labels)), "pooling") for one, two in chosen)
    return Drawing(nodes, edges)


@given(drawings())
@settings(max_examples=80, deadline=None)
def test_boxes_never_overlap_and_arrows_lead_to_the_right(drawing: Drawing) -> None:
    placed = layout(drawing)
    assert len(placed.boxes) == len(drawing.nodes) + sum(bool(edge.label) for edge in drawing.edges)
    for one, two in combinations(placed.boxes, 2):
        apart = abs(one.x - two.x) >= (one.width + two.width) / 2 or abs(one.y - two.y) >= (one.height + two.height) / 2
        assert apart, (one, two)
    for box in placed.boxes:
        assert box.x - box.width / 2 >= -0.01
        assert box.x + box.width / 2 <= placed.width + 0.01
        assert box.y - box.height / 2 >= -0.01
        assert box.y + box.height / 2 <= placed.height + 0.01
    for route in placed.routes:
        horizontal = all(one[0] <= two[0] + 0.01 for one, two in pairwise(route))
        assert horizontal or len(route) == 4  # the fold of a long chain goes back


@given(drawings())
@settings(max_examples=40, deadline=None)
def test_svg_is_well_formed_and_complete(drawing: Drawing) -> None:
    root = ElementTree.fromstring(draw_svg(drawing))
    texts = [text.text for text in root.iter("{http://www.w3.org/2000/svg}text")]
    labels = [node.label for node in drawing.nodes] + [edge.label for edge in drawing.edges if edge.label]
    assert sorted(texts) == sorted(labels)


@given(drawings())
@settings(max_examples=40, deadline=None)
def test_text_names_every_box_and_label(drawing: Drawing) -> None:
    text = draw_text(drawing)
    for label in [node.label for node in drawing.nodes] + [edge.label for edge in drawing.edges]:
        assert label in text


def test_joins_that_nothing_reaches_are_left_out() -> None:
    """A cell of NAS-Bench-201 whose edges are none keeps its nodes in the table, not in the picture."""
    drawing = Drawing((*CELL.nodes, Node("lonely", "lonely", "combine")), CELL.edges)
    assert draw_svg(drawing) == draw_svg(CELL)
    assert draw_text(drawing) == draw_text(CELL)


def test_arrows_of_a_cell_do_not_cross_where_they_need_not() -> None:
    """Barycentres put what comes from the upper input above what comes from the lower."""
    placed = {box.label: box for box in layout(CELL).boxes}
    assert (placed["c[k-2]"].y < placed["c[k-1]"].y) == (placed["sep conv 3x3"].y < placed["skip connect"].y)
    assert placed["c[k]"].x == max(box.x for box in placed.values())


def test_text_of_a_cell() -> None:
    assert draw_text(CELL).splitlines() == [
        "  c[k-2]",
        "  c[k-1]",
        "  0       ← sep conv 3x3      (c[k-2])",
        "          ← skip connect      (c[k-1])",
        "  1       ← max pool 3x3      (c[k-1])",
        "          ← conv <1x1> & more (0)",
        "  c[k]    ← 0, 1",
    ]


def test_text_of_a_chain_numbers_equal_layers() -> None:
    labels = ["input", "conv 3×3", "conv 3×3", "logits"]
    nodes = tuple(Node(str(index), label) for index, label in enumerate(labels))
    edges = tuple(Edge(str(index), str(index + 1)) for index in range(3))
    assert draw_text(Drawing(nodes, edges)) == "  input\n↓ conv 3×3 #1\n↓ conv 3×3 #2\n↓ logits"


def test_a_long_chain_is_folded_into_rows() -> None:
    """A mobile network of 30 layers would be a strip of 4,000 pixels."""
    nodes = tuple(Node(str(index), "MB 3×3, expand 6 → 24", "separable") for index in range(30))
    drawing = Drawing(nodes, tuple(Edge(str(index), str(index + 1)) for index in range(29)))
    placed = layout(drawing)
    assert placed.width < 1200
    assert len({box.y for box in placed.boxes}) > 3


def test_several_drawings_make_one_picture_with_titles() -> None:
    svg = draw_svg({"normal": CELL, "reduction": CELL})
    assert svg.count("<svg") == 1
    assert ">normal<" in svg
    assert ">reduction<" in svg


def test_pictures_ask_the_network_for_nothing() -> None:
    without_namespace = draw_svg(CELL).replace('xmlns="http://www.w3.org/2000/svg"', "")
    assert "http" not in without_namespace
    assert "url(" not in without_namespace


def test_empty_drawing() -> None:
    ElementTree.fromstring(draw_svg(Drawing((), ())))
    assert draw_text(Drawing((), ())) == ""


@pytest.mark.parametrize(
    ("edges", "told"), [((Edge("a", "b"), Edge("b", "a")), "circle"), ((Edge("a", "c"),), "not both boxes")]
)
def test_what_cannot_be_drawn_is_told(edges: tuple[Edge, ...], told: str) -> None:
    with pytest.raises(NasplatError, match=told):
        draw_svg(Drawing((Node("a", "a"), Node("b", "b")), edges))


def test_bars_stand_among_drawings_and_in_a_terminal() -> None:
    """A pruned network's widths could not be looked at."""
    bars = Bars((Bar("conv1", 16, 4), Bar("conv2", 32, 0)), "channels")
    cell = Drawing((Node("a", "input", "input"), Node("b", "add", "combine")), (Edge("a", "b", "conv"),))
    svg = draw_svg({"widths": bars, "cell": cell})
    ElementTree.fromstring(svg)
    assert "4 of 16 (25%)" in svg and "conv2" in svg and ">conv<" in svg
    first, second = draw_text(bars).splitlines()
    assert first.count("█") == 5 and first.count("░") == 15 and "4 of 16" in first
    assert "█" not in second and second.count("░") == 40
