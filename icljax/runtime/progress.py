"""Live progress: one bar a stage, with time left, and the seconds that each stage took."""

import contextlib
import dataclasses
import time
from collections.abc import Iterator
from typing import Protocol

from rich.console import Console
from rich.progress import (
    BarColumn,
    Task,
    TaskID,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as Live
from rich.text import Text


class Progress(Protocol):
    """Takes how many units are done of how many, where the total is known only on the way."""

    def __call__(self, done: int, total: int, unit: str = "", /) -> None:
        """Says so; `unit`: "bytes", or "" for what is counted in percent."""


@dataclasses.dataclass(frozen=True)
class Bar:
    """The bar of one stage; called with a number of units, it says that they are done."""

    progress: Live
    task: TaskID

    def __call__(self, done: int) -> None:
        """Adds units to those done."""
        self.progress.advance(self.task, done)

    def at(self, done: int, total: int, unit: str = "", /) -> None:
        """As `Progress`."""
        self.progress.update(self.task, completed=done, total=max(total, 1), unit=unit)


class _Amount(TaskProgressColumn):
    """The percentage that is done; of bytes, how many of how many."""

    def render(self, task: Task) -> Text:
        """What a bar shows."""
        if task.fields.get("unit") != "bytes":
            return super().render(task)
        return Text(f"{task.completed / 1e6:.0f}/{(task.total or 0) / 1e6:.0f} MB")


class Stages:
    """Runs named stages under one live display.

    Attributes:
        seconds: wall seconds of each finished stage, in order.
    """

    def __init__(self, console: Console):
        self.console = console
        self.seconds: dict[str, float] = {}
        self._progress = Live(
            TextColumn("{task.description:<34}"),
            BarColumn(bar_width=10),
            _Amount(),
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
