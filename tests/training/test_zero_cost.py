"""Zero-cost scores: each against its definition worked out another way, on any module, and nothing left behind."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from torch import Tensor, nn
from torch.nn import functional as F

from nasplat.core.cost import COSTS
from nasplat.core.errors import Infeasible, NasplatError, TrialFailed
from nasplat.core.problem import classification
from nasplat.data.torchvision_import import torchvision
from nasplat.spaces.families import load_space, make_space
from nasplat.training.zero_cost import NEED_LABELS, ZERO_COST, zero_cost_scores

SPACES = Path(__file__).resolve().parents[2] / "search_spaces"
DEVICES = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
SMALL: dict[str, dict[str, Any]] = {
    "darts": {"cells": 1, "channels": 4, "nodes": 2},
    "nasnet": {"cells": 1, "channels": 4},
    "nasbench201": {"cells": 1, "channels": 4},
    "mbconv": {"activation": "hard_swish", "squeeze_excite": True},
    "nas_bench_macro": {},
}


def batch(*shape: int, seed: int = 0, classes: int = 5, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(shape, generator=generator, dtype=dtype)
    return images, torch.randint(classes, shape[:1], generator=generator)


def drawn(network: nn.Module, seed: int = 0) -> Any:
    """The network with all parameters from a normal distribution, biases and batch norm's included."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype) * 0.5)
    return network


def mlp(activation: Callable[[], nn.Module] = nn.ReLU) -> Any:
    layers = [nn.Flatten(), nn.Linear(12, 20), activation(), nn.Linear(20, 15), activation(), nn.Linear(15, 5)]
    return drawn(nn.Sequential(*layers).double())


class Residual(nn.Module):
    """Convolutions, batch norm, functional and in-place activations, dropout, a skip connection; several outputs."""

    def __init__(self, outputs: str = "tensor") -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 6, 3, padding=1)
        self.norm = nn.BatchNorm2d(6)
        self.second = nn.Conv2d(6, 6, 3, padding=1, bias=False)
        self.dropout = nn.Dropout(0.5)
        self.classifier = nn.Linear(6, 5)
        self.outputs = outputs

    def forward(self, images: Tensor) -> Any:
        x = F.relu(self.norm(self.first(images)))
        x = x + F.silu(self.second(x), inplace=True)
        x = self.dropout(F.leaky_relu_(x - 0.3, 0.1).mean((2, 3)))
        logits = self.classifier(x)
        if self.outputs == "dict":
            return {"main": logits, "other": x.square(), "epoch": 3}
        return (logits, [x.square()]) if self.outputs == "tuple" else logits


def residual(outputs: str = "tensor") -> Any:
    return drawn(Residual(outputs).double(), seed=1)


def as_trained(network: nn.Module) -> Any:
    """A copy whose batch norm normalises by the batch, without dropout: what the scores are defined on."""
    twin = copy.deepcopy(network).eval()
    for module in twin.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.train()
    return twin


def built(family: str) -> Any:
    spec = {**yaml.safe_load((SPACES / f"{family}.yaml").read_text(encoding="utf-8")), **SMALL[family]}
    space = make_space(spec, classification((3, 16, 16), 5))
    torch.manual_seed(0)
    return space.build(space.sample(np.random.default_rng(1)))


# Each score against its definition.


def test_parameters_and_macs_are_those_of_the_space() -> None:
    """The baselines of every table of proxies must be the costs that the search itself reports."""
    space = load_space(SPACES / "mbconv.yaml", classification((3, 32, 32), 5))
    architecture = space.sample(np.random.default_rng(0))
    scores = zero_cost_scores(space.build(architecture), *batch(4, 3, 32, 32), ["params", "macs"])
    cost = space.cost(architecture)
    assert scores == {"params": cost.params, "macs": cost.macs}
    assert set(scores) <= set(COSTS)


