"""`nasplat schema`: the JSON Schema of experiment files."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def schema(
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Write it to a file.")] = None,
) -> None:
    """Print the JSON Schema of experiment files, for completion and checks in an editor.

    Name it in the first line of an experiment: # yaml-language-server: $schema=experiment.schema.json
    """
    import json

    from nasplat.jobs.schema import experiment_schema

    text = json.dumps(experiment_schema(), indent=2) + "\n"
    if output is None:
        typer.echo(text, nl=False)
    else:
        output.write_text(text, encoding="utf-8")
        typer.echo(f"wrote {output}")
