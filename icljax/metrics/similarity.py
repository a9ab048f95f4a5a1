"""Similarities of updates and attention maps, and the baseline of random ones."""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Integer, PRNGKeyArray, Real

from icljax.errors import UserError
from icljax.metrics.arrays import broadcast, floats, same_shape

_ROUNDING = 1e-5  # a change of attention logits below this share of their norm is none


def unit(x: jax.Array) -> jax.Array:
    """L2-normalises the last axis; a zero vector stays zero, with a finite gradient."""
    # The length does not depend on a common factor, so that it needs no gradient of its own;
    # taking it out keeps the squares from overflowing or vanishing.
    largest = jax.lax.stop_gradient(jnp.max(jnp.abs(x), axis=-1, keepdims=True, initial=0.0))
    x = x / jnp.where(largest > 0, largest, 1)
    square = jnp.sum(x * x, axis=-1, keepdims=True)
    return x / jnp.sqrt(jnp.where(square > 0, square, 1))


def _cosine(a: jax.Array, b: jax.Array) -> jax.Array:
    return jnp.sum(unit(a) * unit(b), axis=-1)


def sim_aou(
    zsl: Real[ArrayLike, "*batch D"],
    ft: Real[ArrayLike, "..."],
    icl: Real[ArrayLike, "..."],
    normalize: bool = True,
) -> Float[Array, "*batch"]:
    """Similarity of attention output updates (the paper's SimAOU).

    The cosine between what ICL and what finetuning add to the zero-shot attention output.

    Args:
      zsl: [..., D] attention output, zero-shot.
      ft: [..., D] the same after finetuning.
      icl: [..., D] the same with demonstrations.
      normalize: L2-normalise each output before subtracting, as the paper does; False: the
        revisit's correction (normalising first inflates the score).

    Returns:
      [...] float32 or float64, in -1..1; 0 where an update is the zero vector.

    Raises:
      UserError: the shapes differ.
    """
    zsl, ft, icl = floats(zsl, ft, icl)
    same_shape(zsl=zsl, ft=ft, icl=icl)
    if normalize:
        zsl, ft, icl = unit(zsl), unit(ft), unit(icl)
    return _cosine(icl - zsl, ft - zsl)


def _query_mask(mask: ArrayLike, scores: jax.Array) -> jax.Array:
    """[..., S] to [..., H, S]; the rank must match, or [N, S] could be read as [L, S]."""
    mask = jnp.asarray(mask, dtype=bool)
    if mask.ndim != scores.ndim - 1:
        raise UserError(
            f"mask has shape {mask.shape} and the scores [..., H, S] have {scores.shape}; expected "
            "a mask [..., S] with the scores' leading axes: insert axes of size 1 where it repeats"
        )
    return broadcast("mask with a head axis", mask[..., None, :], scores.shape)


def sim_am(
    icl: Real[ArrayLike, "*batch H S"],
    other: Real[ArrayLike, "..."],
    mask: Bool[ArrayLike, "..."],
) -> Float[Array, "*batch"]:
    """Similarity of attention maps (the paper's SimAM).

    The cosine between two settings' attention logits to the query tokens, per head, then the mean
    over heads. `other` is FT, or ZSL for the figure "before finetuning".

    Args:
      icl: [..., H, S] attention logits before softmax.
      other: [..., H, S] the same in the setting compared with.
      mask: [..., S] bool, True at real tokens; leading axes may be 1.

    Returns:
      [...] float32 or float64, in -1..1; a head whose logits are all zero or masked counts as 0.

    Raises:
      UserError: the shapes differ, or the mask does not fit.
    """
    icl, other = floats(icl, other)
    same_shape(icl=icl, other=other)
    keep = _query_mask(mask, icl)
    return jnp.mean(_cosine(jnp.where(keep, icl, 0), jnp.where(keep, other, 0)), axis=-1)


def sim_am_delta(
    zsl: Real[ArrayLike, "*batch H S"],
    ft: Real[ArrayLike, "..."],
    icl: Real[ArrayLike, "..."],
    mask: Bool[ArrayLike, "..."],
) -> Float[Array, "*batch"]:
    """SimAM of the changes, cos(ICL - ZSL, FT - ZSL) (the revisit's SimAM-delta).

    SimAM itself is dominated by the zero-shot map that both settings share.

    Args:
      zsl: [..., H, S] attention logits before softmax, zero-shot.
      ft: [..., H, S] the same after finetuning.
      icl: [..., H, S] the same with demonstrations.
      mask: [..., S] bool, True at real tokens; leading axes may be 1.

    Returns:
      [...] float32 or float64, in -1..1; a head that a setting leaves as it was, up to rounding
      (1e-5 of its logits' norm), counts as 0.

    Raises:
      UserError: the shapes differ, or the mask does not fit.
    """
    zsl, ft, icl = floats(zsl, ft, icl)
    same_shape(zsl=zsl, ft=ft, icl=icl)
    keep = _query_mask(mask, zsl)
    return sim_am(_change(icl, zsl, keep), _change(ft, zsl, keep), mask)


