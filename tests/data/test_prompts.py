"""Token layouts: what stands where in prompts, training examples and packed rows."""

import dataclasses

import jax
import numpy as np
import pytest

from icljax.data import prompts
from icljax.data.prompts import Query
from icljax.data.splits import Split
from icljax.data.task import Task
from icljax.errors import UserError
from tests.conftest import make_tokenizer

IDS = {"<bos>": 0, "<eos>": 1}
ANSWERS = ((7,), (8, 9))
TASK = Task("made-up", "Review: {text} Sentiment:", ("good", "terrible"))


def encoder_of(task=TASK, bos="<bos>", separator="\n"):
    return prompts.make_encoder(make_tokenizer(), task, bos, separator, IDS)


def test_answer_tokens_follow_the_template_after_one_space():
    encoder = encoder_of()
    for answer, tokens in zip(TASK.answers, encoder.answers, strict=True):
        assert encoder.tokenizer.decode(tokens) == f" {answer}"
        whole = encoder.tokenizer.encode(f"Review: a dull mess Sentiment: {answer}").ids
        assert tuple(whole[-len(tokens) :]) == tokens


@pytest.mark.parametrize(("separator", "expected"), [("<eos>", (1,)), ("<bos>", (0,)), ("", ())])
def test_separator(separator, expected):
    assert encoder_of(separator=separator).separator == expected


def test_newline_separator_is_text():
    encoder = encoder_of(separator="\n")
    assert encoder.tokenizer.decode(encoder.separator) == "\n"


@pytest.mark.parametrize(
    ("task", "bos", "message"),
    [
        (Task("t", "{text} :", ("good", "good")), "<bos>", "not distinct"),
        (TASK, "", "gives no token"),
    ],
)
def test_unusable_fixed_parts(task, bos, message):
    with pytest.raises(UserError, match=message):
        encoder_of(task, bos)


def test_context_holds_bos_demonstrations_and_separators():
    encoder = encoder_of(separator="<eos>")
    seeds = [[[5, 6, 7], [8, 9]], [[10, 11, 12, 13]]]
    out = prompts.build_demonstrations(seeds, encoder)
    assert out.context[0, :8].tolist() == [0, 5, 6, 7, 1, 8, 9, 1]
    assert out.context_valid.sum(1).tolist() == [8, 6]
    compared = out.example[0] >= 0
    assert out.context[0, out.columns[0, compared]].tolist() == [5, 6, 7, 8, 9]
    assert out.example[0, compared].tolist() == [0, 0, 0, 1, 1]
    assert out.train[0, 1, :4].tolist() == [0, 8, 9, 0]
    assert out.train_length.tolist() == [[4, 3], [5, 0]]


def test_compared_tokens_are_the_training_tokens():
    rng = np.random.default_rng(0)
    seeds = [[rng.integers(2, 400, n).tolist() for n in (30, 7, 19)] for _ in range(2)]
    out = prompts.build_demonstrations(seeds, encoder_of())
    for r in range(2):
        compared = out.example[r] >= 0
        in_context = out.context[r, out.columns[r, compared]]
        in_training = out.train[r].reshape(-1)[out.train_index[r, compared]]
        np.testing.assert_array_equal(in_context, in_training)
        assert in_context.tolist() == [token for tokens in seeds[r] for token in tokens]


@pytest.mark.parametrize(("limit", "kept"), [(100, 3), (41, 3), (40, 2), (29, 1)])
def test_fit_drops_the_last_demonstrations(limit, kept):
    # BOS, then 10 tokens and a separator each, then 7 for the query.
    demonstrations = [[2] * 10] * 3
    encoder = encoder_of(separator="<eos>")
    assert len(prompts.fit(demonstrations, encoder, 7, limit)) == kept


def test_no_demonstration_fits():
    with pytest.raises(UserError, match=r"no demonstration fits.*needs 7 tokens.*of 18 in all"):
        prompts.fit([[2] * 10], encoder_of(separator="<eos>"), 7, 18)


@pytest.mark.parametrize("answers", [("good", "bad"), ("good film", "very bad", "dull")])
@pytest.mark.parametrize("tokens_per_batch", [1, 64, 200, 10_000])
def test_packing_keeps_every_query_whole_and_alone(answers, tokens_per_batch):
    rng = np.random.default_rng(0)
    encoder = encoder_of(Task("t", "{text} :", answers))
    queries = [rng.integers(2, 400, n).tolist() for n in rng.integers(1, 40, 37)]
    packed = prompts.pack([Query(q, encoder.answers) for q in queries], tokens_per_batch, 64)
    assert packed.tokens.shape[2] == 64
    seen = []
    for b, row, slot in np.argwhere(packed.example >= 0):
        example = packed.example[b, row, slot]
        seen.append(example)
        own = (packed.segment[b, row] == slot) & (packed.branch[b, row] == 0)
        assert packed.tokens[b, row, own].tolist() == queries[example]
        assert packed.positions[b, row, own].tolist() == list(range(len(queries[example])))
        assert packed.studied[b, row, slot] == np.flatnonzero(own)[-1]
        for y, answer in enumerate(encoder.answers):
            branch = (packed.segment[b, row] == slot) & (packed.branch[b, row] == 1 + y)
            assert packed.tokens[b, row, branch].tolist() == list(answer[:-1])
            weight = packed.target_weight[b, row, slot, y]
            mask = weight > 0
            np.testing.assert_allclose(weight[mask], 1 / len(answer))
            assert packed.target[b, row, slot, y, mask].tolist() == list(answer)
            # Each answer token is predicted at the column before it on its branch.
            columns = packed.places[b, row][packed.source[b, row, slot, y, mask]]
            expected = [np.flatnonzero(own)[-1], *np.flatnonzero(branch)]
            assert columns.tolist() == expected
    assert sorted(seen) == list(range(37))


