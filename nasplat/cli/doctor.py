"""`nasplat doctor`: what this machine, or a cluster, can do, and what is missing."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def doctor(
    address: Annotated[
        str | None, typer.Option(help="Look at the nodes of this Ray cluster: auto or HOST:PORT")
    ] = None,
    data: Annotated[
        Path | None, typer.Option(exists=True, help="Data that every node of the cluster must see.")
    ] = None,
) -> None:
    """Tell what this machine can do and what is missing. Exits 1 if something that is needed is broken."""
    from rich.console import Console
    from rich.markup import escape

    from nasplat.jobs.cluster import examine_cluster
    from nasplat.jobs.doctor import examine

    marks = {"good": "[green]ok     [/]", "limited": "[yellow]limited[/]", "broken": "[red]broken [/]"}
    console = Console(highlight=False, soft_wrap=True)
    broken = False
    runs = Path("runs")
    for finding in examine(runs) if address is None else examine_cluster(address, runs, data):
        console.print(f"{marks[finding.state]} [bold]{escape(finding.about):<12}[/] {escape(finding.detail)}")
        if finding.advice:
            console.print(f"{'':21}{escape(finding.advice)}")
        broken = broken or finding.state == "broken"
    if broken:
        raise typer.Exit(1)
