"""What seeds say: estimates with their errors, tests and verdicts.

The seed (a draw of demonstrations) is the unit, and all seeds read the same queries. A difference
varies with both, so that its error has two parts: of the seeds, and of the queries. The tests are
those of "crossed" designs. Everything here is NumPy in float64, on the host: the arrays are small,
and quantiles of Student's t with broken degrees of freedom are not in JAX.

Shapes: icljax/metrics/__init__.py, and
  R: seeds (first axis; of a matrix the first two: prompts, then updates).
  N: queries (second axis; third of a matrix).

`python -m icljax.metrics.coverage` simulates every interval and test here and prints how often each
is right.
"""

import functools
import itertools
import math
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Real, Shaped

from icljax.errors import UserError
from icljax.types import Array

FEWEST_SEEDS = 5  # for a verdict: below, a skewed spread is not noticed
_ALL_ORDERS = 8  # seeds, up to which every assignment is tried: 40,320 of them
_RANDOM_ORDERS = 20_000


class SeedEstimate(NamedTuple):
    """A mean over seeds and queries, and how far it may be off; each field [...].

    Attributes:
        mean: the estimate.
        error: its standard error.
        df: degrees of freedom of the error (Student's t).
    """

    mean: np.ndarray
    error: np.ndarray
    df: np.ndarray

    def interval(self, level: float = 0.95) -> tuple[np.ndarray, np.ndarray]:
        """(low, high) that hold the true mean in `level` of all cases; NaN from one seed.

        Raises:
            UserError: `level` is not between 0 and 1.
        """
        if not 0 < level < 1:
            raise UserError(f"level is {level}; expected a share between 0 and 1: 0.95, say")
        from scipy.special import stdtrit  # not for those who want no interval

        half = stdtrit(self.df, (1 + level) / 2) * self.error
        return np.asarray(self.mean - half), np.asarray(self.mean + half)

    def p_above(self, than: float = 0.0) -> np.ndarray:
        """P-value against "the true mean is at most `than`" (t test).

        Twice the one-sided one, so that .05 is where the 95 % interval begins at `than`: where
        seeds are skewed, the one-sided test at 5 % is wrong in up to 9 % of cases.
        """
        from scipy.special import stdtr

        with np.errstate(divide="ignore", invalid="ignore"):
            one_sided = stdtr(self.df, -(self.mean - than) / self.error)
        return np.asarray(np.minimum(2 * one_sided, 1))

    def p_equal(self, margin: float) -> np.ndarray:
        """P-value against "the true mean is `margin` or more away from 0".

        The larger of two t tests (TOST; Schuirmann 1987), both as `p_above`: below .05 where the
        95 % interval lies within the margin.

        Raises:
            UserError: `margin` is not above 0.
        """
        if not margin > 0:
            raise UserError(f"margin is {margin}; expected a number above 0")
        mirrored = self._replace(mean=-self.mean)
        return np.asarray(np.maximum(self.p_above(-margin), mirrored.p_above(-margin)))


def seed_estimate(values: Real[ArrayLike, "R N *rest"]) -> SeedEstimate:
    """The mean of one value for each seed and query, and its error in a crossed design.

    Seeds and queries are both drawn, and every seed reads every query: the variance of the mean is
    the seeds' (with what is left over) plus the queries', their degrees of freedom by Satterthwaite
    (1946). One query: the plain t interval over seeds. An interval over seeds alone covers 31 % of
    the cases where 5 seeds share 64 queries that differ more than the seeds do.

    Args:
        values: for a paired difference, give the differences. An entry that is not finite is left
            out of its seed's and its query's mean.

    Returns:
        SeedEstimate of [...]; error and df are NaN with one seed.
    """
    return _crossed(np.asarray(values, np.float64), 1.0)


