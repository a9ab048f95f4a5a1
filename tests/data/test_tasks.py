import json
import re

import numpy as np
import pytest

from icljax import checkpoints
from icljax.data import datasets, prompts, sources
from icljax.data import rows as rows_lib
from icljax.data.task import folded, template_fields
from icljax.data.task_table import SYMBOLS, TASKS
from icljax.data.tasks import get_task, layout_of
from icljax.errors import UserError
from icljax.experiments import config as config_lib


@pytest.mark.parametrize(
    ("name", "fields", "prompt"),
    [
        ("sst2", {"text": "a  fine\tfilm "}, "Sentence: a fine film Label:"),
        ("mr", {"text": "dull\n\nfilm"}, "Review: dull film Sentiment:"),
        (
            "cb",
            {"premise": "It rains.", "hypothesis": "it is wet"},
            "It rains. Question: it is wet True, False, or Neither? Answer:",
        ),
        ("trec", {"text": "Who ?", "unused": "x"}, "Question: Who ? Type:"),
        ("imdb", {"text": "{braces}"}, "Review: {braces} Is the review positive or negative?"),
    ],
)
def test_prompt(name, fields, prompt):
    assert TASKS[name].prompt(fields) == prompt


def test_the_table():
    counts = {name: len(task.answers) for name, task in TASKS.items()}
    assert counts == {
        "sst2": 2, "sst5": 5, "mr": 2, "subj": 2, "agnews": 4, "cb": 3, "trec": 6, "imdb": 2,
        "rte": 2, "dbpedia": 14, "boolq": 2, "wic": 2, "wsc": 2,
        "copa": 0, "hellaswag": 0, "piqa": 0, "arc_easy": 0, "arc_challenge": 0, "openbookqa": 0,
        "storycloze": 0, "winogrande": 0, "race": 0,
    }  # fmt: skip
    for name, task in TASKS.items():  # every row passes the checks of a user's own task
        assert get_task(name) == task
        assert re.match("(tfds|package|jsonl|hf):", task.source)


# What the rows of a source become, and which candidate each label is: (source, row, prompt and
# right candidate). Rows are shortened ones of the data sets; forms are lm-evaluation-harness's.
ROWS = [
    (
        "tfds:super_glue/copa",
        {
            "premise": "The man turned on the faucet.",
            "question": "effect",
            "choice1": "The toilet filled with water.",
            "choice2": "Water flowed from the spout.",
            "label": 1,
        },
        "The man turned on the faucet therefore water flowed from the spout.",
    ),
    (
        "tfds:super_glue/wsc.fixed",
        {
            "text": "Mark told Pete many lies about himself. He should have been more skeptical.",
            "span1_text": "Mark",
            "span2_index": 7,
            "span2_text": "He",
            "label": 0,
        },
        "Passage: Mark told Pete many lies about himself. *He* should have been more skeptical. "
        'Question: In the passage above, does the pronoun "*He*" refer to "*Mark*"? Answer: no',
    ),
    (
        "tfds:super_glue/wic",
        {
            "word": "place",
            "sentence1": "Do you want to come over to my places later?",
            "sentence2": "A political system with no place for the less prominent groups.",
            "start1": 31,
            "end1": 37,
            "label": 0,
        },
        "Sentence 1: Do you want to come over to my places later? Sentence 2: A political system "
        "with no place for the less prominent groups. Question: Is the word 'places' used in the "
        "same way in the two sentences above? Answer: no",
    ),
    (
        "tfds:hellaswag",
        {
            "activity_label": "Roof removal",
            "context": "[header] How to sit [title] Wait. He",
            "endings": ["sits.", "is  [step] tired."],
            "label": 1,
        },
        "Roof removal: How to sit. Wait. He is tired.",
    ),
    (
        "tfds:winogrande",
        {
            "sentence": "Ian volunteered after Dennis had, because _ despised eating.",
            "option1": "Ian",
            "option2": "Dennis",
            "label": 0,
        },
        "Ian volunteered after Dennis had, because Ian despised eating.",
    ),
    (
        "jsonl:x",
        {"question": "Who?", "choices": ["a", " b  c", "d"], "label": "B"},
        "Question: Who? Answer: b c",
    ),
]


