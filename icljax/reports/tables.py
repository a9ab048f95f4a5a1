"""Many results -> tables: ours in the paper's layout, its numbers beside them."""

import collections
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import PurePath

from icljax.catalog import SETTINGS, SIMILARITIES
from icljax.reports import paper
from icljax.reports.baselines import UNLIKE, beside, name_of, rate_unlike
from icljax.reports.document import Cell, Row, Table, row
from icljax.reports.study import Entry, Group, layer_causal, task_columns, task_title
from icljax.reports.text import interval, number, plural, rate, signed
from icljax.results import DoseResponse, Estimate, Recall, Results

MISSING, FAILED = "missing", "failed"
Value = Estimate | Recall | float | None


# ------------------------------------------------------------------------------ the paper's tables


@dataclass(frozen=True)
class Measure:
    """A row of one of the paper's tables.

    Attributes:
        label: its name.
        of: the number in results; None where it is undefined.
        published: field of `paper.Cell` for the same; "": the paper does not have it.
        digits, scale: how it is written.
    """

    label: str
    of: Callable[[Results], Value]
    published: str = ""
    digits: int = 3
    scale: float = 1


def _accuracy(label: str, of: Callable[[Results], Value], published: str = "") -> Measure:
    return Measure(label, of, published, 1, 100)


def _accuracies() -> list[Measure]:
    raw = [_accuracy(n, _right(s), s) for s, n in PAPER_ORDER.items()]
    calibrated = [_accuracy(f"{n}, calibrated", _right(s, True)) for s, n in PAPER_ORDER.items()]
    return [*raw, *calibrated, _accuracy("Majority class", lambda r: r.accuracy.majority)]


def _right(setting: str, calibrated: bool = False) -> Callable[[Results], Value]:
    def find(r: Results) -> Value:
        shares = r.accuracy_calibrated if calibrated else r.accuracy
        return shares.of(setting) if shares else None

    return find


PAPER_ORDER = {s: SETTINGS[s] for s in ("zsl", "ft", "icl")}  # as the paper's tables have it


def similarity(metric: str) -> Callable[[Results], Value]:
    """What finds a similarity in results."""
    return lambda r: r.similarities.get(metric)


def _baseline(metric: str, name: str) -> Callable[[Results], Value]:
    return lambda r: found.own if (found := beside(r, metric).get(name)) else None


PAPER_TABLES: dict[str, tuple[str, list[Measure], tuple[str, ...]]] = {
    "accuracy": (
        "Accuracy, %",
        _accuracies(),
        (
            "ZSL: the query alone. FT: finetuned on the demonstrations. ICL: demonstrations in the "
            "prompt. Calibrated: each answer's mean log-probability over the evaluated examples is "
            "subtracted first, which uses their inputs, not their labels. Averages, the paper's "
            "too, are of the numbers that are shown.",
        ),
    ),
    "rec2ftp": (
        "Rec2FTP: of what finetuning corrects, what ICL corrects too, %",
        [
            Measure("Rec2FTP", lambda r: r.rec2ftp, "rec2ftp", 1),
            Measure(f"{name_of(UNLIKE)}, %", rate_unlike, "", 1),
        ],
        (
            "The second row is ICL's rate on examples that ZSL and FT both get wrong: were ICL's "
            "corrections unrelated to finetuning's, the two rows would be equal.",
        ),
    ),
    "sim_aou": (
        "SimAOU: similarity of the updates of attention's output",
        [
            Measure("SimAOU, random update", _baseline("sim_aou", "random_update")),
            Measure("SimAOU", similarity("sim_aou"), "sim_aou"),
            Measure("Not normalised first", similarity("sim_aou_unnormalized")),
        ],
        ("The paper's random updates score within {} to {}.".format(*paper.RANDOM["sim_aou"]),),
    ),
    "sim_am": (
        "SimAM: similarity of attention maps",
        [
            Measure("Before finetuning", _baseline("sim_am", "before_finetuning"), "sim_am_before"),
            Measure("After finetuning", similarity("sim_am"), "sim_am"),
            Measure("Of the changes (SimAM-delta)", similarity("sim_am_delta")),
        ],
        (
            "ICL's map against the zero-shot map (before) and the finetuned model's (after), over "
            "the query's own tokens.",
        ),
    ),
    "kendall": (
        "Kendall's tau: ranks of the training tokens",
        [
            Measure("Kendall, random weights", _baseline("kendall", "random_weights")),
            Measure("Kendall", similarity("kendall"), "kendall"),
            Measure("Of whole demonstrations", similarity("kendall_example")),
        ],
        ("The paper's random weights score within {} to {}.".format(*paper.RANDOM["kendall"]),),
    ),
}


