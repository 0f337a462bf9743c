import copy
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nasplat.core.cost import KINDS
from nasplat.core.errors import NasplatError
from nasplat.core.graph import GraphBuilder, Operation, OperationGraph
from nasplat.networks.graph_network import GraphNetwork, build_network
from tests.networks.graphs import random_graph, small_graph


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def images(count: int = 4, seed: int = 1) -> torch.Tensor:
    return torch.randn(count, 3, 9, 8, generator=generator(seed))


def test_the_small_graph_holds_every_kind() -> None:
    """A kind that the cost counts and that no network runs would be found by a user first."""
    assert {operation.kind for operation in small_graph().operations} == KINDS


def test_state_dict_keys_are_the_operations_names() -> None:
    """Exported weights would have keys that nobody can map back to the drawn architecture."""
    keys = set(build_network(small_graph()).state_dict())
    assert {"stem.conv.weight", "cell.0.conv.weight", "cell.1.conv.bias", "classifier.logits.bias"} <= keys
    assert "cell.0.norm.weight" not in keys and "cell.0.norm.running_mean" in keys
    assert not [key for key in keys if key.startswith("_")]


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6))
def test_every_tensor_has_the_shape_that_the_graph_says(seed: int) -> None:
    """A wrong shape in the graph makes costs wrong, or a trial fails after it was proposed."""
    graph = random_graph(seed)
    taps = {str(position): position for position in range(len(graph.operations))}
    network = build_network(OperationGraph(graph.operations, graph.outputs, {**graph.taps, **taps}), generator()).eval()
    batch = torch.randn(2, *graph.operations[0].shape, generator=generator())
    for name, tensor in network.forward_taps(batch, tuple(taps)).items():
        assert tuple(tensor.shape[1:]) == graph.operations[int(name)].shape
    network.train()(batch).sum().backward()


def test_operations_compute_what_their_names_say() -> None:
    """Averages at the border without padding, and the shift of the factorised reduction, as published."""
    graph = GraphBuilder((1, 2, 2))
    outputs = {"pool": graph.pool(0, "avg_pool", 3), "shift": graph.shift(0), "mean": graph.global_avg_pool(0)}
    outputs["zeros"] = graph.zeros(0, (2, 1, 1))
    network = build_network(graph.finish(outputs, {}))
    result = network(torch.tensor([[[[1.0, 2.0], [3.0, 6.0]]]]))
    assert torch.equal(result["pool"], torch.full((1, 1, 2, 2), 3.0))
    assert result["shift"].tolist() == [[[[6.0, 0.0], [0.0, 0.0]]]]
    assert result["mean"].item() == 3.0
    assert torch.equal(result["zeros"], torch.zeros(1, 2, 1, 1))


def test_one_output_is_a_tensor_and_several_are_named() -> None:
    """Objectives could not find their output."""
    several = build_network(small_graph()).eval()(images())
    assert {name: tuple(tensor.shape) for name, tensor in several.items()} == {"logits": (4, 10), "size": (4, 2)}
    assert build_network(random_graph(3)).eval()(torch.zeros(2, *random_graph(3).operations[0].shape)).shape == (2, 3)


def test_taps_are_what_the_whole_network_computes() -> None:
    """A linear probe would judge other features than those that the classifier reads."""
    network = build_network(small_graph(), generator()).eval()
    taps = network.forward_taps(images(), ("features", "auxiliary", "logits"))
    assert taps["features"].shape == (4, network.num_features) == (4, 16)
    assert taps["auxiliary"].shape == (4, 8, 5, 4)
    assert torch.equal(network.classifier.logits(taps["features"]), taps["logits"])
    assert torch.equal(network(images())["logits"], taps["logits"])


def test_a_tap_runs_only_what_it_needs() -> None:
    """The auxiliary head in training, or a probe, would pay for layers behind it."""
    network = build_network(small_graph(), generator()).eval()
    ran = []
    network.classifier.logits.register_forward_hook(lambda *arguments: ran.append("logits"))
    network.cell.get_submodule("1").conv.register_forward_hook(lambda *arguments: ran.append("conv"))
    network.forward_taps(images(), ("auxiliary",))
    assert not ran
    network.forward_taps(images(), ("features",))
    assert ran == ["conv"]


def test_an_unknown_tap_is_answered_with_the_known_ones() -> None:
    with pytest.raises(NasplatError, match="auxiliary, features, logits, size"):
        build_network(small_graph()).forward_taps(images(), ("feature",))


