"""Attention as an optimizer: each kind of attention, and the optimizer step that it is.

The linear family is one recurrence on a matrix S, a linear map from keys to values that is
trained on the prompt as it is read, one token a step:

    M_t = eta M_{t-1} - beta_t dl/dS(S_{t-1}; k_t, v_t),   S_t = alpha S_{t-1} + M_t,   out S_t q_t

with the in-context loss l = -<S k, v> ("dot") or l = |S k - v|^2 / 2 ("square"). Momentum
attention (Dai et al. 2023, section 5) adds EMA(V)_t = sum_{i<t} eta^(t-i) v_i to any kind.
docs/attention.md holds the table "attention kind = optimizer".

Every kind has three forms that agree: `recurrent` (one token, constant state), `parallel`
(quadratic; any visibility that is a tree, such as packed queries) and `chunked` (matrix products,
linear in the length). A chunk is the parallel form on C tokens, so both share `write` and `read`.

Shape glossary: B rows, S tokens of a row, C tokens of a chunk, N chunks, G key/value heads,
J query heads of a group, K key width, V value width. Products take the inputs' dtype and
accumulate in float32 (float64 for float64); states are in that accumulator's dtype.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from icljax.attention.kinds import Kind, has_momentum

CHUNK = 64


class Rates(NamedTuple):
    """The optimizer's numbers of one layer.

    Attributes:
        eta, alpha: [G].
        beta: [B, S, G].
        ema: [G].
    """

    eta: jax.Array
    alpha: jax.Array
    beta: jax.Array
    ema: jax.Array


class Tokens(NamedTuple):
    """What the tokens of B rows bring.

    Attributes:
        q: [B, S, G, J, K], queries.
        k: [B, S, G, K], keys.
        v: [B, S, G, V], values.
    """

    q: jax.Array
    k: jax.Array
    v: jax.Array


class State(NamedTuple):
    """S and M [V, K] of one head; `m` is None where the kind has no momentum: M's work is saved."""

    s: jax.Array
    m: jax.Array | None


class Memory(NamedTuple):
    """What tokens leave behind in one layer, of constant size.

    Attributes:
        s: [..., G, V, K], the map from keys to values; for linear attention it is dW_ICL.
        m: [..., G, V, K], its momentum.
        ema: [..., G, V], sum_{i<=t} eta^(t-i) v_i.
    """

    s: jax.Array
    m: jax.Array
    ema: jax.Array


class Decay(NamedTuple):
    """What is left of earlier writes u_i k_i^T, for one head and C tokens.

    Attributes:
        now: [C, C], weight of write i in S_t; 0 where t does not see i.
        before: [C, C], the same in S_{t-1}, strictly earlier writes only.
        now_s, now_m: [C], weights of the first S and M in S_t.
        before_s, before_m: [C], the same in S_{t-1}.
        end, end_momentum: [C], weights of each write in the last S and M.
        last: [3], weights in the last S of the first S, of the first M; in the last M of that.
    """

    now: jax.Array
    before: jax.Array
    now_s: jax.Array
    now_m: jax.Array
    before_s: jax.Array
    before_m: jax.Array
    end: jax.Array
    end_momentum: jax.Array
    last: jax.Array


def accumulator(dtype: Any) -> Any:
    """The dtype of sums and states for inputs of `dtype`: float32, or float64 for float64."""
    return jnp.promote_types(dtype, jnp.float32)


def dot(
    spec: str, a: Float[Array, "..."], b: Float[Array, "..."], dtype: Any
) -> Float[Array, "..."]:
    """Einsum with operands in `dtype`, summed in its accumulator; float32 means float32."""
    exact = None if dtype == jnp.bfloat16 else jax.lax.Precision.HIGHEST
    kwargs = {"precision": exact, "preferred_element_type": accumulator(dtype)}
    a, b = a.astype(dtype), b.astype(dtype)
    if dtype == jnp.bfloat16 and jax.default_backend() == "cpu":
        # XLA:CPU has no such product at some sizes; rounded operands in float32 are the same sum.
        a, b = a.astype(jnp.float32), b.astype(jnp.float32)
    return jnp.einsum(spec, a, b, **kwargs)


