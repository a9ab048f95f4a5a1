"""Updates that no loss has made: random ones, brought to the size of finetuning's.

Shape glossary: see icljax/comparison/finetune.py.
"""

from typing import Any, cast

import jax
import jax.numpy as jnp

from icljax.attention.mixing import Past
from icljax.comparison.finetune import kv_params_of, with_kv_params
from icljax.data.prompts import Demonstrations
from icljax.models.decoder import Block, Decoder
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

    No gradient passes a layer's input, as in `finetune.layer_gradients`.
    """
    index = jnp.arange(tokens.shape[0], dtype=jnp.int32)[None]
    past, valid = Past(index + 1, None, None), (index < length)[..., None, None]

    def layer(x: jax.Array, inputs: tuple[jax.Array, Params, Params]) -> tuple[Any, Params]:
        number, weights, kv_params = inputs

        def product(kv_params: Params) -> tuple[jax.Array, jax.Array]:
            own = with_kv_params({"layers": weights}, kv_params)["layers"]
            args = (x, (number, None), None, index, past, None)
            streams: Any = Block(model.config).apply({"params": own}, *args, method="streams")
            _, out, left = streams
            made = jnp.stack([left.keys, left.values])
            errors = jax.random.normal(jax.random.fold_in(key, number), made.shape)
            return jnp.sum(jnp.where(valid, made * errors, 0)), out

        gradient, out = jax.grad(product, has_aux=True)(kv_params)
        return out, gradient

    start = cast(jax.Array, model.apply({"params": params}, tokens[None], index, method="embedded"))
    numbers = jnp.arange(model.config.num_layers)
    kv_params = kv_params_of(params)
    gradient: Params = jax.lax.scan(layer, start, (numbers, params["layers"], kv_params))[1]
    return gradient


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
