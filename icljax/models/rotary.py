"""Rotary positions: how far each pair of a head's numbers is turned.

Shape glossary: as in icljax/models/decoder.py.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Float, Int

from icljax.models.config import Rope
from icljax.types import Array


def rotate(
    x: Float[jax.Array, "B S *heads K"],
    positions: Int[jax.Array, "B S"],
    ropes: tuple[Rope, ...],
    layers: Int[Array, "#B"],
) -> Float[jax.Array, "B S *heads K"]:
    """Rotary position embedding; a negative position turns back.

    Args:
        ropes: of the layers, repeated over them; what is turned of a head is the same in all.
        layers: the layer that each row is of.
    """
    rope, width = ropes[0], ropes[0].width or x.shape[-1]
    frequency = jnp.stack([_frequencies(one, width) for one in ropes])
    if len(ropes) > 1:
        frequency = frequency[layers % len(ropes)]
    angle = positions[..., None].astype(jnp.float32) * frequency[:, None]
    angle = angle.reshape(positions.shape + (1,) * (x.ndim - 3) + (width // 2,))
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    if any(one.amplitude != 1 for one in ropes):
        size = jnp.asarray([one.amplitude for one in ropes], jnp.float32)[layers % len(ropes)]
        size = size.reshape(-1, *(1,) * (angle.ndim - 1))
        cos, sin = size * cos, size * sin
    turned = x[..., :width].astype(jnp.float32)
    pairs = turned.reshape(*turned.shape[:-1], *((-1, 2) if rope.interleaved else (2, -1)))
    axis = -1 if rope.interleaved else -2
    a, b = jnp.moveaxis(pairs, axis, 0)
    turned = jnp.stack([a * cos - b * sin, b * cos + a * sin], axis).reshape(turned.shape)
    return jnp.concatenate([turned.astype(x.dtype), x[..., width:]], -1)


def _frequencies(rope: Rope, width: int) -> jax.Array:
    """Radians a token, float32 [width / 2]; scaled where `rope` says so."""
    half = width // 2
    frequency = rope.theta ** (-jnp.arange(half, dtype=jnp.float32) / half)
    if rope.ramp is not None:
        first, last = rope.ramp
        kept = 1 - jnp.clip((jnp.arange(half) - first) / (last - first), 0, 1)
    else:
        turns = rope.original_length * frequency / (2 * jnp.pi)
        kept = jnp.clip((turns - rope.low) / (rope.high - rope.low), 0, 1)
    return frequency * (kept + (1 - kept) / rope.factor)
