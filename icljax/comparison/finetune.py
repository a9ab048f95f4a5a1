"""Finetuning of the key and value projections on demonstrations, one a step.

Shape glossary: see icljax/models/decoder.py and icljax/data/prompts.py; R runs (learning rates x
seeds), E steps (demonstrations), U tokens of a training example.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp

from icljax.attention.mixing import Past
from icljax.catalog import METHODS
from icljax.comparison.forward import hidden, unembed
from icljax.errors import check_known
from icljax.models.decoder import AttentionRecord, Block, Decoder, LayerOutput
from icljax.types import Array, Params


class Learned(NamedTuple):
    """What finetuning leaves of a run; of several with a leading axis.

    Attributes:
        kv_params: the changed leaves, as `kv_params_of(params)`.
        queries: float32 [L, C, H * K], scaled query vectors of training tokens, each taken with the
            weights before its own step.
    """

    kv_params: Params
    queries: jax.Array


class Finetuned(NamedTuple):
    """The result of finetuning R runs.

    Attributes:
        kv_params, queries: as in `Learned` with a leading R axis.
        loss: float32 [R, E], each step's loss before its update (0 where there is no example).
    """

    kv_params: Params
    loss: jax.Array
    queries: jax.Array

    @property
    def learned(self) -> Learned:
        """What the runs learned, without their losses."""
        return Learned(self.kv_params, self.queries)


def kv_params_of(params: Params) -> Params:
    """The leaves that finetuning changes: key and value projections of every layer."""
    attention = params["layers"]["attention"]
    return {"key": attention["key"], "value": attention["value"]}


def with_kv_params(params: Params, kv_params: Params) -> Params:
    """`params` with these key and value leaves; everything else is shared, not copied."""
    layers = params["layers"]
    return {**params, "layers": {**layers, "attention": {**layers["attention"], **kv_params}}}


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
    out = hidden(model, params, tokens[None], index, None, None, index)
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
    kv_params: Params,
    tokens: jax.Array,
    length: jax.Array,
    method: str = "gd",
) -> tuple[Params, jax.Array, jax.Array]:
    """What one training example changes.

    Only `kv_params` are differentiated; gradients elsewhere are never computed.

    Args:
        kv_params: as `kv_params_of(params)`, in whose place they stand.
        tokens, length: as in `example_loss`.
        method: one of `METHODS`.

    Returns:
        (gradients as `kv_params`, the model's loss [], query vectors [L, U, H * K]).

    Raises:
        UserError: for another method.
    """
    check_known("finetune.method", method, METHODS)
    if method != "gd":
        return layer_gradients(model, params, kv_params, tokens, length, method == "lcgd_attention")

    def loss_fn(kv_params: Params) -> tuple[jax.Array, jax.Array]:
        return example_loss(model, with_kv_params(params, kv_params), tokens, length)

    (loss, queries), gradient = jax.value_and_grad(loss_fn, has_aux=True)(kv_params)
    return gradient, loss, queries


def sgd_step(
    model: Decoder,
    params: Params,
    kv_params: Params,
    learning_rate: jax.Array,
    tokens: jax.Array,
    length: jax.Array,
    method: str = "gd",
) -> tuple[Params, jax.Array, jax.Array]:
    """One step of plain SGD on key and value leaves: as `gradients`, the new leaves first."""
    gradient, loss, queries = gradients(model, params, kv_params, tokens, length, method)
    return jax.tree.map(lambda w, g: w - learning_rate * g, kv_params, gradient), loss, queries


def layer_gradients(
    model: Decoder,
    params: Params,
    kv_params: Params,
    tokens: jax.Array,
    length: jax.Array,
    after_attention: bool,
) -> tuple[Params, jax.Array, jax.Array]:
    """Layer-causal gradients (Deutch et al. 2024): every layer learns from its own read-out only.

    A layer's loss is that of `example_loss`, had the model ended there. One scan forwards does it
    all and keeps nothing of a layer but its gradient.

    Args:
        after_attention: read out what attention adds to the residual stream, before the MLP of a
            sequential block, without that of a parallel one.

    Returns:
        As `gradients`.
    """
    variables = {"params": params}

    def read_out(_: jax.Array, after: jax.Array, out: jax.Array, __: LayerOutput) -> jax.Array:
        return loss_of(after if after_attention else out)

    def loss_of(x: jax.Array) -> jax.Array:
        logits = model.apply(variables, x[0, :-1], method="read_out")
        return _token_loss(cast(jax.Array, logits), tokens, length)

    index = jnp.arange(tokens.shape[0], dtype=jnp.int32)[None]
    x, gradient, record = each_layer(model, params, kv_params, tokens, read_out, index)
    assert record is not None  # `at` was given
    queries = record.query[:, 0]
    return gradient, loss_of(x), queries.reshape(*queries.shape[:2], -1)


# Of a layer: its number, the sum with attention's output, the layer's output, what it leaves.
LayerLoss = Callable[[jax.Array, jax.Array, jax.Array, LayerOutput], jax.Array]


def each_layer(
    model: Decoder,
    params: Params,
    kv_params: Params,
    tokens: jax.Array,
    loss: LayerLoss,
    at: jax.Array | None = None,
) -> tuple[jax.Array, Params, AttentionRecord | None]:
    """Gradients of every layer's own loss; none passes a layer's input. One scan forwards.

    Args:
        tokens: int32 [U].
        at: columns to study.

    Returns:
        (the last layer's output [1, U, D], gradients as `kv_params`, records with a leading L).
    """
    index = jnp.arange(tokens.shape[0], dtype=jnp.int32)[None]
    past = Past(index + 1, None, None)

    def layer(x: jax.Array, inputs: tuple[jax.Array, Params, Params]) -> Any:
        number, weights, kv_params = inputs

        def loss_fn(kv_params: Params) -> tuple[jax.Array, Any]:
            own = with_kv_params({"layers": weights}, kv_params)["layers"]
            args = (x, (number, None), None, index, past, at)
            streams: Any = Block(model.config).apply({"params": own}, *args, method="streams")
            after, out, left = streams
            return loss(number, after, out, left), (out, left.record)

        gradient, (out, record) = jax.grad(loss_fn, has_aux=True)(kv_params)
        return out, (gradient, record)

    start = cast(jax.Array, model.apply({"params": params}, tokens[None], index, method="embedded"))
    number = jnp.arange(model.config.num_layers)
    x, (gradient, record) = jax.lax.scan(layer, start, (number, params["layers"], kv_params))
    return x, gradient, record


def finetune(
    model: Decoder,
    params: Params,
    learning_rate: Array,
    train: Array,
    train_length: Array,
    train_index: Array,
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
        train_index: int32 [R, C], the tokens whose query vectors are kept, as their places in
            `train[r]` flattened to E * U.
        longest: int32 [E], each step's longest example where there are more runs than these.
        method: one of `METHODS`: gradient descent, or layer-causal (`layer_gradients`).

    Returns:
        Finetuned, each field with a leading R axis.

    Raises:
        UserError: an unknown method.
    """
    check_known("finetune.method", method, METHODS)
    runs, steps, size = train.shape
    sizes = step_sizes(size)
    longest = jnp.max(train_length, 0) if longest is None else longest
    bucket = jnp.sum(longest[:, None] > jnp.asarray(sizes)[None, :], -1)

    branches = [_step_at(cut, model, params, learning_rate, method) for cut in sizes]
    index = jnp.asarray(train_index, jnp.int32)

    def step(carried: tuple[Params, jax.Array], inputs: tuple[Array, ...]) -> tuple[Any, jax.Array]:
        number, which, tokens, length = inputs
        place = index - number * size  # of each kept token in this step's example
        kv_params, queries, loss = jax.lax.switch(which, branches, *carried, place, tokens, length)
        return (kv_params, queries), loss

    start = jax.tree.map(lambda x: jnp.broadcast_to(x, (runs, *x.shape)), kv_params_of(params))
    c = model.config
    shape = (runs, c.num_layers, index.shape[1], c.num_heads * c.head_width)
    inputs = (jnp.arange(steps), bucket, train.swapaxes(0, 1), train_length.swapaxes(0, 1))
    carried = (start, jnp.zeros(shape, jnp.float32))
    (kv_params, queries), loss = jax.lax.scan(step, carried, inputs)
    return Finetuned(kv_params, loss.swapaxes(0, 1), queries)


Stepped = tuple[Params, jax.Array, jax.Array]


def _step_at(
    cut: int, model: Decoder, params: Params, learning_rate: Array, method: str
) -> Callable[[Params, jax.Array, jax.Array, Array, Array], Stepped]:
    """`sgd_step` of every run on its example's first `cut` tokens: leaves, kept queries, loss."""

    def one(
        kv_params: Params,
        kept: jax.Array,
        rate: jax.Array,
        place: jax.Array,
        tokens: jax.Array,
        length: jax.Array,
    ) -> Stepped:
        kv_params, loss, queries = sgd_step(model, params, kv_params, rate, tokens, length, method)
        # All tokens' queries, kept until the end, would be most of a large model's memory.
        mine = (place >= 0) & (place < cut)
        chosen = queries[:, jnp.clip(place, 0, cut - 1)]
        return kv_params, jnp.where(mine[None, :, None], chosen, kept), loss

    def step(
        kv_params: Params, kept: jax.Array, place: jax.Array, tokens: Array, length: Array
    ) -> Stepped:
        rates = jnp.asarray(learning_rate)
        cut_tokens = jnp.asarray(tokens)[:, :cut]
        return jax.vmap(one)(kv_params, kept, rates, place, cut_tokens, jnp.asarray(length))

    return step


def step_sizes(longest: int) -> tuple[int, ...]:
    """At most four lengths, multiples of 16, at which a training step is compiled."""
    stride = 16 * max(1, math.ceil(longest / 64))
    return (*range(stride, longest, stride), longest)
