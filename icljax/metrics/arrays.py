"""What every metric does with its arguments: one float dtype, shapes checked."""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from icljax.errors import UserError


def floats(*arrays: ArrayLike) -> list[jax.Array]:
    """Converts to one common float dtype, at least float32."""
    converted = [jnp.asarray(a) for a in arrays]
    dtype = jnp.promote_types(jnp.result_type(*converted), jnp.float32)
    return [a.astype(dtype) for a in converted]


def broadcast(name: str, array: ArrayLike, shape: tuple[int, ...]) -> jax.Array:
    """Broadcasts explicitly (implicit rank promotion may be forbidden), or says what is wrong."""
    array = jnp.asarray(array)
    try:
        return jnp.broadcast_to(array, shape)
    except ValueError:
        message = f"{name} has shape {array.shape}, which does not broadcast to {shape}: reshape it"
        raise UserError(message) from None


def distributions(logp: ArrayLike, logq: ArrayLike) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Scores [..., C] of two distributions -> (candidates that both have, both normalised).

    Raises:
        UserError: for different shapes.
    """
    logp, logq = floats(logp, logq)
    same_shape(logp=logp, logq=logq)
    there = jnp.isfinite(logp) & jnp.isfinite(logq)
    logp, logq = (jax.nn.log_softmax(x, -1, where=there) for x in (logp, logq))
    return there, logp, logq


def same_shape(**arrays: jax.Array) -> None:
    """Raises a UserError, naming the arrays, where their shapes differ."""
    shapes = {name: a.shape for name, a in arrays.items()}
    if len(set(shapes.values())) > 1:
        given = ", ".join(f"{name} {shape}" for name, shape in shapes.items())
        raise UserError(f"shapes differ: {given}; expected one shape: align the arrays first")
