"""A run's folder is read by people and scripts that know nothing of nasplat: its layout is a promise."""

from pathlib import Path

import pytest
import yaml

from nasplat.artifacts.run_directory import RunDirectory, create_run, keep_front_weights
from nasplat.core.architecture import Architecture
from nasplat.core.errors import NasplatError
from nasplat.core.experiment import Experiment


def run_with_weights(root: Path, sizes: dict[int, int]) -> RunDirectory:
    run = create_run(root, Experiment(space="a.yaml"))
    for number, size in sizes.items():
        trial = run.trial(number, f"{number:08x}" * 8)
        trial.path.mkdir()
        trial.weights.write_bytes(bytes(size))
        trial.checkpoint.mkdir()
        (trial.checkpoint / "state.json").write_text("{}")
    return run


def kept(run: RunDirectory) -> set[int]:
    return {trial.number for trial in run.trial_folders() if trial.weights.exists()}


def test_the_resolved_experiment_reads_back_without_nasplat(tmp_path: Path) -> None:
    experiment = Experiment(name="é", space={"family": "darts", "channels": 8})
    run = create_run(tmp_path / "run", experiment)
    assert Experiment(**yaml.safe_load(run.experiment.read_text(encoding="utf-8"))) == experiment


def test_a_trial_is_found_by_number_and_digest(tmp_path: Path) -> None:
    run = create_run(tmp_path, Experiment(space="a.yaml"))
    architecture = Architecture("space", {"width": 16})
    trial = run.trial(7, architecture.digest)
    trial.write_architecture(architecture)
    assert trial.path.name == f"0007-{architecture.digest[:8]}"
    assert run.find_trial(7) == run.find_trial("7") == run.find_trial(architecture.digest) == trial
    assert run.find_trial(7).read_architecture() == architecture
    assert run.relative(trial.path) == f"trials/{trial.path.name}"
    assert trial.read_record() is None
    for unknown in (8, "abc", "0" * 8):
        with pytest.raises(NasplatError, match="no trial"):
            run.find_trial(unknown)


def test_trials_come_by_number_not_by_name(tmp_path: Path) -> None:
    run = run_with_weights(tmp_path, {10_000: 1, 2: 1, 999: 1})
    (run.trials / "notes.txt").write_text("mine")
    assert [trial.number for trial in run.trial_folders()] == [2, 999, 10_000]


def test_the_same_digits_twice_are_not_guessed_at(tmp_path: Path) -> None:
    run = create_run(tmp_path, Experiment(space="a.yaml"))
    for number in (1, 2):
        run.trial(number, "abcd" * 16).path.mkdir()
    with pytest.raises(NasplatError, match="several"):
        run.find_trial("abcdabcd")


def test_weights_are_kept_for_the_front_only(tmp_path: Path) -> None:
    """Without this a search of a thousand trials fills the disk."""
    run = run_with_weights(tmp_path, {0: 10, 1: 10, 2: 10, 3: 10})
    assert keep_front_weights(run, [2], finished=[0, 1, 2]) == []
    assert kept(run) == {2, 3}  # 3 is not known to the study yet: it may join the front
    left = {trial.number for trial in run.trial_folders() if trial.checkpoint.exists()}
    assert left == {3}


def test_the_oldest_weights_go_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = run_with_weights(tmp_path, {0: 1, 1: 1, 2: 1})
    gone: list[str] = []
    unlink = Path.unlink
    monkeypatch.setattr(
        Path, "unlink", lambda path, **options: (gone.append(path.parent.name), unlink(path, **options))
    )
    keep_front_weights(run, [1], finished=[2, 1, 0])
    assert [name[:4] for name in gone] == ["0000", "0002"]


def test_a_front_over_the_budget_loses_its_last_members_and_says_so(tmp_path: Path) -> None:
    run = run_with_weights(tmp_path, {0: 60, 1: 60, 2: 60})
    lost = keep_front_weights(run, [1, 0, 2], finished=[0, 1, 2], budget_bytes=130)
    assert [trial.number for trial in lost] == [2]
    assert kept(run) == {0, 1}
    keep_front_weights(run, [1, 0], finished=[0, 1, 2], budget_bytes=1)
    assert kept(run) == {1}  # the best is never given up


def test_state_round_trip(tmp_path: Path) -> None:
    run = create_run(tmp_path, Experiment(space="a.yaml"))
    assert run.read_state() == {}
    run.write_state({"done": 3})
    assert run.read_state() == {"done": 3}


def test_a_file_is_no_place_for_a_run(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(NasplatError, match="is a file"):
        create_run(tmp_path / "file", Experiment(space="a.yaml"))
