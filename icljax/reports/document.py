"""A report as data: sections of paragraphs, tables and figures, which every renderer reads.

Texts are plain: a renderer escapes them, so that what a user gave means itself everywhere.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclass(frozen=True)
class Cell:
    """What stands in a cell.

    Attributes:
        text: the value.
        detail: a smaller text under or after it.
        strong: whether it stands out.
        code: whether the value is code or a formula, which stands as it is.
    """

    text: str
    detail: str = ""
    strong: bool = False
    code: bool = False


@dataclass(frozen=True)
class Row:
    """A row; of kind "group", its one cell is a heading across the table.

    Attributes:
        cells: the first says what the row is.
        kind: "", "group", "paper" (numbers of a paper) or "own" (what it is all about).
    """

    cells: tuple[Cell, ...]
    kind: str = ""


def row(*cells: str | Cell, kind: str = "") -> Row:
    """A row of texts and cells."""
    return Row(tuple(c if isinstance(c, Cell) else Cell(c) for c in cells), kind)


@dataclass(frozen=True)
class Table:
    """A table.

    Attributes:
        key: its name in links; unique in a report.
        title: a caption; "": the section's heading says it.
        header: as many as a row has cells.
        rows: from top to bottom.
        notes: sentences under the table.
        folded: whether a page may show its caption alone until it is asked for.
        words: whether cells hold sentences rather than numbers.
    """

    key: str
    title: str
    header: tuple[str, ...]
    rows: list[Row]
    notes: tuple[str, ...] = ()
    folded: bool = False
    words: bool = False


@dataclass(frozen=True)
class Panel:
    """A drawing of its own, `plots.WIDTH` wide.

    Attributes:
        label: alternative text: what it shows and its main numbers.
        draw: draws it on matplotlib's axes.
        height: inches.
        left: share of the width that is left of the axes, for row names.
    """

    label: str
    draw: Callable[["Axes"], None]
    height: float = 2.3
    left: float = 0.13


@dataclass(frozen=True)
class Figure:
    """Panels under one caption.

    Attributes:
        key: its name in links and files; unique in a report.
        title, caption: what it shows, in plain words.
        panels: side by side.
        legend: (name, style) of what is drawn; see `plots.line_style`.
        folded: whether a page shows it only when asked for.
    """

    key: str
    title: str
    caption: str
    panels: list[Panel]
    legend: tuple[tuple[str, str], ...] = ()
    folded: bool = False


@dataclass(frozen=True)
class Items:
    """A list of points: (what, sentence); `what` may be ""."""

    items: tuple[tuple[str, str], ...]
    title: str = ""  # with one, a page folds the list


@dataclass(frozen=True)
class Code:
    """Text that stands as it is."""

    text: str
    language: str = "text"


@dataclass(frozen=True)
class Notice:
    """A sentence that nobody may overlook."""

    text: str


Block = str | Table | Figure | Items | Code | Notice


@dataclass(frozen=True)
class Section:
    """Blocks under a heading."""

    key: str
    title: str
    blocks: tuple[Block, ...]


@dataclass(frozen=True)
class Report:
    """A whole report.

    Attributes:
        title: its question.
        lead: what comes before the first section: the answer first.
        sections: those without blocks are left out.
        sources: (name, address) of what it repeats.
        kicker: what a page has over the title: the subject.
    """

    title: str
    lead: tuple[Block, ...]
    sections: tuple[Section, ...]
    sources: tuple[tuple[str, str], ...] = ()
    kicker: str = "In-context learning against finetuning"

    def tables(self) -> list[Table]:
        """All tables, in order."""
        return [b for s in self.sections for b in s.blocks if isinstance(b, Table)]

    def figures(self) -> list[Figure]:
        """All figures, in order."""
        return [b for s in self.sections for b in s.blocks if isinstance(b, Figure)]


def section(key: str, title: str, *blocks: Block | None) -> Section:
    """A section of those blocks that are there and not empty."""
    return Section(key, title, tuple(b for b in blocks if b and not _empty(b)))


def _empty(block: Block) -> bool:
    return (
        (isinstance(block, Table) and not block.rows)
        or (isinstance(block, Figure) and not block.panels)
        or (isinstance(block, Items) and not block.items)
    )
