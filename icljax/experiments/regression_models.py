"""In-context regression: the tasks, attention layers, and the optimizers that they may be.

The setting of von Oswald et al. 2023, "Transformers learn in-context by gradient descent" (arXiv
2212.07677): tasks y = w . x with w ~ N(0, 1) and x ~ U(-1, 1); tokens e_i = (x_i, y_i) of the
examples and (x, 0) of the query; attention without MLP, norm or positions, which reads the examples
only: e <- e + P V K^T q / N. The prediction is minus the query token's y after the last layer.
There, one constructed layer of linear attention is one step of gradient descent (`construct`), and
L layers are L steps.

The kinds with momentum, decay and the delta rule are read causally, one example a step
(`predict_online`): what the optimizer `optax_predict` does with the examples in their order.

Shape glossary: L layers (the deepest model's; shallower ones switch the rest off), B tasks, N
examples, T = N + 1 tokens, X inputs, D = X + 1 token width (K, V: keys', values').
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from icljax import attention

Params = dict[str, jax.Array]
DEEP = ("linear", "softmax", "moattn")
ONLINE = tuple(n for n, k in attention.KINDS.items() if k.base == "linear")


class Tasks(NamedTuple):
    """Regression prompts.

    Attributes:
        x: [B, N, X]; y: [B, N]; both 0 where not seen.
        query: [B, X]; target: [B].
        seen: bool [N], which examples there are; the first are left out first.
    """

    x: jax.Array
    y: jax.Array
    query: jax.Array
    target: jax.Array
    seen: jax.Array


# ------------------------------------------------------------------------------------------- tasks


def draw_tasks(key: jax.Array, batch: int, examples: int, dims: int) -> Tasks:
    """Fresh tasks: w ~ N(0, I), x ~ U(-1, 1), y = w . x (von Oswald et al. 2023, section 3)."""
    x_key, w_key = jax.random.split(key)
    x = jax.random.uniform(x_key, (batch, examples + 1, dims), minval=-1.0, maxval=1.0)
    w = jax.random.normal(w_key, (batch, dims))
    y = jnp.einsum("BTX,BX->BT", x, w, precision="highest")
    return Tasks(x[:, :-1], y[:, :-1], x[:, -1], y[:, -1], jnp.ones((examples,), bool))


def keep_last(tasks: Tasks, count: jax.Array | int) -> Tasks:
    """The same tasks with `count` of their examples. Zeros in front are no step of any kind."""
    size = tasks.x.shape[1]
    seen = jnp.arange(size) >= size - count
    x = jnp.where(seen[None, :, None], tasks.x, 0)
    return tasks._replace(x=x, y=jnp.where(seen[None], tasks.y, 0), seen=seen)


def as_tokens(tasks: Tasks) -> jax.Array:
    """[B, T, D]: (x_i, y_i) of the examples, then (query, 0)."""
    x = jnp.concatenate([tasks.x, tasks.query[:, None]], 1)
    return jnp.concatenate([x, jnp.pad(tasks.y, ((0, 0), (0, 1)))[..., None]], -1)


# ---------------------------------------------------------------------------------- deep attention


def context_state(
    loss: str, k: jax.Array, v: jax.Array, eta: jax.Array, alpha: jax.Array, beta: jax.Array
) -> jax.Array:
    """The linear family's map from keys to values after the examples: [B, V, K].

    Args:
        loss: "dot" or "square".
        k: [B, N, K]; v: [B, N, V].
        eta, alpha, beta: [].
    """
    size = 1 << (k.shape[1] - 1).bit_length() if loss == "square" else k.shape[1]
    # Zeros in front: steps that leave the zero state as it is.
    k, v = (jnp.pad(a, ((0, 0), (size - a.shape[1], 0), (0, 0))) for a in (k, v))
    causal = jnp.tril(jnp.ones((size, size), bool))
    weights = attention.decay(eta, alpha, jnp.arange(1, size + 1), causal)
    zero = jnp.zeros((v.shape[-1], k.shape[-1]), k.dtype)
    start = attention.State(zero, zero)
    betas = jnp.broadcast_to(beta, (size,))

    def row(k: jax.Array, v: jax.Array) -> jax.Array:
        return attention.write(start, k, v, betas, weights, loss)[1].s

    return jax.vmap(row)(k, v)


def attend(kind: str, layer: Params, tokens: jax.Array, seen: jax.Array) -> jax.Array:
    """What every token reads of the examples, before the output projection: [B, T, D].

    Keys and values are the tokens: with one head as wide as a token, W_K^T W_Q and P W_V act as
    one matrix each, so that "query" and "out" are the whole family of von Oswald et al. 2023.

    Args:
        kind: one of DEEP; "moattn" is softmax plus EMA(V) (Dai et al. 2023, section 5).
        layer: "query" [D, D] and, for "moattn", "ema" [].
        tokens: [B, T, D], the query's last.
        seen: bool [N].
    """
    q = tokens @ layer["query"]
    context = tokens[:, :-1]
    if kind == "linear":
        one = jnp.ones(())
        state = context_state("dot", context, context, 0 * one, one, one)
        return attention.dot("BVK,BTK->BTV", state, q, q.dtype) / jnp.sum(seen)
    scores = jnp.einsum("BTK,BNK->BTN", q, context) / math.sqrt(q.shape[-1])
    weights = jax.nn.softmax(jnp.where(seen[None, None], scores, -jnp.inf))
    if kind == "moattn":
        # EMA(V) is linear in V, so its weights are the EMA of the identity, for all tasks at once.
        tokens = jnp.eye(q.shape[1])[None, :, None]
        ema, _ = attention.ema_chunked(tokens, layer["ema"][None], jnp.zeros_like(tokens[0, 0]))
        weights = weights + jnp.where(seen[None], ema[0, :, 0, :-1], 0)[None]
    return jnp.einsum("BTN,BNV->BTV", weights, context)


def predict_deep(kind: str, params: Params, gates: jax.Array, tasks: Tasks) -> jax.Array:
    """Predictions [B] of attention layers with residuals (von Oswald et al. 2023, equation 1).

    Args:
        kind: one of DEEP.
        params: "query", "out" [L, D, D] and, for "moattn", "ema" [L].
        gates: [L], 1 for a layer, 0 for none.
        tasks: B of them.
    """

    def step(tokens: jax.Array, inputs: tuple[Params, jax.Array]) -> tuple[jax.Array, None]:
        layer, gate = inputs
        return tokens + gate * (attend(kind, layer, tokens, tasks.seen) @ layer["out"]), None

    tokens, _ = jax.lax.scan(step, as_tokens(tasks), (params, gates))
    return -tokens[:, -1, -1]


def init_deep(kind: str, dims: int, scale: float, key: jax.Array, gates: jax.Array) -> Params:
    """Random weights of standard deviation `scale` / sqrt(D), so that products keep it."""
    width, layers = dims + 1, gates.shape[0]
    keys = jax.random.split(key)
    params = {
        "query": jax.random.normal(keys[0], (layers, width, width)) * scale / math.sqrt(width),
        "out": jax.random.normal(keys[1], (layers, width, width)) * scale / math.sqrt(width),
    }
    return params | ({"ema": jnp.full((layers,), 0.5, jnp.float32)} if kind == "moattn" else {})


def construct(rates: jax.Array, corrections: jax.Array, dims: int) -> Params:
    """Weights with which linear attention is gradient descent, or GD++.

    The query is x; of what it reads, "out" scales y by minus the step size (and x by minus gamma),
    so a layer changes y_j to y_j - dW x_j (von Oswald et al. 2023, proposition 1 and section 4).

    Args:
        rates: [L], step sizes on the squared loss sum_i (W x_i - y_i)^2 / 2 N.
        corrections: [L], gamma of GD++; 0 for gradient descent.
        dims: X.
    """
    only_x = jnp.diag(jnp.append(jnp.ones(dims), 0.0))
    scales = jnp.concatenate([jnp.tile(corrections[:, None], (1, dims)), rates[:, None]], 1)
    return {"query": jnp.tile(only_x[None], (len(rates), 1, 1)), "out": -jax.vmap(jnp.diag)(scales)}


# ------------------------------------------------------------------------------ gradient descent


def predict_descent(corrected: bool, params: Params, gates: jax.Array, tasks: Tasks) -> jax.Array:
    """Predictions [B] after L steps of gradient descent from 0, or of GD++.

    A step is W <- W - rate dl/dW with l(W) = sum_i (W x_i - y_i)^2 / 2 N, kept as what is left of
    each y. GD++ improves the inputs' curvature between steps: x <- x - gamma X^T X x / N (von
    Oswald et al. 2023, section 4); like theirs, both at once, so that one step is plain descent.

    Args:
        corrected: GD++.
        params: "rate" [L] and, for GD++, "correction" [L].
        gates: [L], 1 for a step, 0 for none.
        tasks: B of them.
    """
    count = jnp.sum(tasks.seen)
    tokens = as_tokens(tasks)

    def step(carry: Any, inputs: tuple[Params, jax.Array]) -> Any:
        x, y = carry
        at, gate = inputs
        gradient = jnp.einsum("BN,BNX->BX", y[:, :-1], x[:, :-1]) / count
        y = y - gate * at["rate"] * jnp.einsum("BX,BTX->BT", gradient, x)
        if corrected:
            second = jnp.einsum("BNX,BNK->BXK", x[:, :-1], x[:, :-1]) / count
            x = x - gate * at["correction"] * jnp.einsum("BXK,BTK->BTX", second, x)
        return (x, y), None

    (_, y), _ = jax.lax.scan(step, (tokens[..., :-1], tokens[..., -1]), (params, gates))
    return -y[:, -1]


def init_descent(corrected: bool, key: jax.Array, gates: jax.Array) -> Params:
    """Where tuning starts: different step sizes, for descent does not care for their order."""
    rate = 0.5 + 2.5 * (jnp.arange(gates.shape[0]) + 0.5) / jnp.sum(gates)
    return {"rate": rate} | ({"correction": jnp.zeros_like(gates)} if corrected else {})


# ----------------------------------------------------------------------------- one step an example


class Start(NamedTuple):
    """Where the numbers of an online optimizer start; eta 0 and alpha 1 stay.

    Attributes:
        eta, alpha: [].
    """

    eta: jax.Array
    alpha: jax.Array


def predict_online(loss: str, params: Params, start: Start, tasks: Tasks) -> jax.Array:
    """Predictions [B] of one causal layer of the linear family, read at the query.

    Keys keep their length, as the optimizers' inputs do. Only one number is read, so only that row
    of S is kept: the output projection is part of the values (the rows of S do not see each other
    under either loss).

    Args:
        loss: "dot" or "square".
        params: "key", "query" [D, D], "value" [D], "eta", "alpha", "beta" [].
        start: which of them the kind has.
        tasks: B of them.
    """
    tokens = as_tokens(tasks)
    k = tokens[:, :-1] @ params["key"]
    v = tokens[:, :-1] @ params["value"]
    q = tokens[:, -1] @ params["query"]
    eta, alpha = _numbers(params, start)
    state = context_state(loss, k, v[..., None], eta, alpha, params["beta"])
    return attention.dot("BVK,BK->BV", state, q, q.dtype)[:, 0]


def optax_predict(loss: str, params: Params, start: Start, tasks: Tasks) -> jax.Array:
    """Predictions [B] of a linear map that optax trains on the examples, one a step, from 0.

    Args:
        loss: "dot", -(w . x) y, or "square", (w . x - y)^2 / 2.
        params: "eta", "alpha", "beta" [].
        start: which of them the optimizer has.
        tasks: B of them.
    """
    eta, alpha = _numbers(params, start)
    # decayed weights after the step's size: S keeps alpha of itself, as in attention.py
    optimizer = optax.chain(
        optax.sgd(params["beta"], momentum=eta), optax.add_decayed_weights(alpha - 1)
    )

    def example_loss(w: jax.Array, x: jax.Array, y: jax.Array) -> jax.Array:
        predicted = w @ x
        return -predicted * y if loss == "dot" else (predicted - y) ** 2 / 2

    def step(carry: Any, example: tuple[jax.Array, jax.Array]) -> Any:
        w, state = carry
        updates, state = optimizer.update(jax.grad(example_loss)(w, *example), state, w)
        return (optax.apply_updates(w, updates), state), None

    def row(x: jax.Array, y: jax.Array, query: jax.Array) -> jax.Array:
        w = jnp.zeros_like(query)
        (w, _), _ = jax.lax.scan(step, (w, optimizer.init(w)), (x, y))
        return w @ query

    return jax.vmap(row)(tasks.x, tasks.y, tasks.query)


def _numbers(params: Params, start: Start) -> tuple[jax.Array, jax.Array]:
    eta = jnp.where(start.eta > 0, params["eta"], 0.0)
    return eta, jnp.where(start.alpha < 1, params["alpha"], 1.0)


def init_optax(key: jax.Array, start: Start) -> Params:
    """Where tuning of an online optimizer starts."""
    return {"eta": start.eta, "alpha": start.alpha, "beta": jnp.float32(0.1)}


def init_online(dims: int, key: jax.Array, start: Start) -> Params:
    """One random projection for keys and query, values of 0, and the numbers of `init_optax`.

    With projections of their own, some seeds never leave the plateau around 0.
    """
    width = dims + 1
    projection = jax.random.normal(key, (width, width)) / math.sqrt(width)
    projections = {"key": projection, "query": projection, "value": jnp.zeros(width)}
    return projections | init_optax(key, start)


def construct_online(dims: int, eta: jax.Array, alpha: jax.Array, beta: jax.Array) -> Params:
    """Weights with which a kind is its optimizer: keys and query x, values y."""
    only_x = jnp.diag(jnp.append(jnp.ones(dims), 0.0))
    value = jnp.append(jnp.zeros(dims), 1.0)
    numbers = {"eta": eta, "alpha": alpha, "beta": beta}
    return {"key": only_x, "query": only_x, "value": value} | numbers


def starts(names: Sequence[str]) -> Start:
    """The numbers of some kinds, stacked."""
    kinds = [attention.KINDS[n] for n in names]
    eta, alpha = (jnp.array([getattr(k, x) for k in kinds], jnp.float32) for x in Start._fields)
    return Start(eta, alpha)
