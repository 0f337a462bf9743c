import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from nasplat.core.errors import NasplatError
from nasplat.networks.channel_tracer import trace_channels
from nasplat.networks.pruning_proof import prove, randomise
from nasplat.networks.surgery import Surgery, operate, plan, prune
from tests.networks import zoo

CHECKPOINT = Path(__file__).resolve().parents[2] / "../shared/data/resnet20_cifar10/resnet20-12fca82f.th"


def two_layers() -> tuple[nn.Module, tuple[Tensor, ...]]:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.Linear(6 * 4, 2))
    randomise(network, torch.Generator().manual_seed(0))
    return network.eval(), (torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(1)),)


def test_the_kept_weights_are_the_original_s() -> None:
    """Channels would be mixed up, which no shape shows."""
    network, inputs = two_layers()
    pruned, _ = prune(network, trace_channels(network, inputs), {"0": torch.tensor([1, 4])})
    state, original = pruned.state_dict(), network.state_dict()
    assert torch.equal(state["0.weight"], original["0.weight"][[1, 4]])
    assert torch.equal(state["1.running_var"], original["1.running_var"][[1, 4]])
    assert torch.equal(state["4.weight"], original["4.weight"].reshape(2, 6, 4)[:, [1, 4]].reshape(2, 8))
    assert torch.equal(state["4.bias"], original["4.bias"])


def test_attributes_are_repaired_and_recorded() -> None:
    """A printed module would lie about itself, and code that reads the attributes would fail."""
    network, inputs = two_layers()
    pruned, repairs = prune(network, trace_channels(network, inputs), {"0": [0, 2, 5]})
    assert [(repair.module, repair.attribute, repair.old, repair.new) for repair in repairs] == [
        ("0", "out_channels", 6, 3),
        ("1", "num_features", 6, 3),
        ("4", "in_features", 24, 12),
    ]
    assert "Conv2d(3, 3, kernel_size=(3, 3)" in repr(pruned) and network[0].out_channels == 6


def test_nothing_to_remove_gives_the_same_network() -> None:
    """Pruning nothing would change the outputs."""
    network, inputs = two_layers()
    pruned, repairs = prune(network, trace_channels(network, inputs), {})
    assert not repairs and torch.equal(pruned(*inputs), network(*inputs))


def test_a_plan_is_plain_data_and_fits_a_fresh_network() -> None:
    """A pruned network could not be rebuilt from its file."""
    make, inputs = zoo.SMALL["swin"]
    network = make().eval()
    randomise(network, torch.Generator().manual_seed(0))
    graph = trace_channels(network, inputs)
    surgery = plan(network, graph, {group.name: range(0, group.size, 2) for group in graph.groups})
    assert surgery.rescaled
    pruned, _ = operate(network, surgery)
    fresh, _ = operate(make().eval(), Surgery.from_json(json.loads(json.dumps(surgery.to_json()))))
    fresh.load_state_dict(pruned.state_dict())
    assert torch.equal(fresh(*inputs), pruned(*inputs))


def test_tied_weights_stay_tied() -> None:
    """The classifier and the embedding of a language model would drift apart, and the file would double."""
    make, inputs = zoo.SMALL["tied_embedding"]
    network = make()
    pruned: Any = prune(network, trace_channels(network, inputs), {"embedding": [0, 3, 4]})[0]
    assert pruned.head.weight is pruned.embedding.weight and pruned.head.in_features == 3


def test_the_scale_of_attention_does_not_change_with_the_width() -> None:
    """Attention divides by the root of its width: fewer channels would sharpen what the kept ones say."""
    make, inputs = zoo.SMALL["vit"]
    network = make().eval()
    randomise(network, torch.Generator().manual_seed(0))
    graph = trace_channels(network, inputs)
    surgery = plan(network, graph, {"conv_proj/2": range(2)})
    assert len(surgery.rescaled) == 2
    assert all(rescaling.factor == pytest.approx((2 / 8) ** 0.5) for rescaling in surgery.rescaled)
    assert surgery.rescaled[0].rows == tuple(range(32))  # queries, and neither keys nor values


def test_a_wrong_cut_does_not_pass_the_proof() -> None:
    """A network that computes something else would be handed out as proved."""
    network, inputs = two_layers()
    graph = trace_channels(network, inputs)
    wrong = prune(network, graph, {"0": [0, 1, 2]})[0]
    with pytest.raises(NasplatError, match="differs from its masked original"):
        prove(network, wrong, graph, {"0": [0, 1, 3]}, inputs)


