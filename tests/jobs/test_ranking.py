"""A ranking by the weights of a source is checked by training alone: what is trained, kept, gone on with and told."""

from __future__ import annotations

import csv
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from nasplat.core.errors import NasplatError
from nasplat.jobs.experiment import check_train, load_experiment
from nasplat.jobs.ranking import rankings, strata
from nasplat.jobs.report import write_results
from nasplat.jobs.runs import open_run
from nasplat.jobs.search import Outcome, prepare, run_and_report
from nasplat.search import baselines
from nasplat.search.evaluate import build, load_data, load_space_of, zero_cost_batch
from nasplat.search.events import Checking
from nasplat.search.records import Record, TrialSpec, read_record
from nasplat.search.seeds import candidate_seed
from nasplat.training.zero_cost import zero_cost_scores

EXPERIMENT = """\
name: ranked
space: {family: nasbench201, cells: 1, channels: 4, operations: [skip_connect, conv_1x1]}
data: {source: digits, train_size: 80}
weights: {train: {steps: 2, batch_size: 16}, check: 4, check_train: {steps: 2, batch_size: 16, augment: []}}
train: {epochs: 0}
search: {strategy: random, trials: 6}
run: {device: cpu}
"""


def begin(folder: Path, *overrides: str, text: str = EXPERIMENT, resume: bool = False, watch: Any = None) -> Outcome:
    (folder / "ranked.yaml").write_text(text)
    prepared = prepare(folder / "ranked.yaml", folder / "run", resume=resume, overrides=overrides)
    return run_and_report(prepared, export="none", on_event=watch or (lambda event: None))


@pytest.fixture(scope="module")
def unchecked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("unchecked")
    begin(folder, "weights.check=0")
    return folder


@pytest.fixture
def searched(unchecked: Path, tmp_path: Path) -> Path:
    """A folder with a search that is complete, and whose ranking was not checked; a copy for every test."""
    shutil.copytree(unchecked, tmp_path / "copy")
    return tmp_path / "copy"


def search(folder: Path, *overrides: str, watch: Any = None) -> Outcome:
    """Goes on with what is there."""
    return begin(folder, *overrides, resume=True, watch=watch)


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[TrialSpec]]:
    """The networks that are trained alone, as they begin."""
    specs: list[TrialSpec] = []
    alone: Callable[..., Record] = baselines.alone

    def counted(spec: TrialSpec, on_progress: Any) -> Record:
        specs.append(spec)
        return alone(spec, on_progress)

    monkeypatch.setattr(baselines, "alone", counted)
    monkeypatch.setattr(baselines, "BASELINES", ("snip",))  # the others take their time
    yield specs


def test_a_ranking_by_weights_is_checked_and_told(searched: Path, trained: list[TrialSpec]) -> None:
    """A ranking by a supernet that nobody checked may be worse than counting parameters."""
    events: list[Any] = []
    [found] = search(searched, watch=events.append).rankings
    run = open_run(searched / "run")
    assert len(trained) == 4 and found.rows[0].count == 4
    assert [row.name for row in found.rows] == ["supernet", "params", "macs", "snip"]
    assert [event.done for event in events if isinstance(event, Checking)][-1] == 4
    best = max(run.candidates, key=lambda one: one.metrics["accuracy"])
    assert best.number in [spec.number for spec in trained]
    for spec in trained:  # as the search would have trained it without a source
        candidate = run.candidate(str(spec.number))
        assert spec.seed == candidate_seed(0, candidate.architecture.digest)
        assert spec.experiment["weights"] is None and spec.experiment["train"]["steps"] == 2
        assert {path.name for path in Path(spec.directory).iterdir()} == {"architecture.json", "record.json"}
    page = (searched / "run/report.html").read_text()
    assert "4 of 6 candidates, drawn over the whole ranking, were trained alone" in page
    assert "4 networks are too few to tell how well ranking by the weights of the supernet does" in page
    rows = list(csv.DictReader((searched / "run/ranking.csv").open()))
    assert [row["score"] for row in rows] == [row.name for row in found.rows]

    before = (searched / "run/ranking.csv").read_text()
    (searched / "run/ranking.csv").unlink()
    write_results(open_run(searched / "run"))
    assert (searched / "run/ranking.csv").read_text() == before
    assert len(trained) == 4


