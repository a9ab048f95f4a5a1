"""The dual form, attention against the optimizer that it is -> its report."""

from pathlib import Path
from typing import Any

import msgspec
from rich.console import Console

from icljax.records import Dual
from icljax.reports import console as console_lib
from icljax.reports import paper
from icljax.reports import report as report_lib
from icljax.reports.document import Cell, Notice, Report, Row, Table, row, section
from icljax.reports.text import weights

LITERATURE = {
    "linear": "linear attention (Katharopoulos et al. 2020, Schlag et al. 2021)",
    "linear_momentum": "heavy ball (Polyak 1964); compare EMA(V) of Dai et al. 2023",
    "retention": "RetNet (Sun et al. 2023)",
    "delta": "delta rule (Widrow and Hoff 1960); DeltaNet (Schlag et al. 2021, Yang et al. 2024)",
    "delta_momentum": "Titans' memory, linear (Behrouz et al. 2024)",
    "delta_decay": "near Gated DeltaNet (Yang et al. 2025), which takes the decayed S's error",
}


def show(results: dict[str, Any], path: Path, console: Console) -> None:
    """Prints both tables of differences, failures in red, and where the report is."""
    blocks = console_blocks(msgspec.convert(results, Dual))
    console_lib.show(console, blocks, path / report_lib.MARKDOWN)


def report(results: Dual) -> Report:
    """The report of one job."""
    optimizers = [
        row(
            name,
            *(Cell(formula, code=True) for formula in (o.loss, o.update, o.optax)),
            o.words,
            LITERATURE[name],
        )
        for name, o in results.kinds.items()
    ]
    header = ("kind", "in-context loss", "update", "optax", "optimizer", "known as")
    sections = (
        section(
            "kinds",
            "Attention kind = optimizer",
            Table("kinds", "", header, optimizers, words=True),
        ),
        section(
            "dual",
            "Attention against optax",
            "Largest relative difference, max |a - b| / max |b| of a layer and head, of the "
            "recurrent, chunked and parallel forms' outputs S_t q_t and of the last S from a "
            "linear layer that optax trained, one token a step. Bars: "
            f"{', '.join(_bars(results))}. beta varies: another step size at every token. elu+1: "
            "that feature map.",
            _dual_table(results, ""),
        ),
        section(
            "forms",
            "Forms of attention",
            "Largest relative difference from the recurrent form in float32, of outputs, of the "
            "last S and of gradients by each input, over three prompts: from nothing, continued "
            f"from a state, and with holes. Bar: {results.bars['float32']:g}.",
            _forms_table(results, ""),
        ),
    )
    return Report(
        "Attention is an optimizer: the dual form, exact",
        (_headline(results), *_source_texts(results)),
        sections,
        paper.SOURCES[:1],
        "In-context learning against optimizers",
    )


def console_blocks(results: Dual) -> list[str | Table | Notice]:
    """Both tables, and what they come to."""
    bars = " and ".join(_bars(results))
    title = f"Attention = optimizer, largest relative difference (bars {bars})"
    title2 = f"Forms, largest relative difference from recurrent (bar {results.bars['float32']:g})"
    tables = (_dual_table(results, title), _forms_table(results, title2))
    return [*tables, *_source_texts(results), _headline(results)]


def _bars(results: Dual) -> list[str]:
    return [f"{bar:g} in {dtype}" for dtype, bar in results.bars.items()]


def _headline(results: Dual) -> str | Notice:
    dual, forms = results.dual, results.forms
    text = (
        f"Attention is the optimizer in {sum(r.holds for r in dual)} of {len(dual)} rows; "
        f"the forms agree in {sum(r.holds for r in forms)} of {len(forms)}."
    )
    return text if results.holds else Notice(f"FAILS: {text}")


def _source_texts(results: Dual) -> list[str]:
    config, n = results.config, results.examples
    where = "random vectors"
    if config["source"] != "random":
        where = f"keys and values of {config['task'].upper()} demonstrations in {config['model']}"
    sizes = f"{n['T']} tokens, {n['L']} layers, {n['G']} heads, width {n['K']}"
    told = weights(results.model) if results.model else ""
    return [f"On {where}: {sizes}.", *filter(None, [told])]


def _dual_table(results: Dual, title: str) -> Table:
    rows: list[Row] = []
    for kind, optimizer in results.kinds.items():
        rows.append(row(f"{kind}: {optimizer.words}", kind="group"))
        for r in results.dual:
            if r.kind == kind:
                largest = (_small(r.float64.largest), _small(r.float32.largest))
                rows.append(row(r.variant, *largest, _verdict(r.holds)))
    return Table("dual", title, ("examples", "float64", "float32", "holds"), rows)


def _forms_table(results: Dual, title: str) -> Table:
    rows: list[Row] = []
    for kind in dict.fromkeys(r.kind for r in results.forms):
        rows.append(row(kind, kind="group"))
        for r in results.forms:
            if r.kind == kind:
                parts = ("output", "state", "gradient")
                largest = (_small(r.largest[p]) if p in r.largest else "-" for p in parts)
                rows.append(row(r.form, *largest, _verdict(r.holds)))
    return Table("forms", title, ("form", "output", "state", "gradient", "holds"), rows)


def _small(value: float | None) -> str:
    return "not finite" if value is None else f"{value:.1e}"


def _verdict(holds: bool) -> Cell:
    return Cell("yes") if holds else Cell("FAILS", strong=True)
