"""One comparison -> its report."""

import json

from icljax.catalog import METHODS, SETTINGS, SIMILARITIES, STEPS, WEIGHTS
from icljax.reports import figures, paper
from icljax.reports.baselines import (
    beside,
    measured_columns,
    name_of,
    outcome,
    seeds_above,
    verdict,
)
from icljax.reports.document import (
    Block,
    Code,
    Items,
    Notice,
    Report,
    Row,
    Section,
    Table,
    row,
    section,
)
from icljax.reports.rates import best_seed_notice, dose_section, selected_text, selection_section
from icljax.reports.text import (
    PERCENT,
    duplicates_text,
    estimate,
    gap,
    interval,
    listed,
    number,
    percent,
    seconds,
    weights,
)
from icljax.results import Accuracy, Estimate, Recall, Results, Series

UNDEFINED = "undefined: FT corrected nothing"


def report(results: Results) -> Report:
    """The report of one job."""
    drawn = figures.job_figures(results)
    stand_in = [Notice(f"Stand-in data. {results.stand_in}")] if results.stand_in else []
    lead: tuple[Block, ...] = (
        *stand_in,
        about(results),
        *filter(None, [weights(results.model), protocol_text(results)]),
        "ZSL: the model sees the query alone. ICL: demonstrations stand before it. FT: the model "
        "is finetuned on the same demonstrations and sees the query alone.",
    )
    sections = (
        _in_short(results),
        _accuracy_section(results, drawn),
        _rec2ftp_section(results, drawn),
        _similarity_section(results, drawn),
        dose_section(results, drawn),
        selection_section(results, drawn),
        _setup_section(results),
    )
    name = results.task.upper() + (" (on STAND-IN data)" if results.stand_in else "")
    title = f"{name}: does in-context learning behave like finetuning?"
    return Report(title, lead, tuple(s for s in sections if s.blocks))


def protocol_text(results: Results) -> str:
    """What differs from the paper's protocol; "" for results that are older than modes."""
    c = results.config
    if c.get("mode") != "paper":
        return ""
    task = paper.TASKS.get(results.task)
    pairs = {
        "model": (results.model.name, paper.size_of(results.model.name) and results.model.name),
        "rates and seed selected on": (c["selection"]["split"], "validation"),
        "best seed reported": (c["select_seed"], True),
        "seeds": (len(c["seeds"]), len(paper.SEARCHED_SEEDS)),
        "learning rates": (len(c["finetune"]["learning_rates"]), len(paper.SEARCHED_RATES)),
        "demonstrations": (c["num_demonstrations"], task and task.demonstrations),
        "between demonstrations": (c["prompt"]["separator"], "<eos>"),
        "attention recorded at": (c["record_position"], "first_label"),
        "examples": (results.data.evaluated, results.data.validation_examples),
        "random baseline": (c["metrics"]["random_update"], "uniform"),
    }
    others = {"model": "fairseq's dense 1.3B and 2.7B", "demonstrations": "not of this task"}
    different = [
        f"{what} {ours!r} ({theirs or others[what]!r})"
        for what, (ours, theirs) in pairs.items()
        if ours != theirs
    ]
    if not different:
        return "The paper's protocol."
    return f"The paper's protocol, but for (in brackets the paper's): {'; '.join(different)}."


def about(results: Results) -> str:
    """Which model and examples, in a sentence."""
    data, seeds = results.data, results.reported_seeds
    return (
        f"{model_text(results)}; {_demonstrations_text(results)}; "
        f"{data.evaluated:,} of {data.validation_examples:,} validation examples; "
        f"{'seed' if len(seeds) == 1 else 'seeds'} {', '.join(map(str, seeds))}."
    )


def model_text(results: Results) -> str:
    """What was asked for as model, and how it was finetuned."""
    model, method = results.model, results.finetune.method
    parts = [model.name, WEIGHTS[model.weights]]
    if model.attention:
        parts.append(f"attention {model.attention}")
    if method != "gd":
        parts.append(f"finetuned by {METHODS[method]}")
    if results.record_position != "answer":
        parts.append("recorded one token later, at the first label's token")
    return ", ".join(parts)


def _demonstrations_text(results: Results) -> str:
    used, asked = sorted(set(results.demonstrations.used)), results.demonstrations.asked
    text = f"{' or '.join(map(str, used))} demonstrations"
    return text if used == [asked] else f"{text} (asked for {asked}, fewer fit)"


# --------------------------------------------------------------------------------- in short


