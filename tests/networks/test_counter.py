import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from nasplat.core.cost import Cost, cost_of
from nasplat.core.errors import NasplatError
from nasplat.core.graph import GraphBuilder
from nasplat.data.torchvision_import import torchvision
from nasplat.networks.counter import count
from nasplat.networks.graph_network import build_network
from nasplat.networks.tracer import trace_run
from tests.networks.graphs import cifar_resnet, random_graph, small_graph

# G multiply-accumulates at 224 × 224 and, where published, parameters.
KNOWN = {
    "resnet18": (1.8141, 11_689_512),
    "resnet50": (4.0892, 25_557_032),
    "mobilenet_v2": (0.3008, 3_504_872),
    "vit_b_16": (17.564, 86_567_656),
    "swin_t": (4.4906, 28_288_354),
    "vgg16": (15.4703, 138_357_544),
    "densenet121": (2.8342, 7_978_856),
    "convnext_tiny": (4.4555, 28_589_128),
}


class Lambda(nn.Module):
    """A module that is a function."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, images: Tensor) -> Tensor:
        return self.function(images)


@pytest.mark.parametrize("name", KNOWN)
def test_known_networks(name: str) -> None:
    """Our numbers could not be compared with anybody's; torch's own counter must agree on the same tensors."""
    with torch.device("meta"):
        module = torchvision.models.get_model(name).eval()
        images = torch.empty(1, 3, 224, 224)
    cost = count(module, (3, 224, 224))
    giga, params = KNOWN[name]
    assert cost.macs / 1e9 == pytest.approx(giga, rel=1e-4)
    assert cost.params == params
    assert sum(layer.macs for layer in cost.layers) == cost.macs
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            module(images)
    finally:
        torch.backends.mha.set_fastpath_enabled(True)
    assert counter.get_total_flops() == 2 * cost.macs


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6))
def test_graphs_cost_what_their_networks_cost(seed: int) -> None:
    """A constraint checked before training would admit other networks than those that are built."""
    graph = random_graph(seed)
    network = build_network(graph, device="meta")
    assert count(network, graph.operations[0].shape).cost == cost_of(graph)


@pytest.mark.parametrize("graph", [small_graph(), cifar_resnet(20)], ids=["small", "resnet20"])
def test_graphs_cost_what_they_cost_on_a_real_device(graph: object) -> None:
    """`meta` could run other operations than the CPU, and the peak would be that of no real run."""
    images = torch.zeros(1, *graph.operations[0].shape)  # type: ignore[attr-defined]
    trace = trace_run(build_network(graph).eval(), (images,))  # type: ignore[arg-type]
    cost = cost_of(graph)  # type: ignore[arg-type]
    assert (sum(trace.macs.values()), trace.peak_bytes()) == (cost.macs, cost.peak_bytes)


def test_counting_changes_nothing() -> None:
    """A count in the middle of training would spoil the statistics, or switch layers to evaluation."""
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(), nn.Flatten(), nn.LazyLinear(2))
    module(torch.rand(2, 3, 6, 6))
    state, hooks = copy.deepcopy(module.state_dict()), torch.nn.modules.module._global_forward_hooks.copy()
    fast_path = torch.backends.mha.get_fastpath_enabled()
    count(module, (3, 6, 6))
    assert module.training and module[2].training
    assert all(torch.equal(value, state[key]) for key, value in module.state_dict().items())
    assert not any(tensor.is_meta for tensor in module.state_dict().values())
    assert hooks == torch.nn.modules.module._global_forward_hooks
    assert torch.backends.mha.get_fastpath_enabled() == fast_path


def test_layers_have_rows_of_their_own() -> None:
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Sequential(nn.ReLU(), nn.Conv2d(4, 5, 1, bias=False)))
    rows = {layer.name: layer for layer in count(module, (3, 6, 6)).layers}
    assert (rows["0"].macs, rows["0"].params, rows["0"].output_shape) == (3 * 4 * 9 * 16, 3 * 4 * 9 + 4, (1, 4, 4, 4))
    assert (rows["1.1"].macs, rows["1.1"].params, rows["1.1"].kind) == (4 * 5 * 16, 20, "Conv2d")
    assert rows[""].macs == rows["1"].macs == rows["1.0"].macs == 0


def test_tied_parameters_count_once_and_their_uses_each() -> None:
    """A network with shared weights would look larger than its file, or cheaper than its run."""
    shared = nn.Linear(8, 8)
    head = nn.Linear(8, 8)
    head.weight = shared.weight
    cost = count(nn.Sequential(nn.Flatten(), shared, shared, head), (8, 1, 1))
    assert (cost.macs, cost.params) == (3 * 64, 64 + 16)


def test_transposed_convolution_counts_by_its_input() -> None:
    cost = count(nn.ConvTranspose2d(3, 4, 2, stride=2), (3, 5, 5))
    assert cost.macs == 3 * 4 * 4 * 25


@pytest.mark.parametrize("batch_first", [True, False])
def test_attention_counts_projections_and_both_products(batch_first: bool) -> None:
    """The fast path of torch would hide all of them."""
    layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=batch_first).eval()
    shape = (1, 5, 16) if batch_first else (5, 1, 16)
    projections, products, feed_forward = 5 * 4 * 16 * 16, 2 * 5 * 5 * 16, 5 * 2 * 16 * 32
    assert count(layer, inputs=(torch.rand(shape),)).macs == projections + products + feed_forward


def test_fused_attention_counts() -> None:
    cost = count(Lambda(lambda x: F.scaled_dot_product_attention(x, x, x)), (2, 7, 4))
    assert cost.macs == 2 * (2 * 7 * 7 * 4)


@pytest.mark.parametrize(
    ("function", "macs"),
    [
        (lambda x: torch.einsum("nchw,nchv->ncwv", x, x), 2 * 4 * 3 * 3),
        (lambda x: x @ x.new_zeros(3), 2 * 4 * 3),
        (lambda x: torch.outer(x.flatten(), x.flatten()), 0),
        (lambda x: torch.dot(x.flatten(), x.flatten()), 24),
        (lambda x: F.interpolate(x, scale_factor=2, mode="bilinear"), 0),
        (lambda x: torch.inference_mode()(F.linear)(x, x.new_zeros(5, 3)), 8 * 3 * 5),
    ],
)
def test_functional_products_count(function: Callable[[Tensor], Tensor], macs: int) -> None:
    """What a user writes without a layer would cost nothing."""
    assert count(Lambda(function), (2, 4, 3)).macs == macs


@pytest.mark.parametrize("layer", [nn.LSTM(4, 8, batch_first=True), nn.GRU(4, 8), nn.LSTMCell(4, 8)])
def test_recurrent_layers_count_their_products(layer: nn.Module) -> None:
    gates = 3 if isinstance(layer, nn.GRU) else 4
    inputs = torch.rand(1, 4) if isinstance(layer, nn.LSTMCell) else torch.rand(1, 1, 4)
    assert count(layer, inputs=(inputs,)).macs == gates * 8 * (4 + 8)


@pytest.mark.parametrize(
    ("function", "name"),
    [
        (lambda x: torch.linalg.matrix_exp(x[..., :3, :]), "matrix_exp"),
        (lambda x: F.bilinear(x, x, x.new_zeros(2, 3, 3)), "trilinear"),
        (lambda x: torch.cdist(x, x), "cdist"),
        (lambda x: torch.linalg.inv(x[..., :3, :]), "inv"),
    ],
)
def test_an_unknown_matrix_product_is_an_error(function: Callable[[Tensor], Tensor], name: str) -> None:
    """It would be a silent zero, and its candidates the best of the front."""
    with pytest.raises(NasplatError, match=name) as caught:
        count(Lambda(function), (2, 4, 3))
    assert "register_flop_formula" in caught.value.advice


def test_a_users_own_operation_that_attends_is_an_error() -> None:
    with torch.library._scoped_library("nasplat_test", "FRAGMENT") as library:
        library.define("my_attention(Tensor x) -> Tensor")
        library.impl("my_attention", lambda x: x.clone(), "Meta")
        with pytest.raises(NasplatError, match="my_attention"):
            count(Lambda(torch.ops.nasplat_test.my_attention), (2, 4, 3))


def test_in_place_operations_cost_what_others_cost() -> None:
    """The peak would tell how a network was written and not which one it is."""
    peaks = {
        count(nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU(inplace=flag)), (3, 8, 8)).peak_bytes for flag in (True, False)
    }
    assert peaks == {4 * 2 * 8 * 64}


def test_a_residual_keeps_its_source_alive_and_weights_are_no_activations() -> None:
    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.MaxPool2d(3, 1, 1), nn.ReLU())
            self.table = torch.zeros(1, 4, 64, 64)  # a plain attribute, which no `.to` moves

        def forward(self, images: Tensor) -> Tensor:
            return images + self.inner(images) + self.table[..., :8, :8]

    assert count(Residual(), (4, 8, 8)).peak_bytes == 4 * 3 * 4 * 64


def test_several_inputs_are_counted() -> None:
    attention = nn.MultiheadAttention(8, 2, batch_first=True)
    cost = count(attention, inputs=(torch.rand(1, 2, 8), torch.rand(1, 5, 8), torch.rand(1, 5, 8)))
    assert cost.macs == (2 + 5 + 5 + 2) * 64 + 2 * 2 * 5 * 8


def test_errors_say_what_to_do() -> None:
    with pytest.raises(NasplatError, match=r"Conv2d fails on input of shape \[\(1, 4, 8, 8\)\]"):
        count(nn.Conv2d(3, 8, 3), (4, 8, 8))
    with pytest.raises(NasplatError, match="lazy"):
        count(nn.LazyConv2d(8, 3), (3, 8, 8))
    with pytest.raises(NasplatError, match="input shape"):
        count(nn.Conv2d(3, 8, 3))
    with pytest.raises(NasplatError, match="values of tensors"):
        count(Lambda(lambda x: x if x.sum() > 0 else -x), (3, 8, 8))


def test_several_outputs_and_a_compiled_module_are_counted() -> None:
    graph = small_graph()
    network = build_network(graph)
    expected = cost_of(graph)
    assert count(network, (3, 9, 8)).cost == expected
    assert isinstance(expected, Cost)
    assert count(torch.compile(network), (3, 9, 8)).cost == expected


class LiveStorages(TorchDispatchMode):
    """The largest sum of activations that are really in memory while operations run."""

    def __init__(self, images: Tensor, module: nn.Module) -> None:
        super().__init__()
        self.weights = {tensor.untyped_storage()._cdata for tensor in module.state_dict().values()}
        self.live = {images.untyped_storage()._cdata: (StorageWeakRef(images.untyped_storage()), images.nbytes)}
        self.peak = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        self.live = {address: entry for address, entry in self.live.items() if not entry[0].expired()}
        if isinstance(result, Tensor) and result.untyped_storage()._cdata not in self.weights:
            storage = result.untyped_storage()
            self.live[storage._cdata] = (StorageWeakRef(storage), storage.nbytes())
        self.peak = max(self.peak, sum(size for _, size in self.live.values()))
        return result


def test_a_network_really_lets_its_tensors_go() -> None:
    """The peak in the front would be one that a device never sees."""
    graph = GraphBuilder((4, 16, 16))
    early = graph.activation(graph.input, "relu")
    node = graph.activation(early, "sigmoid")
    for _ in range(4):
        node = graph.concat([graph.activation(node, "silu"), early])
    for _ in range(4):
        node = graph.add([graph.activation(node, "relu"), node])
    finished = graph.finish({"maps": node}, {})
    network = build_network(finished).eval()
    images = torch.zeros(1, 4, 16, 16)
    with torch.no_grad(), LiveStorages(images, network) as mode:
        network(images)
    # The caller holds the images to the end, which the definition does not count against the network.
    assert cost_of(finished).peak_bytes <= mode.peak <= cost_of(finished).peak_bytes + images.nbytes
