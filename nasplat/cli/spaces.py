"""`nasplat spaces`: the search spaces that there are, and what one looks like."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def spaces(
    file: Annotated[
        str | None, typer.Argument(help="A space or an experiment; without one all that come with nasplat are listed.")
    ] = None,
    input_shape: Annotated[str, typer.Option("--input", help="Channels,height,width of the images.")] = "3,32,32",
    classes: Annotated[int, typer.Option(min=1, help="Classes of the images.")] = 10,
    seed: Annotated[int, typer.Option(min=0, help="Which random architecture is drawn.")] = 0,
    svg: Annotated[Path | None, typer.Option(help="Also write the drawing as an SVG file.")] = None,
) -> None:
    """List the search spaces, or show one: its choices, a random architecture of it, and what that costs."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from nasplat.artifacts.metric_names import label, text
    from nasplat.jobs.profile import parse_shape
    from nasplat.jobs.spaces import ready_spaces, show

    console = Console(highlight=False)
    if file is None:
        table = Table(box=None, header_style="dim", pad_edge=False)
        for name in ("space", "family", "choices", "assignments", ""):
            table.add_column(name, justify="right" if name in ("choices", "assignments") else "left")
        for ready in ready_spaces():
            size = f"{ready.size:,}" if ready.size < 10**7 else f"{ready.size:.1e}"
            table.add_row(ready.file, ready.family, str(ready.choices), size, escape(ready.about))
        console.print(table)
        console.print("\nshow one: nasplat spaces search_spaces/darts.yaml; a space of your own: see the README")
        return
    shown = show(file, parse_shape(input_shape), classes, seed)
    table = Table(
        title=f"[bold]{escape(shown.title)}[/]", title_justify="left", box=None, header_style="dim", pad_edge=False
    )
    for name in ("choice", "options"):
        table.add_column(name, overflow="fold")
    for choice in shown.space.choices.values():
        table.add_row(choice.name, escape(", ".join(map(str, choice.options))))
    console.print(table)
    console.print(f"\n[bold]architecture {shown.architecture.digest[:8]}[/] (seed {seed})")
    for name, picture in shown.drawings.items():
        console.print(f"\n{name}", style="dim")
        console.print(picture, markup=False, soft_wrap=True)
    cost = ", ".join(f"{label(name)} {text(name, value)}" for name, value in shown.cost.items())
    console.print(f"\nat {input_shape} with {classes} classes: {cost}", soft_wrap=True)
    if svg is not None:
        svg.write_text(shown.svg, encoding="utf-8")
        console.print(f"wrote {svg}")
