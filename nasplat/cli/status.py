"""`nasplat status`: where a running or dead search stands."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from nasplat.cli.tables import print_next, print_table
from nasplat.jobs.command import command


def status(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="The run directory, such as runs/quickstart.")],
) -> None:
    """Tell where a search stands, whether it runs or not: what is done, the front so far, how to go on."""
    from rich.console import Console
    from rich.markup import escape

    from nasplat.cli.live import front_table
    from nasplat.cli.numbers import duration
    from nasplat.core.front import Score
    from nasplat.jobs.status import status as read_status

    found = read_status(run)
    console = Console(highlight=False)
    console.print(f"[bold]{escape(str(run))}[/] {found.summary}", soft_wrap=True)
    states = ", ".join(f"{count} {state}" for state, count in sorted(found.counts.items()))
    console.print(f"proposals: {states or 'none yet'}", soft_wrap=True)
    for reason, count in found.reasons.items():
        console.print(f"  [yellow]{count} failed:[/] {escape(reason)}", soft_wrap=True)
    if found.last_change is not None:
        console.print(f"last change {duration(found.last_change)} ago")
    if found.unfinished:
        numbers = ", ".join(map(str, found.unfinished))
        console.print(f"{'running' if found.process else 'left unfinished'}: trials {numbers}", soft_wrap=True)
    if found.paused:
        console.print(f"paused by early stopping: trials {', '.join(map(str, found.paused))}", soft_wrap=True)
    if found.front:
        scores = [Score(one.architecture, one.metrics, {"number": one.number}) for one in found.front]
        console.print()
        print_table(
            console, front_table(scores, found.goals, f"front: {len(scores)} of {len(found.run.candidates)} candidates")
        )
    if found.process is None:
        console.print()
        if found.done:
            print_next(console, {"extend": command("search", run, "--resume", "--trials", "N")})
        else:
            print_next(console, {"go on": command("search", run, "--resume")})
