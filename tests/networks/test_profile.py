import copy

import pytest
import torch
from torch import Tensor, nn

from nasplat.data.torchvision_import import torchvision
from nasplat.networks.graph_network import build_network
from nasplat.networks.profile import profile
from tests.networks.graphs import small_graph


@pytest.mark.parametrize(
    ("name", "fvcore", "thop", "flop_counter"),
    [
        ("resnet18", 1.8191, 1.8240, 1.8141),
        ("mobilenet_v2", 0.3142, 0.3275, 0.3008),
        ("vit_b_16", 16.867, 11.286, 11.271),
        ("swin_t", 4.5092, 2.9781, 4.4906),
    ],
)
def test_every_disagreement_on_known_networks_is_explained(
    name: str, fvcore: float, thop: float, flop_counter: float
) -> None:
    """A user who compares our number with another tool's would not know whom to believe."""
    with torch.device("meta"):
        module = torchvision.models.get_model(name)
    result = profile(module, (3, 224, 224))
    totals = result.totals()
    assert not result.failures and not result.unexplained()
    assert totals["fvcore"] / 1e9 == pytest.approx(fvcore, rel=1e-4)
    assert totals["thop"] / 1e9 == pytest.approx(thop, rel=1e-4)
    assert totals["FlopCounterMode"] / 1e9 == pytest.approx(flop_counter, rel=2e-4)
    for tool, total in totals.items():
        differences = sum(macs for (who, _), macs in result.explanations().items() if who == tool)
        assert total - result.cost.macs == differences


class Attention(nn.Module):
    """Maps `(N, C, H, W)` to tokens, attends, and recurs over them."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
        self.attention = nn.MultiheadAttention(16, 2, batch_first=True)
        self.norm = nn.LayerNorm(16)
        self.recurrent = nn.LSTM(16, 8, batch_first=True)
        self.weight = nn.Parameter(torch.zeros(16, 16))

    def forward(self, images: Tensor) -> Tensor:
        tokens = self.encoder(images.flatten(2).transpose(1, 2)) @ self.weight
        tokens = self.norm(self.attention(tokens, tokens, tokens)[0])
        return self.recurrent(tokens)[0]


def test_every_known_cause_has_its_reason() -> None:
    """Each of these layers is counted differently by some tool."""
    module = nn.Sequential(
        nn.Conv2d(3, 8, 3, bias=True),
        nn.BatchNorm2d(8, affine=False),
        nn.PReLU(),
        nn.ConvTranspose2d(8, 16, 3, stride=2, padding=1, output_padding=1),
        nn.GroupNorm(4, 16),
        nn.InstanceNorm2d(16, affine=True),
        nn.AvgPool2d(2),
        nn.Upsample(scale_factor=2),
        Attention(),
        nn.AdaptiveAvgPool1d(4),
        nn.Softmax(-1),
    )
    result = profile(module, (3, 8, 8))
    assert not result.failures and not result.unexplained()
    reasons = {f"{tool} {reason}" for tool, reason in result.explanations()}
    for words in (
        "fvcore counts batch norm",
        "fvcore counts layer norm",
        "fvcore has no formula for scaled_dot_product_attention",
        "fvcore has no formula for lstm",
        "thop counts normalisation, 2 an element",
        "thop counts normalisation, 4 an element: twice",
        "thop counts a transposed convolution by its output size instead of its input size: 4 times",
        "thop has no rule for MultiheadAttention",
        "thop has no rule for Attention",
        "thop counts PReLU",
        "FlopCounterMode has no formula for aten._transformer_encoder_layer_fwd",
        "FlopCounterMode has no formula for aten._native_multi_head_attention",
    ):
        assert any(reason.startswith(words) for reason in reasons), (words, reasons)


def test_our_networks_are_explained_too() -> None:
    """`nasplat profile` of a found network is the most common use of it."""
    network = build_network(small_graph()).eval()
    state = copy.deepcopy(network.state_dict())
    result = profile(network, (3, 9, 8))
    assert not result.failures and not result.unexplained()
    assert result.totals()["FlopCounterMode"] == result.cost.macs
    assert all(torch.equal(value, state[key]) for key, value in network.state_dict().items())
    assert {row.name for row in result.rows} >= {"stem.conv", "stem.norm", "cell.0.conv", "classifier.size"}


def test_a_tool_that_fails_leaves_the_others() -> None:
    """One library's bug would hide the whole table."""

    class Fragile(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 4)
            self.total_ops = "a name that thop takes for itself"

        def forward(self, images: Tensor) -> Tensor:
            return self.layer(images)

    result = profile(Fragile(), (2, 3, 4))
    assert list(result.failures) == ["thop"] and "total_ops" in result.failures["thop"]
    assert result.totals() == {"fvcore": 96, "FlopCounterMode": 96}
