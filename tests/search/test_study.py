"""The study file is all that is left of a search: it must be an ordinary Optuna study, whole after any crash."""

import json
import os
import sqlite3
import time
from pathlib import Path

import optuna
import pytest
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState

from nasplat.core.errors import NasplatError
from nasplat.core.front import Goal
from nasplat.search import storage as storage_module
from nasplat.search.propose import Exhausted, propose
from nasplat.search.records import Record
from nasplat.search.strategies import make_strategy
from nasplat.search.study import Draft, SearchStudy, open_study
from tests.search.toys import ToySpace

GOALS = (Goal("accuracy", "maximize"), Goal("params", "minimize"))
KINDS = ("journal", "sqlite")


def opened(directory: Path, storage: str = "journal", space: ToySpace | None = None, **changes: object) -> SearchStudy:
    settings: dict = {"name": "toy", "goals": GOALS, "identity": {"seed": 0}, **changes}
    return open_study(storage, directory, space=space or ToySpace(), **settings)


def ask(study: SearchStudy, **options: object):
    draft = propose(make_strategy("random"), study.history, study.space, study.goals, {}, 0)
    assert not isinstance(draft, Exhausted)
    return study.ask(draft)


def complete(accuracy: float) -> Record:
    return Record("complete", {"accuracy": accuracy, "params": 3.0, "latency_ms": 2.5}, seconds=1.5)


@pytest.mark.parametrize("kind", KINDS)
def test_any_optuna_tool_opens_the_study(tmp_path: Path, kind: str) -> None:
    study = opened(tmp_path, kind)
    first, second, third = ask(study), ask(study), ask(study)
    study.tell(first.number, complete(0.5))
    study.tell(second.number, Record("failed", reason="the loss is NaN"))
    study.tell(third.number, Record("infeasible", reason="out of memory", seconds=1.0))

    if kind == "journal":
        storage = JournalStorage(JournalFileBackend(str(tmp_path / "study.journal")))
    else:
        storage = f"sqlite:///{tmp_path / 'study.db'}"
    found = optuna.load_study(study_name="toy", storage=storage)
    assert [direction.name for direction in found.directions] == ["MAXIMIZE", "MINIMIZE"]
    assert found.metric_names == ["accuracy", "params"]
    assert [trial.state for trial in found.trials] == [TrialState.COMPLETE, TrialState.FAIL, TrialState.PRUNED]
    assert found.trials[0].values == [0.5, 3.0]
    assert found.trials[0].user_attrs["digest"] == first.digest
    assert found.trials[0].user_attrs["metrics"]["latency_ms"] == 2.5
    assert found.trials[1].user_attrs["reason"] == "the loss is NaN"
    assert found.best_trials == [found.trials[0]]
    for name, choice in study.space.choices.items():
        value = found.trials[0].params[name]
        assert (choice.options[value] if choice.ordered else value) == first.values[name]


@pytest.mark.parametrize("kind", KINDS)
def test_the_history_is_the_same_when_it_is_read_again(tmp_path: Path, kind: str) -> None:
    study = opened(tmp_path, kind)
    for number in range(6):
        ask(study)
        if number != 4:
            study.tell(number, [complete(number / 10), Record("failed", reason="x", seconds=0.1)][number % 2])
    again = opened(tmp_path, kind, resume=True)
    assert list(again.history) == list(study.history)
    assert again.history.next_number == 6
    assert again.open_numbers() == ([4], [])