def test_an_interrupted_check_goes_on_and_trains_nothing_twice(searched: Path, trained: list[TrialSpec]) -> None:
    """Twenty trainings are a night's work; and what is trained must not depend on whether it was interrupted."""

    def stop(event: Any) -> None:
        if isinstance(event, Checking) and len([*searched.glob("run/check/*/*/record.json")]) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        search(searched, watch=stop)
    first = [spec.number for spec in trained]
    assert len(first) == 2
    [part] = rankings(open_run(searched / "run"))
    assert "2 more are to be" in part.how and not part.rows
    assert "2 more are to be" in (searched / "run/report.html").read_text()
    [found] = search(searched).rankings
    assert found.rows[0].count == 4 and len({spec.number for spec in trained}) == len(trained) == 4

    search(searched)
    assert len(trained) == 4
    shutil.rmtree(searched / "run/check")
    assert search(searched).rankings == [found]
    assert {spec.number for spec in trained[4:]} == {spec.number for spec in trained[:4]}


def test_a_larger_check_keeps_what_was_trained(searched: Path, trained: list[TrialSpec]) -> None:
    """More networks are what a verdict asks for: those that are there count."""
    search(searched, "weights.check=3")
    [found] = search(searched, "weights.check=20").rankings
    assert len(trained) == found.rows[0].count == 6
    assert "6 of 6 candidates" in found.how
    assert open_run(searched / "run").experiment.weights.check == 20  # type: ignore[union-attr]
    search(searched, "weights.check_train.steps=3")
    assert len(trained) == 10, "another schedule is another truth"


