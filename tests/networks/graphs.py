"""Operation graphs that the tests of networks run."""

import numpy as np

from nasplat.core.graph import GraphBuilder, OperationGraph


def small_graph(drop_path: bool = True) -> OperationGraph:
    """A network with every kind of operation once, two outputs and a tap."""
    graph = GraphBuilder((3, 9, 8))
    stem = graph.conv2d(graph.input, 8, 3, name="stem.conv")
    stem = graph.activation(graph.batch_norm(stem, name="stem.norm"), "relu")
    shifted = graph.pool(graph.shift(stem), "avg_pool", 3, 2)
    pooled = graph.activation(graph.pool(stem, "max_pool", 3, 2), "relu6")
    edge = graph.conv2d(stem, 8, (1, 7), name="cell.0.conv", stride=2, groups=4)
    edge = graph.batch_norm(edge, name="cell.0.norm", affine=False)
    if drop_path:
        edge = graph.drop_path(edge)
    nothing = graph.zeros(stem, graph.shape(pooled))
    total = graph.add([shifted, pooled, edge, nothing])
    dilated = graph.conv2d(graph.activation(total, "silu"), 8, 3, name="cell.1.conv", dilation=2, bias=True)
    squeezed = graph.activation(graph.global_avg_pool(dilated), "hard_sigmoid")
    scaled = graph.multiply(graph.activation(dilated, "hard_swish"), squeezed)
    joined = graph.concat([scaled, total])
    features = graph.flatten(graph.global_avg_pool(graph.activation(joined, "sigmoid")))
    logits = graph.linear(features, 10, name="classifier.logits")
    size = graph.linear(features, 2, name="classifier.size", bias=False)
    return graph.finish({"logits": logits, "size": size}, {"features": features, "auxiliary": total})


def random_graph(seed: int) -> OperationGraph:
    """Operations of random kinds on random earlier tensors, also such that nothing reads."""
    rng = np.random.default_rng(seed)
    graph = GraphBuilder((int(rng.integers(1, 5)), int(rng.integers(5, 12)), int(rng.integers(5, 12))))
    maps = [graph.input]
    for number in range(int(rng.integers(3, 20))):
        node = maps[int(rng.integers(len(maps)))]
        like = [other for other in maps if graph.shape(other) == graph.shape(node)]
        other = like[int(rng.integers(len(like)))]
        kind = int(rng.integers(10))
        stride = int(rng.integers(1, 3))
        if kind == 0:
            kernel = (int(rng.choice([1, 3, 5])), int(rng.choice([1, 3])))
            options = {"stride": stride, "dilation": int(rng.integers(1, 3)), "bias": bool(rng.integers(2))}
            maps.append(graph.conv2d(node, int(rng.integers(1, 9)), kernel, name=f"layers.{number}", **options))
        elif kind == 1:
            channels = graph.shape(node)[0]
            maps.append(graph.conv2d(node, 2 * channels, 3, name=f"layers.{number}", groups=channels, stride=stride))
        elif kind == 2:
            maps.append(graph.batch_norm(node, name=f"layers.{number}", affine=bool(rng.integers(2))))
        elif kind == 3:
            maps.append(graph.activation(node, str(rng.choice(["relu", "relu6", "silu", "hard_swish", "sigmoid"]))))
        elif kind == 4:
            maps.append(graph.pool(node, str(rng.choice(["max_pool", "avg_pool"])), 3, stride))
        elif kind == 5:
            maps.append(graph.add([node, other, node]))
        elif kind == 6:
            maps.append(graph.concat([node, other]))
        elif kind == 7:
            maps.append(graph.shift(node))
        elif kind == 8:
            maps.append(graph.zeros(node, graph.shape(other)))
        else:
            maps.append(graph.multiply(node, graph.global_avg_pool(node)))
    features = graph.flatten(graph.global_avg_pool(maps[-1]))
    return graph.finish(
        {"logits": graph.linear(features, 3, name="classifier", bias=bool(rng.integers(2)))}, {"features": features}
    )


def cifar_resnet(depth: int) -> OperationGraph:
    """The ResNet for 32×32 images with parameter-free shortcuts (He et al., Deep Residual Learning, 2016)."""
    graph = GraphBuilder((3, 32, 32))

    def convolve(node: int, channels: int, name: str, stride: int = 1) -> int:
        node = graph.conv2d(node, channels, 3, name=f"{name}.conv", stride=stride)
        return graph.batch_norm(node, name=f"{name}.norm")

    node = graph.activation(convolve(graph.input, 16, "stem"))
    for stage, channels in enumerate((16, 32, 64)):
        for block in range((depth - 2) // 6):
            stride = 2 if stage and not block else 1
            name = f"stages.{stage}.{block}"
            inner = graph.activation(convolve(node, channels, f"{name}.first", stride))
            inner = convolve(inner, channels, f"{name}.second")
            if stride == 2:
                smaller = graph.pool(node, "avg_pool", 1, 2)
                node = graph.concat([smaller, graph.zeros(smaller, graph.shape(smaller))])
            node = graph.activation(graph.add([inner, node]))
    features = graph.flatten(graph.global_avg_pool(node))
    return graph.finish({"logits": graph.linear(features, 10, name="classifier")}, {"features": features})
