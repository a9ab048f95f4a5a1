"""Updates that no loss has made: random ones, brought to the size of finetuning's.

Shape glossary: see icljax/comparison/finetune.py.
"""

import jax
import jax.numpy as jnp

from icljax.comparison.finetune import each_layer, kv_params_of
from icljax.data.prompts import Demonstrations
from icljax.models.decoder import Decoder, LayerOutput
from icljax.types import Array, Params


def random_steps(
    model: Decoder, seed: int, params: Params, runs: Demonstrations, numbers: Array
) -> Params:
    """Steps for error signals drawn at random, one for each run: leaves [R, ...].

    Finetuning changes a matrix by a sum of x e^T over the training tokens: x, what enters it, and
    e, the loss's gradient of what leaves it. Here x is as in zero-shot and e is Gaussian.

    Args:
        numbers: int32 [R], which seeds the runs are.
    """
    key = jax.random.key(seed)

    def one(inputs: tuple[Array, Array, Array]) -> Params:
        train, train_length, number = inputs
        drawn = jax.random.fold_in(key, number)

        def add(total: Params, example: tuple[Array, Array, Array]) -> tuple[Params, None]:
            tokens, length, place = example
            of_example = jax.random.fold_in(drawn, place)
            step = random_gradients(model, params, tokens, length, of_example)
            return jax.tree.map(jnp.add, total, step), None

        start = jax.tree.map(jnp.zeros_like, kv_params_of(params))
        examples = (train, train_length, jnp.arange(train.shape[0]))
        return jax.lax.scan(add, start, examples)[0]

    out: Params = jax.lax.map(one, (runs.train, runs.train_length, numbers))
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


def sized(
    base: Params, finetuned: Params, directions: Params, scale: Array | float = 1.0
) -> Params:
    """`base` plus `directions`, each matrix with the Frobenius norm of finetuning's change.

    Args:
        base: key and value leaves [L, ...]; each layer's is one matrix (or bias).
        finetuned, directions: of R runs, [R, L, ...].
        scale: float32 [R], or one for all; times that norm.

    Returns:
        As `finetuned`.
    """

    def one(before: jax.Array, after: jax.Array, direction: jax.Array) -> jax.Array:
        axes = tuple(range(2, after.ndim))
        times = jnp.asarray(scale, jnp.float32).reshape(-1, *(1,) * (after.ndim - 1))

        def size(x: jax.Array) -> jax.Array:
            return jnp.sqrt(jnp.sum(x**2, axes, keepdims=True))

        before = before[None]
        share = times * size(after - before) / jnp.maximum(size(direction), 1e-30)
        return before + direction * share

    return jax.tree.map(one, base, finetuned, directions)


def noise(seed: int, base: Params, numbers: Array) -> Params:
    """A Gaussian direction for each of `numbers`, int32 [R]: leaves [R, ...]."""
    leaves, tree = jax.tree.flatten(base)
    key = jax.random.key(seed)

    def draw(index: int, leaf: jax.Array) -> jax.Array:
        def one(number: jax.Array) -> jax.Array:
            drawn = jax.random.fold_in(jax.random.fold_in(key, number), index)
            return jax.random.normal(drawn, leaf.shape, leaf.dtype)

        return jax.vmap(one)(jnp.asarray(numbers))

    return jax.tree.unflatten(tree, [draw(i, leaf) for i, leaf in enumerate(leaves)])
