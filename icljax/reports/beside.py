"""Crossed jobs that differ in their answers alone -> one report: every claim in each of them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from icljax import forms
from icljax.catalog import CROSSED, LINKS
from icljax.errors import UserError
from icljax.records import Claim, Crossed, read_crossed
from icljax.reports import crossed, paper
from icljax.reports.crossed_figures import layers_beside, title
from icljax.reports.document import (
    Block,
    Cell,
    Items,
    Notice,
    Report,
    Row,
    Table,
    row,
    section,
)
from icljax.reports.text import (
    PERCENT,
    gap,
    interval,
    number,
    percent,
    plural,
    rate,
    signed,
    weights,
)
from icljax.results import Estimate
from icljax.runtime import workdir

# Starts of fields that may differ: what the data's fingerprint tells, and what changes no number.
_FREE = (
    "answers",
    "template",
    "data.source",
    "data.fallback",
    "data.fields",
    "data.label",
    "data.train_split",
    "data.validation_split",
    "mesh.",
    "finetune.runs_at_once",
    "finetune.remat",
    "eval.tokens_per_batch",
)
_COLUMNS = 3  # answers that a column's name has at most


def read(paths: Sequence[Path]) -> list[Crossed]:
    """The crossed jobs in these folders, of one task and one model; none where they are others.

    Raises:
        UserError: for jobs that differ in nothing, or in more than their answers.
    """
    files = [path / workdir.RESULTS for path in paths]
    found = [read_crossed(file) if file.is_file() else None for file in files]
    jobs = [job for job in found if job is not None]
    alike = {(job.task, job.model.name) for job in jobs}
    if len(jobs) < max(2, len(paths)) or len(alike) > 1:
        return []
    for i, job in enumerate(jobs):
        for path, earlier in zip(paths, jobs[:i], strict=False):
            _check_comparable((path, earlier), (paths[i], job))
    return jobs


def _check_comparable(one: tuple[Path, Crossed], other: tuple[Path, Crossed]) -> None:
    folders = f"{one[0]} and {other[0]}"
    if one[1].answers == other[1].answers:
        raise UserError(
            f"{folders} have the same answers ({forms.enumerated(one[1].answers)}); give crossed "
            "jobs that differ in config.answers"
        )
    ours, theirs = _conditions(one[1]), _conditions(other[1])
    differ = [
        f"{key}: {forms.brief(ours.get(key))} and {forms.brief(theirs.get(key))}"
        for key in sorted(ours.keys() | theirs.keys())
        if ours.get(key) != theirs.get(key)
    ]
    if differ:
        raise UserError(
            f"{folders} differ in more than their answers ({'; '.join(differ)}); give crossed jobs "
            "that differ in config.answers alone"
        )


def _conditions(job: Crossed) -> dict[str, Any]:
    """What all jobs have in common: every field of the config, and what was read."""
    config = workdir.flatten(job.config)
    return {k: v for k, v in config.items() if not k.startswith(_FREE)} | {
        "template": job.template,
        "model files": job.model.fingerprint[:12],
        "texts and labels": job.data.fingerprint[:12],
        "evaluated": job.data.evaluated,
        "demonstrations used": job.demonstrations.used,
        "number of answers": len(job.answers),
    }


def report(jobs: Sequence[Crossed]) -> Report:
    """The report of such jobs, a column each."""
    first = jobs[0]
    sections = (
        section(
            "learning",
            "Does each side learn?",
            "Accuracies are calibrated. With words that carry no meaning zero-shot has little to "
            "go by: what ICL and FT know beyond it, they learned from the demonstrations.",
            _accuracy_table(jobs),
        ),
        section(
            "claims",
            "What ICL and FT share, link by link",
            "Own pairs (ICL and finetuning on the same demonstrations with right labels) against "
            "pairs in which one link between the two is cut: the verdict, and the difference with "
            "its 95 % interval.",
            _claims_table(jobs),
            Items(crossed.GUIDE),
        ),
        section(
            "labels",
            "What right labels teach, by layer",
            layers_beside("layers", "Label contrast by layer", {_name(job): job for job in jobs}),
        ),
        section("set-up", "Set-up", _setup(jobs)),
    )
    question = f"{first.task.upper()}: does it matter what the labels are called?"
    kept = tuple(s for s in sections if s.blocks)
    return Report(question, _lead(jobs), kept, paper.SOURCES)


def _name(job: Crossed) -> str:
    """A job's answers, as its column is called."""
    more = ", ..." if len(job.answers) > _COLUMNS else ""
    answers = f"{', '.join(job.answers[:_COLUMNS])}{more}"
    return f"{answers} (no meaning)" if job.classes else answers


