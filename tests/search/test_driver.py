"""A whole search: budgets, executors, interruption and resumption."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nasplat.artifacts.run_directory import RunDirectory
from nasplat.core.errors import NasplatError
from nasplat.core.front import losses
from nasplat.search.driver import Result, run_search
from nasplat.search.events import Asked, FrontChanged, Message, Progress, Told
from nasplat.search.history import goals_of
from nasplat.search.records import OnProgress, Record, TrialSpec
from nasplat.search.session import running_process
from tests.search import toys
from tests.search.toys import ToySpace, experiment, proposals, table

PROCESSES = {"run": {"executor": "processes", "workers": 2}}
STRATEGIES = ("random", "tpe", "nsga2", "evolution")


def search(directory: Path, *args: Any, resume: bool = False, evaluate: Any = None, **sections: Any) -> Result:
    directory.mkdir(exist_ok=True)
    on_event = sections.pop("on_event", lambda event: None)
    space = sections.pop("toy_space", ToySpace())
    return run_search(
        experiment(*args, **sections),
        RunDirectory(directory),
        space,
        resume=resume,
        on_event=on_event,
        evaluate=evaluate or "tests.search.toys:quick",
    )


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("run", [{}, PROCESSES])
def test_a_search_spends_its_budget_on_distinct_architectures(strategy: str, run: dict, tmp_path: Path) -> None:
    result = search(tmp_path, strategy, 15, **run)
    assert result.stopped == "trials"
    assert len(table(result.history)) == result.history.evaluated == 15
    goals = goals_of(experiment().score)
    everything = losses([one.metrics for one in result.history.complete], goals)
    for score in result.front:
        mine = losses([score.metrics], goals)
        assert not ((everything <= mine).all(axis=1) & (everything < mine).any(axis=1)).any()
        assert score.architecture.digest == result.history[score.notes["number"]].digest


def moody_and_uneven(spec: TrialSpec, on_progress: OnProgress) -> Record:
    """Trials overtake each other."""
    time.sleep(int(spec.architecture["digest"][:2], 16) / 5000)
    return toys.moody(spec, on_progress)


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("workers", [1, 3])
def test_the_same_seed_fills_the_same_table_in_every_executor(strategy: str, workers: int, tmp_path: Path) -> None:
    """Who moves from a laptop to more machines must be able to compare. Half of what is tried here repeats or fails."""
    tables = []
    for executor in ("inline", "processes"):
        result = search(
            tmp_path / executor,
            strategy,
            24,
            run={"executor": executor, "workers": workers},
            search={"constraints": {"params": {"max": 900}}},
            evaluate="tests.search.test_driver:moody_and_uneven",
            toy_space=ToySpace(layers=2, widths=(8, 16, 32)),
        )
        tables.append([(one.digest, one.state, *sorted(one.metrics.items())) for one in result.history])
        assert {one.state for one in result.history} >= {"complete", "failed", "infeasible"}
    assert tables[0] == tables[1]


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_resumed_search_goes_on_as_if_it_had_never_stopped(strategy: str, tmp_path: Path) -> None:
    """`--resume` with more trials extends a search; its proposals are those of one long search."""
    whole = search(tmp_path / "whole", strategy, 24)
    for trials in (7, 8, 24):
        parts = search(tmp_path / "parts", strategy, trials, resume=True)
    assert proposals(parts.history) == proposals(whole.history)
    assert table(parts.history) == table(whole.history)
    assert [score.architecture for score in parts.front] == [score.architecture for score in whole.front]


def test_a_search_that_is_complete_asks_for_nothing_on_resume(tmp_path: Path) -> None:
    first = search(tmp_path, "random", 5)
    again = search(tmp_path, "random", 5, resume=True)
    assert list(again.history) == list(first.history)
    assert again.front


def test_sqlite_serves_as_well(tmp_path: Path) -> None:
    run = {"run": {"storage": "sqlite"}}
    search(tmp_path / "db", "evolution", 6, **run)
    resumed = search(tmp_path / "db", "evolution", 12, resume=True, **run)
    assert proposals(resumed.history) == proposals(search(tmp_path / "journal", "evolution", 12).history)


def test_a_changed_experiment_is_refused_on_resume(tmp_path: Path) -> None:
    search(tmp_path, "random", 3)
    with pytest.raises(NasplatError, match=r"train\.epochs was .*, and is now 9"):
        search(tmp_path, "random", 4, resume=True, train={"epochs": 9})
    search(tmp_path, "evolution", 4, resume=True)  # another strategy goes on with the same table


def test_a_budget_in_seconds_counts_earlier_sessions(tmp_path: Path) -> None:
    budget = {"search": {"seconds": 0.6}, "evaluate": "tests.search.toys:slow"}
    first = search(tmp_path, "random", None, **budget)
    assert first.stopped == "seconds"
    count = len(first.history)
    assert count >= 1
    again = search(tmp_path, "random", None, resume=True, **budget)
    assert len(again.history) <= count + 2  # only what the time between trials left over


def test_the_space_ends_before_the_budget(tmp_path: Path) -> None:
    messages: list[str] = []
    result = search(
        tmp_path,
        "tpe",
        100,
        toy_space=ToySpace(layers=1, widths=(8, 16), operations=("none", "conv")),
        on_event=lambda event: messages.append(event.text) if isinstance(event, Message) else None,
    )
    assert result.stopped == "exhausted"
    assert len(result.history.complete) == 3
    assert "ends early" in messages[0]


def test_a_constraint_that_nothing_meets_ends_the_search_with_the_nearest_value(tmp_path: Path) -> None:
    with pytest.raises(NasplatError, match="params max 5") as error:
        search(tmp_path, "random", 10, search={"constraints": {"params": {"max": 5}}})
    assert "params 10 is above 5" in error.value.advice


def test_infeasible_proposals_cost_nothing(tmp_path: Path) -> None:
    trained: list[str] = []

    def evaluate(spec: TrialSpec, on_progress: OnProgress) -> Record:
        trained.append(spec.architecture["digest"])
        return toys.quick(spec, on_progress)

    result = search(tmp_path, "tpe", 12, search={"constraints": {"params": {"max": 400}}}, evaluate=evaluate)
    infeasible = [one for one in result.history if one.state == "infeasible"]
    assert infeasible
    assert all("is above 400" in one.reason for one in infeasible)
    assert len(trained) == len(set(trained)) == 12
    assert not {one.digest for one in infeasible} & set(trained)


def test_events_tell_the_whole_story(tmp_path: Path) -> None:
    events: list[Any] = []
    result = search(tmp_path, "evolution", 15, on_event=events.append)
    assert [event.proposal.number for event in events if isinstance(event, Asked)] == [p.number for p in result.history]
    told = [event for event in events if isinstance(event, Told)]
    assert [event.evaluated for event in told] == list(range(1, 16))
    assert {event.budget for event in told} == {15}
    assert [event.fields for event in events if isinstance(event, Progress)] == [{"epoch": 1, "epochs": 1}] * 15
    assert [event for event in events if isinstance(event, FrontChanged)][-1].front == result.front


def test_a_mistake_that_fails_every_candidate_ends_the_search(tmp_path: Path) -> None:
    """Forty trials with the same traceback help nobody."""
    with pytest.raises(NasplatError, match="first 5 candidates all failed: ValueError: mistake"):
        search(tmp_path, "random", 40, evaluate="tests.search.toys:broken")


@pytest.mark.parametrize("run", [{}, PROCESSES])
def test_after_an_error_that_stops_the_search_it_can_be_resumed(run: dict, tmp_path: Path) -> None:
    with pytest.raises(NasplatError, match="images is gone"):
        search(tmp_path, "random", 6, evaluate="tests.search.toys:no_data", **run)
    result = search(tmp_path, "random", 6, resume=True, **run)
    assert table(result.history) == table(search(tmp_path / "whole", "random", 6).history)


def test_two_searches_cannot_share_a_run_directory(tmp_path: Path) -> None:
    def evaluate(spec: TrialSpec, on_progress: OnProgress) -> Record:
        assert running_process(tmp_path) == os.getpid()
        with pytest.raises(NasplatError, match=f"process {os.getpid()}"):
            search(tmp_path, "random", 2, resume=True)
        return toys.quick(spec, on_progress)

    assert running_process(tmp_path) is None
    search(tmp_path, "random", 1, evaluate=evaluate)
    assert running_process(tmp_path) is None


def test_an_unwritable_run_directory_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(NasplatError, match="cannot be written"):
        run_search(experiment(), RunDirectory(tmp_path / "file" / "run"), ToySpace(), evaluate=toys.quick)


@pytest.mark.parametrize("run", [{}, PROCESSES])
def test_a_folder_that_takes_no_trials_stops_the_search_and_fails_no_candidate(run: dict, tmp_path: Path) -> None:
    """A full disk, say: it concerns all trials, and once it is mended the search goes on."""
    (tmp_path / "trials").write_text("in the way")
    with pytest.raises(NasplatError, match="cannot"):
        search(tmp_path, "random", 4, **run)
    (tmp_path / "trials").unlink()
    result = search(tmp_path, "random", 4, resume=True, **run)
    assert [one.state for one in result.history] == ["complete"] * 4


@pytest.mark.parametrize("run", [{}, PROCESSES])
def test_ctrl_c_once_finishes_what_runs(run: dict, tmp_path: Path) -> None:
    events: list[Any] = []

    def watch(event: Any) -> None:
        events.append(event)
        if isinstance(event, Progress) and not any(isinstance(e, Message) for e in events):
            signal.raise_signal(signal.SIGINT)

    result = search(tmp_path, "random", 20, evaluate="tests.search.toys:slow", on_event=watch, **run)
    assert result.stopped == "interrupted"
    assert 1 <= len(result.history.complete) == len(result.history) <= 4
    assert any(isinstance(event, Message) and "Ctrl-C again" in event.text for event in events)
    resumed = search(tmp_path, "random", 6, resume=True)
    assert table(resumed.history) == table(search(tmp_path / "whole", "random", 6).history)


@pytest.mark.parametrize("run", [{}, PROCESSES])
def test_ctrl_c_twice_stops_now_and_loses_no_more_than_what_ran(run: dict, tmp_path: Path) -> None:
    def watch(event: Any) -> None:
        if isinstance(event, Progress) and event.number >= 2:
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)

    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        search(tmp_path, "random", 20, evaluate="tests.search.toys:slow", on_event=watch, **run)
    assert signal.getsignal(signal.SIGINT) is before
    resumed = search(tmp_path, "random", 6, resume=True)
    assert table(resumed.history) == table(search(tmp_path / "whole", "random", 6).history)


def test_ctrl_c_at_the_terminal_does_not_reach_the_workers(tmp_path: Path) -> None:
    """The terminal sends SIGINT to every process of the group; the trials that run must still finish."""
    code = f"""