def paper_tables(groups: Sequence[Group]) -> list[Table]:
    """Our numbers in the layout of the paper's tables, its numbers beside them."""
    tasks = task_columns(groups)
    header = ("", *map(task_title, tasks), "Average of six")
    shown = {paper.size_of(group.model) for group in groups}
    out = []
    for key, (title, measures, notes) in PAPER_TABLES.items():
        rows = [row for group in groups for row in _group_rows(group, measures, tasks)]
        for size in (s for s in paper.MODELS if s not in shown):
            label = f"{paper.MODELS[size]}, from the paper (another model, for orientation)"
            rows += [row(label, kind="group"), *_published_rows(size, measures, tasks)]
        out.append(Table(key, title, header, rows, notes))
    return [*out, selection_table(groups)]


def _group_rows(group: Group, measures: Sequence[Measure], tasks: Sequence[str]) -> list[Row]:
    rows = [row(f"{group.title} (measured)", kind="group")]
    for measure in measures:
        values = {task: _value(group.cells.get(task), measure) for task in tasks}
        cells = [_cell(group.cells.get(task), measure) for task in tasks]
        average = _average_cell([values[t] for t in paper.TASKS], measure.digits)
        rows.append(row(measure.label, *cells, average, kind="own" if measure.published else ""))
        size = paper.size_of(group.model)
        if size and measure.published:
            rows += _published_rows(size, [measure], tasks)
            rows.append(_difference_row(size, measure, tasks, values))
    return rows


def _value(entry: Entry | None, measure: Measure) -> float | None:
    """The number itself in the paper's unit; None where there is none."""
    found = measure.of(entry.results) if entry and isinstance(entry.results, Results) else None
    if isinstance(found, Recall):
        found = found.percent
    elif isinstance(found, Estimate):
        found = found.mean
    return None if found is None else measure.scale * found


def _cell(entry: Entry | None, measure: Measure) -> Cell:
    if entry is None or not isinstance(entry.results, Results):
        return Cell(FAILED if entry and entry.error else MISSING)
    found = measure.of(entry.results)
    if found is None:
        return Cell("-")
    detail = ""
    if isinstance(found, Estimate | Recall):
        detail = interval(found.interval, measure.digits, measure.scale)
    return Cell(number(_value(entry, measure), measure.digits), detail)


def _average_cell(values: Sequence[float | None], digits: int) -> Cell:
    known = [v for v in values if v is not None]
    if not known:
        return Cell(MISSING)
    detail = "" if len(known) == len(values) else f"of {len(known)}"
    return Cell(number(sum(known) / len(known), digits), detail)


def published(task: str, size: str, field: str) -> float | None:
    """The paper's number; None where it has none."""
    cell = paper.CELLS.get((task, size))
    return None if cell is None else getattr(cell, field)


def _published_rows(size: str, measures: Sequence[Measure], tasks: Sequence[str]) -> list[Row]:
    rows = []
    for m in (m for m in measures if m.published):
        values = [published(task, size, m.published) for task in tasks]
        average = _average_cell(values[: len(paper.TASKS)], m.digits)
        cells = [number(v, m.digits) for v in values]
        rows.append(row(f"{m.label}, {paper.MODELS[size]}", *cells, average, kind="paper"))
    return rows


def _difference_row(
    size: str, measure: Measure, tasks: Sequence[str], ours: dict[str, float | None]
) -> Row:
    theirs = {task: published(task, size, measure.published) for task in tasks}
    both = {t: (a, b) for t, a in ours.items() if (b := theirs[t]) is not None and a is not None}
    gaps = {task: a - b for task, (a, b) in both.items()}
    cells = [signed(gaps.get(task), measure.digits) for task in tasks]
    average = sum(gaps.values()) / len(gaps) if gaps else None
    return row("ours minus the paper's", *cells, signed(average, measure.digits), kind="paper")


