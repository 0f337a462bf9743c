"""`nasplat report`: a run on one page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from nasplat.core.errors import NasplatError


def report(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="The run directory, such as runs/quickstart.")],
    svg: Annotated[Path | None, typer.Option(help="Also write the picture of the front to this file.")] = None,
) -> None:
    """Write the table, the pictures and the self-contained HTML page of a run, finished or not."""
    from nasplat.jobs.report import picture, picture_axes, write_results
    from nasplat.jobs.runs import open_run

    found = open_run(run)
    for name, path in write_results(found).items():
        typer.echo(f"{name:<8} {path}")
    if svg is not None:
        axes = picture_axes(found)
        if axes is None:
            raise NasplatError(f"{run} has no front to draw: a picture needs two goals and a candidate")
        svg.write_text(picture(found, *axes), encoding="utf-8")
        typer.echo(f"picture  {svg}")