def test_rows_are_filled_well():
    rng = np.random.default_rng(0)
    queries = [Query([2] * n, ANSWERS) for n in rng.integers(15, 60, 200)]
    packed = prompts.pack(queries, 512)
    used = np.sum(packed.segment >= 0) / packed.segment.size
    assert used > 0.9


def test_parts_that_are_packed_alike_share_a_shape_and_fill_their_batches():
    """18 rows and 9, at most 16 in a batch: two of nine and one, where 16 would read 48."""
    long, short = [Query([2] * 63, ANSWERS)] * 18, [Query([3] * 31, ANSWERS)] * 18
    first, second = prompts.pack_alike([long, short], 16 * 64, 64)
    assert first.tokens.shape == (2, 9, 64)
    assert second.tokens.shape == (1, 9, 64)
    assert [x.shape[1:] for x in first] == [x.shape[1:] for x in second]
    for packed in (first, second):
        assert sorted(packed.example[packed.example >= 0]) == list(range(18))


def test_a_long_query_widens_the_row():
    packed = prompts.pack([Query([2] * 300, ANSWERS), Query([3] * 5, ANSWERS)], 512)
    assert packed.tokens.shape[-1] == 320


def test_candidates_of_each_example():
    """A query of three candidates and one of two, of which the first tokens are only read."""
    queries = [
        Query([2, 3], ((4,), (5, 6, 7), (8, 9))),
        Query([10], ((11, 12), (13, 14, 15)), (1, 1)),
    ]
    packed = jax.tree.map(lambda x: x[0, 0], prompts.pack(queries, 64, 64))
    assert packed.example.tolist() == [0, 1]  # the longer first
    assert packed.tokens[:9].tolist() == [2, 3, 5, 6, 8, 10, 11, 13, 14]
    assert packed.positions[:9].tolist() == [0, 1, 2, 3, 2, 0, 1, 1, 2]
    assert packed.branch[:9].tolist() == [0, 0, 2, 2, 3, 0, 1, 2, 2]
    assert packed.segment[:10].tolist() == [0] * 5 + [1] * 4 + [-1]
    assert packed.studied.tolist() == [1, 5]
    third, fourth = 1 / np.float32(3), np.float32(0.5)
    assert packed.target_weight.tolist() == [
        [[1, 0, 0], [third] * 3, [fourth, fourth, 0]],
        [[0, 1, 0], [0, fourth, fourth], [0, 0, 0]],
    ]
    columns = packed.places[packed.source]
    assert columns[0, 1].tolist() == [1, 2, 3]
    assert columns[1, 0, :2].tolist() == [5, 6]
    assert columns[1, 1].tolist() == [5, 7, 8]
    summed = prompts.pack(queries, 64, 64, score="sum").target_weight[0, 0]
    np.testing.assert_array_equal(summed, packed.target_weight > 0)


def test_the_first_label_is_fed_and_studied():
    queries = [Query([2, 3], ((4, 5), (6, 7))), Query([8], ((9,), (10,)))]
    packed = jax.tree.map(lambda x: x[0, 0], prompts.pack(queries, 64, 64, position="first_label"))
    assert packed.tokens[:7].tolist() == [2, 3, 4, 5, 6, 8, 9]
    assert packed.studied.tolist() == [3, 6]
    # What predicts each token is as ever.
    answer = jax.tree.map(lambda x: x[0, 0], prompts.pack(queries, 64, 64))
    for name in ("target", "target_weight"):
        np.testing.assert_array_equal(getattr(packed, name), getattr(answer, name))
    predict = packed.tokens[packed.places[packed.source]] * (packed.target_weight > 0)
    assert predict.tolist() == [[[3, 4], [3, 6]], [[8, 0], [8, 0]]]
    assert prompts.longest_query(queries, "first_label") == 4
    assert prompts.longest_query(queries) == 3


def test_multiple_choice_queries():
    """Candidates' tokens are those of the whole text, and the prompt's tokens are its start."""
    task = Task("t", "{before}", ending="{after}")
    encoder = encoder_of(task)
    fields = [{"before": "the film is", "after": "and never ends ."}]
    choices = [["a dull mess", "moving", "very good"]]
    split = Split("s", fields, np.zeros(1, np.int32), np.zeros(1, np.int32), choices)
    (query,) = encoder.queries(split, np.array([0]))
    for candidate, read, choice in zip(query.candidates, query.read_only, choices[0], strict=True):
        whole = encoder.tokenizer.encode(f"the film is {choice} and never ends .").ids
        assert [*query.prompt, *candidate] == whole
        assert encoder.tokenizer.decode(candidate[:read]) == f" {choice}"
    assert query.demonstration(1) == [*query.prompt, *query.candidates[1]]
    empty = dataclasses.replace(split, fields=[{"before": "the film is", "after": " "}])
    with pytest.raises(UserError, match=r"example 0 of 's'.*no tokens"):
        encoder.queries(empty, np.array([0]))
