"""EMA(V), the term that momentum attention adds (Dai et al. 2023, section 5), in three forms.

Shape glossary: as in icljax/attention/recurrence.py.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from icljax.attention.recurrence import _pad, accumulator, dot, powers

EMA_CHUNK = 32


def ema_recurrent(
    v: Float[Array, "B S G V"],
    eta: Float[Array, "G"],
    valid: Bool[Array, "B S"] | None,
    before: Float[Array, "G V"],
) -> tuple[Float[Array, "B S G V"], Float[Array, "B G V"]]:
    """EMA(V) by an associative scan, with any mask. Arguments and results as in `ema_chunked`."""
    valid = jnp.ones(v.shape[:2], bool) if valid is None else valid
    keep = valid[:, :, None, None]
    factor = jnp.where(keep, eta[None, None, :, None], 1.0) * jnp.ones_like(v)
    value = jnp.where(keep, v, 0.0)

    def join(a: Any, b: Any) -> Any:
        return a[0] * b[0], b[0] * a[1] + b[1]

    factor, total = jax.lax.associative_scan(join, (factor, value), axis=1)
    total = total + factor * before[None, None]
    first = jnp.broadcast_to(before[None, None], total[:, :1].shape)
    earlier = jnp.concatenate([first, total[:, :-1]], 1)
    return eta[None, None, :, None] * earlier, total[:, -1]


def ema_parallel(
    v: Float[Array, "B S G V"],
    eta: Float[Array, "G"],
    steps: Int[Array, "B S"],
    visible: Bool[Array, "B S S"],
    before: Float[Array, "G V"],
) -> Float[Array, "B S G V"]:
    """EMA(V) of tokens with any visibility (as in `parallel`)."""
    size = v.shape[1]
    table = jax.vmap(lambda e: powers(e, size))(eta)
    apart = jnp.clip(steps[:, :, None] - steps[:, None, :], 0, size)
    earlier = visible & ~jnp.eye(size, dtype=bool)[None]
    weights = jnp.where(earlier[None], table[:, apart], 0)
    first = table[:, jnp.clip(steps, 0, size)]
    out = dot("GBST,BTGV->BSGV", weights, v, v.dtype)
    return out + dot("GBS,GV->BSGV", first, before, accumulator(v.dtype))


def ema_chunked(
    v: Float[Array, "B S G V"],
    eta: Float[Array, "G"],
    before: Float[Array, "G V"],
    chunk: int = EMA_CHUNK,
) -> tuple[Float[Array, "B S G V"], Float[Array, "B G V"]]:
    """EMA(V)_t = sum_{i<t} eta^(t-i) v_i (Dai et al. 2023, section 5.1), by matrix products.

    Args:
        v: values.
        eta: in (0, 1).
        before: the state of earlier tokens (0 for none).
        chunk: C.

    Returns:
        (EMA(V), the state after the last token: sum_{i<=S} eta^(S-i) v_i).
    """
    batch, length, groups, width = v.shape
    chunk = min(chunk, length)
    pad = -length % chunk
    dtype = accumulator(v.dtype)
    parts = _pad(v, pad).reshape(batch, -1, chunk, groups, width)
    count = parts.shape[1]
    table = jax.vmap(lambda e: powers(e, chunk))(eta.astype(dtype))
    index = jnp.arange(chunk)
    apart = index[:, None] - index[None, :]
    inside = jnp.where(apart > 0, table[:, jnp.maximum(apart, 0)], 0)
    out = dot("GST,BNTGV->BNSGV", inside, parts, v.dtype)
    ends = dot("GT,BNTGV->NBGV", table[:, chunk - 1 - index], parts, v.dtype)

    def step(carry: jax.Array, end: jax.Array) -> tuple[jax.Array, jax.Array]:
        return table[None, :, -1:] * carry + end, carry

    start = jnp.broadcast_to(before.astype(dtype)[None], (batch, groups, width))
    total, starts = jax.lax.scan(step, start, ends)
    out = out + dot("GS,NBGV->BNSGV", table[:, 1:], starts, v.dtype)
    if pad:  # the padding's steps are not taken
        short = chunk - pad
        left = jnp.where(index < short, table[:, jnp.maximum(short - 1 - index, 0)], 0)
        total = table[None, :, short, None] * starts[-1] + dot(
            "GT,BTGV->BGV", left, parts[:, count - 1], v.dtype
        )
    return out.reshape(batch, -1, groups, width)[:, :length], total
