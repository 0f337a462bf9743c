"""Searches on a real Ray cluster: the same answer as inline, and nothing lost whatever dies."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from nasplat.artifacts.run_directory import RunDirectory
from nasplat.core.errors import NasplatError
from nasplat.core.experiment import Experiment
from nasplat.data.datasets import load_dataset
from nasplat.jobs import ray_train
from nasplat.jobs.cluster import compared, examine_cluster
from nasplat.search.driver import Result, run_search
from nasplat.search.events import Event, Progress, Told
from nasplat.search.history import History
from nasplat.search.ray_connection import connect
from nasplat.search.ray_executor import RayExecutor, fitting_share
from nasplat.search.records import TrialSpec, run_trial
from nasplat.spaces.families import make_space
from tests.search.ray_cluster import Driver, cluster
from tests.search.toys import ToySpace, experiment, table

pytestmark = pytest.mark.timeout(240)
TOYS = "tests.search.toys"
HERE = "tests.search.ray_cluster"


@pytest.fixture(scope="module")
def four() -> Iterator[Any]:
    """Four nodes with a CPU each."""
    import ray

    with cluster(4) as own:
        connect(own.address)  # once: every connection takes seconds
        yield own
        ray.shutdown()


def search(
    directory: Path,
    evaluate: str = "quick",
    trials: int = 12,
    address: str | None = None,
    executor: dict[str, Any] | None = None,
    on_event: Any = lambda event: None,
    strategy: str = "random",
    module: str = TOYS,
    **sections: Any,
) -> Result:
    directory.mkdir(exist_ok=True)
    name = f"{module}:{evaluate}"
    run = sections.pop("run", {"workers": 4})
    chosen = experiment(strategy, trials, run=run, **sections)
    own = None
    if address is not None:
        own = RayExecutor(name, address=address, workers=run["workers"], storage=directory, **(executor or {}))
    return run_search(
        chosen, RunDirectory(directory), ToySpace(3), resume=True, evaluate=name, executor=own, on_event=on_event
    )


@pytest.mark.parametrize("strategy", ["random", "gp"])
def test_a_cluster_fills_the_table_that_one_process_fills(four: Any, tmp_path: Path, strategy: str) -> None:
    """A result that depends on where it was computed could not be repeated by anyone else."""
    ray = search(tmp_path / "ray", "slow", address=four.address, strategy=strategy)
    inline = search(tmp_path / "inline", "slow", strategy=strategy)
    assert len(ray.history.complete) == 12
    assert table(ray.history) == table(inline.history)


def test_real_trainings_give_the_same_scores_on_a_cluster(four: Any, tmp_path: Path) -> None:
    """The data set is read once and shared: a wrong copy would be trained on without anybody noticing."""
    plain = {
        "name": "small",
        "space": {"family": "nasbench201", "cells": 1, "channels": 4},
        "data": {"source": "digits", "train_size": 120},
        "train": {"steps": 3, "batch_size": 16, "augment": []},
        "search": {"strategy": "random", "trials": 3},
    }
    found = {}
    for executor in ("inline", "ray"):
        run = {"executor": executor, "workers": 2, "device": "cpu"}
        run |= {"address": four.address} if executor == "ray" else {}
        chosen = Experiment.model_validate({**plain, "run": run})
        directory = tmp_path / executor
        directory.mkdir()
        history = run_search(chosen, RunDirectory(directory)).history
        found[executor] = {
            one.digest: {name: value for name, value in one.metrics.items() if "seconds" not in name}
            for one in history.complete
        }
    assert found["ray"] == found["inline"] and len(found["ray"]) == 3


def test_early_stopping_pauses_and_goes_on_under_ray(four: Any, tmp_path: Path) -> None:
    """Tune's own schedulers refuse several metrics."""
    stopping = {"early_stopping": {"rule": "halving", "bracket": 6}}
    ray = search(tmp_path / "ray", "stepwise", address=four.address, search=stopping)
    inline = search(tmp_path / "inline", "stepwise", search=stopping)
    assert {"stopped", "complete"} == {one.state for one in ray.history}
    assert {one.digest for one in ray.history.complete} == {one.digest for one in inline.history.complete}
    assert all(one.metrics["resumed_at"] > 0 for one in ray.history.complete)


