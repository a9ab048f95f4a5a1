"""What momentum attention costs: training steps with and without it, interleaved in one run.

    python benchmarks/momentum.py

Prints the median and the fastest seconds of a step of `configs/pretrain.py`'s default model, for
softmax, momentum with a fixed eta and with learned ones, and their ratios.
"""

import argparse
import time

import jax
import numpy as np

from icljax.experiments import pretrain, train
from icljax.runtime import sharding

VARIANTS = ("softmax", "momentum ema=0.9", "momentum learn=ema")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--length", type=int, default=0, help="tokens of a sequence; 0: default")
    args = parser.parse_args()
    config = pretrain.default()
    config.model.length = args.length or config.model.length
    mesh = sharding.make_mesh(1, 1)
    shape = (1, config.train.batch, config.model.length + 1)
    batch = np.random.default_rng(0).integers(0, config.text.vocab_size, shape).astype(np.int32)
    runs = {}
    for variant in VARIANTS:
        decoder = pretrain.decoder_config(config, variant, config.text.vocab_size)
        programs = train.make_programs(decoder, config.train, mesh, 1)
        state = jax.block_until_ready(programs.step(programs.init(jax.random.key(0)), batch))
        runs[variant] = [programs, state, []]
    for i in range(args.steps):
        order = list(runs.values())
        for run in order[i % len(order) :] + order[: i % len(order)]:
            start = time.perf_counter()
            run[1] = jax.block_until_ready(run[0].step(run[1], batch))
            run[2].append(time.perf_counter() - start)
    base = np.asarray(runs[VARIANTS[0]][2])
    print(f"{jax.devices()[0].device_kind}; {shape[1]} x {shape[2] - 1} tokens a step")
    print(
        f"{'':<20} {'median, s':>10} {'fastest, s':>10} {'ratio of medians':>17} {'of fastest':>11}"
    )
    for variant, (_, _, seconds) in runs.items():
        times = np.asarray(seconds)
        ratios = np.median(times) / np.median(base), times.min() / base.min()
        print(
            f"{variant:<20} {np.median(times):>10.4f} {times.min():>10.4f} "
            f"{ratios[0]:>17.3f} {ratios[1]:>11.3f}"
        )


if __name__ == "__main__":
    main()
