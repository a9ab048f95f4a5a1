"""What a task is: a template, what may be answered, and where a source keeps what it needs."""

import dataclasses
import functools
import re
import string
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from icljax.errors import UserError

_PLAIN_FIELD = re.compile(r"[A-Za-z_][\w-]*")
Row = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Layout:
    """Where a source keeps what a task needs.

    Attributes:
        fields: template field -> `str.format` text over the source's fields, or a function of the
            source's row; one that is not named here is the source's field of the same name.
        choices: multiple choice: the field that holds the list of choices, or several fields with
            one each ("sol1, sol2"), or a function of the row; empty: "choices".
        label: the source's label field.
        train: the name of the train split.
        validation: of the validation split; empty: "validation", or "test" where there is none.
        label_order: source label -> position in the task's answers; empty: the same; None: not the
            same, and not known.
        label_is: how labels are read: "index", "text" or "letter" (icljax/data/labels.py); "auto":
            in the only way in which all can be.
        first: the first label where labels are numbers, 0 or 1; None: not known.
        note: what a reader of the results should know where labels are read by index.
        other: of rows that do not have this layout's fields.
    """

    fields: Mapping[str, str | Callable[[Row], str]] = dataclasses.field(default_factory=dict)
    choices: str | Callable[[Row], Sequence[str]] = ""
    label: str = "label"
    train: str = "train"
    validation: str = ""
    label_order: tuple[int, ...] | None = ()
    label_is: str = "auto"
    first: int | None = None
    note: str = ""
    other: "Layout | None" = None


@dataclasses.dataclass(frozen=True)
class Task:
    """What the model is asked, and what it may answer.

    Attributes:
        name: the task's name, for reports.
        template: a `str.format` template with plain field names; the answer follows after one
            space.
        answers: the candidate answers, in label order; none: multiple choice.
        sources: data source -> its layout; "jsonl": of any folder of files or data set of the hub
            that is not named. The first is the task's default. Only the fields, splits and labels
            that are not as named are given.
        ending: multiple choice: a template of what follows each choice. Where there is one, it
            alone is scored, and the choice before it only read.
        names: how else labels are called where the data comes from, in lower case -> position in
            the answers.
        classes: the words that the answers stand for, in the same order; empty: themselves.
    """

    name: str
    template: str
    answers: tuple[str, ...] = ()
    sources: Mapping[str, Layout] = dataclasses.field(default_factory=dict)
    ending: str = ""
    names: Mapping[str, int] = dataclasses.field(default_factory=dict)
    classes: tuple[str, ...] = ()

    @property
    def labels(self) -> tuple[str, ...]:
        """What labels may say where they are read as text; none in multiple choice."""
        return self.classes or self.answers

    @property
    def source(self) -> str:
        """The default of `config.data.source`."""
        first = next(iter(self.sources), "")
        return f"jsonl:data/{self.name}" if first == "jsonl" else first

    @property
    def fields(self) -> tuple[str, ...]:
        """The fields of template and ending."""
        return template_fields(f"{self.template} {self.ending}")

    def prompt(self, fields: Mapping[str, str]) -> str:
        """Returns the template with `fields` in it, runs of whitespace in them made one blank.

        Raises:
            UserError: a field of the template is missing from `fields`.
        """
        try:
            filled = self.template.format_map({k: one_line(v) for k, v in fields.items()})
        except KeyError as error:
            raise UserError(
                f"task {self.name}: the template needs the field {error.args[0]!r}, and the "
                f"example has: {', '.join(fields) or 'none'}"
            ) from error
        return filled.strip()

    def candidates(
        self, fields: Mapping[str, str], choices: Sequence[str]
    ) -> list[tuple[str, str]]:
        """Returns each candidate as (what is only read, what is scored), after the prompt."""
        if not self.ending:
            return [("", one_line(choice)) for choice in self.answers or choices]
        ending = self.ending.format_map({k: one_line(v) for k, v in fields.items()})
        return [(one_line(choice), ending) for choice in choices]


def one_line(text: str) -> str:
    """Returns `text` stripped, with every run of whitespace made one blank."""
    return " ".join(text.split())


def folded(text: str) -> str:
    """Returns a text as it is compared: case, runs of blanks and Unicode's forms are no matter."""
    return unicodedata.normalize("NFC", one_line(text).casefold())


def normalized(text: str) -> str:
    """Returns an example's text as duplicates are found by it.

    Unicode's NFKC (full-width letters, ligatures and no-break blanks are the plain ones), lower
    case (case-folded: also "ß" and "ss" are one), every run of whitespace one blank, stripped.
    """
    lower = unicodedata.normalize("NFKC", text).casefold()
    return one_line(unicodedata.normalize("NFKC", lower))


@functools.cache
def template_fields(template: str) -> tuple[str, ...]:
    """Returns the field names of a `str.format` template, in order, each once.

    Raises:
        UserError: malformed braces, no field at all, or a field that is not a plain name.
    """
    try:
        parsed = list(string.Formatter().parse(template))
    except ValueError as error:
        raise UserError(
            f"template {template!r}: {error}; write fields as {{text}}, literal braces doubled"
        ) from error
    fields = [(name, spec, conversion) for _, name, spec, conversion in parsed if name is not None]
    for name, spec, conversion in fields:
        if spec or conversion or not _PLAIN_FIELD.fullmatch(name):
            raise UserError(
                f"template {template!r}: expected plain field names like {{text}}, got a field "
                f"with name {name!r}, format {spec or ''!r}, conversion {conversion or ''!r}"
            )
    if not fields:
        raise UserError(f"template {template!r}: expected at least one field like {{text}}")
    return tuple(dict.fromkeys(name for name, _, _ in fields))
