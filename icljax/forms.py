"""What the values of a file's metadata may be: a reader's table of keys, and one check of it.

A reader lists the form of every key that it reads; a value of another form is refused in one line
that names file, key, value and what was expected, before anything is made of it.
"""

import contextlib
import dataclasses
import json
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from icljax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Form:
    """One kind of value: how a message calls it, and whether a value is of it."""

    expected: str
    holds: Callable[[Any], bool]


def whole(low: int, high: int = 2**31 - 1) -> Form:
    """An integer (no boolean, no 4.0) within bounds, which keep what is made of it small."""
    return Form(
        f"a whole number from {low:,} to {high:,}",
        lambda value: type(value) is int and low <= value <= high,
    )


def number(low: float = 0.0, high: float = math.inf) -> Form:
    """A finite number above `low` and below `high`, or `high` itself where that is finite."""
    below = f" and at most {high:g}" if high < math.inf else ""
    most = min(high, 1e30)  # integers of any length compare with it, and NaN does not
    return Form(
        f"a number above {low:g}{below}",
        lambda value: type(value) in (int, float) and low < value <= most,
    )


def listed(items: Form) -> Form:
    """A list of values of one form."""
    return Form(
        f"a list, each item {items.expected}",
        lambda value: isinstance(value, list | tuple) and all(map(items.holds, value)),
    )


SIZE = whole(1)
LAYERS = whole(1, 4096)  # each is a loop's turn, and has names of its own
COUNT = whole(0)
FLAG = Form("true or false", lambda value: isinstance(value, bool))
TEXT = Form("a text", lambda value: isinstance(value, str))
TABLE = Form("a table", lambda value: isinstance(value, dict))


def check(where: Path | str, values: Mapping[str, Any], forms: Mapping[str, Form]) -> None:
    """Refuses a value that is not of its key's form; a key may be missing, or null.

    Raises:
        UserError: names file, key, value and form.
    """
    for key, form in forms.items():
        value = values.get(key)
        if value is not None and not form.holds(value):
            raise UserError(
                f"{where}: {key} is {shown(value)}, expected {form.expected}; correct it, or fetch "
                "the file again"
            )


def shown(value: Any, most: int = 100) -> str:
    """A value of a file in a message: one line, and not all of a long one."""
    try:
        text = repr(value[:most] if isinstance(value, list | str | bytes) else value)
    except RecursionError:
        text = f"<a deeply nested {type(value).__name__}>"
    return text if len(text) <= most else f"{text[:most]}..."


def brief(value: Any) -> str:
    """As `shown`, of a data set, where many stand in one message."""
    return shown(value, 60)


def enumerated(names: Iterable[str]) -> str:
    """Names or texts of a user's on one line, cut where they are long or many."""
    each = [brief(str(name))[1:-1] for name in names]
    return ", ".join(each[:20]) + (", ..." if len(each) > 20 else "") or "none"


def encodable(text: str) -> bool:
    """Whether UTF-8 can hold a text: not half of a surrogate pair."""
    return text.isascii() or not re.search("[\ud800-\udfff]", text)


def one_line(error: BaseException) -> str:
    """What a library says of a file, which may quote any of the file's bytes."""
    return " ".join(str(error).split())[:200]


@contextlib.contextmanager
def refused(what: str, kinds: tuple[type[Exception], ...], advice: str = "") -> Iterator[None]:
    """Makes one UserError of what a library raises inside: "WHAT (its message)ADVICE"."""
    try:
        yield
    except kinds as e:
        raise UserError(f"{what} ({one_line(e)}){advice}") from e


def read_table(path: Path) -> dict[str, Any]:
    """A file's JSON object.

    Raises:
        FileNotFoundError: there is none.
        UserError: for a file that cannot be read, or holds something else.
    """
    try:
        value = read_json(path)
    except FileNotFoundError:
        raise
    except (OSError, ValueError) as e:
        raise UserError(f"{path}: not valid JSON ({one_line(e)}); fetch it again") from e
    if not isinstance(value, dict):
        raise UserError(f"{path}: not a JSON object but {type(value).__name__}; fetch it again")
    return value


def read_json(path: Path) -> Any:
    """A file's JSON, in which no key is given twice.

    Raises:
        OSError, ValueError: it cannot be read, or is none.
    """
    return parse_json(path.read_text(encoding="utf-8"))


def parse_json(text: str | bytes) -> Any:
    """As `read_json`."""
    try:
        return json.loads(text, object_pairs_hook=_table)
    except RecursionError as e:
        raise ValueError("nested too deeply") from e


def _table(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"the field {shown(twice)} is there twice")
    return table