def test_one_seed_gives_one_network_whatever_torch_drew_before() -> None:
    """Two runs of one experiment would differ, or building a network would change the run around it."""
    before = torch.get_rng_state()
    first = build_network(small_graph(), generator(7)).state_dict()
    assert torch.equal(before, torch.get_rng_state())
    torch.rand(1)
    second = build_network(small_graph(), generator(7)).state_dict()
    other = build_network(small_graph(), generator(8)).state_dict()
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert not torch.equal(first["stem.conv.weight"], other["stem.conv.weight"])


def test_initial_weights_have_the_variance_that_they_claim() -> None:
    """A depthwise convolution scaled by the fan-out of all groups would start nearly dead."""
    graph = GraphBuilder((64, 8, 8))
    node = graph.conv2d(graph.conv2d(0, 64, 3, name="full"), 64, 3, name="depthwise", groups=64)
    network = build_network(graph.finish({"maps": node}, {}), generator())
    assert network.full.weight.var().item() == pytest.approx(2 / (9 * 64), rel=0.05)
    assert network.depthwise.weight.var().item() == pytest.approx(2 / 9, rel=0.2)


def test_a_copy_shares_nothing_with_its_original() -> None:
    """Weight averaging and counting copy networks; a copy that runs the original's layers would be silently wrong."""
    network = build_network(small_graph(), generator()).eval()
    expected = network(images())["logits"]
    for twin in (copy.deepcopy(network), pickle.loads(pickle.dumps(network))):
        assert torch.equal(twin(images())["logits"], expected)
        with torch.no_grad():
            twin.stem.conv.weight.zero_()
        assert not torch.equal(twin(images())["logits"], expected)
        assert torch.equal(network(images())["logits"], expected)


def test_a_layer_that_is_replaced_is_the_one_that_runs() -> None:
    """A user who swaps the classifier of an exported network would see no effect."""
    network = build_network(small_graph(), generator()).eval()
    network.classifier.logits = torch.nn.Linear(16, 5)
    assert network(images())["logits"].shape == (4, 5)


@pytest.mark.parametrize("names", [["block", "block"], ["forward"], ["graph.conv"], ["block.conv", "block"]])
def test_names_that_cannot_be_modules_are_refused(names: list[str]) -> None:
    """One layer would silently take the place of another."""
    graph = GraphBuilder((1, 4, 4))
    for name in names:
        graph.conv2d(0, 1, name=name)
    with pytest.raises(NasplatError, match="cannot be used"):
        build_network(graph.finish({"maps": 1}, {}))


def test_an_unknown_kind_is_refused() -> None:
    graph = OperationGraph((Operation("input", (), (1, 4, 4)), Operation("roll", (0,), (1, 4, 4), "r")), {"maps": 1})
    with pytest.raises(NasplatError, match="roll"):
        build_network(graph)


def test_a_network_on_meta_takes_no_memory() -> None:
    assert all(tensor.is_meta for tensor in build_network(small_graph(), device="meta").state_dict().values())


# Drop path


def drop_graph(ratio: float = 1.0) -> OperationGraph:
    graph = GraphBuilder((2, 3, 3))
    graph.drop_path(graph.activation(0, "relu"))
    operation = graph.operations[1]
    graph.operations[1] = Operation(operation.kind, operation.inputs, operation.shape, "", {"drop_path": ratio})
    return graph.finish({"maps": 1}, {})


def test_drop_path_is_the_identity_at_zero_and_in_evaluation() -> None:
    """A deployed network would drop its own layers."""
    batch = torch.rand(64, 2, 3, 3, generator=generator())
    network = build_network(drop_graph()).train()
    assert torch.equal(network(batch), batch)
    network.drop_path_probability = torch.tensor(0.0)
    assert torch.equal(network(batch), batch)
    network.drop_path_probability = 0.5
    assert torch.equal(network.eval()(batch), batch)


