"""Rows as a source has them, and what a task takes out of one: texts, choices, marks, label."""

import dataclasses
import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from icljax.data.task import Layout, Row, Task, one_line, template_fields
from icljax.errors import UserError
from icljax.forms import brief, encodable, enumerated

Value = str | int | float | None  # of a label
SLICE = re.compile(r"(.+?)\[(\d{1,9}%?)?:(\d{1,9}%?)?\]")


def as_read(text: str) -> str:
    """Returns a choice as a reader of the prompt sees it, in which case is a difference."""
    return unicodedata.normalize("NFC", one_line(text))


@dataclasses.dataclass(frozen=True, eq=False)
class Rows:
    """One split as the source has it; row i is called f"{place}{indices[i] + first}" in errors.

    Attributes:
        rows: field -> value.
        indices: int32 [N], each row's position in the split or file.
        place: what stands before its number in errors.
        first: the number of position 0.
        names: of a field that numbers classes from 0, their names.
        notes: what a reader of the results should know about this split, one line each.
    """

    rows: list[dict[str, Any]]
    indices: np.ndarray
    place: str
    first: int = 0
    names: Mapping[str, Sequence[str]] = dataclasses.field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def where(self, i: int) -> str:
        """What row i is called in an error."""
        return f"{self.place}{self.indices[i] + self.first}"


@dataclasses.dataclass(frozen=True)
class Source:
    """An opened source: its splits, how to read one, and what is unusual about it."""

    splits: tuple[str, ...]
    read: Callable[[str], Rows]
    notes: tuple[str, ...] = ()


def sliced(name: str, rows: Rows) -> Rows:
    """Cuts rows down to what "split[a:b]" names, as tfds does; a and b are numbers or percents."""
    if "[" not in name:
        return rows
    match = SLICE.fullmatch(name)
    if not match:
        raise UserError(
            f"split {brief(name)}: expected NAME, NAME[:300], NAME[20%:] or NAME[20%:50%]"
        )
    count = len(rows.rows)
    start, end = (
        round(count * int(bound[:-1]) / 100) if bound.endswith("%") else int(bound)
        for bound in (match[2] or "0", match[3] or "100%")
    )
    return dataclasses.replace(rows, rows=rows.rows[start:end], indices=rows.indices[start:end])


def plain(value: Any) -> Any:
    """Bytes as text, arrays of them as lists, and dicts inside a row flat: "question_stem"."""
    if isinstance(value, dict):
        out = {}
        for key, inner in value.items():
            inner = plain(inner)
            if not isinstance(inner, dict):
                out[key] = inner
                continue
            # A field that is called so itself is the one that is meant.
            flat = {f"{key}_{k}": v for k, v in inner.items()}
            out.update({k: v for k, v in flat.items() if k not in value})
        return out
    if isinstance(value, (list, tuple)) or (
        isinstance(value, np.ndarray) and value.dtype == object
    ):
        return [plain(x) for x in value]
    return value.decode("utf-8", errors="replace") if isinstance(value, bytes) else value


@dataclasses.dataclass(frozen=True)
class Example:
    """What a task takes out of a row.

    Attributes:
        fields: template field -> text.
        choices: of a multiple-choice task.
        marks: how the source labels each choice, if it does.
        label: as the source has it.
    """

    fields: dict[str, str]
    choices: list[str]
    marks: list[str]
    label: Value


def example(row: Row, layout: Layout, task: Task) -> Example:
    """Takes a row apart.

    Raises:
        UserError: a field is missing, or is none of its kind.
    """
    forms = {field: layout.fields.get(field, "{" + field + "}") for field in task.fields}
    fields = {field: _fill(form, row) for field, form in forms.items()}
    choices, marks = ([], []) if task.answers else _choices(row, layout.choices)
    value = _of(row, layout.label, object, "label")
    value = value.item() if isinstance(value, np.generic) else value
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if not isinstance(value, (str, int, float, type(None))):
        raise UserError(f"label {brief(value)}, expected a number or a text")
    return Example(fields, choices, marks, value)


def _fill(form: str | Callable[[Row], str], row: Row) -> str:
    """Returns a template field's text."""
    if isinstance(form, str):
        return form.format_map({name: _of(row, name, str) for name in template_fields(form)})
    text = _derived(form, row)
    if not isinstance(text, str):
        raise UserError(f"not in the form of this task's rows: {brief(text)}, expected a text")
    return _whole(text, form.__name__.strip("_"))


def _derived(function: Callable[[Row], Any], row: Row) -> Any:
    """Returns what the task table's function makes of a row."""
    try:
        return function(row)
    except (KeyError, IndexError, TypeError, AttributeError) as error:
        raise UserError(
            f"not in the form of this task's rows ({type(error).__name__}: "
            f"{brief(error.args[0] if error.args else '')}); it has: {enumerated(row)}; set "
            f"config.data.fields"
        ) from error


def _choices(row: Row, where: str | Callable[[Row], Sequence[str]]) -> tuple[list[str], list[str]]:
    """Returns the choices of a multiple-choice row, and the labels that they have there, if any."""
    if not isinstance(where, str):
        name, choices = "choices", list(_derived(where, row))
    elif len(names := [name.strip() for name in (where or "choices").split(",")]) > 1:
        name, choices = names[0], [_of(row, name, str, "choices") for name in names]
    else:
        (name,) = names
        if name not in row and f"{name}_text" in row:  # {"text": [...], "label": [...]}
            name = f"{name}_text"
        choices = list(_of(row, name, (list, tuple, np.ndarray), "choices"))
    marks = row.get(name.removesuffix("_text") + "_label") if name.endswith("_text") else None
    if choices and all(isinstance(choice, dict) for choice in choices):  # {"text": .., "label": ..}
        marks = [choice.get("label") for choice in choices]
        choices = [choice.get("text") for choice in choices]
    texts = all(isinstance(choice, str) and choice.strip() for choice in choices)
    if len(choices) < 2 or not texts:
        raise UserError(
            f"field {name!r} is {brief(choices)}, expected a list of at least two texts"
        )
    for choice in choices:
        _whole(choice, name)
    known = isinstance(marks, list) and len(marks) == len(choices)
    if known and all(isinstance(mark, str) for mark in marks or ()):
        return choices, list(marks or ())
    return choices, []


def _of(row: Row, name: str, kind: Any, setting: str = "fields") -> Any:
    """Returns a field of a row, which must be of a kind (a text, a list)."""
    if name not in row:
        raise UserError(f"no field {name!r}; it has: {enumerated(row)}; set config.data.{setting}")
    value = row[name]
    if not isinstance(value, kind):
        what = "a text" if kind is str else "a list of texts"
        raise UserError(f"field {name!r} is {brief(value)}, expected {what}")
    return _whole(value, name) if kind is str else value


def _whole(text: str, name: str) -> str:
    """Returns the text, which UTF-8 must be able to hold."""
    if not encodable(text):
        raise UserError(
            f"field {name!r} has half of a surrogate pair (\\ud800 to \\udfff): repair it"
        )
    return text