@pytest.mark.parametrize("name", ["convnext", "transformer", "channel_norm", "unet"])
def test_removed_channels_are_left_out_of_norms(name: str) -> None:
    """A reference that zeroes channels before a norm over them would differ, and every such network be refused."""
    make, inputs = zoo.SMALL[name]
    network = make().eval()
    randomise(network, torch.Generator().manual_seed(0))
    graph = trace_channels(network, inputs)
    keep = {group.name: range(group.size - 1) for group in graph.groups}
    pruned, _ = prune(network, graph, keep)
    assert graph.cross_channel and max(prove(network, pruned, graph, keep, inputs).values()) < 1e-5
    zeroed = make().eval()
    zeroed.load_state_dict(network.state_dict())
    with torch.no_grad():
        tensors = {**dict(zeroed.named_parameters()), **dict(zeroed.named_buffers())}
        for group in graph.groups:
            for member in group.members:
                tensors[member.tensor].index_fill_(member.dim, torch.from_numpy(member.indices[-1]), 0)
        assert not torch.allclose(zeroed(*inputs), pruned(*inputs), atol=1e-4)


def test_a_network_that_cannot_be_trained_once_pruned_is_not_handed_out() -> None:
    """The fine-tuning after pruning would fail."""

    class Frail(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(3, 8), nn.Linear(8, 2)

        def forward(self, x: Tensor) -> Tensor:
            x = self.first(x)
            if self.training and x.shape[1] != 8:
                raise ValueError("eight channels are needed to train")
            return self.second(x)

    network, inputs = Frail(), (torch.randn(2, 3),)
    graph = trace_channels(network, inputs)
    pruned, _ = prune(network, graph, {"first": [0, 1]})
    with pytest.raises(NasplatError, match="does not train: eight channels"):
        prove(network, pruned, graph, {"first": [0, 1]}, inputs)


def test_a_plan_of_another_network_is_refused() -> None:
    """The recipe of one checkpoint would be applied to another one."""
    network, inputs = two_layers()
    surgery = plan(network, trace_channels(network, inputs), {"0": [1, 5]})
    with pytest.raises(NasplatError, match=r"does not fit '0.weight'"):
        operate(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)), surgery)
    with pytest.raises(NasplatError, match="has no tensor"):
        operate(nn.Sequential(nn.ReLU()), surgery)
    with pytest.raises(NasplatError, match=r"'0.weight' is of shape \(4, 3, 3, 3\) and was \(6, 3, 3, 3\)"):
        other = nn.Sequential(nn.Conv2d(3, 4, 3), *list(network)[1:])  # type: ignore[call-overload]
        plan(other, trace_channels(network, inputs), {})
    with pytest.raises(NasplatError, match="no record of a pruning"):
        Surgery.from_json({"kept": {"0.weight": {"zero": [1]}}, "attributes": [], "rescaled": []})


def test_gradients_flags_and_types_are_kept() -> None:
    """A frozen layer would start to train, or a network in half precision change its type."""
    network, inputs = two_layers()
    network[0].weight.requires_grad_(False)
    graph = trace_channels(network, inputs)
    pruned: Any = prune(network.half(), graph, {"0": [0, 1]})[0]
    assert pruned[0].weight.dtype == torch.float16 and not pruned[0].weight.requires_grad
    assert pruned[0].bias.requires_grad and isinstance(pruned[0].weight, nn.Parameter)


@pytest.mark.skipif(not CHECKPOINT.exists(), reason="the checkpoint is not here")
def test_a_trained_checkpoint_is_pruned_and_proved() -> None:
    """The one thing that all this is for."""
    state = torch.load(CHECKPOINT, map_location="cpu", weights_only=True)["state_dict"]
    network = zoo.CifarResNet()
    network.load_state_dict({key.removeprefix("module."): value for key, value in state.items()})
    inputs = zoo.image(32, 2)
    graph = trace_channels(network, inputs)
    rng = np.random.default_rng(0)
    keep = {group.name: np.sort(rng.permutation(group.size)[: group.size // 2]) for group in graph.groups}
    pruned, _ = prune(network, graph, keep)
    assert prove(network.eval(), pruned, graph, keep, inputs)["float64"] < 1e-9
    assert sum(tensor.numel() for tensor in pruned.parameters()) < 0.3 * 269_722