def map_change(
    after: Real[ArrayLike, "*batch H S"],
    before: Real[ArrayLike, "..."],
    mask: Bool[ArrayLike, "..."],
) -> Float[Array, "*batch H S"]:
    """Change of an attention map, but 0 where a head's change is no more than rounding.

    In the first layer a context changes nothing, and the cosine of two rounding errors is noise.

    Args:
      after, before: [..., H, S] attention logits before softmax.
      mask: [..., S] bool, True at real tokens; leading axes may be 1.

    Returns:
      [..., H, S] float32 or float64; a change below 1e-5 of its head's logits' norm is 0.

    Raises:
      UserError: the shapes differ, or the mask does not fit.
    """
    after, before = floats(after, before)
    same_shape(after=after, before=before)
    return _change(after, before, _query_mask(mask, before))


def _change(after: jax.Array, before: jax.Array, keep: jax.Array) -> jax.Array:
    change = after - before
    moved, size = (jnp.sum(jnp.where(keep, x, 0) ** 2, -1, keepdims=True) for x in (change, before))
    return jnp.where(moved > _ROUNDING**2 * size, change, 0)


def finetuning_attention(
    q_train: Real[ArrayLike, "L T E"], q_test: Real[ArrayLike, "..."]
) -> Float[Array, "N L T"]:
    """What finetuning "attends to": query of the test token against those of training.

    The update that finetuning makes is a sum over training tokens, weighted by these products (one
    side of the paper's Kendall), here summed over heads.

    Args:
      q_train: [L, T, E] query vectors of the training tokens, while finetuning.
      q_test: [N, L, E] query vector of the studied token, after finetuning.

    Returns:
      [N, L, T] float32 or float64.

    Raises:
      UserError: layers or widths differ.
    """
    q_train, q_test = floats(q_train, q_test)
    L, _, E = q_train.shape
    if q_test.shape[1:] != (L, E):
        raise UserError(
            f"q_train has shape {q_train.shape} and q_test {q_test.shape}; expected [L, T, E] and "
            "[N, L, E]: record both from one model"
        )
    return jnp.einsum("LTE,NLE->NLT", q_train, q_test, precision="highest")


def example_attention(
    scores: Real[ArrayLike, "*batch T"],
    example_ids: Integer[ArrayLike, "..."],
    num_examples: int,
    mask: Bool[ArrayLike, "..."] | None = None,
) -> Float[Array, "*batch K"]:
    """Attention to whole demonstrations: softmax over tokens, then the sum inside each example.

    From the reference code (not in the paper).

    Args:
      scores: [..., T] attention logits to demonstration tokens.
      example_ids: [T] int, the demonstration of each token, 0..K-1; -1 leaves the token out of the
        softmax.
      num_examples: K.
      mask: [T] or [..., T] bool, True at tokens that take part; None: all.

    Returns:
      [..., K] float32 or float64; sums to 1 (all 0 where no token takes part).

    Raises:
      UserError: `example_ids` is not [T], or `mask` does not broadcast.
    """
    (scores,) = floats(scores)
    ids = jnp.asarray(example_ids)
    if ids.shape != scores.shape[-1:]:
        raise UserError(
            f"example_ids has shape {ids.shape} and scores {scores.shape}; expected one id for "
            "each token, [T]: give the demonstration of each scored token"
        )
    keep = broadcast("example_ids", ids >= 0, scores.shape)
    if mask is not None:
        keep &= broadcast("mask", mask, scores.shape).astype(bool)
    lowest = jnp.where(keep, scores, -jnp.inf)
    largest = jnp.max(lowest, axis=-1, keepdims=True, initial=-jnp.inf)
    largest = jax.lax.stop_gradient(jnp.where(jnp.isfinite(largest), largest, 0))
    # A left-out score is replaced before exp, so that it can bring no inf into the gradient.
    weight = jnp.exp(jnp.where(keep, scores, largest) - largest) * keep
    total = jnp.sum(weight, axis=-1, keepdims=True)
    member = jax.nn.one_hot(ids, num_examples, dtype=scores.dtype)
    return jnp.matmul(weight / jnp.where(total > 0, total, 1), member, precision="highest")


def random_update(
    key: PRNGKeyArray, shape: tuple[int, ...], kind: str = "gaussian"
) -> Float[Array, "..."]:
    """Random values in place of a recorded update or score: the paper's baseline, seeded.

    Args:
      key: a PRNG key.
      shape: of the array replaced.
      kind: "gaussian": zero mean, unit variance; "uniform": U[0, 1), as in the reference code,
        whose mean is not zero, so that two such vectors correlate.

    Returns:
      `shape`, float32.

    Raises:
      UserError: `kind` is neither.
    """
    if kind == "gaussian":
        return jax.random.normal(key, shape, jnp.float32)
    if kind == "uniform":
        return jax.random.uniform(key, shape, jnp.float32)
    raise UserError(f"random baseline {kind!r}; expected 'gaussian' or 'uniform': choose one")
