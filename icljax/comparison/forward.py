"""The three settings, as one function on different (params, state).

  zero-shot   read(params,           encode(params, BOS))
  in-context  read(params,           encode(params, BOS + demonstrations))
  finetuned   read(finetuned params, encode(finetuned params, BOS))

Shape glossary: see icljax/models/decoder.py and icljax/data/prompts.py; N query slots of a batch
(B rows of A).
"""

from collections.abc import Callable
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp

from icljax.attention.mixing import capped
from icljax.data.prompts import Queries
from icljax.models.decoder import (
    AttentionRecord,
    Decoder,
    DecoderConfig,
    Hidden,
    State,
    take_positions,
)
from icljax.types import Array, Params

# Logits that are in memory together: 64 MiB, of some 100 places with a vocabulary of 152k.
LOGITS_AT_ONCE = 1 << 24


class Records(NamedTuple):
    """What one setting leaves of a batch of queries, at the studied position; float32.

    Attributes:
        logprob: [N, Y], each candidate's score: the mean (or sum) of its tokens' log-probabilities;
            -inf for a candidate that the example does not have.
        attention: AttentionRecord with leading axes [N, L]; its query is [N, L, H * K].
        scores_state: [N, L, T], what softmax is given of the state's tokens, summed over heads;
            those beyond a window, which softmax does not see, are told apart by `seen_of_state`.
        keys, values: [L, B, S, G, K], of all tokens of the batch's rows.
    """

    logprob: jax.Array
    attention: AttentionRecord
    scores_state: jax.Array
    keys: jax.Array
    values: jax.Array


def hidden(model: Decoder, params: Params, *args: Any) -> Hidden:
    """The decoder's layers: `Decoder.hidden` with these parameters."""
    return cast(Hidden, model.apply({"params": params}, *args, method="hidden"))


def unembed(model: Decoder, params: Params, hidden: jax.Array) -> jax.Array:
    """Logits float32 [..., V] of `hidden` [..., D]."""
    return cast(jax.Array, model.apply({"params": params}, hidden, method="logits"))


def encode(
    model: Decoder,
    params: Params,
    tokens: jax.Array,
    valid: jax.Array,
    state: State | None = None,
) -> State:
    """Runs a prompt once and keeps what later tokens need of it.

    Args:
        tokens: int32 [T], padded at the end.
        valid: bool [T].
        state: what an earlier part of the prompt left behind; the result holds both.
    """
    start = 0 if state is None else state.length
    positions = start + jnp.arange(tokens.shape[0], dtype=jnp.int32)[None]
    out = hidden(model, params, tokens[None], positions, None, state, None, valid[None])
    keys, values, memory = jax.tree.map(lambda x: x[:, 0], (out.keys, out.values, out.memory))
    length = jnp.sum(valid, dtype=jnp.int32)
    if state is not None:
        keys = jnp.concatenate([state.keys, keys], 1)
        values = jnp.concatenate([state.values, values], 1)
        valid, length = jnp.concatenate([state.valid, valid]), state.length + length
    return State(keys, values, valid, length, memory)


def query_mask(queries: Queries) -> jax.Array:
    """Who sees whom, bool [B, S, S]: its query's earlier tokens, its own branch's, and itself."""
    segment, branch = queries.segment, queries.branch
    index = jnp.arange(segment.shape[1])
    same = (segment[:, :, None] == segment[:, None, :]) & (segment >= 0)[:, None, :]
    visible = (branch[:, None, :] == 0) | (branch[:, :, None] == branch[:, None, :])
    causal = (index[:, None] >= index[None, :])[None]
    return (same & visible & causal) | (index[:, None] == index[None, :])[None]


