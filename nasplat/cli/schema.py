"""`nasplat schema`: the JSON Schemas of files that nasplat reads."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer


def schema(
    kind: Annotated[
        Literal["experiment", "pruning", "distillation"], typer.Argument(help="Of which files.")
    ] = "experiment",
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Write it to a file.")] = None,
) -> None:
    """Print the JSON Schema of experiment, pruning or distillation files, for completion and checks in an editor.

    Name it in the first line of the file: # yaml-language-server: $schema=experiment.schema.json
    """
    import json

    from nasplat.jobs.schema import SCHEMAS

    text = json.dumps(SCHEMAS[kind](), indent=2) + "\n"
    if output is None:
        typer.echo(text, nl=False)
    else:
        output.write_text(text, encoding="utf-8")
        typer.echo(f"wrote {output}")
