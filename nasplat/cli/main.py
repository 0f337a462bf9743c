"""The command line: one file a verb, imported here without torch, optuna or ray."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from nasplat import __version__
from nasplat.artifacts.files import file_error
from nasplat.cli import (
    distill,
    doctor,
    export,
    initialise,
    profile,
    prune,
    report,
    schema,
    search,
    spaces,
    status,
    train,
)
from nasplat.core.errors import NasplatError
from nasplat.jobs.command import command

app = typer.Typer(
    help="Neural architecture search and compression: from images and a budget to a Pareto front of networks, and "
    "from a trained network to a smaller one.",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)
for verb, example in (
    (search.search, "experiments/quickstart.yaml"),
    (status.status, "runs/quickstart"),
    (report.report, "runs/quickstart"),
    (export.export, "runs/quickstart --top 3"),
    (train.train, "runs/quickstart --top 3 --seeds 3"),
    (prune.prune, "--model torchvision.models:resnet18 --checkpoint my.pth --data ./images --macs 0.5"),
    (
        distill.distill,
        "--teacher torchvision.models:resnet50 --teacher-checkpoint big.pth --student torchvision.models:resnet18 "
        "--data ./images --epochs 20",
    ),
    (initialise.initialise, "--model torchvision.models:resnet18 --weights runs/mine --out init.safetensors"),
    (spaces.spaces, "darts"),
    (profile.profile, "resnet18"),
    (doctor.doctor, ""),
    (schema.schema, "--output experiment.schema.json"),
):
    app.command(epilog=f"for example: {command(verb.__name__, *example.split())}")(verb)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks; works anywhere on the line.")] = False,
) -> None:
    pass


def main() -> None:
    """Runs the command line. An error that the user can mend is two lines and exit code 2, without a traceback."""
    arguments = [argument for argument in sys.argv[1:] if argument != "--debug"]
    debug = len(arguments) < len(sys.argv) - 1
    try:
        # The code of an early exit is returned, and nothing by a command that ran to its end.
        sys.exit(app(args=arguments or ["--help"], prog_name=command(), standalone_mode=False))
    except typer.Abort:
        sys.exit(130)
    except Exception as error:
        if debug:
            raise
        explained, code = _explained(error)
        print_error(explained)
        sys.exit(code)


# The base of all errors in a command line; which module holds it differs between versions of typer.
_UsageError: Any = typer.BadParameter.__base__


def _explained(error: Exception) -> tuple[NasplatError, int]:
    """What to print, and the exit code: 2 for what the user can mend."""
    if isinstance(error, NasplatError):
        return error, 2
    if isinstance(error, _UsageError):
        return _in_our_words(error), 2
    if isinstance(error, OSError) and error.filename is not None:
        return file_error(error, Path(os.fsdecode(error.filename)), "open"), 2
    advice = "the same command with --debug shows where; if that is not code of your own, it is a fault of nasplat"
    return NasplatError(f"unexpected {type(error).__name__}: {error}", advice), 1


def _in_our_words(error: Any) -> NasplatError:
    """A usage error of typer with the usage, and an example, as advice."""
    message = error.format_message().rstrip(".").replace("Value error, ", "")
    usage = " ".join(error.ctx.get_usage().split()) if error.ctx else ""
    example = error.cmd.epilog if error.ctx and error.cmd.epilog else f"{command('--help')} lists the commands"
    return NasplatError(message[:1].lower() + message[1:], f"{usage[:1].lower()}{usage[1:]}\n{example}".strip())


def print_error(error: NasplatError) -> None:
    """What is wrong in one line, what to do in others, on standard error."""
    from rich.console import Console
    from rich.text import Text

    console = Console(stderr=True, soft_wrap=True, highlight=False)
    console.print(Text.assemble(("error: ", "bold red"), error.message))
    for line in error.advice.splitlines():
        console.print(Text.assemble("  ", line))
