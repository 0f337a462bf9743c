"""Import time is a feature: help, schemas and wrong files are answered without loading torch or ray."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
HEAVY = (
    "torch",
    "torchvision",
    "ray",
    "optuna",
    "plotly",
    "sklearn",
    "onnx",
    "onnxruntime",
    "fvcore",
    "thop",
    "pandas",
)
VERBS = ("search", "status", "report", "export", "train", "spaces", "profile", "doctor", "schema")

# Runs the command line and prints which heavy packages it loaded.
PROBE = """
import json, sys
sys.argv = ["nasplat", *sys.argv[1:]]
from nasplat.cli.main import main
try:
    main()
except SystemExit as end:
    code = end.code
print("LOADED " + json.dumps([name for name in HEAVY if name in sys.modules]), file=sys.stderr)
raise SystemExit(code)
""".replace("HEAVY", repr(HEAVY))


def loaded(*arguments: str) -> tuple[subprocess.CompletedProcess[str], list[str]]:
    command = [sys.executable, "-c", PROBE, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=120)
    line = next(line for line in done.stderr.splitlines() if line.startswith("LOADED"))
    return done, json.loads(line.removeprefix("LOADED "))


@pytest.mark.parametrize(
    "arguments", [("--help",), ("--version",), *((verb, "--help") for verb in VERBS)], ids=" ".join
)
def test_help_loads_nothing_heavy(arguments: tuple[str, ...]) -> None:
    done, names = loaded(*arguments)
    assert done.returncode == 0, done.stderr
    assert names == []


def test_help_names_every_verb() -> None:
    done, _ = loaded("--help")
    for verb in VERBS:
        assert verb in done.stdout


def test_the_schema_and_a_wrong_experiment_need_no_torch(tmp_path: Path) -> None:
    done, names = loaded("schema")
    assert done.returncode == 0 and "torch" not in names
    wrong = tmp_path / "wrong.yaml"
    wrong.write_text("spase: x\n")
    done, names = loaded("search", str(wrong))
    assert done.returncode == 2
    assert "did you mean 'space'?" in done.stderr
    assert "torch" not in names and "ray" not in names


def test_core_works_where_torch_cannot_be_imported() -> None:
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "import nasplat.core.architecture, nasplat.core.choice, nasplat.core.cost, nasplat.core.experiment\n"
        "import nasplat.core.front, nasplat.core.graph, nasplat.core.problem, nasplat.core.space\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
