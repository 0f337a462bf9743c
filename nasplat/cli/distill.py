"""`nasplat distill`: a student taught by trained networks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nasplat.cli.tables import plain_table, print_next, print_table
from nasplat.cli.work_view import WorkView

if TYPE_CHECKING:
    from rich.console import Console

    from nasplat.jobs.distill import Outcome

FEATURES = ("hint", "attention", "relation")
NETWORK = "module:function, a folder of nasplat prune, or RUN/ARCH of a search"


def distill(
    file: Annotated[
        Path | None, typer.Argument(metavar="FILE", help="A distillation file; options change what it says.")
    ] = None,
    student: Annotated[str | None, typer.Option(help=f"Who learns: {NETWORK}.")] = None,
    checkpoint: Annotated[Path | None, typer.Option(help="The student's weights, if it has any.")] = None,
    teacher: Annotated[list[str] | None, typer.Option(help="Who teaches, the same; may be given again.")] = None,
    teacher_checkpoint: Annotated[
        list[Path] | None, typer.Option(help="The teacher's weights; of several in the same order.")
    ] = None,
    data: Annotated[
        str | None, typer.Option(help="Images: a folder of class folders or of images, an .npz, or a source.")
    ] = None,
    objective: Annotated[
        str | None,
        typer.Option(help="logits, decoupled, logit_mse; or beside logits: hint, attention, relation."),
    ] = None,
    labels: Annotated[float | None, typer.Option(min=0, help="Weight of the labels beside the teachers.")] = None,
    temperature: Annotated[float | None, typer.Option(help="By which answers are softened.")] = None,
    epochs: Annotated[float | None, typer.Option(help="Of training.")] = None,
    run: Annotated[Path | None, typer.Option(help="Where everything is written.  [default: runs/NAME]")] = None,
    changes: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Any key: --set train.lr=0.01")
    ] = None,
) -> None:
    """Teach a small network what trained ones know, with labels or without, and write files that load without nasplat.

    Can be interrupted; the same command goes on.
    """
    from rich.console import Console

    from nasplat.core.errors import NasplatError
    from nasplat.jobs.distill import distill as run_distillation
    from nasplat.jobs.settings_file import load_distillation

    weights = teacher_checkpoint or []
    if len(weights) not in (0, len(teacher or ())):
        raise NasplatError(
            f"{len(teacher or ())} teachers and {len(weights)} of their checkpoints are given", "give one for each"
        )
    options: dict[str, Any] = {
        "student.model": student,
        "student.checkpoint": None if checkpoint is None else str(checkpoint),
        "train.distill.weights": weights_of(objective),
        "train.distill.labels": labels,
        "train.distill.temperature": temperature,
        "train.epochs": epochs,
    }
    if teacher:
        options["train.distill.teachers"] = [
            {"model": one, **({"checkpoint": str(weights[place])} if weights else {})}
            for place, one in enumerate(teacher)
        ]
    if data is not None:
        options["data.path" if Path(data).expanduser().exists() else "data.source"] = data
    overrides = [f"{key}={json.dumps(value)}" for key, value in options.items() if value is not None]
    settings = load_distillation(file, [*overrides, *(changes or ())])
    console = Console(highlight=False)
    directory = run or Path("runs") / settings.name
    console.print(f"[bold]{settings.name}[/]: {settings.student.model}, into {directory}", soft_wrap=True)
    view = WorkView(console)
    try:
        with view:
            outcome = run_distillation(settings, directory, say=view.say, on_progress=view.on_progress)
    except KeyboardInterrupt as stop:
        console.print("stopped: what was trained is safe, and the same command goes on", soft_wrap=True)
        raise typer.Exit(130) from stop
    _print(console, outcome)


def weights_of(objective: str | None) -> dict[str, float] | None:
    """That objective alone; of features beside logits, or the student's classifier would stay as it is."""
    if objective is None:
        return None
    return {"logits": 1.0, objective: 1.0} if objective in FEATURES else {objective: 1.0}


def _print(console: Console, outcome: Outcome) -> None:
    from nasplat.artifacts.metric_names import label, text

    console.print()
    names = tuple(outcome.rows[-1].metrics)
    agree = outcome.rows[-1].agreement is not None
    columns = ("MACs", "params", *(label(name).lower() for name in names), *["agreement"] * agree)
    table = plain_table("on test images", *columns, right=columns)
    for row in outcome.rows:
        shares = [text(name, row.metrics[name]) if name in row.metrics else "" for name in names]
        shares += ["" if row.agreement is None else f"{row.agreement:.2%}"] * agree
        table.add_row(row.title, text("macs", row.macs), text("params", row.params), *shares)
    print_table(console, table)
    if agree:
        console.print("agreement: how often it says what the teachers together say", style="dim")
    console.print()
    print_next(console, {name: str(path) for name, path in outcome.paths.items()})