def test_a_killed_worker_is_replaced_and_its_trial_run_again_once(four: Any, tmp_path: Path) -> None:
    """One dead machine must not cost a candidate; a candidate that kills its worker must not run for ever."""
    result = search(tmp_path, "suicidal", trials=4, address=four.address, search={"seed": 5})
    for one in result.history:
        always = one.values["op0"] == "none"
        assert one.state == ("failed" if always else "complete")
        if always:
            assert "died 2 times" in one.reason
    assert {one.state for one in result.history} == {"complete", "failed"}


def test_what_was_in_flight_goes_on_from_its_checkpoint(four: Any, tmp_path: Path) -> None:
    """A training of two days must not begin anew because its machine was restarted."""
    result = search(tmp_path, "falling", trials=4, address=four.address)
    assert [one.state for one in result.history] == ["complete"] * 4
    assert {one.metrics["resumed_at"] for one in result.history} == {2.0}


def test_several_workers_train_one_network_through_ray_train(four: Any, tmp_path: Path) -> None:
    """The final training may need more GPUs than one machine has."""
    plain = {
        "name": "small",
        "space": {"family": "nasbench201", "cells": 1, "channels": 4},
        "data": {"source": "digits", "train_size": 120},
        "train": {"steps": 3, "batch_size": 16, "augment": []},
        "run": {"executor": "ray", "address": four.address, "processes": 2, "device": "cpu"},
    }
    chosen = Experiment.model_validate(plain)
    space = make_space(chosen.space, load_dataset(chosen.data).problem)
    architecture = space.canonical(dict.fromkeys(space.choices, "conv_3x3"))
    spec = TrialSpec(0, chosen.model_dump(mode="json"), architecture.to_json(), 1, str(tmp_path / "trial"), "cpu")
    record = run_trial(ray_train.evaluate, spec, lambda fields: None)
    assert record.state == "complete", record.reason
    assert 0 <= record.metrics["accuracy"] <= 1
    assert (tmp_path / "trial/weights.safetensors").exists()
    many = {**spec.experiment, "run": {**plain["run"], "processes": 99}}
    with pytest.raises(NasplatError, match="fewer CPUs"):
        ray_train.evaluate(replace(spec, experiment=many), lambda fields: None)


def kill_after_each(event: Event) -> None:
    if isinstance(event, Told):
        os.kill(int(event.proposal.metrics["process"]), signal.SIGKILL)


def test_a_worker_that_dies_between_trials_costs_none(four: Any, tmp_path: Path) -> None:
    """Tune gives the next trial to the dead worker, and then gives that trial up, which has not begun."""
    chosen = {"address": four.address, "run": {"workers": 1}, "on_event": kill_after_each}
    result = search(tmp_path, "named", trials=3, module=HERE, **chosen)
    assert [one.state for one in result.history] == ["complete"] * 3
    assert len({one.metrics["process"] for one in result.history}) == 3


def test_workers_that_never_live_long_enough_end_the_search(four: Any, tmp_path: Path, monkeypatch: Any) -> None:
    """A node that kills whatever starts there would otherwise keep the search busy for ever."""
    monkeypatch.setattr("nasplat.search.ray_executor.STARTS", 1)
    chosen = {"address": four.address, "run": {"workers": 1}, "on_event": kill_after_each}
    with pytest.raises(NasplatError, match="dead before trial 1 began"):
        search(tmp_path, "named", trials=3, module=HERE, **chosen)