def selection_table(groups: Sequence[Group]) -> Table:
    """Seeds, learning rates and examples: ours, and the paper's."""
    tasks = task_columns(groups)
    rows = []
    for group in groups:
        rows.append(row(f"{group.title} (measured)", kind="group"))
        for label, text in _SETUP.items():
            rows.append(row(label, *(_text_cell(group.cells.get(task), text) for task in tasks)))
    rows.append(row("From the paper", kind="group"))
    rows += [
        row(label, *(values.get(task, "-") for task in tasks), kind="paper")
        for label, values in _published_setup().items()
    ]
    note = (
        "The paper chose seeds (of 1 to 7) and learning rates on the validation accuracy that it "
        "then reports. Stand-in data are not what was asked for."
    )
    title = "Seeds, learning rates and data"
    return Table("selection", title, ("", *map(task_title, tasks)), rows, (note,))


def _published_setup() -> dict[str, dict[str, str]]:
    """Row -> task -> what the paper used."""
    lines = {
        "Demonstrations": {k: str(task.demonstrations) for k, task in paper.TASKS.items()},
        "Examples evaluated": {k: f"{task.examples:,}" for k, task in paper.TASKS.items()},
    }
    for size, name in paper.MODELS.items():
        cells = {task: cell for (task, of), cell in paper.CELLS.items() if of == size}
        lines[f"Seed, {name}"] = {task: str(cell.seed) for task, cell in cells.items()}
        lines[f"Learning rate, {name}"] = {t: rate(cell.learning_rate) for t, cell in cells.items()}
    return lines


def _text_cell(entry: Entry | None, text: Callable[[Results], str]) -> Cell:
    if entry is None or not isinstance(entry.results, Results):
        return Cell(FAILED if entry and entry.error else MISSING)
    return Cell(text(entry.results) or "-")


def _used(results: Results) -> str:
    d = results.demonstrations
    used = ", ".join(map(str, sorted(set(d.used))))
    return used if set(d.used) == {d.asked} else f"{used} of {d.asked}"


def _rates(results: Results) -> str:
    chosen = results.selection.learning_rate
    if best := results.selection.best_seed:
        chosen = (chosen[results.seeds.index(best.seed)],)
    return "; ".join(f"{rate(r)}: {n}" for r, n in sorted(collections.Counter(chosen).items()))


def _selected(results: Results) -> str:
    s = results.selection
    where = "validation" if "validation" in s.selected_on else "held-out train"
    return f"{s.num_examples} of {where}"


def _seeds(results: Results) -> str:
    best, seeds = results.selection.best_seed, results.seeds
    return f"{best.seed}, the best of {len(seeds)}" if best else ", ".join(map(str, seeds))


_SETUP: dict[str, Callable[[Results], str]] = {
    "Demonstrations": _used,
    "Examples evaluated": lambda r: f"{r.data.evaluated:,} of {r.data.validation_examples:,}",
    "Seeds": _seeds,
    "Learning rate: seeds": _rates,
    "Rates selected on": _selected,
    "Recorded at": lambda r: r.record_position.replace("_", " "),
    "Data": lambda r: ("STAND-IN: " if r.stand_in else "") + _source(r.data.source),
}


def _source(source: str) -> str:
    kind, _, where = source.partition(":")
    return f"{kind}:{PurePath(where).name}" if kind in ("jsonl", "csv", "parquet") else source


# ----------------------------------------------------------------- what the paper does not have


DOSE_SIMILARITIES = ("sim_aou", "sim_aou_unnormalized", "sim_am_delta", "kendall", "sim_update")