def test_failed_trainings_are_told_and_left_out(searched: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that diverges must neither end the check nor count as accurate."""
    alone, begun = baselines.alone, []

    def failing(spec: TrialSpec, on_progress: Any) -> Record:
        begun.append(spec.number)
        return Record("failed", reason="diverged") if len(begun) == 1 else alone(spec, on_progress)

    monkeypatch.setattr(baselines, "alone", failing)
    [found] = search(searched).rankings
    assert "1 training failed" in found.how and found.rows[0].count == 3


@pytest.mark.parametrize(
    ("overrides", "why"),
    [
        (["search.trials=2"], "fewer than 3"),
        (["train.steps=1"], "trained on from there"),
    ],
)
def test_a_ranking_without_a_check_says_so(
    tmp_path: Path, trained: list[TrialSpec], overrides: list[str], why: str
) -> None:
    """A front that rests on unchecked weights looks like any other."""
    [found] = begin(tmp_path, *overrides).rankings
    assert not trained and not found.rows and why in found.how
    page = (tmp_path / "run/report.html").read_text()
    assert why in page and "do not trust it" in page
    assert not (tmp_path / "run/ranking.csv").exists()


def test_a_check_that_is_switched_off_says_so(searched: Path, trained: list[TrialSpec]) -> None:
    """Also where there was one before, whose table would now be mistaken for a result of this search."""
    search(searched, "weights.check=3")
    assert (searched / "run/ranking.csv").exists()
    [found] = search(searched, "weights.check=0").rankings
    assert not found.rows and "weights.check is 0" in found.how
    assert not (searched / "run/ranking.csv").exists()
    assert "weights.check is 0" in (searched / "run/report.html").read_text()


def test_a_screen_by_weights_is_checked_by_what_it_let_pass(tmp_path: Path, trained: list[TrialSpec]) -> None:
    """These were trained alone already: only the baselines are missing."""
    text = EXPERIMENT.replace("epochs: 0", "steps: 1, batch_size: 16, augment: []")
    text = text.replace("trials: 6", "trials: 8, screen: {by: weights, keep: 0.3, after: 5}")
    [found] = begin(tmp_path, text=text).rankings
    run = open_run(tmp_path / "run")
    assert not trained and found.rows[0].count == len(run.candidates)
    assert [row.name for row in found.rows] == ["supernet", "params", "macs", "snip"]
    assert "passed the screen" in found.how
    [without] = begin(tmp_path, "weights.check=0", text=text, resume=True).rankings
    assert [row.name for row in without.rows] == ["supernet", "params", "macs"]


def test_baselines_are_those_of_untrained_networks(searched: Path) -> None:
    """Of a trained network they would know what they are to foretell."""
    search(searched, "weights.check=3")
    run = open_run(searched / "run")
    [folder] = [path for path in run.files.check.iterdir() if path.is_dir()]
    candidate = next(one for one in run.candidates if (folder / one.name).exists())
    data = load_data(run.experiment.data)
    seed = candidate_seed(0, candidate.architecture.digest)
    network = build(load_space_of(run.experiment, data), candidate.architecture, seed)
    batch = zero_cost_batch(data, torch.device("cpu"), 0)
    names = ["synflow", "jacob_cov", "snip", "grad_norm"]
    wanted = zero_cost_scores(network, batch.views[0], batch.labels, names)
    record = read_record(folder / candidate.name)
    assert record is not None and set(baselines.BASELINES) == {*names, "naswot"}
    assert {name: record.metrics[name] for name in wanted} == pytest.approx(wanted, rel=1e-5)


def test_strata_cover_the_ranking_whatever_was_done() -> None:
    """Only the best would tell nothing of the order, and drawn freely they might all be bad."""
    rng = np.random.default_rng(0)
    for _ in range(50):
        size, count = int(rng.integers(1, 40)), int(rng.integers(1, 25))
        done = list(rng.random(size) < rng.random())
        chosen = strata(done, count, np.random.default_rng(7))
        parts = np.array_split(np.arange(size), min(size, count))
        assert len(chosen) == len(parts) and all(place in part for place, part in zip(chosen, parts, strict=True))
        fresh = strata([False] * size, count, np.random.default_rng(7))
        assert fresh[0] == 0  # the best
        for place, part, first in zip(chosen, parts, fresh, strict=True):
            assert place == first if not any(done[each] for each in part) else done[place]
        half = [place in fresh[::2] for place in range(size)]
        assert strata(half, count, np.random.default_rng(7)) == fresh


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["weights.check=2"], "check: 2 trained networks tell nothing"),
        (["weights.check=-1"], "weights.check"),
        (["weights.check_train={epoch: 2}"], "weights.check_train has no key .epoch."),
        (["weights.check_train={lr: fast}"], "weights.check_train.lr"),
        (["weights.check_train={epochs: 0}"], "0 epochs check nothing"),
        (["search.screen={by: weights}"], "trains nothing afterwards"),
    ],
)
def test_bad_input_is_refused_before_anything_is_trained(tmp_path: Path, overrides: list[str], message: str) -> None:
    """A typing error must not come to light after the search."""
    with pytest.raises(NasplatError, match=message):
        begin(tmp_path, *overrides)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("overrides", "wanted"),
    [
        (["weights.check_train={}"], {"epochs": 5, "steps": None, "batch_size": 128}),
        (["weights.check_train={batch_size: 32}"], {"epochs": 5, "batch_size": 32}),
        (["weights.check_train={}", "final.train={epochs: 9, lr: 0.2}"], {"epochs": 9, "lr": 0.2}),
        (["weights.check_train={}", "final.train={lr: 0.2}"], {"epochs": 5, "lr": 0.2}),
        (["weights.check_train={seconds: 3}", "final.train={lr: 0.2}"], {"seconds": 3, "epochs": None, "lr": 0.05}),
    ],
)
def test_networks_are_trained_as_the_final_ones_unless_told(
    tmp_path: Path, overrides: list[str], wanted: dict[str, Any]
) -> None:
    """0 epochs, which is how candidates are scored, would check a ranking against nothing."""
    (tmp_path / "ranked.yaml").write_text(EXPERIMENT)
    settings = check_train(load_experiment(tmp_path / "ranked.yaml", overrides))
    assert {name: getattr(settings, name) for name in wanted} == wanted