@pytest.mark.parametrize(("source", "row", "expected"), ROWS, ids=[row[0] for row in ROWS])
def test_rows(source, row, expected):
    task = next((t for t in TASKS.values() if source in t.sources), TASKS["arc_easy"])
    layout = datasets._fitting(layout_of(source, task), [row], task)
    (split,), _ = datasets._convert([("s", rows_of([row]))], layout, task)
    choices = split.choices[0] if split.choices else []
    candidate = task.candidates(split.fields[0], choices)[split.labels[0]]
    assert " ".join(filter(None, [task.prompt(split.fields[0]), *candidate])) == expected


def rows_of(rows):
    return rows_lib.Rows(rows, np.arange(len(rows)), "row ")


WSC_OWN = {
    "text": "Mark told Pete many lies about himself. He should have been more skeptical.",
    "target": {"span1_index": 0, "span1_text": "Mark", "span2_index": 7, "span2_text": "He"},
}
HUB_CHOICES = {"text": ["hot", "cold", "wet"], "label": ["A", "B", "C"]}
ARC_OWN = [{"text": text, "label": mark} for text, mark in zip("xyz", "ABC", strict=True)]

# Rows as SuperGLUE's own files and the hub have them, shortened: (task, rows, right candidates).
PUBLISHED = [
    (
        "boolq",
        [
            {"question": "is it", "passage": "p", "idx": 0, "label": True},
            {"question": "is he", "passage": "p", "idx": 1, "label": False},
        ],
        "yes no",
    ),
    (
        "boolq",
        [{"question": f"is {a}", "passage": "p", "answer": a} for a in (False, True)],
        "no yes",
    ),
    (
        "cb",
        [
            {"premise": name, "hypothesis": "h", "label": name, "idx": 0}
            for name in ("contradiction", "entailment", "neutral")
        ],
        "False True Neither",
    ),
    (
        "rte",
        [
            {"premise": name, "hypothesis": "h", "label": name, "idx": 0}
            for name in ("not_entailment", "entailment")
        ],
        "No Yes",
    ),
    ("rte", [{"sentence1": f"{i}", "sentence2": "h", "label": i} for i in (1, 0)], "No Yes"),
    (
        "copa",
        [
            {
                "premise": f"It rained {i}.",
                "choice1": "It Dried.",
                "choice2": "It got wet.",
                "question": "effect",
                "label": 1,
                "idx": 0,
            }
            for i in range(2)
        ],
        "it got wet. it got wet.",
    ),
    (
        "wic",
        [
            {
                "word": "place",
                "sentence1": f"my places {i}",
                "sentence2": "no place",
                "idx": 0,
                "label": bool(i),
                "start1": 3,
                "start2": 3,
                "end1": 9,
                "end2": 8,
                "version": 1.1,
            }
            for i in range(2)
        ],
        "no yes",
    ),
    ("wsc", [WSC_OWN | {"label": False}, WSC_OWN | {"label": True, "text": "a b c d e f g He"}],
     "no yes"),
    (
        "hellaswag",
        [
            {
                "ind": i,
                "activity_label": "Roof",
                "ctx_a": "A man",
                "ctx_b": "he",
                "ctx": f"A man he {i}",
                "endings": ["a", "b", "c [step] d", "e"],
                "label": str(i),
            }
            for i in (3, 2, 1)
        ],
        "e c d b",
    ),
    (
        "winogrande",
        [
            {"sentence": f"{i} had _ here", "option1": "Ian", "option2": "Bo", "answer": str(i)}
            for i in (1, 2)
        ],
        "Ian here Bo here",
    ),
    (
        "winogrande",
        [{"sentence": f"{i} _ now", "option1": "I", "option2": "B", "answer": "2"} for i in (1, 2)],
        "B now B now",
    ),
    (
        "arc_easy",
        [
            {"id": "1", "question": "q1", "choices": HUB_CHOICES, "answerKey": "C"},
            {
                "id": "2",
                "question": "q2",
                "choices": HUB_CHOICES | {"label": ["1", "2", "3"]},
                "answerKey": "1",
            },
        ],
        "wet hot",
    ),
    (
        "arc_challenge",
        [{"question": {"stem": f"q{i}", "choices": ARC_OWN}, "answerKey": "B"} for i in range(2)],
        "y y",
    ),
    (
        "openbookqa",
        [{"question_stem": f"q{i}", "choices": HUB_CHOICES, "answerKey": "B"} for i in range(2)],
        "cold cold",
    ),
    ("sst2", [{"sentence": f"{i}", "label": i, "idx": 0} for i in (1, 0)], "Positive Negative"),
    (
        "agnews",
        [{"text": name, "label": i, "label_text": name} for i, name in enumerate(("World", "S"))],
        "World Sports",
    ),
    ("agnews", [{"text": name, "label": name} for name in ("Sci/Tech", "Sports")],
     "Technology Sports"),
    ("trec", [{"text": f"{i}", "coarse_label": i, "fine_label": 9} for i in (0, 2)],
     "Expression Description"),
    ("trec", [{"text": f"{i}", "label-coarse": i, "label-fine": 9} for i in (0, 4)],
     "Description Number"),
    (
        "race",
        [
            {"article": "a", "question": f"{key}", "options": ["C", "v", "w", "x"], "answer": key}
            for key in "BC"
        ],
        "v w",
    ),
    ("piqa", [{"goal": f"{i}", "sol1": "a", "sol2": "b", "label": 1} for i in (0, 1)], "b b"),
    ("dbpedia", [{"label": name, "content": name} for name in ("WrittenWork", "film")],
     "book film"),
]  # fmt: skip