def test_an_ask_and_a_tell_are_one_write_each(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study = opened(tmp_path)
    writes = []
    monkeypatch.setattr(storage_module, "_write", lambda descriptor, data: writes.append(os.write(descriptor, data)))
    ask(study)
    assert len(writes) == 1
    study.tell(0, complete(0.5))
    assert len(writes) == 2


def test_a_metric_that_is_nan_or_missing_fails_the_trial_and_not_the_study(tmp_path: Path) -> None:
    study = opened(tmp_path)
    told = [study.tell(ask(study).number, record) for record in (complete(float("nan")), Record("complete", {}))]
    assert [one.state for one in told] == ["failed", "failed"]
    assert "accuracy" in told[0].reason


@pytest.mark.parametrize("kind", KINDS)
def test_repeats_are_answered_from_the_record(tmp_path: Path, kind: str) -> None:
    study = opened(tmp_path, kind)
    original = ask(study)
    architecture = study.space.canonical(original.values)
    early = study.ask(Draft(architecture, architecture.values, repeat_of=original))
    assert study.tell_repeat(early.number) is None  # the original still runs
    told = study.tell(original.number, complete(0.5))
    late = study.ask(Draft(architecture, architecture.values, repeat_of=told))
    answered = study.tell_repeat(early.number)
    assert answered is not None
    for repeat in (answered, late):
        assert (repeat.state, repeat.repeat_of) == ("repeat", 0)
        assert repeat.metrics == told.metrics
    assert study.history.evaluated == 1
    assert study.open_numbers() == ([], [])


@pytest.mark.parametrize("kind", KINDS)
def test_a_study_of_another_space_goal_or_seed_is_refused(tmp_path: Path, kind: str) -> None:
    ask(opened(tmp_path, kind))
    with pytest.raises(NasplatError, match=r"space\.layers was 4, and is now 5") as error:
        opened(tmp_path, kind, ToySpace(layers=5), resume=True)
    assert error.value.advice
    with pytest.raises(NasplatError, match="goals was "):
        opened(tmp_path, kind, goals=GOALS[:1], resume=True)
    with pytest.raises(NasplatError, match="seed was 0, and is now 1"):
        opened(tmp_path, kind, identity={"seed": 1}, resume=True)


def test_a_study_with_trials_is_not_touched_without_resume(tmp_path: Path) -> None:
    ask(opened(tmp_path))
    with pytest.raises(NasplatError, match="already holds 1 trials") as error:
        opened(tmp_path)
    assert "--resume" in error.value.advice


def test_a_study_of_somebody_else_is_refused(tmp_path: Path) -> None:
    storage = JournalStorage(JournalFileBackend(str(tmp_path / "study.journal")))
    study = optuna.create_study(study_name="toy", storage=storage, directions=["maximize", "minimize"])
    study.ask()
    with pytest.raises(NasplatError, match="not made by nasplat"):
        opened(tmp_path, resume=True)


@pytest.mark.parametrize("tail", [b'{"op_code":8,"trial', b"\0\0\0\0\n", b"{}\n", b'{"op_code":6}'])
def test_what_a_killed_write_left_is_cut_off(tmp_path: Path, tail: bytes) -> None:
    study = opened(tmp_path)
    ask(study)
    path = tmp_path / "study.journal"
    whole = path.read_bytes()
    path.write_bytes(whole + tail)
    again = opened(tmp_path, resume=True)
    assert path.read_bytes() == whole
    assert list(again.history) == list(study.history)
    again.tell(0, complete(0.5))
    assert opened(tmp_path, resume=True).history[0].state == "complete"


@pytest.mark.parametrize("length", range(1, 40, 6))
def test_a_search_killed_in_its_first_write_can_start_again(tmp_path: Path, length: int) -> None:
    opened(tmp_path)
    path = tmp_path / "study.journal"
    path.write_bytes(path.read_bytes()[:length])
    assert len(opened(tmp_path).history) == 0


def test_a_file_that_is_no_journal_is_refused_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "study.journal"
    path.write_text("my precious notes\n")
    with pytest.raises(NasplatError, match="no Optuna journal"):
        opened(tmp_path)
    assert path.read_text() == "my precious notes\n"


def test_a_journal_damaged_in_the_middle_is_refused(tmp_path: Path) -> None:
    ask(opened(tmp_path))
    path = tmp_path / "study.journal"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(lines[0] + b"garbage\n" + b"".join(lines[1:]))
    with pytest.raises(NasplatError, match="cannot be read"):
        opened(tmp_path, resume=True)


def test_a_sqlite_storage_that_another_process_holds_is_an_error_not_a_traceback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage_module, "LOCK_SECONDS", 0.1)
    monkeypatch.setattr(time, "sleep", lambda seconds: None)  # Optuna waits between five attempts
    study = opened(tmp_path, "sqlite")
    other = sqlite3.connect(tmp_path / "study.db", isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    with pytest.raises(NasplatError, match="is locked"):
        ask(study)
    other.execute("ROLLBACK")
    assert ask(study).number == 0


def test_a_journal_that_another_process_holds_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage_module, "LOCK_SECONDS", 0.2)
    study = opened(tmp_path)
    with storage_module.locked(tmp_path / "study.journal"), pytest.raises(NasplatError, match="locked"):
        ask(study)
    assert ask(study).number == 0


def test_a_read_only_sqlite_storage_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    opened(tmp_path, "sqlite")
    url = f"sqlite:///file:{tmp_path / 'study.db'}?mode=ro&uri=true"
    study = opened(tmp_path, url)
    with pytest.raises(NasplatError, match="cannot be written"):
        ask(study)


def test_a_read_only_journal_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.open

    def refuse(path: object, flags: int, *args: int) -> int:
        if flags & (os.O_RDWR | os.O_WRONLY):
            raise PermissionError(13, "Permission denied")
        return real(path, flags, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(storage_module.os, "open", refuse)  # file modes do not stop the root user of a container
    with pytest.raises(NasplatError, match="cannot be written") as error:
        opened(tmp_path)
    assert error.value.advice


def test_a_full_disk_leaves_no_half_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study = opened(tmp_path)
    before = (tmp_path / "study.journal").read_bytes()

    def full(descriptor: int, data: bytes) -> None:
        os.write(descriptor, data[: len(data) // 2])
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch, pytest.raises(NasplatError, match="No space left"):
        patch.setattr(storage_module, "_write", full)
        ask(study)
    assert (tmp_path / "study.journal").read_bytes() == before
    assert ask(study).number == 0


def test_an_url_that_optuna_does_not_know_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(NasplatError, match="storage"):
        opened(tmp_path, "nonsense://x")


def test_a_journal_stays_json_lines(tmp_path: Path) -> None:
    ask(opened(tmp_path))
    for line in (tmp_path / "study.journal").read_text().splitlines():
        json.loads(line)
