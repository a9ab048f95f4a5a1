"""What a job makes of a user's own task, from a folder of JSONL files to packed tokens."""

import dataclasses
import json

import numpy as np
import pytest

from icljax import checkpoints
from icljax.catalog import VARIANTS
from icljax.comparison import changes, inputs
from icljax.data import datasets, splits, tasks
from icljax.errors import UserError
from icljax.experiments import config as config_lib
from icljax.models.config import Rope
from icljax.results import Duplicates
from tests.conftest import write_reviews


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Questions of two to four options, a letter says which is right."""
    folder = tmp_path_factory.mktemp("mine")
    for split, count in (("train", 8), ("test", 6)):
        rows = [
            {
                "title": f"film {i}",
                "body": f"is it good {split}",
                "options": ["very good", "dull", "a mess", "fresh and bold"][: 2 + i % 3],
                "right": "AB"[i % 2],
                "stars": i % 2,
            }
            for i in range(count)
        ]
        (folder / f"{split}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder


def prepare(tiny_folder, folder, **changes):
    config = config_lib.default()
    config.task, config.model, config.data.source = "mine", str(tiny_folder), f"jsonl:{folder}"
    config.data.fields = "text={title} {body}"
    config.mode, config.selection.split, config.record_position = "paper", "train", "answer"
    config.seeds, config.num_demonstrations, config.selection.num_examples = (1, 2), 3, 4
    config.update_from_flattened_dict(changes)
    config_lib.validate(config)
    return inputs.prepare(config, checkpoints.open_checkpoint(config.model), print)


ANSWERS = {"template": "Post: {text} Verdict:", "answers": ("bad", "good"), "data.label": "stars"}
CHOICES = {
    "template": "Question: {text} Answer:",
    "data.choices": "options",
    "data.label": "right",
}


def texts_of(prepared):
    """Each evaluated example's candidates as whole texts, decoded from the packed tokens."""
    queries, decode = prepared.evaluation, prepared.encoder.tokenizer.decode
    out = {}
    for b, row, slot in np.argwhere(queries.example >= 0):
        own = (queries.segment[b, row] == slot) & (queries.branch[b, row] == 0)
        prompt = queries.tokens[b, row][own].tolist()
        weight, target = queries.target_weight[b, row, slot], queries.target[b, row, slot]
        candidates = [t[w > 0].tolist() for t, w in zip(target, weight, strict=True) if w.any()]
        out[int(queries.example[b, row, slot])] = [decode(prompt + c) for c in candidates]
    return [out[i] for i in range(len(out))]


def test_own_answers(tiny_folder, folder):
    prepared = prepare(tiny_folder, folder, **ANSWERS)
    for texts, row in zip(texts_of(prepared), prepared.rows, strict=True):
        prompt = f"Post: film {row} is it good test Verdict:"
        assert texts == [f"{prompt} bad", f"{prompt} good"]
    np.testing.assert_array_equal(prepared.labels, prepared.rows % 2)


def test_own_choices(tiny_folder, folder):
    prepared = prepare(tiny_folder, folder, **CHOICES)
    options = ["very good", "dull", "a mess", "fresh and bold"]
    for texts, row in zip(texts_of(prepared), prepared.rows, strict=True):
        prompt = f"Question: film {row} is it good test Answer:"
        assert texts == [f"{prompt} {option}" for option in options[: 2 + row % 3]]
    np.testing.assert_array_equal(prepared.labels, prepared.rows % 2)
    d = prepared.demonstrations
    shown = prepared.encoder.tokenizer.decode(d.train[0, 0, 1 : d.train_length[0, 0]].tolist())
    row = int(shown.split()[2])
    assert shown == f"Question: film {row} is it good train Answer: {options[row % 2]}"


