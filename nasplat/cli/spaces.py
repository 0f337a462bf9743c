"""`nasplat spaces`: the search spaces that there are, and what one looks like."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from nasplat.cli.tables import plain_table, print_table
from nasplat.jobs.command import command


def spaces(
    file: Annotated[
        str | None,
        typer.Argument(
            metavar="SPACE", help="A space or an experiment; without one all that come with nasplat are listed."
        ),
    ] = None,
    input_shape: Annotated[str, typer.Option("--input", help="Channels,height,width of the images.")] = "3,32,32",
    classes: Annotated[int, typer.Option(min=1, help="Classes of the images.")] = 10,
    seed: Annotated[int, typer.Option(min=0, help="Which random architecture is drawn.")] = 0,
    svg: Annotated[Path | None, typer.Option(help="Also write the drawing as an SVG file.")] = None,
) -> None:
    """List the search spaces, or show one: its choices, a random architecture of it, and what that costs."""
    from rich.console import Console
    from rich.markup import escape

    from nasplat.artifacts.metric_names import label, text
    from nasplat.jobs.profile import parse_shape
    from nasplat.jobs.spaces import ready_spaces, show

    console = Console(highlight=False, soft_wrap=True)
    if file is None:
        table = plain_table("space", "choices", "assignments", "", right=("choices", "assignments"))
        for ready in ready_spaces():
            table.add_row(ready.name, str(ready.choices), _count(ready.size), escape(ready.about))
        print_table(console, table)
        example = command("spaces", "darts")
        console.print(f"\nshow one: {example}; they are files in search_spaces/, to copy and edit", markup=False)
        return
    shown = show(file, parse_shape(input_shape), classes, seed)
    console.print(f"[bold]{escape(shown.title)}[/]: {_count(shown.space.count())} assignments\n")
    for options, names in shown.choices.items():
        console.print(f"{escape(', '.join(names))}\n    [dim]{escape(', '.join(map(str, options)))}[/]")
    console.print(f"\n[bold]architecture {shown.architecture.digest[:8]}[/] (seed {seed})")
    for name, picture in shown.drawings.items():
        console.print(f"\n{name}", style="dim")
        console.print(picture, markup=False, soft_wrap=True)
    cost = ", ".join(f"{label(name)} {text(name, value)}" for name, value in shown.cost.items())
    console.print(f"\nat {input_shape} with {classes} classes: {cost}", soft_wrap=True)
    if svg is not None:
        svg.write_text(shown.svg, encoding="utf-8")
        console.print(f"wrote {svg}")


def _count(number: int) -> str:
    return f"{number:,}" if number < 10**7 else f"{number:.1e}"
