"""Controls: the same comparison on untrained models, corrupted demonstrations and other updates.

Shape glossary: R seeds, L layers.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from icljax.catalog import CONTROLS
from icljax.comparison.finetune import Finetuned, Learned, kv_params_of
from icljax.comparison.grid import Chosen, finetune_pieces
from icljax.comparison.inputs import Inputs, control_names
from icljax.comparison.programs import Subject
from icljax.comparison.reading import Comparison, compare_settings
from icljax.comparison.store import Run, Store
from icljax.data.prompts import Queries
from icljax.errors import named
from icljax.runtime.chunks import Arrays, Chunks
from icljax.types import Params


def reinitialize(
    params: Params, weights: str, initialize: Callable[[Params, int], Params], seed: int
) -> Params:
    """The untrained controls of Deutch et al. 2024; "trained" returns `params` itself.

    Args:
        params: arrays; those that are not kept may be shapes with their shardings.
        weights: one of `WEIGHTS`.
        initialize: as in `programs.Programs`.

    Raises:
        UserError: for another name.
    """
    keep = named("weights", weights, WEIGHTS)
    if keep is None:
        return params
    return jax.tree_util.tree_map_with_path(
        lambda path, new, old: old if keep(path) else new, initialize(params, seed), params
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


@dataclasses.dataclass(frozen=True)
class Trained:
    """The trained model's job, which controls are held against.

    Attributes:
        subject: its weights (shapes where no later control needs them) and demonstrations.
        chosen: its finetuned runs.
        inputs: its examples.
        queries: the batches that controls read.
    """

    subject: Subject
    chosen: Chosen
    inputs: Inputs
    queries: Queries


def compare(
    trained: Trained,
    kinds: Sequence[str],
    config: ConfigDict,
    chunks: Chunks,
    advance: Callable[[int], None],
) -> dict[str, Comparison]:
    """The same comparison for every control of these kinds that the config asks for, by name."""
    return {
        name: _compared(trained, name, config, chunks, advance)
        for name in control_names(config)
        if CONTROLS[name].kind in kinds
    }


def _compared(
    trained: Trained,
    name: str,
    config: ConfigDict,
    chunks: Chunks,
    advance: Callable[[int], None],
) -> Comparison:
    of_kind = named("control kind", CONTROLS[name].kind, _KINDS)
    subject, learned = of_kind(trained, name, config, chunks)
    out = compare_settings(subject, learned, trained.queries, chunks, f"{name}-compare", advance)
    if CONTROLS[name].kind != "update":
        return out
    # No training token has a part in this change, so there is nothing to rank.
    ranks = {
        field: np.full_like(values, np.nan)
        for field, values in out.similarity.items()
        if field.startswith(("kendall", "recall"))
    }
    return dataclasses.replace(out, similarity={**out.similarity, **ranks})


# What a control compares: weights on demonstrations, and what seeds' runs learned.
Compared = tuple[Subject, Callable[[Sequence[int]], Learned]]


def _of_model(trained: Trained, name: str, config: ConfigDict, chunks: Chunks) -> Compared:
    """Other weights."""
    own = trained.subject
    params = reinitialize(own.params, name, own.programs.initialize, config.metrics.seed)
    return _refinetuned(trained, name, dataclasses.replace(own, params=params), config, chunks)


def _of_data(trained: Trained, name: str, config: ConfigDict, chunks: Chunks) -> Compared:
    """Other demonstrations."""
    demonstrations = named("data control", name, trained.inputs.changed)
    subject = dataclasses.replace(trained.subject, demonstrations=demonstrations)
    return _refinetuned(trained, name, subject, config, chunks)


def _refinetuned(
    trained: Trained, name: str, subject: Subject, config: ConfigDict, chunks: Chunks
) -> Compared:
    """Other weights or demonstrations, finetuned anew.

    Every seed keeps the learning rate that was chosen for the trained model.
    """
    runs = list(enumerate(trained.chosen.rate_index.tolist()))
    store = Store(subject, chunks, f"{name}-finetune")

    def keep_all(piece: list[Run], finetuned: Finetuned) -> tuple[Arrays, list[Run]]:
        return {}, piece

    for _ in finetune_pieces(store, subject, runs, config, keep_all):
        pass
    return subject, functools.partial(store.stacked, runs)


def _of_update(trained: Trained, name: str, config: ConfigDict, chunks: Chunks) -> Compared:
    """Another change of the weights in the place of what finetuning did to them."""
    change = named("update control", name, _UPDATES)
    return trained.subject, functools.partial(change, trained)


def _other_seed(trained: Trained, seeds: Sequence[int]) -> Learned:
    """What the next seed's demonstrations did."""
    num_seeds = len(trained.subject.demonstrations.context)
    return trained.chosen.learned([(seed + 1) % num_seeds for seed in seeds])


def _perturbation(trained: Trained, seeds: Sequence[int]) -> Learned:
    """A random change of the same size."""
    learned, own = trained.chosen.learned(seeds), trained.subject
    numbers = np.asarray(seeds, np.int32)
    base = kv_params_of(own.params)
    return learned._replace(kv_params=own.programs.perturb(base, learned.kv_params, numbers))


_KINDS = {"model": _of_model, "data": _of_data, "update": _of_update}
_UPDATES = {"other_seed": _other_seed, "perturbation": _perturbation}


def first_batches(queries: Queries, num_examples: int) -> Queries:
    """The fewest batches that hold `num_examples`; shapes stay, so nothing compiles anew."""
    counts = np.cumsum(np.sum(queries.example >= 0, axis=(1, 2)))
    batches = min(int(np.searchsorted(counts, num_examples)) + 1, len(counts))
    return jax.tree.map(lambda x: x[:batches], queries)
