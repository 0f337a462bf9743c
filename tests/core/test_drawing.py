"""A network without a drawing of its own is drawn from its operations, folded to what a person wants to see."""

import pytest

from nasplat.core.drawing import drawing_of_graph, kind_of
from nasplat.core.graph import GraphBuilder, OperationGraph


def graph() -> OperationGraph:
    builder = GraphBuilder((3, 8, 8))
    stem = builder.activation(builder.batch_norm(builder.conv2d(0, 8, 3, name="stem"), name="norm"))
    left = builder.conv2d(stem, 8, 3, groups=8, name="left")
    right = builder.activation(builder.conv2d(stem, 8, 3, dilation=2, name="right"))
    total = builder.activation(builder.add([stem, left, right]))
    pooled = builder.flatten(builder.global_avg_pool(total))
    return builder.finish({"logits": builder.linear(pooled, 10, name="fc")}, {"features": pooled})


def test_norms_activations_and_chains_of_sums_are_folded() -> None:
    drawing = drawing_of_graph(graph())
    assert [(node.label, node.kind) for node in drawing.nodes] == [
        ("input 3×8×8", "input"),
        ("conv 3×3 → 8", "convolution"),
        ("depthwise 3×3 → 8", "separable"),
        ("conv 3×3 → 8", "dilated"),
        ("add", "combine"),
        ("global avg pool", "pooling"),
        ("linear → 10", "linear"),
        ("logits", "output"),
    ]
    labels = {node.id: node.label for node in drawing.nodes}
    into_sum = [labels[edge.source] for edge in drawing.edges if labels[edge.target] == "add"]
    assert sorted(into_sum) == ["conv 3×3 → 8", "conv 3×3 → 8", "depthwise 3×3 → 8"]


def test_every_arrow_has_both_boxes_and_every_box_an_arrow() -> None:
    drawing = drawing_of_graph(graph())
    ids = {node.id for node in drawing.nodes}
    ends = {end for edge in drawing.edges for end in (edge.source, edge.target)}
    assert ends == ids


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("sep_conv_3x3", "separable"),
        ("dil_conv_5x5", "dilated"),
        ("nor_conv_3x3", "convolution"),
        ("max_pool_3x3", "pooling"),
        ("skip_connect", "identity"),
        ("none", "none"),
        ("something", "other"),
    ],
)
def test_usual_names_have_a_kind(name: str, kind: str) -> None:
    assert kind_of(name) == kind
