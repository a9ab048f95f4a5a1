"""How results are written: the settings' names, numbers, and the caveat beside verdicts."""

from typing import Any

Results = dict[str, Any]

# Stands wherever a verdict over all controls does.
CAVEAT = (
    "Read this verdict with care: controls that change ICL and FT alike (permuted labels, another "
    "task's answers, shuffled tokens) cannot refute that the two are alike, and a score that is "
    "not shown to be above a control is not shown to be equal to it. Another rule is to replace it."
)


SETTINGS = {"zsl": "ZSL", "icl": "ICL", "ft": "FT"}


def signed(value: float | None, digits: int = 3, scale: float = 1) -> str:
    """A difference, with its sign."""
    text = number(value, digits, scale)
    return text if text[0] == "-" else f"+{text}"


def number(value: float | None, digits: int = 3, scale: float = 1) -> str:
    """A number; a dash for None, and no "-0.000"."""
    return "-" if value is None else f"{round(scale * value, digits) + 0.0:.{digits}f}"


def percent(value: float | None) -> str:
    """A share as a percentage with one decimal."""
    return number(value, 1, 100)


def rate(value: float | None) -> str:
    """A learning rate as people write it; a dash for None."""
    return "-" if value is None else f"{value:g}"
