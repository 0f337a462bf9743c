"""`nasplat initialise` as a person meets it."""

from pathlib import Path

import torch

from nasplat.artifacts.weights import load_weights
from tests.cli.conftest import Shell

EXPERIMENT = """
space: {family: nasbench201, cells: [1], channels: 4}
weights:
  source: graph_hypernetwork
  options: {networks: 1, width: 8, channels: 4, kernel: 3}
  train: {steps: 2}
train: {epochs: 0}
search: {strategy: random, trials: 1}
"""
MODEL = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, classes):
        super().__init__()
        self.body = nn.Conv2d(1, 6, 3, padding=1)
        self.gain = nn.Parameter(torch.ones(1))
        self.head = nn.Linear(6, classes)

    def forward(self, images):
        return self.head(self.body(images).relu().mean((2, 3)) * self.gain)
"""


def test_a_search_trains_what_initialises_a_network(shell: Shell) -> None:
    """The whole way on the command line, and a file that the network loads."""
    Path("ghn.yaml").write_text(EXPERIMENT)
    Path("startable.py").write_text(MODEL)
    shell("search ghn.yaml --export none")
    assert shell.code == 0, shell.error
    told = shell("initialise --model startable:Net --weights runs/ghn --out it.safetensors --set arguments.classes=3")
    assert shell.code == 0, shell.error
    assert "81 of 82 weights" in told and "kept the value that the model gives them: gain" in told
    scope: dict = {}
    exec(MODEL, scope)
    network = scope["Net"](3)
    network.load_state_dict(load_weights("it.safetensors"))
    assert network(torch.zeros(2, 1, 8, 8)).shape == (2, 3)

    shell("initialise --model startable:Net --weights runs/ghn --set arguments.classes=3 --input 2,8,8")
    assert shell.code == 2 and "does not run on an image of 2×8×8" in shell.error
    shell("initialise --model startable:Net --weights runs/ghn --set argument.classes=3")
    assert shell.code == 2 and "argument" in shell.error
    shell("initialise --model startable:Net --weights runs/none --set arguments.classes=3")
    assert shell.code == 2 and "runs/none" in shell.error
