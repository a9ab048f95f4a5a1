import pytest

from icljax.errors import UserError
from icljax.tasks import TASKS, get_task, template_fields


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


def test_the_table_has_the_papers_label_counts():
    counts = {name: len(task.answers) for name, task in TASKS.items()}
    assert counts == {
        "sst2": 2, "sst5": 5, "mr": 2, "subj": 2, "agnews": 4, "cb": 3, "trec": 6, "imdb": 2,
    }  # fmt: skip
    for name in TASKS:  # every row passes the checks that a user's own task must pass
        assert get_task(name) == TASKS[name]


def test_missing_field_is_named_with_those_that_exist():
    with pytest.raises(UserError, match=r"cb.*'hypothesis'.*premise, other"):
        TASKS["cb"].prompt({"premise": "a", "other": "b"})


def test_overrides_win():
    task = get_task("sst2", answers=("bad", " very  good "))
    assert task.answers == ("bad", "very good")
    assert task.template == TASKS["sst2"].template
    assert get_task("sst2", template="{text} ->").answers == ("Negative", "Positive")
    own = get_task("mine", "{a}: {b} =", ["x", "y"])
    assert (own.name, own.answers) == ("mine", ("x", "y"))


def test_unknown_task_names_the_nearest_and_the_way_out():
    with pytest.raises(UserError, match=r"'sst3'.*sst\d.*--config\.template=.*--config\.answers="):
        get_task("sst3")
    with pytest.raises(UserError, match="agnews, cb, trec, imdb"):
        get_task("zzz", template="{text}")


@pytest.mark.parametrize("answers", [("a",), ("a", "A "), ("a", ""), ("a", "b", "a"), "ab"])
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