def test_synflow_of_a_chain_is_the_product_of_absolute_weights() -> None:
    """Synflow ranks by this product; signs, normalisation or a clipped ReLU6 in it would rank by something else."""
    network = mlp()
    one, two, three = (np.abs(layer.weight.detach().numpy()) for layer in network if isinstance(layer, nn.Linear))
    bias1, bias2 = (np.abs(network[place].bias.detach().numpy()) for place in (1, 3))
    images, _ = batch(4, 3, 2, 2)
    hidden = one.sum(1) + bias1
    # What flows through the weights of each layer, and not in by a bias behind it.
    flow = (three @ two @ one).sum() + (three @ two @ hidden).sum() + (three @ (two @ hidden + bias2)).sum()
    assert ZERO_COST["synflow"](network, images, None) == pytest.approx(math.log(flow), rel=1e-12)
    for layer in (network[1], network[3]):
        nn.init.zeros_(layer.bias)
    product = math.log(3 * (three @ two @ one).sum())
    assert ZERO_COST["synflow"](network, images, None) == pytest.approx(product, rel=1e-12)
    for other in (nn.ReLU6, nn.SiLU, nn.Hardswish, nn.GELU, nn.PReLU):
        plain = nn.Sequential(network[0], network[1], other(), network[3], nn.BatchNorm1d(15).double(), network[5])
        assert ZERO_COST["synflow"](plain, 100 * images, None) == pytest.approx(product, rel=1e-12)


def test_synflow_of_deep_networks_neither_overflows_nor_lies() -> None:
    """Float32 is infinite from twenty wide layers on, and two infinite scores cannot be compared."""

    def deep(layers: int) -> Any:
        chain = nn.Sequential(nn.Flatten(), *(nn.Linear(64, 64, bias=False) for _ in range(layers)))
        with torch.no_grad():
            for parameter in chain.parameters():
                parameter.fill_(-1)
        return chain

    images = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    value = zero_cost_scores(deep(100), images, None, ["synflow"])["synflow"]
    assert value == pytest.approx(math.log(100) + 101 * math.log(64), rel=1e-12)
    with pytest.raises(TrialFailed, match=r"synflow.*is (inf|nan)"):
        zero_cost_scores(deep(200), images, None, ["synflow"])
    cut = deep(3)
    nn.init.zeros_(cut[2].weight)
    with pytest.raises(TrialFailed, match="is -inf") as failed:
        zero_cost_scores(cut, images, None, ["synflow"])
    assert "connect" in failed.value.advice


@pytest.mark.parametrize("outputs", ["tensor", "dict", "tuple"])
def test_jacobian_covariance_equals_the_definition(outputs: str) -> None:
    """Mellor's first score: rows of the input Jacobian, their correlations, and a sum over the eigenvalues."""
    network = residual(outputs)
    images, _ = batch(6, 3, 5, 5)
    twin = as_trained(network)

    def total(inputs: Tensor) -> Tensor:
        returned = twin(inputs)
        if outputs == "tensor":
            return returned.sum()
        parts = (returned["main"], returned["other"]) if outputs == "dict" else (returned[0], returned[1][0])
        return parts[0].sum() + parts[1].sum()

    jacobian = torch.autograd.functional.jacobian(total, images).reshape(6, -1).numpy()  # type: ignore[no-untyped-call]
    values = np.linalg.eigvals(np.corrcoef(jacobian)).real
    expected = -np.sum(np.log(values + 1e-5) + 1 / (values + 1e-5))
    score = zero_cost_scores(network, images, None, ["jacob_cov"])["jacob_cov"]
    assert score == pytest.approx(expected, rel=1e-8)


@pytest.mark.parametrize("outputs", ["tensor", "dict", "tuple"])
def test_snip_and_gradient_norm_equal_manual_autograd(outputs: str) -> None:
    """Both are sums over the weights of convolutions and linear layers, for the loss of the first output."""
    network = residual(outputs)
    network.first.weight.requires_grad_(False)  # frozen while training, which says nothing about the network
    images, labels = batch(6, 3, 5, 5)
    twin = as_trained(network).requires_grad_(True)
    returned = twin(images)
    logits = {"tensor": lambda: returned, "dict": lambda: returned["main"], "tuple": lambda: returned[0]}[outputs]()
    probability = logits.softmax(1)[torch.arange(6), labels]
    (-probability.log()).mean().backward()
    weights = [layer.weight for layer in (twin.first, twin.second, twin.classifier)]
    scores = zero_cost_scores(network, images, labels, ["snip", "grad_norm"])
    assert scores["snip"] == pytest.approx(sum(float((w.detach() * w.grad).abs().sum()) for w in weights), rel=1e-10)
    assert scores["grad_norm"] == pytest.approx(sum(float((w.grad**2).sum()) ** 0.5 for w in weights), rel=1e-10)


