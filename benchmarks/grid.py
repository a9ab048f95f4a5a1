"""Seconds and share of the matrix rate of each program of the comparison, with random weights.

    python benchmarks/grid.py --model=fairseq-1.3b --chip=h100        # on one H100
    python benchmarks/grid.py --model=smollm2-135m --rates=2 --seeds=2 --examples=20  # on a CPU

SST-2's lengths (icljax/preflight/lengths.py), made-up tokens: neither data nor checkpoint is
needed. Each program runs twice; the second time is reported, then multiplied by its calls in the
whole inputs. FLOPs are the closed form that preflight holds against the compiled program.
"""

import argparse
import dataclasses
import time
from typing import Any

import jax
import numpy as np

from icljax.comparison import grid, programs, reading
from icljax.comparison.programs import DATA, Subject
from icljax.experiments import config as config_lib
from icljax.experiments import job
from icljax.models.architectures import ARCHITECTURES
from icljax.models.decoder import init_params
from icljax.models.families import decoder_config
from icljax.preflight import calls as calls_lib
from icljax.preflight import hardware, lengths
from icljax.runtime import processes, sharding


def timed(program: Any, *arguments: Any) -> tuple[Any, float]:
    """(result, seconds of the second run)."""
    jax.block_until_ready(program(*arguments))
    start = time.perf_counter()
    out = jax.block_until_ready(program(*arguments))
    return out, time.perf_counter() - start


def random_params(decoder: Any, mesh: Any) -> Any:
    shapes = calls_lib.parameters(decoder, mesh)
    where = jax.tree.map(lambda x: x.sharding, shapes)

    def init(key: jax.Array) -> Any:
        return jax.tree.map(lambda x, s: x.astype(s.dtype), init_params(decoder, key), shapes)

    return jax.jit(init, out_shardings=where)(jax.random.key(0))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="fairseq-1.3b", choices=sorted(ARCHITECTURES))
    parser.add_argument(
        "--chip", default="", help="of icljax/preflight/hardware.py, for the shares"
    )
    parser.add_argument("--rates", type=int, default=36)
    parser.add_argument("--seeds", type=int, default=7)
    parser.add_argument("--demonstrations", type=int, default=32)
    parser.add_argument("--examples", type=int, default=872)
    args = parser.parse_args()
    processes.set_up()
    config = config_lib.default()
    config.task, config.num_demonstrations = "sst2", args.demonstrations
    config.seeds = tuple(range(1, 1 + args.seeds))
    config.finetune.learning_rates = tuple(0.001 * (i + 1) for i in range(args.rates))
    config.eval.num_examples, config.mode = args.examples, "paper"
    config_lib.fill_in(config)
    config.eval.tokens_per_batch = 512 if jax.default_backend() == "cpu" else 4096
    decoder = decoder_config(ARCHITECTURES[args.model], args.model)
    decoder = dataclasses.replace(decoder, dtype=job.compute_dtype(config))
    mesh = sharding.make_mesh(-1, 1)
    inputs = lengths.make_inputs(config, decoder, lengths.lengths(config, 0, 0, 0))
    chip = {**hardware.TPUS, **hardware.GPUS}.get(args.chip)
    memory = chip.memory if chip else 4 << 30
    calls = calls_lib.compare_calls(config, decoder, inputs, mesh, memory)
    of = {call.name: call for call in calls}
    programs_ = programs.make_programs(
        decoder, config, inputs.encoder.bos, args.demonstrations, mesh
    )
    params, seconds = random_params(decoder, mesh), {}

    at_once = of["finetune"].arguments[1].shape[0]
    drawn = jax.tree.map(lambda x: np.resize(x, (at_once, *x.shape[1:])), inputs.demonstrations)
    given = sharding.put((np.full(at_once, 1e-3, np.float32), drawn), mesh, DATA)
    finetuned, seconds["finetune"] = timed(programs_.finetune, params, *given)
    rates = len(config.finetune.learning_rates)
    runs = [(run // rates, run % rates) for run in range(at_once)]
    read = grid.reader(Subject(programs_, params, inputs.demonstrations), runs, finetuned, rates)
    batch = sharding.put(jax.tree.map(lambda x: x[0], inputs.selection), mesh)
    _, seconds["score"] = timed(read, batch)
    one, seconds["pick"] = timed(programs_.pick, finetuned, np.int32(0))
    del finetuned, read
    together = of["compare"].arguments[-1].shape[0]
    some = jax.tree.map(lambda x: x[:together], inputs.demonstrations)
    states, seconds["encode"] = timed(
        programs_.encode, params, *sharding.put((some.context, some.context_valid), mesh)
    )
    learned = programs_.stack([one] * together)
    columns, example = sharding.put((some.columns, some.example), mesh)
    update, seconds["update"] = timed(programs_.update, states, columns, example >= 0)
    seeds = programs.SeedTokens(states, columns, example, update)
    rows = sharding.put(reading.batches(inputs.evaluation, mesh.shape["data"])[0], mesh, DATA)
    index = sharding.put(np.arange(together), mesh)
    _, seconds["compare"] = timed(programs_.compare, params, seeds, learned, rows, index)

    device = jax.devices()[0].device_kind
    print(f"{args.model}, {decoder.dtype}, {device} x {jax.device_count()}, {at_once} runs at once")
    print("| program | seconds | calls | seconds in all | TFLOP/s a device | of the matrix rate |")
    print("|---|---|---|---|---|---|")
    for name, spent in seconds.items():
        call = of[name]
        rate = call.estimate.flops / spent / jax.device_count()
        share = f"{rate / chip.flops:.0%}" if chip else ""
        cells = f"{spent:.3f} | {call.times} | {spent * call.times:.1f} | {rate / 1e12:.3f}"
        print(f"| {name} | {cells} | {share} |")


if __name__ == "__main__":
    main()
