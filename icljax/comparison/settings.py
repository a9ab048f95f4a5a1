"""The three settings, as one function on different (params, state).

  zero-shot   read(params,           encode(params, BOS))
  in-context  read(params,           encode(params, BOS + demonstrations))
  finetuned   read(finetuned params, encode(finetuned params, BOS))

Shape glossary: see icljax/models/decoder.py and icljax/data/prompts.py; R runs (learning rates x
seeds), N query slots of a batch (B rows of A), E steps (demonstrations), U tokens of a training
example.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp

from icljax.attention.mixing import Past
from icljax.catalog import METHODS
from icljax.data.prompts import Queries
from icljax.errors import check_known
from icljax.models.decoder import AttentionRecord, Block, Decoder, Hidden, State, take_positions
from icljax.types import Array, Params

# Places whose logits over the whole vocabulary are in memory together.
LOGITS_AT_ONCE = 512


class Records(NamedTuple):
    """What one setting leaves of a batch of queries, at the studied position; float32.

    Attributes:
        logprob: [N, Y], each candidate's score: the mean (or sum) of its tokens' log-probabilities;
            -inf for a candidate that the example does not have.
        attention: AttentionRecord with leading axes [N, L]; its query is [N, L, H * K].
        scores_state: [N, L, T], scaled logits before softmax to the state's tokens, those beyond a
            window included, summed over heads.
        keys, values: [L, B, S, G, K], of all tokens of the batch's rows.
    """

    logprob: jax.Array
    attention: AttentionRecord
    scores_state: jax.Array
    keys: jax.Array
    values: jax.Array


class Finetuned(NamedTuple):
    """The result of finetuning R runs.

    Attributes:
        key_value: the changed leaves, as `key_value(params)` with a leading R axis.
        loss: float32 [R, E], each step's loss before its update (0 where there is no example).
        queries: [R, L, E * U, H * K], scaled query vectors of all training tokens,
            each taken with the weights before its own step.
    """

    key_value: Params
    loss: jax.Array
    queries: jax.Array


def key_value(params: Params) -> Params:
    """The leaves that finetuning changes: key and value projections of every layer."""
    attention = params["layers"]["attention"]
    return {"key": attention["key"], "value": attention["value"]}


def with_key_value(params: Params, leaves: Params) -> Params:
    """`params` with the leaves of `key_value` replaced; everything else is shared, not copied."""
    layers = params["layers"]
    return {**params, "layers": {**layers, "attention": {**layers["attention"], **leaves}}}


def forward(model: Decoder, params: Params, *args: Any) -> Hidden:
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
    out = forward(model, params, tokens[None], positions, None, state, None, valid[None])
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


def own_tokens(queries: Queries) -> jax.Array:
    """Each slot's own tokens, as the studied one sees them: bool [N, S].

    At the answer position the query without its branches, else the first label's tokens too.
    """
    seen = take_positions(query_mask(queries), queries.studied)
    return (seen & (queries.example >= 0)[..., None]).reshape(-1, seen.shape[-1])


def read(model: Decoder, params: Params, state: State, queries: Queries) -> Records:
    """Reads a batch of queries after a state that they share."""
    batch, slots = queries.example.shape
    positions, at = state.length + queries.positions, queries.studied
    out = forward(model, params, queries.tokens, positions, query_mask(queries), state, at)
    attention = jax.tree.map(
        lambda x: jnp.moveaxis(x, 0, 2).reshape(batch * slots, x.shape[0], *x.shape[3:]), out.record
    )
    attention = attention._replace(query=attention.query.reshape(*attention.query.shape[:2], -1))
    # Here for all layers at once: a sum over heads in each would cost tensor parallelism a third
    # all-reduce a layer.
    scores_state = jnp.einsum("NLGK,LTGK->NLT", attention.rotated, state.keys.astype(jnp.float32))
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
    logprob = _map_rows(row, inputs, max(1, LOGITS_AT_ONCE // queries.places.shape[1]))
    total = jnp.sum(logprob * queries.target_weight, -1)
    present = jnp.any(jnp.asarray(queries.target_weight) > 0, -1)
    total = jnp.where(present, total, -jnp.inf)
    return total.reshape(-1, total.shape[-1])


def _map_rows(function: Callable[[Any], jax.Array], inputs: Any, together: int) -> jax.Array:
    """`function` on every row, `together` of them at once; without a loop where that is all."""
    if together >= jax.tree.leaves(inputs)[0].shape[0]:
        return jax.vmap(function)(inputs)
    return cast(jax.Array, jax.lax.map(function, inputs, batch_size=together))


def example_loss(
    model: Decoder, params: Params, tokens: jax.Array, length: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Causal language-model loss of one training example, mean over its predicted tokens.

    Args:
        tokens: int32 [U], BOS first, padded.
        length: int32 [], 0 for no example.

    Returns:
        (loss [], query vectors [L, U, H * K]).
    """
    index = jnp.arange(tokens.shape[0], dtype=jnp.int32)[None]
    out = forward(model, params, tokens[None], index, None, None, index)
    assert out.record is not None  # `at` was given
    queries = out.record.query[:, 0].reshape(out.record.query.shape[0], tokens.shape[0], -1)
    return _token_loss(unembed(model, params, out.hidden[0, :-1]), tokens, length), queries


