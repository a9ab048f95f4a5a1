"""Seconds and share of the matrix rate of each program of a comparison, with random weights.

    python benchmarks/programs.py --config=configs/sst2.py --config.model=fairseq-1.3b --chip=h100
    python benchmarks/programs.py --config=configs/mr.py --config.eval.tokens_per_batch=512  # CPU

The programs are those that preflight lists, with a task's measured lengths and made-up tokens:
neither data nor checkpoint is needed. Each runs twice; the second time is reported, then multiplied
by its calls in the whole job. FLOPs are the closed form that preflight holds against the compiled
program. Of a crossed comparison the last line says what a pair costs beside a read.
"""

import time
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from absl import app, flags

from icljax import main as main_lib
from icljax.data.prompts import Demonstrations, Queries
from icljax.preflight import check, hardware
from icljax.runtime import processes, sharding

_CHIP = flags.DEFINE_string("chip", "", "Of icljax/preflight/hardware.py, for the shares.")


def timed(program: Any, arguments: Sequence[Any]) -> float:
    """Seconds of the second run."""
    jax.block_until_ready(program(*arguments))
    start = time.perf_counter()
    jax.block_until_ready(program(*arguments))
    return time.perf_counter() - start


def made(arguments: Sequence[Any], inputs: Any) -> list[Any]:
    """Arrays of these shapes: normal numbers, and the tokens of the made-up inputs."""
    rng = np.random.default_rng(0)

    def one(x: Any) -> jax.Array:
        floats = np.issubdtype(x.dtype, np.floating)
        drawn = rng.normal(scale=0.02, size=x.shape) if floats else np.ones(x.shape)
        return jax.device_put(drawn.astype(x.dtype), x.sharding)

    def filled(part: Any) -> Any:
        if isinstance(part, Demonstrations):
            real = jax.tree.map(
                lambda x, like: np.resize(x, like.shape), inputs.demonstrations, part
            )
        elif isinstance(part, Queries):
            real = jax.tree.map(lambda x, like: np.resize(x, like.shape), inputs.evaluation, part)
        else:
            return jax.tree.map(one, part)
        return jax.tree.map(lambda x, like: jax.device_put(x, like.sharding), real, part)

    return [filled(part) for part in arguments]


def main(_: Sequence[str]) -> None:
    processes.set_up()
    chip = {**hardware.TPUS, **hardware.GPUS}.get(_CHIP.value)
    mesh = sharding.make_mesh(-1, 1)
    job = check.make_checked(flags.FLAGS.config, check.Options(compile=False))
    calls = job.calls(mesh, chip.memory if chip else 4 << 30)
    programs, seconds = job.programs(mesh, ""), {}
    device = jax.devices()[0].device_kind
    print(f"{job.config.model}, {job.config.dtype}, {device} x {jax.device_count()}")
    print("| program | seconds | calls | seconds in all | TFLOP/s a device | of the matrix rate |")
    print("|---|---|---|---|---|---|")
    for call in calls:
        if call.variant not in ("", "random") or call.name in seconds:
            continue
        spent = timed(programs[call.name], made(call.arguments, job.inputs))
        times = sum(c.times for c in calls if c.name == call.name)
        seconds[call.name] = spent
        rate = call.estimate.flops / spent / jax.device_count()
        share = f"{rate / chip.flops:.0%}" if chip else ""
        cells = f"{spent:.4f} | {times} | {spent * times:.1f} | {rate / 1e12:.3f}"
        print(f"| {call.name} | {cells} | {share} |", flush=True)
    if "pairs" in seconds:
        of = next(c for c in calls if c.name == "pairs" and not c.variant)
        count = len(of.arguments[2]) * len(of.arguments[3])
        pair, read = seconds["pairs"] / count, seconds["read_update"]
        print(f"one of {count} pairs: {pair / read:.2%} of a read's time")


if __name__ == "__main__":
    app.run(main, flags_parser=main_lib.parse)
