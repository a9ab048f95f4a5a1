"""What a window hides of a prompt or a query takes part in no metric and no dW_ICL."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from icljax import metrics
from icljax.attention import Kind
from icljax.comparison import forward, pairs
from icljax.models.config import Rope
from icljax.models.decoder import State
from tests.comparison.test_forward import (
    LLAMA,
    encode,
    make_encoder,
    model_and_params,
    pack_once,
    random_tokens,
    read,
)

WINDOW, CONTEXT = 8, 20
WINDOWED = dataclasses.replace(
    LLAMA,
    attention=(Kind(window=WINDOW), Kind()),
    positions=(Rope(50.0), Rope(1e4)),
)
# Query lengths: shorter and longer than the window.
LENGTHS = (5, 12)


@functools.cache
def reading(config=WINDOWED):
    """(queries, state, records) of two queries after a prompt that ends in padding."""
    model, params = model_and_params(config)
    padded = np.pad(random_tokens(CONTEXT, seed=3), (0, 4))
    state = encode(model, params, jnp.asarray(padded), jnp.arange(CONTEXT + 4) < CONTEXT)
    texts = [random_tokens(n, seed=n).tolist() for n in LENGTHS]
    queries = pack_once(texts, make_encoder().answers)
    return queries, state, read(model, params, state, queries)


def slots(queries):
    order = queries.example.reshape(-1)
    return [int(np.flatnonzero(order == n)[0]) for n in range(len(LENGTHS))]


def test_who_sees_whom_by_hand():
    """The studied token of a query of n tokens stands n - 1 after its first."""
    queries, state, _ = reading()
    own = np.asarray(forward.own_tokens(queries, WINDOWED))
    earlier = np.asarray(forward.seen_of_state(queries, state, WINDOWED))
    everything = np.asarray(forward.own_tokens(queries))
    for slot, length in zip(slots(queries), LENGTHS, strict=True):
        assert own[slot].sum(-1).tolist() == [min(length, WINDOW), length, min(length, WINDOW)]
        np.testing.assert_array_equal(own[slot, 1], everything[slot])
        kept = max(WINDOW - length, 0)
        assert np.flatnonzero(earlier[slot, 0]).tolist() == [*range(CONTEXT - kept, CONTEXT)]
        assert np.flatnonzero(earlier[slot, 1]).tolist() == [*range(CONTEXT)]


def test_without_a_window_no_axis_is_added():
    queries, state, _ = reading(LLAMA)
    assert forward.own_tokens(queries, LLAMA).shape[1] == 1
    assert forward.seen_of_state(queries, state, LLAMA).shape[:2] == (1, 1)


def recorded(scores_state, scores_query, config=WINDOWED):
    """What the metrics read of records with these scores; columns 2 to 17 in 4 demonstrations."""
    queries, state, records = reading(config)
    attention = records.attention._replace(scores_query=scores_query)
    records = records._replace(attention=attention, scores_state=scores_state)
    columns, example = np.arange(2, 18), np.arange(16) // 4
    slots, layers, width = attention.query.shape
    rng = np.random.default_rng(0)
    training = pairs.TrainingTokens(
        columns,
        example,
        forward.seen_of_state(queries, state, config)[..., columns],
        jnp.asarray(rng.standard_normal((layers, 16, width)), jnp.float32),
        jnp.ones((layers, 2, 8, 8)),
        4,
    )
    keys = jax.vmap(functools.partial(jax.random.fold_in, jax.random.key(0)))(jnp.arange(slots))
    draws = pairs.Draws(keys, jax.random.key(1), "gaussian")
    mask = forward.own_tokens(queries, config)
    changed = attention._replace(scores_query=scores_query + 1.0)
    ft = records._replace(attention=changed, keys=records.keys * 1.1)
    return pairs.recorded(records, records, ft, training, mask, draws)


def test_scores_of_hidden_tokens_change_nothing():
    """Other scores of hidden tokens leave every number as it is; of seen ones, not."""
    queries, state, records = reading()
    to_state, to_query = records.scores_state, records.attention.scores_query
    seen = forward.seen_of_state(queries, state, WINDOWED)
    own = forward.own_tokens(queries, WINDOWED)[:, :, None]
    similarity = jax.jit(pairs.similarity)
    plain = similarity(recorded(to_state, to_query))
    noise = 5 * np.random.default_rng(1).standard_normal(to_state.shape)
    other = similarity(
        recorded(jnp.where(seen, to_state, noise), jnp.where(own, to_query, to_query**2 + 3))
    )
    # Rows without an example are padding.
    real = np.flatnonzero(queries.example.reshape(-1) >= 0)
    for name, values in plain.items():
        np.testing.assert_array_equal(values[real], other[name][real], err_msg=name)
    moved = similarity(recorded(jnp.where(seen, noise, to_state), to_query))
    assert not np.allclose(plain["kendall"][real], moved["kendall"][real], equal_nan=True)


def test_a_demonstration_that_is_hidden_wholly_is_not_compared():
    _, _, records = reading()
    queries, _, _ = reading()
    arrays = recorded(records.scores_state, records.attention.scores_query)
    short, long = slots(queries)
    # Columns 2 to 17; the last 3 of 20 are seen after a query of 5 tokens, that is column 17.
    assert arrays["example_mask"][short, 0].tolist() == [False, False, False, True]
    assert not arrays["example_mask"][long, 0].any()
    assert arrays["example_mask"][long, 1].all()
    weights = arrays["icl.example_weights"]
    np.testing.assert_allclose(weights[short, 0], [0, 0, 0, 1])
    np.testing.assert_allclose(weights[long, 0], 0)
    np.testing.assert_allclose(weights[long, 1].sum(), 1, rtol=1e-6)


def test_example_attention_of_some_tokens_by_hand():
    scores, example = jnp.log(jnp.array([1.0, 2.0, 5.0, 7.0])), np.array([0, 0, 1, -1])
    mask = np.array([True, False, True, True])
    got = metrics.example_attention(scores, example, 2, mask)
    np.testing.assert_allclose(got, [1 / 6, 5 / 6], rtol=1e-6)


@pytest.mark.parametrize("shift", [0, 5])
def test_the_update_is_of_what_the_first_token_after_the_prompt_sees(shift):
    """One layer of window 8: of 20 tokens, those from the 14th on; keys turned by its own base."""
    _, state, _ = reading()
    columns = np.arange(2, 18)
    got = pairs.demonstration_update(state, columns, jnp.ones(16, bool), jnp.int32(shift), WINDOWED)
    for layer, (first, rope) in enumerate([(13, 50.0), (2, 1e4), (13, 50.0)]):
        alone = dataclasses.replace(
            WINDOWED, num_layers=1, attention=(Kind(),), positions=Rope(rope)
        )
        own = jax.tree.map(lambda x, layer=layer: x[layer : layer + 1], state[:2])
        compared = jnp.asarray(columns >= first)
        expected = pairs.demonstration_update(
            State(*own, *state[2:]), columns, compared, jnp.int32(shift), alone
        )
        np.testing.assert_allclose(got[layer], expected[0], atol=1e-5)
