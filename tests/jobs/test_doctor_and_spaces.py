"""`nasplat doctor` works on a machine where something is missing; `nasplat spaces` shows every space."""

import importlib.metadata
from pathlib import Path

import pytest

from nasplat.core.errors import NasplatError
from nasplat.jobs import doctor
from nasplat.jobs.spaces import ready_spaces, show


def test_this_machine_is_well(tmp_path: Path) -> None:
    findings = list(doctor.examine(tmp_path / "runs"))
    assert {"python", "machine", "packages", "torch", "torchvision", "onnx", "disk"} <= {one.about for one in findings}
    assert not [one for one in findings if one.state == "broken"]


def test_what_is_missing_is_told_with_advice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    version = importlib.metadata.version

    def without_onnx(name: str) -> str:
        if name.startswith("onnx"):
            raise importlib.metadata.PackageNotFoundError(name)
        return version(name)

    def broken() -> doctor.Finding:
        raise RuntimeError("operator torchvision::nms does not exist\nand more")

    monkeypatch.setattr(importlib.metadata, "version", without_onnx)
    monkeypatch.setattr(doctor, "_torchvision", broken)
    broken.__name__ = "_torchvision"
    findings = {one.about: one for one in doctor.examine(tmp_path)}
    assert findings["packages"].state == "broken" and "onnxruntime" in findings["packages"].detail
    assert findings["torchvision"].detail == "RuntimeError: operator torchvision::nms does not exist"
    assert findings["torchvision"].advice


def test_every_ready_space_is_listed_and_drawn() -> None:
    names = [one.name for one in ready_spaces()]
    assert {"darts", "mbconv", "nasbench201", "nasnet"} <= set(names)
    for name in names:
        shown = show(name, (3, 16, 16), 10, seed=1)
        assert shown.svg.startswith("<svg") and all(shown.drawings.values())
        assert shown.cost["macs"] > 0
        assert sum(map(len, shown.choices.values())) == len(shown.space.choices)


def test_an_unknown_space_is_answered_with_advice() -> None:
    with pytest.raises(NasplatError, match="there is no space 'dartz'") as caught:
        show("dartz", (3, 16, 16), 10, seed=0)
    assert "did you mean 'darts'?" in caught.value.advice


def test_a_folder_with_the_name_of_a_space_does_not_hide_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("darts").mkdir()
    assert "darts.yaml" in show("darts", (3, 16, 16), 10, seed=0).title
