"""The picture of a branching tree, read back from its SVG.

What a user would lose: a picture whose branches, colours or sizes are not those of the network.
"""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from itertools import islice, pairwise

import pytest

from nasplat.artifacts.tree_picture import COLOURS, summary, tree_svg, tree_text
from nasplat.core import branching
from nasplat.core.branching import CostedTree, Part, Tree

SVG = "{http://www.w3.org/2000/svg}"
LAYERS = (Part("stem", 4_000_000, 100), Part("blocks.3", 1_000_000, 2_000), Part("blocks.7", 2_000_000, 40_000))
HEADS = tuple(Part(name, 1_000, 10) for name in ("hair", "smile & <age>", "depth"))


def frames(svg: str) -> list[tuple[str, float, float, list[str]]]:
    """Of each branch: what is said of it, left, height, colours from top to bottom."""
    found = []
    for group in ElementTree.fromstring(svg).iter(f"{SVG}g"):
        *stripes, frame = group.findall(f"{SVG}rect")
        words = group.findtext(f"{SVG}title") or ""
        colours = [stripe.get("fill", "") for stripe in stripes]
        found.append((words, float(frame.get("x", 0)), float(frame.get("height", 0)), colours))
    return [one for one in found if one[0] != "image"]


@pytest.mark.parametrize("tree", list(islice(branching.all_trees(3, 3), 0, None, 3)))
def test_every_branch_is_there_with_its_tasks_and_its_cost(tree: Tree) -> None:
    drawn = frames(tree_svg(CostedTree(tree, LAYERS, HEADS)))
    expected = [
        (", ".join(HEADS[task].name for task in tasks), layer.name, tasks)
        for layer, partition in zip(LAYERS, tree, strict=True)
        for tasks in branching.branches(partition).values()
    ]
    assert [words.partition(": ")[0] for words, *_ in drawn] == [names for names, *_ in expected]
    for (words, _, _, colours), (_, layer, tasks) in zip(drawn, expected, strict=True):
        assert f": {layer}, " in words
        assert sorted(colours) == sorted(COLOURS[task] for task in tasks)
    # Heights are the costs, however many tasks share; columns are the layers from left to right.
    heights = {layer: {round(h, 1) for words, _, h, _ in drawn if f": {layer}, " in words} for _, layer, _ in expected}
    (most,), (second,), (third,) = (heights[layer.name] for layer in LAYERS)
    assert second / most == pytest.approx(0.25, abs=0.01) and third / most == pytest.approx(0.5, abs=0.01)
    assert [left for _, left, _, _ in drawn] == sorted(left for _, left, _, _ in drawn)


def test_branches_of_a_layer_do_not_overlap_and_stripes_do_not_cross() -> None:
    for tree in islice(branching.all_trees(5, 3), 0, None, 40):
        layers = tuple(Part(f"l{number}", 1000, 10) for number in range(3))
        svg = tree_svg(CostedTree(tree, layers, tuple(Part(f"t{number}", 1, 1) for number in range(5))))
        orders = []
        for number in range(3):
            stripes = []
            for group in ElementTree.fromstring(svg).iter(f"{SVG}g"):
                if f": l{number}, " in (group.findtext(f"{SVG}title") or ""):
                    for stripe in group.findall(f"{SVG}rect")[:-1]:
                        top = float(stripe.get("y", 0))
                        stripes.append((top, top + float(stripe.get("height", 0)), stripe.get("fill")))
            stripes.sort(key=lambda stripe: stripe[0])
            assert all(a[1] <= b[0] + 0.05 for a, b in pairwise(stripes))
            orders.append([colour for _, _, colour in stripes])
        assert orders[0] == orders[1] == orders[2] and len(set(orders[0])) == 5


def test_the_total_is_said_and_names_are_text() -> None:
    costed = CostedTree(((0, 0, 0), (0, 0, 2), (0, 1, 2)), LAYERS, HEADS)
    svg = tree_svg(costed)
    root = ElementTree.fromstring(svg)  # names with & and < are escaped
    assert "smile & <age>" in [text.text for text in root.iter(f"{SVG}text")]
    title = root.findtext(f"{SVG}title") or ""
    # 4 + 2·1 + 3·2 = 12 of 3·7 = 21 million
    assert "12 M MACs, 124 k parameters: 57% of the MACs of separate networks (all shared: 33%)" in title
    assert "hair+smile & <age>+depth > hair+smile & <age> | depth > hair | smile & <age> | depth" in title
    assert "prefers-color-scheme: dark" in svg and "http" not in svg.replace("http://www.w3.org/2000/svg", "")


def test_a_terminal_gets_a_line_a_layer() -> None:
    costed = CostedTree(((0, 0, 0), (0, 0, 2), (0, 1, 2)), LAYERS, HEADS)
    assert tree_text(costed).splitlines() == [
        "stem          4 M  hair+smile & <age>+depth",
        "blocks.3  2 × 1 M  hair+smile & <age> | depth",
        "blocks.7  3 × 2 M  hair | smile & <age> | depth",
        "12 M MACs, 124 k parameters: 57% of the MACs of separate networks (all shared: 33%)",
    ]


def test_many_tasks_and_costless_layers_are_drawn() -> None:
    tree = branching.tree_of([[0] * 40, list(range(40))])
    heads = tuple(Part(f"task {number}", 0, 0) for number in range(40))
    costed = CostedTree(tree, (Part("a", 0, 0), Part("b", 0, 0)), heads)
    root = ElementTree.fromstring(tree_svg(costed))
    assert float(root.get("height", 0)) < 1100
    assert all(height >= 3 for _, _, height, _ in frames(ElementTree.tostring(root, encoding="unicode")))
    assert "40 tasks and 2 layers" in summary(costed)
