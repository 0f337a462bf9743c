"""The whole of a pruning on real images: what comes out is as small as asked, right, and still accurate."""

import os
import runpy
import signal
import subprocess
import sys
import time
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nasplat.compression.files import save_pruned
from nasplat.compression.prune import Pruned, prune_network
from nasplat.core.errors import NasplatError
from nasplat.core.experiment import Data, Train
from nasplat.core.pruning import Pruning
from nasplat.data.datasets import Dataset, load_dataset
from nasplat.networks.counter import count
from nasplat.networks.rebuild import load_pruned
from nasplat.training.fit import fit

INPUTS = (torch.zeros(1, 1, 8, 8),)
TRAIN = {"epochs": 3, "lr": 0.05, "batch_size": 64, "augment": []}


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)

    def forward(self, images: Tensor) -> Tensor:
        return F.relu(images + self.bn2(self.conv2(F.relu(self.bn1(self.conv1(images))))))


def untrained() -> nn.Module:
    torch.manual_seed(0)
    stem = [nn.Conv2d(1, 24, 3, padding=1, bias=False), nn.BatchNorm2d(24), nn.ReLU()]
    return nn.Sequential(*stem, Block(24), Block(24), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(96, 10))


@cache
def digits() -> Dataset:
    return load_dataset(Data.model_validate({"source": "digits"}))


@cache
def trained() -> nn.Module:
    network = untrained()
    fit(network, digits(), Train.model_validate({**TRAIN, "epochs": 8}), device=torch.device("cpu"), seed=0)
    return network.eval()


def pruned(network: nn.Module | None = None, data: bool = True, folder: Path | None = None, **settings: Any) -> Pruned:
    settings = {"budget": {"macs": 0.5}, "device": "cpu", **settings}
    chosen = Pruning.model_validate(settings)
    return prune_network(network or trained(), INPUTS, chosen, dataset=digits() if data else None, folder=folder)


def test_half_the_network_reads_digits_as_well_after_fine_tuning() -> None:
    """The main promise: a smaller network that is as good."""
    before = {name: value.clone() for name, value in trained().state_dict().items()}
    found = pruned(train=TRAIN)
    first, last = found.stages[0], found.stages[-1]
    cost = count(found.module, (1, 8, 8))
    assert (cost.macs, cost.params) == (last.macs, last.params) and 0.495 <= last.macs / first.macs <= 0.5
    assert first.metrics["accuracy"] > 0.95 and last.metrics["accuracy"] > 0.95
    assert last.cut["accuracy"] < last.metrics["accuracy"]
    assert found.proofs["float64"] <= 1e-9 and not found.notes
    assert all(torch.equal(value, before[name]) for name, value in trained().state_dict().items())


@pytest.mark.parametrize("criterion", ["random", "taylor", "fpgm", "bn_scale", "chip"])
def test_every_kind_of_criterion_leads_to_the_budget(criterion: str) -> None:
    found = pruned(importance={"criterion": criterion, "images": 128})
    share = found.stages[-1].macs / found.stages[0].macs
    assert 0.495 <= share <= 0.5 or (0.48 <= share < 0.495 and "come nearest" in found.notes[0])
    if criterion == "bn_scale":
        assert not found.untouched


def test_a_good_criterion_keeps_more_than_chance() -> None:
    """Looking at weights and images would be in vain."""

    def accuracy(criterion: str, seed: int = 0) -> float:
        found = pruned(importance={"criterion": criterion}, budget={"macs": 0.5}, seed=seed)
        return found.stages[-1].metrics["accuracy"]

    chance = sum(accuracy("random", seed) for seed in range(4)) / 4
    for criterion in ("group_norm", "l2", "taylor"):
        assert accuracy(criterion) > chance + 0.1, (criterion, chance)


def test_little_by_little_ends_at_the_same_size() -> None:
    found = pruned(steps=3, train=TRAIN, budget={"macs": 0.3, "params": 0.4})
    shares = [stage.macs / found.stages[0].macs for stage in found.stages[1:]]
    assert len(shares) == 3 and shares == sorted(shares, reverse=True) and shares[-1] <= 0.3
    assert len(found.operations) == 3 and found.stages[-1].metrics["accuracy"] > 0.9
    cost = count(found.module, (1, 8, 8))
    assert cost.macs == found.stages[-1].macs and cost.params <= 0.4 * found.stages[0].params


@pytest.mark.parametrize("kind", ["slimming", "group_lasso", "growing"])
def test_training_for_sparsity_makes_the_cut_cheaper(kind: str) -> None:
    """What is cut must be what the network was taught to do without."""
    strength, epochs = {"slimming": (5e-3, 15), "group_lasso": (3e-1, 12), "growing": (3e-2, 6)}[kind]
    sparsity = {"kind": kind, "strength": strength, "train": {**TRAIN, "epochs": epochs}}
    criterion = "bn_scale" if kind == "slimming" else "group_norm"
    plain = pruned(importance={"criterion": criterion}, recalibrate=False, budget={"macs": 0.6})
    sparse = pruned(importance={"criterion": criterion}, recalibrate=False, budget={"macs": 0.6}, sparsity=sparsity)
    assert sparse.stages[1].title == "sparse"
    assert sparse.stages[-1].metrics["accuracy"] > plain.stages[-1].metrics["accuracy"] + 0.02


