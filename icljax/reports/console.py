"""Reports on the console: tables and lines as rich prints them."""

from collections.abc import Iterable
from pathlib import Path

import rich.table
from rich.console import Console
from rich.text import Text

from icljax.reports.document import Notice, Row, Table

WIDTH = 88


def show(console: Console, blocks: Iterable[str | Table | Notice], report: Path) -> None:
    """Prints the blocks, and where the report is, on a line of its own that can be copied."""
    width = min(console.width, WIDTH)
    for block in blocks:
        if isinstance(block, Table):
            console.print(_table(block), width=width, markup=False, highlight=False)
            for note in block.notes:
                console.print(Text(note, "dim"), width=width)
            console.print()
        elif isinstance(block, Notice):
            console.print(Text(block.text, "bold white on red"), width=width)
        else:
            console.print(block, width=width, markup=False, highlight=False)
    console.print(Text(f"Report: {report}", "bold"), soft_wrap=True)


def _table(table: Table) -> rich.table.Table:
    printed = rich.table.Table(
        title=table.title or None,
        title_justify="left",
        title_style="bold",
        box=None,
        pad_edge=False,
        padding=(0, 1, 0, 0),
    )
    for i, column in enumerate(table.header):
        left = i == 0 or table.words
        printed.add_column(column, justify="left" if left else "right", header_style="dim")
    for row in table.rows:
        printed.add_row(*_cells(row))
    return printed


def _cells(row: Row) -> list[Text]:
    if row.kind == "group":
        return [Text(row.cells[0].text, "italic")]
    texts = (f"{cell.text} {cell.detail}".strip() for cell in row.cells)
    strong = (cell.strong for cell in row.cells)
    return [Text(t, "bold red" if s else "") for t, s in zip(texts, strong, strict=True)]
