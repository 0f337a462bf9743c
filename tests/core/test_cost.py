import subprocess
import sys
from math import prod
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nasplat.core.cost import cost_of, peak_bytes_of
from nasplat.core.errors import NasplatError
from nasplat.core.graph import GraphBuilder, Operation, OperationGraph
from tests.networks.graphs import cifar_resnet, random_graph

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(("depth", "millions"), [(20, 40.55), (56, 125.49), (110, 252.89)])
def test_cifar_resnets_cost_what_is_published(depth: int, millions: float) -> None:
    """Our numbers could not be compared with anybody's."""
    assert cost_of(cifar_resnet(depth)).macs / 1e6 == pytest.approx(millions, abs=0.005)


def test_parameters_of_resnet20() -> None:
    """0.27 million in the paper."""
    assert cost_of(cifar_resnet(20)).params == 269_722


def test_every_operation_by_hand() -> None:
    """MACs leave out bias, normalisation, activation and pooling; parameters leave out running statistics."""
    graph = GraphBuilder((4, 6, 6))
    node = graph.conv2d(0, 8, (3, 5), name="conv", stride=2, groups=2, bias=True)
    node = graph.batch_norm(node, name="norm")
    node = graph.batch_norm(node, name="statistics", affine=False)
    node = graph.pool(graph.activation(node, "relu"), "max_pool", 3)
    node = graph.linear(graph.flatten(graph.global_avg_pool(node)), 5, name="classifier")
    cost = cost_of(graph.finish({"y": node}, {}))
    assert cost.macs == 8 * 3 * 3 * 2 * 15 + 8 * 5
    assert cost.params == (8 * 2 * 15 + 8) + 2 * 8 + (8 * 5 + 5)


def test_peak_of_a_chain_is_its_largest_neighbours() -> None:
    """Nothing is in place: an activation needs its input and its output."""
    graph = GraphBuilder((3, 8, 8))
    node = graph.activation(graph.conv2d(0, 16, 3, name="conv"), "relu")
    assert peak_bytes_of(graph.finish({"y": node}, {})) == 4 * 2 * 16 * 64


def test_a_skip_connection_keeps_its_source_alive() -> None:
    """The candidate that holds many tensors at once would look as small as a chain."""
    graph = GraphBuilder((4, 8, 8))
    first = graph.activation(0, "relu")
    second = graph.activation(graph.activation(first, "relu"), "relu")
    node = graph.add([first, second])
    assert peak_bytes_of(graph.finish({"y": node}, {})) == 4 * 3 * 4 * 64


def test_outputs_stay_until_the_end() -> None:
    graph = GraphBuilder((4, 8, 8))
    early = graph.activation(0, "relu")
    late = graph.activation(graph.activation(0, "relu"), "relu")
    assert peak_bytes_of(graph.finish({"early": early, "late": late}, {})) == 4 * 3 * 4 * 64


def test_what_nothing_reads_is_freed_at_once() -> None:
    graph = GraphBuilder((4, 8, 8))
    kept = graph.activation(0, "relu")
    for _ in range(5):
        graph.activation(kept, "relu")
    assert peak_bytes_of(graph.finish({"y": graph.activation(kept, "relu")}, {})) == 4 * 2 * 4 * 64


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 10**6))
def test_the_peak_is_the_largest_sum_of_live_tensors(seed: int) -> None:
    """The same number from its definition, moment by moment, instead of from a running sum."""
    graph = random_graph(seed)
    sizes = [4 * prod(operation.shape) for operation in graph.operations]
    peak = 0
    for now in range(len(sizes)):
        alive = {now}
        for tensor in range(now):
            read_later = any(tensor in later.inputs for later in graph.operations[now:])
            if read_later or tensor in graph.outputs.values():
                alive.add(tensor)
        peak = max(peak, sum(sizes[tensor] for tensor in alive))
    assert peak_bytes_of(graph) == peak


def test_an_unknown_operation_is_an_error_and_not_free() -> None:
    """A constraint on MACs would let the operation pass as costing nothing."""
    graph = OperationGraph((Operation("input", (), (1, 4, 4)), Operation("einsum", (0,), (1, 4, 4), "odd")), {"y": 1})
    with pytest.raises(NasplatError, match=r"'odd'.*'einsum'"):
        cost_of(graph)


def test_costs_need_no_torch() -> None:
    """A search driver, a report and the command line would each load torch, seconds and gigabytes, to print a table."""
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "from tests.networks.graphs import cifar_resnet\n"
        "from nasplat.core.cost import cost_of\n"
        "print(cost_of(cifar_resnet(20)).macs)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert int(result.stdout) == cost_of(cifar_resnet(20)).macs