def test_whole_blocks_go_and_the_rest_is_cut_to_the_budget() -> None:
    found = pruned(blocks=1, budget={"macs": 0.4}, train=TRAIN)
    assert isinstance(found.operations[0], tuple) and len(found.operations[0]) == 1
    assert sum(isinstance(module, nn.Identity) for module in found.module.modules()) == 1
    assert found.stages[-1].macs <= 0.4 * found.stages[0].macs and found.stages[-1].metrics["accuracy"] > 0.9


def test_a_network_is_made_as_fast_as_asked() -> None:
    """Fewer MACs may not be faster: who has a time limit needs the time measured."""
    wide = nn.Sequential(nn.Conv2d(1, 256, 3), nn.ReLU(), nn.Conv2d(256, 256, 3), nn.ReLU(), nn.Conv2d(256, 9, 3))
    inputs = (torch.zeros(1, 1, 24, 24),)
    chosen = Pruning.model_validate({"budget": {"latency": 0.6, "latency_batch": 8}, "device": "cpu"})
    found = prune_network(wide.eval(), inputs, chosen)
    assert found.stages[-1].macs < 0.85 * found.stages[0].macs


@pytest.mark.parametrize("how", ["train mode", "half", "double", "DataParallel", "frozen weights"])
def test_models_come_in_all_states(how: str) -> None:
    """People hand over what they have: the answer is of the same type, and the model is left as it was."""
    network = untrained()
    network.load_state_dict(trained().state_dict())
    network.train(how == "train mode")
    dtype = {"half": torch.float16, "double": torch.float64}.get(how, torch.float32)
    network.to(dtype)
    network.requires_grad_(how != "frozen weights")
    given = nn.DataParallel(network) if how == "DataParallel" else network
    found = pruned(given, importance={"criterion": "taylor", "images": 128})
    assert network.training == (how == "train mode") and next(network.parameters()).dtype == dtype
    assert next(found.module.parameters()).dtype == dtype and not found.module.training
    assert type(found.module) is nn.Sequential
    reference = pruned(importance={"criterion": "taylor", "images": 128}) if how == "train mode" else None
    if reference is not None:
        assert torch.equal(found.module[0].weight, reference.module[0].weight)  # type: ignore[index, union-attr]


def test_a_module_of_one_s_own_is_saved_and_loaded(tmp_path: Path) -> None:
    """In Python there may be no function that makes the original: then whoever loads gives it."""
    found = pruned(blocks=1, budget={"macs": 0.4}, data=False)
    folder = save_pruned(found, trained(), tmp_path / "it")
    again = load_pruned(folder, base=untrained())
    images = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    assert torch.equal(again(images), found.module(images))
    assert runpy.run_path(str(folder / "load.py"))["load"](untrained())(images).equal(found.module(images))


def test_without_images_the_weights_alone_decide() -> None:
    found = pruned(data=False)
    assert not found.stages[-1].metrics and "not measured" in found.notes[0]
    with pytest.raises(NasplatError, match="taylor needs images"):
        pruned(data=False, importance={"criterion": "taylor"})


def test_data_with_other_classes_or_shapes_are_told() -> None:
    network = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 7))
    with pytest.raises(NasplatError, match="10 classes, and the network answers with 7"):
        pruned(network.eval())
    with pytest.raises(NasplatError, match="cannot take these images of 1 × 8 × 8"):
        prune_network(
            nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(), nn.Linear(288, 10)).eval(),
            (torch.zeros(1, 3, 8, 8),),
            Pruning.model_validate({"budget": {"macs": 0.5}}),
            dataset=digits(),
        )


def test_what_cannot_be_done_is_told() -> None:
    with pytest.raises(NasplatError, match="budget cannot be met"):
        pruned(budget={"macs": 0.001})
    with pytest.raises(NasplatError, match="5 residual blocks are to be removed, and 2 can be"):
        pruned(blocks=5)
    with pytest.raises(NasplatError, match="no group of channels matches 'layer9"):
        pruned(only=["layer9*"])
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 10)).eval()
    with pytest.raises(NasplatError, match="bn_scale says nothing of any group"):
        pruned(network, importance={"criterion": "bn_scale"})


def test_a_killed_pruning_goes_on_and_ends_the_same(tmp_path: Path) -> None:
    """Hours of fine-tuning would be lost."""
    script = tmp_path / "run.py"
    script.write_text(
        "import sys\nfrom pathlib import Path\nfrom tests.compression.test_prune import pruned\n"
        "settings = {'epochs': 6, 'lr': 0.05, 'batch_size': 64, 'augment': [], 'checkpoint_seconds': 0.1}\n"
        "found = pruned(steps=3, train=settings, folder=Path(sys.argv[1]))\n"
        "import torch\nfrom nasplat.artifacts.weights import save_weights\nsave_weights(found.module, sys.argv[2])\n"
    )
    root = Path(__file__).resolve().parents[2]
    environment = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}

    def start(folder: str) -> subprocess.Popen[bytes]:
        words = [sys.executable, str(script), str(tmp_path / folder), str(tmp_path / f"{folder}.safetensors")]
        return subprocess.Popen(words, env=environment)

    assert start("undisturbed").wait(120) == 0
    process = start("killed")
    deadline = time.monotonic() + 120
    while not (tmp_path / "killed/step-2").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL and (tmp_path / "killed/step-1.safetensors").exists()
    assert start("killed").wait(120) == 0
    one, other = ((tmp_path / f"{name}.safetensors").read_bytes() for name in ("undisturbed", "killed"))
    assert one == other
