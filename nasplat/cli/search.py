"""`nasplat search`: from an experiment file to a front of networks."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from nasplat.cli.tables import print_table

if TYPE_CHECKING:
    from rich.console import Console

    from nasplat.jobs.search import Outcome, Prepared


def search(
    experiment: Annotated[Path, typer.Argument(help="The experiment file, such as experiments/quickstart.yaml.")],
    run: Annotated[Path | None, typer.Option(help="Where everything is written.  [default: runs/NAME]")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run that is there, or extend it.")] = False,
    trials: Annotated[int | None, typer.Option(min=1, help="Architectures to evaluate, in all.")] = None,
    executor: Annotated[Literal["inline", "processes"] | None, typer.Option(help="Where trials run.")] = None,
    workers: Annotated[int | None, typer.Option(min=1, help="Worker processes.")] = None,
    export: Annotated[
        Literal["best", "front", "none"], typer.Option(help="What is written as ONNX when it is done.")
    ] = "best",
    changes: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change the experiment: --set train.epochs=3")
    ] = None,
) -> None:
    """Search, and end with a front of networks, a report, and the best network as ONNX.

    Ctrl-C once lets the running trials finish, twice stops now; both can go on with --resume.
    """
    from rich.console import Console

    from nasplat.cli.live import SearchView
    from nasplat.jobs.search import prepare, run_and_report
    from nasplat.search.history import goals_of

    overrides = list(changes or ())
    for key, value in (
        ("search.trials", trials),
        ("run.executor", executor),
        ("run.workers", workers),
    ):
        if value is not None:
            overrides.append(f"{key}={value}")
    console = Console(highlight=False)
    prepared = prepare(experiment, run, resume=resume, overrides=overrides)
    console.print(_title(prepared), soft_wrap=True)
    try:
        with SearchView(console, goals_of(prepared.experiment.score), prepared.experiment.search.trials) as view:
            outcome = run_and_report(prepared, export=export, on_event=view.on_event, say=view.say)
    except KeyboardInterrupt as stop:
        console.print(
            f"stopped; what was finished is safe: nasplat search {prepared.directory} --resume", soft_wrap=True
        )
        raise typer.Exit(130) from stop
    _print_outcome(console, outcome)


def _title(prepared: Prepared) -> str:
    experiment = prepared.experiment
    assert isinstance(experiment.space, dict)
    run = experiment.run
    where = "in this process" if run.executor == "inline" else f"in {run.workers} processes"
    return (
        f"[bold]{experiment.name}[/]: {experiment.space['family']} cells on {experiment.data.source}, "
        f"{experiment.search.strategy}, {where}, into {prepared.directory}"
    )


def _print_outcome(console: Console, outcome: Outcome) -> None:
    from nasplat.cli.live import front_table
    from nasplat.cli.numbers import duration

    console.print()
    if outcome.front:
        print_table(console, front_table(outcome.front, outcome.goals, f"front of {outcome.complete} candidates"))
    else:
        console.print("no candidate was evaluated to its end, so there is no front", style="yellow")
    console.print()
    console.print(f"{outcome.summary} in {duration(outcome.seconds)}", soft_wrap=True)
    for name, path in outcome.paths.items():
        console.print(f"{name:<8} {path}", soft_wrap=True)
    if outcome.next_command:
        console.print(f"{'go on':<8} {outcome.next_command}", soft_wrap=True)
