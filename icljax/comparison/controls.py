"""Controls: the same comparison on untrained models, corrupted demonstrations and other updates.

Shape glossary: R seeds, L layers.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from icljax.catalog import CONTROLS
from icljax.comparison.grid import (
    Chosen,
    Kept,
    Run,
    Tuned,
    committed_seeds_at_once,
    finetune_pieces,
)
from icljax.comparison.job import Job, control_names
from icljax.comparison.programs import Comparison, Programs, compare_settings
from icljax.comparison.settings import Finetuned, key_value
from icljax.data.prompts import Demonstrations, Queries
from icljax.errors import named
from icljax.models.decoder import DecoderConfig, init_params
from icljax.runtime.chunks import Arrays, Chunks
from icljax.types import Params


def reinitialize(params: Params, decoder: DecoderConfig, weights: str, seed: int) -> Params:
    """The untrained controls of Deutch et al. 2024; "trained" returns `params` itself.

    Args:
        params: arrays; those that are not kept may be shapes with their shardings.
        weights: one of `WEIGHTS`.

    Raises:
        UserError: for another name.
    """
    keep = named("weights", weights, WEIGHTS)
    if keep is None:
        return params

    def init(key: jax.Array) -> Params:
        return jax.tree.map(
            lambda new, old: new.astype(old.dtype), init_params(decoder, key), params
        )

    where = jax.tree.map(lambda x: x.sharding, params)
    fresh = jax.jit(init, out_shardings=where)(jax.random.key(seed))
    return jax.tree_util.tree_map_with_path(
        lambda path, new, old: old if keep(path) else new, fresh, params
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


# Which weights there are, and which of the trained leaves they hold; None: all, as they are.
WEIGHTS: dict[str, Callable[[tuple[Any, ...]], bool] | None] = {
    "trained": None,
    "untrained": lambda path: False,
    "untrained_keep_embeddings": is_kept,
}


class Trained(NamedTuple):
    """The trained model's job, which controls are held against.

    Attributes:
        programs: with its shapes.
        params: its weights; shapes where no later control needs them.
        chosen: its finetuned runs.
        job: its examples.
        queries: the batches that controls read.
    """

    programs: Programs
    params: Params
    chosen: Chosen
    job: Job
    queries: Queries


def compare(
    trained: Trained,
    decoder: DecoderConfig,
    kinds: Sequence[str],
    config: ConfigDict,
    chunks: Chunks,
    advance: Callable[[int], None],
) -> dict[str, Comparison]:
    """The same comparison for every control of these kinds that the config asks for, by name."""
    rest = (config, chunks, advance)
    return {
        name: named("control kind", CONTROLS[name].kind, _KINDS)(trained, decoder, name, *rest)
        for name in control_names(config)
        if CONTROLS[name].kind in kinds
    }


def _of_model(
    trained: Trained, decoder: DecoderConfig, name: str, config: ConfigDict, *rest: Any
) -> Comparison:
    """Other weights."""
    params = reinitialize(trained.params, decoder, name, config.metrics.seed)
    return _refinetuned(trained, name, params, trained.job.demonstrations, config, *rest)


def _of_data(
    trained: Trained, decoder: DecoderConfig, name: str, config: ConfigDict, *rest: Any
) -> Comparison:
    """Other demonstrations."""
    demonstrations = named("data control", name, trained.job.changed)
    return _refinetuned(trained, name, trained.params, demonstrations, config, *rest)


def _refinetuned(
    trained: Trained,
    name: str,
    params: Params,
    demonstrations: Demonstrations,
    config: ConfigDict,
    chunks: Chunks,
    advance: Callable[[int], None],
) -> Comparison:
    """Other weights or demonstrations, finetuned anew.

    Every seed keeps the learning rate that was chosen for the trained model.
    """
    runs = list(enumerate(trained.chosen.rate_index.tolist()))
    kept = Kept(trained.programs, params, demonstrations, chunks)

    def keep_all(piece: list[Run], tuned: Finetuned) -> tuple[Arrays, list[Run]]:
        return {}, piece

    for _ in finetune_pieces(kept, params, runs, config, f"{name}-finetune", keep_all):
        pass
    finetuned = functools.partial(kept.stacked, f"{name}-finetune", runs)
    return _compared(trained, name, params, demonstrations, finetuned, chunks, advance)


def _of_update(
    trained: Trained,
    decoder: DecoderConfig,
    name: str,
    config: ConfigDict,
    chunks: Chunks,
    advance: Callable[[int], None],
) -> Comparison:
    """Another change of the weights in the place of what finetuning did to them."""
    change = named("update control", name, _UPDATES)
    finetuned = functools.partial(change, trained, config)
    demonstrations = trained.job.demonstrations
    out = _compared(trained, name, trained.params, demonstrations, finetuned, chunks, advance)
    # No training token has a part in this change, so there is nothing to rank.
    ranks = {
        field: np.full_like(values, np.nan)
        for field, values in out.similarity._asdict().items()
        if field.startswith(("kendall", "recall"))
    }
    return out._replace(similarity=out.similarity._replace(**ranks))


def _other_seed(trained: Trained, config: ConfigDict, seeds: Sequence[int]) -> Tuned:
    """What the next seed's demonstrations did."""
    return trained.chosen.finetuned([(seed + 1) % len(config.seeds) for seed in seeds])


