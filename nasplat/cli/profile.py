"""`nasplat profile`: what a network costs, layer by layer, by every tool."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from nasplat.artifacts.metric_names import text
from nasplat.cli.tables import plain_table, print_table

if TYPE_CHECKING:
    from rich.console import Console

    from nasplat.networks.profile import Profile


def profile(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            help="A torchvision model, RUN (the best of its front), RUN/ARCH such as runs/quickstart/0, or "
            "module:function.",
        ),
    ],
    input_shape: Annotated[
        str | None,
        typer.Option("--input", help="Channels,height,width.  [default: the run's images, or 3,224,224]"),
    ] = None,
) -> None:
    """Print what a network costs layer by layer: by nasplat, fvcore, thop and FlopCounterMode, and why they differ.

    All numbers are multiply-accumulates at batch 1; FlopCounterMode counts two operations for each and is halved.
    """
    from rich.console import Console

    from nasplat.jobs.profile import parse_shape, profile_model

    title, found = profile_model(model, parse_shape(input_shape) if input_shape else None)
    _print(Console(highlight=False), title, found)


def _print(console: Console, title: str, found: Profile) -> None:
    tools = [tool for tool in ("fvcore", "thop", "FlopCounterMode") if tool not in found.failures]
    numbers_of = ("params", "MACs", *tools)
    table = plain_table("layer", "kind", *numbers_of, title=title, right=numbers_of)
    for row in found.rows:
        numbers = [_differs(row.tools[tool], row.macs) for tool in tools]
        table.add_row(row.name or "(itself)", row.kind, f"{row.params:,}", f"{row.macs:,}", *numbers)
    totals = found.totals()
    table.add_section()
    table.add_row(
        "total",
        "",
        f"{found.cost.params:,}",
        f"{found.cost.macs:,}",
        *(_differs(totals[tool], found.cost.macs) for tool in tools),
        style="bold",
    )
    print_table(console, table)
    peak = text("peak_bytes", found.cost.peak_bytes)
    console.print(f"\npeak activation memory at batch 1 in float32: {peak}")
    explanations = found.explanations()
    if explanations:
        console.print("\nwhere a tool differs from nasplat, and why (MACs):")
    for (tool, reason), difference in sorted(explanations.items()):
        console.print(f"  {tool:<16}{difference:>+18,}  {reason or 'no known reason'}", soft_wrap=True)
    for tool, reason in found.failures.items():
        console.print(f"  {tool:<16}could not count it: {reason}", soft_wrap=True)


def _differs(number: int, ours: int) -> str:
    return f"{number:,}" if number == ours else f"[yellow]{number:,}[/]"
