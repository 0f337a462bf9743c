"""Weights from embeddings and conditions: their shapes, their scale, and what they depend on."""

from __future__ import annotations

from math import sqrt
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from nasplat.core.errors import NasplatError
from nasplat.networks.perceptron_weights import Chunked, Dense, Recurrent
from nasplat.networks.static_kernels import Static
from nasplat.networks.weight_conditions import (
    MIP,
    PLAIN,
    Categorical,
    Condition,
    Continuous,
    OneHot,
    Parametrisation,
    make_encoder,
)
from nasplat.networks.weight_generators import GeneratorSettings, WeightGenerator

KINDS: dict[str, GeneratorSettings] = {
    "static": Static(embedding=8, basic=(4, 3)),
    "dense": Dense(hidden=(8, 8)),
    "chunked": Chunked(chunk=10, embedding=4, hidden=(8,)),
    "recurrent": Recurrent(chunk=10, embedding=4, state=8, hidden=(8,)),
}
CONDITIONS: dict[str, tuple[Condition | None, Tensor | None]] = {
    "none": (None, None),
    "continuous": (Continuous(2), torch.tensor([0.3, 0.9])),
    "categorical": (Categorical((3, 2), embedding=4), torch.tensor([2, 1])),
    "one hot": (OneHot((4,)), torch.tensor([3])),
}
SIZES = st.integers(1, 7)
ANY_SHAPE = st.lists(SIZES, min_size=1, max_size=5).map(tuple)
KERNEL = st.one_of(st.tuples(SIZES, SIZES), st.tuples(SIZES, SIZES, st.integers(1, 3), st.integers(1, 3)))


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def targets(*shapes: tuple[int, ...], std: float = 0.1) -> dict[str, Tensor]:
    draw = rng(7)
    return {f"layers.{at}.weight": std * torch.randn(shape, generator=draw) for at, shape in enumerate(shapes)}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("condition", CONDITIONS)
@given(data=st.data())
@settings(max_examples=5, deadline=None)
def test_every_shape_is_generated_as_it_is(kind: str, condition: str, data: st.DataObject) -> None:
    """A tile that is cut wrongly, or a chunk too few, shows for odd sizes only."""
    shapes = data.draw(st.lists(KERNEL if kind == "static" else ANY_SHAPE, min_size=1, max_size=4))
    wanted, (described, value) = targets(*shapes), CONDITIONS[condition]
    for parametrisation in (MIP, PLAIN):
        made = WeightGenerator(wanted, KINDS[kind], described, parametrisation, rng())(value)
        assert list(made) == list(wanted)
        assert all(made[name].shape == wanted[name].shape and made[name].isfinite().all() for name in wanted)