def _in_short(results: Results) -> Section:
    rows = _accuracy_rows(results)
    rows.append(row("Rec2FTP", rec2ftp_text(results.rec2ftp), "both counts", ""))
    for name in measured_columns(results):
        others = [
            f"{name_of(n)} {number(b.own.mean)}: {gap(b.difference)}"
            for n, b in beside(results, name).items()
        ]
        title = SIMILARITIES[name].title
        own = estimate(results.similarities[name])
        rows.append(row(title, own, "; ".join(others), verdict(results, name)))
    header = ("", "measured", "beside it (paired difference)", "above or not")
    table = Table("short", "", header, rows, words=True)
    return section(
        "short",
        "In short",
        table,
        best_seed_notice(results),
        selected_text(results),
        "Intervals are 95 % percentile bootstrap: each resample draws seeds, and examples that all "
        "of them read (for ZSL and for a single seed, examples alone). With fewer than about five "
        "seeds they are a rough guess, and too narrow. Differences are paired: taken on the same "
        "examples and seeds, in the same resamples. Above means that the interval of every "
        "difference to each baseline lies wholly above 0; not above that "
        "this is not shown, which is not to say that they are equal. Spread = standard deviation "
        "over seeds.",
    )


def _accuracy_rows(results: Results) -> list[Row]:
    accuracy, calibrated = results.accuracy, results.accuracy_calibrated
    rows = []
    for setting, name in SETTINGS.items():
        text = estimate(accuracy.of(setting), *PERCENT)
        text += f" ({percent(calibrated.of(setting).mean)})" if calibrated else ""
        label = f"Accuracy {name}, %{' (calibrated)' if calibrated else ''}"
        if setting == "zsl":
            rows.append(row(label, text, f"majority {percent(accuracy.majority)}", ""))
            continue
        difference = results.gap("accuracy", f"{setting}_zsl")
        other = f"ZSL {percent(accuracy.zsl.mean)}: {gap(difference, *PERCENT)} points"
        rows.append(row(label, text, other, direction(difference)))
    return rows


def direction(difference: Estimate) -> str:
    """A paired difference in a word."""
    where = outcome(difference.interval)
    return "no clear difference" if where == "level" else where


def rec2ftp_text(recall: Recall) -> str:
    """Rec2FTP with both counts, e.g. "71.4 % (5 of 7)"."""
    if recall.percent is None:
        return UNDEFINED
    counts = f"{recall.icl_and_ft_right_zsl_wrong} of {recall.ft_right_zsl_wrong}"
    return f"{number(recall.percent, 1)} % ({counts})"


# ----------------------------------------------------------------------------------- accuracy


def _accuracy_section(results: Results, drawn: dict[str, figures.Figure]) -> Section:
    kinds = {"accuracy": ("raw", results.accuracy)}
    if calibrated := results.accuracy_calibrated:
        kinds["accuracy_calibrated"] = ("calibrated", calibrated)
    rows = [r for kind, accuracy in kinds.values() for r in _share_rows(kind, accuracy)]
    seeds = ", ".join(map(str, results.reported_seeds))
    header = ("setting", "kind", "accuracy, %", "95 % interval", "spread", f"seeds {seeds}")
    note = (
        "Calibrated: each answer's mean log-probability over the evaluated examples is subtracted "
        "before the best answer is taken (batch calibration). This is transductive: it uses the "
        "other evaluated examples, though not their labels, and stands beside the raw accuracy, "
        "not in its place. Its intervals leave the subtracted means as they are."
        if results.accuracy_calibrated
        else "Every example has its own candidates, so that there is nothing to calibrate with."
    )
    differences = []
    for pair in ("icl_zsl", "ft_zsl", "icl_ft"):
        of_pair = [results.gap(key, pair) for key in kinds]
        title = " - ".join(SETTINGS[setting] for setting in pair.split("_"))
        cells = [gap(d, *PERCENT) for d in of_pair]
        differences.append(row(title, *cells, direction(of_pair[0])))
    points = (f"{kind}, points" for kind, _ in kinds.values())
    header2 = ("paired difference", *points, "raw: clear or not")
    return section(
        "accuracy",
        "Accuracy",
        selected_text(results),
        Table("accuracy", "", header, rows),
        Table("accuracy-differences", "", header2, differences, (note,)),
        drawn["accuracy"],
    )


def _share_rows(kind: str, accuracy: Accuracy) -> list[Row]:
    rows = [
        row(
            name,
            kind,
            percent(share.mean),
            interval(share.interval, *PERCENT) or "-",
            percent(share.seed_std),
            listed(share.per_seed, *PERCENT),
        )
        for s, name in SETTINGS.items()
        for share in [accuracy.of(s)]
    ]
    return [*rows, row("majority class", kind, percent(accuracy.majority), "-", "-", "-")]


def _rec2ftp_section(results: Results, drawn: dict[str, figures.Figure]) -> Section:
    recall = results.rec2ftp
    per_seed = ", ".join("undefined" if v is None else number(v, 1) for v in recall.per_seed)
    rows = [
        row("Rec2FTP", rec2ftp_text(recall)),
        row("95 % interval", interval(recall.interval, 1) or "-"),
        row("each seed, %", per_seed),
        row("ZSL wrong, FT right", str(recall.ft_right_zsl_wrong)),
        row("ZSL wrong, FT and ICL right", str(recall.icl_and_ft_right_zsl_wrong)),
        row("ICL accuracy, %, for comparison", percent(results.accuracy.icl.mean)),
    ]
    return section(
        "rec2ftp",
        "What finetuning corrects, does ICL correct it too?",
        "Of the examples that ZSL gets wrong and FT gets right, the percentage that ICL gets right "
        "too, counted over all seeds. 100: ICL corrects all that FT corrects; 0: none of it. "
        "Compare it with ICL's accuracy: were ICL right regardless of ZSL and FT, the two would be "
        "equal.",
        Table("rec2ftp", "", ("", "over all seeds"), rows),
        drawn["agreement"],
    )