def own_tokens(queries: Queries, config: DecoderConfig | None = None) -> jax.Array:
    """Each slot's own tokens, as the studied one sees them: bool [N, S].

    At the answer position the query without its branches, else the first label's tokens too.

    Args:
        config: whose windows hide tokens: [N, L, S], [N, 1, S] where all layers see the same.
    """
    seen = take_positions(query_mask(queries), queries.studied)
    seen = (seen & (queries.example >= 0)[..., None]).reshape(-1, seen.shape[-1])
    if config is None:
        return seen
    positions = jnp.asarray(queries.positions)
    back = take_positions(positions, queries.studied)[..., None] - positions[:, None]
    return seen[:, None] & inside_windows(config, back.reshape(seen.shape))


def seen_of_state(queries: Queries, state: State, config: DecoderConfig) -> jax.Array:
    """Which of a state's tokens the studied one sees: bool [N, L, T]; an axis without need is 1."""
    at = jnp.cumsum(state.valid) - 1
    studied = take_positions(jnp.asarray(queries.positions), queries.studied).reshape(-1)
    back = (state.length + studied)[:, None] - at[None]
    return state.valid[None, None] & inside_windows(config, back)


def inside_windows(config: DecoderConfig, back: jax.Array) -> jax.Array:
    """Whether layers see tokens so many places `back` [N, T]: bool [N, L, T], or [1, 1, 1]."""
    if not config.windows:
        return jnp.ones((1, 1, 1), bool)
    sizes = jnp.asarray([size or jnp.iinfo(jnp.int32).max for size in config.windows])
    of_layer = sizes[jnp.arange(config.num_layers) % len(config.windows)]
    return back[:, None] < of_layer[None, :, None]


def read(model: Decoder, params: Params, state: State, queries: Queries) -> Records:
    """Reads a batch of queries after a state that they share."""
    batch, slots = queries.example.shape
    positions, at = state.length + queries.positions, queries.studied
    out = hidden(model, params, queries.tokens, positions, query_mask(queries), state, at)
    attention = jax.tree.map(
        lambda x: jnp.moveaxis(x, 0, 2).reshape(batch * slots, x.shape[0], *x.shape[3:]), out.record
    )
    attention = attention._replace(query=attention.query.reshape(*attention.query.shape[:2], -1))
    # Here for all layers at once: a sum over heads in each would cost tensor parallelism a third
    # all-reduce a layer.
    rotated, keys = attention.rotated, state.keys.astype(jnp.float32)
    if cap := model.config.score_cap:  # of each head before the sum
        scores_state = capped(jnp.einsum("NLGJK,LTGK->NLGJT", rotated, keys), cap).sum((2, 3))
    else:
        scores_state = jnp.einsum("NLGK,LTGK->NLT", rotated[..., 0, :], keys)
    logprob = _answer_logprob(model, params, out.hidden, queries)
    return Records(logprob, attention, scores_state, out.keys, out.values)


def _answer_logprob(
    model: Decoder, params: Params, hidden: jax.Array, queries: Queries
) -> jax.Array:
    """Each candidate's score: [N, Y]."""

    def row(inputs: tuple[jax.Array, Array, Array]) -> jax.Array:
        at, source, target = inputs  # [P, D], [A, Y, M]
        logits = unembed(model, params, at)
        # One gather of the few logits that are needed; the normaliser once a place.
        return logits[source, target] - jax.nn.logsumexp(logits, -1)[source]

    inputs = (take_positions(hidden, queries.places), queries.source, queries.target)
    of_row = queries.places.shape[1] * model.config.vocab_size
    logprob = _map_rows(row, inputs, max(1, LOGITS_AT_ONCE // of_row))
    total = jnp.sum(logprob * queries.target_weight, -1)
    present = jnp.any(jnp.asarray(queries.target_weight) > 0, -1)
    total = jnp.where(present, total, -jnp.inf)
    return total.reshape(-1, total.shape[-1])


def _map_rows(function: Callable[[Any], jax.Array], inputs: Any, together: int) -> jax.Array:
    """`function` on every row, `together` of them at once; without a loop where that is all."""
    if together >= jax.tree.leaves(inputs)[0].shape[0]:
        return jax.vmap(function)(inputs)
    return cast(jax.Array, jax.lax.map(function, inputs, batch_size=together))
