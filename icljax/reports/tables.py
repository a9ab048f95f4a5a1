"""Many results -> tables: ours in the paper's layout beside the paper's numbers, and our controls.

A table is neutral: `icljax.reports.page` writes the same ones as Markdown, LaTeX and HTML.
"""

import collections
from collections.abc import Callable, Sequence
from pathlib import PurePath
from typing import NamedTuple

from icljax.catalog import METHODS, SIMILARITIES
from icljax.reports import paper
from icljax.reports.study import (
    CLAIMS,
    TITLES,
    UNLIKE,
    Claim,
    Entry,
    Group,
    cell_name,
    count,
    is_control,
    layer_causal,
    look,
    name_of,
    others,
    task_columns,
)
from icljax.reports.wording import Results, number, rate, signed

MISSING, FAILED = "missing", "failed"


class Cell(NamedTuple):
    """What stands in a cell: a text, and a smaller one under or after it."""

    text: str
    detail: str = ""


class Row(NamedTuple):
    """A row; of kind "group", its one cell is a heading across the table.

    Attributes:
        cells: the first says what the row is.
        kind: "", "group", "paper" (numbers of a paper) or "own" (what it is all about).
    """

    cells: tuple[Cell, ...]
    kind: str = ""


class Table(NamedTuple):
    """A table.

    Attributes:
        key: its name in links; unique.
        title: a caption.
        header: as many as a row has cells.
        rows: from top to bottom.
        notes: sentences under the table.
        folded: whether a page may show its caption alone until it is asked for.
    """

    key: str
    title: str
    header: tuple[str, ...]
    rows: list[Row]
    notes: tuple[str, ...] = ()
    folded: bool = False


# ------------------------------------------------------------------------------ the paper's tables


class Measure(NamedTuple):
    """A row of one of the paper's tables.

    Attributes:
        label: its name.
        path: where it stands in results.json, keys joined by dots.
        published: field of `paper.Cell` for the same; "": the paper does not have it.
        percent: whether it is a percentage; `scale` times the number makes it one.
        scale: to the paper's unit.
    """

    label: str
    path: str
    published: str = ""
    percent: bool = False
    scale: float = 1


def _accuracies(kind: str, label: str, published: bool) -> list[Measure]:
    return [
        Measure(f"{s.upper()}{label}", f"{kind}.{s}", s if published else "", True, 100)
        for s in ("zsl", "ft", "icl")
    ]


PAPER_TABLES: dict[str, tuple[str, list[Measure], tuple[str, ...]]] = {
    "accuracy": (
        "Accuracy, %",
        [
            *_accuracies("accuracy", "", published=True),
            *_accuracies("accuracy_calibrated", ", calibrated", published=False),
            Measure("Majority class", "accuracy.majority", "", True, 100),
        ],
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
            Measure("Rec2FTP", "rec2ftp", "rec2ftp", True),
            Measure(f"{name_of(UNLIKE)}, %", UNLIKE, "", True),
        ],
        (
            "The second row is ICL's rate on examples that ZSL and FT both get wrong: were ICL's "
            "corrections unrelated to finetuning's, the two rows would be equal.",
        ),
    ),
    "sim_aou": (
        "SimAOU: similarity of the updates of attention's output",
        [
            Measure("SimAOU, random update", "sim_aou.baselines.random_update"),
            Measure("SimAOU", "sim_aou", "sim_aou"),
            Measure("Not normalised first", "sim_aou_unnormalized"),
        ],
        ("The paper's random updates score within {} to {}.".format(*paper.RANDOM["sim_aou"]),),
    ),
    "sim_am": (
        "SimAM: similarity of attention maps",
        [
            Measure("Before finetuning", "sim_am.baselines.before_finetuning", "sim_am_before"),
            Measure("After finetuning", "sim_am", "sim_am"),
            Measure("Of the changes (SimAM-delta)", "sim_am_delta"),
        ],
        (
            "ICL's map against the zero-shot map (before) and the finetuned model's (after), over "
            "the query's own tokens.",
        ),
    ),
    "kendall": (
        "Kendall's tau: ranks of the training tokens",
        [
            Measure("Kendall, random weights", "kendall.baselines.random_weights"),
            Measure("Kendall", "kendall", "kendall"),
            Measure("Of whole demonstrations", "kendall_example"),
        ],
        ("The paper's random weights score within {} to {}.".format(*paper.RANDOM["kendall"]),),
    ),
}


