"""The command line as a person meets it: what it prints, what it refuses, how it ends."""

import errno
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from nasplat.jobs.status import status
from tests.cli.conftest import Shell
from tests.jobs.small import EXPERIMENT

ROOT = Path(__file__).resolve().parents[2]


def test_a_table_is_searched_like_images(shell: Shell) -> None:
    """Who compares strategies on a benchmark uses the command, the resume and the report that they know."""
    rows = ["kernel,width,acc,macs", *(f"{k},{w},{0.5 + k / 50 + w / 100},{k * w}" for k in (1, 3, 5) for w in (4, 8))]
    Path("table.csv").write_text("\n".join(rows))
    space = "space: {family: tabular, table: table.csv, metrics: {accuracy: acc, macs: macs}}"
    Path("table.yaml").write_text(
        f"{space}\nscore: {{maximise: [accuracy], minimise: [macs]}}\nsearch: {{trials: 4}}\n"
    )
    out = shell("search table.yaml --explain")
    assert shell.code == 0, shell.error
    assert "the table table.csv" in out and "of 4 candidates" in out and "runs/table/report.html" in out
    out = shell("search table.yaml --resume --trials 99")
    assert shell.code == 0, shell.error
    assert "of 6 candidates" in out  # the whole table, and no row twice
    assert "done: 6 of 99 architectures evaluated, and nothing new is left to try" in shell("status runs/table")
    for verb in ("train", "export"):
        shell(f"{verb} runs/table")
        assert shell.code == 2 and "was answered from a table" in shell.error and "runs/table/front" in shell.error
    shell("search table.yaml --run other --set train.epochs=3")
    assert shell.code == 2 and "trains nothing" in shell.error
    Path("table.csv").write_text("kernel,width,acc,macs\n1,2,high,3\n")
    shell("search table.yaml --run other")
    assert shell.code == 2 and "row 1" in shell.error and "high" in shell.error


def test_from_search_to_export(shell: Shell) -> None:
    """The way of the README: search, look, train again, export."""
    out = shell("search small.yaml --export none")
    assert shell.code == 0, shell.error
    assert "of 4 candidates" in out and "Accuracy" in out and "MACs" in out and "Parameters" in out
    assert "runs/small/report.html" in out and "runs/small/front.csv" in out
    number = re.search(r"^\s*(\d+) .* %", out, re.MULTILINE)
    assert number

    assert "done: 4 of 4" in shell("status runs/small")
    out = shell("train runs/small --top 1 --seeds 2")
    assert shell.code == 0, shell.error
    assert "Test accuracy" in out and "…" in out and "runs/small/confirmation.csv" in out
    out = shell(f"export runs/small/{number[1]} --format onnx")
    assert "model.onnx" in out and shell.code == 0
    out = shell("report runs/small --svg picture.svg")
    assert Path("picture.svg").read_text().startswith("<svg") and "report.html" in out
    out = shell(f"profile runs/small/{number[1]}")
    assert "FlopCounterMode" in out and "counts batch norm" in out

    shell("search small.yaml")
    assert shell.code == 2 and "holds a search already" in shell.error
    out = shell("search runs/small --resume --trials 5 --export none")
    assert "of 5 candidates" in out


@pytest.mark.parametrize(
    ("line", "wrong", "advice"),
    [
        ("search smal.yaml", "there is no file smal.yaml", "did you mean 'small.yaml'?"),
        ("search small.yaml --set train.epoch=2", "section train has no key 'epoch'", "did you mean 'epochs'?"),
        ("search small.yaml --set data.source=digitz", "there is no source 'digitz'", "did you mean 'digits'?"),
        ("search small.yaml --set data.path=nowhere", "there is no nowhere", "looked for"),
        ("search small.yaml --set run.device=tpu", "device", "cpu"),
        ("search small.yaml --set train.objective=nothing:here", "no module 'nothing'", "beside the experiment file"),
        ("status runs/none", "there is no run directory runs/none", "nasplat search"),
        ("train runs/none", "there is no run directory runs/none", "nasplat search"),
        ("report runs/none", "there is no run directory runs/none", "nasplat search"),
        ("export runs/none", "neither a run nor an architecture", "runs/quickstart"),
        ("profile rsnet18", "there is no model 'rsnet18'", "did you mean 'resnet18'?"),
        ("spaces dart", "there is no space 'dart'", "did you mean 'darts'? known are branching, darts, "),
        ("spaces smal.yaml", "there is no file smal.yaml", "the current folder holds small.yaml"),
        ("schema -o nowhere/x.json", "cannot open nowhere/x.json: No such file", ""),
    ],
)
def test_a_mistake_is_two_lines_and_no_traceback(shell: Shell, line: str, wrong: str, advice: str) -> None:
    shell(line)
    assert shell.code == 2
    first, *rest = shell.error.strip().splitlines()
    assert first.startswith("error: ") and wrong in first
    assert len(rest) == (1 if advice else 0) and advice in "".join(rest)
    assert "Traceback" not in shell.error


