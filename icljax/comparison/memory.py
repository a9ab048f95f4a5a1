"""How much of a job is on a device together: finetuning runs, and seeds that are compared."""

import math
from collections.abc import Callable, Sequence

import jax
import numpy as np
from ml_collections import ConfigDict

from icljax.comparison.finetune import kv_params_of
from icljax.comparison.programs import Subject
from icljax.data.prompts import Demonstrations
from icljax.runtime import processes
from icljax.runtime.chunks import Chunks
from icljax.types import Params


def runs_at_once(
    config: ConfigDict,
    params: Params,
    demonstrations: Demonstrations,
    stages: Sequence[int],
    rates: int,
    free: int,
    data: int = 1,
    model: int = 1,
) -> int:
    """How many runs are finetuned together: what fits in memory, in pieces of one size.

    A device's runs are those of whole seeds, or an equal share of one seed's (`seed_shares`). A
    deliberate over-estimate. Of each run: its leaves, their gradient and their update (float32),
    the training queries, and the logits and layer inputs of a step with their gradients.

    Args:
        params: arrays or shapes.
        stages: how many runs each stage of the job has.
        rates: learning rates of a seed that are read together; 1: none are.
        free: bytes that they may take on a device.
        data, model: the mesh; runs are split over data, each run's arrays over model.

    Returns:
        A multiple of `data`.
    """
    layers, width, heads, head_width = params["layers"]["attention"]["query"]["kernel"].shape
    vocab = params["embed"]["embedding"].shape[0]
    mlp = params["layers"]["mlp"]["up"]["kernel"].shape[-1]
    tokens = demonstrations.train.shape[-1]
    queries = demonstrations.columns.shape[1] * layers * heads * head_width
    backward = "gd" in (config.finetune.method, *config.study.methods)
    deep = layers if backward else 1  # the other methods keep nothing of a layer
    stream = tokens * (deep * (width if config.finetune.remat else 8 * width + 4 * mlp) + 3 * vocab)
    each = 4 * (3 * _num_kv_params(params) // model + 2 * queries // model + stream)
    wanted = config.finetune.runs_at_once or data * max(1, free // each)
    most = math.ceil(min(wanted, max(stages)) / data)
    fitting = [n for n in range(1, most + 1) if rates % n == 0 or n % rates == 0]

    def cost(n: int) -> float:
        """Runs, those that fill up the last piece too, and half of one for each piece."""
        return sum(math.ceil(runs / (n * data)) for runs in stages) * (n + 0.5)

    return min(fitting, key=cost) * data


def seed_shares(at_once: int, data: int, num_rates: int) -> int:
    """In how many equal shares of one seed each the runs of a piece fall, on `data` devices."""
    return data * max(1, at_once // data // num_rates)


def seeds_at_once(params: Params, demonstrations: Demonstrations, free: int, model: int = 1) -> int:
    """Of how many seeds states and finetuned leaves are on a device together: what fits.

    Twice that of each seed: its leaves and training queries are read, then stacked.

    Args:
        params: arrays or shapes.
        free: as in `runs_at_once`.
        model: the mesh's model axis, over which all of it is split.
    """
    attention = params["layers"]["attention"]
    layers, _, heads, width = attention["query"]["kernel"].shape
    groups = attention["key"]["kernel"].shape[2]
    compared, context = demonstrations.columns.shape[1], demonstrations.context.shape[1]
    queries, states = compared * heads * width, 2 * context * groups * width
    of_layers = layers * (queries + states + groups * width**2)
    each = 2 * 4 * (_num_kv_params(params) + of_layers) // model
    return max(1, free // each)


def updates_at_once(
    params: Params, demonstrations: Demonstrations, free: int, model: int = 1
) -> int:
    """How many updates fit in half of what is free; the rest is for what they change."""
    layers, _, heads, width = params["layers"]["attention"]["query"]["kernel"].shape
    queries = demonstrations.columns.shape[1] * layers * heads * width
    return free // (2 * 4 * (_num_kv_params(params) + queries) // model)


def _num_kv_params(params: Params) -> int:
    return sum(x.size for x in jax.tree.leaves(kv_params_of(params)))


def committed_runs_at_once(
    config: ConfigDict, subject: Subject, chunks: Chunks, stages: Sequence[int], rates: int = 1
) -> int:
    """`runs_at_once`, as at the job's first start."""
    devices = subject.programs.devices

    def choose() -> int:
        free, shape = devices.free_memory(), devices.mesh.shape
        sizes = (free, shape["data"], shape["model"])
        shown = subject.demonstrations
        return runs_at_once(config, subject.params, shown, stages, rates, *sizes)

    return committed(chunks, "finetune-size", choose)


def committed_seeds_at_once(subject: Subject, chunks: Chunks, name: str) -> int:
    """`seeds_at_once`, at most all, as at the job's first start."""
    devices, demonstrations = subject.programs.devices, subject.demonstrations

    def choose() -> int:
        free, model = devices.free_memory(), devices.mesh.shape["model"]
        fitting = seeds_at_once(subject.params, demonstrations, free, model)
        return min(len(demonstrations.context), fitting)

    return committed(chunks, name, choose)


def committed(chunks: Chunks, name: str, choose: Callable[[], int]) -> int:
    """A number as at the job's first start: what memory is free may have changed since."""
    chunk = chunks.once(name, lambda: {"number": np.asarray(processes.from_first(choose))})
    return int(chunk["number"])