def naswot_of(codes: np.ndarray) -> float:
    """From codes `(N, units)`: log-determinant of units minus Hamming distances."""
    distances = (codes[:, None] != codes[None]).sum(2)
    return float(np.linalg.slogdet(codes.shape[1] - distances)[1])


@pytest.mark.parametrize("activation", [nn.ReLU, nn.ReLU6, nn.SiLU, nn.Hardswish, nn.GELU, nn.LeakyReLU, nn.ELU])
def test_naswot_of_an_mlp_equals_numpy(activation: Callable[[], nn.Module]) -> None:
    """A rectifier that is overlooked would be left out of the kernel, and the ranking would be of half a network."""
    network = mlp(activation)
    images, _ = batch(8, 3, 2, 2, seed=2)
    first, second = network[1], network[3]
    before = images.reshape(8, 12).numpy() @ first.weight.detach().numpy().T + first.bias.detach().numpy()
    hidden = activation()(torch.from_numpy(before)).detach().numpy()
    later = hidden @ second.weight.detach().numpy().T + second.bias.detach().numpy()
    expected = naswot_of(np.concatenate([before > 0, later > 0], 1))
    assert zero_cost_scores(network, images, None, ["naswot"])["naswot"] == pytest.approx(expected, rel=1e-9)


def test_naswot_finds_functional_activations() -> None:
    """Most users write `F.relu` in forward; hooks on modules would see nothing there."""
    network = residual()
    images, _ = batch(6, 3, 5, 5)
    twin = as_trained(network)
    with torch.no_grad():
        one = twin.norm(twin.first(images))
        two = twin.second(one.clamp(min=0))
        three = one.clamp(min=0) + two * torch.sigmoid(two) - 0.3
    codes = torch.cat([(part > 0).flatten(1) for part in (one, two, three)], 1).numpy()
    score = zero_cost_scores(network, images, None, ["naswot"])["naswot"]
    assert score == pytest.approx(naswot_of(codes), rel=1e-9)


@pytest.mark.parametrize("family", SMALL)
def test_naswot_finds_every_activation_of_our_own_networks(family: str) -> None:
    """Networks of the spaces run their activations as functions, and are what a search screens."""
    network = built(family)
    images, _ = batch(6, 3, 16, 16, dtype=torch.float32)
    twin = as_trained(network)
    codes: list[Tensor] = []

    def recorded(function: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        def run(x: Tensor) -> Tensor:
            codes.append((x > 0).flatten(1))
            return function(x)

        return run

    for position, operation in enumerate(twin.graph.operations):
        if operation.kind in ("relu", "relu6", "silu", "hard_swish"):
            twin._functions[position] = recorded(twin._functions[position])
    with torch.no_grad():
        twin(images)
    assert codes
    score = zero_cost_scores(network, images, None, ["naswot"])["naswot"]
    assert score == pytest.approx(naswot_of(torch.cat(codes, 1).numpy()), rel=1e-9)


# Any network, wherever it runs and whatever its caller has switched on.


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("family", SMALL)
def test_every_score_works_on_every_family(family: str, device: str) -> None:
    """Screening must work in every space, and give the same numbers each time, on both kinds of device."""
    network = built(family).to(device)
    images, labels = batch(6, 3, 16, 16, dtype=torch.float32)
    scores = zero_cost_scores(network, images, labels)
    assert list(scores) == list(ZERO_COST)
    assert all(math.isfinite(value) for value in scores.values())
    assert scores["snip"] > 0 and scores["grad_norm"] > 0
    again = zero_cost_scores(network.to("cpu"), images, labels, reversed(list(ZERO_COST)))
    assert scores == {name: pytest.approx(value, rel=1e-2) for name, value in again.items()}
    assert device != "cpu" or scores == again


def test_every_score_works_on_torchvision() -> None:
    """A ResNet-18 that nasplat did not make: module ReLUs, which are called twice and in place."""
    torch.manual_seed(0)
    network = torchvision.models.resnet18(num_classes=5)
    images, labels = batch(6, 3, 64, 64, dtype=torch.float32)
    before = fingerprint(network)
    scores = zero_cost_scores(network, images, labels)
    assert all(math.isfinite(value) for value in scores.values())
    assert fingerprint(network) == before
    assert scores["params"] == 11_179_077  # 11,689,512 of the published one, less 995 classes of 513
    twin = as_trained(network)
    codes: list[Tensor] = []
    for module in twin.modules():
        if isinstance(module, nn.ReLU):
            module.register_forward_pre_hook(lambda _, inputs: codes.append((inputs[0] > 0).flatten(1)))
    with torch.no_grad():
        twin(images)
    assert len(codes) == 17
    assert scores["naswot"] == pytest.approx(naswot_of(torch.cat(codes, 1).numpy()), rel=1e-9)


def test_the_callers_modes_change_nothing() -> None:
    """A score that depends on `no_grad` or autocast around it would differ between a search and a check by hand."""
    network = residual().float()
    images, labels = batch(6, 3, 5, 5, dtype=torch.float32)
    expected = zero_cost_scores(network, images, labels)
    with torch.inference_mode():
        made = batch(6, 3, 5, 5, dtype=torch.float32)
    assert zero_cost_scores(network, *made) == expected
    modes = (torch.no_grad(), torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16))
    for mode in modes:
        with mode:
            assert zero_cost_scores(copy.deepcopy(network), images.clone(), labels) == expected
    assert zero_cost_scores(copy.deepcopy(network).eval(), images, labels) == expected
    assert zero_cost_scores(network.requires_grad_(False), images, labels) == expected
    half = zero_cost_scores(network.bfloat16(), images, labels)
    assert half == {name: pytest.approx(value, rel=0.1) for name, value in expected.items()}


