"""The end of a network: pooled features, and a classifier for each output that needs one."""

from __future__ import annotations

from collections.abc import Mapping

from nasplat.core.graph import GraphBuilder, OperationGraph
from nasplat.core.problem import Problem


def finish_with_heads(builder: GraphBuilder, node: int, problem: Problem, taps: Mapping[str, int]) -> OperationGraph:
    """Global average pooling, then one linear layer for every classification; an embedding is the pooled features.

    Args:
        node: `(C, H, W)`; the tap `features` is its mean over height and width, `(C,)`.
        taps: further taps.
    """
    features = builder.flatten(builder.global_avg_pool(node))
    outputs = {
        output.name: (
            builder.linear(features, output.size, name=f"heads.{output.name}")
            if output.kind == "classification"
            else features
        )
        for output in problem.outputs
    }
    return builder.finish(outputs, {"features": features, **taps})
