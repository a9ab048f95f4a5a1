"""Changes of a model by prompts and by updates, against each other: pairs and contrasts.

A *change* is what a prompt, or an update of the weights, makes of a zero-shot value. Every prompt
is held against every update at once, so that links (the wrong demonstrations, the wrong labels,
another query) cost one matrix product. Shapes: icljax/metrics/__init__.py, and
  P: prompts (seeds x variants).
  U: updates (seeds x variants x learning rates).
  R: seeds.
"""

import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Real

from icljax.errors import UserError
from icljax.metrics.arrays import broadcast, floats
from icljax.metrics.similarity import unit


def pairwise_cosine(
    prompts: Real[ArrayLike, "P *batch D"], updates: Real[ArrayLike, "..."]
) -> Float[Array, "P ..."]:
    """Cosine of every prompt's change and every update's (SimAOU, not normalised, of all pairs).

    Args:
      prompts: [P, ..., D] changes of attention outputs by prompts.
      updates: [U, ..., D] the same by updates.

    Returns:
      [P, U, ...] float32 or float64, in -1..1; 0 where a change is the zero vector.

    Raises:
      UserError: the shapes differ beyond the first axis.
    """
    prompts, updates = floats(prompts, updates)
    _same_beyond_first(prompts, updates)
    return jnp.einsum("P...D,U...D->PU...", unit(prompts), unit(updates), precision="highest")


def pairwise_map_cosine(
    prompts: Real[ArrayLike, "P *batch H S"],
    updates: Real[ArrayLike, "..."],
    mask: Bool[ArrayLike, "..."],
) -> Float[Array, "P ..."]:
    """Cosine of changes of attention maps, mean over heads (SimAM-delta of all pairs).

    Args:
      prompts: [P, ..., H, S] changes of attention logits by prompts.
      updates: [U, ..., H, S] the same by updates.
      mask: [..., S] bool, True at real tokens; leading axes may be 1.

    Returns:
      [P, U, ...] float32 or float64, in -1..1; a head without a change counts as 0.

    Raises:
      UserError: the shapes differ beyond the first axis, or the mask does not fit.
    """
    prompts, updates = floats(prompts, updates)
    _same_beyond_first(prompts, updates)
    keep = broadcast("mask with a head axis", jnp.asarray(mask)[..., None, :], prompts.shape[1:])
    left, right = (unit(jnp.where(keep[None], x, 0)) for x in (prompts, updates))
    total = jnp.einsum("P...HS,U...HS->PU...", left, right, precision="highest")
    return total / prompts.shape[-2]


def _same_beyond_first(prompts: Array, updates: Array) -> None:
    if prompts.shape[1:] != updates.shape[1:]:
        raise UserError(
            f"changes have shapes {prompts.shape} and {updates.shape}; expected the same after the "
            "first axis: record both on the same queries"
        )


def demonstration_specific(changes: Real[ArrayLike, "R *batch"]) -> Float[Array, "R *batch"]:
    """What of a change is owed to which demonstrations were drawn: minus the mean over seeds.

    The parts of R seeds sum to 0, so that those of two seeds have a cosine of about -1 / (R - 1)
    where nothing is alike: hold i = j against i != j.

    Args:
      changes: [R, ...] of R seeds, of one variant.
    """
    (changes,) = floats(changes)
    return changes - jnp.mean(changes, 0, keepdims=True)