def load_parts(folder, task):
    """The first row of a folder's val.jsonl for demonstrations, the others for evaluation."""
    settings = config_lib.default().data
    settings.source = f"jsonl:{folder}"
    settings.train_split, settings.validation_split = "val[:1]", "val[1:]"
    return datasets.load(settings, task)


@pytest.mark.parametrize(("name", "rows", "right"), PUBLISHED)
def test_rows_as_they_are_published(tmp_path, name, rows, right):
    task = TASKS[name]
    (tmp_path / "val.jsonl").write_text("\n".join(map(json.dumps, rows)))
    loaded = load_parts(tmp_path, task)
    chosen = [
        task.candidates(fields, split.choices[i] if split.choices else [])[split.labels[i]]
        for split in (loaded.train, loaded.validation)
        for i, fields in enumerate(split.fields)
    ]
    assert " ".join(" ".join(filter(None, candidate)) for candidate in chosen) == right


@pytest.mark.parametrize(
    ("word", "pronoun", "starred"),
    [
        ("him.", "him", "*him*."),
        ("he", "He", "*he*"),
        ("(his", "his", "(*his*"),
        ("it", "it.", "*it*"),
        ("theyscold", "they", "*they*scold"),
        ("the man", "The  man,", "*the man*"),
        ("that's", "that", "*that*'s"),
    ],
)
def test_the_pronoun_is_in_the_word(word, pronoun, starred):
    row = {"text": f"a  he {word} he", "span2_text": pronoun, "span2_index": 2}
    assert TASKS["wsc"].sources["jsonl"].fields["passage"](row) == f"a he {starred} he"


@pytest.mark.parametrize("form", ["flat", "target"])
@pytest.mark.parametrize("index", [-1, 0, 2, 4, 10**30])
def test_a_pronoun_that_is_not_there_is_told(tmp_path, form, index):
    """The passage had no stars, or stars elsewhere."""
    span = {"span1_text": "a", "span2_text": "he", "span2_index": index}
    row = {"text": "a b the he", "label": 0} | ({form: span} if form == "target" else span)
    (tmp_path / "val.jsonl").write_text(json.dumps(row))
    says = rf"val.jsonl:1: '.*span2_index' is {index}, expected .* among the 4 words"
    with pytest.raises(UserError, match=says):
        load_parts(tmp_path, TASKS["wsc"])


@pytest.mark.parametrize(("start", "end"), [(0, 0), (3, 2), (-2, 3), (1, 2), (0, 9), (9, 12)])
def test_a_word_that_is_not_there_is_told(tmp_path, start, end):
    row = {"sentence1": "a place", "sentence2": "b", "start1": start, "end1": end, "label": 0}
    (tmp_path / "val.jsonl").write_text(json.dumps(row))
    with pytest.raises(UserError, match=rf"val.jsonl:1: 'start1' {start} to 'end1' {end} is no w"):
        load_parts(tmp_path, TASKS["wic"])