def test_the_first_label_takes_one_more_token(tiny_folder, folder):
    """Where the context is just long enough for the answer, it is too short for the label."""
    answer = prepare(tiny_folder, folder, **CHOICES)
    label = prepare(tiny_folder, folder, **CHOICES, record_position="first_label")
    assert (label.evaluation.segment >= 0).sum() == (answer.evaluation.segment >= 0).sum() + 6
    assert (label.evaluation.studied != answer.evaluation.studied).sum() == 6


def test_neither_answers_nor_choices(tiny_folder, folder):
    with pytest.raises(UserError, match=r"unknown task 'mine'.*--config\.data\.choices=FIELD"):
        prepare(tiny_folder, folder, template="Post: {text}")


# ---- What the model cannot read is refused before anything is computed ---------------------------


def gpt2_like(folder, positions):
    """A config of 64 learned positions, or of others."""
    return dataclasses.replace(
        checkpoints.open_checkpoint(str(folder)).config, context_length=64, positions=positions
    )


@pytest.mark.parametrize("positions", ["learned", "sinusoidal", Rope()])
def test_no_prompt_is_longer_than_the_context(tiny_folder, positions):
    """max_length_beyond_positions: 256 of 64 learned positions gave NaN, counted as class 0."""
    config, decoder = config_lib.default(), gpt2_like(tiny_folder, positions)
    assert inputs.context_limit(config, decoder) == 64
    config.prompt.max_length = 40
    assert inputs.context_limit(config, decoder) == 40
    config.prompt.max_length = 256
    with pytest.raises(UserError, match=r"max_length is 256, but the model .* 64"):
        inputs.context_limit(config, decoder)
    config.prompt.beyond_context = True
    if positions == "learned":
        with pytest.raises(UserError, match="64 learned positions"):
            inputs.context_limit(config, decoder)
    else:
        assert inputs.context_limit(config, decoder) == 256


def smaller(tiny_folder, rows):
    """The tiny model with an embedding of fewer rows than its tokenizer has tokens."""
    checkpoint = checkpoints.open_checkpoint(str(tiny_folder))
    decoder = dataclasses.replace(checkpoint.config, vocab_size=rows)
    return dataclasses.replace(checkpoint, config=decoder)


UNREADABLE = {
    "texts": ({}, r"example \d+ of '\w+' \(from 0\) has the token .* of id \d+, but"),
    "answers": ({"answers": ("a", "moving")}, "answer 'moving' has the token 'Ġmoving'"),
    "separator": ({"prompt.separator": " moving"}, "prompt.separator has the token"),
    "bos": ({"prompt.bos": " moving"}, "prompt.bos has the token"),
}


@pytest.mark.parametrize(("changes", "message"), UNREADABLE.values(), ids=UNREADABLE)
def test_no_token_is_beyond_the_embedding(tiny_folder, folder, monkeypatch, changes, message):
    tokenizer = checkpoints.open_checkpoint(str(tiny_folder)).tokenizer
    rows = min(tokenizer.token_to_id("Ġmoving"), tokenizer.token_to_id("Ġvery"))
    checkpoint = smaller(tiny_folder, rows)
    monkeypatch.setattr(checkpoints, "open_checkpoint", lambda name: checkpoint)
    with pytest.raises(UserError, match=message):
        prepare(tiny_folder, folder, **ANSWERS | {"answers": ("a", "b")} | changes)


def test_tokens_that_never_occur_may_be_beyond_it(tiny_folder, folder, monkeypatch):
    checkpoint = smaller(tiny_folder, 400)
    checkpoint.tokenizer.add_tokens([f"<extra {i}>" for i in range(50)])
    monkeypatch.setattr(checkpoints, "open_checkpoint", lambda name: checkpoint)
    assert prepare(tiny_folder, folder, **ANSWERS).used == [3, 3]


