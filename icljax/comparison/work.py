"""How long a crossed comparison will compute, said before it starts.

Shape glossary: R seeds, E steps (demonstrations) of at most U tokens.
"""

import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from icljax.catalog import SYNTHETIC
from icljax.comparison.crossed import Plan
from icljax.comparison.finetune import kv_params_of, step_sizes
from icljax.comparison.inputs import Inputs
from icljax.comparison.reading import first_batches
from icljax.data.prompts import Demonstrations, Queries
from icljax.types import Params

# Of the rate of a large product: what a job reaches on CPUs, mixed.
_REACHED = 0.6
# Reads of one batch until a random step has finetuning's size: SmolLM2-135M on MR took 2 to 4, both
# kinds, at learning rates of .0001 and .001.
ROUNDS = 3


def seconds(flops: float) -> float:
    """What so many operations take here, by a matrix product that is timed now.

    Compilation is not in it.
    """
    size = 2048
    square = jnp.ones((size, size))
    multiply = jax.jit(jnp.matmul)
    jax.block_until_ready(multiply(square, square))
    start = time.perf_counter()
    jax.block_until_ready(multiply(square, square))
    rate = 2 * size**3 / (time.perf_counter() - start)
    return flops / (_REACHED * rate * jax.device_count())


def crossed_flops(
    config: ConfigDict, params: Params, inputs: Inputs, shown: Demonstrations, plan: Plan
) -> float:
    """Operations of the matrix products with weights, which are nearly all.

    Args:
        params: arrays or shapes.
        shown: of all prompts, as `experiments.crossed.all_demonstrations` gives them.
    """
    study, seeds, rates = config.study, plan.seeds, len(config.finetune.learning_rates)
    chosen = min(study.selection_seeds, seeds)
    prompts, updates = len(plan.prompts) * seeds, len(plan.updates) * seeds
    few_chosen, few = (
        first_batches(queries, study.untrained_examples)
        for queries in (inputs.selection, inputs.evaluation)
    )
    random = seeds * sum(name in SYNTHETIC for name in plan.updates)
    untrained = "untrained" in study.links
    matched = untrained + len(study.methods)
    runs = chosen * rates + prompts + matched * (rates + seeds)
    reads = (
        (inputs.selection, 1 + chosen + chosen * rates),
        (inputs.evaluation, 1 + prompts + updates),
        (first_batches(inputs.selection, 1), random * (ROUNDS + 1)),
        (few_chosen, matched * (2 + rates)),
        (few, untrained * (1 + 2 * seeds)),
    )
    layers = _size(params["layers"])
    encoding = 2 * layers * shown.context.size * (1 + chosen / prompts)
    return (
        encoding
        + runs * _finetuning(params, shown)
        + sum(times * _reading(params, queries) for queries, times in reads)
    )


def _reading(params: Params, queries: Queries) -> float:
    """Of all these queries, once."""
    embedding = params["embed"]["embedding"].size
    return 2 * (_size(params["layers"]) * queries.tokens.size + embedding * queries.places.size)


def _finetuning(params: Params, shown: Demonstrations) -> float:
    """Of one run, mean over the prompts: forward, and backward without the other weights."""
    sizes = np.asarray(step_sizes(shown.train.shape[-1]))
    steps = sizes[np.searchsorted(sizes, np.minimum(shown.train_length, sizes[-1]))]
    tokens = float(np.where(shown.train_length > 0, steps, 0).sum(-1).mean())
    layers, embedding = _size(params["layers"]), params["embed"]["embedding"].size
    return tokens * (4 * layers + 2 * _size(kv_params_of(params)) + 4 * embedding)


def _size(tree: Any) -> int:
    return sum(x.size for x in jax.tree.leaves(tree))
