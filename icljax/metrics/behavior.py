"""Agreement of two settings in what they do to the answers. Shapes: icljax/metrics/__init__.py."""

import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Real, Shaped

from icljax.errors import UserError
from icljax.metrics.accuracy import calibrate
from icljax.metrics.arrays import distributions, floats, same_shape


def movement_correlation(
    zsl: Real[ArrayLike, "*batch N C"],
    ft: Real[ArrayLike, "..."],
    icl: Real[ArrayLike, "..."],
) -> Float[Array, "*batch"]:
    """Whether ICL and FT move the same queries towards the same answers.

    The correlation over queries of how far each label's log-probability moves from zero-shot,
    beside the other labels' and beside the other queries'. With two labels: Pearson's correlation
    of the movement of the label margin, log p(one) - log p(other).

    Args:
      zsl, ft, icl: [..., N, C] log-probability of each label.

    Returns:
      [...] float32 or float64, in -1..1; NaN where a setting moves no query unlike the others.

    Raises:
      UserError: the shapes differ.
    """
    zsl, ft, icl = floats(zsl, ft, icl)
    same_shape(zsl=zsl, ft=ft, icl=icl)
    moved = [calibrate(x - jnp.mean(x, -1, keepdims=True)) for x in (icl - zsl, ft - zsl)]
    size = [jnp.sqrt(jnp.sum(x**2, (-1, -2))) for x in moved]
    inner = jnp.sum(moved[0] * moved[1], (-1, -2))
    defined = (size[0] > 0) & (size[1] > 0)
    return jnp.where(defined, inner / jnp.where(defined, size[0] * size[1], 1), jnp.nan)


def js_divergence(
    logp: Real[ArrayLike, "*batch C"], logq: Real[ArrayLike, "..."]
) -> Float[Array, "*batch"]:
    """Jensen-Shannon divergence in nats of two distributions over candidates (Lin 1991).

    The mean of both's divergence from their mixture: 0 where they are equal, log 2 at most.

    Args:
      logp: [..., C] scores, which need no normalisation; -inf in both: no such candidate.
      logq: [..., C] the other's.

    Raises:
      UserError: the shapes differ.
    """
    there, logp, logq = distributions(logp, logq)
    middle = jnp.logaddexp(logp, logq) - jnp.log(2.0)
    terms = [jnp.exp(x) * (x - middle) for x in (logp, logq)]
    return jnp.sum(jnp.where(there, sum(terms) / 2, 0), -1)


def error_consistency(
    one: Shaped[ArrayLike, "*batch N"], other: Shaped[ArrayLike, "..."]
) -> Float[Array, "*batch"]:
    """Agreement in which queries are right, beyond what both accuracies imply.

    Cohen's kappa of right and wrong (Geirhos, Meding and Wichmann, NeurIPS 2020). 1: the same
    queries; 0: as often as two settings of these accuracies would agree by chance.

    Args:
      one: [..., N] bool, whether a setting is right.
      other: [..., N] bool, the same of another.

    Returns:
      [...] float32; NaN where both are always, or never, right.

    Raises:
      UserError: the shapes differ, or an input is not bool.
    """
    one, other = jnp.asarray(one), jnp.asarray(other)
    same_shape(one=one, other=other)
    if one.dtype != jnp.bool_ or other.dtype != jnp.bool_:
        raise UserError(f"given {one.dtype} and {other.dtype}; expected bool: give pred == label")
    seen = jnp.mean((one == other).astype(jnp.float32), -1)
    a, b = (jnp.mean(x.astype(jnp.float32), -1) for x in (one, other))
    by_chance = a * b + (1 - a) * (1 - b)
    defined = by_chance < 1
    return jnp.where(defined, (seen - by_chance) / jnp.where(defined, 1 - by_chance, 1), jnp.nan)