def _crossed(values: np.ndarray, shared: float) -> SeedEstimate:
    """`seed_estimate`, where the seeds' spread overstates their part of the variance.

    Args:
        shared: the factor that takes that back.
    """
    seeds, queries = values.shape[:2]
    of_seed, of_query = mean_of_finite(values, 1), mean_of_finite(values, 0)
    mean = mean_of_finite(of_seed, 0)
    if seeds < 2:
        nan = np.full(mean.shape, np.nan)
        return SeedEstimate(mean, nan, nan)
    seed_part = shared * _variance(of_seed) / seeds
    if queries < 2:
        return SeedEstimate(mean, np.sqrt(seed_part), np.full(mean.shape, seeds - 1.0))
    rest = values - of_seed[:, None] - of_query[None] + mean
    cells = shared * np.nansum(rest**2, (0, 1)) / ((seeds - 1) * (queries - 1)) / seeds
    # What a query adds in every seed alike; the cells' own noise is in the seeds' part.
    query_part = np.maximum(_variance(of_query) - cells, 0) / queries
    total = seed_part + query_part
    with np.errstate(divide="ignore", invalid="ignore"):
        df = total**2 / (seed_part**2 / (seeds - 1) + query_part**2 / (queries - 1))
    return SeedEstimate(mean, np.sqrt(total), np.where(total > 0, df, seeds - 1))


def mean_of_finite(values: Array, axis: int) -> np.ndarray:
    """Mean over finite entries; NaN where there is none (without NumPy's warning)."""
    finite = np.isfinite(values)
    count = finite.sum(axis)
    total = np.where(finite, values, 0).sum(axis)
    return np.asarray(np.where(count > 0, total / np.maximum(count, 1), np.nan))


def _variance(values: np.ndarray) -> np.ndarray:
    """Of the first axis' finite entries; NaN from one of them."""
    count = np.isfinite(values).sum(0)
    squares = np.nansum((values - mean_of_finite(values, 0)) ** 2, 0)
    return np.asarray(np.where(count > 1, squares / np.maximum(count - 1, 1), np.nan))


