"""`nasplat schema`: the JSON Schema of experiment files and of pruning files."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer


def schema(
    kind: Annotated[Literal["experiment", "pruning"], typer.Argument(help="Of which files.")] = "experiment",
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Write it to a file.")] = None,
) -> None:
    """Print the JSON Schema of experiment files, or of pruning files, for completion and checks in an editor.

    Name it in the first line of the file: # yaml-language-server: $schema=experiment.schema.json
    """
    import json

    from nasplat.jobs.schema import experiment_schema, pruning_schema

    found = experiment_schema() if kind == "experiment" else pruning_schema()
    text = json.dumps(found, indent=2) + "\n"
    if output is None:
        typer.echo(text, nl=False)
    else:
        output.write_text(text, encoding="utf-8")
        typer.echo(f"wrote {output}")
