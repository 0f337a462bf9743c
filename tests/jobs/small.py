"""A search that is over in a second, for tests of what comes before and after it."""

from pathlib import Path

from nasplat.jobs.search import Outcome, prepare, run_and_report

EXPERIMENT = """\
name: small
space: {family: nasbench201, cells: 1, channels: 4}
data: {source: digits, train_size: 120}
train: {steps: 3, batch_size: 16, augment: []}
search: {strategy: random, trials: 4}
run: {device: cpu}
final:
  train: {steps: 2}
  space: {channels: 8}
"""


def write(folder: Path, text: str = EXPERIMENT) -> Path:
    path = folder / "small.yaml"
    path.write_text(text)
    return path


def search(folder: Path, *overrides: str, resume: bool = False, export: str = "none") -> Outcome:
    prepared = prepare(write(folder), folder / "run", resume=resume, overrides=overrides)
    return run_and_report(prepared, export=export, on_event=lambda event: None, say=lambda message: None)  # type: ignore[arg-type]
