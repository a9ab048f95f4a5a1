"""What a job shows on the console at its end."""

from pathlib import Path
from typing import Any

from rich.console import Console

from icljax.catalog import SETTINGS, SIMILARITIES
from icljax.reports import console as console_lib
from icljax.reports import report as report_lib
from icljax.reports.baselines import verdict
from icljax.reports.document import (
    Notice,
    Table,
    row,
)
from icljax.reports.job import UNDEFINED, model_text
from icljax.reports.rates import best_seed_notice, dose_sentence, seed_text, selected_text
from icljax.reports.text import (
    estimate,
    interval,
    number,
    percent,
    seconds,
    weights,
)
from icljax.results import Results, from_plain


def show(results: dict[str, Any], path: Path, console: Console) -> None:
    """Prints what came out, and where the report is.

    Args:
        results: what results.json holds.
        path: the folder with `report.md`.
    """
    console_lib.show(console, console_blocks(from_plain(results)), path / report_lib.MARKDOWN)


def console_blocks(results: Results) -> list[str | Table | Notice]:
    """What came out, in a few lines."""
    recall = results.rec2ftp
    share = UNDEFINED if recall.percent is None else f"{number(recall.percent, 1)} %"
    blocks: list[str | Table | Notice] = [
        f"{results.task.upper()}: {model_text(results)}",
        *filter(None, [weights(results.model)]),
        _console_accuracy(results),
        f"Rec2FTP {share} {interval(recall.interval, 1)}: ZSL wrong and FT right "
        f"{recall.ft_right_zsl_wrong} times, ICL right in {recall.icl_and_ft_right_zsl_wrong} of "
        "these\n",
        _console_similarity(results),
        *filter(None, [dose_sentence(results, "sim_aou")]),
        selected_text(results),
        *([notice.text] if (notice := best_seed_notice(results)) else []),
        seed_text(results),
        f"Seconds: {seconds(results.seconds)}",
    ]
    if results.stand_in:
        blocks.insert(0, Notice(f"STAND-IN DATA, not what was asked for: {results.stand_in}"))
    return blocks


def _console_accuracy(results: Results) -> Table:
    rows = []
    for name, accuracy in (("raw", results.accuracy), ("calibrated", results.accuracy_calibrated)):
        if accuracy:
            shares = (accuracy.of(s) for s in SETTINGS)
            cells = (
                percent(s.mean) + ("" if s.seed_std is None else f" ± {percent(s.seed_std)}")
                for s in shares
            )
            rows.append(row(name, *cells, percent(accuracy.majority)))
    return Table("accuracy", "", ("accuracy, %", *SETTINGS.values(), "majority"), rows)


_VERDICTS = {"above": "yes", "not above": "no", "unknown": "?"}


def _console_similarity(results: Results) -> Table:
    header = ("similarity of ICL and FT", "mean [95 %]", "baseline", "above")
    rows = [
        row(
            SIMILARITIES[name].title,
            estimate(own),
            ", ".join(number(b.mean) for b in own.baselines.values()),
            _VERDICTS[verdict(results, name).split(":")[0]],
        )
        for name, own in results.similarities.items()
    ]
    note = (
        "baseline: random in FT's place (SimAM: before finetuning; SimUpdate: random in ICL's "
        "place); above: it, by the paired difference's interval. What explains a likeness, this "
        "protocol cannot say: --config.mode=crossed"
    )
    return Table("similarity", "", header, rows, (note,))
