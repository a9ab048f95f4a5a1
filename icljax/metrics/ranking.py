"""Rank correlation and recall of attention to demonstration tokens."""

import functools
import math

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Shaped

from icljax.errors import UserError
from icljax.metrics.arrays import broadcast, floats, same_shape

# Kendall's tau compares each item with the items 1, 2, ... places further on, round the end: on an
# odd number T of items, (T - 1) / 2 such shifts meet each unordered pair once. Compared to sorting
# (Knight's method) this is T / 2 passes of plain arithmetic, with pairs of rankings side by side
# in the last axis: on CPU faster up to thousands of items, and it suits an accelerator as it is.
_SHIFTS_PER_STEP = 16  # compared in one fused pass over the items


# (sx + 1024 sy)^2 = sx^2 + 2048 sx sy + 2^20 sy^2 holds three counts in one int32, which stay
# apart over fewer than 256 shifts.
_STEPS_PER_ROUND = 15


_MAX_ITEMS = 65_536  # above it a count of pairs overflows int32


def _sign(a: jax.Array, b: jax.Array) -> jax.Array:
    """The order of a and b: 1, 0 or -1; 0 beside NaN."""
    return jnp.where(a > b, 1, -(a < b).astype(jnp.int32))


def _unpack(packed: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Sums of sx sy, sx^2 and sy^2 out of the sum of (sx + 1024 sy)^2."""
    x_pairs = packed & 2047
    rest = packed >> 11
    y_pairs = (rest + 256) >> 9
    return rest - (y_pairs << 9), x_pairs, y_pairs


def _pair_counts(x: jax.Array, y: jax.Array, rounds: int, steps: int) -> tuple[jax.Array, ...]:
    """For x, y [T, B]: sums over pairs of sx sy, sx^2 and sy^2 (s: the sign of the difference)."""
    items = x.shape[0]
    x_round, y_round = (jnp.concatenate([a, a[: items // 2]]) for a in (x, y))

    def count_round(number: jax.Array, totals: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        def step(i: jax.Array, packed: jax.Array) -> jax.Array:
            first = 1 + (number * steps + i) * _SHIFTS_PER_STEP
            for shift in range(_SHIFTS_PER_STEP):
                other_x = jax.lax.dynamic_slice_in_dim(x_round, first + shift, items)
                other_y = jax.lax.dynamic_slice_in_dim(y_round, first + shift, items)
                both = _sign(x, other_x) + 1024 * _sign(y, other_y)
                packed += both * both
            return packed

        packed = jax.lax.fori_loop(0, steps, step, jnp.zeros(x.shape, jnp.int32))
        counts = (jnp.sum(c, axis=0, dtype=jnp.int32) for c in _unpack(packed))
        return tuple(total + count for total, count in zip(totals, counts, strict=True))

    zero = jnp.zeros(x.shape[1:], jnp.int32)
    return jax.lax.fori_loop(0, rounds, count_round, (zero, zero, zero))


def _rounds_and_steps(items: int) -> tuple[int, int]:
    """Splits the shifts that `items` need evenly into rounds of at most _STEPS_PER_ROUND steps."""
    steps = max(1, math.ceil(items // 2 / _SHIFTS_PER_STEP))
    rounds = math.ceil(steps / _STEPS_PER_ROUND)
    return rounds, math.ceil(steps / rounds)


@functools.partial(jax.jit, static_argnames="chunk")
def _kendall_rows(x: jax.Array, y: jax.Array, chunk: int) -> jax.Array:
    """Tau-b of the rows of x and y [B, T]; NaN marks what is left out."""
    batch, items = x.shape
    rounds, steps = _rounds_and_steps(items)
    length = 2 * rounds * steps * _SHIFTS_PER_STEP + 1
    chunk = max(1, min(chunk, batch))
    padding = ((0, -batch % chunk), (0, length - items))

    def chunks(a: jax.Array) -> jax.Array:
        return jnp.pad(a, padding, constant_values=jnp.nan).reshape(-1, chunk, length)

    def tau(pair: tuple[jax.Array, jax.Array]) -> jax.Array:
        counts = _pair_counts(pair[0].T, pair[1].T, rounds, steps)
        score, x_pairs, y_pairs = (c.astype(x.dtype) for c in counts)
        return jnp.clip(score / (jnp.sqrt(x_pairs) * jnp.sqrt(y_pairs)), -1, 1)

    return jax.lax.map(tau, (chunks(x), chunks(y))).reshape(-1)[:batch]


def kendall_tau(
    x: Shaped[ArrayLike, "*batch T"],
    y: Shaped[ArrayLike, "..."],
    mask: Bool[ArrayLike, "..."] | None = None,
    chunk: int = 128,
) -> Float[Array, "*batch"]:
    """Kendall's rank correlation, tau-b (the paper's Kendall; Kendall, 1945, for the ties).

    Equal to the paper's formula where there are no ties, and to `scipy.stats.kendalltau`.
    Time grows with T squared, memory with T.

    Args:
      x: [..., T] scores; their order is exact in float32 (whole numbers: up to 2**24).
      y: [..., T] scores.
      mask: [T] or [..., T] bool, True at items that take part; None: all.
      chunk: rankings compared side by side; bounds the memory: about 30 * chunk * T bytes,
        beside a copy of x and of y.

    Returns:
      [...] float32 or float64, in -1..1; NaN where it is undefined: fewer than two items, a
      ranking with all items tied, or a NaN among the items.

    Raises:
      UserError: the shapes differ, `mask` does not broadcast, or T is above 65,536.
    """
    x, y = floats(x, y)
    same_shape(x=x, y=y)
    *lead, items = x.shape
    if items > _MAX_ITEMS:
        raise UserError(f"{items} items to rank; expected at most {_MAX_ITEMS}: compare fewer")
    keep = broadcast("mask", True if mask is None else mask, x.shape).astype(bool)
    rows = math.prod(lead), items
    left_out = jnp.asarray(jnp.nan, x.dtype)
    marked = (jnp.where(keep, a, left_out).reshape(rows) for a in (x, y))
    undefined = jnp.any(keep & (jnp.isnan(x) | jnp.isnan(y)), axis=-1)
    return jnp.where(undefined, left_out, _kendall_rows(*marked, chunk).reshape(lead))


def topk_recall(
    x: Shaped[ArrayLike, "*batch T"],
    y: Shaped[ArrayLike, "..."],
    k: int,
    mask: Bool[ArrayLike, "..."] | None = None,
) -> Float[Array, "*batch"]:
    """Share of x's k highest items that are among y's k highest (the reference code).

    Where fewer than k items take part, k is their number. Ties go to the earlier item.

    Args:
      x: [..., T] scores.
      y: [..., T] scores.
      k: how many items; the reference code uses 5 examples and 100 tokens.
      mask: [T] or [..., T] bool, True at items that take part; None: all.

    Returns:
      [...] float32, in 0..1; NaN where no item takes part, or a NaN does.

    Raises:
      UserError: the shapes differ, `mask` does not broadcast, or k is below 1.
    """
    x, y = floats(x, y)
    same_shape(x=x, y=y)
    if k < 1:
        raise UserError(f"k is {k}; expected at least 1: say how many of the highest to compare")
    keep = broadcast("mask", True if mask is None else mask, x.shape).astype(bool)
    k = min(k, x.shape[-1])
    top_x, top_y = (jax.lax.top_k(jnp.where(keep, a, -jnp.inf), k)[1] for a in (x, y))
    shared = jnp.any(top_x[..., :, None] == top_y[..., None, :], axis=-1)
    shared &= jnp.take_along_axis(keep, top_x, axis=-1)
    possible = jnp.minimum(k, jnp.sum(keep, axis=-1))
    undefined = jnp.any(keep & (jnp.isnan(x) | jnp.isnan(y)), axis=-1)  # top_k puts NaN first
    share = jnp.sum(shared, axis=-1).astype(jnp.float32) / possible.astype(jnp.float32)
    return jnp.where(undefined, jnp.nan, share)