# Nothing is left behind.


def fingerprint(network: nn.Module) -> list[Any]:
    """Everything a run could change, to the bit."""
    found: list[Any] = []
    for name, tensor in [*network.named_parameters(), *network.named_buffers()]:
        gradient = None if tensor.grad is None else tensor.grad.numpy().tobytes()
        content = tensor.detach().numpy().tobytes()
        found.append((name, id(tensor), content, tensor._version, gradient, tensor.requires_grad))
    for name, module in network.named_modules():
        hooks = [len(getattr(module, kind)) for kind in vars(module) if kind.endswith("hooks")]
        found.append((name, module.training, hooks, {key: id(value) for key, value in vars(module).items()}))
    return found


def prepared() -> list[nn.Module]:
    cells, plain = built("darts"), residual("dict").float()
    cells.drop_path_probability = 0.5
    cells.train()
    plain.train()
    plain.norm.eval()
    plain.second.weight.requires_grad_(False)
    plain.first.weight.grad = torch.ones_like(plain.first.weight)
    plain.second.register_forward_hook(lambda *_: None)
    plain.norm.running_mean.fill_(0.5)
    return [cells, plain]


@pytest.mark.parametrize("name", ZERO_COST)
def test_the_network_is_left_as_it_was(name: str) -> None:
    """A search scores a network and then trains it: changed statistics or signs would spoil the training unseen."""
    for network in prepared():
        images, labels = batch(6, 3, 16, 16, dtype=torch.float32)
        before, copies, random = fingerprint(network), (images.clone(), labels.clone()), torch.get_rng_state()
        zero_cost_scores(network, images, labels, [name])
        assert fingerprint(network) == before
        assert torch.equal(images, copies[0]) and torch.equal(labels, copies[1]) and not images.requires_grad
        assert torch.equal(torch.get_rng_state(), random)


class Failing(nn.Module):
    """Runs out of something after its batch norm has seen the images."""

    def __init__(self, error: BaseException) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(3)
        self.error = error

    def forward(self, images: Tensor) -> Tensor:
        raise type(self.error)(f"{self.error} {self.norm(images).shape[0]}")


