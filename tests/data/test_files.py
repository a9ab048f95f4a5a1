"""CSV and Parquet files, and data sets of the hub: local folders, through the same library."""

import json
import os
import subprocess
import sys
from pathlib import Path

import datasets as library
import numpy as np
import pytest

from icljax.data import datasets, hub
from icljax.data.task_table import TASKS
from icljax.data.tasks import get_task, layout_of
from icljax.errors import UserError
from icljax.runtime import network
from tests.data.test_datasets import MR, REVIEWS, TRAIN, VALIDATION, data_config, fails, write_jsonl


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    """The library's locks are kept out of the user's cache."""
    folder = tmp_path_factory.mktemp("hf")
    monkeypatch.setattr(library.config, "HF_DATASETS_CACHE", str(folder))


def write(folder, **files):
    """Files called NAME_SUFFIX, as text or bytes."""
    folder.mkdir(exist_ok=True)
    for name, content in files.items():
        path = folder / ".".join(name.rsplit("_", 1))
        data = content.encode() if isinstance(content, str) else content
        path.write_bytes(data)
    return folder


def write_parquet(path, rows, names=()):
    """Rows whose labels, where they have names, are a ClassLabel."""
    path.parent.mkdir(parents=True, exist_ok=True)
    data = library.Dataset.from_list(rows)
    if names:
        data = data.cast_column("label", library.ClassLabel(names=list(names)))
    data.to_parquet(str(path))


def texts(split):
    return [fields["text"] for fields in split.fields]


# CSV

HEAD = "text,label\n"
GOOD = HEAD + "good,1\nbad,0\n"


def test_csv(tmp_path):
    """Every value is the text that stands there: no missing "NA", no number."""
    train = HEAD + 'NA,0\nnull,1\n"a, ""b""\nc",1\n\n12,0\n a\u2028b ,1\n'
    write(tmp_path, train_csv=train, validation_csv=GOOD, test_csv=HEAD)
    loaded = datasets.load(data_config(f"csv:{tmp_path}"), MR)
    assert texts(loaded.train) == ["NA", "null", 'a, "b"\nc', "12", " a\u2028b "]
    assert loaded.train.labels.tolist() == [0, 1, 1, 0, 1]
    assert loaded.train.indices.tolist() == [0, 1, 2, 3, 4]
    assert (loaded.validation.name, loaded.validation.labels.tolist()) == ("validation", [1, 0])


@pytest.mark.parametrize(
    "text",
    [
        "\ufeff" + GOOD.replace("\n", "\r\n"),
        GOOD.replace(",", ";"),
        GOOD.replace(",", "\t"),
        '"text","label"\n"good","1"\n"bad","0"',
        "label,id,text\nPositive,7,good\nNegative,8,bad\n",
    ],
)
def test_csv_as_programs_write_it(tmp_path, text):
    write(tmp_path, train_csv=text, test_csv=HEAD + "x,1\n")
    if "Positive" in text:
        write(tmp_path, test_csv=HEAD + "x,Positive\n")
    train = datasets.load(data_config(f"csv:{tmp_path}"), MR).train
    assert (texts(train), train.labels.tolist()) == (["good", "bad"], [1, 0])


def test_csv_is_jsonl(tmp_path):
    """The same rows give the same data set, from a text longer than the reader's usual limit on."""
    rows = [*TRAIN, {"text": "x" * 200_000, "label": 1}]
    source = write_jsonl(tmp_path, train=rows, validation=VALIDATION)
    for split, of_split in (("train", rows), ("validation", VALIDATION)):
        table = HEAD + "".join(f"{row['text']},{row['label']}\n" for row in of_split)
        write(tmp_path, **{f"{split}_csv": table})
        write_parquet(tmp_path / f"{split}.parquet", of_split)
    prints = {
        datasets.load(data_config(f"{kind}:{tmp_path}"), MR).fingerprint
        for kind in ("jsonl", "csv", "parquet")
    }
    assert prints == {datasets.load(data_config(source), MR).fingerprint}