@pytest.mark.parametrize(
    ("line", "wrong", "usage"),
    [
        ("search", "missing argument 'EXPERIMENT'", "search experiments/quickstart.yaml"),
        ("search small.yaml --trial 3", "no such option: --trial", "search experiments/quickstart.yaml"),
        (
            "search small.yaml --executor dask",
            "'--executor': 'dask' is not one of",
            "search experiments/quickstart.yaml",
        ),
        ("train runs/small --top none", "invalid value for '--top'", "train runs/quickstart --top 3 --seeds 3"),
        ("status a b", "unexpected extra argument", "status runs/quickstart"),
        ("serch small.yaml", "no such command 'serch'", "--help lists the commands"),
    ],
)
def test_a_wrong_command_line_looks_like_any_other_mistake(shell: Shell, line: str, wrong: str, usage: str) -> None:
    """And shows the usage, and a line that works."""
    shell(line)
    assert shell.code == 2
    first, second, third = shell.error.splitlines()
    assert first.startswith("error: ") and wrong in first
    assert second.startswith("  usage: nasplat ") and f"nasplat {usage}" in third


def test_without_a_command_the_help_is_shown(shell: Shell) -> None:
    assert "Usage: nasplat" in shell("") and shell.code == 0


def test_several_mistakes_are_told_at_once(shell: Shell) -> None:
    shell("search small.yaml --set train.epoch=2 --set search.strategy=randon")
    assert shell.error.splitlines()[0] == "error: the experiment has 2 mistakes"
    assert "did you mean 'epochs'?" in shell.error and "did you mean 'random'?" in shell.error


def test_looking_at_a_run_needs_no_permission_to_write(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of somebody else's run, or on a file system that cannot be written."""
    shell("search small.yaml --export none")
    opened = os.open

    def read_only(path: str, flags: int, *rest: int) -> int:
        if flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            raise OSError(errno.EROFS, "Read-only file system", path)
        return opened(path, flags, *rest)

    monkeypatch.setattr(os, "open", read_only)
    assert "done: 4 of 4" in shell("status runs/small"), shell.error
    for line in ("train runs/small", "search runs/small --resume --trials 5"):
        shell(line)
        assert shell.code == 2 and "fault of nasplat" not in shell.error
        assert "runs/small" in shell.error and re.search("read-only", shell.error, re.IGNORECASE)


def test_debug_shows_the_traceback(shell: Shell) -> None:
    from nasplat.core.errors import NasplatError

    with pytest.raises(NasplatError):
        shell("status runs/none --debug")


def test_a_fault_in_the_users_code_is_one_line_with_a_hint(shell: Shell) -> None:
    Path("faulty_code.py").write_text("raise ZeroDivisionError('oh')\n")
    shell("profile faulty_code:network")
    assert shell.code == 1
    assert "ZeroDivisionError: oh" in shell.error and "--debug" in shell.error


def test_looking_around(shell: Shell) -> None:
    assert "darts" in shell("spaces")
    out = shell("spaces nasbench201 --svg cell.svg")
    assert "15,625" in out and Path("cell.svg").exists()
    assert "ok" in shell("doctor") and shell.code == 0
    assert '"$schema"' in shell("schema")
    shell("schema -o here.json")
    assert Path("here.json").exists()
    assert re.fullmatch(r"\d+\.\d+\.\d+", shell("--version").strip())


def start_long_search(folder: Path, steps: int, executor: str) -> subprocess.Popen[str]:
    """A search that runs until it is stopped."""
    text = EXPERIMENT.replace("steps: 3", f"steps: {steps}").replace("trials: 4", "trials: 400")
    (folder / "small.yaml").write_text(text)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "nasplat", "search", "small.yaml", "--export", "none", "--executor", executor]
    return subprocess.Popen(command, cwd=folder, env=environment, stdout=subprocess.PIPE, text=True)


def wait_for(folder: Path, pattern: str, count: int) -> None:
    until = time.monotonic() + 120
    while len(list(folder.glob(pattern))) < count and time.monotonic() < until:
        time.sleep(0.05)


def shown_status(folder: Path) -> str:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "nasplat", "status", "runs/small"]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=True).stdout


def test_status_tells_a_running_search_from_a_dead_one(tmp_path: Path) -> None:
    process = start_long_search(tmp_path, steps=30, executor="inline")
    wait_for(tmp_path, "runs/small/trials/*/record.json", 2)
    assert f"running (process {process.pid})" in shown_status(tmp_path)
    process.kill()
    process.communicate(timeout=60)
    dead = shown_status(tmp_path)
    assert "running (process" not in dead and "stopped" in dead and "--resume" in dead
    assert re.search(r"\d+ of 400 architectures evaluated", dead)


def test_ctrl_c_once_finishes_the_trials_that_run_and_tells_how_to_go_on(tmp_path: Path) -> None:
    process = start_long_search(tmp_path, steps=30, executor="inline")
    wait_for(tmp_path, "runs/small/trials/*/record.json", 2)
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=120)
    assert process.returncode == 130, "a script can tell it from a search that is done"
    assert "Ctrl-C again to stop now" in out
    assert "interrupted: " in out and "unfinished" not in out
    assert "nasplat search runs/small --resume" in out
    assert (tmp_path / "runs/small/report.html").exists()


@pytest.mark.parametrize("executor", ["inline", "processes"])
def test_ctrl_c_twice_stops_now_and_tells_how_to_go_on(tmp_path: Path, executor: str) -> None:
    process = start_long_search(tmp_path, steps=10**6, executor=executor)
    wait_for(tmp_path, "runs/small/trials/*/log.txt" if executor == "processes" else "runs/small/trials/*", 1)
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 130
    found = status(tmp_path / "runs/small")
    assert f"stopped: {found.evaluated} of 400 architectures evaluated; what is finished is safe" in out
    assert "nasplat search runs/small --resume" in out and "nasplat report runs/small" in out
    assert found.counts["unfinished"] >= 1 and "running" not in found.counts