def task_title(task: str) -> str:
    """A task as the paper's tables call it, or as its name is."""
    return paper.TASKS[task].title if task in paper.TASKS else task


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
            rows += [Row((Cell(label),), "group"), *_published_rows(size, measures, tasks)]
        out.append(Table(key, title, header, rows, notes))
    return [*out, selection_table(groups)]


def _group_rows(group: Group, measures: Sequence[Measure], tasks: Sequence[str]) -> list[Row]:
    rows = [Row((Cell(f"{group.title} (measured)"),), "group")]
    for measure in measures:
        values = {task: _value(group.cells.get(task), measure) for task in tasks}
        cells = [_cell(group.cells.get(task), measure) for task in tasks]
        average = _average_cell([values[t] for t in paper.TASKS], measure.percent)
        own = "own" if measure.published else ""
        rows.append(Row((Cell(measure.label), *cells, average), own))
        size = paper.size_of(group.model)
        if size and measure.published:
            rows += _published_rows(size, [measure], tasks)
            rows.append(_difference_row(size, measure, tasks, values))
    return rows


def _value(entry: Entry | None, measure: Measure) -> float | None:
    """The number itself in the paper's unit; None where there is none."""
    found = look(entry.results, measure.path) if entry and entry.results else None
    if isinstance(found, dict):
        found = found.get("mean", found.get("percent"))
    return None if found is None else measure.scale * found


def _cell(entry: Entry | None, measure: Measure) -> Cell:
    if entry is None or entry.results is None:
        return Cell(FAILED if entry and entry.error else MISSING)
    found = look(entry.results, measure.path)
    if found is None:
        return Cell("-")
    detail = ""
    if isinstance(found, dict) and "interval" in found:
        detail = interval_text(found["interval"], 1 if measure.percent else 3, measure.scale)
    return Cell(_digits(_value(entry, measure), measure.percent), detail)


def interval_text(pair: Sequence[float | None], digits: int = 3, scale: float = 1) -> str:
    """Text like "[low, high]", or nothing where one is undefined."""
    return "" if None in pair else f"[{', '.join(number(v, digits, scale) for v in pair)}]"


def _digits(value: float | None, percent: bool) -> str:
    return number(value, 1 if percent else 3)


def _average_cell(values: Sequence[float | None], percent: bool) -> Cell:
    known = [v for v in values if v is not None]
    if not known:
        return Cell(MISSING)
    detail = "" if len(known) == len(values) else f"of {len(known)}"
    return Cell(_digits(sum(known) / len(known), percent), detail)


def published(task: str, size: str, field: str) -> float | None:
    """The paper's number; None where it has none."""
    cell = paper.CELLS.get((task, size))
    return None if cell is None else getattr(cell, field)


def _published_rows(size: str, measures: Sequence[Measure], tasks: Sequence[str]) -> list[Row]:
    rows = []
    for m in (m for m in measures if m.published):
        values = [published(task, size, m.published) for task in tasks]
        average = _average_cell(values[: len(paper.TASKS)], m.percent)
        cells = [Cell(_digits(v, m.percent)) for v in values]
        rows.append(Row((Cell(f"{m.label}, {paper.MODELS[size]}"), *cells, average), "paper"))
    return rows


def _difference_row(
    size: str, measure: Measure, tasks: Sequence[str], ours: dict[str, float | None]
) -> Row:
    theirs = {task: published(task, size, measure.published) for task in tasks}
    both = {t: (a, b) for t, a in ours.items() if (b := theirs[t]) is not None and a is not None}
    gaps = {task: a - b for task, (a, b) in both.items()}
    digits = 1 if measure.percent else 3
    cells = [Cell(signed(gaps.get(task), digits)) for task in tasks]
    average = sum(gaps.values()) / len(gaps) if gaps else None
    return Row((Cell("ours minus the paper's"), *cells, Cell(signed(average, digits))), "paper")