@pytest.mark.parametrize(
    ("train", "says"),
    [
        (HEAD + "a,0\nb\n", "train.csv:3: 1 values, expected 2: text, label; put a text with ','"),
        (HEAD + "a,0\nb, c,1\n", "train.csv:3: 3 values, expected 2"),
        (HEAD + 'a,0\n"b,1\n', "train.csv:3: malformed CSV (unexpected end of data); put texts"),
        (HEAD + '"he said "b"",1\n', "train.csv:2: malformed CSV ("),
        ("text,text\na,0\n", "train.csv: the field 'text' is there twice; it has: text, text"),
        ("txt,label\na,0\n", "train.csv, row 1: no field 'text'; it has: txt, label; set config."),
        ("text,y\na,0\n", "train.csv, row 1: no field 'label'; it has: text, y; set config.data.l"),
        (HEAD + "a,0\nb,2\n", "train.csv, row 2: label '2', expected 0 to 1 or one of Negative, P"),
        (HEAD + "a,0\nb,good\n", "train.csv, row 2: label 'good', expected 0 to 1 or one of Negat"),
        (HEAD + "a,\nb,\n", "has no labels (label is ''), as test splits are published"),
        ("", "split 'train' of csv:"),
        (HEAD, "split 'train' of csv:"),
        (HEAD.encode() + b"caf\xe9,1\n", "train.csv:2: not UTF-8; save the file as UTF-8"),
        (GOOD.encode("utf-16"), "train.csv:1: not UTF-8; save the file as UTF-8"),
    ],
)
def test_bad_csv(tmp_path, train, says):
    write(tmp_path, train_csv=train, validation_csv=HEAD + "v,0\n")
    assert says in fails(f"csv:{tmp_path}", fallback=REVIEWS)


# Parquet


@pytest.mark.parametrize("kind", ["parquet", "hf"])
def test_parquet_with_class_names(tmp_path, kind):
    """Numbers mean what the file's own names say, not their order in the task."""
    write_parquet(tmp_path / "train.parquet", TRAIN, ["pos", "neg"])
    write_parquet(tmp_path / "test.parquet", VALIDATION, ["pos", "neg"])
    loaded = datasets.load(data_config(f"{kind}:{tmp_path}"), MR)
    assert texts(loaded.train) == [row["text"] for row in TRAIN]
    assert loaded.train.labels.tolist() == [1 - row["label"] for row in TRAIN]
    assert loaded.notes == ("labels are read by text: neg as Negative, pos as Positive",)
    by_index = datasets.load(data_config(f"{kind}:{tmp_path}", label_is="index"), MR)
    assert by_index.train.labels.tolist() == [row["label"] for row in TRAIN]


def class_labels(tmp_path, names, task=MR, labels=(0, 1), **settings):
    rows = [{"text": f"t{i}", "label": label} for i, label in enumerate(labels)]
    write_parquet(tmp_path / "train.parquet", rows, names)
    write_parquet(tmp_path / "test.parquet", [row | {"text": "v"} for row in rows[:1]], names)
    loaded = datasets.load(data_config(f"parquet:{tmp_path}", **settings), task)
    return loaded.train.labels.tolist(), loaded.notes[0]


def test_class_names_that_the_task_does_not_know_are_numbers_from_0(tmp_path):
    mine = get_task("mine", "{text}", ("bad", "good"))
    labels, note = class_labels(tmp_path, ["LABEL_0", "LABEL_1"], mine)
    assert labels == [0, 1]
    assert note == "the source's classes, none called as in the task: 0 LABEL_0, 1 LABEL_1"
    assert class_labels(tmp_path, ["x", "y"], mine, label_order=(1, 0))[0] == [1, 0]
    with pytest.raises(UserError, match=r"label 'x', expected one of bad, good .labels are"):
        class_labels(tmp_path, ["x", "y"], mine, label_is="text")


def test_class_names_of_which_the_task_knows_some_are_no_numbers(tmp_path):
    with pytest.raises(UserError, match=r"train.parquet, row 1: label 'neutral', expected one of"):
        class_labels(tmp_path, ["negative", "neutral", "positive"], labels=(0, 1, 2))
    trec = ["ABBR", "ENTY", "DESC", "HUM", "LOC", "NUM"]
    labels, note = class_labels(tmp_path, trec, TASKS["trec"], labels=(0, 2, 5))
    assert labels == [2, 0, 4]
    assert note.startswith("labels are read by text")
    stars = get_task("stars", "{text}", tuple("12345"))
    assert class_labels(tmp_path, list("12345"), stars, labels=(0, 4))[0] == [0, 4]


def test_a_class_without_a_number_in_its_names_is_told(tmp_path):
    """-1 is how the library writes a label that is hidden."""
    rows = [{"text": "a", "label": 0}, {"text": "b", "label": -1}]
    write_parquet(tmp_path / "train.parquet", rows, ["neg", "pos"])
    write_parquet(tmp_path / "test.parquet", rows[:1], ["neg", "pos"])
    assert "train.parquet, row 1: label -1, expected one of" in fails(f"parquet:{tmp_path}")


