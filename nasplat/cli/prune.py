"""`nasplat prune`: a trained network made smaller."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nasplat.cli.tables import plain_table, print_next, print_table
from nasplat.cli.work_view import WorkView

if TYPE_CHECKING:
    from rich.console import Console

    from nasplat.jobs.prune import Outcome


def prune(
    file: Annotated[
        Path | None, typer.Argument(metavar="FILE", help="A pruning file; options change what it says.")
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(help="module:function that makes the network, such as torchvision.models:resnet18; or RUN/ARCH."),
    ] = None,
    checkpoint: Annotated[Path | None, typer.Option(help="Its trained weights: .pth, .pt or .safetensors.")] = None,
    data: Annotated[
        str | None, typer.Option(help="Images: a folder of class folders, an .npz, or a source such as digits.")
    ] = None,
    macs: Annotated[float | None, typer.Option(help="Share of the MACs that is left, or a number above 1.")] = None,
    params: Annotated[float | None, typer.Option(help="The same of the parameters.")] = None,
    latency: Annotated[float | None, typer.Option(help="Share of the time that a forward pass takes here.")] = None,
    round_to: Annotated[int | None, typer.Option(min=1, help="Widths become multiples of this.")] = None,
    criterion: Annotated[str | None, typer.Option(help="Which channels matter, such as l1 or taylor.")] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="1 is one-shot; more prune little by little.")] = None,
    blocks: Annotated[int | None, typer.Option(min=0, help="Whole residual blocks to remove first.")] = None,
    epochs: Annotated[float | None, typer.Option(help="Of fine-tuning; none by default.")] = None,
    distill: Annotated[bool, typer.Option("--distill", help="Fine-tune with the unpruned network as teacher.")] = False,
    run: Annotated[Path | None, typer.Option(help="Where everything is written.  [default: runs/NAME]")] = None,
    changes: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Any key: --set importance.scope=local")
    ] = None,
) -> None:
    """Make a trained network smaller, prove that the cut is right, and write files that load without nasplat.

    Can be interrupted; the same command goes on.
    """
    from rich.console import Console

    from nasplat.jobs.prune import prune as run_pruning
    from nasplat.jobs.settings_file import load_pruning

    options: dict[str, Any] = {
        "model": model,
        "checkpoint": None if checkpoint is None else str(checkpoint),
        "budget.macs": macs,
        "budget.params": params,
        "budget.latency": latency,
        "budget.round_to": round_to,
        "importance.criterion": criterion,
        "steps": steps,
        "blocks": blocks,
        "train.epochs": epochs,
    }
    if distill:
        options["train.distill"] = {}
    if data is not None:
        options["data.path" if Path(data).expanduser().exists() else "data.source"] = data
    overrides = [f"{key}={json.dumps(value)}" for key, value in options.items() if value is not None]
    settings = load_pruning(file, [*overrides, *(changes or ())])
    console = Console(highlight=False)
    directory = run or Path("runs") / settings.name
    console.print(f"[bold]{settings.name}[/]: {settings.model}, into {directory}", soft_wrap=True)
    view = WorkView(console)
    try:
        with view:
            outcome = run_pruning(settings, directory, say=view.say, on_progress=view.on_progress)
    except KeyboardInterrupt as stop:
        console.print("stopped: what was trained is safe, and the same command goes on", soft_wrap=True)
        raise typer.Exit(130) from stop
    _print(console, outcome)


def _print(console: Console, outcome: Outcome) -> None:
    from nasplat.artifacts.metric_names import label, text

    console.print()
    stages = outcome.pruned.stages
    columns = ("MACs", "params", *(label(name).lower() for name in stages[0].metrics))
    table = plain_table("", *columns, right=columns)
    for stage in stages:
        # Before and after fine-tuning, where there was one.
        shares = (
            " → ".join(text(name, one[name]) for one in (stage.cut, stage.metrics) if one) for name in stages[0].metrics
        )
        table.add_row(stage.title, text("macs", stage.macs), text("params", stage.params), *shares)
    print_table(console, table)
    if any(stage.cut for stage in stages):
        console.print("on test images: when cut → after fine-tuning", style="dim")
    console.print()
    table = plain_table("milliseconds a forward pass", "before", "after", "", right=("before", "after", ""))
    for batch, (before, after) in outcome.latencies.items():
        times = (f"{one.median:.2f} ± {one.spread:.2f}" for one in (before, after))
        table.add_row(f"batch {batch}", *times, f"{after.median / before.median:.0%}")
    print_table(console, table)
    console.print()
    for warning in outcome.warnings:
        console.print(f"warning: {warning}", style="yellow", soft_wrap=True)
    print_next(console, {name: str(path) for name, path in outcome.paths.items()})
