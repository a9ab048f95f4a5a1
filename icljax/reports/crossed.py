"""A crossed comparison -> its report: whether each side learns, then one verdict a claim."""

import re
from pathlib import Path
from typing import Any

import msgspec
from rich.console import Console

from icljax.catalog import CROSSED, LINKS, METHODS, VARIANTS
from icljax.records import Claim, Crossed, LayerContrast
from icljax.reports import console as console_lib
from icljax.reports import paper
from icljax.reports import report as report_lib
from icljax.reports.crossed_figures import curves, layers, matrices, title
from icljax.reports.document import (
    Cell,
    Items,
    Notice,
    Report,
    Row,
    Section,
    Table,
    row,
    section,
)
from icljax.reports.text import (
    PERCENT,
    estimate,
    gap,
    interval,
    number,
    plural,
    rate,
    seconds,
    weights,
)

VERDICTS = {"above": "above", "equal": "equal within the margin", "open": "open", "": "-"}
SETTINGS = {
    "zsl": "ZSL",
    "icl": "ICL",
    "ft": "FT",
    "icl_flipped": "ICL, wrong labels",
    "ft_flipped": "FT, wrong labels",
}
# What is gained on zero-shot, and ICL on FT; older results have not the last.
GAINS = {"icl": "ICL", "ft": "FT", "icl_over_ft": "ICL above FT"}
_SHOWN = 8  # of layers or heads in a cell
_CLAIMED = (
    "held against",
    "similarity",
    "difference [95 %]",
    "verdict",
    "seeds for equal",
)
_STEPS = {
    "random_step": "random step",
    "weight_noise": "noise in the weights",
    "untrained_icl": "ICL, untrained model",
    "untrained_ft": "FT, untrained model",
}
GUIDE = (
    ("above", "the own pair is surely more alike than this link allows to explain"),
    ("equal within the margin", "surely no more and no less alike: the cut link does not matter"),
    ("open", "the data do not say; more seeds may"),
)


def show(results: dict[str, Any], path: Path, console: Console) -> None:
    """Prints what came out, and where the report is."""
    found = msgspec.convert(results, Crossed)
    blocks = [*_lead(found), _accuracy_table(found), _claims_table(found, 3), _cost(found)]
    console_lib.show(console, blocks, path / report_lib.MARKDOWN)


def report(found: Crossed) -> Report:
    """The report of one job."""
    sections = (
        section(
            "claims",
            "What ICL and FT share, link by link",
            "Each row holds a seed's own pair (ICL and finetuning on the same demonstrations with "
            "right labels) against pairs in which one link between the two is cut. If ICL acts as "
            "finetuning on these demonstrations, every row is above.",
            _claims_table(found),
            Items(GUIDE),
            Items(tuple((f"{m.title}:", m.guide) for m in CROSSED.values()), "The measures"),
            Items(tuple((f"{k.title}:", k.question) for k in LINKS.values()), "The links"),
            _statistics(found),
            matrices(found),
            *_variants(found),
            *_methods(found),
        ),
        *_layer_section(found),
        section(
            "steps",
            "Likeness and size of the step",
            "Every learning rate of the selection by the step that finetuning takes with it: "
            "similarity grows with the step in any model, so that models are compared at the same "
            "step.",
            curves(found),
            _steps_table(found),
        ),
        section(
            "behaviour",
            "Behaviour",
            _accuracy_table(found),
            _behaviour(found),
        ),
        section("set-up", "Set-up", _setup(found), _selection_table(found)),
    )
    return Report(
        f"{found.task.upper()}: does in-context learning act like finetuning on the same "
        "demonstrations?",
        _lead(found),
        sections,
        paper.SOURCES,
    )


def _lead(found: Crossed) -> tuple[str | Notice, ...]:
    """The answer first: does each side learn, then what they share."""
    out: list[str | Notice] = []
    if found.stand_in:
        out.append(Notice(f"STAND-IN DATA, not what was asked for: {found.stand_in}"))
    gains = [
        f"{name} {gap(found.gain[s], *PERCENT)} points"
        for s, name in (("icl", "ICL"), ("ft", "FT"))
    ]
    ahead = found.gain.get("icl_over_ft")
    apart = f"; ICL above FT by {gap(ahead, *PERCENT)}" if ahead else ""
    out.append(
        f"{found.task.upper()}, {found.model.name}: above zero-shot in calibrated accuracy, "
        f"{' and '.join(gains)}{apart}."
    )
    if found.no_verdicts:
        out.append(Notice(f"No verdicts: {found.no_verdicts}."))
    else:
        out += [_sentence(found, measure) for measure in CROSSED if _of(found, measure)]
    return tuple(out)


