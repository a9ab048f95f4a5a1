"""Models trained from scratch -> their report, with tables 6 and 7 of the paper.

Shape glossary: R seeds, X points of a curve, L layers, G heads.
"""

import json
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from rich.console import Console

from icljax.records import Compared, ComparedTable, OverSeeds, Pretrain
from icljax.reports import console as console_lib
from icljax.reports import paper, plots
from icljax.reports import report as report_lib
from icljax.reports.baselines import outcome
from icljax.reports.document import Cell, Code, Figure, Items, Report, Section, Table, row, section
from icljax.reports.figures import estimate_mark
from icljax.reports.plots import COLORS, Curve, Mark
from icljax.reports.text import gap, listed, number, seconds

_VERDICTS = {"below": "worse", "level": "no clear difference", "above": "better"}


def show(results: dict[str, Any], path: Path, console: Console) -> None:
    """Prints what came out, and where the report is."""
    blocks = console_blocks(msgspec.convert(results, Pretrain))
    console_lib.show(console, blocks, path / report_lib.MARKDOWN)


def report(results: Pretrain) -> Report:
    """The report of one job."""
    corpus, config = results.corpus, results.config
    about = (
        f"{results.parameters:,} parameters ({config['model']['layers']} layers of width "
        f"{config['model']['width']}), {results.train_tokens:,} tokens of training out of "
        f"{corpus.train_tokens:,} ({corpus.source}), seeds {', '.join(map(str, config['seeds']))}.",
        "All variants of a seed see the same sequences in the same order, so differences are "
        "paired by seed.",
    )
    used = "; ".join(
        f"{task}: {' to '.join(map(str, sorted({min(each), max(each)})))}"
        for task, each in results.icl_demonstrations.items()
    )
    sections = (
        section("short", "In short", Items(tuple(conclusions(results)))),
        section(
            "perplexity",
            "Perplexity (the paper's table 6)",
            "Mean over seeds; beside it the difference from the first row with its 95 % interval "
            "(Student's t over seeds). train-S, validation-S: on blocks of S tokens of each part.",
            _table("perplexity", "", results.perplexity, 3),
            _curves_figure(results),
            _eta_figure(results),
        ),
        section(
            "accuracy",
            "Accuracy, % (the paper's table 7)",
            "By the main job's code, averaged over draws of demonstrations (that fit: "
            f"{used}). Calibrated: each answer's mean log-probability over the examples "
            "subtracted.",
            *(_table(f"accuracy-{task}", task, t, 1) for task, t in results.accuracy.items()),
        ),
        _learned_section(results),
        section("setup", "Set-up", Code(json.dumps(config, indent=1), "json")),
    )
    return Report(
        "Language models from scratch: does momentum attention help?",
        about,
        tuple(s for s in sections if s.blocks),
        paper.SOURCES[:1],
        "Momentum attention",
    )


def conclusions(results: Pretrain) -> list[tuple[str, str]]:
    """What the numbers say of each variant against the first, whatever it is."""
    main = _main(results)
    points = [
        _conclusion(variant, change, f"perplexity on {main}", -1, 3)
        for variant, rows in results.perplexity.items()
        if (change := rows[main].difference)
    ]
    for task, table in results.accuracy.items():
        best = next(s for s in ("icl calibrated", "icl") if s in next(iter(table.values())))
        what = f"{best.removeprefix('icl')} in-context accuracy on {task}, %".strip()
        points += [
            _conclusion(variant, change, what, 1, 1)
            for variant, rows in table.items()
            if (change := rows[best].difference)
        ]
    return points


def _main(results: Pretrain) -> str:
    """What perplexity is compared on: the longest blocks of the validation part."""
    return list(results.perplexity[results.reference])[-1]


def _conclusion(
    variant: str, change: OverSeeds, what: str, good: int, digits: int
) -> tuple[str, str]:
    """(variant, sentence); `good`: the sign of a change for the better."""
    low, high = change.interval or (None, None)
    if low is None or high is None:
        verdict = "one seed, no interval"
    else:
        verdict = _VERDICTS[outcome((low, high) if good > 0 else (-high, -low))]
    return f"{variant},", f"{what}: {gap(change.estimate, digits)}: {verdict}."


def _table(key: str, title: str, rows: ComparedTable, digits: int) -> Table:
    names = list(next(iter(rows.values())))
    lines = [
        row(Cell(variant, code=True), *(_cell(cells[name], digits) for name in names))
        for variant, cells in rows.items()
    ]
    return Table(key, title, ("variant", *names), lines)


