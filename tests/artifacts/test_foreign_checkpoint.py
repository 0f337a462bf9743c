"""Checkpoints as people have them, and as they are broken."""

import argparse
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from nasplat.artifacts.foreign_checkpoint import load_checkpoint, read_checkpoint
from nasplat.artifacts.weights import save_weights
from nasplat.core.errors import NasplatError

REAL = Path(__file__).resolve().parents[2] / "../shared/data/resnet20_cifar10/resnet20-12fca82f.th"


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Linear(3, 2))


@pytest.mark.parametrize(
    ("wrap", "entry", "prefix"),
    [
        (lambda state: state, "", ""),
        (lambda state: {"state_dict": state, "epoch": 3}, "state_dict", ""),
        (lambda state: {"model": state, "optimizer": {"state": {}, "param_groups": [{"lr": 0.1}]}}, "model", ""),
        (lambda state: {"ema": {"x": 1}, "checkpoint": {"model_state_dict": state}}, "checkpoint.model_state_dict", ""),
        (lambda state: {f"module.{name}": value for name, value in state.items()}, "", "module."),
        (lambda state: {f"module._orig_mod.{name}": v for name, v in state.items()}, "", "module._orig_mod."),
        (lambda state: {"model." + n: v for n, v in state.items()} | {"head.bias": torch.zeros(2)}, "", "model."),
        (lambda state: {name: v for name, v in state.items() if "num_batches" not in name}, "", ""),
    ],
)
def test_weights_are_found_wherever_trainers_put_them(tmp_path: Path, wrap: Any, entry: str, prefix: str) -> None:
    """People would have to unwrap checkpoints by hand."""
    state = network().state_dict()
    torch.save(wrap(dict(state)), tmp_path / "it.pth")
    other = network()
    nn.init.zeros_(other[0].weight)
    loaded = load_checkpoint(other, tmp_path / "it.pth")
    assert (loaded.entry, loaded.prefix) == (entry, prefix)
    assert all(torch.equal(value, state[name]) for name, value in other.state_dict().items())


def test_half_precision_and_safetensors(tmp_path: Path) -> None:
    save_weights(
        {name: value.half() if value.is_floating_point() else value for name, value in network().state_dict().items()},
        tmp_path / "it.safetensors",
    )
    other = network()
    assert load_checkpoint(other, tmp_path / "it.safetensors").cast == "float16"
    assert other[0].weight.dtype == torch.float32


def test_nothing_is_unpickled(tmp_path: Path) -> None:
    """A checkpoint from the internet could run anything."""
    torch.save(network(), tmp_path / "whole.pth")
    with pytest.raises(NasplatError, match=r"running code: it holds a torch\.nn\.modules\.\w+\.\w+") as caught:
        read_checkpoint(tmp_path / "whole.pth")
    assert "torch.save(model.state_dict()" in caught.value.advice
    torch.save({"state_dict": network().state_dict(), "args": argparse.Namespace(lr=1)}, tmp_path / "args.pth")
    with pytest.raises(NasplatError, match=r"argparse\.Namespace"):
        read_checkpoint(tmp_path / "args.pth")


def test_broken_files_are_told_apart(tmp_path: Path) -> None:
    torch.save(network().state_dict(), tmp_path / "good.pth")
    content = (tmp_path / "good.pth").read_bytes()
    (tmp_path / "short.pth").write_bytes(content[: len(content) // 2])
    (tmp_path / "empty.pth").write_bytes(b"")
    (tmp_path / "page.pth").write_text("<!doctype html><html>Not found</html>")
    (tmp_path / "noise.pth").write_bytes(bytes(range(256)) * 20)
    torch.save({"epoch": 3, "names": ["a"]}, tmp_path / "none.pth")
    torch.save({**network().state_dict(), "0.bias": torch.tensor([0.0, float("nan"), 1.0])}, tmp_path / "nan.pth")
    for name, wrong in {
        "short.pth": "damaged|no checkpoint",
        "empty.pth": "is empty",
        "page.pth": "is a web page",
        "noise.pth": "damaged|no checkpoint",
        "none.pth": "no weights by name; its keys are 'epoch', 'names'",
        "nan.pth": "'0.bias' holds values that are not finite",
        "gone.pth": "there is no checkpoint",
        ".": "is a folder",
    }.items():
        with pytest.raises(NasplatError, match=wrong):
            read_checkpoint(tmp_path / name)


def test_what_does_not_fit_is_listed(tmp_path: Path) -> None:
    state = network().state_dict()
    torch.save(
        {**{name: value for name, value in state.items() if name != "0.bias"}, "9.bias": torch.zeros(1)},
        tmp_path / "it.pth",
    )
    other = network()
    before = {name: value.clone() for name, value in other.state_dict().items()}
    with pytest.raises(NasplatError, match=r"missing in it: 0\.bias; not in the model: 9\.bias"):
        load_checkpoint(other, tmp_path / "it.pth")
    assert all(torch.equal(value, before[name]) for name, value in other.state_dict().items())
    wide = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Linear(3, 5))
    torch.save(state, tmp_path / "it.pth")
    with pytest.raises(NasplatError, match=r"2\.weight is") as caught:
        load_checkpoint(wide, tmp_path / "it.pth")
    assert "2 classes and the model 5" in caught.value.advice


@pytest.mark.skipif(not REAL.exists(), reason="the checkpoint itself is the point")
def test_a_real_checkpoint() -> None:
    tensors, entry = read_checkpoint(REAL)
    assert (
        entry == "state_dict" and sum(one.numel() for one in tensors.values() if one.dtype.is_floating_point) > 269_000
    )
