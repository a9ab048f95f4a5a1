"""Kendall's tau of many rankings: `icljax.metrics.kendall_tau` beside `scipy.stats.kendalltau`.

Both run on the same pairs in the same process, and must agree. A third of the pairs has ties.

    python benchmarks/kendall.py
"""

import argparse
import time
from collections.abc import Callable

import jax
import numpy as np
from scipy import stats

from icljax import metrics


def make_pairs(rng: np.random.Generator, pairs: int, items: int) -> tuple[np.ndarray, np.ndarray]:
    x = rng.normal(size=(pairs, items)).astype(np.float32)
    y = x + rng.normal(size=(pairs, items)).astype(np.float32)
    tied = slice(None, None, 3)
    x[tied], y[tied] = x[tied].round(1), y[tied].round(1)
    return x, y


def best_ms(run: Callable[[], object], repeats: int) -> float:
    """The shortest of some runs: other work on the machine only ever adds to the time."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return 1000 * min(times)


def scipy_tau(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.array([stats.kendalltau(a, b).statistic for a, b in zip(x, y, strict=True)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--items", type=int, nargs="+", default=[400, 700, 1500])
    parser.add_argument("--pairs", type=int, default=4096)
    parser.add_argument("--scipy-pairs", type=int, default=400, help="the first so many of them")
    parser.add_argument("--chunk", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()

    tau = jax.jit(metrics.kendall_tau, static_argnames="chunk")
    print(f"{jax.devices()[0].device_kind}, {args.pairs} pairs; milliseconds a pair")
    print(f"{'items':>6} {'icljax':>8} {'scipy':>8} {'ratio':>6} {'differ by':>10}")
    for items in args.items:
        x, y = make_pairs(np.random.default_rng(0), args.pairs, items)
        few = min(args.scipy_pairs, args.pairs)
        ours = np.asarray(tau(x, y, chunk=args.chunk))  # and compiles
        difference = np.abs(ours[:few] - scipy_tau(x[:few], y[:few])).max()
        mine = best_ms(lambda: tau(x, y, chunk=args.chunk).block_until_ready(), args.repeats)  # noqa: B023
        theirs = best_ms(lambda: scipy_tau(x[:few], y[:few]), args.repeats)  # noqa: B023
        mine, theirs = mine / args.pairs, theirs / few
        print(f"{items:6} {mine:8.4f} {theirs:8.4f} {theirs / mine:6.1f} {difference:10.1e}")


if __name__ == "__main__":
    main()
