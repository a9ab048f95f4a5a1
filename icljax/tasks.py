"""The task table: templates and answers of the paper's table 8, and tasks of the user's own.

Source of the table: Dai et al., Findings of ACL 2023 (arXiv 2212.10559), table 8. Where the
released code differs from the paper, the paper's form is used.
"""

import dataclasses
import difflib
import re
import string
from collections.abc import Mapping, Sequence

from icljax.errors import UserError

_PLAIN_FIELD = re.compile(r"[A-Za-z_][\w-]*")
_OWN_TASK = (
    "for a task of your own give --config.template='Review: {text} Sentiment:' and "
    "--config.answers=\"('Negative', 'Positive')\""
)


@dataclasses.dataclass(frozen=True)
class Task:
    """What the model is asked, and what it may answer.

    Attributes:
      name: the task's name, for reports.
      template: a `str.format` template with plain field names; the answer follows after one space.
      answers: the candidate answers, in label order.
    """

    name: str
    template: str
    answers: tuple[str, ...]

    def prompt(self, fields: Mapping[str, str]) -> str:
        """Returns the template with `fields` in it, runs of whitespace in them made one blank.

        Raises:
          UserError: a field of the template is missing from `fields`.
        """
        try:
            return self.template.format_map({k: one_line(v) for k, v in fields.items()})
        except KeyError as error:
            raise UserError(
                f"task {self.name}: the template needs the field {error.args[0]!r}, and the "
                f"example has: {', '.join(fields) or 'none'}"
            ) from error


def one_line(text: str) -> str:
    """Returns `text` stripped, with every run of whitespace made one blank."""
    return " ".join(text.split())


_AGNEWS = (
    "Classify the news articles into the categories of World, Sports, Business, and Technology. "
    "News: {text} Type:"
)
_CB = "{premise} Question: {hypothesis} True, False, or Neither? Answer:"
_TREC = ("Description", "Entity", "Expression", "Person", "Number", "Location")

TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        Task("sst2", "Sentence: {text} Label:", ("Negative", "Positive")),
        Task("sst5", "Sentence: {text} Label:", ("terrible", "bad", "neutral", "good", "great")),
        Task("mr", "Review: {text} Sentiment:", ("Negative", "Positive")),
        Task("subj", "Input: {text} Type:", ("objective", "subjective")),
        Task("agnews", _AGNEWS, ("World", "Sports", "Business", "Technology")),
        Task("cb", _CB, ("True", "False", "Neither")),
        Task("trec", "Question: {text} Type:", _TREC),
        Task(
            "imdb",
            "Review: {text} Is the review positive or negative?",
            ("Negative", "Positive"),
        ),
    )
}


def get_task(name: str, template: str = "", answers: Sequence[str] = ()) -> Task:
    """Returns the task called `name`, with `template` and `answers` in place of the table's.

    Raises:
      UserError: an unknown name without both overrides, a malformed template, or answers that are
        not at least two different ones.
    """
    known = TASKS.get(name)
    if known is None and not (template and answers):
        near = difflib.get_close_matches(name, TASKS) or sorted(TASKS)
        raise UserError(f"unknown task {name!r}; known: {', '.join(near)}; {_OWN_TASK}")
    template = (template or (known.template if known else "")).strip()
    template_fields(template)
    return Task(name, template, _checked_answers(answers or (known.answers if known else ())))


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


def _checked_answers(answers: Sequence[str]) -> tuple[str, ...]:
    if isinstance(answers, str):  # iterates over its letters otherwise
        raise UserError(f"answers {answers!r}: expected a tuple of texts; {_OWN_TASK}")
    cleaned = tuple(one_line(str(answer)) for answer in answers)
    different = len({answer.casefold() for answer in cleaned})
    if not all(cleaned) or different < max(2, len(cleaned)):
        raise UserError(
            f"answers {cleaned}: expected at least two, none empty, no two alike; {_OWN_TASK}"
        )
    return cleaned
