"""Updates that no loss has made: random ones, brought to the size of finetuning's.

Shape glossary: see icljax/comparison/finetune.py.
"""

import jax
import jax.numpy as jnp

from icljax.comparison.finetune import each_layer, kv_params_of
from icljax.models.decoder import Decoder, LayerOutput
from icljax.types import Array, Params


def random_step(
    model: Decoder, seed: int, params: Params, train: Array, train_length: Array, number: Array
) -> Params:
    """A step for error signals drawn at random: leaves as `kv_params_of(params)`.

    Finetuning changes a matrix by a sum of x e^T over the training tokens: x, what enters it, and
    e, the loss's gradient of what leaves it. Here x is as in zero-shot and e is Gaussian.

    Args:
        train, train_length: int32 [E, U] and [E], a seed's examples.
        number: int32 [], which seed that is.
    """
    drawn = jax.random.fold_in(jax.random.key(seed), number)

    def add(total: Params, example: tuple[Array, Array, Array]) -> tuple[Params, None]:
        tokens, length, place = example
        of_example = jax.random.fold_in(drawn, place)
        step = random_gradients(model, params, tokens, length, of_example)
        return jax.tree.map(jnp.add, total, step), None

    start = jax.tree.map(jnp.zeros_like, kv_params_of(params))
    out: Params = jax.lax.scan(add, start, (train, train_length, jnp.arange(train.shape[0])))[0]
    return out


def random_gradients(
    model: Decoder, params: Params, tokens: Array, length: Array, key: jax.Array
) -> Params:
    """Of key and value leaves, for random gradients of an example's keys and values.

    No gradient passes a layer's input, as in `finetune.each_layer`.
    """
    valid = (jnp.arange(tokens.shape[0]) < length)[None, :, None, None]

    def product(number: jax.Array, _: jax.Array, __: jax.Array, left: LayerOutput) -> jax.Array:
        made = jnp.stack([left.keys, left.values])
        errors = jax.random.normal(jax.random.fold_in(key, number), made.shape)
        return jnp.sum(jnp.where(valid, made * errors, 0))

    return each_layer(model, params, kv_params_of(params), jnp.asarray(tokens), product)[1]


def sized(base: Params, finetuned: Params, direction: Params, scale: Array | float = 1.0) -> Params:
    """`base` plus `direction`, each matrix with the Frobenius norm of finetuning's change.

    Args:
        base, finetuned, direction: key and value leaves [L, ...]; each layer's is one matrix (or
            bias).
        scale: float32 [], times that norm.

    Returns:
        As `finetuned`.
    """

    def one(before: jax.Array, after: jax.Array, direction: jax.Array) -> jax.Array:
        def size(x: jax.Array) -> jax.Array:
            return jnp.sqrt(jnp.sum(x**2, tuple(range(1, x.ndim)), keepdims=True))

        times = scale * size(after - before) / jnp.maximum(size(direction), 1e-30)
        return before + direction * times

    return jax.tree.map(one, base, finetuned, direction)


def noise(seed: int, base: Params, number: Array) -> Params:
    """A Gaussian direction for seed `number`, int32 []: leaves as `base`."""
    leaves, tree = jax.tree.flatten(base)
    drawn = jax.random.fold_in(jax.random.key(seed), number)
    directions = [
        jax.random.normal(jax.random.fold_in(drawn, place), leaf.shape, leaf.dtype)
        for place, leaf in enumerate(leaves)
    ]
    return jax.tree.unflatten(tree, directions)
