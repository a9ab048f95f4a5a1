"""Folders of a user's own files: JSON Lines, CSV, Parquet.

A folder's splits are its files' names without the suffix (`train.csv`, `validation.csv`); a split
in parts, as the hub has it (`train-00000-of-00002.parquet`), is one. A single file is one split.
"""

import csv
import functools
import io
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from icljax.data import hub
from icljax.data.rows import Rows, Source, plain, sliced
from icljax.errors import UserError
from icljax.forms import brief, enumerated, one_line, parse_json
from icljax.runtime import downloads

_PART = re.compile(r"-\d{5}-of-\d{5}$")


def open_files(kind: str, name: str) -> Source:
    """Opens the files of one kind in a folder, or a single one.

    Raises:
        UserError: there is none of that name, or it cannot be looked into.
    """
    path, what = downloads.user_path(name, f"data source {kind}:"), brief(f"{kind}:{name}")
    splits: dict[str, list[Path]] = {}
    try:
        single = path.is_file()
        there = single or path.is_dir()
        found = [path] if single else path.glob(f"*.{kind}") if there else ()
        for file in sorted(found):
            splits.setdefault(_PART.sub("", file.stem), []).append(file)
    except (OSError, ValueError) as error:  # no permission, a name that cannot be
        said = f"{type(error).__name__}: {one_line(error)}"
        raise UserError(f"data source {what}: cannot be opened: {said}") from error
    if not there:
        raise UserError(
            f"data source {what}: no such folder or file; expected one with train.{kind} "
            f"and validation.{kind} or test.{kind}"
        )

    @functools.cache  # two parts of one file; a pipe can be read only once
    def whole(split: str) -> Rows:
        parts = [READERS[kind](file) for file in splits[split]]
        return parts[0] if len(parts) == 1 else _joined(parts, f"{kind}:{name}, {split}, row ")

    return Source(tuple(splits), lambda split: sliced(split, whole(split.partition("[")[0])))


def _joined(parts: list[Rows], place: str) -> Rows:
    rows = [row for part in parts for row in part.rows]
    return Rows(rows, np.arange(len(rows), dtype=np.int32), place, names=parts[0].names)


def _read_text(path: Path) -> str:
    try:
        if path.is_char_device():  # /dev/zero has no end
            raise UserError(f"cannot read {path}: a device, expected a file or a named pipe")
        return path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        number = error.object.count(b"\n", 0, error.start) + 1
        raise UserError(f"{path}:{number}: not UTF-8; save the file as UTF-8") from error


def _read_jsonl(path: Path) -> Rows:
    """Reads one object a line; blank lines are passed over."""
    rows, numbers = [], []
    # Not splitlines: JSON may have U+2028 and its like inside a text.
    for number, line in enumerate(_read_text(path).split("\n")):
        if line and not line.isspace():
            rows.append(_parse_line(line, path, number + 1))
            numbers.append(number)
    return Rows(rows, np.array(numbers, np.int32), f"{path}:", first=1)


def _parse_line(line: str, path: Path, number: int) -> dict[str, Any]:
    try:
        row = parse_json(line)
        if isinstance(row, dict) and dict in map(type, row.values()):
            row = plain(row)
    except (ValueError, RecursionError) as error:
        raise UserError(
            f"{path}:{number}: malformed JSON ({error}); expected one object a line"
        ) from error
    if not isinstance(row, dict):
        raise UserError(f"{path}:{number}: expected a JSON object, got {brief(line.strip())}")
    return row


def _read_csv(path: Path) -> Rows:
    """Reads a table with a line of names; every value stays the text that it is.

    Not through pandas, which takes "NA" and "null" for missing texts, and a text of digits for a
    number.
    """
    text = _read_text(path)
    head = text.partition("\n")[0]
    # Spreadsheets write semicolons where the comma is a decimal sign.
    between = next((sign for sign in ",;\t" if sign in head), ",")
    csv.field_size_limit(2**31 - 1)
    lines = csv.reader(io.StringIO(text, newline=""), delimiter=between, strict=True)
    rows: list[dict[str, Any]] = []
    names: list[str] | None = None
    try:
        for values in filter(None, lines):  # blank lines have no values
            if names is None:
                names = _field_names(values, path)
            elif len(values) != len(names):
                raise UserError(
                    f"{path}:{lines.line_num}: {len(values)} values, expected {len(names)}: "
                    f"{enumerated(names)}; put a text with {between!r} in it into double quotes"
                )
            else:
                rows.append(dict(zip(names, values, strict=True)))
    except csv.Error as error:
        raise UserError(
            f"{path}:{lines.line_num}: malformed CSV ({error}); put texts into double quotes, and "
            f"double those inside them"
        ) from error
    return Rows(rows, np.arange(len(rows), dtype=np.int32), f"{path}, row ", first=1)


def _field_names(values: list[str], path: Path) -> list[str]:
    names = [value.strip() for value in values]
    if twice := [name for name in names if names.count(name) > 1]:
        raise UserError(
            f"{path}: the field {brief(twice[0])} is there twice; it has: {enumerated(names)}; "
            f"the first line names each field once"
        )
    return names


READERS: dict[str, Callable[[Path], Rows]] = {
    "jsonl": _read_jsonl,
    "csv": _read_csv,
    "parquet": hub.read_parquet,
}
