"""A person who mistypes an experiment file learns where, what is allowed, and what was probably meant."""

from pathlib import Path

import numpy as np
import pytest

from nasplat.core.errors import NasplatError
from nasplat.core.experiment import Experiment
from nasplat.data.augment import AUGMENTATIONS
from nasplat.data.datasets import load_dataset
from nasplat.jobs.experiment import KNOWN_NAMES, METRICS, final_train, load_experiment, to_plain
from nasplat.search.evaluate import evaluate
from nasplat.search.records import TrialSpec
from nasplat.spaces.families import make_space

GOOD = """\
name: digits-cells
space: {family: darts, channels: 8}
data: {source: digits}
train:
  epochs: 2
  lr: 3e-2
search:
  strategy: random
  trials: 4
"""


def write(folder: Path, text: str | bytes, name: str = "search.yaml") -> Path:
    path = folder / name
    if isinstance(text, bytes):
        path.write_bytes(text)
    else:
        path.write_text(text)
    return path


def complaint(folder: Path, text: str | bytes, *overrides: str) -> NasplatError:
    with pytest.raises(NasplatError) as caught:
        load_experiment(write(folder, text), overrides)
    return caught.value


def test_a_good_file_is_read_with_its_defaults(tmp_path: Path) -> None:
    experiment = load_experiment(write(tmp_path, GOOD))
    assert experiment.name == "digits-cells"
    assert experiment.train.lr == 0.03
    assert experiment.space == {"family": "darts", "channels": 8}
    assert experiment.search.seed == 0
    assert Experiment.model_validate(to_plain(experiment)) == experiment


def test_the_quickstart_is_found_from_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert load_experiment(Path("experiments/quickstart.yaml")).name == "quickstart"


def test_without_a_name_the_file_lends_its_own(tmp_path: Path) -> None:
    assert load_experiment(write(tmp_path, "space: {family: darts}\n", "cells.yaml")).name == "cells"


def test_empty_sections_mean_their_defaults(tmp_path: Path) -> None:
    assert load_experiment(write(tmp_path, "space: {family: darts}\ntrain:\n")).train.epochs == 5


