"""Controls: the same comparison where nothing was learned, so that a score can be judged."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from icljax.grid import Chosen, finetune_pieces
from icljax.job import Job
from icljax.model import DecoderConfig, Params, init_params
from icljax.programs import Comparison, Programs, compare_settings, encode_demonstrations
from icljax.prompts import Queries


def reinitialize(params: Params, decoder: DecoderConfig, weights: str, seed: int) -> Params:
    """The untrained controls of Deutch et al. 2024; "trained" returns `params` itself."""
    if weights == "trained":
        return params
    fresh = jax.jit(lambda key: init_params(decoder, key))(jax.random.key(seed))
    fresh = jax.tree.map(lambda new, old: new.astype(old.dtype), fresh, params)
    if weights == "untrained":
        return fresh

    def keep(path: tuple[Any, ...], new: jax.Array, old: jax.Array) -> jax.Array:
        return old if any("embed" in p.key or "norm" in p.key for p in path) else new

    return jax.tree_util.tree_map_with_path(keep, fresh, params)


def compare_untrained(
    programs: Programs,
    params: Params,
    decoder: DecoderConfig,
    job: Job,
    queries: Queries,
    chosen: Chosen,
    config: ConfigDict,
    advance: Callable[[int], None],
) -> dict[str, Comparison]:
    """The same comparison on models that were never trained (Deutch et al. 2024).

    Every seed keeps the learning rate that was chosen for the trained model.
    """
    runs = list(enumerate(chosen.rate_index.tolist()))
    demonstrations = job.demonstrations
    comparisons = {}
    for name in config.controls.weights:
        fresh = reinitialize(params, decoder, name, config.metrics.seed)
        pieces = [
            tuned for _, tuned in finetune_pieces(programs, fresh, demonstrations, runs, config)
        ]
        # The last piece may have been filled up beyond the last seed.
        tuned = jax.tree.map(lambda *x: jnp.concatenate(x)[: len(runs)], *pieces)
        states = encode_demonstrations(programs, fresh, demonstrations)
        finetuned = (tuned.key_value, tuned.queries)
        comparisons[name] = compare_settings(
            programs, fresh, states, finetuned, demonstrations, queries, advance
        )
    return comparisons


def first_batches(queries: Queries, num_examples: int) -> Queries:
    """The fewest batches that hold `num_examples`; shapes stay, so nothing compiles anew."""
    counts = np.cumsum(np.sum(queries.example >= 0, axis=(1, 2)))
    batches = min(int(np.searchsorted(counts, num_examples)) + 1, len(counts))
    return jax.tree.map(lambda x: x[:batches], queries)