def powers(x: Float[Array, ""], count: int) -> Float[Array, "{count}+1"]:
    """x^0 .. x^count of a scalar; differentiable at 0 too."""
    return jnp.cumprod(jnp.concatenate([jnp.ones((1,), x.dtype), jnp.full((count,), x)]))


def decay(
    eta: Float[Array, ""],
    alpha: Float[Array, ""],
    steps: Int[Array, "C"],
    visible: Bool[Array, "C C"],
) -> Decay:
    """Weights of the recurrence, unrolled: S_t = sum_i w(n_t - n_i) u_i k_i^T + ...

    w(n) = sum_{j<=n} alpha^(n-j) eta^j: what n further steps leave of a write in S.

    Args:
        eta, alpha: of one head.
        steps: number n_t of steps up to and including each token's, from 1.
        visible: True where a token (first axis) sees another, and itself.
    """
    size = steps.shape[0]
    a, e = powers(alpha, size), powers(eta, size)
    index = jnp.arange(size + 1)
    lag = index[:, None] - index[None, :]
    w = jnp.sum(jnp.where(lag >= 0, a[jnp.maximum(lag, 0)], 0) * e[None, :], -1)
    from_m = jnp.concatenate([jnp.zeros((1,), w.dtype), eta * w[:-1]])
    apart = jnp.clip(steps[:, None] - steps[None, :], 0, size)
    itself = jnp.eye(size, dtype=bool)
    n, last = jnp.clip(steps, 1, size), jnp.clip(jnp.max(steps), 0, size)
    left = jnp.clip(last - steps, 0, size)
    return Decay(
        now=jnp.where(visible, w[apart], 0),
        before=jnp.where(visible & ~itself, w[jnp.maximum(apart - 1, 0)], 0),
        now_s=a[n],
        now_m=from_m[n],
        before_s=a[n - 1],
        before_m=from_m[n - 1],
        end=w[left],
        end_momentum=e[left],
        last=jnp.stack([a[last], from_m[last], e[last]]),
    )