@pytest.mark.parametrize(
    ("text", "message", "advice"),
    [
        ("", "search.yaml is empty", "space:"),
        ("# only a comment\n", "is empty", "space:"),
        ("- a\n- b\n", "line 1: expected keys with values, found a list", "name:"),
        ("just text", "found text", "name:"),
        ("name: [unclosed\nspace: x: y\n", "line 2: this is not YAML", "colons"),
        ("name: x\n\tspace: y\n", "this is not YAML", "indentation"),
        (b"\xff\xfe\x00binary\x80", "is not a text file", "YAML"),
        (GOOD.replace("  lr:", "  learning_rate:"), "line 6: section train has no key 'learning_rate'", "lr"),
        (
            GOOD.replace("  epochs: 2", "  epoch: 2"),
            "line 5: section train has no key 'epoch'",
            "did you mean 'epochs'?",
        ),
        (GOOD.replace("search:", "serach:"), "line 7: an experiment has no key 'serach'", "did you mean 'search'?"),
        (GOOD.replace("random", "randon"), "line 8: search.strategy cannot be 'randon'", "did you mean 'random'?"),
        (GOOD.replace("random", "randon"), "line 8", "random, tpe, nsga2"),
        (
            GOOD.replace("trials: 4", "trials: many"),
            "line 9: search.trials cannot be 'many'",
            "a whole number at least 1",
        ),
        (GOOD.replace("trials: 4", "trials: 0"), "line 9: search.trials cannot be 0", "at least 1"),
        (GOOD.replace("lr: 3e-2", "lr: -1"), "line 6: train.lr cannot be -1", "a number above 0"),
        (GOOD.replace("lr: 3e-2", "steps: 9"), "line 4: train: a budget is given once", ""),
        (
            GOOD.replace("lr: 3e-2", "epochs: 9"),
            "line 6: the key 'epochs' stands there a second time",
            "one of the two",
        ),
        (
            GOOD.replace("lr: 3e-2", "objective: simclar"),
            "train.objective cannot be 'simclar'",
            "did you mean 'simclr'?",
        ),
        (GOOD.replace("lr: 3e-2", "augment: [crpo]"), "line 6: train.augment cannot be 'crpo'", "did you mean 'crop'?"),
        (GOOD.replace("lr: 3e-2", "channels_last: perhaps"), "line 6: train.channels_last cannot be 'perhaps'", "auto"),
        (GOOD.replace("name: digits-cells", "1: x"), "line 1: the key 1 is not text", "quote it"),
        (GOOD.replace("space:", "# space:"), "the key space is missing", "add it"),
        (GOOD.replace("darts", "dart"), "line 2: there is no family 'dart'", "did you mean 'darts'?"),
        (GOOD.replace("channels", "chanels"), "line 2: the family darts has no parameter 'chanels'", "'channels'?"),
        (GOOD.replace("{family: darts, channels: 8}", "{channels: 8}"), "line 2: the space names no family", "darts"),
        (
            GOOD.replace("{family: darts, channels: 8}", "no/such.yaml"),
            "line 2: there is no space file",
            "nasplat spaces",
        ),
        (GOOD + "final:\n  train: {epoch: 3}\n", "line 11: section final.train has no key 'epoch'", "'epochs'?"),
        (GOOD + "final:\n  train: {lr: no}\n", "line 11: final.train.lr cannot be False", "a number above 0"),
        (GOOD + "score: {minimise: [macs, macs]}\n", "line 10: score: a metric is listed twice", ""),
        (
            GOOD + "score: {minimise: [mac]}\n",
            "line 10: score.minimise: there is no metric 'mac'",
            "did you mean 'macs'?",
        ),
        (
            GOOD.replace("trials: 4", "constraints: {parms: {max: 10}}"),
            "line 9: search.constraints: there is no metric 'parms'",
            "did you mean 'params'?",
        ),
        (GOOD.replace("lr: 3e-2", "objective: simclr"), "simclr trains no classifier", ""),
        (GOOD + "score: {minimise: macs}\n", "line 10: score.minimise cannot be 'macs'", "a list such as"),
        (GOOD.replace("{source: digits}", "{path: nowhere}"), "line 3: data.path: there is no nowhere", "looked for"),
        (GOOD.replace("trials: 4", "constraints: {params: {max: big}}"), "search.constraints.params.max", "a number"),
        (
            GOOD.replace("trials: 4", "constraints: {params: {most: 1}}"),
            "search.constraints.params has no key",
            "min, max",
        ),
    ],
)
def test_what_is_wrong_is_answered_with_place_and_advice(
    tmp_path: Path, text: str | bytes, message: str, advice: str
) -> None:
    error = complaint(tmp_path, text)
    assert message in error.message
    assert advice in error.advice
    assert "search.yaml" in error.message
    assert len(str(error).splitlines()) <= 2


def test_all_mistakes_are_told_at_once_in_the_order_of_the_file(tmp_path: Path) -> None:
    text = GOOD.replace("space:", "spase:").replace("epochs: 2", "epoch: 2").replace("lr:", "zzz:")
    error = complaint(tmp_path, text.replace("random", "randon"), "run.worker=2")
    assert error.message == "the experiment has 5 mistakes"
    for line, (place, said) in zip(
        error.advice.splitlines(),
        [
            ("line 2: an experiment has no key 'spase'", "; did you mean 'space'?"),
            ("line 5: section train has no key 'epoch'", "; did you mean 'epochs'?"),
            ("line 6: section train has no key 'zzz'", "; allowed: objective, distill, epochs, "),
            ("line 8: search.strategy cannot be 'randon'", "; did you mean 'random'?"),
            ("--set run.worker=2: section run has no key 'worker'", "; did you mean 'workers'?"),
        ],
        strict=True,
    ):
        assert place + said in line


def test_a_missing_file_names_its_neighbours(tmp_path: Path) -> None:
    write(tmp_path, GOOD, "quickstart.yaml")
    with pytest.raises(NasplatError) as caught:
        load_experiment(tmp_path / "quikstart.yaml")
    assert "there is no file" in caught.value.message
    assert "did you mean 'quickstart.yaml'?" in caught.value.advice
    with pytest.raises(NasplatError, match="is a folder"):
        load_experiment(tmp_path)


