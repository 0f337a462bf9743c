"""A mistake that would stop every candidate is told before the first one is trained."""

from pathlib import Path
from typing import Any

import pytest

from nasplat.core.errors import NasplatError
from nasplat.core.experiment import Data, Score, Train
from nasplat.data.datasets import load_dataset
from nasplat.training.check import check

OWN = """\
def metric(network, dataset, device):
    return 1.0


def short(network):
    return 1.0


def objective(settings):
    return None
"""


@pytest.fixture(autouse=True)
def _own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_checks.py").write_text(OWN)
    monkeypatch.syspath_prepend(str(tmp_path))


@pytest.mark.parametrize(
    ("labels", "train", "score", "told"),
    [
        (True, {"augment": ["flop"]}, {}, "no augmentation 'flop'"),
        (True, {"objective": "own_checks:objectiv"}, {}, "has no function 'objectiv'"),
        (True, {"objective": "own_checks:objective"}, {}, "called with \\(settings, problem, dataset_size\\)"),
        (True, {}, {"maximise": ["own_checks:short"]}, "called with \\(network, dataset, device\\)"),
        (True, {"objective": "simclr"}, {"probe": "own_checks:short"}, "called with"),
        (False, {}, {}, "objective supervised needs labels"),
        (False, {"objective": "simclr"}, {"probe": "linear"}, "accuracy needs labels"),
        (False, {"objective": "simclr"}, {}, "accuracy needs labels"),
    ],
)
def test_it_is_told_what_cannot_work(labels: bool, train: dict[str, Any], score: dict[str, Any], told: str) -> None:
    dataset = load_dataset(Data(labels=labels))
    with pytest.raises(NasplatError, match=told) as caught:
        check(dataset, Train(**train), Score(**score))
    assert caught.value.advice


@pytest.mark.parametrize("score", [{"maximise": ["own_checks:metric"]}, {"probe": "own_checks:metric"}])
def test_images_without_labels_can_be_judged_by_a_function_of_ones_own(score: dict[str, Any]) -> None:
    check(load_dataset(Data(labels=False)), Train(objective="simclr"), Score(**score))