def _cell(own: Compared, digits: int) -> Cell:
    difference = own.difference
    detail = gap(difference.estimate, digits) if difference else ""
    return Cell(number(own.mean, digits), detail)


def _learned_section(results: Pretrain) -> Section:
    """Learned numbers, averaged over seeds and heads, layer by layer."""
    points = []
    for variant, each in results.learned.items():
        for name in each[0]:
            layers = np.mean([run[name] for run in each], (0, 2)).tolist()
            points.append((f"{variant}:", f"{name} by layer {listed(layers)}"))
    text = "Mean over seeds and heads." if points else None
    return section("learned", "What was learned", text, Items(tuple(points)))


def _curves_figure(results: Pretrain) -> Figure:
    """Validation loss of every variant, and its paired difference from the first."""
    curves = {v: np.asarray(c) for v, c in results.curves.validation_loss.items()}
    colors = ("ink", *COLORS)
    styles = {v: colors[i % len(colors)] for i, v in enumerate(curves)}
    steps, reference = results.curves.steps, curves[results.reference]
    losses, changes = [], []
    for variant, values in curves.items():
        losses.append(Curve(variant, styles[variant], steps, tuple(values.mean(0).tolist())))
        change = values - reference
        for seed, one in zip(results.config["seeds"], change.tolist(), strict=True):
            name, style = f"{variant}, seed {seed}", f"{styles[variant]} thin dot"
            if variant != results.reference:
                changes.append(Curve(name, style, steps, tuple(one)))
        changes.append(Curve(variant, styles[variant], steps, tuple(change.mean(0).tolist())))
    panels = [
        plots.lines("Validation loss, nats a token", losses, "step", from_zero=False),
        plots.lines(f"Minus that of {results.reference}", changes, "step"),
    ]
    title = "Validation loss in training, and its difference"
    caption = "Left: means over seeds. Right: paired by seed; dotted: each seed."
    return Figure("curves", title, caption, panels, tuple(styles.items()))


def _eta_figure(results: Pretrain) -> Figure:
    """Paired difference in perplexity by eta of EMA(V), fixed or as it was learned."""
    main, found = _main(results), []
    for variant, rows in results.perplexity.items():
        runs, change = results.learned.get(variant, ()), rows[main].difference
        if change is None:
            continue
        if runs and "ema" in runs[0]:
            eta = float(np.mean([run["ema"] for run in runs]))
            found.append((eta, f"eta {number(eta)}, learned", "own", change))
        elif "ema=" in variant:
            eta = float(variant.split(" ema=")[1].split()[0])
            found.append((eta, f"eta {eta:g}, fixed", "icl", change))
    rows_of_dots = [
        (name, _seed_marks(name, change, style))
        for _, name, style, change in sorted(found, key=lambda one: one[0])
    ]
    title = "Validation perplexity against eta"
    caption = (
        f"Difference on {main}: mean with 95 % interval over seeds, then each seed. A learned eta "
        "is its mean over seeds, layers and heads."
    )
    panels = [plots.dots(f"Perplexity, minus {results.reference}", rows_of_dots)] if found else []
    return Figure("eta", title, caption, panels, (("fixed eta", "icl"), ("learned eta", "own")))


def _seed_marks(name: str, own: OverSeeds, style: str) -> list[Mark]:
    each = [Mark(f"seed {i}", value, style=style) for i, value in enumerate(own.per_seed, 1)]
    return [estimate_mark(name, own.estimate, style), *each]


# ----------------------------------------------------------------------------------------- console


def console_blocks(results: Pretrain) -> list[str | Table]:
    """What came out: tables of means, and the conclusions."""
    names = list(results.perplexity[results.reference])
    train = [n for n in names if n.startswith("train")]
    shown = [n for n in names if n not in train[:-1]]
    return [
        _means("Perplexity", results.perplexity, shown, 2),
        *(
            _means(f"Accuracy on {task}, %", rows, list(next(iter(rows.values()))), 1)
            for task, rows in results.accuracy.items()
        ),
        "Difference from the first, 95 % interval over seeds, paired",
        *(" ".join(point) for point in conclusions(results)),
        f"Seconds: {seconds(results.seconds)}",
    ]


def _means(title: str, rows: ComparedTable, names: list[str], digits: int) -> Table:
    lines = [
        row(variant, *(number(cells[name].mean, digits) for name in names))
        for variant, cells in rows.items()
    ]
    header = (name.replace("validation", "valid") for name in names)
    return Table(title, title, ("variant", *header), lines)
