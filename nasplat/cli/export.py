"""`nasplat export`: networks of a run as files that load anywhere."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def export(
    target: Annotated[
        Path, typer.Argument(metavar="RUN|RUN/ARCH", help="A run, or one architecture of it by trial or digest.")
    ],
    formats: Annotated[
        list[str] | None,
        typer.Option(
            "--format",
            metavar="FORMAT",
            help="safetensors, onnx or torch_export; give it once a format.  [default: all]",
        ),
    ] = None,
    top: Annotated[int, typer.Option(min=1, help="How many of the front, best on the first goal first.")] = 1,
    final: Annotated[bool, typer.Option("--final", help="The networks that `nasplat train` trained.")] = False,
    task: Annotated[
        list[str] | None,
        typer.Option(metavar="TASK", help="Of several tasks only this; once a task. One alone has one output."),
    ] = None,
) -> None:
    """Write networks as architecture JSON, safetensors, ONNX and torch.export, with a model card.

    Every file is loaded back and compared with the network before it counts as done.
    """
    from nasplat.jobs.export import FORMATS
    from nasplat.jobs.export import export as run_export

    chosen = tuple(formats or FORMATS)
    folders = run_export(target, top=top, formats=chosen, final=final, tasks=tuple(task or ()), say=typer.echo)
    for folder in folders:
        typer.echo(f"wrote    {folder}: {', '.join(sorted(path.name for path in folder.iterdir()))}")