def test_stopping_now_frees_the_cluster_also_of_what_waits(four: Any, tmp_path: Path, monkeypatch: Any) -> None:
    """Ctrl-C twice: whoever shares the cluster must get it back, also when more was asked of it than it has."""
    import ray

    monkeypatch.setattr("nasplat.search.ray_executor.JOIN_SECONDS", 8.0)
    before = threading.active_count()

    def stop(event: Event) -> None:
        if isinstance(event, Progress):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        search(tmp_path, "endless", address=four.address, run={"workers": 9}, module=HERE, on_event=stop)
    assert threading.active_count() <= before
    until = time.monotonic() + 20
    while ray.available_resources().get("CPU") != ray.cluster_resources()["CPU"] and time.monotonic() < until:
        time.sleep(0.1)
    assert ray.available_resources().get("CPU") == ray.cluster_resources()["CPU"]


def test_short_trials_spread_over_all_workers(four: Any, tmp_path: Path) -> None:
    """Tune would run them one after the other on the worker that was there first."""
    result = search(tmp_path, "short", trials=40, address=four.address, module=HERE)
    assert len({one.metrics["process"] for one in result.history}) > 1


def test_a_node_dies_and_another_joins(four: Any, tmp_path: Path) -> None:
    """Spot instances do that every day."""
    lost = four.add_node(num_cpus=1)
    told = 0

    def disturb(event: Event) -> None:
        nonlocal told
        if isinstance(event, Told):
            told += 1
            if told == 5:
                four.remove_node(lost, allow_graceful=False)
                four.add_node(num_cpus=1)

    ray = search(tmp_path / "ray", "slow", trials=25, address=four.address, run={"workers": 5}, on_event=disturb)
    inline = search(tmp_path / "inline", "slow", trials=25, run={"workers": 5})
    assert told == 25
    assert table(ray.history) == table(inline.history)


def test_a_trial_that_hangs_is_ended(four: Any, tmp_path: Path) -> None:
    """It would hold its part of the cluster until somebody looks."""
    limit, events = {"trial_seconds": 12.0}, []
    result = search(
        tmp_path,
        "eternal",
        trials=5,
        address=four.address,
        executor=limit,
        search={"seed": 5},
        on_event=events.append,
    )
    assert any(isinstance(event, Progress) for event in events)  # until then it could be watched
    for one in result.history:
        assert one.state == ("failed" if one.values["op0"] == "none" else "complete")
        if one.state == "failed":
            assert "longer than run.trial_seconds = 12" in one.reason
    assert {one.state for one in result.history} == {"complete", "failed"}


def test_a_trial_that_hangs_outside_python_is_ended(four: Any, tmp_path: Path) -> None:
    """A deadlock in a library would hold its part of the cluster for ever: no thread of its process can end it."""
    chosen = {"address": four.address, "run": {"workers": 1}, "executor": {"trial_seconds": 1.0}}
    result = search(tmp_path, "stuck", trials=1, module=HERE, **chosen)
    assert [one.state for one in result.history] == ["failed"]
    assert "in stuck" in next(tmp_path.glob("trials/*/log.txt")).read_text()  # where it hung


