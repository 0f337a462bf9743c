"""What a job that trains tells while it goes on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

    from nasplat.training.loop import Progress


class WorkView:
    """What is going on: a bar while something is trained, and a line for each thing that is done."""

    def __init__(self, console: Console) -> None:
        from rich.progress import BarColumn, Progress, TextColumn

        self._console = console
        self._task: Any = None
        self._name = ""
        self._progress = Progress(
            TextColumn("[bold]{task.description}"),
            BarColumn(32),
            TextColumn("{task.percentage:.0f} %"),
            TextColumn("{task.fields[left]}"),
            TextColumn("[dim]{task.fields[now]}"),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )

    def __enter__(self) -> None:
        self._progress.start()

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def say(self, message: str) -> None:
        self._console.print(message, markup=False, soft_wrap=True)

    def on_progress(self, name: str, progress: Progress) -> None:
        from nasplat.cli.numbers import duration

        if name != self._name:
            if self._task is not None:
                self._progress.remove_task(self._task)
            self._name = name
            self._task = self._progress.add_task(f"training {name}", total=1.0, left="", now="")
        self._progress.update(
            self._task,
            completed=progress.share,
            left=f"{duration(progress.seconds_left)} left",
            now=f"loss {progress.loss:.3f}, {progress.images_per_second:,.0f} images/s",
        )
