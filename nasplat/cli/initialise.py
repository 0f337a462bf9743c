"""`nasplat initialise`: weights for any network from a trained graph hypernetwork."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

SHOWN = 12  # names of parameters


def initialise(
    model: Annotated[
        str,
        typer.Option(help="module:function that makes the network, such as torchvision.models:resnet18; or RUN/ARCH."),
    ],
    weights: Annotated[
        Path, typer.Option(help="A run with weights: {source: graph_hypernetwork}, or its weights/source.safetensors.")
    ],
    out: Annotated[Path, typer.Option(help="Where the weights are written.")] = Path("init.safetensors"),
    input_shape: Annotated[
        str | None,
        typer.Option("--input", help="Channels,height,width.  [default: those of the images, or of the training]"),
    ] = None,
    data: Annotated[
        str | None, typer.Option(help="Images to measure batch norm on: a folder, an .npz, or a source such as digits.")
    ] = None,
    changes: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="--set arguments.num_classes=10, noise=0, seed=1, data.mean=…"),
    ] = None,
) -> None:
    """Give a network weights that a graph hypernetwork generates in one pass, to be trained from there.

    A search with the section `weights: {source: graph_hypernetwork}` trains one, best on a space of the family diverse.
    """
    from rich.console import Console

    from nasplat.jobs.initialise import initialise as run_initialisation
    from nasplat.jobs.profile import parse_shape
    from nasplat.jobs.settings_file import load_initialisation

    options: dict[str, Any] = {"model": model, "input": parse_shape(input_shape) if input_shape else None}
    if data is not None:
        options["data.path" if Path(data).expanduser().exists() else "data.source"] = data
    overrides = [f"{key}={json.dumps(value)}" for key, value in options.items() if value is not None]
    settings = load_initialisation([*overrides, *(changes or ())])
    console = Console(highlight=False, soft_wrap=True, markup=False)
    done = run_initialisation(settings, weights, out, say=console.print)
    console.print(f"{done.generated:,} of {done.params:,} weights were generated, in {out}")
    if done.kept:
        more = f" and {len(done.kept) - SHOWN} more" if len(done.kept) > SHOWN else ""
        console.print(f"these kept the value that the model gives them: {', '.join(done.kept[:SHOWN])}{more}")