def _of(found: Crossed, measure: str) -> list[Claim]:
    return [c for c in found.claims if c.measure == measure]


def _sentence(found: Crossed, measure: str) -> str:
    """Text like "SimAM-delta: above FT on wrong labels; equal to ...; open against ..."."""
    words = {"above": "above", "equal": "equal to", "open": "open against"}
    parts = []
    for verdict, word in words.items():
        links = [LINKS[c.link].title for c in _of(found, measure) if c.verdict == verdict]
        if links:
            parts.append(f"{word} {', '.join(links)}")
    return f"{title(measure)}: {'; '.join(parts)}."


def _claims_table(found: Crossed, digits: int = 4) -> Table:
    rows: list[Row] = []
    for measure in CROSSED:
        claims = _of(found, measure)
        if claims:
            rows.append(row(title(measure), kind="group"))
        if claims and measure in found.own:
            own = found.own[measure]
            cells = number(own.mean), interval(own.interval), "", ""
            rows.append(row("own pair", *cells, kind="own"))
        for c in claims:
            seeds = found.seeds_needed.get(f"{c.measure}/{c.link}")
            rows.append(
                row(
                    LINKS[c.link].title,
                    "-" if c.link == "nothing" else number(c.level),
                    gap(c.difference, digits),
                    verdict_cell(c),
                    "-" if seeds is None else str(seeds),
                )
            )
    return Table("claims", "", _CLAIMED, rows, words=True)


def study_table(key: str, heading: str, found: dict[str, Crossed]) -> Table:
    """The claims of several tasks side by side; `found` by task."""
    rows = [row("calibrated accuracy, %", kind="group")]
    for s, name in SETTINGS.items():
        of_tasks = (x.accuracy_calibrated.get(s) for x in found.values())
        rows.append(row(name, *(estimate(x, *PERCENT) if x else "-" for x in of_tasks)))
    rows.append(row("above zero-shot, calibrated points", kind="group"))
    for s, name in GAINS.items():
        if all(s in x.gain for x in found.values()):
            rows.append(row(name, *(gap(x.gain[s], *PERCENT) for x in found.values())))
    for measure in CROSSED:
        names = [n for n in LINKS if any(_claim(x, measure, n) for x in found.values())]
        if names:
            rows.append(row(title(measure), kind="group"))
        if names and all(measure in x.own for x in found.values()):
            rows.append(row("own pair", *(estimate(x.own[measure]) for x in found.values())))
        for name in names:
            held = (_claim(x, measure, name) for x in found.values())
            cells = (verdict_cell(c, gap(c.difference, 4)) if c else Cell("-") for c in held)
            rows.append(row(LINKS[name].title, *cells))
    silent = tuple(f"{t}: no verdicts: {x.no_verdicts}." for t, x in found.items() if x.no_verdicts)
    return Table(key, heading, ("held against", *found), rows, silent)


def _claim(found: Crossed, measure: str, link: str) -> Claim | None:
    return next((c for c in found.claims if (c.measure, c.link) == (measure, link)), None)


def verdict_cell(claim: Claim, detail: str = "") -> Cell:
    """A verdict in words, with what stands under it; bold where it decides."""
    return Cell(VERDICTS[claim.verdict], detail, strong=claim.verdict in ("above", "equal"))


def _statistics(found: Crossed) -> str:
    return (
        f"{plural(len(found.seeds), 'seed')}, {found.data.evaluated} queries. Intervals: Student's "
        "t over seeds and queries, crossed. Verdicts: p below .05 after Holm, over similarities "
        f"together and over the answers; equal: within {found.margin:g} (TOST); against other "
        "demonstrations a permutation test as well. The last column: how many seeds would show "
        "that a difference of 0 is within the margin, from this spread."
    )