@pytest.mark.parametrize(
    ("error", "raised"),
    [
        (torch.OutOfMemoryError("out of memory"), Infeasible),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), NasplatError),
        (KeyError("stage4"), NasplatError),
    ],
)
def test_a_network_that_fails_is_named_and_left_as_it_was(error: BaseException, raised: type[NasplatError]) -> None:
    """A traceback through torch does not tell a user which input was wrong, and memory is a finding, not a crash."""
    network = Failing(error)
    before = fingerprint(network)
    images, labels = batch(4, 3, 8, 8, dtype=torch.float32)
    for name in ("synflow", "jacob_cov", "snip", "naswot"):
        with pytest.raises(raised) as caught:
            zero_cost_scores(network, images, labels, [name])
        assert type(caught.value) is raised
        assert raised is Infeasible or "Failing cannot run on images of shape" in caught.value.message
    assert fingerprint(network) == before


# What cannot be scored.


def test_networks_that_say_nothing_fail_with_a_reason() -> None:
    """A search goes on after such a candidate, and its owner wants to read why it has no score."""
    images, labels = batch(4, 3, 4, 4)
    linear: Any = nn.Sequential(nn.Flatten(), nn.Linear(48, 5)).double()
    with pytest.raises(TrialFailed, match="naswot") as caught:
        zero_cost_scores(linear, images, labels, ["naswot"])
    assert "ReLU" in caught.value.advice
    twins = torch.cat([images, images])
    with pytest.raises(TrialFailed, match="naswot"):
        zero_cost_scores(mlp_of(48), twins, None, ["naswot"])

    class Constant(nn.Linear):
        def forward(self, images: Tensor) -> Tensor:
            return self.bias.expand(len(images), -1)

    constant = Constant(3, 5).double()
    for name in ("synflow", "jacob_cov"):
        with pytest.raises(TrialFailed, match=name):
            zero_cost_scores(constant, images, labels, [name])
    nn.init.constant_(linear[1].weight, math.nan)
    for name in ("synflow", "jacob_cov", "snip", "grad_norm"):
        with pytest.raises(TrialFailed, match=f"{name}.*is nan"):
            zero_cost_scores(linear, images, labels, [name])


def mlp_of(features: int) -> Any:
    return nn.Sequential(nn.Flatten(), nn.Linear(features, 30), nn.ReLU(), nn.Linear(30, 5)).double()


def test_wrong_input_is_named_with_advice() -> None:
    """Each of these is an easy slip, and none may end in a number or a traceback."""
    network = mlp_of(48)
    images, labels = batch(4, 3, 4, 4)
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"names": ["synflw"]}, "did you mean 'synflow'"),
        ({"labels": None, "names": ["snip"]}, "give labels, or choose from params, macs, synflow, jacob_cov, naswot"),
        ({"labels": None, "names": ["params", "grad_norm"]}, "needs labels"),
        ({"images": images[0]}, r"shape \(3, 4, 4\)"),
        ({"images": images[:1]}, "at least 2 images"),
        ({"images": (images * 9).to(torch.uint8)}, "floating-point"),
        ({"images": images / 0}, "NaN or infinite"),
        ({"labels": labels[:3]}, "do not fit 4 images"),
        ({"labels": labels.double()}, "class index"),
        ({"labels": labels + 3, "names": ["snip"]}, "do not fit 5 classes"),
        ({"labels": labels - 5, "names": ["grad_norm"]}, "do not fit 5 classes"),
        ({"network": nn.Sequential(nn.Conv2d(3, 4, 1)).double(), "names": ["snip"]}, "class scores"),
        ({"network": nn.Linear(4, 5, device="meta")}, "device meta"),
        ({"images": batch(4, 1, 4, 4)[0], "names": ["naswot"]}, r"cannot run on images of shape \(4, 1, 4, 4\)"),
    ]
    for change, message in wrong:
        given: dict[str, Any] = {"network": network, "images": images, "labels": labels, "names": list(ZERO_COST)}
        with pytest.raises(NasplatError, match=message) as caught:
            zero_cost_scores(**{**given, **change})
        assert not isinstance(caught.value, TrialFailed)

    class Silent(nn.Module):
        def forward(self, images: Tensor) -> dict[str, int]:
            return {"images": len(images)}

    with pytest.raises(NasplatError, match="no tensor"):
        zero_cost_scores(Silent(), images, labels, ["synflow"])
    free = [name for name in ZERO_COST if name not in NEED_LABELS]
    assert list(zero_cost_scores(network, images, None, free)) == free
