"""The scripts of a fresh clone, with a stand-in for Python so that nothing is installed."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

# Answers as python does where the scripts ask, makes a "virtual environment" that is itself, and notes the rest.
STAND_IN = """\
#!/usr/bin/env bash
case "$1 ${2:-}" in
    "-c "*) exit 0 ;;
    "--version "*) echo "Python 3.11.0"; exit 0 ;;
    "-m venv") mkdir -p "$4/bin"; cp "$0" "$4/bin/python"; exit 0 ;;
esac
[ "$2 ${3:-}" = "pip --version" ] && exit 0
echo "$PWD: $*" >> "$NOTES"
echo "${NASPLAT_COMMAND:-}" > "$NOTES.command"
"""


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    folder = tmp_path / "a clone with spaces"
    (folder / "scripts").mkdir(parents=True)
    for name in ("scripts/nasplat", "scripts/test", "scripts/environment.bash", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, folder / name)
    python = tmp_path / "python-stand-in"
    python.write_text(STAND_IN)
    python.chmod(0o755)
    return folder


def run(clone: Path, script: Path, *arguments: str, cwd: Path) -> tuple[subprocess.CompletedProcess[str], list[str]]:
    notes = clone.parent / "notes"
    notes.write_text("")
    environment = {
        "PATH": os.environ["PATH"],
        "NASPLAT_PYTHON": str(clone.parent / "python-stand-in"),
        "NOTES": str(notes),
    }
    done = subprocess.run([str(script), *arguments], cwd=cwd, env=environment, capture_output=True, text=True)
    return done, notes.read_text().splitlines()


def test_first_use_installs_and_the_second_starts_at_once(clone: Path, tmp_path: Path) -> None:
    done, notes = run(clone, clone / "scripts/nasplat", "search", "my file.yaml", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "setting up" in done.stderr and "ready" in done.stderr
    assert len(notes) == 2
    assert "pip install" in notes[0] and "-c constraints.txt" in notes[0] and notes[0].startswith(str(clone))
    assert notes[1] == f"{tmp_path}: -m nasplat search my file.yaml"
    done, notes = run(clone, clone / "scripts/nasplat", "status", cwd=tmp_path)
    assert notes == [f"{tmp_path}: -m nasplat status"]
    assert done.stderr == ""


def test_the_command_line_knows_how_it_was_called(clone: Path, tmp_path: Path) -> None:
    """Or the commands that it tells to type next would not work from a clone."""
    run(clone, Path("scripts/nasplat"), "doctor", cwd=clone)
    assert (tmp_path / "notes.command").read_text() == "scripts/nasplat\n"


def test_changed_requirements_are_installed(clone: Path, tmp_path: Path) -> None:
    run(clone, clone / "scripts/nasplat", cwd=tmp_path)
    with (clone / "pyproject.toml").open("a") as file:
        file.write("# changed\n")
    _, notes = run(clone, clone / "scripts/nasplat", cwd=tmp_path)
    assert "pip install" in notes[0]


def test_a_symbolic_link_from_elsewhere_works(clone: Path, tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    link = tmp_path / "bin" / "nasplat"
    link.symlink_to(Path("..") / clone.name / "scripts" / "nasplat")
    done, notes = run(clone, link, "doctor", cwd=tmp_path / "bin")
    assert done.returncode == 0, done.stderr
    assert notes[-1].endswith("-m nasplat doctor")
    assert (clone / ".venv/bin/python").exists()


def test_scripts_test_passes_its_arguments_to_pytest(clone: Path, tmp_path: Path) -> None:
    _, notes = run(clone, clone / "scripts/test", "tests/core", "-k", "digest", cwd=tmp_path)
    assert notes[-1] == f"{clone}: -m pytest tests/core -k digest"


def test_an_old_python_is_answered_with_advice(clone: Path, tmp_path: Path) -> None:
    (tmp_path / "python-stand-in").write_text("#!/usr/bin/env bash\nexit 1\n")
    done, notes = run(clone, clone / "scripts/nasplat", cwd=tmp_path)
    assert done.returncode == 2
    assert "no Python of 3.11 or newer" in done.stderr and "unset it" in done.stderr
    assert notes == []