def selection_table(groups: Sequence[Group]) -> Table:
    """Seeds, learning rates and examples: ours, and the paper's."""
    tasks = task_columns(groups)
    rows = []
    for group in groups:
        rows.append(Row((Cell(f"{group.title} (measured)"),), "group"))
        for label, text in _SETUP.items():
            cells = (_text_cell(group.cells.get(task), text) for task in tasks)
            rows.append(Row((Cell(label), *cells)))
    rows.append(Row((Cell("From the paper"),), "group"))
    rows += [
        Row((Cell(label), *(Cell(values.get(task, "-")) for task in tasks)), "paper")
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
    if entry is None or entry.results is None:
        return Cell(FAILED if entry and entry.error else MISSING)
    try:
        return Cell(text(entry.results) or "-")
    except (KeyError, TypeError):  # made by an older version
        return Cell("-")


def _used(results: Results) -> str:
    d = results["demonstrations"]
    used = ", ".join(map(str, sorted(set(d["used"]))))
    return used if d["used"] == [d["asked"]] * len(d["used"]) else f"{used} of {d['asked']}"


def _rates(results: Results) -> str:
    s = results["selection"]
    best = s.get("best_seed")
    chosen = s["learning_rate"]
    if best:
        chosen = [chosen[results["config"]["seeds"].index(best["seed"])]]
    counts = sorted(collections.Counter(chosen).items())
    return "; ".join(f"{rate(r)}: {n}" for r, n in counts)


def _selected(results: Results) -> str:
    where = (
        "validation" if "validation" in results["selection"]["selected_on"] else "held-out train"
    )
    return f"{results['selection']['num_examples']} of {where}"


def _seeds(results: Results) -> str:
    best = results["selection"].get("best_seed")
    seeds = results["config"]["seeds"]
    return f"{best['seed']}, the best of {len(seeds)}" if best else ", ".join(map(str, seeds))


_SETUP: dict[str, Callable[[Results], str]] = {
    "Demonstrations": _used,
    "Examples evaluated": lambda r: (
        f"{r['data']['evaluated']:,} of {r['data']['validation_examples']:,}"
    ),
    "Seeds": _seeds,
    "Learning rate: seeds": _rates,
    "Rates selected on": _selected,
    "Recorded at": lambda r: r.get("record_position", "answer").replace("_", " "),
    "Data": lambda r: ("STAND-IN: " if r.get("stand_in") else "") + _source(r["data"]["source"]),
}


def _source(source: str) -> str:
    kind, _, where = source.partition(":")
    return f"{kind}:{PurePath(where).name}" if kind == "jsonl" else source


# ----------------------------------------------------------------- what the paper does not have


def claims_table(group: Group) -> Table | None:
    """In how many tasks each similarity is above each baseline and control; None without those."""
    names = others(group, [m for claim in CLAIMS for m in claim.metrics])
    base = [n for n in names if not is_control(n)]
    controls = [n for n in names if n not in base]
    if not controls:
        return None
    rows = []
    for claim in CLAIMS:
        rows.append(Row((Cell(claim.text),), "group"))
        for i, metric in enumerate(claim.metrics):
            own = others(group, [metric])
            columns = [[n for n in own if n in base], *([n] for n in controls)]
            cells = [counts_cell(group, metric, [n for n in c if n in own]) for c in columns]
            cells.append(counts_cell(group, metric, own))
            rows.append(Row((Cell(TITLES[metric]), *cells), "" if i else "own"))
    header = ("", "its baseline", *map(name_of, controls), "all of these")
    notes: tuple[str, ...] = (
        "Tasks in which the paired difference's 95 % interval lies above 0; in small type, those "
        "where it lies below 0, or where it is not known. A dash: not measured there.",
        "Baselines: a random vector in FT's place; for SimAM the zero-shot map; for Rec2FTP ICL's "
        "rate on what finetuning leaves wrong. Rec2FTP is not paired: its interval is held against "
        "the control's.",
    )
    title = f"The four claims against every control: {group.title}"
    if gone := [task_title(task) for task, e in group.cells.items() if e.results is None]:
        notes = (*notes, f"Not measured: {', '.join(gone)}.")
    return Table(f"claims-{cell_name(*group[:2])}", title, header, rows, notes)


def counts_cell(group: Group, metric: str, against: Sequence[str]) -> Cell:
    """Text like "5 of 6", and in how many it is below or unknown."""
    counts = count(group, metric, against)
    if not against:
        return Cell("-")
    rest = [f"{k} in {getattr(counts, k)}" for k in ("below", "unknown") if getattr(counts, k)]
    return Cell(f"{counts.above} of {sum(counts)}", ", ".join(rest))


def control_tables(group: Group, tasks: Sequence[str]) -> list[Table]:
    """For each similarity: the job, its baselines and controls, task by task."""
    tables = [_control_table(group, metric, tasks) for metric in TITLES]
    return [t for t in (*tables, _control_accuracy_table(group, tasks)) if len(t.rows) > 1]


def _control_table(group: Group, metric: str, tasks: Sequence[str]) -> Table:
    percent = metric == "rec2ftp"
    own = [_cell(group.cells.get(task), Measure("", metric, "", percent)) for task in tasks]
    rows = [Row((Cell("measured"), *own), "own")]
    for name in others(group, [metric]):
        cells = (_beside(group.cells.get(task), metric, name) for task in tasks)
        rows.append(Row((Cell(name_of(name)), *cells)))
    small = "interval" if percent else "measured minus it, paired, with its interval"
    title = f"{TITLES[metric]}{', %' if percent else ''} and its controls: {group.title}"
    key = f"{metric}-controls-{cell_name(*group[:2])}"
    note = (f"In small type: {small}. Controls are measured on the first examples only.",)
    return Table(key, title, ("", *map(task_title, tasks)), rows, note, folded=True)


def _beside(entry: Entry | None, metric: str, name: str) -> Cell:
    """A baseline's or a control's score, and how far the job lies above it."""
    control = entry and entry.results and look(entry.results, f"controls.{name}")
    path = f"controls.{name}.{metric}" if control else f"{metric}.baselines.{name}"
    if metric == "rec2ftp":
        return _cell(entry, Measure("", UNLIKE if name == UNLIKE else path, "", True))
    if entry is None or entry.results is None:
        return _cell(entry, Measure("", path))
    where = f"controls.{name}.difference.{metric}" if control else f"differences.{metric}.{name}"
    gap = look(entry.results, where)
    detail = f"{signed(gap['mean'])} {interval_text(gap['interval'])}" if gap else ""
    return Cell(_cell(entry, Measure("", path)).text, detail)


def _control_accuracy_table(group: Group, tasks: Sequence[str]) -> Table:
    def pair(entry: Entry | None, path: str) -> Cell:
        icl, ft = (_cell(entry, Measure("", f"{path}.{s}", "", True, 100)) for s in ("icl", "ft"))
        return icl if icl.text in (MISSING, FAILED) else Cell(f"{icl.text} / {ft.text}")

    own = (pair(group.cells.get(task), "accuracy") for task in tasks)
    rows = [Row((Cell("measured"), *own), "own")]
    for name in (n for n in others(group) if is_control(n)):
        cells = (pair(group.cells.get(task), f"controls.{name}.accuracy") for task in tasks)
        rows.append(Row((Cell(name_of(name)), *cells)))
    title = f"Accuracy of ICL / FT under each control, %: {group.title}"
    key = f"accuracy-controls-{cell_name(*group[:2])}"
    return Table(key, title, ("", *map(task_title, tasks)), rows, (), folded=True)


_DOSE = {
    "accuracy": "Accuracy of FT, %",
    "training_loss": "Training loss",
    "similarity.sim_aou": "SimAOU",
    "similarity.sim_aou_unnormalized": "SimAOU, not normalised",
    "similarity.sim_am_delta": "SimAM-delta",
    "similarity.kendall": "Kendall, tokens",
    "similarity.sim_update": "SimUpdate",
}


def dose_table(group: Group, tasks: Sequence[str]) -> Table:
    """Accuracy and similarity at every learning rate, on the selection examples."""
    measured = {t: d for t, r in group.measured().items() if (d := r.get("dose_response"))}
    rates = sorted({lr for d in measured.values() for lr in d["learning_rates"]})
    rows = []
    for path, title in _DOSE.items():
        rows.append(Row((Cell(title),), "group"))
        percent = path == "accuracy"
        for lr in rates:
            cells = (_dose_cell(measured.get(task), path, lr, percent) for task in tasks)
            rows.append(Row((Cell(rate(lr)), *cells)))
    note = (
        "Measured on the examples that learning rates are selected on, all seeds. A dash: a run "
        "diverged, or the rate was not tried."
    )
    title = f"Every learning rate: {group.title}"
    header = ("learning rate", *map(task_title, tasks))
    return Table(
        f"dose-{cell_name(*group[:2])}", title, header, rows if rates else [], (note,), True
    )


def _dose_cell(dose: Results | None, path: str, lr: float, percent: bool) -> Cell:
    if dose is None:
        return Cell(MISSING)
    rates, values = dose["learning_rates"], look(dose, path)
    if lr not in rates or values is None:
        return Cell("-")
    one, scale = values[rates.index(lr)], 100 if percent else 1
    detail = interval_text(one.get("interval", (None, None)), 1 if percent else 3, scale)
    return Cell(number(one["mean"], 1 if percent else 3, scale), detail)


def lcgd_table(groups: Sequence[Group]) -> Table:
    """Gradient descent against its layer-causal form, beside the revisit's averages."""
    rows = []
    for gd, lcgd in layer_causal(groups):
        both = [t for t in gd.measured() if t in lcgd.measured()]
        counts = sorted({g.measured()[t]["data"]["evaluated"] for g in (gd, lcgd) for t in both})
        examples = " to ".join(dict.fromkeys(f"{n:,}" for n in (*counts[:1], *counts[-1:])))
        about = f"average of {plural(len(both), 'task')}; {examples or 'no'} examples each"
        rows.append(Row((Cell(f"{gd.model}: {gd.setting} and {lcgd.setting}, {about}"),), "group"))
        for metric in ("accuracy.ft", *(m for m in SIMILARITIES)):
            rows.append(_lcgd_row(metric, [(gd.cells[t], lcgd.cells[t]) for t in both]))
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


def _lcgd_row(metric: str, pairs: Sequence[tuple[Entry, Entry]]) -> Row:
    percent = metric.startswith("accuracy")
    measure = Measure("", metric, "", percent, 100 if percent else 1)
    values = [tuple(_value(e, measure) for e in pair) for pair in pairs]
    known = [(a, b) for a, b in values if a is not None and b is not None]
    means = [sum(v) / len(v) for v in zip(*known, strict=True)] or [None, None]
    gap = None if means[0] is None else means[1] - means[0]
    higher = f"{sum(b > a for a, b in known)} of {len(known)}"
    label = "Accuracy of FT, %" if percent else SIMILARITIES[metric].title
    ours = [*(_digits(v, percent) for v in means), signed(gap, 1 if percent else 3), higher]
    theirs = [number(v) for v in paper.REVISIT.get(metric, (None, None))]
    return Row((Cell(label), *map(Cell, ours), *map(Cell, theirs)))


def missing_table(groups: Sequence[Group]) -> Table:
    """Cells without a result, each with the reason where one is known."""
    rows = [
        Row(
            (
                Cell(e.task),
                Cell(e.model),
                Cell(e.setting),
                Cell(FAILED if e.error else MISSING),
                Cell(e.error or "not run yet"),
            )
        )
        for group in groups
        for e in group.cells.values()
        if e.results is None
    ]
    header = ("task", "model", "setting", "", "why")
    return Table("missing", "Jobs without a result", header, rows)


def all_tables(groups: Sequence[Group]) -> list[Table]:
    """Every table that has rows, in the order of the report."""
    tasks = task_columns(groups)
    measured = [group for group in groups if group.measured()]
    tables = [
        *(table for group in measured if (table := claims_table(group))),
        *paper_tables(groups),
        lcgd_table(groups),
        *(dose_table(group, tasks) for group in measured),
        *(table for group in measured for table in control_tables(group, tasks)),
        missing_table(groups),
    ]
    return [table for table in tables if table.rows]


# ---------------------------------------------------------------------------- the answer in words


def headline(group: Group) -> tuple[str, list[tuple[str, str]]]:
    """The answer for one model and setting in a sentence; what it rests on: (point, sentences)."""
    tasks, against, kept = len(group.measured()), 0, 0
    for claim in CLAIMS:
        own = others(group, claim.metrics[:1])
        controlled = any(map(is_control, own))
        against += controlled
        kept += controlled and 2 * count(group, claim.metrics[0], own).above > tasks
    points = [(f"{claim.text}:", _claim_text(group, claim)) for claim in CLAIMS]
    if dose := _dose_text(group):
        points.append(dose)
    how = METHODS.get(group.setting, group.setting).split(",")[0]
    on = f"In {group.model}, finetuned by {how}, on {plural(tasks, 'task')}"
    if not against:
        return f"{on}, no control was measured, so that the similarities say little.", points
    answer = {0: "none", len(CLAIMS): "all"}.get(kept, str(kept))
    verb = "holds" if kept < 2 else "hold"
    return (
        f"{on}, {answer} of the paper's four claims {verb} against every control in more than half "
        "of the tasks.",
        points,
    )


def _claim_text(group: Group, claim: Claim) -> str:
    metric, tasks = claim.metrics[0], len(group.measured())
    own = others(group, [metric])
    controls = [name for name in own if is_control(name)]
    base = count(group, metric, [name for name in own if not is_control(name)])
    if base.unknown == tasks:
        return f"not known: the results hold no paired differences of {TITLES[metric]}."
    text = f"{TITLES[metric]} is above its baseline in {base.above} of {plural(tasks, 'task')}"
    if not controls:
        return f"{text}; no control was measured."
    text += f", above every control too in {count(group, metric, own).above}."
    for corrected in claim.metrics[1:]:
        above = count(group, corrected, others(group, [corrected])).above
        text += f" ({TITLES[corrected]}: {above}.)"
    above_each = {name: count(group, metric, [name]) for name in controls}
    # Level with it or below it in most tasks; where that is the same, below it in most.
    hardest = max(
        controls, key=lambda n: (above_each[n].level + above_each[n].below, above_each[n].below)
    )
    if not above_each[hardest].level + above_each[hardest].below:
        return text
    return (
        f"{text} Hardest to beat is the control \u201c{name_of(hardest)}\u201d: above it in "
        f"{above_each[hardest].above}, below it in {above_each[hardest].below}."
    )


def plural(number_of: int, noun: str) -> str:
    """Text like "1 task", "6 tasks"."""
    return f"{number_of} {noun}{'' if number_of == 1 else 's'}"


def _dose_text(group: Group) -> tuple[str, str] | None:
    """What becomes of SimAOU and accuracy from the most accurate learning rate to the largest."""
    apart = known = 0
    for results in group.measured().values():
        doses = dose(results, "sim_aou")
        if len(doses) > 1:
            known += 1
            most, largest = max(doses, key=lambda d: d.accuracy), max(doses)
            apart += most.similarity < largest.similarity and largest.accuracy < most.accuracy
    if not known:
        return None
    return (
        "A high similarity does not mean useful finetuning:"
        if 2 * apart > known
        else "Similarity and useful finetuning:",
        "At the largest learning rate SimAOU is higher, and accuracy lower, than at the most "
        f"accurate one in {apart} of {plural(known, 'task')}.",
    )


class Dose(NamedTuple):
    """One learning rate: accuracy of FT and a similarity."""

    rate: float
    accuracy: float
    similarity: float


def dose(results: Results, metric: str) -> list[Dose]:
    """Every learning rate at which both are defined."""
    found = results.get("dose_response") or {}
    rates, accuracy = (found.get(key, ()) for key in ("learning_rates", "accuracy"))
    similarity = look(found, f"similarity.{metric}") or []
    whole = zip(rates, accuracy, similarity, strict=False)
    doses = (Dose(rate, a["mean"], s["mean"]) for rate, a, s in whole)
    return [d for d in doses if None not in d]