def test_only_what_follows_the_blank_is_scored():
    fields = {"before": "It fell because", "after": "was wet."}
    candidates = TASKS["winogrande"].candidates(fields, ["the  cup", "it"])
    assert candidates == [("the cup", "was wet."), ("it", "was wet.")]


def made_up(feature, name=""):
    """A value of a tfds feature."""
    import tensorflow_datasets as tfds

    if name == "question" and isinstance(feature, tfds.features.Text):
        return b"cause"  # in COPA one of two words
    if name in ("span2_text", "end1"):  # of WSC and WiC: they point into the text
        return b"_" if name == "span2_text" else np.int64(3)
    if isinstance(feature, tfds.features.FeaturesDict):
        return {key: made_up(value, key) for key, value in feature.items()}
    if isinstance(feature, tfds.features.Sequence):
        inner = made_up(feature.feature)
        if isinstance(inner, dict):
            return {key: [value, value * 2] for key, value in inner.items()}
        return [inner, inner * 2]
    text = isinstance(feature, tfds.features.Text)
    return f"a _ {name}".encode() if text else np.int64(1)


LABELS = {
    "sst2": "negative positive",
    "agnews": "World Sports Business Sci/Tech",
    "cb": "entailment contradiction neutral",
    "trec": "DESC ENTY ABBR HUM NUM LOC",
    "imdb": "neg pos",
    "rte": "entailment not_entailment",
    "boolq": "False True",
    "wic": "False True",
    "wsc": "False True",
    "copa": "choice1 choice2",
    "piqa": "0 1",
    "arc_easy": "A B C D E",
    "arc_challenge": "A B C D E",
    "openbookqa": "A B C D",
    "winogrande": "1 2",
}


@pytest.mark.parametrize(
    ("name", "source"),
    [(t.name, s) for t in TASKS.values() for s in t.sources if s.startswith("tfds:")],
)
def test_sources_are_as_tfds_specifies_them(name, source):
    """Fields and label names, without a download: a row made up to the features converts."""
    task, layout = TASKS[name], layout_of(source, TASKS[name])
    with sources._without_tensorflow():
        features = sources._tfds_builder(source.removeprefix("tfds:")).info.features
        row = rows_lib.plain(made_up(features))
    datasets._convert([("s", rows_of([row]))], layout, task)
    names = getattr(dict(features).get(layout.label), "names", None)
    assert names == (LABELS[name].split() if name in LABELS else None)
    assert not layout.label_order


def test_missing_field_is_named_with_those_that_exist():
    with pytest.raises(UserError, match=r"cb.*'hypothesis'.*premise, other"):
        TASKS["cb"].prompt({"premise": "a", "other": "b"})


def test_overrides_win():
    task = get_task("sst2", answers=("bad", " very  good "))
    assert task.answers == ("bad", "very good")
    assert task.template == TASKS["sst2"].template
    assert get_task("sst2", template="{text} ->").answers == ("Negative", "Positive")
    choices = get_task("sst2", choices="options")
    assert (choices.answers, choices.template) == ((), TASKS["sst2"].template)
    with pytest.raises(UserError, match="only one of them"):
        get_task("sst2", answers=("a", "b"), choices="options")
    own = get_task("mine", "{a}: {b} =", ["x", "y"])
    assert (own.name, own.answers) == ("mine", ("x", "y"))


CLASSIFICATION = [name for name, task in TASKS.items() if task.answers]


def test_symbols_are_no_answers():
    """Nor do they begin one, as a fragment of a word could; each task has enough of them."""
    assert len(SYMBOLS) == len(set(SYMBOLS)) >= 20
    answers = {folded(a) for task in TASKS.values() for a in (*task.answers, *task.names)}
    assert not [(s, a) for s in SYMBOLS for a in answers if a.startswith(s) or s.startswith(a)]
    assert max(len(TASKS[name].answers) for name in CLASSIFICATION) <= len(SYMBOLS)


@pytest.mark.parametrize("name", CLASSIFICATION)
def test_symbols_stand_for_the_answers(name):
    own, task = TASKS[name], get_task(name, answers=("symbols",))
    assert task.answers == SYMBOLS[: len(own.answers)]
    assert task.classes == task.labels == own.answers
    assert (task.template, task.sources, task.names) == (own.template, own.sources, own.names)
    assert get_task(name, "{text} ->", ("symbols",)).template == "{text} ->"


