"""`nasplat distill` as a person meets it."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from nasplat.artifacts.weights import load_weights
from nasplat.core.experiment import Data, Train
from nasplat.data.datasets import load_dataset
from nasplat.training.fit import fit
from tests.cli.conftest import Shell

MODELS = """
from torch import nn

def net(width=8, classes=10, channels=1):
    first = [nn.Conv2d(channels, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(), nn.MaxPool2d(2)]
    second = [nn.Conv2d(width, 2 * width, 3, padding=1), nn.BatchNorm2d(2 * width), nn.ReLU(), nn.AdaptiveAvgPool2d(2)]
    return nn.Sequential(*first, *second, nn.Flatten(), nn.Linear(8 * width, classes))

def large():
    return net(24)
"""
BASE = "distill --student nets:net --teacher nets:large --teacher-checkpoint large.pth --data digits"


@pytest.fixture(scope="session")
def taught(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with models of somebody's own, and a trained one."""
    folder = tmp_path_factory.mktemp("nets")
    (folder / "nets.py").write_text(MODELS)
    scope: dict = {}
    exec(MODELS, scope)
    torch.manual_seed(0)
    network = scope["large"]()
    settings = Train(epochs=8, batch_size=64, augment=())
    fit(network, load_dataset(Data(source="digits")), settings, device=torch.device("cpu"), seed=0)
    torch.save(network.state_dict(), folder / "large.pth")
    return folder


@pytest.fixture
def there(taught: Path, shell: Shell) -> Shell:
    for path in taught.iterdir():
        if path.is_file():
            Path(path.name).write_bytes(path.read_bytes())
    return shell


def test_a_student_learns_without_labels_and_loads_without_nasplat(there: Shell) -> None:
    """The teacher's knowledge would not arrive, or the student would need nasplat wherever it goes."""
    options = "--epochs 12 --set data.labels=false --set train.augment=[] --set train.batch_size=64"
    out = there(f"{BASE} {options} --run runs/it")
    assert there.code == 0, there.error
    results = json.loads(Path("runs/it/results.json").read_text())["rows"]
    assert [row["title"] for row in results] == ["teacher nets:large", "student"]
    assert results[0]["agreement"] == 1.0 and results[1]["agreement"] > 0.85
    assert results[1]["metrics"] == {} and "the images have no labels" in out
    script = "import sys, torch; sys.path[:0] = ['.']; import load; print(load.load()(torch.zeros(1, 1, 8, 8)).shape)"
    ran = subprocess.run(
        [sys.executable, "-c", script],
        cwd="runs/it/network",
        env={**os.environ, "PYTHONPATH": str(Path.cwd())},
        capture_output=True,
        text=True,
    )
    assert "torch.Size([1, 10])" in ran.stdout, ran.stderr
    before = load_weights(Path("runs/it/network/weights.safetensors"))
    out = there(f"{BASE} {options} --run runs/it")
    assert "the student was trained before" in out
    after = load_weights(Path("runs/it/network/weights.safetensors"))
    assert all(torch.equal(value, after[name]) for name, value in before.items())


def test_an_interrupted_distillation_goes_on_to_the_same_weights(there: Shell, tmp_path: Path) -> None:
    """A night of training would be lost with the machine that it ran on."""
    options = "--epochs 40 --set train.augment=[] --set train.checkpoint_seconds=0.05"
    there(f"{BASE} {options} --run whole")
    command = [sys.executable, "-m", "nasplat", *f"{BASE} {options} --run killed".split()]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    checkpoint = Path("killed/progress/student")
    until = time.monotonic() + 120
    while process.poll() is None and not any(checkpoint.glob("*")) and time.monotonic() < until:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert any(checkpoint.glob("*")) and not Path("killed/network").exists()
    there(f"{BASE} {options} --run killed")
    assert there.code == 0, there.error
    whole, killed = (load_weights(Path(f"{name}/network/weights.safetensors")) for name in ("whole", "killed"))
    assert all(torch.equal(value, killed[name]) for name, value in whole.items())


def test_a_pruned_network_is_a_student_as_well(there: Shell) -> None:
    """What `nasplat prune` wrote could not be taught any more."""
    there("prune --model nets:large --checkpoint large.pth --data digits --macs 0.4 --run runs/small")
    assert there.code == 0, there.error
    there("distill --student runs/small/network --teacher nets:large --teacher-checkpoint large.pth --data digits "
          "--epochs 3 --set train.augment=[] --run runs/it")  # fmt: skip
    assert there.code == 0, there.error
    rows = json.loads(Path("runs/it/results.json").read_text())["rows"]
    assert [row["title"] for row in rows][1:] == ["student before", "student"]
    assert rows[2]["metrics"]["accuracy"] > rows[1]["metrics"]["accuracy"] and rows[2]["macs"] < 0.41 * rows[0]["macs"]
    assert json.loads(Path("runs/it/network/recipe.json").read_text())["operations"]


def test_pruning_is_fine_tuned_by_its_original(there: Shell) -> None:
    """`--distill` would be plain fine-tuning, or teach from the network that is being trained."""
    command = "prune --model nets:large --checkpoint large.pth --data digits --macs 0.3 --epochs 3"
    options = "--set train.augment=[] --set data.labels=false"
    there(f"{command} {options} --distill --run runs/taught")
    assert there.code == 0, there.error  # without labels only a teacher can teach
    there(f"{command} {options} --run runs/plain")
    assert there.code == 2 and "needs labels" in there.error
    there(f"{command} --distill --run runs/labelled --set train.augment=[] "
          '--set train.distill.weights={"logits":1,"hint":1} --set train.distill.pairs={"1":"1","5":"5"}')  # fmt: skip
    assert there.code == 0, there.error


@pytest.mark.parametrize(
    ("options", "wrong"),
    [
        ("--student nets:net --data digits", "needs a teacher"),
        ("--student nets:nat --teacher nets:large --data digits", "no function 'nat'"),
        ("--student nets:net --teacher nets:large --teacher-checkpoint gone.pth --data digits", "there is no gone.pth"),
        ("--student nets:net --teacher nets:net --teacher-checkpoint large.pth --data digits", "of another shape"),
        ("--student nets:net --teacher runs/gone --data digits", "there is no runs/gone"),
        (f"{BASE[8:]} --objective hint", "need pairs"),
        (f'{BASE[8:]} --objective hint --set train.distill.pairs={{"2":"22"}}', "no module '22'"),
        (f"{BASE[8:]} --objective decoupled --set data.labels=false", "decoupled needs labels"),
        (f"{BASE[8:]} --objective softly", "no objective 'softly'"),
        (f"{BASE[8:]} --set student.arguments.classes=7", "the data have 10 classes, and the network answers with 7"),
        (f"{BASE[8:]} --set student.arguments.channels=3", "cannot take these images"),
        (f"{BASE[8:]} --set train.mixup=0.2", "distill and mixup cannot be joined"),
    ],
)
def test_bad_input_is_answered_in_two_lines(there: Shell, options: str, wrong: str) -> None:
    """A traceback in the middle of a training, or a student that learnt nothing, in place of an answer."""
    there(f"distill {options}")
    assert there.code == 2 and wrong in there.error and "Traceback" not in there.error, there.error
    assert not Path("runs/distillation/network").exists()


def test_after_a_mistake_the_same_folder_can_be_used(there: Shell) -> None:
    """Whoever mistypes a name would have to remove a folder first."""
    there(f"{BASE} --objective softly")
    there(f"{BASE} --epochs 1")
    assert there.code == 0, there.error
    there(f"{BASE} --epochs 2")
    assert there.code == 2 and "holds another distillation" in there.error
