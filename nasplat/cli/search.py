"""`nasplat search`: from an experiment file to a front of networks."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from nasplat.cli.tables import print_next, print_table
from nasplat.core.errors import NasplatError
from nasplat.jobs.command import command

if TYPE_CHECKING:
    from rich.console import Console

    from nasplat.artifacts.ranking import Ranking
    from nasplat.jobs.search import Outcome, Prepared


def search(
    experiment: Annotated[
        Path, typer.Argument(metavar="EXPERIMENT", help="The experiment file, such as experiments/quickstart.yaml.")
    ],
    run: Annotated[Path | None, typer.Option(help="Where everything is written.  [default: runs/NAME]")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run that is there, or extend it.")] = False,
    trials: Annotated[int | None, typer.Option(min=1, help="Architectures to evaluate, in all.")] = None,
    executor: Annotated[Literal["inline", "processes", "ray"] | None, typer.Option(help="Where trials run.")] = None,
    workers: Annotated[int | None, typer.Option(min=1, help="Trials at once.")] = None,
    address: Annotated[str | None, typer.Option(help="Of a Ray cluster: auto or HOST:PORT")] = None,
    export: Annotated[
        Literal["best", "front", "none"], typer.Option(help="What is written as ONNX when it is done.")
    ] = "best",
    explain: Annotated[
        bool, typer.Option("--explain", help="Say why each candidate is chosen, dropped or trained on.")
    ] = False,
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
        ("run.address", address),
    ):
        if value is not None:
            overrides.append(f"{key}={value}")
    console = Console(highlight=False)
    prepared = prepare(experiment, run, resume=resume, overrides=overrides)
    console.print(_title(prepared), soft_wrap=True)
    settings = prepared.experiment
    workers = 0 if settings.run.executor == "inline" else settings.run.workers
    try:
        goals = goals_of(settings.score)
        with SearchView(console, goals, settings.search.trials, workers, explain=explain) as view:
            outcome = run_and_report(prepared, export=export, on_event=view.on_event, say=view.after)
    except KeyboardInterrupt as stop:
        _print_stopped(console, prepared.directory)
        raise typer.Exit(130) from stop
    _print_outcome(console, outcome)
    if view.interrupted:
        raise typer.Exit(130)


def _title(prepared: Prepared) -> str:
    experiment = prepared.experiment
    assert isinstance(experiment.space, dict)
    run = experiment.run
    cluster = f"Ray at {run.address}" if run.address else "Ray on this machine"
    where = {
        "inline": "in this process",
        "processes": f"in {run.workers} processes",
        "ray": f"{run.workers} at once on {cluster}",
    }[run.executor]
    subject = f"{experiment.space['family']} on {experiment.data.name}"
    if experiment.tabular:
        subject = f"the table {Path(experiment.space['table']).name}"
    return f"[bold]{experiment.name}[/]: {subject}, {experiment.search.strategy}, {where}, into {prepared.directory}"


def _print_stopped(console: Console, directory: Path) -> None:
    from nasplat.jobs.runs import is_run
    from nasplat.jobs.status import status

    try:
        found = status(directory).summary if is_run(directory) else ""
    except NasplatError:  # it has no study yet
        found = ""
    if not found:
        console.print("stopped before the first trial")
        return
    console.print(f"{found}; what is finished is safe", soft_wrap=True)
    print_next(console, {"go on": command("search", directory, "--resume"), "report": command("report", directory)})


def _print_outcome(console: Console, outcome: Outcome) -> None:
    from nasplat.artifacts.metric_names import counted
    from nasplat.cli.live import front_table
    from nasplat.cli.numbers import duration

    console.print()
    if outcome.front:
        title = f"front: {len(outcome.front)} of {counted(outcome.complete, 'candidate')}"
        print_table(console, front_table(outcome.front, outcome.goals, title))
    else:
        console.print("no candidate was evaluated to its end, so there is no front", style="yellow")
    for ranking in outcome.rankings:
        _print_ranking(console, ranking)
    console.print()
    console.print(f"{outcome.summary} in {duration(outcome.seconds)}", soft_wrap=True)
    print_next(console, {name: str(path) for name, path in outcome.paths.items()})
    if outcome.next_command:
        print_next(console, {"go on": outcome.next_command})


def _print_ranking(console: Console, ranking: Ranking) -> None:
    from nasplat.artifacts.metric_names import label
    from nasplat.artifacts.ranking import bounded, number, verdict
    from nasplat.cli.tables import plain_table
    from nasplat.core.rank_correlation import FEWEST_BEST

    console.print()
    if ranking.rows:
        columns = ["Kendall’s τ", "Spearman’s ρ", "ahead by τ", "ahead by ρ"]
        best = ranking.rows[0].count_best >= FEWEST_BEST
        columns += ["τ of the best tenth", "ρ of the best tenth"] if best else []
        table = plain_table("score", *columns, title=f"ranking by {ranking.by}", right=tuple(columns))
        for place, (row, one) in enumerate(zip(ranking.rows, ranking.intervals, strict=True)):
            cells = [bounded(one.kendall), bounded(one.spearman)]
            leads = (one.kendall_lead, one.spearman_lead)
            cells += [bounded(lead, signed=True) if place else "" for lead in leads]
            cells += [number(row.kendall_best), number(row.spearman_best)] if best else []
            table.add_row(label(row.name), *cells)
        print_table(console, table)
    for sentence in (ranking.how, *verdict(ranking)):
        console.print(sentence, soft_wrap=True, markup=False)