def _variants(found: Crossed) -> list[Table]:
    """What own pairs of other demonstrations score: described, not judged."""
    measures = [k for k in CROSSED if k in found.variants]
    names = list(found.variants[measures[0]])
    if not names:
        return []
    rows = [row("as drawn", *(estimate(found.own[k]) for k in measures), kind="own")]
    rows += [
        row(VARIANTS[name].title, *(estimate(found.variants[k][name]) for k in measures))
        for name in names
    ]
    header = ("ICL and FT both on", *(CROSSED[k].title for k in measures))
    note = "Both sides change together here, so that a score as high refutes nothing."
    guides = (f"{VARIANTS[name].title}: {VARIANTS[name].guide}" for name in names)
    notes = (note, *guides)
    return [Table("variants", "Other demonstrations on both sides", header, rows, notes)]


def _methods(found: Crossed) -> list[Table]:
    """What ICL shares with other ways to finetune: described, not judged."""
    if not found.methods:
        return []
    first = found.config["finetune"]["method"]
    measures = [k for k in CROSSED if k in next(iter(found.methods.values())).similarity]
    cells = (estimate(found.own[k]) for k in measures)
    accuracy = estimate(found.accuracy_calibrated["ft"], *PERCENT)
    rows = [row(METHODS[first], *cells, accuracy, kind="own")]
    for name, other in found.methods.items():
        held = (
            Cell(estimate(other.similarity[k]), f"own pair: {gap(other.difference[k])}")
            for k in measures
        )
        accuracy = estimate(other.accuracy_calibrated, *PERCENT)
        rows.append(row(METHODS[name], *held, accuracy))
    names = (CROSSED[k].title for k in measures)
    header = ("ICL, and finetuned by", *names, "FT's calibrated accuracy, %")
    rates = (
        f"{METHODS[name]}: learning rate {rate(matched.rate)}, at which it takes the same step."
        for name, matched in found.selection.methods.items()
    )
    return [Table("methods", "Other ways to finetune", header, rows, tuple(rates))]


def _layer_section(found: Crossed) -> list[Section]:
    if not found.layers:
        return []
    made = section(
        "labels",
        "What right labels and these demonstrations teach",
        "The label contrast: what changes when the demonstrations' labels are right instead "
        "of wrong, of ICL against FT. A mean over layers hides layers that share it.",
        layers(found),
        _layers_table(found),
        _specific(found),
    )
    return [made]


def _steps_table(found: Crossed) -> Table:
    names = SETTINGS | _STEPS | {k: f"FT, {METHODS[k]}" for k in found.methods}
    rows = [row(names[k], estimate(x)) for k, x in found.steps.items() if k in names]
    notes = [f"FT's step in the answers, KL(FT || ZSL): {estimate(found.step_answers)} nats."]
    notes += [
        f"In the weights, a {names[k]} is {estimate(x, 1)} times as large as FT's change."
        for k, x in found.random_scale.items()
    ]
    return Table("sizes", "", ("change", "||change|| / ||ZSL||"), rows, tuple(notes))


def _layers_table(found: Crossed) -> Table:
    names = [str(i + 1) for i in range(len(found.layers["label_map"].mean))]
    rows = [row(title(k), *_sure(contrast, names, "layer")) for k, contrast in found.layers.items()]
    if found.heads:
        heads = len(found.heads.mean) // len(names)
        of_heads = [f"{layer}.{head + 1}" for layer in names for head in range(heads)]
        rows.append(row("The same by head (layer.head)", *_sure(found.heads, of_heads, "head")))
    note = "Surely above 0: p below .05 after Holm over all layers, or over all heads."
    header = ("contrast", "where surely above 0", "highest")
    return Table("sure_layers", "", header, rows, (note,), words=True)


def _specific(found: Crossed) -> Table:
    """What is owed to which demonstrations were drawn."""
    rows = [row(title(k), gap(x, 4)) for k, x in found.specific.items()]
    header = ("what is owed to a seed's demonstrations", "own pairs above others")
    note = "Similarity of what each change has beside its mean over the seeds."
    return Table("specific", "", header, rows, (note,))


