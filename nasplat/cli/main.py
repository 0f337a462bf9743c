"""The command line: one file a verb, imported here without torch, optuna or ray."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from nasplat import __version__
from nasplat.cli import doctor, export, profile, report, schema, search, spaces, status, train
from nasplat.core.errors import NasplatError

app = typer.Typer(
    help="Neural architecture search: from images and a budget to a Pareto front of networks.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)
for verb in (
    search.search,
    status.status,
    report.report,
    export.export,
    train.train,
    spaces.spaces,
    profile.profile,
    doctor.doctor,
    schema.schema,
):
    app.command()(verb)


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
        app(args=arguments, prog_name="nasplat")
    except NasplatError as error:
        if debug:
            raise
        print_error(error)
        sys.exit(2)
    except Exception as error:
        if debug:
            raise
        print_error(
            NasplatError(
                f"unexpected {type(error).__name__}: {error}",
                "the same command with --debug shows where; if that is not code of your own, it is a fault of nasplat",
            )
        )
        sys.exit(1)


def print_error(error: NasplatError) -> None:
    """What is wrong in one line, what to do in another, on standard error."""
    from rich.console import Console
    from rich.text import Text

    console = Console(stderr=True, soft_wrap=True, highlight=False)
    console.print(Text.assemble(("error: ", "bold red"), error.message))
    if error.advice:
        console.print(Text.assemble("  ", error.advice))
