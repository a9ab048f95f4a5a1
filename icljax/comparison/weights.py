"""Untrained weights in the place of trained ones (Deutch et al. 2024)."""

from collections.abc import Callable
from typing import Any

import jax

from icljax.errors import named
from icljax.types import Params


def reinitialize(
    params: Params, weights: str, initialize: Callable[[Params, int], Params], seed: int
) -> Params:
    """Weights by their name in the config; "trained" returns `params` itself.

    Args:
        params: arrays; those that are not kept may be shapes with their shardings.
        weights: of `catalog.WEIGHTS`.
        initialize: as in `programs.Programs`.

    Raises:
        UserError: for another name.
    """
    keep = named("weights", weights, _KEPT)
    if keep is None:
        return params
    return jax.tree_util.tree_map_with_path(
        lambda path, new, old: old if keep(path) else new, initialize(params, seed), params
    )


def is_kept(path: tuple[Any, ...]) -> bool:
    """Whether "untrained_keep_embeddings" keeps the leaf at this path."""
    return any("embed" in p.key or "norm" in p.key for p in path)


# Which weights there are, and which of the trained leaves they hold; None: all, as they are.
_KEPT: dict[str, Callable[[tuple[Any, ...]], bool] | None] = {
    "trained": None,
    "untrained": lambda path: False,
    "untrained_keep_embeddings": is_kept,
}