# --------------------------------------------------------------------------------- similarity


def _similarity_section(results: Results, drawn: dict[str, figures.Figure]) -> Section:
    own = results.similarities
    header = ("similarity", "mean", "95 % interval", "spread", "each seed", "f2t")
    rows = [row(SIMILARITIES[n].title, *_series_cells(series)) for n, series in own.items()]
    header2 = ("similarity", "baseline", "minus baseline", "above or not", "seeds above all")
    rows2 = [row(SIMILARITIES[n].title, *_comparison_cells(results, n)) for n in own]
    note = (
        f"Means over examples and layers. {selected_text(results)} f2t: the mean over those cases "
        "where ZSL is wrong and FT and ICL are right "
        f"({results.f2t.count:,} of {results.f2t.of:,}, seeds x examples)."
    )
    text = (
        "Beside its baseline, by paired differences, as in the paper. A similarity above a random "
        "vector's says little: any change of the model that any demonstrations make is above it. "
        "What explains a likeness, --config.mode=crossed tests."
    )
    return section(
        "similarity",
        "Similarity of ICL and FT",
        Items(tuple((f"{m.title}:", m.guide) for m in SIMILARITIES.values()), "The measures"),
        note,
        Table("similarity", "", header, rows),
        text,
        Table("similarity-beside", "", header2, rows2, words=True),
        _steps_table(results),
        _layers_text(results),
        drawn["similarity"],
        drawn["update"],
    )


def _series_cells(series: Series) -> tuple[str, ...]:
    return (
        number(series.mean),
        interval(series.interval) or "-",
        number(series.seed_std),
        listed(series.per_seed),
        f"{number(series.f2t)} {interval(series.f2t_interval)}".strip(),
    )


def _steps_table(results: Results) -> Table:
    """How far finetuning goes: similarities grow with it."""
    names = [name for name in STEPS if name in results.steps]
    rows = [row(STEPS[n].title, estimate(results.steps[n])) for n in names]
    notes = tuple(f"{STEPS[n].title}: {STEPS[n].compared}; {STEPS[n].guide}" for n in names)
    return Table("steps", "How far finetuning goes", ("", "mean [95 %]"), rows, notes)


def _comparison_cells(results: Results, name: str) -> tuple[str, ...]:
    baselines = beside(results, name)
    return (
        "; ".join(f"{name_of(n)} {estimate(b.own)}" for n, b in baselines.items()),
        "; ".join(gap(b.difference) for b in baselines.values()),
        verdict(results, name),
        seeds_above(results, name),
    )


def _layers_text(results: Results) -> str:
    """What the figures by layer show, and on which examples."""
    parts = [f"By layer: this job, on the {results.data.evaluated:,} evaluated examples"]
    if dose := results.dose_response:
        parts.append(
            "the same model finetuned at the lowest and at the highest learning rate at which all "
            f"seeds converged, on {dose.examples:,} examples ({dose.measured_on})"
        )
    return "; ".join(parts) + "."


# ------------------------------------------------------------------------------------- set-up


def _setup_section(results: Results) -> Section:
    data, device, d = results.data, results.device, results.demonstrations
    pairs = zip(results.seeds, d.used, strict=False)
    used = ", ".join(f"{n} (seed {s})" for s, n in pairs)
    rows = [
        row("data", f"{data.source} (fingerprint {data.fingerprint})"),
        *(row(f"data note {i}", note) for i, note in enumerate(data.notes, 1)),
        *([row("duplicates", duplicates_text(data.duplicates))] if data.duplicates else []),
        row("evaluated", f"{data.evaluated:,} of {data.validation_examples:,} examples"),
        row("model", f"{model_text(results)} (fingerprint {results.model.fingerprint})"),
        row("demonstrations", f"asked {d.asked}; used {used}"),
        row("answers", ", ".join(results.answers) or "each example's own candidates"),
        row("versions", ", ".join(f"{k} {v}" for k, v in results.versions.items())),
        row("device", f"{device.count} x {device.kind} ({device.platform})"),
        row("seconds", seconds(results.seconds, 1)),
    ]
    return section(
        "setup",
        "Data, model, machine",
        Table("setup", "", ("", ""), rows, words=True),
        "Prompt template (the answer follows after one space):",
        Code(results.template),
        "To reproduce: python -m icljax.main --config=CONFIG.py --workdir=NEW_FOLDER, with the "
        "task's file in configs/ and --config.FIELD=VALUE for each field that differs from this, "
        "the whole config of this job:",
        Code(json.dumps(results.config, indent=2, ensure_ascii=False), "json"),
    )