def _lead(jobs: Sequence[Crossed]) -> tuple[Block, ...]:
    out: list[Block] = [
        Notice(f"STAND-IN DATA, not what was asked for: {text}")
        for text in sorted({job.stand_in for job in jobs if job.stand_in})
    ]
    for job in jobs:
        icl, ft = (gap(job.gain[s], *PERCENT) for s in ("icl", "ft"))
        out.append(
            f"{_name(job)}: zero-shot is right in {percent(job.accuracy_calibrated['zsl'].mean)} % "
            f"(calibrated); ICL {icl} points from there, FT {ft}."
        )
        if job.no_verdicts:
            out.append(Notice(f"{_name(job)}: no verdicts: {job.no_verdicts}."))
    if not any(job.no_verdicts for job in jobs):
        verdicts = [[c.verdict for c in job.claims] for job in jobs]
        same = sum(len(set(each)) == 1 for each in zip(*verdicts, strict=True))
        out.append(f"The verdict is the same in {same} of {plural(len(verdicts[0]), 'claim')}.")
    return tuple(out)


def _accuracy_table(jobs: Sequence[Crossed]) -> Table:
    first = jobs[0]
    rows = [
        row(title, *(_cell(job.accuracy_calibrated[s], *PERCENT) for job in jobs))
        for s, title in crossed.SETTINGS.items()
        if s in first.accuracy_calibrated
    ]
    rows.append(row("above zero-shot, points", kind="group"))
    rows += [
        row(name, *(_cell(job.gain[s], *PERCENT, signs=True) for job in jobs))
        for s, name in crossed.GAINS.items()
        if all(s in job.gain for job in jobs)
    ]
    rows.append(row("step of attention outputs, ||change|| / ||ZSL||", kind="group"))
    rows += [
        row(crossed.SETTINGS[s], *(_cell(job.steps[s]) for job in jobs)) for s in ("icl", "ft")
    ]
    notes = (
        f"A guess is right in {100 / len(first.answers):.1f} %. Each job chose its own learning "
        "rate; similarity grows with the step, so that levels at unlike steps say little.",
    )
    return Table(
        "accuracy",
        "Accuracy, and the size of the step",
        ("accuracy, %", *map(_name, jobs)),
        rows,
        notes,
    )


def _claims_table(jobs: Sequence[Crossed]) -> Table:
    rows: list[Row] = []
    found = [{(c.measure, c.link): c for c in job.claims} for job in jobs]
    for measure in CROSSED:
        links = [link for of, link in found[0] if of == measure]
        if not links:
            continue
        rows.append(row(title(measure), kind="group"))
        if measure in jobs[0].own:
            rows.append(row("own pair", *(_cell(job.own[measure]) for job in jobs)))
        rows += [row(LINKS[k].title, *(_verdict(f[measure, k]) for f in found)) for k in links]
    notes = (
        "Each verdict is of its own job (Holm over its claims). Nothing here tests one job against "
        "another: above beside open does not show that the two differ.",
    )
    return Table(
        "claims",
        "Each claim with each set of labels",
        ("held against", *map(_name, jobs)),
        rows,
        notes,
        words=True,
    )


def _verdict(claim: Claim) -> Cell:
    if not claim.verdict:
        return _cell(claim.difference, 4, signs=True)
    return crossed.verdict_cell(claim, gap(claim.difference, 4))


def _cell(value: Estimate, digits: int = 3, scale: float = 1, signs: bool = False) -> Cell:
    """The mean with its interval under it, so that columns are narrow."""
    mean = (signed if signs else number)(value.mean, digits, scale)
    return Cell(mean, interval(value.interval, digits, scale, signs))


def _setup(jobs: Sequence[Crossed]) -> Items:
    first = jobs[0]
    each = [
        (_name(job), f"{crossed.answers(job)}; learning rate {rate(job.selection.rate)}")
        for job in jobs
    ]
    return Items(
        (
            ("Weights", weights(first.model) or first.model.name),
            (
                "The same in all",
                f"{first.data.evaluated} queries of {first.data.source}, "
                f"{plural(len(first.seeds), 'seed')} with {first.demonstrations.asked} "
                "demonstrations each, and every other field of the config",
            ),
            *each,
        )
    )