def unit_lower_inverse(a: Float[Array, "C C"]) -> Float[Array, "C C"]:
    """Inverse of I + a for strictly lower triangular a, C a power of 2.

    Blocks of 1, 2, 4, ... are inverted together by matrix products, which is as stable as
    substitution; a Neumann series is not (its terms grow like binomials for equal keys).
    """
    size = a.shape[0]
    row = jax.lax.broadcasted_iota(jnp.int32, (size, size), 0)
    column = jax.lax.broadcasted_iota(jnp.int32, (size, size), 1)
    inverse = jnp.where(row == column, 1.0, 0.0).astype(a.dtype)
    block = 1
    while block < size:
        # The lower left quarter of each diagonal block of twice the size.
        quarter = (row // (2 * block) == column // (2 * block)) & (row // block != column // block)
        off = jnp.where(quarter, a, 0.0)
        if block == 1:
            inverse = inverse - off
        else:
            half = dot("TU,UW->TW", off, inverse, a.dtype)
            inverse = inverse - dot("TU,UW->TW", inverse, half, a.dtype)
        block *= 2
    return inverse


def write(
    state: State,
    k: Float[Array, "C K"],
    v: Float[Array, "C V"],
    beta: Float[Array, "C"],
    weights: Decay,
    loss: str,
) -> tuple[Float[Array, "C V"], State]:
    """The steps of C tokens of one head: (writes u, the state after the last token).

    Args:
        state: before the first token.
        k, v: keys and values.
        beta: step sizes; 0 for a token that takes no step.
        weights: of these tokens.
        loss: "dot" or "square".
    """
    (s, m), dtype = state, k.dtype
    beta = beta.astype(accumulator(dtype))[:, None]
    error = v.astype(beta.dtype)
    if loss == "square":
        error = error - weights.before_s[:, None] * dot("CK,VK->CV", k, s, dtype)
        if m is not None:
            error = error - weights.before_m[:, None] * dot("CK,VK->CV", k, m, dtype)
        a = beta * weights.before * dot("CK,TK->CT", k, k, dtype)
        u = dot("CT,TV->CV", unit_lower_inverse(a), beta * error, a.dtype)
    else:
        u = beta * error
    last = weights.last
    new_s = last[0] * s + dot("CV,CK->VK", weights.end[:, None] * u, k, dtype)
    if m is None:
        return u, State(new_s, None)
    new_s = new_s + last[1] * m
    new_m = last[2] * m + dot("CV,CK->VK", weights.end_momentum[:, None] * u, k, dtype)
    return u, State(new_s, new_m)


def read(
    q: Float[Array, "C K"],
    state: State,
    k: Float[Array, "C K"],
    u: Float[Array, "C V"],
    weights: Decay,
) -> Float[Array, "C V"]:
    """S_t q_t of C tokens of one head, from the state before the first and the writes u since."""
    dtype = q.dtype
    out = weights.now_s[:, None] * dot("CK,VK->CV", q, state.s, dtype)
    if state.m is not None:
        out = out + weights.now_m[:, None] * dot("CK,VK->CV", q, state.m, dtype)
    scores = weights.now * dot("CK,TK->CT", q, k, dtype)
    return out + dot("CT,TV->CV", scores, u, dtype)


def _heads(loss: str) -> Any:
    """The steps of C tokens of G heads: their states after them, out [C, G, J, V].

    Its arguments: states, q [C, G, J, K], k [C, G, K], v [C, G, V], beta [C, G], weights.
    """

    def head(state: State, q: Any, k: Any, v: Any, beta: Any, weights: Decay) -> Any:
        u, after = write(state, k, v, beta, weights, loss)
        return after, jax.vmap(lambda q: read(q, state, k, u, weights), 1, 1)(q)

    return jax.vmap(head, (0, 1, 1, 1, 1, 0), (0, 1))


def recurrent(
    kind: Kind,
    q: Float[Array, "B S G J K"],
    k: Float[Array, "B S G K"],
    v: Float[Array, "B S G V"],
    rates: Rates,
    valid: Bool[Array, "B S"] | None,
    memory: Memory,
) -> tuple[Float[Array, "B S G J V"], Memory]:
    """The recurrence as it is written, token by token. Arguments as in `chunked`."""

    def head(s: Any, m: Any, q: Any, k: Any, v: Any, rates: Rates) -> Any:
        def in_context_loss(s: jax.Array) -> jax.Array:
            predicted = dot("VK,K->V", s, k, s.dtype)
            if kind.loss == "dot":
                return -jnp.sum(predicted * v)
            return jnp.sum((predicted - v) ** 2) / 2

        m = rates.eta * m - rates.beta * jax.grad(in_context_loss)(s)
        s = rates.alpha * s + m
        return s, m, dot("JK,VK->JV", q, s, s.dtype)

    def row(s: Any, m: Any, q: Any, k: Any, v: Any, beta: Any) -> Any:
        return jax.vmap(head)(s, m, q, k, v, rates._replace(beta=beta))

    rows: Any = jax.vmap(row)

    def step(carry: Any, inputs: Any) -> Any:
        q, k, v, beta, valid = inputs
        s, m, out = rows(*carry, q, k, v, beta)
        keep = valid[:, None, None, None]
        new_m = jnp.where(keep, m, carry[1]) if has_momentum(kind) else carry[1]
        return (jnp.where(keep, s, carry[0]), new_m), out

    valid = jnp.ones(k.shape[:2], bool) if valid is None else valid
    dtype = accumulator(q.dtype)
    s, m = (jnp.broadcast_to(x.astype(dtype), (k.shape[0], *x.shape)) for x in memory[:2])
    inputs = (*(x.astype(dtype).swapaxes(0, 1) for x in (q, k, v, rates.beta)), valid.T)
    (s, m), out = jax.lax.scan(step, (s, m), inputs)
    return out.swapaxes(0, 1), Memory(s, m, memory.ema)


def parallel(
    kind: Kind,
    q: Float[Array, "B S G J K"],
    k: Float[Array, "B S G K"],
    v: Float[Array, "B S G V"],
    rates: Rates,
    steps: Int[Array, "B S"],
    visible: Bool[Array, "B S S"],
    memory: Memory,
) -> Float[Array, "B S G J V"]:
    """The quadratic form, for any visibility in which a token's past is one path.

    Args:
        kind, q, k, v, rates: as in `chunked`.
        steps: number of steps since `memory` on each token's path, its own included.
        visible: as in `decay`; only earlier columns and oneself.
        memory: of one layer, without a batch axis.

    Returns:
        The outputs, in the accumulator's dtype.
    """
    size = k.shape[1]
    pad = (1 << (size - 1).bit_length()) - size if kind.loss == "square" else 0
    start = State(memory.s, memory.m if has_momentum(kind) else None)

    def row(q: Any, k: Any, v: Any, beta: Any, steps: Any, visible: Any) -> jax.Array:
        weights = jax.vmap(lambda e, a: decay(e, a, steps, visible))(rates.eta, rates.alpha)
        return _heads(kind.loss)(start, q, k, v, beta, weights)[1]

    q, k, v, beta, steps = (_pad(x, pad) for x in (q, k, v, rates.beta, steps))
    visible = jnp.pad(visible, ((0, 0), (0, pad), (0, pad)))
    return jax.vmap(row)(q, k, v, beta, steps, visible)[:, :size]


def chunked(
    kind: Kind,
    q: Float[Array, "B S G J K"],
    k: Float[Array, "B S G K"],
    v: Float[Array, "B S G V"],
    rates: Rates,
    valid: Bool[Array, "B S"] | None,
    memory: Memory,
    chunk: int = CHUNK,
) -> tuple[Float[Array, "B S G J V"], Memory]:
    """The causal form in chunks of C tokens: time and memory linear in the length.

    Args:
        kind: of the linear family.
        q, k, v: queries, keys and values; see `Rates` for the shapes of the rates.
        valid: False for tokens that take no step, whose outputs mean nothing; None: all do.
        memory: of one layer, without a batch axis.
        chunk: C, a power of 2.

    Returns:
        (outputs, Memory with a leading B axis), in the accumulator's dtype.
    """
    length = k.shape[1]
    chunk = min(chunk, 1 << (length - 1).bit_length())
    pad = -length % chunk
    if pad and valid is None:
        valid = jnp.ones(k.shape[:2], bool)
    causal = jnp.tril(jnp.ones((chunk, chunk), bool))
    steady = jax.vmap(lambda e, a: decay(e, a, jnp.arange(1, chunk + 1), causal))

    # Only the carried S and M and the inputs are kept for the backward pass.
    @functools.partial(jax.checkpoint, prevent_cse=False)
    def step(state: State, inputs: Any) -> Any:
        *arrays, valid = inputs
        if valid is None:
            weights, axis = steady(rates.eta, rates.alpha), None
        else:
            weights, axis = jax.vmap(masked)(valid), 0
        rows: Any = jax.vmap(_heads(kind.loss), (0, 0, 0, 0, 0, axis))
        return rows(state, *arrays, weights)

    def masked(valid: jax.Array) -> Decay:
        steps = jnp.cumsum(valid)
        return jax.vmap(lambda e, a: decay(e, a, steps, causal))(rates.eta, rates.alpha)

    beta = rates.beta if valid is None else jnp.where(valid[..., None], rates.beta, 0)
    arrays = tuple(_split(_pad(x, pad), chunk) for x in (q, k, v, beta))
    masks = None if valid is None else _split(_pad(valid, pad), chunk)
    dtype = accumulator(q.dtype)
    s, m = (jnp.broadcast_to(x.astype(dtype), (k.shape[0], *x.shape)) for x in memory[:2])
    start = State(s, m if has_momentum(kind) else None)
    end, out = jax.lax.scan(step, start, (*arrays, masks))
    out = out.swapaxes(0, 1).reshape(k.shape[0], length + pad, *out.shape[3:])
    return out[:, :length], Memory(end.s, m if end.m is None else end.m, memory.ema)


def _pad(x: jax.Array, pad: int) -> jax.Array:
    """`x` [B, S, ...] with `pad` zeros (False) at the end of S."""
    return jnp.pad(x, ((0, 0), (0, pad)) + ((0, 0),) * (x.ndim - 2)) if pad else x


def _split(x: jax.Array, chunk: int) -> jax.Array:
    """[B, S, ...] -> [N, B, C, ...]."""
    return x.reshape(x.shape[0], -1, chunk, *x.shape[2:]).swapaxes(0, 1)
