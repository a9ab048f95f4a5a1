"""Live progress: one bar a stage, with time left, and the seconds that each stage took."""

import contextlib
import time
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

Advance = Callable[[int], None]


class Stages:
    """Runs named stages under one live display.

    Attributes:
        seconds: wall seconds of each finished stage, in order.
    """

    def __init__(self, console: Console):
        self.console = console
        self.seconds: dict[str, float] = {}
        self._progress = Progress(
            TextColumn("{task.description:<42}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("elapsed"),
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
    def stage(self, key: str, description: str, total: int) -> Iterator[Advance]:
        """One stage of `total` units; yields the function that reports units as done."""
        task = self._progress.add_task(description, total=max(total, 1))
        start = time.perf_counter()
        try:
            yield lambda done: self._progress.advance(task, done)
        finally:
            self.seconds[key] = round(time.perf_counter() - start, 3)
        self._progress.update(task, completed=max(total, 1))

    def note(self, text: str) -> None:
        """A line above the bars."""
        self.console.print(text, markup=False, highlight=False)