def test_parts_of_one_split_as_the_hub_has_them(tmp_path):
    for part in (0, 1):
        rows = TRAIN[3 * part : 3 * part + 3]
        write_parquet(tmp_path / f"train-0000{part}-of-00002.parquet", rows, ["neg", "pos"])
    write_parquet(tmp_path / "test-00000-of-00001.parquet", VALIDATION, ["neg", "pos"])
    loaded = datasets.load(data_config(f"parquet:{tmp_path}"), MR)
    assert texts(loaded.train) == [row["text"] for row in TRAIN]
    np.testing.assert_array_equal(loaded.train.indices, np.arange(6))
    assert loaded.validation.name == "test"
    assert "parquet:" in loaded.source


@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet"])
def test_a_single_file_in_two_parts(tmp_path, kind):
    folder = tmp_path / "lang=[en]*"  # no pattern, and no partition of Parquet's
    path = folder / f"my reviews.{kind}"
    write_parquet(path, TRAIN)
    if kind == "csv":
        path.write_text(HEAD + "".join(f"{row['text']},{row['label']}\n" for row in TRAIN))
    if kind == "jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in TRAIN))
    assert "it has: my reviews; set config.data.train_split" in fails(f"{kind}:{path}")
    parts = {"train_split": "my reviews[:4]", "validation_split": "my reviews[4:]"}
    loaded = datasets.load(data_config(f"{kind}:{path}", **parts), MR)
    assert texts(loaded.train) + texts(loaded.validation) == [row["text"] for row in TRAIN]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "train.parquet as Parquet: "),
        (b"text,label\na,0\n", "train.parquet as Parquet: "),
        (None, "cannot read "),
    ],
)
def test_bad_parquet(tmp_path, content, says):
    write_parquet(tmp_path / "test.parquet", VALIDATION)
    write_parquet(tmp_path / "train.parquet", TRAIN)
    whole = (tmp_path / "train.parquet").read_bytes()
    content = whole[: len(whole) // 2] if content is None else content
    (tmp_path / "train.parquet").write_bytes(content)
    message = fails(f"parquet:{tmp_path}", fallback=REVIEWS)
    assert says in message
    assert message.endswith("write it again, or give CSV or JSON Lines")


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_no_such_files(tmp_path, kind):
    message = fails(f"{kind}:{tmp_path / 'none'}")
    assert f"no such folder or file; expected one with train.{kind} and valid" in message
    assert "has no split 'train'; it has: none" in fails(f"{kind}:{tmp_path}")


# The hub's library, on folders

ROW = b'{"text": "a", "label": 0}\n'


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # it leaves CSV open
@pytest.mark.parametrize("suffix", ["jsonl", "csv", "parquet"])
def test_a_local_folder_of_the_hub(tmp_path, monkeypatch, suffix):
    monkeypatch.chdir(tmp_path)
    for split, rows in (("train", TRAIN), ("validation", VALIDATION)):
        path = tmp_path / "mine" / "data" / f"{split}.{suffix}"
        write_parquet(path, rows)
        if suffix == "csv":
            path.write_text(HEAD + "".join(f"{row['text']},{row['label']}\n" for row in rows))
        if suffix == "jsonl":
            path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = write_jsonl(tmp_path, train=TRAIN, validation=VALIDATION)
    expected = datasets.load(data_config(source), MR)
    for name in ("./mine", str(tmp_path / "mine")):
        loaded = datasets.load(data_config(f"hf:{name}"), MR)
        assert (loaded.fingerprint, loaded.notes) == (expected.fingerprint, ())
    parts = {"train_split": "validation[1:3]", "validation_split": "train[50%:]"}
    loaded = datasets.load(data_config("hf:./mine", **parts), MR)
    assert texts(loaded.train) == ["val 1", "val 2"]
    assert loaded.train.indices.tolist() == [1, 2]
    assert texts(loaded.validation) == [row["text"] for row in TRAIN[3:]]


def test_class_names_and_configurations_of_a_card(tmp_path):
    card = """---
configs:
- config_name: reviews
  data_files:
  - {split: train, path: train.jsonl}
  - {split: test, path: test.jsonl}
dataset_info:
- config_name: reviews
  features:
  - {name: text, dtype: string}
  - name: label
    dtype: {class_label: {names: {'0': positive, '1': negative}}}
---
"""
    write_jsonl(tmp_path, train=TRAIN, test=VALIDATION)
    (tmp_path / "README.md").write_text(card)
    loaded = datasets.load(data_config(f"hf:{tmp_path}"), MR)
    assert loaded.train.labels.tolist() == [1 - row["label"] for row in TRAIN]
    assert loaded.notes == (f"hf:{tmp_path} is read in its configuration 'reviews'",)


def test_a_large_split_is_drawn_from_a_shuffled_stream_and_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(hub, "MOST", 5)
    rows = [{"text": f"t{i}", "label": i % 2} for i in range(40)]
    write_jsonl(tmp_path, train=rows, validation=VALIDATION)
    source = f"hf:{tmp_path}"
    loaded = datasets.load(data_config(source), MR)
    assert len(loaded.train.fields) == 5
    assert set(texts(loaded.train)) <= {row["text"] for row in rows}
    assert texts(loaded.train) != [row["text"] for row in rows[:5]]
    assert loaded.notes[0].startswith(f"split 'train' of {source} has more than 5 rows: examples")
    assert datasets.load(data_config(source), MR).fingerprint == loaded.fingerprint
    whole = datasets.load(data_config(source, train_split="train[2:40]"), MR)
    assert whole.train.indices.tolist() == list(range(2, 40))
    assert not any("shuffled" in note for note in whole.notes)
    assert "give the part in numbers: 'train[:5]'" in fails(source, train_split="train[20%:]")


@pytest.mark.parametrize(
    ("files", "says"),
    [
        ({}, "EmptyDatasetError"),
        ({"train_jsonl": '{"text": \n', "test_jsonl": ROW}, "mine cannot be read: "),
        ({"train_jsonl": ROW.replace(b"a", b"\xe9"), "test_jsonl": ROW}, "UnicodeDecodeError: "),
        ({"train_parquet": b"not Parquet"}, "ArrowInvalid: Parquet magic bytes not found"),
        ({"train_csv": HEAD}, "has no split 'validation'; it has: train"),
        ({"train_csv": "txt,label\na,0\n", "test_csv": GOOD}, "train, row 0: no field 'text'"),
        ({"mine_py": "raise SystemExit('executed')"}, "cannot be read: "),
    ],
)
def test_bad_folders_of_the_hub(tmp_path, files, says):
    folder = write(tmp_path / "mine", **files)
    assert says in fails(f"hf:{folder}", fallback=REVIEWS)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("./none", "no such folder; expected hf:ORG/NAME[/CONFIG][@REVISION]"),
        ("sst5", "expected hf:ORG/NAME"),
        ("a/b/c/d", "expected hf:ORG/NAME"),
        ("a b/c", "expected hf:ORG/NAME"),
        ("", "hf:SetFit/sst5"),
    ],
)
def test_names_that_the_hub_cannot_have(name, says):
    assert says in fails(f"hf:{name}")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("a/b", ("a/b", None, None)),
        ("nyu-mll/glue/sst2", ("nyu-mll/glue", "sst2", None)),
        ("a/b.c@refs/convert/parquet", ("a/b.c", None, "refs/convert/parquet")),
        ("a/b/c-1@v1.0", ("a/b", "c-1", "v1.0")),
    ],
)
def test_parts_of_a_name(monkeypatch, name, expected):
    asked = []

    def load_dataset(path, config, revision, streaming):
        asked.append((path, config, revision, streaming))
        return {}

    monkeypatch.setattr(network, "unreachable", lambda urls: "")
    monkeypatch.setattr(library, "load_dataset", load_dataset)
    assert "has no split 'train'; it has: none" in fails(f"hf:{name}")
    assert asked == [(*expected, True)]


