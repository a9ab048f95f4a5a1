"""Where a comparison's time goes: each program's seconds and share of the matrix rate.

    python benchmarks/stages.py --config=configs/sst2.py --config.model=fairseq-1.3b --chip=h100
    python benchmarks/stages.py --config=configs/mr.py --config.eval.tokens_per_batch=512  # CPU

The programs are those that preflight lists, with a task's measured lengths and made-up tokens:
neither data nor checkpoint is needed, weights are random. Each runs three times: the first, cold,
is mostly compilation; the best of the others, warm, is multiplied by its calls in the whole job.
FLOPs are the closed form that preflight holds against the compiled program. The matrix rate is that
of a float32 product of 4096 x 4096, measured in the same process, or the published one of `--chip`.
Of a crossed comparison the last line says what a pair costs beside a read.
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


def timed(program: Any, arguments: Sequence[Any]) -> tuple[float, float]:
    """Seconds of the first run, and of the best of two more."""
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        jax.block_until_ready(program(*arguments))
        seconds.append(time.perf_counter() - start)
    return seconds[0], min(seconds[1:])


def matrix_rate() -> float:
    """FLOP/s of a float32 matrix product of 4096 x 4096."""
    square = jax.numpy.ones((4096, 4096))
    return 2 * 4096**3 / timed(jax.jit(jax.numpy.matmul), (square, square))[1]


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
    programs, seconds, flops = job.programs(mesh, ""), {}, {}
    device, count = jax.devices()[0].device_kind, jax.device_count()
    rate = chip.flops if chip else matrix_rate()
    print(f"{job.config.model}, {job.config.dtype}, {device} x {count}, {rate / 1e9:.0f} GFLOP/s")
    print("| program | cold, s | warm, s | calls | seconds in all | TFLOP | of the matrix rate |")
    print("|---|---|---|---|---|---|---|")
    in_all, cold_in_all = 0.0, 0.0
    for call in calls:
        if call.variant not in ("", "random") or call.name in seconds:
            continue
        cold, warm = timed(programs[call.name], made(call.arguments, job.inputs))
        times = sum(c.times for c in calls if c.name == call.name)
        seconds[call.name], flops[call.name] = warm, times * call.estimate.flops
        share = call.estimate.flops / warm / count / rate
        in_all, cold_in_all = in_all + warm * times, cold_in_all + cold - warm
        cells = f"{cold:.2f} | {warm:.4f} | {times} | {warm * times:.1f}"
        print(
            f"| {call.name} | {cells} | {flops[call.name] / 1e12:.2f} | {share:.0%} |", flush=True
        )
    share = sum(flops.values()) / in_all / count / rate
    total = sum(flops.values()) / 1e12
    print(f"| in all | +{cold_in_all:.0f} | | | {in_all:.0f} | {total:.1f} | {share:.0%} |")
    if "pairs" in seconds:
        of = next(c for c in calls if c.name == "pairs" and not c.variant)
        number = len(of.arguments[2]) * len(of.arguments[3])
        pair, read = seconds["pairs"] / number, seconds["read_update"]
        print(f"one of {number} pairs: {pair / read:.2%} of a read's time")


if __name__ == "__main__":
    app.run(main, flags_parser=main_lib.parse)
