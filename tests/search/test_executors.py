"""Executors decide where a trial runs. A worker that dies, hangs or raises must cost no more than its own trial."""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from nasplat.core.architecture import Architecture
from nasplat.core.errors import NasplatError
from nasplat.search.executors import Executor, Finished, InlineExecutor
from nasplat.search.processes import ProcessExecutor
from nasplat.search.records import Record, TrialSpec, read_record, run_trial, write_record
from tests.search import toys
from tests.search.toys import ToySpace

SPACE = ToySpace()
MakeExecutor = Callable[..., Executor]


def inline(evaluate: str, **options: object) -> Executor:
    return InlineExecutor(evaluate, **options)  # type: ignore[arg-type]


def processes(evaluate: str, **options: object) -> Executor:
    return ProcessExecutor(evaluate, 2, **options)  # type: ignore[arg-type]


both = pytest.mark.parametrize("make", [inline, processes])


def spec(directory: Path, number: int, operation: str | None = None) -> TrialSpec:
    architecture = SPACE.sample(np.random.default_rng(number))
    if operation is not None:
        architecture = SPACE.canonical({**architecture.values, "op0": operation})
    return TrialSpec(number, {}, architecture.to_json(), number, str(directory / f"{number:04d}"))


def run(executor: Executor, specs: list[TrialSpec], seconds: float = 30.0) -> tuple[dict[int, Record], list]:
    progress: list = []
    finished: list[Finished] = []
    until = time.monotonic() + seconds
    try:
        for one in specs:
            executor.submit(one)
        while len(finished) < len(specs) and time.monotonic() < until:
            finished += executor.wait(0.1, lambda number, fields: progress.append((number, dict(fields))))
    finally:
        executor.close()
    return {one.number: one.record for one in finished}, progress


@both
def test_every_trial_comes_back_with_its_record_on_disk(make: MakeExecutor, tmp_path: Path) -> None:
    specs = [spec(tmp_path, number) for number in range(5)]
    records, progress = run(make("tests.search.toys:quick"), specs)
    assert sorted(records) == [0, 1, 2, 3, 4]
    for one in specs:
        assert records[one.number].state == "complete"
        assert records[one.number].metrics == toys.metrics(one)
        assert read_record(Path(one.directory)) == records[one.number]
        assert records[one.number].seconds > 0
    assert {number for number, _ in progress} <= set(records)
    assert progress


@both
def test_what_goes_wrong_with_a_candidate_stays_with_it(make: MakeExecutor, tmp_path: Path) -> None:
    """Divergence, memory, NaN and exceptions are outcomes of one trial, with their reasons."""
    operations = ["none", "skip", "pool", "conv"]
    specs = [spec(tmp_path, number, operation) for number, operation in enumerate(operations)]
    records, _ = run(make("tests.search.toys:moody"), specs)
    assert [records[number].state for number in range(4)] == ["failed", "infeasible", "failed", "complete"]
    assert "NaN in epoch 2" in records[0].reason
    assert records[1].reason == "out of memory"
    assert records[2].reason == "accuracy is nan"


@both
def test_a_mistake_in_the_users_code_leaves_its_traceback(make: MakeExecutor, tmp_path: Path) -> None:
    records, _ = run(make("tests.search.toys:broken"), [spec(tmp_path, 0)])
    assert records[0].state == "failed"
    assert "ValueError: mistake in the user's code" in records[0].reason
    assert "Traceback" in (tmp_path / "0000" / "log.txt").read_text()


@both
def test_what_concerns_all_trials_stops_the_search(make: MakeExecutor, tmp_path: Path) -> None:
    """Without its data every trial would fail: the search ends, and no trial is lost."""
    with pytest.raises(NasplatError, match="images is gone") as error:
        run(make("tests.search.toys:no_data"), [spec(tmp_path, 0)])
    assert error.value.advice == "mount it again"
    assert read_record(tmp_path / "0000") is None


@both
@pytest.mark.parametrize("evaluate", ["tests.search.toys:nothing", "no.such.module:f", "nonsense"])
def test_an_evaluation_that_cannot_be_imported_is_an_error(make: MakeExecutor, tmp_path: Path, evaluate: str) -> None:
    with pytest.raises(NasplatError, match="evaluation: "):
        run(make(evaluate), [spec(tmp_path, 0)])