def test_modules_beside_the_experiment_are_found_on_the_cluster(four: Any, tmp_path: Path, monkeypatch: Any) -> None:
    """They are found on a laptop; Ray itself passes on the current folder only."""
    (tmp_path / "mine_beside.py").write_text("from tests.search.toys import quick\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    result = search(tmp_path / "run", "quick", trials=2, module="mine_beside", address=four.address)
    assert [one.state for one in result.history] == ["complete"] * 2


def test_what_concerns_all_trials_ends_the_search_with_its_advice(four: Any, tmp_path: Path) -> None:
    """Without it a hundred candidates fail because a folder is not mounted."""
    with pytest.raises(NasplatError, match="the folder of images is gone") as caught:
        search(tmp_path, "no_data", address=four.address)
    assert caught.value.advice == "mount it again"
    with pytest.raises(NasplatError, match="no function 'nothing'"):
        search(tmp_path / "other", "nothing", address=four.address, executor={})


def test_a_cluster_that_is_not_there_or_too_small_is_told(four: Any, tmp_path: Path) -> None:
    """Ray waits without a word."""
    started = time.monotonic()
    with pytest.raises(NasplatError, match=r"no Ray cluster at 127\.0\.0\.1:9") as caught:
        search(tmp_path, address="127.0.0.1:9")
    assert "scripts/ray_cluster" in caught.value.advice
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        threading.Thread(
            target=lambda: other.accept()[0].sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n"), daemon=True
        ).start()
        with pytest.raises(NasplatError, match="something else than Ray listens there"):
            search(tmp_path, address=f"127.0.0.1:{port}")
    assert time.monotonic() - started < 30
    with pytest.raises(NasplatError, match="must run on a node"):
        search(tmp_path, address="ray://127.0.0.1:10001")
    with pytest.raises(NasplatError, match="asks for 9 CPU, and the nodes have 1 CPU; 1 CPU"):
        search(tmp_path, address=four.address, executor={"cpus": 9})
    with pytest.raises(NasplatError, match=r"0\.5 GPU"):
        search(tmp_path, address=four.address, executor={"gpus": 0.5})


def test_a_trial_that_does_not_fit_beside_others_gets_a_gpu_of_its_own(four: Any, tmp_path: Path) -> None:
    """A large network would be called infeasible only because small ones ran beside it."""
    lent = four.add_node(num_cpus=1, num_gpus=1)  # Ray counts what it is told
    try:
        result = search(tmp_path, "greedy", trials=6, address=four.address, executor={"gpus": 0.5}, search={"seed": 5})
    finally:
        four.remove_node(lent)
    for one in result.history:
        needs = {"none": 2.0, "conv": 1.0}.get(str(one.values["op0"]), 0.5)
        assert one.state == ("infeasible" if needs > 1 else "complete")
        if one.state == "complete":
            assert one.metrics["gpus"] == needs
    assert {one.metrics.get("gpus") for one in result.history} == {0.5, 1.0, None}


def test_a_cluster_that_is_taken_by_others_is_told(four: Any, tmp_path: Path, monkeypatch: Any) -> None:
    """Ray waits without a word, and a search that does nothing looks like one that hangs."""
    import ray

    @ray.remote(num_cpus=1)
    class Other:
        def here(self) -> bool:
            return True

    monkeypatch.setattr("nasplat.search.ray_executor.STARVED_SECONDS", 1.0)
    others = [Other.remote() for _ in range(int(ray.available_resources()["CPU"]))]
    assert all(ray.get([other.here.remote() for other in others]))
    said: list[str] = []

    def warn(text: str) -> None:
        said.append(text)
        for other in others:
            ray.kill(other)

    result = search(tmp_path, trials=2, address=four.address, executor={"warn": warn})
    assert len(result.history.complete) == 2
    assert said == ["no trial runs: each asks for 1 CPU, and nothing of the cluster is free"]


def test_as_many_trials_share_a_gpu_as_fit() -> None:
    """One more would end in running out of memory; one less leaves the GPU idle."""
    assert fitting_share(0.9) == 1.0 and fitting_share(0.41) == 1.0
    assert fitting_share(0.39) == pytest.approx(1 / 2)
    assert fitting_share(0.1) == pytest.approx(1 / 8)
    assert fitting_share(0.0001) == pytest.approx(1 / 16)


SETTINGS = {"workers": 2, "experiment": {"strategy": "random", "trials": 40}}


def finished(directory: Path) -> History:
    """What a search left, and how often each trial ran to its end."""
    found = search(directory, "slow", trials=40, run={"workers": 2})
    return found.history


def test_a_killed_driver_goes_on(four: Any, tmp_path: Path) -> None:
    """The machine on which the search was started is one like any other."""
    first = Driver(tmp_path / "killed", four.address, SETTINGS, f"{TOYS}:slow")
    first.wait_for_records(8)
    first.kill()
    done = {path: path.stat().st_mtime_ns for path in (tmp_path / "killed").glob("trials/*/record.json")}
    second = Driver(tmp_path / "killed", four.address, SETTINGS, f"{TOYS}:slow")
    assert second.process.wait(120) == 0
    assert all(path.stat().st_mtime_ns == when for path, when in done.items()), "a finished trial was run again"
    undisturbed = search(tmp_path / "undisturbed", "slow", trials=40, run={"workers": 2})
    assert table(finished(tmp_path / "killed")) == table(undisturbed.history)


def test_a_killed_head_ends_the_search_and_a_new_one_finishes_it(tmp_path: Path) -> None:
    """With the head the whole cluster is gone; the study is not."""
    directory = tmp_path / "run"
    with cluster(2) as own:
        driver = Driver(directory, own.address, SETTINGS, f"{TOYS}:slow")
        driver.wait_for_records(6)
        own.head_node.kill_all_processes(check_alive=False)
        assert driver.process.wait(120) != 0
    assert 6 <= driver.records() < 40
    with cluster(2) as own:
        driver = Driver(directory, own.address, SETTINGS, f"{TOYS}:slow")
        assert driver.process.wait(120) == 0
    undisturbed = search(tmp_path / "undisturbed", "slow", trials=40, run={"workers": 2})
    assert table(finished(directory)) == table(undisturbed.history)


def test_doctor_looks_at_every_node(four: Any, tmp_path: Path) -> None:
    """One node without the shared folder makes every second trial fail."""
    findings = list(examine_cluster(four.address, tmp_path / "runs", tmp_path))
    alive = len(findings) - 1
    assert findings[0].about == "cluster" and f"{alive} nodes" in findings[0].detail
    assert all(finding.state == "good" and "torch" in finding.detail for finding in findings[1:]), findings
    assert not list((tmp_path / "runs").iterdir())


def test_what_a_node_lacks_is_told() -> None:
    """Each of these would otherwise show as failed trials, or as scores that nobody can repeat."""
    here = {"python": "3.12.1", "versions": {"torch": "2.13", "onnx": "1"}, "gpus": [], "folder": True, "data": True}
    assert compared("n", here, here, None).state == "good"
    assert "folder" in compared("n", {**here, "folder": False}, here, None).detail
    assert "data at x" in compared("n", {**here, "data": False}, here, Path("x")).detail
    old = compared("n", {**here, "versions": {"torch": "2.9", "onnx": "1"}}, here, None)
    assert old.state == "broken" and "torch 2.9 (here 2.13)" in old.detail
    assert compared("n", {**here, "versions": {"torch": "2.13", "onnx": "2"}}, here, None).state == "limited"
    assert compared("n", {**here, "python": "3.12.9"}, here, None).state == "good"
    assert compared("n", {**here, "python": "3.11.9"}, here, None).state == "broken"


def test_storage_that_goes_away_ends_the_search_and_loses_nothing(four: Any, tmp_path: Path) -> None:
    """A file server that restarts must not turn a hundred candidates into failures."""
    directory = tmp_path / "run"
    told = 0

    def disturb(event: Event) -> None:
        nonlocal told
        told += isinstance(event, Told)
        if told == 4 and (directory / "trials").is_dir():
            (directory / "trials").rename(directory / "away")
            (directory / "trials").touch()

    with pytest.raises(NasplatError, match="trials"):
        search(directory, "slow", trials=20, address=four.address, on_event=disturb)
    (directory / "trials").unlink()
    (directory / "away").rename(directory / "trials")
    result = search(directory, "slow", trials=20, address=four.address)
    undisturbed = search(tmp_path / "undisturbed", "slow", trials=20)
    assert {one.state for one in result.history} == {"complete"}
    assert table(result.history) == table(undisturbed.history)
