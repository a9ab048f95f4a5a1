"""Tasks by name, with a template and answers of the user's in place of the table's.

A task either has fixed answers or is multiple choice: each example brings choices of its own.
"""

import dataclasses
import difflib
import re
from collections.abc import Mapping, Sequence

from icljax.data.task import Layout, Task, folded, one_line, template_fields
from icljax.data.task_table import SYMBOLS, TASKS
from icljax.errors import UserError

_OWN_TASK = (
    "for a task of your own give --config.template='Review: {text} Sentiment:' and "
    "--config.answers=\"('Negative', 'Positive')\" or, where each example has its own choices, "
    "--config.data.choices=FIELD"
)


def of_rows(source: str) -> bool:
    """Whether a source is rows of a user's own or of the hub, laid out as "jsonl" in the table.

    TFDS and the packages are known one by one, and count classes from 0.
    """
    return source.partition(":")[0] in ("jsonl", "csv", "parquet", "hf")


def layout_of(source: str, task: Task) -> Layout:
    """Returns how `source` is laid out: by the task's own row, else by another that names it."""
    of_others = {k: v for t in TASKS.values() for k, v in t.sources.items() if k != "jsonl"}
    layouts = of_others | dict(task.sources)
    if of_rows(source):
        known = source.partition("@")[0]  # hf:SetFit/sst5@main too
        return layouts.get(known) or layouts.get("jsonl", Layout())
    known = re.sub(r":[\d.*]+$", "", source)  # tfds:glue/sst2:2.0.0 too
    return dataclasses.replace(layouts.get(known, Layout()), first=0)


def get_task(name: str, template: str = "", answers: Sequence[str] = (), choices: str = "") -> Task:
    """Returns the task called `name`, with `template` and `answers` in place of the table's.

    Args:
        answers: ("symbols",) are words without meaning, as many as the table's answers.
        choices: `config.data.choices`; given, the task is multiple choice.

    Raises:
        UserError: an unknown name without both overrides, a malformed template, both answers and
            choices, answers that are not at least two different ones, or symbols for a task
            without answers in the table.
    """
    known = TASKS.get(name)
    if known is None and not (template and (answers or choices)):
        near = difflib.get_close_matches(name, TASKS)
        known_names = f"nearest known: {', '.join(near)}" if near else f"known: {', '.join(TASKS)}"
        raise UserError(f"unknown task {name!r}; {known_names}; {_OWN_TASK}")
    if answers and choices:
        raise UserError(
            f"answers {answers} and data.choices {choices!r}: expected only one of them: the "
            f"answers of all examples or the field that holds each example's choices"
        )
    known = known or Task(name, "")
    template = (template or known.template).strip()
    template_fields(template)
    if tuple(answers) == ("symbols",):
        return dataclasses.replace(_with_symbols(known), template=template)
    if choices or not (answers or known.answers):
        return dataclasses.replace(known, template=template, answers=())
    cleaned = _checked_answers(answers or known.answers)
    names, sources = _names_of(known, cleaned), known.sources
    if not names and cleaned != known.answers:
        sources = {source: _without_order(layout) for source, layout in sources.items()}
    return dataclasses.replace(
        known, template=template, answers=cleaned, ending="", names=names, sources=sources
    )


def _with_symbols(known: Task) -> Task:
    """The task with words without meaning for answers; labels are read as before."""
    if not known.answers:
        raise UserError(
            f"answers 'symbols': task {known.name!r} has no answers in the table that could be "
            "replaced (multiple choice, or a task of your own); give a classification task of the "
            "table, or the words: --config.answers=foo,bar"
        )
    words = SYMBOLS[: len(known.answers)]
    return dataclasses.replace(known, answers=words, classes=known.answers)


def _without_order(layout: Layout) -> Layout:
    """The layout for answers that stand in another order than those its own order is of."""
    other = _without_order(layout.other) if layout.other else None
    order = None if layout.label_order else layout.label_order
    return dataclasses.replace(layout, label_order=order, note="", other=other)


def _names_of(known: Task, answers: Sequence[str]) -> Mapping[str, int]:
    """Returns the classes' names, where `answers` stand in the order of the task's own.

    The task's own answers, which labels may be too, then are names like the others.
    """
    own = {folded(answer): i for i, answer in enumerate(known.answers)}
    names = own | dict(known.names)
    other = any(names.get(folded(answer), i) != i for i, answer in enumerate(answers))
    if other or len(answers) != len(known.answers):
        return {}
    return known.names if tuple(answers) == known.answers else names


def _checked_answers(answers: Sequence[str]) -> tuple[str, ...]:
    if isinstance(answers, str):  # iterates over its letters otherwise
        raise UserError(f"answers {answers!r}: expected a tuple of texts; {_OWN_TASK}")
    cleaned = tuple(one_line(str(answer)) for answer in answers)
    different = len(set(map(folded, cleaned)))
    if not all(cleaned) or different < max(2, len(cleaned)):
        raise UserError(
            f"answers {cleaned}: expected at least two, none empty, no two alike; {_OWN_TASK}"
        )
    return cleaned
