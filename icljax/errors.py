"""The one exception that a user's mistake raises."""

from collections.abc import Iterable, Mapping
from typing import TypeVar

T = TypeVar("T")


class UserError(ValueError):
    """A mistake in what the user gave: one clear line, and exit code 2 on the command line.

    The message says what was given, what was expected, and what to do.
    """


def named(what: str, name: str, known: Mapping[str, T]) -> T:
    """`known[name]`: what a name stands for.

    Raises:
        UserError: for a name that is not known, which must never mean another one.
    """
    check_known(what, name, known)
    return known[name]


def check_known(what: str, name: str, known: Iterable[str]) -> None:
    """Raises a UserError unless `name` is one of those known."""
    if name not in known:
        raise UserError(f"{what} is {name!r}; expected one of {', '.join(known)}")