from pathlib import Path
from nasplat.artifacts.run_directory import RunDirectory
from nasplat.search.driver import run_search
from tests.search.toys import ToySpace, experiment
if __name__ == "__main__":
    result = run_search(
        experiment("random", 50, run={{"executor": "processes", "workers": 2}}),
        RunDirectory(Path({str(tmp_path)!r})), ToySpace(),
        evaluate="tests.search.toys:slow", on_event=lambda event: print(type(event).__name__, flush=True),
    )
    print(result.stopped, [one.state for one in result.history], flush=True)
"""
    root = Path(__file__).parents[2]
    (tmp_path / "script.py").write_text(code)
    process = subprocess.Popen(
        [sys.executable, str(tmp_path / "script.py")],
        cwd=root,
        env={**os.environ, "PYTHONPATH": str(root)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None
    for line in process.stdout:
        if "Progress" in line:
            break
    os.killpg(process.pid, signal.SIGINT)
    output, errors = process.communicate(timeout=30)
    last = output.splitlines()[-1]
    assert last.startswith("interrupted")
    assert set(last.split("[")[1].strip("]").split(", ")) == {"'complete'"}
    assert errors == ""


def test_a_search_can_run_in_a_thread(tmp_path: Path) -> None:
    """A notebook or a server may run it off the main thread, where there are no signals."""
    results: list[Result] = []
    thread = threading.Thread(target=lambda: results.append(search(tmp_path, "random", 3)))
    thread.start()
    thread.join(30)
    assert len(results[0].history.complete) == 3


def test_the_overhead_of_a_trial_stays_small(tmp_path: Path) -> None:
    """What asking and telling reads must not grow with the study: no trial is decoded more than a few times."""
    import nasplat.search.study as study_module

    count = 0
    real = study_module.read_proposal

    def counted(*args: Any) -> Any:
        nonlocal count
        count += 1
        return real(*args)

    study_module.read_proposal = counted
    try:
        result = search(tmp_path, "random", 60)
    finally:
        study_module.read_proposal = real
    assert count <= 3 * len(result.history)


def test_metrics_are_plain_numbers_in_the_history(tmp_path: Path) -> None:
    result = search(tmp_path, "random", 3)
    assert all(isinstance(value, float) for one in result.history for value in one.metrics.values())
    assert np.isfinite([one.metrics["accuracy"] for one in result.history]).all()