@pytest.mark.parametrize(
    ("name", "rows"), [(name, rows) for name, rows, _ in PUBLISHED if TASKS[name].answers]
)
def test_labels_are_read_as_those_of_the_natural_answers(tmp_path, name, rows):
    (tmp_path / "val.jsonl").write_text("\n".join(map(json.dumps, rows)))
    natural = load_parts(tmp_path, TASKS[name])
    task = get_task(name, answers=("symbols",))
    symbols = load_parts(tmp_path, task)
    assert symbols.fingerprint == natural.fingerprint  # of texts and labels
    label = natural.validation.labels[0]
    assert task.candidates(symbols.validation.fields[0], [])[label] == ("", SYMBOLS[label])


def test_a_label_that_may_be_two_answers_is_asked_for_with_symbols_too(tmp_path):
    """RTE's answers are Yes and No, in this order: true is the first by text, the second by index.

    Were labels read by the symbols, `true` could be the index alone: the wrong class, in silence.
    """
    rows = [{"premise": f"{x}", "hypothesis": "h", "label": x} for x in (True, False)]
    (tmp_path / "val.jsonl").write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(UserError, match=r"'Yes' by text.*config.data.label_is") as caught:
        load_parts(tmp_path, get_task("rte", answers=("symbols",)))
    with pytest.raises(UserError) as natural:
        load_parts(tmp_path, TASKS["rte"])
    assert str(caught.value) == str(natural.value)


@pytest.mark.parametrize("given", [{"name": "piqa"}, {"name": "mine", "template": "{text} is"}])
def test_symbols_need_answers_to_replace(given):
    with pytest.raises(UserError, match=f"'symbols': task '{given['name']}'.*foo,bar") as caught:
        get_task(**given, answers=("symbols",))
    assert "\n" not in str(caught.value)


@pytest.mark.real
@pytest.mark.parametrize(
    "model",
    [
        "smollm2-135m",
        "gemma-3-270m",
        pytest.param("qwen2.5-coder-0.5b", marks=pytest.mark.parity),  # a fetch more
    ],
)
def test_symbols_are_one_token_each(model):
    tokenizer = checkpoints.open_checkpoint(model).tokenizer
    for name in CLASSIFICATION:
        tokens = prompts.answer_tokens(tokenizer, TASKS[name].template, SYMBOLS)
        assert {len(t) for t in tokens} == {1}
        assert len(set(tokens)) == len(SYMBOLS)


def test_unknown_task_names_the_nearest_and_the_way_out():
    with pytest.raises(UserError, match=r"'sst3'.*sst\d.*--config\.template=.*--config\.answers="):
        get_task("sst3")
    with pytest.raises(UserError, match="agnews, cb, trec, imdb"):
        get_task("zzz", template="{text}")


@pytest.mark.parametrize(
    "answers",
    [("a",), ("a", "A "), ("a", ""), ("a", "b", "a"), "ab", ("caf\u00e9", "Cafe\u0301")],
)
def test_answers_must_be_at_least_two_different_texts(answers):
    with pytest.raises(UserError, match="answers"):
        get_task("sst2", answers=answers)


@pytest.mark.parametrize(
    ("template", "fields"),
    [
        ("{text}", ("text",)),
        ("{b} {a} {b}", ("b", "a")),
        ("{{literal}} {label-coarse}", ("label-coarse",)),
    ],
)
def test_template_fields(template, fields):
    assert template_fields(template) == fields


@pytest.mark.parametrize(
    ("template", "says"),
    [
        ("{text", "expected '}'"),
        ("text}", "Single '}'"),
        ("no field", "at least one field"),
        ("{}", "plain field names"),
        ("{0}", "plain field names"),
        ("{text.x}", "plain field names"),
        ("{text[0]}", "plain field names"),
        ("{text:>9}", "plain field names"),
        ("{text!r}", "plain field names"),
    ],
)
def test_malformed_templates(template, says):
    with pytest.raises(UserError, match=says) as caught:
        get_task("mr", template=template)
    assert "\n" not in str(caught.value)
