"""Controls: the same comparison where nothing was learned, so that a score can be judged."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from icljax.chunks import Arrays, Chunks
from icljax.grid import Chosen, Kept, Run, committed_seeds_at_once, finetune_pieces
from icljax.job import Job
from icljax.model import DecoderConfig, Params, init_params
from icljax.programs import Comparison, Programs, compare_settings
from icljax.prompts import Queries
from icljax.settings import Finetuned


def reinitialize(params: Params, decoder: DecoderConfig, weights: str, seed: int) -> Params:
    """The untrained controls of Deutch et al. 2024; "trained" returns `params` itself.

    Args:
        params: arrays; those that are not kept may be shapes with their shardings.
    """
    if weights == "trained":
        return params

    def init(key: jax.Array) -> Params:
        return jax.tree.map(
            lambda new, old: new.astype(old.dtype), init_params(decoder, key), params
        )

    where = jax.tree.map(lambda x: x.sharding, params)
    fresh = jax.jit(init, out_shardings=where)(jax.random.key(seed))
    if weights == "untrained":
        return fresh

    return jax.tree_util.tree_map_with_path(
        lambda path, new, old: old if is_kept(path) else new, fresh, params
    )


def only_kept(params: Params) -> Params:
    """`params` with shapes in the place of all that no control keeps, to free their memory."""

    def shape(path: tuple[Any, ...], x: jax.Array) -> Any:
        if is_kept(path):
            return x
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding)

    return jax.tree_util.tree_map_with_path(shape, params)


def is_kept(path: tuple[Any, ...]) -> bool:
    """Whether "untrained_keep_embeddings" keeps the leaf at this path."""
    return any("embed" in p.key or "norm" in p.key for p in path)


def compare_untrained(
    programs: Programs,
    params: Params,
    decoder: DecoderConfig,
    job: Job,
    queries: Queries,
    chosen: Chosen,
    config: ConfigDict,
    chunks: Chunks,
    advance: Callable[[int], None],
) -> dict[str, Comparison]:
    """The same comparison on models that were never trained (Deutch et al. 2024).

    Every seed keeps the learning rate that was chosen for the trained model.

    Args:
        params: of the trained model, as `only_kept` leaves them.
    """
    runs = list(enumerate(chosen.rate_index.tolist()))
    demonstrations = job.demonstrations

    def keep_all(piece: list[Run], tuned: Finetuned) -> tuple[Arrays, list[Run]]:
        return {}, piece

    comparisons = {}
    for name in config.controls.weights:
        fresh = reinitialize(params, decoder, name, config.metrics.seed)
        kept = Kept(programs, fresh, demonstrations, chunks)
        for _ in finetune_pieces(kept, fresh, runs, config, f"{name}-finetune", keep_all):
            pass
        comparisons[name] = compare_settings(
            programs,
            fresh,
            functools.partial(kept.stacked, f"{name}-finetune", runs),
            demonstrations,
            queries,
            committed_seeds_at_once(kept, f"{name}-compare-size"),
            functools.partial(_committed, chunks, name),
            advance,
        )
    return comparisons


def _committed(chunks: Chunks, name: str, batch: str, read: Callable[[], Arrays]) -> Arrays:
    return chunks.once(f"{name}-compare-{batch}", read)


def first_batches(queries: Queries, num_examples: int) -> Queries:
    """The fewest batches that hold `num_examples`; shapes stay, so nothing compiles anew."""
    counts = np.cumsum(np.sum(queries.example >= 0, axis=(1, 2)))
    batches = min(int(np.searchsorted(counts, num_examples)) + 1, len(counts))
    return jax.tree.map(lambda x: x[:batches], queries)
