"""How often the intervals and tests of `icljax.metrics` are right, by simulation.

    python -m icljax.metrics.coverage [SAMPLES]

prints, for each kind, noise and number of seeds, the share of samples in which a 95 % interval
holds the truth, or in which a test at 5 % claims what is false. Every sample has 64 queries.
"""

import functools
import sys
from collections.abc import Callable, Sequence

import jax
import numpy as np

from icljax.metrics import seeds as by_seed
from icljax.metrics.intervals import bootstrap_interval, bootstrap_weights

SEEDS = (3, 5, 8, 12)
_QUERIES = 64
_MARGIN = 1.0

# Standard deviation of what a seed adds, a query adds, and a cell of both; whether skewed (gamma
# of shape 6: skewness .8).
Noise = tuple[float, float, float, bool]
NOISES: dict[str, Noise] = {
    "seeds differ": (1.0, 0.0, 0.5, False),
    "seeds differ, skewed": (1.0, 0.0, 0.0, True),
    "cells differ": (0.2, 0.0, 5.0, False),
    "queries differ": (0.3, 3.0, 3.0, False),
    "queries differ, skewed": (0.3, 3.0, 3.0, True),
}


def draw(rng: np.random.Generator, skewed: bool, *shape: int) -> np.ndarray:
    """Noise of mean 0 and variance 1."""
    if not skewed:
        return rng.normal(size=shape)
    return (rng.gamma(6.0, size=shape) - 6) / np.sqrt(6)


def values(rng: np.random.Generator, seeds: int, noise: Noise, samples: int) -> np.ndarray:
    """[R, N, samples] of mean 0."""
    seed, query, cell, skewed = noise
    of = functools.partial(draw, rng, skewed)
    out = seed * of(seeds, 1, samples) + query * of(1, _QUERIES, samples)
    return np.asarray(out + cell * of(seeds, _QUERIES, samples))


def matrix(rng: np.random.Generator, seeds: int, noise: Noise, samples: int) -> np.ndarray:
    """[R, R, N, samples] without a difference between own pairs and others: rows and columns."""
    seed, query, cell, skewed = noise
    of = functools.partial(draw, rng, skewed)
    rows, columns = of(seeds, 1, 1, samples), of(1, seeds, 1, samples)
    pairs = of(seeds, seeds, 1, samples)
    out = 3 * (rows + columns) + seed * pairs + query * of(1, 1, _QUERIES, samples)
    # Queries differ in how far a prompt's own update is ahead, by nothing on average.
    ahead = np.eye(seeds)[:, :, None, None] * query * of(1, 1, _QUERIES, samples)
    return np.asarray(out + ahead + cell * of(seeds, seeds, _QUERIES, samples))


Sampler = Callable[[np.random.Generator, int, Noise, int], np.ndarray]
Rate = Callable[[np.ndarray], float]


def covered(estimate: by_seed.SeedEstimate, truth: float = 0.0) -> float:
    """Share of the samples whose interval holds the truth."""
    low, high = estimate.interval()
    return float(np.mean((low <= truth) & (truth <= high)))


def _plain(x: np.ndarray) -> float:
    """The t interval that knows nothing of queries."""
    return covered(by_seed.seed_estimate(x.mean(1, keepdims=True)))


def _ratio(x: np.ndarray) -> float:
    """Of a sum over another that varies with it, 2 on average."""
    below = 10 + x
    above = 2 * below + x[:, ::-1]
    return covered(by_seed.ratio_estimate(above, below), 2.0)


def _bootstrap(x: np.ndarray) -> float:
    """The percentile bootstrap over seeds and queries that version 0.1 used."""
    of_queries, of_seeds = jax.random.split(jax.random.key(0))
    drawn = bootstrap_weights(of_queries, x.shape[1], 1000)
    low, high = bootstrap_interval(
        drawn, x, seed_weights=bootstrap_weights(of_seeds, x.shape[0], 1000)
    )
    return float(np.mean((np.asarray(low) <= 0) & (np.asarray(high) >= 0)))


def _permutation(x: np.ndarray) -> float:
    samples = np.moveaxis(x, -1, 0)[:_FEW]
    p = [max(by_seed.permutation_p(m.mean(2)), by_seed.own_estimate(m).p_above()) for m in samples]
    return float(np.mean(np.asarray(p) < 0.05))


_FEW = 400  # samples of the permutation test, which is slow
INTERVALS: dict[str, tuple[Sampler, Rate]] = {
    "seeds and queries (seed_estimate)": (values, lambda x: covered(by_seed.seed_estimate(x))),
    "own minus other (own_estimate)": (matrix, lambda x: covered(by_seed.own_estimate(x))),
    "ratio (ratio_estimate)": (values, _ratio),
    "t over seeds alone": (values, _plain),
    "percentile bootstrap": (values, _bootstrap),
}
TESTS: dict[str, tuple[Sampler, Rate]] = {
    "above, truth 0": (
        values,
        lambda x: float(np.mean(by_seed.seed_estimate(x).p_above() < 0.05)),
    ),
    "equal, truth at the margin": (
        values,
        lambda x: float(np.mean(by_seed.seed_estimate(x + _MARGIN).p_equal(_MARGIN) < 0.05)),
    ),
    "own above other (with permutation)": (matrix, _permutation),
}


def rates(
    kinds: dict[str, tuple[Sampler, Rate]], seeds: Sequence[int], samples: int
) -> dict[tuple[str, str, int], float]:
    """The share that each kind counts, by (kind, noise, seeds)."""
    out = {}
    for kind, (sampler, rate) in kinds.items():
        for name, noise in NOISES.items():
            for count in seeds:
                # Matrices are large: fewer samples where there are more seeds.
                few = max(min(samples, 400), samples * 3 // count**2)
                most = samples if sampler is values else few
                rng = np.random.default_rng(count)
                out[kind, name, count] = rate(sampler(rng, count, noise, most))
    return out


def table(title: str, found: dict[tuple[str, str, int], float]) -> str:
    """Percentages, one row a kind and noise, one column a number of seeds."""
    counts = sorted({count for *_, count in found})
    lines = [title, f"{'':36}{'noise':26}" + "".join(f"{f'R = {c}':>8}" for c in counts)]
    for kind, noise in dict.fromkeys((kind, noise) for kind, noise, _ in found):
        shares = "".join(f"{100 * found[kind, noise, c]:8.1f}" for c in counts)
        lines.append(f"{kind:36}{noise:26}{shares}")
    return "\n".join(lines)


def main(arguments: Sequence[str]) -> None:
    """Prints both tables."""
    samples = int(arguments[0]) if arguments else 4000
    print(table("Intervals at 95 %: percent that hold the truth", rates(INTERVALS, SEEDS, samples)))
    print()
    print(table("Tests at 5 %: percent that claim what is false", rates(TESTS, SEEDS, samples)))


if __name__ == "__main__":
    main(sys.argv[1:])