def setfit(monkeypatch, **splits):
    """Lets the hub have these rows."""
    made = {k: library.Dataset.from_list(v).to_iterable_dataset() for k, v in splits.items()}
    monkeypatch.setattr(network, "unreachable", lambda urls: "")
    monkeypatch.setattr(library, "load_dataset", lambda *_, **__: made)


def test_the_defaults_of_sst5_and_subj(monkeypatch):
    stars = ["very negative", "negative", "neutral", "positive", "very positive"]
    rows = [{"text": f"t{i}", "label": 4 - i, "label_text": n} for i, n in enumerate(stars)]
    setfit(monkeypatch, train=rows, validation=[rows[1] | {"text": "v"}], test=rows)
    task = TASKS["sst5"]
    loaded = datasets.load(data_config(task.source), task)
    assert (task.source, loaded.validation.name) == ("hf:SetFit/sst5", "validation")
    assert loaded.train.labels.tolist() == [0, 1, 2, 3, 4]  # by their names, whatever the numbers

    rows = [
        {"text": f"t{i}", "label": i, "label_text": n} for i, n in enumerate(("objective", "x"))
    ]
    rows[1]["label_text"] = "subjective"
    setfit(monkeypatch, train=rows, test=[row | {"text": "v"} for row in rows])
    task = TASKS["subj"]
    loaded = datasets.load(data_config(f"{task.source}@main"), task)
    assert (task.source, loaded.validation.name) == ("hf:SetFit/subj", "test")
    assert loaded.train.labels.tolist() == [0, 1]
    numbers = [{"text": row["text"], "label": row["label"]} for row in rows]
    setfit(monkeypatch, train=numbers, test=[row | {"text": "v"} for row in numbers])
    assert datasets.load(data_config(task.source), task).train.labels.tolist() == [0, 1]