def dose_table(group: Group, tasks: Sequence[str]) -> Table:
    """Accuracy and similarity at every learning rate, on the selection examples."""
    measured = {t: d for t, r in group.measured().items() if (d := r.dose_response)}
    rates = sorted({lr for d in measured.values() for lr in d.learning_rates})
    titles = {"accuracy": "Accuracy of FT, %", "training_loss": "Training loss"}
    titles |= {name: SIMILARITIES[name].title for name in DOSE_SIMILARITIES}
    rows = []
    for name, title in titles.items():
        rows.append(row(title, kind="group"))
        for lr in rates:
            cells = (_dose_cell(measured.get(task), name, lr) for task in tasks)
            rows.append(row(rate(lr), *cells))
    note = (
        "Measured on the examples that learning rates are selected on, all seeds. A dash: a run "
        "diverged, or the rate was not tried."
    )
    title = f"Every learning rate: {group.title}"
    header = ("learning rate", *map(task_title, tasks))
    return Table(group.key("dose"), title, header, rows if rates else [], (note,), folded=True)


def _dose_cell(dose: DoseResponse | None, name: str, lr: float) -> Cell:
    if dose is None:
        return Cell(MISSING)
    curves = {"accuracy": dose.accuracy, "training_loss": dose.training_loss, **dose.similarity}
    if lr not in dose.learning_rates or name not in curves:
        return Cell("-")
    one = curves[name][dose.learning_rates.index(lr)]
    form = (1, 100) if name == "accuracy" else (3, 1)
    return Cell(number(one.mean, *form), interval(one.interval, *form))


def lcgd_table(groups: Sequence[Group]) -> Table:
    """Gradient descent against its layer-causal form, beside the revisit's averages."""
    rows = []
    for gd, lcgd in layer_causal(groups):
        both = [t for t in gd.measured() if t in lcgd.measured()]
        counts = sorted({g.measured()[t].data.evaluated for g in (gd, lcgd) for t in both})
        examples = " to ".join(dict.fromkeys(f"{n:,}" for n in (*counts[:1], *counts[-1:])))
        about = f"average of {plural(len(both), 'task')}; {examples or 'no'} examples each"
        rows.append(row(f"{gd.model}: {gd.setting} and {lcgd.setting}, {about}", kind="group"))
        pairs = [(gd.cells[t], lcgd.cells[t]) for t in both]
        rows.append(_lcgd_row(_accuracy("Accuracy of FT, %", lambda r: r.accuracy.ft), pairs))
        for name, metric in SIMILARITIES.items():
            averages = paper.REVISIT.get(name, (None, None))
            rows.append(_lcgd_row(Measure(metric.title, similarity(name)), pairs, averages))
    header = (
        "",
        "ours, GD",
        "ours, LCGD",
        "LCGD - GD",
        "LCGD higher in",
        "revisit, GD",
        "revisit, LCGD",
    )
    notes = (
        "LCGD trains each layer on its own read-out, so that no layer's update knows of later "
        "layers. The two columns of ours may be of different examples and seeds (see the table of "
        "seeds and data), so their difference has no interval.",
        "The revisit (Deutch et al. 2024) reports averages over its own models and tasks.",
    )
    return Table("lcgd", "Gradient descent and layer-causal gradient descent", header, rows, notes)


def _lcgd_row(
    measure: Measure,
    pairs: Sequence[tuple[Entry, Entry]],
    theirs: tuple[float | None, float | None] = (None, None),
) -> Row:
    values = [(_value(gd, measure), _value(lcgd, measure)) for gd, lcgd in pairs]
    known = [(a, b) for a, b in values if a is not None and b is not None]
    means = [sum(v) / len(v) for v in zip(*known, strict=True)] or [None, None]
    change = sum(b - a for a, b in known) / len(known) if known else None
    higher = f"{sum(b > a for a, b in known)} of {len(known)}"
    ours = [*(number(v, measure.digits) for v in means), signed(change, measure.digits), higher]
    return row(measure.label, *ours, *map(number, theirs))


def missing_table(groups: Sequence[Group]) -> Table:
    """Cells without a result, each with the reason where one is known."""
    rows = [
        row(*e.name, FAILED if e.error else MISSING, e.error or "not run yet")
        for group in groups
        for e in group.cells.values()
        if e.results is None
    ]
    header = ("task", "model", "setting", "", "why")
    return Table("missing", "Jobs without a result", header, rows, words=True)
