"""Rows through the `datasets` library (extra `hub`): the Hugging Face hub's, and Parquet files.

`hf:ORG/NAME[/CONFIG][@REVISION]` is streamed: only the splits that are read are fetched, and
nothing is kept for the next time. A split is read whole, so that every example can be drawn, up to
`MOST` rows. Of a larger one the library's shuffled stream gives as many: its files in random order,
`MOST` rows waiting at a time. That is no fair draw from all rows, and the results say so; a part in
numbers, `train[:900000]`, is read as it is asked for, and drawn from fairly.

`hf:PATH` (from `.`, `/` or `~`) is a folder on disk that is laid out as a data set of the hub.
"""

import dataclasses
import functools
import itertools
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from icljax.data.rows import SLICE, Rows, Source, plain, sliced
from icljax.errors import UserError
from icljax.forms import brief, one_line
from icljax.runtime import downloads, network
from icljax.runtime.downloads import Unavailable

MOST = 200_000  # rows of a split that are read where no part of it in numbers is asked for

_FORM = "hf:ORG/NAME[/CONFIG][@REVISION], or hf:./FOLDER for one on disk"
_NAME = re.compile(r"([\w.-]+/[\w.-]+)(?:/([^/@]+))?(?:@(\S+))?")


@dataclasses.dataclass(frozen=True)
class _Name:
    """What `hf:` names; `where` is a path where it is local."""

    source: str
    where: str
    config: str | None = None
    revision: str | None = None
    local: bool = False


def open_hub(name: str) -> Source:
    """Opens a data set of the hub, or a folder that is laid out as one.

    Raises:
        Unavailable: no network, or no `datasets` library.
        UserError: another form of name, or no such data set, configuration or revision.
    """
    named = _parse(name)
    library = _library(named.source)
    probed = [] if named.local or library.config.HF_HUB_OFFLINE else [library.config.HF_ENDPOINT]
    if reason := network.unreachable(probed):  # the library itself would try for half a minute
        raise _unavailable(named, reason)
    try:
        streams = library.load_dataset(
            named.where, named.config, revision=named.revision, streaming=True
        )
    except Exception as error:  # of its own, of its HTTP library, of the file system
        raise _failed(named, error) from error
    infos = [stream.info for stream in streams.values()]
    chosen = infos[0].config_name if infos else None
    notes = [f"{named.source} is read in its configuration {brief(chosen)}"]
    known = named.config or chosen in (None, "default")
    return Source(tuple(streams), _reader(named, streams), () if known else tuple(notes))


def _parse(name: str) -> _Name:
    source = f"hf:{name}"
    if name.startswith((".", "/", "~")):
        folder = downloads.user_path(name, "data source hf:")
        if not folder.is_dir():
            raise UserError(f"data source {brief(source)}: no such folder; expected {_FORM}")
        return _Name(source, str(folder), local=True)
    match = _NAME.fullmatch(name)
    if not match:
        raise UserError(f"data source {brief(source)}: expected {_FORM}")
    return _Name(source, match[1], match[2], match[3])


def _reader(named: _Name, streams: Mapping[str, Any]) -> Callable[[str], Rows]:
    """What reads one split, or a part of it."""

    @functools.cache  # two parts of one split
    def first(base: str) -> list[dict[str, Any]]:
        return _plain_rows(streams[base], 0, MOST + 1)

    def rows_of(split: str) -> Rows:
        base, part = split.partition("[")[0], SLICE.fullmatch(split)
        stream, place = streams[base], f"{named.source}, {base}, row "
        if part and part[3] and "%" not in split:
            start = int(part[2] or 0)
            rows = _plain_rows(stream, start, int(part[3]))
            return Rows(rows, np.arange(start, start + len(rows), dtype=np.int32), place)
        rows = first(base)
        if len(rows) <= MOST:
            return sliced(split, Rows(rows, np.arange(len(rows), dtype=np.int32), place))
        if "[" in split:
            raise UserError(
                f"split {brief(split)} of {named.source}: the split has more than {MOST:,} rows; "
                f"give the part in numbers: '{base}[:{MOST}]'"
            )
        shuffled = stream.shuffle(seed=0, buffer_size=MOST)
        note = (
            f"split {base!r} of {named.source} has more than {MOST:,} rows: examples are drawn "
            f"from {MOST:,} of a shuffled stream (its files in random order, {MOST:,} rows at a "
            f"time), not from all"
        )
        rows = _plain_rows(shuffled, 0, MOST)
        return Rows(rows, np.arange(MOST, dtype=np.int32), f"{place}in its stream ", notes=(note,))

    def read(split: str) -> Rows:
        try:
            names = _class_names(streams[split.partition("[")[0]].features)
            return dataclasses.replace(rows_of(split), names=names)
        except UserError:
            raise
        except Exception as error:  # as above, and of its readers of files
            raise _failed(named, error) from error

    return read


def _plain_rows(stream: Iterable[Any], start: int, stop: int) -> list[dict[str, Any]]:
    return [plain(dict(row)) for row in itertools.islice(stream, start, stop)]


def _class_names(features: Mapping[str, Any] | None) -> dict[str, list[str]]:
    """The names of those fields (ClassLabel) that number their classes from 0."""
    named = {field: getattr(kind, "names", None) for field, kind in (features or {}).items()}
    return {field: list(names) for field, names in named.items() if names}


def read_parquet(path: Path) -> Rows:
    """Reads a Parquet file; what the `datasets` library notes in it says how classes are called.

    Raises:
        Unavailable: no `datasets` library.
        UserError: a file that is none, or cannot be read.
    """
    library = _library(f"parquet:{path}")
    from pyarrow import ArrowException, parquet

    try:
        with parquet.ParquetFile(path) as file:
            table = file.read()
            names = _class_names(library.Features.from_arrow_schema(table.schema))
            rows = _plain_rows(table.to_pylist(), 0, table.num_rows)
    except (ArrowException, OSError, ValueError) as error:  # pyarrow's own are some of each
        raise UserError(
            f"cannot read {path} as Parquet: {one_line(error)}; write it again, or give CSV or "
            f"JSON Lines"
        ) from error
    return Rows(rows, np.arange(len(rows), dtype=np.int32), f"{path}, row ", names=names)


def _library(source: str) -> ModuleType:
    """The `datasets` library, without its progress bars and log; its import takes seconds."""
    try:
        import datasets
    except ImportError as error:
        raise Unavailable(
            f"{brief(source)} is read by a package that is not there: pip install 'icljax[hub]'",
            "no datasets library",
        ) from error
    datasets.disable_progress_bars()
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)
    return datasets


def _unavailable(named: _Name, reason: str) -> Unavailable:
    return Unavailable(
        f"{named.source} cannot be fetched: {reason}; connect to the network", reason
    )


def _failed(named: _Name, error: Exception) -> UserError:
    """One line of what the library raised: no network, or a mistake."""
    said = f"{type(error).__name__}: {one_line(error)}"
    cause: BaseException | None = error
    while cause is not None and not named.local:
        # Of several HTTP libraries: ConnectError, ConnectionResetError, ReadTimeout.
        if any(word in type(cause).__name__ for word in ("Connect", "Timeout")):
            return _unavailable(named, said)
        cause = cause.__cause__ or cause.__context__
    advice = "see its files" if named.local else "check the name, or log in with `hf auth login`"
    return UserError(f"{named.source} cannot be read: {said}; {advice}; expected {_FORM}")