def ratio_estimate(
    numerator: Real[ArrayLike, "R N *rest"], denominator: Real[ArrayLike, "R N *rest"]
) -> SeedEstimate:
    """Sum of numerator / sum of denominator over seeds and queries, as in Rec2FTP.

    The error is that of its linear part (the delta method): of numerator - ratio * denominator.

    Returns:
        SeedEstimate of [...]; NaN where the denominator is 0 throughout.
    """
    above, below = np.asarray(numerator, np.float64), np.asarray(denominator, np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = above.sum((0, 1)) / below.sum((0, 1))
        linear = seed_estimate((above - ratio * below) / below.mean((0, 1)))
    return linear._replace(mean=np.asarray(ratio))


# ---- Own against other: which update belongs to which prompt -------------------------------------


def own(matrix: np.ndarray) -> np.ndarray:
    """The pairs i = j of [R, R, ...]: [R, ...]."""
    return np.asarray(np.moveaxis(np.diagonal(matrix), -1, 0))


def own_minus_other(matrix: Shaped[ArrayLike, "..."]) -> np.ndarray:
    """What each seed's own pair is above the pairs of different seeds.

    d_i = s_ii - mean_j s_ij - mean_j s_ji + mean_jk s_jk, where j, k are other seeds than i, and
    differ. Whatever raises all of a prompt's pairs, or all of an update's, falls out. The mean of
    d_i over seeds is the diagonal's mean minus that of the rest.

    Args:
        matrix: [R, R, ...], prompt i with update j.

    Returns:
        [R, ...].

    Raises:
        UserError: fewer than 3 seeds, or no square matrix.
    """
    matrix = np.asarray(matrix, np.float64)
    seeds = matrix.shape[0]
    if matrix.ndim < 2 or matrix.shape[1] != seeds or seeds < 3:
        raise UserError(
            f"a matrix of prompts x updates has shape {matrix.shape}; expected [R, R, ...] with at "
            "least 3 seeds"
        )
    pairs = own(matrix)
    rows, columns = matrix.sum(1) - pairs, matrix.sum(0) - pairs
    rest = (rows.sum(0) - rows - columns) / ((seeds - 1) * (seeds - 2))
    return np.asarray(pairs - (rows + columns) / (seeds - 1) + rest)


def own_estimate(matrix: Shaped[ArrayLike, "..."]) -> SeedEstimate:
    """Estimate of the mean of `own_minus_other`.

    The d_i share entries, so that their spread overstates the variance of their mean by
    (R - 1) / (R - 2) exactly, where what rows and columns leave over is independent; that is taken
    back.

    Args:
        matrix: [R, R, N, ...], prompt i with update j on each query.

    Raises:
        UserError: as `own_minus_other`.
    """
    different = own_minus_other(matrix)
    seeds = len(different)
    return _crossed(different, (seeds - 2) / (seeds - 1))


def permutation_p(matrix: Real[ArrayLike, "R R"], seed: int = 0) -> float:
    """P-value against "it makes no difference which update belongs to which prompt".

    Updates are assigned to prompts in every order (up to 8 seeds; else in 20,000 random ones), and
    the share of orders whose pairs are as alike as the true ones counts. Nothing is assumed of the
    distribution. The least value that R seeds can give is 1 / R!.

    Args:
        matrix: similarity of prompt i and update j, mean over queries.
        seed: of the random orders.
    """
    matrix = np.asarray(matrix, np.float64)
    seeds = len(matrix)
    orders = _orders(seeds, seed)
    total = matrix[np.arange(seeds), orders].sum(1)
    tolerance = 1e-12 * np.abs(matrix).sum()  # the order of a sum is no difference
    return float(np.mean(total >= np.trace(matrix) - tolerance))


@functools.cache
def _orders(seeds: int, seed: int) -> np.ndarray:
    """Every order of the seeds, or random ones with the true one before them: [orders, R]."""
    if seeds <= _ALL_ORDERS:
        return np.asarray(list(itertools.permutations(range(seeds))))
    rng = np.random.default_rng(seed)
    drawn = rng.permuted(np.tile(np.arange(seeds), (_RANDOM_ORDERS, 1)), axis=1)
    return np.concatenate([np.arange(seeds)[None], drawn])


# ---- Many claims, and what is said of each -------------------------------------------------------


def holm(p: Mapping[str, float]) -> dict[str, float]:
    """P-values adjusted for there being several, so that any false one is as rare (Holm 1979).

    Args:
        p: by the claims' names; NaN (undefined) stays and does not count.
    """
    defined = sorted((k for k, value in p.items() if not math.isnan(value)), key=p.__getitem__)
    out, largest = dict(p), 0.0
    for number, name in enumerate(defined):
        largest = max(largest, min(1.0, (len(defined) - number) * p[name]))
        out[name] = largest
    return out


def verdict(p_above: float, p_equal: float, alpha: float = 0.05) -> str:
    """What two adjusted p-values allow to say of a difference.

    Returns:
        "equal": within the margin, even where it is surely not 0; "above": surely above 0;
        "open": the data do not say.
    """
    if p_equal < alpha:
        return "equal"
    return "above" if p_above < alpha else "open"


def seeds_needed(
    spread: float, margin: float, alpha: float = 0.05, power: float = 0.8, most: int = 1000
) -> int | None:
    """How many seeds show that a difference of 0 lies within the margin.

    Args:
        spread: standard deviation of a seed's difference, from a pilot.
        margin: as in `SeedEstimate.p_equal`; to be shown above 0 when it is as large as this, a
            difference needs no more seeds.
        alpha: of the test, after sharing it among several claims.
        power: how often it shall be shown.
        most: seeds; None is returned where more were needed.
    """
    from scipy.special import stdtrit

    for seeds in range(2, most + 1):
        tails = stdtrit(seeds - 1, 1 - alpha / 2) + stdtrit(seeds - 1, (1 + power) / 2)
        if tails * spread / math.sqrt(seeds) <= margin:
            return seeds
    return None
