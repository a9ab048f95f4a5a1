"""Live progress: one bar a stage, with time left, and the seconds that each stage took."""

import contextlib
import dataclasses
import time
from collections.abc import Iterator

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    TaskID,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)


@dataclasses.dataclass(frozen=True)
class Bar:
    """The bar of one stage; called with a number of units, it says that they are done."""

    progress: Progress
    task: TaskID

    def __call__(self, done: int) -> None:
        """Adds units to those done."""
        self.progress.advance(self.task, done)

    def at(self, done: int, total: int) -> None:
        """Says how many are done of how many, where the total is known only on the way."""
        self.progress.update(self.task, completed=done, total=max(total, 1))


class Stages:
    """Runs named stages under one live display.

    Attributes:
        seconds: wall seconds of each finished stage, in order.
    """

    def __init__(self, console: Console):
        self.console = console
        self.seconds: dict[str, float] = {}
        self._progress = Progress(
            TextColumn("{task.description:<34}"),
            BarColumn(bar_width=16),
            TaskProgressColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(elapsed_when_finished=False),
            console=console,
        )

    def __enter__(self) -> "Stages":
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    @contextlib.contextmanager
    def stage(self, key: str, description: str, total: int) -> Iterator["Bar"]:
        """One stage of `total` units; yields the bar to which done units are reported."""
        if not self.console.is_terminal:  # a log file has no live bar
            self.note(f"{description} ...")
        task = self._progress.add_task(description, total=max(total, 1))
        start = time.perf_counter()
        try:
            yield Bar(self._progress, task)
        finally:
            self.seconds[key] = round(time.perf_counter() - start, 3)
        self._progress.update(task, completed=self._progress.tasks[task].total)

    def note(self, text: str, style: str | None = None) -> None:
        """A line above the bars."""
        self.console.print(text, style=style, markup=False, highlight=False)
