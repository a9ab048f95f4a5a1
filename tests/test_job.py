"""What a job makes of a user's own task, from a folder of JSONL files to packed tokens."""

import json

import numpy as np
import pytest

from icljax import checkpoints, job
from icljax import config as config_lib
from icljax.errors import UserError


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
    config.seeds, config.num_demonstrations, config.selection.num_examples = (1, 2), 3, 4
    config.update_from_flattened_dict(changes)
    config_lib.validate(config)
    return job.prepare(config, checkpoints.open_checkpoint(config.model), print)


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
