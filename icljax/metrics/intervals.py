"""Bootstrap intervals over seeds and examples."""

import functools

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float, PRNGKeyArray, Real, Shaped

from icljax.errors import UserError
from icljax.metrics.arrays import floats, same_shape

# Seeds and examples are crossed: every seed reads the same examples. A resample therefore draws
# seeds, and one set of examples, which every drawn seed reads (Owen, "The pigeonhole bootstrap",
# Annals of Applied Statistics 2007). To draw examples anew within each seed would treat an
# example's R appearances as R examples, and give intervals up to sqrt(R) too narrow.


@functools.partial(jax.jit, static_argnums=(1, 2))
def bootstrap_weights(
    key: PRNGKeyArray, num_examples: int, num_samples: int
) -> Float[Array, "B N"]:
    """How often each example (or each seed) is drawn in each resample (Efron, 1979).

    Use the same weights for all figures that are compared, so that they share their resamples.

    Args:
      key: a PRNG key; one for examples, another for seeds.
      num_examples: N (or R).
      num_samples: B.

    Returns:
      [B, N] float32 whole numbers; each row sums to N.
    """
    shape = num_samples, num_examples
    drawn = jax.random.randint(key, shape, 0, num_examples)
    return jnp.zeros(shape, jnp.float32).at[jnp.arange(num_samples)[:, None], drawn].add(1)


def bootstrap_ratio_interval(
    weights: Real[ArrayLike, "B N"],
    numerator: Shaped[ArrayLike, "..."],
    denominator: Shaped[ArrayLike, "..."],
    level: float = 0.95,
    seed_weights: Real[ArrayLike, "B R"] | None = None,
) -> tuple[Float[Array, "*rest"], Float[Array, "*rest"]]:
    """Percentile bootstrap interval of sum(numerator) / sum(denominator), as in Rec2FTP.

    With `seed_weights`, each resample draws seeds, and examples: the same examples in every seed,
    as all seeds read the same. The interval then speaks of other examples and of other seeds;
    without them, or with one seed, of other examples alone. R seeds are a sample of R: below about
    five, their part of the interval is a rough guess, and too narrow (the bootstrap's variance is
    (R - 1) / R of the seeds'; look at each seed's value as well).

    Args:
      weights: [B, N] from `bootstrap_weights`.
      numerator: [N, ...], with `seed_weights` [R, N, ...]: what each example adds above the line.
      denominator: what it adds below; the same shape.
      level: coverage, between 0 and 1.
      seed_weights: [B, R] from `bootstrap_weights` with another key; None: there are no seeds.

    Returns:
      (low, high), each [...] float32 or float64. Resamples whose denominator is 0 are left out;
      NaN where that is all of them.

    Raises:
      UserError: the shapes do not fit, or `level` is not between 0 and 1.
    """
    if not 0 < level < 1:
        raise UserError(f"level is {level}; expected a share between 0 and 1: 0.95, say")
    weights, numerator, denominator = floats(weights, numerator, denominator)
    same_shape(numerator=numerator, denominator=denominator)
    drawn = [weights] if seed_weights is None else [jnp.asarray(seed_weights), weights]
    if tuple(w.shape[1] for w in drawn) != numerator.shape[: len(drawn)]:
        given = " and ".join(str(w.shape) for w in drawn)
        raise UserError(
            f"weights have shape {given} and the values {numerator.shape}; expected [B, N] and "
            "[N, ...], or with seeds [B, R], [B, N] and [R, N, ...]: draw the weights for as many "
            "seeds and examples as there are values"
        )
    of_seeds = drawn[0]
    if seed_weights is None:
        numerator, denominator = numerator[None], denominator[None]
        of_seeds = jnp.ones((weights.shape[0], 1), weights.dtype)
    above, below = (_resampled_sum(of_seeds, weights, a) for a in (numerator, denominator))
    tail = (1 - level) / 2
    low, high = jnp.nanquantile(above / below, jnp.array([tail, 1 - tail]), axis=0)
    return low, high


def _resampled_sum(seed_weights: jax.Array, weights: jax.Array, values: jax.Array) -> jax.Array:
    """Sums of [R, N, ...] in every resample: [B, ...]."""
    one = jnp.ravel(values)[0]

    def product() -> jax.Array:
        within = jnp.einsum("BN,RN...->BR...", weights, values, precision="highest")
        seeds = seed_weights.astype(within.dtype)
        return jnp.einsum("BR,BR...->B...", seeds, within, precision="highest")

    def of_equals() -> jax.Array:
        total = one * jnp.sum(weights, 1) * jnp.sum(seed_weights, 1)
        shape = weights.shape[:1] + (1,) * (values.ndim - 2)
        return jnp.broadcast_to(total.reshape(shape), weights.shape[:1] + values.shape[2:])

    # Where nothing is left out, the counts are all 1: half of a large product saved.
    return jax.lax.cond(jnp.all(values == one), of_equals, product)


def bootstrap_interval(
    weights: Real[ArrayLike, "B N"],
    values: Shaped[ArrayLike, "..."],
    level: float = 0.95,
    seed_weights: Real[ArrayLike, "B R"] | None = None,
) -> tuple[Float[Array, "*rest"], Float[Array, "*rest"]]:
    """Percentile bootstrap interval of the mean over examples and seeds (Efron, 1979).

    For two settings on the same examples and seeds, give the differences of their values: the
    interval is then that of the paired difference. What is resampled: `bootstrap_ratio_interval`.

    Args:
      weights: [B, N] from `bootstrap_weights`.
      values: [N, ...], with `seed_weights` [R, N, ...]: one figure for each example (and seed);
        entries that are not finite are left out, and the others' weights make up for them.
      level: coverage, between 0 and 1.
      seed_weights: [B, R] from `bootstrap_weights` with another key; None: there are no seeds.

    Returns:
      (low, high), each [...] float32 or float64; NaN where no entry is finite.

    Raises:
      UserError: the shapes do not fit, or `level` is not between 0 and 1.
    """
    (values,) = floats(values)
    finite = jnp.isfinite(values)
    return bootstrap_ratio_interval(
        weights, jnp.where(finite, values, 0), finite, level, seed_weights
    )