@both
def test_a_trial_over_its_time_has_failed_and_the_next_runs(make: MakeExecutor, tmp_path: Path) -> None:
    specs = [spec(tmp_path, 0, "none"), spec(tmp_path, 1, "conv")]
    records, _ = run(make("tests.search.toys:eternal", trial_seconds=0.3), specs)
    assert records[0].state == "failed"
    assert "longer than run.trial_seconds = 0.3" in records[0].reason
    assert records[1].state == "complete"


def test_a_killed_worker_is_replaced_and_its_trial_runs_again_once(tmp_path: Path) -> None:
    specs = [spec(tmp_path, 0, "conv"), spec(tmp_path, 1, "none"), spec(tmp_path, 2, "pool")]
    records, _ = run(processes("tests.search.toys:suicidal"), specs)
    assert [records[number].state for number in range(3)] == ["complete", "failed", "complete"]
    assert records[1].reason == "its worker process died 2 times (SIGKILL)"
    assert (tmp_path / "0001" / "attempts").read_text() == "xx"


def test_a_finished_trial_is_not_run_again(tmp_path: Path) -> None:
    """Killed between its record and its tell, it is told from the record."""
    one = spec(tmp_path, 0)
    first = run_trial(toys.quick, one, lambda fields: None)
    assert run_trial(toys.broken, one, lambda fields: None) == first


def test_a_damaged_record_counts_as_none(tmp_path: Path) -> None:
    write_record(tmp_path, Record("complete", {"accuracy": 0.5}))
    path = tmp_path / "record.json"
    path.write_text(path.read_text()[:20])
    assert read_record(tmp_path) is None


def test_an_error_of_the_watcher_is_not_blamed_on_the_candidate(tmp_path: Path) -> None:
    """A closed terminal must not leave failed trials in the study."""
    executor = InlineExecutor(toys.quick)
    executor.submit(spec(tmp_path, 0))

    def watch(number: int, fields: object) -> None:
        raise BrokenPipeError("the terminal is gone")

    with pytest.raises(BrokenPipeError):
        executor.wait(0.1, watch)
    assert read_record(tmp_path / "0000") is None


def test_what_a_trial_prints_goes_into_its_own_log(tmp_path: Path) -> None:
    run(processes("tests.search.test_executors:chatty"), [spec(tmp_path, 0)])
    assert "hello from trial 0" in (tmp_path / "0000" / "log.txt").read_text()


def chatty(one: TrialSpec, on_progress: object) -> Record:
    os.write(1, f"hello from trial {one.number}\n".encode())
    return Record("complete")


def test_workers_die_with_their_driver(tmp_path: Path) -> None:
    """Orphans would go on training what a resumed search trains again."""
    code = f"""
import os, signal, time
from pathlib import Path
from nasplat.search.processes import ProcessExecutor
from tests.search.test_executors import spec
if __name__ == "__main__":
    executor = ProcessExecutor("tests.search.toys:eternal", 2)
    for number in range(2):
        executor.submit(spec(Path({str(tmp_path)!r}), number, "none"))
    while len(list(Path({str(tmp_path)!r}).glob("*/log.txt"))) < 2:
        executor.wait(0.02, lambda number, fields: None)
    print(*(worker.process.pid for worker in executor._workers), flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""
    root = Path(__file__).parents[2]
    script = tmp_path / "driver.py"
    script.write_text(code)
    env = {**os.environ, "PYTHONPATH": str(root)}
    result = subprocess.run([sys.executable, str(script)], cwd=root, env=env, capture_output=True, text=True)
    workers = [int(word) for word in result.stdout.split()]
    assert len(workers) == 2, result.stderr
    until = time.monotonic() + 10
    while any(_lives(worker) for worker in workers) and time.monotonic() < until:
        time.sleep(0.01)
    assert not any(_lives(worker) for worker in workers)


def _lives(process: int) -> bool:
    try:
        return "Z" not in Path(f"/proc/{process}/stat").read_text().split(")")[1].split()[0]
    except FileNotFoundError:
        return False


def test_workers_import_neither_torch_nor_optuna_before_they_must() -> None:
    """Starting workers must take a moment, not seconds."""
    code = "import sys, nasplat.search.worker; print([m for m in ('torch', 'optuna', 'pydantic') if m in sys.modules])"
    root = Path(__file__).parents[2]
    assert subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True).stdout == "[]\n"


def test_specifications_survive_the_way_to_a_worker() -> None:
    one = spec(Path("x"), 3)
    again = TrialSpec(**one.to_json())
    assert again == one
    assert Architecture.from_json(again.architecture).to_json() == one.architecture
