"""Random updates: of the right form, and of the right size."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from icljax.comparison import synthetic
from icljax.comparison.finetune import kv_params_of, with_kv_params
from icljax.models.config import DecoderConfig
from icljax.models.decoder import Decoder, init_params

CONFIG = DecoderConfig(
    vocab_size=11,
    width=8,
    num_layers=2,
    num_heads=2,
    num_kv_heads=1,
    head_width=4,
    mlp_width=16,
    context_length=16,
)
TOKENS = jnp.asarray([1, 4, 2, 7, 0, 0], jnp.int32)
LENGTH = jnp.asarray(4, jnp.int32)


@pytest.fixture(scope="module")
def model():
    params = init_params(CONFIG, jax.random.key(3))
    return Decoder(CONFIG), jax.tree.map(lambda x: 5 * x, params)


def made(model, kv_params, params):
    """Keys and values of an example's own tokens, of every layer: [2, L, 1, S, G, K]."""
    index = jnp.arange(len(TOKENS), dtype=jnp.int32)[None]
    variables = {"params": with_kv_params(params, kv_params)}
    out = model.apply(variables, TOKENS[None], index, method="hidden")
    return np.asarray(jnp.stack([out.keys, out.values])[:, :, :, : int(LENGTH)], np.float64)


@pytest.mark.parametrize("layer", [0, 1])
def test_gradients_are_of_a_layers_own_keys_and_values(model, layer):
    """Keys and values are linear in their matrices: a change of one layer's says its gradient."""
    decoder, params = model
    key, base = jax.random.key(0), kv_params_of(params)
    gradient = synthetic.random_gradients(decoder, params, TOKENS, LENGTH, key)
    shape = (2, 1, len(TOKENS), CONFIG.num_kv_heads, CONFIG.head_width)
    errors = jax.random.normal(jax.random.fold_in(key, layer), shape)[:, :, : int(LENGTH)]
    direction = jax.tree.map(
        lambda x: jnp.zeros_like(x).at[layer].set(jax.random.normal(key, x.shape[1:])), base
    )
    moved = jax.tree.map(jnp.add, base, direction)
    change = (made(decoder, moved, params) - made(decoder, base, params))[:, layer]
    expected = np.sum(change * np.asarray(errors, np.float64))
    got = sum(
        float(jnp.vdot(g, d))
        for g, d in zip(jax.tree.leaves(gradient), jax.tree.leaves(direction), strict=True)
    )
    assert got == pytest.approx(expected, rel=1e-4)
    assert abs(got) > 0.1


def test_sized_by_hand():
    base = {"w": jnp.asarray([[1.0, 0.0], [0.0, 0.0]])}  # two layers
    finetuned = {"w": jnp.asarray([[1.0, 3.0], [0.0, 0.5]])}
    direction = {"w": jnp.asarray([[2.0, 0.0], [3.0, 4.0]])}
    got = synthetic.sized(base, finetuned, direction, 2.0)
    np.testing.assert_allclose(got["w"], [[7.0, 0.0], [0.6, 0.8]], rtol=1e-6)


def test_noise_differs_by_seed_and_leaf(model):
    base = kv_params_of(model[1])
    one, two = (synthetic.noise(0, base, np.asarray(n)) for n in (1, 2))
    for a, b, leaf in zip(*map(jax.tree.leaves, (one, two, base)), strict=True):
        assert a.shape == leaf.shape
        assert np.abs(a - b).max() > 0.1
    assert np.abs(one["key"]["kernel"] - one["value"]["kernel"]).max() > 0.1