def test_a_wrong_key_in_the_file_of_the_space_is_placed_there(tmp_path: Path) -> None:
    write(tmp_path, "family: darts\n\nnodez: 3\n", "mine.yaml")
    error = complaint(tmp_path, "space: mine.yaml\n")
    assert "mine.yaml, line 3" in error.message
    assert "did you mean 'nodes'?" in error.advice


def test_paths_are_looked_up_beside_the_file_then_here_then_in_nasplat(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inner = tmp_path / "inner"
    inner.mkdir()
    write(inner, "family: darts\nnodes: 2\n", "mine.yaml")
    write(tmp_path, "family: darts\nnodes: 3\n", "mine.yaml")
    write(tmp_path, "family: darts\nnodes: 3\n", "here.yaml")
    monkeypatch.chdir(tmp_path)
    assert load_experiment(write(inner, "space: mine.yaml\n")).space == {"family": "darts", "nodes": 2}
    assert load_experiment(write(inner, "space: here.yaml\n")).space == {"family": "darts", "nodes": 3}
    bundled = load_experiment(write(inner, "space: search_spaces/darts.yaml\n")).space
    assert isinstance(bundled, dict) and bundled["family"] == "darts"
    data = load_experiment(write(inner, "space: mine.yaml\ndata: {path: ../inner}\n")).data
    assert data.path == str(inner.resolve())


def test_settings_on_the_command_line_win_and_are_named_in_errors(tmp_path: Path) -> None:
    path = write(tmp_path, GOOD)
    experiment = load_experiment(
        path, ["train.steps=7", "search.constraints.params.max=300_000", "score.minimise=[params]", "name=other"]
    )
    assert (experiment.train.steps, experiment.train.epochs) == (7, None)
    assert experiment.search.constraints["params"].max == 300_000
    assert experiment.score.minimise == ("params",)
    assert experiment.name == "other"
    assert "--set train.epoch=1" in complaint(tmp_path, GOOD, "train.epoch=1").message
    assert "expected key=value" in complaint(tmp_path, GOOD, "train.epochs").message
    assert "name is not a section" in complaint(tmp_path, GOOD, "name.x=1").message


def test_the_full_schedule_overrides_the_budget_of_the_search(tmp_path: Path) -> None:
    text = GOOD.replace("epochs: 2", "steps: 2") + "final:\n  train: {epochs: 50, drop_path: 0.2}\n"
    settings = final_train(load_experiment(write(tmp_path, text)))
    assert (settings.epochs, settings.steps, settings.drop_path, settings.lr) == (50, None, 0.2, 0.03)


def test_the_names_that_are_checked_are_those_that_exist() -> None:
    """Otherwise a new objective could not be used, because the check before it does not know it."""
    from nasplat.training.objectives import OBJECTIVES
    from nasplat.training.task_weighting import WEIGHTINGS

    assert set(KNOWN_NAMES["train", "objective"]) == set(OBJECTIVES)
    assert set(KNOWN_NAMES["train", "augment"]) == set(AUGMENTATIONS)
    assert set(KNOWN_NAMES["train", "weighting"]) == set(WEIGHTINGS)


def test_the_metrics_that_are_allowed_are_those_that_are_measured(tmp_path: Path) -> None:
    """A name that is allowed and never measured would be found out after the first training only."""
    text = GOOD.replace("{family: darts, channels: 8}", "{family: nasbench201, cells: 1, channels: 4}")
    experiment = load_experiment(
        write(tmp_path, text.replace("epochs: 2", "steps: 1") + "score: {probe: linear, minimise: [latency]}\n")
    )
    assert isinstance(experiment.space, dict)
    space = make_space(experiment.space, load_dataset(experiment.data).problem)
    architecture = space.sample(np.random.default_rng(0)).to_json()
    spec = TrialSpec(0, experiment.model_dump(mode="json"), architecture, 0, str(tmp_path), "cpu")
    assert {*evaluate(spec, lambda progress: None).metrics, "delta_m"} == set(METRICS)  # that one is of several tasks


def test_the_probes_that_are_checked_are_those_that_exist(tmp_path: Path) -> None:
    from nasplat.training.evaluate import PROBES

    assert set(KNOWN_NAMES["score", "probe"]) == {"none", *PROBES}
    assert load_experiment(write(tmp_path, GOOD + "score: {probe: none}\n")).score.probe is None