@given(st.tuples(SIZES, SIZES, st.integers(1, 3), st.integers(1, 3)), st.tuples(st.integers(1, 4), st.integers(1, 4)))
@settings(max_examples=15, deadline=None)
def test_tiled_kernels_are_the_papers_formula(shape: tuple[int, int, int, int], basic: tuple[int, int]) -> None:
    """Written out weight by weight: a_i = W_i z + B_i, K_i = <W_out, a_i> + B_out, tile after tile."""
    outputs, inputs, height, width = shape
    embedding = 3
    wanted = targets(shape)
    generator = WeightGenerator(wanted, Static(embedding, basic), parametrisation=PLAIN, rng=rng())
    with torch.no_grad():
        for parameter in generator.parameters():  # biases, too
            parameter.normal_(generator=rng(int(parameter.numel())))
        made = generator()["layers.0.weight"].double()
    state = {name.rpartition(".raw.")[2]: one.double() for name, one in generator.raw.state_dict().items()}
    window = f"{height}x{width}"
    first, first_bias = (state[f"generators.{window}.to_channels.{one}"] for one in ("weight", "bias"))
    last, last_bias = (state[f"generators.{window}.to_slice.{one}"] for one in ("weight", "bias"))
    z, columns = state[f"embeddings.{window}"], -(-inputs // basic[1])
    for out in range(outputs):
        for into in range(inputs):
            tile = z[(out // basic[0]) * columns + into // basic[1]]
            i = into % basic[1]
            a = [
                sum(float(first[i * embedding + row, one] * tile[one]) for one in range(embedding))
                + float(first_bias[i * embedding + row])
                for row in range(embedding)
            ]
            for y in range(height):
                for x in range(width):
                    at = ((out % basic[0]) * height + y) * width + x
                    value = sum(float(last[at, row]) * a[row] for row in range(embedding)) + float(last_bias[at])
                    assert made[out, into, y, x].item() == pytest.approx(
                        value * float(generator.scales[0]), rel=1e-3, abs=1e-5
                    )


def test_a_linear_layer_is_a_kernel_of_one_pixel() -> None:
    """Otherwise a classifier's weights would be reshaped from another order of channels."""
    wanted = {"linear": torch.ones(5, 7), "conv": torch.ones(5, 7, 1, 1)}
    generator = WeightGenerator(wanted, KINDS["static"], parametrisation=PLAIN, rng=rng())
    assert set(generator.raw.generators) == {"1x1"}
    embeddings = generator.raw.embeddings["1x1"]
    with torch.no_grad():
        embeddings[len(embeddings) // 2 :] = embeddings[: len(embeddings) // 2]
        linear, conv = generator.raw(None)
    assert torch.equal(linear, conv[:, :, 0, 0])


def test_kernels_of_one_size_share_a_generator() -> None:
    """The point of static hypernetworks: a layer more costs its embeddings only."""
    one = WeightGenerator(targets((16, 16, 3, 3)), Static(), parametrisation=PLAIN)
    two = WeightGenerator(targets((16, 16, 3, 3), (32, 64, 3, 3)), Static(), parametrisation=PLAIN)
    other = WeightGenerator(targets((16, 16, 3, 3), (16, 16, 5, 5)), Static(), parametrisation=PLAIN)
    count = [sum(parameter.numel() for parameter in made.parameters()) for made in (one, two, other)]
    # W_i and B_i of 16 channels, W_out and B_out of 16 x 9 weights, and an embedding of 64 a tile.
    assert count[0] == 16 * 64 * 65 + 16 * 9 * 65 + 64
    assert count[1] - count[0] == 8 * 64
    assert count[2] - count[0] == 16 * 64 * 65 + 16 * 25 * 65 + 64


@given(st.lists(st.floats(0, 1), min_size=1, max_size=6))
@settings(max_examples=30, deadline=None)
def test_an_encoded_condition_has_one_norm(values: list[float]) -> None:
    """Magnitude invariance: whatever the hyperparameters, the generator sees a vector of the same length."""
    encoder = make_encoder(Continuous(len(values)), MIP)
    encoded = encoder(torch.tensor(values))
    assert encoded.shape == (encoder.size,)
    assert encoded.norm().item() == pytest.approx(sqrt(len(values)), rel=1e-5)


@pytest.mark.parametrize("condition", [Categorical((3, 4)), OneHot((3, 4))])
def test_encoded_decisions_have_one_norm_and_differ(condition: Condition) -> None:
    encoder = make_encoder(condition, MIP, rng())
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter *= torch.rand(parameter.shape[0], 1, generator=rng()) * 5  # training may make some long
        encoded = [encoder(torch.tensor([one, other])) for one in range(3) for other in range(4)]
    assert all(one.shape == (encoder.size,) for one in encoded)
    assert [one.norm().item() for one in encoded] == pytest.approx([sqrt(2)] * 12, rel=1e-5)
    assert len({tuple(one.tolist()) for one in encoded}) == 12


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("condition", CONDITIONS)
def test_weights_begin_at_the_scale_of_the_given_ones(kind: str, condition: str) -> None:
    """Generators that are initialised like any network make kernels of the wrong variance, layer by layer."""
    wanted = {"one": 0.5 * torch.randn(24, 20, generator=rng(1)), "two": 0.01 * torch.randn(20, 24, generator=rng(2))}
    wanted["two"] += 0.02  # a mean is the base's affair
    described, value = CONDITIONS[condition]
    with torch.no_grad():
        added = WeightGenerator(wanted, KINDS[kind], described, MIP, rng())(value)
        plain = WeightGenerator(wanted, KINDS[kind], described, PLAIN, rng())(value)
    for name, tensor in wanted.items():
        assert added[name].std().item() == pytest.approx(tensor.std().item(), rel=0.2)
        moved = (added[name] - tensor).square().mean().sqrt().item() / tensor.std().item()
        assert moved == pytest.approx(MIP.spread, rel=0.8)  # little, so that pretrained weights work
        assert plain[name].std().item() == pytest.approx(tensor.std().item(), rel=0.8)


def test_constant_weights_get_something_generated() -> None:
    """Biases begin as zeros; scaled by their own spread they would never depend on the condition."""
    made = WeightGenerator({"bias": torch.zeros(16)}, KINDS["dense"], Continuous(1), MIP, rng())
    assert made(torch.tensor([0.1]))["bias"].norm().item() == pytest.approx(MIP.spread, rel=0.5)


def test_plain_weights_grow_with_their_condition_and_others_do_not() -> None:
    """The problem that Ortiz et al. (2023) describe, and that their parametrisation solves it."""
    wanted = targets((30, 20))
    factors, direction = (1.0, 0.5, 0.1, 0.01), torch.tensor([0.8, 0.4])

    def norms(parametrisation: Parametrisation) -> list[float]:
        made = WeightGenerator(wanted, KINDS["dense"], Continuous(2), parametrisation, rng())
        return [made(factor * direction)["layers.0.weight"].norm().item() for factor in factors]

    first, *others = norms(PLAIN)
    assert others == pytest.approx([factor * first for factor in factors[1:]], rel=1e-4)
    generated_only = norms(Parametrisation(constant_norm=True, base=False, spread=1.0))
    assert max(generated_only) < 3 * min(generated_only)
    first, *others = norms(MIP)
    assert others == pytest.approx([first] * 3, rel=0.1)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("condition", [name for name in CONDITIONS if name != "none"])
def test_another_condition_makes_other_weights_of_every_layer(kind: str, condition: str) -> None:
    described, value = CONDITIONS[condition]
    assert value is not None
    made = WeightGenerator(targets((9, 8), (3, 4, 3, 3)), KINDS[kind], described, MIP, rng())
    one, other = made(value), made(torch.zeros_like(value))
    assert all((one[name] - other[name]).abs().max() > 1e-4 for name in one)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("condition", CONDITIONS)
@pytest.mark.parametrize("parametrisation", [MIP, PLAIN])
def test_everything_learns(kind: str, condition: str, parametrisation: Parametrisation) -> None:
    """A parameter without a gradient would be dead weight in every count."""
    described, value = CONDITIONS[condition]
    made = WeightGenerator(targets((9, 8), (3, 4, 3, 3)), KINDS[kind], described, parametrisation, rng())
    sum(one.square().sum() for one in made(value).values()).backward()
    assert all(parameter.grad is not None for parameter in made.parameters())
    assert made.scales.grad is None


def test_a_layer_depends_on_those_before_it_and_not_on_those_behind() -> None:
    """What `Recurrent` is for; `Chunked` has no such order."""
    made = WeightGenerator(targets((4, 5), (6, 7), (3, 3)), KINDS["recurrent"], parametrisation=PLAIN, rng=rng())
    before = made()
    with torch.no_grad():
        made.raw.embeddings[1] += 1
    changed = [not torch.equal(one, other) for one, other in zip(before.values(), made().values(), strict=True)]
    assert changed == [False, True, True]


@pytest.mark.parametrize("kind", KINDS)
def test_one_seed_gives_one_generator_whatever_torch_drew_before(kind: str) -> None:
    """Two runs of one experiment would differ, or building would change the run around it."""
    state = torch.get_rng_state()
    described = Categorical((3,))
    first = WeightGenerator(targets((9, 8)), KINDS[kind], described, rng=rng(3)).state_dict()
    assert torch.equal(state, torch.get_rng_state())
    torch.rand(1)
    second = WeightGenerator(targets((9, 8)), KINDS[kind], described, rng=rng(3)).state_dict()
    other = WeightGenerator(targets((9, 8)), KINDS[kind], described, rng=rng(4)).state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)
    torch.manual_seed(5)
    third = WeightGenerator(targets((9, 8)), KINDS[kind], described).state_dict()
    torch.manual_seed(5)
    fourth = WeightGenerator(targets((9, 8)), KINDS[kind], described).state_dict()
    assert all(torch.equal(third[name], fourth[name]) for name in third)


def test_the_base_can_be_frozen() -> None:
    made = WeightGenerator(targets((9, 8)), KINDS["chunked"], rng=rng())
    made.freeze_base()
    made()["layers.0.weight"].sum().backward()
    assert made.base is not None
    assert all(not base.requires_grad and base.grad is None for base in made.base)
    with pytest.raises(NasplatError, match="no base weights"):
        WeightGenerator(targets((9, 8)), KINDS["chunked"], parametrisation=PLAIN).freeze_base()


def test_double_precision_is_kept() -> None:
    wanted = {"weight": torch.randn(9, 8, dtype=torch.float64, generator=rng())}
    for kind in KINDS.values():
        made = WeightGenerator(wanted, kind, Continuous(1), rng=rng())(torch.tensor([0.5]))
        assert made["weight"].dtype == torch.float64


@pytest.mark.parametrize(
    ("shape", "kind", "message"),
    [
        ((), "chunked", r"'blocks.1.scale' of shape \(\) cannot be generated"),
        ((3, 0), "dense", r"'blocks.1.scale' of shape \(3, 0\) cannot be generated"),
        ((4,), "static", r"'blocks.1.scale' of shape \(4,\) is no kernel"),
        ((4, 4, 3), "static", r"'blocks.1.scale' of shape \(4, 4, 3\) is no kernel"),
        ((4, 4, 3, 3, 3), "static", r"'blocks.1.scale' of shape \(4, 4, 3, 3, 3\) is no kernel"),
    ],
)
def test_what_cannot_be_generated_is_named(shape: tuple[int, ...], kind: str, message: str) -> None:
    with pytest.raises(NasplatError, match=message):
        WeightGenerator({"good": torch.ones(2, 2), "blocks.1.scale": torch.zeros(shape)}, KINDS[kind])


def test_weights_of_several_types_are_refused() -> None:
    with pytest.raises(NasplatError, match=r"'b' is torch.float64 .* 'a' is torch.float32"):
        WeightGenerator({"a": torch.ones(2), "b": torch.ones(2, dtype=torch.float64)}, KINDS["dense"])
    with pytest.raises(NasplatError, match=r"'a' is of type torch\.int64"):
        WeightGenerator({"a": torch.ones(2, dtype=torch.long)}, KINDS["dense"])
    with pytest.raises(NasplatError, match="no weights to generate"):
        WeightGenerator({}, KINDS["dense"])


@pytest.mark.parametrize(
    ("described", "value", "message"),
    [
        (Continuous(2), torch.tensor([0.5, 1.1]), r"\[0.5, 1.1\] is not within \[0, 1\]"),
        (Continuous(1), torch.tensor([-0.01]), "is not within"),
        (Continuous(1), torch.tensor([float("nan")]), "is not within"),
        (Continuous(2), torch.tensor([0.5]), r"the condition is \(1,\), not a tensor of shape \(2,\)"),
        (Continuous(1), 0.5, r"the condition is float, not a tensor"),
        (Continuous(1), None, "depend on a condition"),
        (None, torch.tensor([0.5]), "do not depend on a condition"),
        (Categorical((3, 2)), torch.tensor([2, 2]), "options that are not there: 2 of 2"),
        (OneHot((3,)), torch.tensor([-1]), "options that are not there: -1 of 3"),
        (OneHot((3,)), torch.tensor([1.0]), "not of indices"),
    ],
)
def test_conditions_that_are_none_are_refused(described: Condition | None, value: Any, message: str) -> None:
    made = WeightGenerator(targets((3, 3)), KINDS["chunked"], described)
    with pytest.raises(NasplatError, match=message):
        made(value)


def test_sizes_that_are_none_are_refused() -> None:
    for wrong in (
        lambda: Static(embedding=0),
        lambda: Static(basic=(16, -1)),
        lambda: Dense(hidden=()),
        lambda: Chunked(chunk=0),
        lambda: Recurrent(state=True),
        lambda: Continuous(0),
        lambda: Categorical((3, 0)),
        lambda: OneHot(()),
    ):
        with pytest.raises(NasplatError, match="is no size"):
            wrong()
    with pytest.raises(NasplatError, match=r"spread 0\.0 is not positive"):
        Parametrisation(constant_norm=True, base=True, spread=0.0)