def _perturbation(trained: Trained, config: ConfigDict, seeds: Sequence[int]) -> Tuned:
    """A random change of the same size."""
    leaves, queries = trained.chosen.finetuned(seeds)
    numbers = np.asarray(seeds, np.int32)
    return perturbed(key_value(trained.params), leaves, numbers, config.metrics.seed), queries


_KINDS = {"model": _of_model, "data": _of_data, "update": _of_update}
_UPDATES = {"other_seed": _other_seed, "perturbation": _perturbation}


@functools.partial(jax.jit, static_argnames="seed")
def perturbed(base: Params, finetuned: Params, numbers: jax.Array, seed: int) -> Params:
    """Random weights as far from the base, matrix by matrix, as the finetuned ones.

    Args:
        base: key and value leaves [L, ...]; each layer's is one matrix (or bias).
        finetuned: of R runs, [R, L, ...].
        numbers: int32 [R], the seed's number of each.

    Returns:
        As `finetuned`: base plus Gaussian noise with the Frobenius norm of finetuned - base.
    """
    leaves, tree = jax.tree.flatten(base)
    key = jax.random.key(seed)

    def one(index: int, before: jax.Array, after: jax.Array, number: jax.Array) -> jax.Array:
        drawn = jax.random.fold_in(jax.random.fold_in(key, number), index)
        noise = jax.random.normal(drawn, before.shape, before.dtype)
        axes = tuple(range(1, before.ndim))

        def size(x: jax.Array) -> jax.Array:
            return jnp.sqrt(jnp.sum(x**2, axes, keepdims=True))

        return before + noise * size(after - before) / jnp.maximum(size(noise), 1e-30)

    out = [
        jax.vmap(functools.partial(one, i), in_axes=(None, 0, 0))(before, after, numbers)
        for i, (before, after) in enumerate(zip(leaves, jax.tree.leaves(finetuned), strict=True))
    ]
    return jax.tree.unflatten(tree, out)


def _compared(
    trained: Trained,
    name: str,
    params: Params,
    demonstrations: Demonstrations,
    finetuned: Callable[[Sequence[int]], Tuned],
    chunks: Chunks,
    advance: Callable[[int], None],
) -> Comparison:
    kept = Kept(trained.programs, params, demonstrations, chunks)
    return compare_settings(
        trained.programs,
        params,
        finetuned,
        demonstrations,
        trained.queries,
        committed_seeds_at_once(kept, f"{name}-compare-size"),
        lambda batch, read: chunks.once(f"{name}-compare-{batch}", read),
        advance,
    )


def first_batches(queries: Queries, num_examples: int) -> Queries:
    """The fewest batches that hold `num_examples`; shapes stay, so nothing compiles anew."""
    counts = np.cumsum(np.sum(queries.example >= 0, axis=(1, 2)))
    batches = min(int(np.searchsorted(counts, num_examples)) + 1, len(counts))
    return jax.tree.map(lambda x: x[:batches], queries)
