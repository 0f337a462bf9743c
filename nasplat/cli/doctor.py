"""`nasplat doctor`: what this machine can do, and what is missing."""

from __future__ import annotations

from pathlib import Path

import typer


def doctor() -> None:
    """Tell what this machine can do and what is missing. Exits 1 if something that is needed is broken."""
    from rich.console import Console
    from rich.markup import escape

    from nasplat.jobs.doctor import examine

    marks = {"good": "[green]ok     [/]", "limited": "[yellow]limited[/]", "broken": "[red]broken [/]"}
    console = Console(highlight=False, soft_wrap=True)
    broken = False
    for finding in examine(Path("runs")):
        console.print(f"{marks[finding.state]} [bold]{finding.about:<12}[/]{escape(finding.detail)}")
        if finding.advice:
            console.print(f"{'':20}{escape(finding.advice)}")
        broken = broken or finding.state == "broken"
    if broken:
        raise typer.Exit(1)
