"""The answer as tables, sentences and JSON."""

import dataclasses
from collections.abc import Iterable, Iterator
from typing import Any

from rich.console import Console
from rich.table import Column, Table

from icljax.preflight.rows import (
    COLLECTIVE_SECONDS,
    LINK_SHARE,
    MATRIX_SHARE,
    MEMORY_SHARE,
    OPERATION_SECONDS,
    Report,
    Verdict,
)
from icljax.reports.text import duration

# What makes a program smaller, where it is the one that does not fit.
_SMALLER = "--config.eval.tokens_per_batch=1024 makes its batches smaller"
REMEDIES = {
    "compare": "--config.eval.tokens_per_batch=4096 makes its batches smaller",
    **dict.fromkeys(("prompts", "updates", "pairs"), _SMALLER),
    "finetune": "--config.finetune.remat=True, or a smaller --config.finetune.runs_at_once",
    "step": "--config.model.remat=True, or fewer --config.train.batch sequences in more parts",
}


def show(report: Report, console: Console, every_collective: bool) -> None:
    """Prints the tables and what they come to."""
    asked = report.asked
    console.print(_memory_table(asked))
    console.print(_work_table(asked))
    if every_collective:
        console.print(_collective_table(asked))
    for line in _summary(report):
        console.print(line, soft_wrap=True)


def _title(verdict: Verdict, what: str) -> str:
    how = "compiled ahead of time" if verdict.compiled else "estimated from shapes alone"
    if any(row.compiled for row in verdict.rows) and not verdict.compiled:
        how = "partly compiled, * from shapes alone"
    mesh = f"mesh data={verdict.data} model={verdict.model}"
    return f"{what} on {verdict.topology.name}, {mesh}, {how}"


def _table(title: str, columns: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> Table:
    table = Table(Column("program", no_wrap=True), title=title)
    for name in columns:
        table.add_column(name, justify="right")
    for row in rows:
        table.add_row(*row)
    return table


def _memory_table(verdict: Verdict) -> Table:
    limit = verdict.topology.chip.memory
    columns = ("arguments", "temporaries", "outputs", "held beside", "total", "share", "fits")
    rows = (
        (
            row.name + ("" if row.compiled == verdict.compiled else "*"),
            *(f"{x / 2**30:.2f}" for x in (row.arguments, row.temporaries, row.outputs)),
            *(f"{x / 2**30:.2f}" for x in (row.beside, row.total)),
            f"{row.total / limit:.0%}",
            "yes" if row.total <= limit else "NO",
        )
        for row in verdict.rows
    )
    return _table(_title(verdict, f"GiB a chip, of {limit / 2**30:.2f},"), columns, rows)


def _work_table(verdict: Verdict) -> Table:
    done = ("TFLOP a chip", "all chips", "/ closed form", "GB moved a chip")
    columns = (*done, "collectives", "MB sent a chip", "seconds", "calls", "seconds in all")
    devices = verdict.data * verdict.model
    rows = (
        (
            row.name,
            f"{row.flops / 1e12:.3g}",
            f"{row.flops * devices / 1e12:.3g}",
            f"{row.flops / row.expected_flops:.2f}" if row.expected_flops else "",
            f"{row.moved / 1e9:.3g}",
            str(sum(n for _, n, _, _ in row.collectives)),
            f"{row.sent / 1e6:.3g}",
            f"{row.seconds:.2g}",
            str(row.calls),
            f"{row.seconds * row.calls:.2g}",
        )
        for row in verdict.rows
    )
    return _table(_title(verdict, "Work of one call"), columns, rows)


def _collective_table(verdict: Verdict) -> Table:
    table = Table("program", "collective", title="Communication of one call")
    table.add_column("times", justify="right")
    table.add_column("MB sent a chip", justify="right")
    table.add_column("comes from")
    for row in verdict.rows:
        for kind, times, sent, where in row.collectives:
            table.add_row(row.name, kind, str(times), f"{sent / 1e6:.3g}", where)
    return table


def _summary(report: Report) -> Iterator[str]:
    asked, smallest = report.asked, report.smallest
    worst = max(asked.rows, key=lambda row: row.total)
    share = worst.total / asked.topology.chip.memory
    yield (
        f"{'Fits' if asked.fits else 'DOES NOT FIT'}: at worst {worst.total / 2**30:.2f} GiB a "
        f"chip ({share:.0%}), in {worst.name}. About {duration(asked.seconds)} in all, without "
        "loading, compiling and the host."
    )
    remedy = REMEDIES.get(worst.name.rpartition(" ")[2])
    if asked.fits:
        yield f"Give the job --config.mesh.model={asked.model}."
    elif remedy:
        yield f"What {worst.name} needs less memory with: {remedy}."
    if smallest is None:
        yield "No topology of this chip fits by these meshes; see `held beside` and the arguments."
    else:
        how = "" if smallest.compiled else " (from shapes alone)"
        yield (
            f"Smallest that fits: {smallest.topology.name} with "
            f"--config.mesh.model={smallest.model}{how}, about {duration(smallest.seconds)}."
        )
    yield (
        f"Assumed: {MATRIX_SHARE:.0%} of the matrix rate, {MEMORY_SHARE:.0%} of the memory's and "
        f"{LINK_SHARE:.0%} of the links' published rates; {OPERATION_SECONDS * 1e6:.0f} us an "
        f"operation and {COLLECTIVE_SECONDS * 1e6:.0f} us a collective at least. Not measured on "
        "such chips."
    )


def as_json(report: Report) -> dict[str, Any]:
    """Everything, as JSON has it."""

    def verdict(v: Verdict) -> dict[str, Any]:
        return {
            "topology": v.topology.name,
            "memory": v.topology.chip.memory,
            "mesh": {"data": v.data, "model": v.model},
            "fits": v.fits,
            "bytes": v.needed,
            "seconds": v.seconds,
            "compiled": v.compiled,
            "programs": [dataclasses.asdict(row) | {"total": row.total} for row in v.rows],
        }

    smallest = None if report.smallest is None else verdict(report.smallest)
    shares = {"matrix": MATRIX_SHARE, "memory": MEMORY_SHARE, "links": LINK_SHARE}
    return {"asked": verdict(report.asked), "smallest": smallest, "assumed_shares": shares}