def _token_loss(logits: jax.Array, tokens: jax.Array, length: jax.Array) -> jax.Array:
    """Mean of -log p over an example's predicted tokens: [U - 1, V], [U], [] -> []."""
    # What follows a token changes nothing for it, so that padding needs no mask but this one.
    valid = jnp.arange(1, tokens.shape[0]) < length
    target = jnp.take_along_axis(logits, tokens[1:, None], -1)[:, 0]
    weight = valid.astype(jnp.float32)
    nll = (jax.nn.logsumexp(logits, -1) - target) * weight
    return jnp.sum(nll) / jnp.maximum(jnp.sum(weight), 1.0)


def gradients(
    model: Decoder,
    params: Params,
    leaves: Params,
    tokens: jax.Array,
    length: jax.Array,
    method: str = "gd",
) -> tuple[Params, jax.Array, jax.Array]:
    """What one training example changes.

    Only `leaves` are differentiated; gradients elsewhere are never computed.

    Args:
        leaves: as `key_value(params)`, in whose place they stand.
        tokens, length: as in `example_loss`.
        method: one of `METHODS`.

    Returns:
        (gradients as `leaves`, the model's loss [], query vectors [L, U, H * K]).

    Raises:
        UserError: for another method.
    """
    check_known("finetune.method", method, METHODS)
    if method != "gd":
        return layer_gradients(model, params, leaves, tokens, length, method == "lcgd_attention")

    def loss_fn(leaves: Params) -> tuple[jax.Array, jax.Array]:
        return example_loss(model, with_key_value(params, leaves), tokens, length)

    (loss, queries), gradient = jax.value_and_grad(loss_fn, has_aux=True)(leaves)
    return gradient, loss, queries


def sgd_step(
    model: Decoder,
    params: Params,
    leaves: Params,
    learning_rate: jax.Array,
    tokens: jax.Array,
    length: jax.Array,
    method: str = "gd",
) -> tuple[Params, jax.Array, jax.Array]:
    """One step of plain SGD on key and value leaves: as `gradients`, the new leaves first."""
    gradient, loss, queries = gradients(model, params, leaves, tokens, length, method)
    return jax.tree.map(lambda w, g: w - learning_rate * g, leaves, gradient), loss, queries