def _sure(contrast: LayerContrast, names: list[str], place: str) -> tuple[str, str]:
    """Where a contrast is surely above 0, the strongest first, and where it is highest."""
    known = {name: m for name, m in zip(names, contrast.mean, strict=True) if m is not None}
    p = {name: 1.0 if p is None else p for name, p in zip(names, contrast.p, strict=True)}
    ordered = sorted(known, key=known.__getitem__, reverse=True)
    sure = [name for name in ordered if p[name] < 0.05]
    shown = ", ".join([*sure[:_SHOWN], *(["..."] if len(sure) > _SHOWN else [])])
    highest = f"{number(known[ordered[0]])} in {place} {ordered[0]}" if ordered else "-"
    return f"{len(sure)} of {len(names)}{': ' if sure else ''}{shown}", highest


def _accuracy_table(found: Crossed) -> Table:
    rows = [
        row(
            name,
            estimate(found.accuracy[s], *PERCENT),
            estimate(found.accuracy_calibrated[s], *PERCENT),
        )
        for s, name in SETTINGS.items()
        if s in found.accuracy
    ]
    header = ("setting", "accuracy, %", "calibrated, %")
    return Table("accuracy", "", header, rows)


def _behaviour(found: Crossed) -> Items:
    return Items(
        (
            (
                "Movement of answers",
                f"correlation over queries of how far ICL and FT move each label's log-probability "
                f"from zero-shot: {estimate(found.own['answers'])}",
            ),
            (
                "Rec2FTP",
                f"of the queries that FT repairs, the share that ICL gets right, %: "
                f"{estimate(found.behaviour['rec2ftp'], *PERCENT)}; calibrated "
                f"{estimate(found.behaviour['rec2ftp_calibrated'], *PERCENT)}",
            ),
            (
                "Divergence",
                f"Jensen-Shannon divergence of their answers, nats: "
                f"{estimate(found.behaviour['divergence'])}",
            ),
            (
                "Consistency",
                f"whether the same queries are right, beyond what accuracies imply (kappa): "
                f"{estimate(found.behaviour['consistency'])}",
            ),
        )
    )


def _setup(found: Crossed) -> Items:
    s = found.selection
    return Items(
        (
            ("Weights", weights(found.model) or found.model.name),
            ("Answers", answers(found)),
            ("Data", f"{found.data.source}; {found.data.evaluated} queries"),
            (
                "Demonstrations",
                f"{found.demonstrations.asked} asked for, used: "
                f"{', '.join(map(str, found.demonstrations.used))}",
            ),
            ("Wrong labels", "each label of the demonstrations is the next one, round the end"),
            (
                "Learning rate",
                f"{rate(s.rate)} for all: lowest calibrated loss on {s.num_examples} examples "
                f"({s.selected_on}), mean over seeds {', '.join(map(str, s.seeds))}, of those at "
                "which the training loss does not rise",
            ),
            *_of_untrained(found),
            ("Seconds", seconds(found.seconds)),
        )
    )


def answers(found: Crossed) -> str:
    """The answers, what they stand for, and whether the template says that too."""
    if not found.classes:
        return ", ".join(found.answers)
    pairs = zip(found.answers, found.classes, strict=True)
    named = [c for c in found.classes if re.search(rf"(?i)\b{re.escape(c)}\b", found.template)]
    told = f"; the template still names {', '.join(named)}" if named else ""
    return f"words without meaning: {', '.join(f'{a} for {c}' for a, c in pairs)}{told}"


def _of_untrained(found: Crossed) -> list[tuple[str, str]]:
    s = found.selection
    if s.untrained is None:
        return []
    text = f"weights drawn anew, {rate(s.untrained_rate)}: the learning rate with FT's step"
    return [("Untrained model", text)]


def _selection_table(found: Crossed) -> Table:
    s = found.selection
    c = s.curve
    columns = zip(c.learning_rates, c.nll, c.loss_start, c.loss_end, strict=True)
    rows = [
        row(rate(r), number(nll), number(start), number(end), kind="own" if r == s.rate else "")
        for r, nll, start, end in columns
    ]
    header = ("learning rate", "calibrated loss", "training loss, first half", "second half")
    return Table("rates", "", header, rows)


def _cost(found: Crossed) -> str:
    return f"Seconds: {seconds(found.seconds)}"
