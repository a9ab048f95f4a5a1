"""A crossed comparison -> its report: whether each side learns, then one verdict a claim."""

from pathlib import Path
from typing import Any

import msgspec
from rich.console import Console

from icljax.catalog import CROSSED, LINKS
from icljax.records import Claim, Crossed, LayerContrast
from icljax.reports import console as console_lib
from icljax.reports import paper, plots
from icljax.reports import report as report_lib
from icljax.reports.document import Cell, Figure, Items, Notice, Report, Row, Table, row, section
from icljax.reports.text import PERCENT, estimate, gap, number, plural, rate, seconds, weights

VERDICTS = {"above": "above", "equal": "equal within the margin", "open": "open", "": "-"}
_SETTINGS = {
    "zsl": "ZSL",
    "icl": "ICL",
    "ft": "FT",
    "icl_flipped": "ICL, wrong labels",
    "ft_flipped": "FT, wrong labels",
}
_CLAIMED = ("measure, own pair", "held against", "difference [95 %]", "verdict", "seeds for equal")
GUIDE = (
    ("above", "the own pair is surely more alike than this link allows to explain"),
    ("equal within the margin", "surely no more and no less alike: the cut link does not matter"),
    ("open", "the data do not say; more seeds may"),
)


def show(results: dict[str, Any], path: Path, console: Console) -> None:
    """Prints what came out, and where the report is."""
    found = msgspec.convert(results, Crossed)
    blocks = [*_lead(found), _accuracy_table(found), _claims_table(found), _cost(found)]
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
            _statistics(found),
            _matrices(found),
        ),
        section(
            "labels",
            "What right labels teach, by layer",
            "The label contrast: what changes when the demonstrations' labels are right instead "
            "of wrong, of ICL against FT. A mean over layers hides layers that share it.",
            _layer_figure(found),
            _layers_table(found),
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
    out.append(
        f"{found.task.upper()}, {found.model.name}: above zero-shot in calibrated accuracy, "
        f"{' and '.join(gains)}."
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
    return f"{_title(measure)}: {'; '.join(parts)}."


def _title(measure: str) -> str:
    return CROSSED[measure][:1].upper() + CROSSED[measure][1:]


def _claims_table(found: Crossed) -> Table:
    rows: list[Row] = []
    for measure in CROSSED:
        claims = _of(found, measure)
        if claims:
            own = f": {estimate(found.own[measure])}" if measure in found.own else ""
            rows.append(row(f"{_title(measure)}{own}", kind="group"))
        for c in claims:
            seeds = found.seeds_needed.get(f"{c.measure}/{c.link}")
            rows.append(
                row(
                    LINKS[c.link].question,
                    LINKS[c.link].title,
                    gap(c.difference, 4),
                    Cell(VERDICTS[c.verdict], strong=c.verdict in ("above", "equal")),
                    "-" if seeds is None else str(seeds),
                )
            )
    return Table("claims", "", _CLAIMED, rows, words=True)


def _statistics(found: Crossed) -> str:
    return (
        f"{plural(len(found.seeds), 'seed')}, {found.data.evaluated} queries. Intervals: Student's "
        "t over seeds and queries, crossed. Verdicts: p below .05 after Holm, over similarities "
        f"together and over the answers; equal: within {found.margin:g} (TOST); against other "
        "demonstrations a permutation test as well. The last column: how many seeds would show "
        "that a difference of 0 is within the margin, from this spread."
    )


def _matrices(found: Crossed) -> Figure:
    halves = ("right labels", "wrong labels")
    panels = [plots.crossed(CROSSED[k], values, halves) for k, values in found.matrix.items()]
    return Figure(
        "matrix",
        "Every prompt with every update",
        "Similarity of what each prompt and each update change, mean over queries and layers; the "
        "number is the block's mean. If it mattered which demonstrations were seen, the diagonal "
        "would stand out; if it mattered whether labels were right, the blocks would differ.",
        panels,
    )


def _layer_curves(contrast: LayerContrast, style: str, name: str) -> plots.Curve:
    x = tuple(float(i + 1) for i in range(len(contrast.mean)))
    band = tuple(zip(contrast.low, contrast.high, strict=True))
    known = all(None not in pair for pair in band)
    return plots.Curve(name, style, x, contrast.mean, band if known else ())


def _layer_figure(found: Crossed) -> Figure:
    styles = {"label_output": "icl", "label_map": "ft"}
    panels = [
        plots.lines(_title(k), [_layer_curves(c, styles[k], CROSSED[k])], "layer")
        for k, c in found.layers.items()
    ]
    return Figure(
        "layers",
        "Label contrast by layer",
        "Cosine of (ICL right - wrong) and (FT right - wrong), own pairs, with 95 % intervals.",
        panels,
    )


def _layers_table(found: Crossed) -> Table:
    rows = [
        row(_title(k), _sure_layers(contrast), _highest(contrast))
        for k, contrast in found.layers.items()
    ]
    note = "Surely above 0: p below .05 after Holm over all layers."
    header = ("contrast", "layers surely above 0", "highest")
    return Table("sure_layers", "", header, rows, (note,), words=True)


def _sure_layers(contrast: LayerContrast) -> str:
    sure = [str(i + 1) for i, p in enumerate(contrast.p) if p is not None and p < 0.05]
    return f"{', '.join(sure) or 'none'} of {len(contrast.p)}"


def _highest(contrast: LayerContrast) -> str:
    known = {i: m for i, m in enumerate(contrast.mean) if m is not None}
    if not known:
        return "-"
    top = max(known, key=known.__getitem__)
    return f"{number(known[top])} in layer {top + 1}"


def _accuracy_table(found: Crossed) -> Table:
    rows = [
        row(
            name,
            estimate(found.accuracy[s], *PERCENT),
            estimate(found.accuracy_calibrated[s], *PERCENT),
            estimate(found.steps[s]) if s in found.steps else "-",
        )
        for s, name in _SETTINGS.items()
    ]
    header = ("setting", "accuracy, %", "calibrated, %", "step of attention outputs")
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
            ("Seconds", seconds(found.seconds)),
        )
    )


def _selection_table(found: Crossed) -> Table:
    s = found.selection
    columns = zip(s.learning_rates, s.nll, s.loss_start, s.loss_end, strict=True)
    rows = [
        row(rate(r), number(nll), number(start), number(end), kind="own" if r == s.rate else "")
        for r, nll, start, end in columns
    ]
    header = ("learning rate", "calibrated loss", "training loss, first half", "second half")
    return Table("rates", "", header, rows)


def _cost(found: Crossed) -> str:
    return f"Seconds: {seconds(found.seconds)}"
