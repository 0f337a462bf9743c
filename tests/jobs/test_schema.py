"""Editors complete and check experiment files by the committed schema; a stale one would mislead them."""

import json
from pathlib import Path

import jsonschema
import pytest
import yaml

from nasplat.jobs.schema import experiment_schema, pruning_schema

ROOT = Path(__file__).resolve().parents[2]


def test_the_committed_schema_is_current() -> None:
    committed = json.loads((ROOT / "experiments/experiment.schema.json").read_text())
    assert committed == experiment_schema(), "renew it: nasplat schema -o experiments/experiment.schema.json"


@pytest.mark.parametrize("path", sorted((ROOT / "experiments").glob("*.yaml")), ids=lambda path: path.name)
def test_every_experiment_that_comes_along_is_valid(path: Path) -> None:
    jsonschema.validate(yaml.safe_load(path.read_text()), experiment_schema())


def test_pruning_files_have_a_schema() -> None:
    check = jsonschema.Draft202012Validator(pruning_schema()).is_valid
    assert check({"model": "m:f", "budget": {"macs": 0.5}, "train": {"objective": "supervised"}})
    assert not check({"budget": {"macs": 0.5}})
    assert not check({"model": "m:f", "importance": {"criterion": "l3"}})
    assert not check({"model": "m:f", "train": {"objective": "simclar"}})


def test_the_schema_refuses_what_the_loader_refuses() -> None:
    check = jsonschema.Draft202012Validator(experiment_schema()).is_valid
    assert check({"space": "x.yaml", "train": {"objective": "simclr"}, "score": {"probe": "mine:probe"}})
    assert check({"space": {"family": "darts", "nodes": 3}})
    assert not check({"space": {"family": "dart"}})
    assert not check({"space": "x.yaml", "train": {"objective": "simclar"}})
    assert not check({"space": "x.yaml", "trian": {}})
    assert not check({})