@pytest.mark.parametrize(("probability", "ratio"), [(0.3, 1.0), (torch.tensor(0.3), 1.0), (0.6, 0.5)])
def test_drop_path_drops_whole_samples_and_keeps_the_mean(probability: float | torch.Tensor, ratio: float) -> None:
    """Activations would shrink in training as the schedule rises, and batch norm would learn the wrong statistics."""
    network = build_network(drop_graph(ratio)).train()
    network.drop_path_probability = probability
    network.drop_path_generator = generator()
    result = network(torch.ones(20_000, 2, 3, 3)).flatten(1)
    kept = result[:, 0] != 0
    assert torch.equal(result, kept[:, None] * torch.full_like(result, 1 / 0.7))
    assert kept.double().mean().item() == pytest.approx(0.7, abs=5 * np.sqrt(0.21 / 20_000))
    assert result.mean().item() == pytest.approx(1, abs=0.03)


def test_drop_path_draws_from_its_generator_alone() -> None:
    """A resumed trial would not go on as the uninterrupted one."""
    network = build_network(drop_graph()).train()
    network.drop_path_probability = 0.5
    before = torch.get_rng_state()
    results = []
    for _ in range(2):
        network.drop_path_generator = generator(5)
        results.append(network(torch.ones(50, 2, 3, 3)))
    assert torch.equal(*results) and torch.equal(before, torch.get_rng_state())
    assert not torch.equal(results[0], network(torch.ones(50, 2, 3, 3)))


def test_operations_are_dropped_independently() -> None:
    graph = GraphBuilder((1, 2, 2))
    paths = [graph.drop_path(graph.activation(0, "relu")) for _ in range(2)]
    network = build_network(graph.finish({"first": paths[0], "second": paths[1]}, {})).train()
    network.drop_path_probability, network.drop_path_generator = 0.5, generator()
    result = network(torch.ones(4_000, 1, 2, 2))
    both = ((result["first"] != 0) & (result["second"] != 0))[:, 0, 0, 0].double().mean().item()
    assert both == pytest.approx(0.25, abs=0.04)


@pytest.mark.parametrize("probability", [1.0, -0.1])
def test_an_impossible_drop_path_probability_is_refused(probability: float) -> None:
    network = build_network(drop_graph()).train()
    network.drop_path_probability = probability
    with pytest.raises(NasplatError, match="drop path probability"):
        network(torch.ones(1, 2, 3, 3))


# Exports


def test_torch_export_takes_any_batch_size() -> None:
    """The exported file would run at one batch size only."""
    network = build_network(small_graph(), generator()).eval()
    program = torch.export.export(network, (images(),), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},))
    for count in (1, 7):
        exported, expected = program.module()(images(count)), network(images(count))
        for name in expected:
            torch.testing.assert_close(exported[name], expected[name])


def test_onnx_takes_any_batch_size(tmp_path: object) -> None:
    """The exported file would run at one batch size only, or compute something else."""
    onnxruntime = pytest.importorskip("onnxruntime")
    network = build_network(small_graph(), generator()).eval()
    with torch.no_grad():
        program = torch.onnx.export(
            network, (images(),), dynamo=True, dynamic_shapes=({0: torch.export.Dim.DYNAMIC},), verbose=False
        )
    path = f"{tmp_path}/model.onnx"
    program.save(path)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    for count in (1, 7):
        outputs = session.run(None, {session.get_inputs()[0].name: images(count).numpy()})
        for exported, expected in zip(outputs, network(images(count)).values(), strict=True):
            np.testing.assert_allclose(exported, expected.detach().numpy(), rtol=1e-4, atol=1e-4)


def test_functional_call_sees_replaced_weights() -> None:
    """Supernets and hypernetworks call a network with other weights than its own."""
    network = build_network(small_graph(), generator()).eval()
    other = build_network(small_graph(), generator(1)).eval()
    result = torch.func.functional_call(network, dict(other.state_dict()), (images(),))
    assert torch.equal(result["logits"], other(images())["logits"])
    assert isinstance(network, GraphNetwork)


def test_a_compiled_step_follows_the_schedule_without_a_new_compilation() -> None:
    """Each change of the drop path probability would cost seconds, or be baked in and never happen."""
    network = build_network(small_graph(), generator()).train()
    network.drop_path_probability = torch.tensor(0.0)
    compilations = []

    def backend(graph: torch.fx.GraphModule, inputs: object) -> torch.fx.GraphModule:
        compilations.append(graph)
        return graph

    torch._dynamo.reset()
    compiled = torch.compile(network, backend=backend, fullgraph=True)
    torch.testing.assert_close(compiled(images())["logits"], network(images())["logits"])
    network.drop_path_probability.fill_(0.5)
    results = {compiled(images())["logits"].sum().item() for _ in range(20)}
    assert len(results) > 1 and len(compilations) == 1
