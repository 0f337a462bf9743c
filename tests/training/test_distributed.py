"""One network trained by two processes: what `nasplat train` does on a machine with several GPUs, here on CPUs."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from nasplat.core.errors import Infeasible, NasplatError, TrialFailed
from nasplat.core.experiment import Data, Train
from nasplat.data.datasets import load_dataset
from nasplat.training.checkpoint import FILE
from nasplat.training.distributed import ALONE, Report, Shard, launch, processes
from nasplat.training.fit import fit

CPU = torch.device("cpu")
SUPERVISED = {"objective": "supervised", "epochs": 2, "batch_size": 64, "augment": [], "lr": 0.05}


class Plain(nn.Module):
    """Without batch norm, whose statistics are each process's own on CPUs."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(1, 8, 3, stride=2), nn.ReLU(), nn.Flatten(), nn.Linear(72, 16), nn.ReLU())
        self.classifier = nn.Linear(16, 10)
        self.num_features = 16

    def forward_features(self, images: torch.Tensor) -> torch.Tensor:
        features: torch.Tensor = self.body(images)
        return features

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.classifier(self.forward_features(images))
        return logits


def learn(task: Mapping[str, Any], shard: Shard, report: Report) -> dict[str, Any]:
    torch.manual_seed(0)
    torch.set_num_threads(1)
    network = Plain()
    folder = Path(task["folder"]) if "folder" in task else None
    result = fit(
        network,
        load_dataset(Data(source="digits", train_size=256)),
        Train(**task["train"]),
        device=CPU,
        seed=1,
        checkpoint=folder,
        on_progress=lambda progress: report({"step": progress.step}),
        shard=shard,
    )
    if folder is not None:
        (folder / f"weights-{shard.rank}").write_text(json.dumps(network.classifier.bias.tolist()))
    return {"losses": list(result.losses), "weights": network.classifier.bias.tolist()}


def fail(task: Mapping[str, Any], shard: Shard, report: Report) -> dict[str, Any]:
    if shard.rank == 1:
        if task["how"] == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        if task["how"] == "memory":
            raise Infeasible("out of memory while training", "a smaller batch_size")
        raise ValueError("a mistake")
    torch.distributed.barrier()
    return {}


def test_two_processes_learn_what_one_does(tmp_path: Path) -> None:
    """The loss curve of a larger machine would otherwise be that of another experiment."""
    seen: list[Mapping[str, Any]] = []
    task = {"train": SUPERVISED, "folder": str(tmp_path)}
    alone = learn({"train": SUPERVISED}, ALONE, lambda fields: None)
    both = launch(f"{__name__}:learn", task, 2, seen.append)
    assert both["losses"] == pytest.approx(alone["losses"], rel=1e-4)
    assert both["weights"] == pytest.approx(alone["weights"], rel=1e-3, abs=1e-5)
    assert both["losses"][-1] < both["losses"][0]
    images = len(load_dataset(Data(source="digits", train_size=256)).train)
    assert seen and seen[-1]["step"] == 2 * (images // 64)


def test_a_checkpoint_of_one_goes_on_in_two(tmp_path: Path) -> None:
    """Who gets a second GPU does not start anew."""
    whole = learn({"train": SUPERVISED}, ALONE, lambda fields: None)
    settings = Train(**SUPERVISED)
    torch.manual_seed(0)
    network = Plain()
    images = load_dataset(Data(source="digits", train_size=256))
    fit(network, images, settings, device=CPU, seed=1, checkpoint=tmp_path, until=0.5)
    assert (tmp_path / FILE).exists()
    both = launch(f"{__name__}:learn", {"train": SUPERVISED, "folder": str(tmp_path)}, 2, lambda fields: None)
    assert both["losses"] == pytest.approx(whole["losses"], rel=1e-4)


@pytest.mark.parametrize("objective", ["simclr", "memory_bank"])
def test_without_labels_the_others_images_are_negatives_too(objective: str) -> None:
    """With each process's own images alone, more GPUs would mean an easier task and worse features."""
    train = {**SUPERVISED, "objective": objective, "lr": 0.01, "epochs": 1}
    train |= {"augment": []} if objective == "simclr" else {}
    alone = learn({"train": train}, ALONE, lambda fields: None)
    both = launch(f"{__name__}:learn", {"train": train}, 2, lambda fields: None)
    # The bank's negatives are drawn by each process for itself; the projector of SimCLR has a batch norm.
    assert both["losses"] == pytest.approx(alone["losses"], rel=0.1)
    assert both["losses"][0] > 0


@pytest.mark.parametrize(
    ("how", "error", "message"),
    [
        ("killed", TrialFailed, "process 1 of 2"),
        ("memory", Infeasible, "out of memory"),
        ("", TrialFailed, "a mistake"),
    ],
)
def test_one_process_that_fails_ends_all(how: str, error: type[NasplatError], message: str) -> None:
    """The others would wait for it until somebody looks."""
    with pytest.raises(error, match=message):
        launch(f"{__name__}:fail", {"how": how}, 2, lambda fields: None)


def test_what_cannot_be_divided_is_refused() -> None:
    """With a word about what to do."""
    endless = {**SUPERVISED, "epochs": None, "seconds": 5}
    for train, word in (({**SUPERVISED, "batch_size": 63}, "multiple of 2"), (endless, "epochs or steps")):
        with pytest.raises(NasplatError) as caught:
            launch(f"{__name__}:learn", {"train": train}, 2, lambda fields: None)
        assert word in caught.value.advice
    assert processes("auto", "cpu") == 1 and processes(3, "cpu") == 3