def layer_gradients(
    model: Decoder,
    params: Params,
    leaves: Params,
    tokens: jax.Array,
    length: jax.Array,
    after_attention: bool,
) -> tuple[Params, jax.Array, jax.Array]:
    """Layer-causal gradients (Deutch et al. 2024): every layer learns from its own read-out only.

    A layer's loss is that of `example_loss`, had the model ended there; no gradient passes its
    input. So one scan forwards does it all and keeps nothing of a layer but its gradient.

    Args:
        after_attention: read out what attention adds to the residual stream, before the MLP of a
            sequential block, without that of a parallel one.

    Returns:
        As `gradients`.
    """
    config, variables = model.config, {"params": params}
    index = jnp.arange(tokens.shape[0], dtype=jnp.int32)[None]
    past = Past(index + 1, None, None)

    def loss_of(x: jax.Array) -> jax.Array:
        logits = model.apply(variables, x[0, :-1], method="read_out")
        return _token_loss(cast(jax.Array, logits), tokens, length)

    def layer(x: jax.Array, inputs: tuple[jax.Array, Params, Params]) -> Any:
        which, weights, leaves = inputs

        def loss_fn(leaves: Params) -> tuple[jax.Array, Any]:
            own = with_key_value({"layers": weights}, leaves)["layers"]
            args = (x, (which, None), None, index, past, index)
            streams: Any = Block(config).apply({"params": own}, *args, method="streams")
            after, out, left = streams
            return loss_of(after if after_attention else out), (out, left.record.query[0])

        gradient, (out, queries) = jax.grad(loss_fn, has_aux=True)(leaves)
        return out, (gradient, queries.reshape(queries.shape[0], -1))

    start = cast(jax.Array, model.apply(variables, tokens[None], index, method="embedded"))
    which = jnp.arange(config.num_layers) % len(config.attention)
    x, (gradient, queries) = jax.lax.scan(layer, start, (which, params["layers"], leaves))
    return gradient, loss_of(x), queries


def finetune(
    model: Decoder,
    params: Params,
    learning_rate: Array,
    train: Array,
    train_length: Array,
    longest: Array | None = None,
    method: str = "gd",
) -> Finetuned:
    """One epoch of plain SGD on key and value projections, one demonstration a step, in order.

    All R runs (learning rates x seeds) go through one `lax.scan` together; only the key and value
    leaves are replicated. Each step runs at the shortest of a few lengths that holds the step's
    examples, since padding all steps to the longest example nearly doubles the work.

    Args:
        learning_rate: float32 [R].
        train: int32 [R, E, U].
        train_length: int32 [R, E], 0 for no example.
        longest: int32 [E], each step's longest example where there are more runs than these.
        method: one of `METHODS`: gradient descent, or layer-causal (`layer_gradients`).

    Returns:
        Finetuned, each field with a leading R axis.

    Raises:
        UserError: an unknown method.
    """
    check_known("finetune.method", method, METHODS)
    runs, _, size = train.shape
    sizes = step_sizes(size)
    longest = jnp.max(train_length, 0) if longest is None else longest
    bucket = jnp.sum(longest[:, None] > jnp.asarray(sizes)[None, :], -1)

    def branch(cut: int) -> Any:
        def step(leaves: Params, tokens: jax.Array, length: jax.Array) -> Any:
            one = jax.vmap(lambda w, r, t, n: sgd_step(model, params, w, r, t, n, method))
            leaves, loss, queries = one(leaves, learning_rate, tokens[:, :cut], length)
            return leaves, loss, jnp.pad(queries, ((0, 0), (0, 0), (0, size - cut), (0, 0)))

        return step

    branches = [branch(cut) for cut in sizes]

    def step(leaves: Params, inputs: tuple[Array, ...]) -> tuple[Params, Any]:
        which, tokens, length = inputs
        leaves, loss, queries = jax.lax.switch(which, branches, leaves, tokens, length)
        return leaves, (loss, queries)

    start = jax.tree.map(lambda x: jnp.broadcast_to(x, (runs, *x.shape)), key_value(params))
    inputs = (bucket, train.swapaxes(0, 1), train_length.swapaxes(0, 1))
    leaves, (loss, queries) = jax.lax.scan(step, start, inputs)
    # [E, R, L, U, H * K] -> [R, L, E * U, H * K]
    queries = queries.transpose(1, 2, 0, 3, 4).reshape(runs, queries.shape[2], -1, queries.shape[4])
    return Finetuned(leaves, loss.swapaxes(0, 1), queries)


def step_sizes(longest: int) -> tuple[int, ...]:
    """At most four lengths, multiples of 16, at which a training step is compiled."""
    stride = 16 * max(1, math.ceil(longest / 64))
    return (*range(stride, longest, stride), longest)
