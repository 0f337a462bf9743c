"""Without these a killed trial would start anew, or end with other weights than if it had not been killed; and a full
disk would end a search."""

from __future__ import annotations

import errno
import os
import resource
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from nasplat.core.errors import NasplatError
from nasplat.training import checkpoint as files
from nasplat.training.loop import TrainResult, train
from nasplat.training.objectives import make_objective
from tests.training.toys import PROBLEM, ToyLoader, ToyNetwork, same, settings, weights

CPU = torch.device("cpu")
ROOT = Path(__file__).resolve().parents[2]

VARIANTS: list[dict[str, Any]] = [
    {"mixup": 0.3, "auxiliary": 0.4, "drop_path": 0.2},
    {"objective": "simclr", "optimiser": "adamw", "lr": 0.01},
    {"objective": "memory_bank", "optimiser": "adam", "lr": 0.01},
    {"momentum": 0.0, "channels_last": False, "schedule": "linear"},
]


def go(
    changes: dict[str, Any], checkpoint: Path | None = None, seed: int = 0, steps_before_stop: int | None = None
) -> tuple[nn.Module, TrainResult]:
    chosen = settings(**{"epochs": 5, "checkpoint_seconds": 1e-9, **changes})
    objective = make_objective(chosen, PROBLEM, 128)
    network = ToyNetwork(dropout=0.2)
    left = [steps_before_stop or 10**9]

    def stop() -> bool:
        left[0] -= 1
        return left[0] == 0

    loader = ToyLoader(views=objective.views)
    result = train(network, objective, loader, chosen, device=CPU, seed=seed, checkpoint=checkpoint, stop=stop)  # type: ignore[arg-type]
    return network, result


@pytest.mark.parametrize("changes", VARIANTS, ids=lambda changes: "-".join(changes))
@pytest.mark.parametrize("pieces", [(3,), (4,), (1, 2, 9)])
def test_a_stopped_training_goes_on_bit_for_bit(
    tmp_path: Path, changes: dict[str, Any], pieces: tuple[int, ...]
) -> None:
    whole, whole_result = go(changes)
    done = 0
    for steps in pieces:
        _, result = go(changes, tmp_path, steps_before_stop=steps)
        done += steps
        assert (result.steps, result.finished) == (done, False)
    pieced, result = go(changes, tmp_path)
    assert result.finished and result.steps == whole_result.steps == 20
    assert result.losses == whole_result.losses
    assert same(weights(pieced), weights(whole))


CHILD = """
import sys, torch
from pathlib import Path
from safetensors.torch import save_file
from tests.training.toys import PROBLEM, ToyLoader, ToyNetwork, settings
from nasplat.training.loop import train
from nasplat.training.objectives import make_objective

torch.set_num_threads(1)
folder = Path(sys.argv[1])
chosen = settings(epochs=150, checkpoint_seconds=0.02, mixup=0.3, drop_path=0.2)
network = ToyNetwork()
objective = make_objective(chosen, PROBLEM, 128)
cpu, checkpoint = torch.device("cpu"), folder / "checkpoint"
train(network, objective, ToyLoader(), chosen, device=cpu, seed=3, checkpoint=checkpoint)
save_file(network.state_dict(), folder / "final.safetensors")
"""


def child(folder: Path) -> subprocess.Popen[bytes]:
    folder.mkdir(exist_ok=True)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen([sys.executable, "-c", CHILD, str(folder)], env=environment, cwd=ROOT)


def test_a_training_killed_by_sigkill_ends_as_one_that_was_not(tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert child(whole).wait(120) == 0
    for wait in (0.0, 0.05):
        process = child(killed)
        path = killed / "checkpoint" / files.FILE
        before = path.stat().st_mtime_ns if path.exists() else 0
        while process.poll() is None and not (path.exists() and path.stat().st_mtime_ns != before):
            time.sleep(0.002)
        time.sleep(wait)
        process.send_signal(signal.SIGKILL)
        assert process.wait(60) == -signal.SIGKILL
        assert not (killed / "final.safetensors").exists()
    found = files.read(killed / "checkpoint")
    assert found is not None and 0 < found[1]["step"] < 600
    assert child(killed).wait(120) == 0
    assert same(load_file(whole / "final.safetensors"), load_file(killed / "final.safetensors"))


def test_a_full_disk_is_warned_of_once_and_the_earlier_checkpoint_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    go({}, tmp_path, steps_before_stop=5)
    before = (tmp_path / files.FILE).read_bytes()

    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("nasplat.training.checkpoint.os.fsync", full)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        pieced, result = go({}, tmp_path)
    assert result.finished
    assert [str(warning.message) for warning in caught if "No space left" in str(warning.message)] == [
        f"no checkpoint could be written ({OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))}); training goes on"
    ]
    assert (tmp_path / files.FILE).read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == [files.FILE]  # no half-written file takes up room
    whole, _ = go({})
    assert same(weights(pieced), weights(whole))


def test_a_file_system_that_takes_no_more_is_survived(tmp_path: Path) -> None:
    """The same with the kernel's own refusal: files may not grow beyond 4 KiB."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    go({}, tmp_path, steps_before_stop=1)
    before = (tmp_path / files.FILE).read_bytes()
    assert len(before) > 4096
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            _, result = go({}, tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert result.finished and len(caught) == 1
    assert (tmp_path / files.FILE).read_bytes() == before


@pytest.mark.parametrize("damage", [b"", b"\x00" * 7, b"\xff" * 500, None])
def test_a_damaged_checkpoint_is_warned_of_and_the_trial_starts_anew(tmp_path: Path, damage: bytes | None) -> None:
    go({}, tmp_path, steps_before_stop=5)
    path = tmp_path / files.FILE
    path.write_bytes(path.read_bytes()[:-100] if damage is None else damage)
    with pytest.warns(UserWarning, match="cannot be read"):
        pieced, _ = go({}, tmp_path)
    whole, _ = go({})
    assert same(weights(pieced), weights(whole))


def test_a_checkpoint_of_other_settings_is_refused(tmp_path: Path) -> None:
    go({}, tmp_path, steps_before_stop=5)
    with pytest.raises(NasplatError, match="other settings"):
        go({"lr": 0.123}, tmp_path)
    with pytest.raises(NasplatError, match="another seed"):
        go({}, tmp_path, seed=1)
    chosen = settings(epochs=5, checkpoint_seconds=7)  # how often it is written does not matter
    other = ToyNetwork(channels=4)
    with pytest.raises(NasplatError, match="another network"):
        train(other, make_objective(chosen, PROBLEM, 128), ToyLoader(), chosen, device=CPU, seed=0, checkpoint=tmp_path)  # type: ignore[arg-type]


def test_seconds_spent_before_an_interruption_count(tmp_path: Path) -> None:
    changes = {"epochs": None, "seconds": 0.4}
    _, first = go(changes, tmp_path, steps_before_stop=5)
    _, second = go(changes, tmp_path)
    assert second.finished and second.steps > 5
    assert first.seconds < second.seconds < 3
    _, third = go({**changes, "checkpoint_seconds": 1e-9}, tmp_path)
    assert third.seconds >= 0.4


def test_tied_weights_are_checkpointed(tmp_path: Path) -> None:
    network = nn.Linear(3, 3)
    network.register_parameter("again", network.weight)
    files.write(tmp_path, files.module_tensors("network", network), {"step": 1})
    found = files.read(tmp_path)
    assert found is not None
    assert torch.equal(found[0]["network.again"], network.weight)
    assert found[1] == {"step": 1}
    assert files.read(tmp_path / "nothing") is None
