"""Weights come back bit for bit, or an error says what is wrong with them."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from nasplat.artifacts.weights import load_into, load_weights, read_metadata, save_weights
from nasplat.core.errors import NasplatError


class Tied(nn.Module):
    """Two layers that share a weight, and one buffer that is a part of another."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 4)
        self.second = nn.Linear(4, 4)
        self.second.weight = self.first.weight
        self.register_buffer("whole", torch.arange(12.0))
        self.register_buffer("part", self.whole[2:6])
        self.register_buffer("turned", torch.arange(6).reshape(2, 3).T)


def network() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 2))


def test_round_trip_with_metadata(tmp_path: Path) -> None:
    module = network()
    save_weights(module, tmp_path / "w.safetensors", {"digest": "abc", "seed": "3"})
    other = network()
    load_into(other, tmp_path / "w.safetensors", digest="abc")
    for name, tensor in module.state_dict().items():
        assert torch.equal(tensor, other.state_dict()[name]), name
    assert {"digest": "abc", "seed": "3"}.items() <= read_metadata(tmp_path / "w.safetensors").items()


def test_shared_tensors_load_strictly_and_without_nasplat(tmp_path: Path) -> None:
    module, other = Tied(), Tied()
    save_weights(module, tmp_path / "w.safetensors")
    load_into(other, tmp_path / "w.safetensors")
    plain = load_file(tmp_path / "w.safetensors")
    assert plain.keys() == module.state_dict().keys()
    for name, tensor in module.state_dict().items():
        assert torch.equal(tensor, other.state_dict()[name])
        assert torch.equal(tensor, plain[name])
    assert other.first.weight is other.second.weight


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64, torch.int64, torch.bool])
def test_types_and_empty_tensors_survive(tmp_path: Path, dtype: torch.dtype) -> None:
    state = {
        "a": torch.ones(3, 2).to(dtype),
        "scalar": torch.tensor(1).to(dtype),
        "empty": torch.empty(0, 4, dtype=dtype),
    }
    save_weights(state, tmp_path / "w.safetensors")
    loaded = load_weights(tmp_path / "w.safetensors")
    for name, tensor in state.items():
        assert loaded[name].dtype == dtype
        assert torch.equal(loaded[name], tensor)


@pytest.mark.parametrize("cut", [0, 4, 60, -1])
def test_cut_short(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "w.safetensors"
    save_weights(network(), path)
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(NasplatError, match="damaged") as caught:
        load_into(network(), path)
    assert "train" in caught.value.advice


def test_one_flipped_bit_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    save_weights(network(), path)
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)
    with pytest.raises(NasplatError, match="checksum"):
        load_weights(path)


def test_a_pickle_is_never_opened(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    torch.save(network().state_dict(), path)
    with pytest.raises(NasplatError, match="damaged"):
        load_weights(path)
    with pytest.raises(NasplatError, match="damaged"):
        read_metadata(path)


def test_missing(tmp_path: Path) -> None:
    for function in (load_weights, read_metadata):
        with pytest.raises(NasplatError, match="no weights") as caught:
            function(tmp_path / "w.safetensors")
        assert "nasplat train" in caught.value.advice


@pytest.mark.parametrize(
    ("other", "told"),
    [
        (nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 2)), "shape"),
        (nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)), "not in the network"),
        (nn.Sequential(*network(), nn.Linear(2, 2)), "missing"),
    ],
)
def test_weights_of_another_network_change_nothing(tmp_path: Path, other: nn.Module, told: str) -> None:
    path = tmp_path / "w.safetensors"
    save_weights(network(), path)
    before = {name: tensor.clone() for name, tensor in other.state_dict().items()}
    with pytest.raises(NasplatError, match=told):
        load_into(other, path)
    assert all(torch.equal(before[name], tensor) for name, tensor in other.state_dict().items())


def test_weights_of_another_architecture(tmp_path: Path) -> None:
    save_weights(network(), tmp_path / "w.safetensors", {"digest": "a" * 64})
    with pytest.raises(NasplatError, match="aaaaaaaa"):
        load_into(network(), tmp_path / "w.safetensors", digest="b" * 64)


def test_what_is_no_tensor_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(NasplatError, match="'extra'"):
        save_weights({"extra": {"a": 1}}, tmp_path / "w.safetensors")  # type: ignore[dict-item]
    with pytest.raises(NasplatError, match="plain"):
        save_weights({"a": torch.empty(2, device="meta")}, tmp_path / "w.safetensors")
    assert not list(tmp_path.iterdir())
