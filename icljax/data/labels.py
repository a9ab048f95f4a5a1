"""A label as its source has it -> a position in the task's answers or in the example's choices.

A label may be read in three ways (`config.data.label_is`):

* index: a number from 0, also as a digit in a text; of two answers, false is the first;
* text: an answer's text, or what the source calls it ("entailment"); true and false are yes and no;
* letter: what marks a choice: the label that it has in the row, else A, B, ... or 1, 2, ...

All labels of both splits are read in one way. Those ways that can read all of them must agree on
every one; else the user is asked which it is.
"""

import dataclasses
import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from icljax.data.rows import Value
from icljax.data.task import Layout, Row, Task, folded
from icljax.errors import UserError
from icljax.forms import brief, enumerated

_READINGS = {
    "index": "a number counts from 0",
    "text": "an answer or its name",
    "letter": "A or 1 is the first",
}


_TRUTH = {
    "true": ("true", "yes", "positive", "correct"),
    "false": ("false", "no", "negative", "incorrect"),
}


@dataclasses.dataclass(frozen=True)
class Label:
    """A label as the source has it; choices and their marks are the example's own."""

    value: Value
    where: str
    choices: Sequence[str]
    marks: Sequence[str]


def unlabelled(row: Row, name: str) -> bool:
    """Whether the label is what stands for none where a split is published without labels."""
    value = row.get(name, 0)  # one that is missing is told with the fields that are there
    if isinstance(value, str):
        return value.strip() in ("", "-1")
    return value is None or (isinstance(value, (int, float, np.number)) and value == -1)


def names_known(names: Sequence[str], task: Task) -> bool:
    """Whether any of a source's class names is one of the task's answers, or called so."""
    return any(_by_text(Label(name, "", (), ()), Layout(), task) is not None for name in names)


def read_labels(labels: Sequence[Label], layout: Layout, task: Task) -> tuple[list[int], list[str]]:
    """Returns the labels as positions in the answers or choices, and notes on how they were read.

    Raises:
        UserError: no reading can read all of them, or two that can differ.
    """
    readings = [layout.label_is] if layout.label_is != "auto" else list(_READINGS)
    if layout.label_is == "auto" and layout.first == 1:
        readings.remove("index")
    memory: dict[tuple[Any, ...], int | None] = {}

    def read(reading: str, label: Label) -> int | None:
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
            f"{labels[0].where}: label {brief(labels[0].value)} of field {brief(layout.label)} "
            f"is a number, and it is not known which answers the numbers stand for: give "
            f"config.data.label_order, for each number from 0 the place in the task's answers "
            f"{enumerated(task.labels)} (from 0)"
        )
    if "letter" in whole and all(label.marks and type(label.value) is str for label in labels):
        whole = {"letter": whole["letter"]}  # a text that is one of the row's own marks is no other
    _check_one_meaning(labels, whole, task)
    reading, found = next(iter(whole.items()))
    return found, _notes(labels, found, reading, layout, task)


def _check_one_meaning(labels: Sequence[Label], whole: dict[str, list[int]], task: Task) -> None:
    """Refuses a label that the readings take for different ones."""
    for label, *found in zip(labels, *whole.values(), strict=True):
        if len(set(found)) > 1:
            answers = label.choices or task.labels
            each = [f"{brief(answers[i])} by {r}" for r, i in zip(whole, found, strict=True)]
            ways = [f"={reading} ({_READINGS[reading]})" for reading in whole]
            raise UserError(
                f"{label.where}: label {brief(label.value)} may be {', '.join(each)}; say which "
                f"with config.data.label_is{' or '.join(ways)}"
            )


def _notes(
    labels: Sequence[Label], found: Sequence[int], reading: str, layout: Layout, task: Task
) -> list[str]:
    """What a reader of the results should know of the way in which labels were read."""
    if not task.answers:
        numbers = any(_number(label.value) is not None and not label.marks for label in labels)
        from_one = reading == "letter" and numbers and layout.first != 1
        return ["labels are numbers of the choices, the first is 1"] if from_one else []
    named = {_name(label.value): task.answers[i] for label, i in zip(labels, found, strict=True)}
    notes = []
    if reading == "index":
        notes = [layout.note] if layout.note and any(map(str.isdigit, named)) else []
        named = {name: answer for name, answer in named.items() if not name.lstrip("+-").isdigit()}
    else:
        named = {name: answer for name, answer in named.items() if name != _name(answer)}
    if named:
        pairs = [f"{brief(name)[1:-1]} as {answer}" for name, answer in sorted(named.items())]
        notes.append(f"labels are read by {reading}: {', '.join(pairs)}")
    return notes


def _unreadable(
    labels: Sequence[Label], read_as: dict[str, list[int | None]], layout: Layout, task: Task
) -> UserError:
    """What is wrong with the first label that the reading which comes furthest cannot read."""
    first = {reading: found.index(None) for reading, found in read_as.items()}
    reading = max(first, key=lambda r: first[r])
    label = labels[first[reading]]
    answers = label.choices or task.labels
    count = len(layout.label_order or answers)
    expected = {
        "index": f"0 to {count - 1}",
        "text": f"one of {enumerated(answers)}",
        "letter": enumerated(label.marks) if label.marks else f"A to {_letters(len(answers))[-1]}",
    }
    if layout.label_is == "auto" and task.answers:
        expected.pop("letter")
    said = " or ".join(expected[r] for r in read_as if r in expected)
    message = f"{label.where}: label {brief(label.value)}, expected {said}"
    if layout.label_is != "auto":
        message += f" (labels are read by {reading}: config.data.label_is)"
    others = [r for r, found in read_as.items() if found[first[reading]] is not None]
    if first[reading] and others:
        return UserError(
            f"{message}; {labels[0].where} has {brief(labels[0].value)}, read by {reading}: give "
            f"the labels of both splits in one form"
        )
    if task.answers and (_number(label.value) or -1) >= count:
        return UserError(f"{message}; map others with config.data.label_order")
    return UserError(f"{message}; set config.data.label{' or config.answers' * bool(task.answers)}")


def _by_index(label: Label, layout: Layout, task: Task) -> int | None:
    order = layout.label_order or range(len(label.choices or task.answers))
    number, name = _number(label.value), _name(label.value)
    if name in _TRUTH and task.answers and len(order) == 2:
        number = int(name == "true")
    return order[number] if number is not None and 0 <= number < len(order) else None


def _by_text(label: Label, layout: Layout, task: Task) -> int | None:
    name = _name(label.value)
    known = [_name(answer) for answer in label.choices or task.labels]
    if name in known:
        return known.index(name) if known.count(name) == 1 else None
    if not label.choices and name in task.names:
        return task.names[name]
    pair = [[known.index(word) for word in words if word in known] for words in _TRUTH.values()]
    if name in _TRUTH and not label.choices and [len(places) for places in pair] == [1, 1]:
        return pair[0 if name == "true" else 1][0]
    return None


def _by_letter(label: Label, layout: Layout, task: Task) -> int | None:
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


def _number(value: Value) -> int | None:
    """Returns a whole number, also one that is written in a text; a truth value is none."""
    if isinstance(value, str) and re.fullmatch(r"\s*[+-]?[0-9]{1,9}(\.0*)?\s*", value):
        return int(float(value))
    return value if type(value) is int else None


def _name(value: Value) -> str:
    """Returns a label or an answer as it is compared: 1, "1" and 1.0 are one, case is none."""
    number = _number(value)
    return folded(str(value if number is None else number))
