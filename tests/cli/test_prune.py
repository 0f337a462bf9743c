"""`nasplat prune` as a person meets it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from nasplat.artifacts.weights import load_weights
from nasplat.core.experiment import Data, Train
from nasplat.data.datasets import load_dataset
from nasplat.networks.counter import count
from nasplat.networks.rebuild import load_pruned
from nasplat.training.fit import fit
from tests.cli.conftest import Shell

MODEL = """
import torch
from torch import nn

class Block(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width)

    def forward(self, images):
        return torch.relu(images + self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(images))))))

def small(classes=10, width=16):
    stem = [nn.Conv2d(1, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()]
    end = [nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(4 * width, classes)]
    return nn.Sequential(*stem, Block(width), Block(width), *end)
"""


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a module of somebody's own, and a checkpoint of a DataParallel training."""
    folder = tmp_path_factory.mktemp("theirs")
    (folder / "their_models.py").write_text(MODEL)
    scope: dict = {}
    exec(MODEL, scope)
    torch.manual_seed(0)
    network: nn.Module = scope["small"]()
    settings = Train(epochs=8, lr=0.05, batch_size=64, augment=())
    fit(network, load_dataset(Data(source="digits")), settings, device=torch.device("cpu"), seed=0)
    state = {f"module.{name}": value for name, value in network.state_dict().items()}
    torch.save({"epoch": 8, "state_dict": state}, folder / "best.pth")
    return folder


@pytest.fixture
def there(checkpoint: Path, shell: Shell) -> Shell:
    for path in checkpoint.iterdir():
        Path(path.name).write_bytes(path.read_bytes())
    return shell


BASE = "prune --model their_models:small --checkpoint best.pth --data digits"


def test_a_checkpoint_becomes_a_smaller_network_that_loads_without_nasplat(there: Shell) -> None:
    """The whole promise: one command, an accuracy before and after, and files that need nasplat for nothing."""
    out = there(f"{BASE} --macs 0.5 --epochs 3 --set train.lr=0.05 --set train.augment=[]")
    assert there.code == 0, there.error
    assert "without the prefix module." in out and "batch 32" in out and "runs/small/report.html" in out
    last = next(line for line in out.splitlines() if line.startswith("step 1 "))
    assert float(last.split()[-2]) > 90
    folder = Path("runs/small/network")
    assert {"recipe.json", "load.py", "weights.safetensors", "model.onnx", "model.pt2", "README.md"} == {
        path.name for path in folder.iterdir()
    }
    network = load_pruned(folder)
    whole, cost = count(__import__("their_models").small(), (1, 8, 8)), count(network, (1, 8, 8))
    assert 0.48 * whole.macs < cost.macs <= 0.5 * whole.macs
    images = torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    torch.save(images, "images.pt")
    script = (
        "import sys, torch; sys.path[:0] = ['runs/small/network', '.']\n"
        "import load\nnetwork = load.load()\nassert not any(name.startswith('nasplat') for name in sys.modules)\n"
        "torch.save(network(torch.load('images.pt')), 'outputs.pt')\n"
    )
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    subprocess.run([sys.executable, "-c", script], check=True, env=environment)
    assert torch.equal(torch.load("outputs.pt"), network(images))
    page = Path("runs/small/report.html").read_text()
    assert "3.conv1" in page and "accuracy; it was" in page
    again = there(f"{BASE} --macs 0.5 --epochs 3 --set train.lr=0.05 --set train.augment=[]")
    assert "trained before" in again and there.code == 0
    there(f"{BASE} --macs 0.4")
    assert there.code == 2 and "holds another pruning" in there.error


def test_a_pruning_file_says_the_same(there: Shell) -> None:
    Path("mine.yaml").write_text(
        "model: their_models:small\ncheckpoint: best.pth\nbudget: {params: 0.6, round_to: 4}\nblocks: 1\n"
        "importance: {criterion: l1}\n"
    )
    out = there("prune mine.yaml --set input=[1,8,8]")
    assert there.code == 0, there.error
    recipe = json.loads(Path("runs/mine/network/recipe.json").read_text())
    assert len(recipe["operations"][0]["blocks"]) == 1 and "without" in out
    tensors = load_weights("runs/mine/network/weights.safetensors")
    assert all(tensor.shape[0] % 4 == 0 for name, tensor in tensors.items() if name.endswith("conv1.weight"))
    assert not any(name.startswith(recipe["operations"][0]["blocks"][0] + ".") for name in tensors)


@pytest.mark.parametrize(
    ("options", "wrong"),
    [
        ("--macs 0.001", "budget cannot be met"),
        ("", "a pruning needs a budget"),
        ("--macs 0.5 --criterion l3", "importance.criterion cannot be 'l3'"),
        ("--macs 0.5 --set budget.mac=1", "no key 'mac'"),
        ("--macs 0.5 --set arguments.classes=7", "the checkpoint has 10 classes and the model 7"),
        ("--macs 0.5 --set arguments.width=8", "of another shape: 0.weight is (16, 1, 3, 3) there and (8, 1, 3, 3)"),
        ("--macs 0.5 --set arguments.depth=8", "unexpected keyword argument 'depth'"),
        ("--macs 0.5 --checkpoint gone.pth", "there is no gone.pth"),
        ("--macs 0.5 --model their_models:tiny", "has no function 'tiny'"),
        ("--macs 0.5 --set data.mean=[0.5,0.5,0.5] --set data.std=[1,1,1]", "do not fit images of 1 channel"),
        ("--macs 0.5 --epochs 1 --set train.augment=[crop,flap]", "train.augment cannot be 'flap'"),
    ],
)
def test_bad_input_is_answered_in_two_lines(there: Shell, options: str, wrong: str) -> None:
    there(f"{BASE} {options}")
    assert there.code == 2 and wrong in there.error and "Traceback" not in there.error


def test_a_model_that_cannot_be_exported_says_where(there: Shell) -> None:
    """People need the line of their code, not a page of the exporter's."""
    Path("odd.py").write_text(
        "from torch import nn\nclass Odd(nn.Module):\n    def __init__(self):\n        super().__init__()\n"
        "        self.a = nn.Conv2d(1, 4, 3)\n    def forward(self, x):\n        y = self.a(x)\n"
        "        return y if y.sum() > 0 else -y\ndef odd():\n    return Odd()\n"
    )
    there("prune --model odd:odd --macs 0.5 --set input=[1,8,8]")
    assert there.code == 2 and "odd.py" in there.error and "8" in there.error
