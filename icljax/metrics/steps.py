"""How far finetuning goes from where it started. Shapes: icljax/metrics/__init__.py."""

import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Real

from icljax.metrics.arrays import distributions, floats, same_shape


def relative_change(
    start: Real[ArrayLike, "*batch D"], end: Real[ArrayLike, "..."]
) -> Float[Array, "*batch"]:
    """||end - start|| / ||start|| over the last axis; NaN where `start` is zero.

    Args:
        start: [..., D], for example the zero-shot attention output.
        end: [..., D], the same after finetuning.

    Raises:
        UserError: for different shapes.
    """
    start, end = floats(start, end)
    same_shape(start=start, end=end)
    size = jnp.linalg.norm(start, axis=-1)
    change = jnp.linalg.norm(end - start, axis=-1)
    return jnp.where(size > 0, change / jnp.where(size > 0, size, 1), jnp.nan)


def kl_divergence(
    logp: Real[ArrayLike, "*batch C"], logq: Real[ArrayLike, "..."]
) -> Float[Array, "*batch"]:
    """KL(P || Q) in nats of two distributions over candidates, given by their scores.

    Scores need no normalisation; a candidate that an example does not have scores -inf in both.

    Args:
        logp: [..., C], for example log-probabilities of the answers after finetuning.
        logq: [..., C], the same zero-shot.

    Raises:
        UserError: for different shapes.
    """
    there, logp, logq = distributions(logp, logq)
    terms = jnp.exp(logp) * (jnp.where(there, logp, 0) - jnp.where(there, logq, 0))
    return jnp.sum(jnp.where(there, terms, 0), -1)