@pytest.mark.parametrize("source", ["csv:x", "parquet:x", "hf:org/name", "hf:org/name/config@v1"])
def test_files_and_the_hub_are_laid_out_as_jsonl(source):
    for task in TASKS.values():
        assert layout_of(source, task) == layout_of("jsonl:x", task)


# Without the network, without the library

FLAG = "or give a folder of files: --config.data.source=jsonl:DIR (csv:DIR, parquet:DIR)"


def test_without_a_network_one_line_names_the_flag(monkeypatch):
    import requests

    def refuse(*_, **__):
        raise requests.ConnectionError("refused")

    def never(*_, **__):
        raise AssertionError("the library would try for half a minute")

    monkeypatch.setattr(requests, "head", refuse)
    monkeypatch.setattr(library, "load_dataset", never)
    message = fails("hf:SetFit/sst5", TASKS["sst5"])
    assert "hf:SetFit/sst5 cannot be fetched: huggingface.co cannot be reached" in message
    assert FLAG in message


@pytest.mark.parametrize(
    ("raised", "unavailable"),
    [
        (ConnectionError("Couldn't reach 'a/b' on the Hub"), True),
        (TimeoutError("read"), True),
        (type("ReadTimeout", (Exception,), {})("read"), True),
        (ConnectionResetError(104, "reset"), True),
        (FileNotFoundError("Dataset 'a/b' doesn't exist on the Hub or cannot be accessed."), False),
        (ValueError("BuilderConfig 'z' not found.\nAvailable: ['a', 'b']"), False),
        (OSError(28, "No space left on device"), False),
    ],
)
def test_a_hub_that_does_not_answer_is_no_mistake(monkeypatch, raised, unavailable):
    """The fallback stands in for what cannot be fetched, never for what is not there."""

    def load_dataset(*_, **__):
        raise RuntimeError("wrapped") from raised

    monkeypatch.setattr(network, "unreachable", lambda urls: "")
    monkeypatch.setattr(library, "load_dataset", load_dataset)
    message = fails("hf:a/b", fallback="jsonl:none")
    assert ("no such folder" in message) == unavailable  # of the fallback
    assert unavailable or "hf:a/b cannot be read: " in message


def test_offline_and_without_the_library_in_processes_of_their_own(tmp_path):
    """Offline is asked of the library when it is imported; without it, jsonl and csv still read."""
    code = """if True:
        import sys
        from icljax.data import datasets, hub
        from icljax.data.task_table import TASKS
        from icljax.errors import UserError
        from icljax.experiments import config
        config = config.of_task("sst5")
        if sys.argv[1] == "without":
            sys.modules["datasets"] = None
        try:
            datasets.load(config.data, TASKS["sst5"])
        except UserError as error:
            print(error)
        for kind in ("csv", "jsonl"):
            config.data.source = f"{kind}:{sys.argv[2]}"
            try:
                datasets.load(config.data, TASKS["sst5"])
            except UserError as error:
                print(error)
        print(sorted({"datasets", "pandas", "torch"} & {k for k, v in sys.modules.items() if v}))
    """
    says = {
        "offline": "hf:SetFit/sst5 cannot be fetched: ConnectionError: Couldn't reach",
        "without": "'hf:SetFit/sst5' is read by a package that is not there: pip install 'icljax[h",
    }
    root = str(Path(__file__).parents[2])
    for how, line in says.items():
        done = subprocess.run(
            [sys.executable, "-c", code, how, str(tmp_path)],
            env={**os.environ, "PYTHONPATH": root, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)},
            capture_output=True,
            text=True,
        )
        first, csv, jsonl, imported = done.stdout.splitlines()
        assert first.startswith(line), done.stderr
        assert FLAG in first
        assert "has no split 'train'" in csv
        assert "has no split 'train'" in jsonl
        assert how == "offline" or imported == "[]"