def test_a_prompt_without_tokens_has_no_answer_position(tiny_folder, tmp_path):
    """It was read at the position of the query before it in the same row."""
    for split in ("train", "validation"):
        rows = [
            {"text": f"{split} {i}" if i != 3 else " \u00a0\u2003\t\n", "label": i % 2}
            for i in range(9)
        ]
        (tmp_path / f"{split}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    wanted = {"template": "{text}", "answers": ("bad", "good"), "data.fields": ""}
    with pytest.raises(UserError, match=r"example 3 of '\w+' \(from 0\): the prompt '' has no tok"):
        prepare(tiny_folder, tmp_path, **wanted)
    prepare(tiny_folder, tmp_path, **wanted | {"template": "Post: {text}"})


def test_an_unknown_variant_is_refused(tiny_folder, folder):
    """It was read as other_answers."""
    prepared = prepare(tiny_folder, folder, **ANSWERS)
    rows = np.arange(2)
    for name in VARIANTS:
        args = (
            prepared.encoder,
            prepared.dataset.train,
            rows,
            np.random.default_rng(0),
            ("x", "y"),
        )
        assert changes.changed_demonstrations(name, *args)
    with pytest.raises(UserError, match="variant is 'mirrored_labels'; expected one of perm"):
        changes.changed_demonstrations("mirrored_labels", *args)


def made_up(texts, name):
    labels = np.arange(len(texts), dtype=np.int32) % 2
    return splits.Split(name, [{"text": t} for t in texts], labels, np.arange(len(texts)))


def drawn_from(train, validation, split="train"):
    """Demonstrations of two seeds, what rates are selected on, and the words for it."""
    config = config_lib.default()
    config.selection.split, config.selection.num_examples, config.seeds = split, 40, (1, 2)
    dataset = datasets.Dataset("s", made_up(train, "train"), made_up(validation, "val"), "", ())
    drawn = [splits.draw(dataset.train, 4, seed) for seed in config.seeds]
    rows = splits.draw(dataset.validation, 0, 1)
    _, selection = inputs.draw_selection(config, dataset, drawn, rows)
    return (
        np.concatenate(drawn),
        selection,
        inputs.selected_on(config, dataset, drawn, rows, selection),
    )


def test_selection_has_no_text_of_a_demonstration():
    """Each text is there twice, a pair in another case, with blanks or in another Unicode form."""
    texts = [f"caf\u00e9 {i}" for i in range(12)]
    train = [*texts, *(f" CAFE\u0301  {i} " for i in range(12))]
    demonstrations, selection, said = drawn_from(train, ["v"])
    assert not {i % 12 for i in selection} & {i % 12 for i in demonstrations}
    assert len(selection) == 2 * (12 - len({i % 12 for i in demonstrations}))
    more = 24 - len(selection) - len(set(demonstrations.tolist()))
    assert more
    assert said == (
        "examples of the train part whose texts are in no seed's demonstrations and not evaluated; "
        f"{more} more with such a text were left out"
    )


def test_no_example_left_for_selection_says_what_to_do():
    with pytest.raises(UserError) as caught:
        drawn_from([f"text {i}" for i in range(4)], ["v"])
    assert str(caught.value).startswith(
        "no example is left for selecting learning rates: 4 of the 4 of split 'train' have"
    )
    for way in ("num_demonstrations", "more data", "selection.split=validation"):
        assert way in str(caught.value)


def test_other_answers_are_not_the_tasks_own():
    """Their control would change nothing, or little."""
    mr = tasks.TASKS["mr"]
    for name in ("mr", "sst2", "imdb"):
        with pytest.raises(UserError, match=rf"answers_of='{name}' has answers .*Negative, Pos"):
            changes.other_words(mr, name)
    swapped = tasks.get_task("mine", "{text}", ("no", "maybe", "Cafe\u0301"))
    with pytest.raises(UserError, match="task mine itself"):
        changes.other_words(swapped, "wic")
    assert changes.other_words(mr, "cb") == tasks.TASKS["cb"].answers
    assert changes.other_words(tasks.TASKS["piqa"], "mr") == mr.answers


def test_selection_without_repeated_texts_is_as_it_was():
    train = [f"text {i}" for i in range(100)]
    demonstrations, selection, said = drawn_from(train, ["v"])
    split = made_up(train, "train")
    np.testing.assert_array_equal(selection, splits.draw(split, 40, 0, exclude=demonstrations))
    assert said.endswith("in no seed's demonstrations and not evaluated")


def test_what_the_selection_shares_is_counted_not_assumed():
    """Of examples that no caller can draw: `data.load` and `draw_selection` keep them apart."""
    config = config_lib.default()
    train = [f"text {i}" for i in range(10)]
    dataset = datasets.Dataset(
        "s", made_up(train, "train"), made_up(["text 9", "v"], "val"), "", ()
    )
    given = config, dataset, [np.array([0, 1])], np.array([0, 1])
    assert "part, 2 of them with the text" in inputs.selected_on(*given, np.array([1, 5, 9]))
    config.selection.split = "validation"
    assert inputs.selected_on(*given, np.array([0, 1])).endswith(
        ", none with the text of a demonstration"
    )
    given = config, dataset, [np.array([0, 9])], np.array([0, 1])
    assert inputs.selected_on(*given, np.array([0, 1])).endswith(
        ", 1 with the text of a demonstration"
    )


def test_a_job_says_what_was_selected_on(tiny_folder, folder):
    said = prepare(tiny_folder, folder, **ANSWERS).selected_on
    assert said.endswith("in no seed's demonstrations and not evaluated")
    said = prepare(tiny_folder, folder, **ANSWERS, **{"selection.split": "validation"}).selected_on
    assert said.startswith("the validation examples that are reported (as in the paper")


def passed_over(seed):
    """Draws, of 20 texts that are there twice, before the fifth different one."""
    seen = set()
    for place, row in enumerate(np.random.default_rng(seed).permutation(40), 1):
        seen.add(row % 20)
        if len(seen) == 5:
            return place - 5


def different(prepared):
    """How many different texts each seed's demonstrations have."""
    decode, shown = prepared.encoder.tokenizer.decode, prepared.demonstrations.train
    return [len({" ".join(decode(d.tolist()).lower().split()) for d in seed}) for seed in shown]


def test_duplicates_are_counted_and_left_out(tiny_folder, tmp_path):
    """Every text is there twice; one is also evaluated."""
    write_reviews(tmp_path, train=20, validation=6)
    rows = [json.loads(line) for line in (tmp_path / "train.jsonl").read_text().splitlines()]
    rows += [row | {"text": f" {row['text'].upper()}"} for row in rows]
    evaluated = (tmp_path / "validation.jsonl").read_text().splitlines()[0]
    (tmp_path / "train.jsonl").write_text("\n".join([*map(json.dumps, rows), evaluated]))
    settings = ANSWERS | {"data.fields": "", "data.label": "", "num_demonstrations": 5}
    settings |= {"seeds": tuple(range(9)), "selection.num_examples": 4}

    dropped = prepare(tiny_folder, tmp_path, **settings)
    repeated = sum(map(passed_over, range(9)))
    assert repeated > 1
    assert dropped.duplicates == Duplicates(kept=False, evaluated=1, repeated=repeated)
    assert different(dropped) == dropped.used == [5] * 9

    kept = prepare(tiny_folder, tmp_path, **settings, **{"data.duplicates": "keep"})
    repeated = 45 - sum(different(kept))
    assert repeated
    assert kept.duplicates == Duplicates(kept=True, evaluated=1, repeated=repeated)
    for found in (dropped, kept):
        assert ("left out" in found.selected_on) == (found is dropped)


def test_an_unknown_way_with_duplicates_is_refused(tiny_folder, folder):
    says = "config.data.duplicates is 'maybe'; expected one of drop, keep: --config.data.duplic"
    with pytest.raises(UserError, match=says):
        prepare(tiny_folder, folder, **ANSWERS, **{"data.duplicates": "maybe"})
