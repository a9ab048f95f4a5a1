"""Layer-causal gradient descent against autodiff that is written out layer by layer.

The decoder below is one of its own, in plain einsums, of one example and one layer: neither norms
nor attention nor read-out are the package's.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from icljax.comparison import finetune
from icljax.errors import UserError
from icljax.models.config import DecoderConfig, Rope
from icljax.models.decoder import Decoder

LLAMA = DecoderConfig(
    vocab_size=50,
    num_layers=3,
    width=16,
    mlp_width=24,
    num_heads=4,
    num_kv_heads=2,
    head_width=6,
    context_length=32,
)
GPT2 = dataclasses.replace(
    LLAMA,
    num_kv_heads=4,
    norm="layer",
    positions="learned",
    position_offset=2,
    embed_scale=3.0,
    mlp="gelu_new",
    qkv_bias=True,
    output_bias=True,
    mlp_bias=True,
)
GPTJ = dataclasses.replace(
    GPT2, positions=Rope(), qkv_bias=False, block="shared_norm", tied=False, unembed_bias=True
)
LOCAL = ("lcgd", "lcgd_attention")
CASES = [*((config, method) for config in (LLAMA, GPT2) for method in LOCAL)]
CASES += [(GPTJ, "lcgd_attention")]  # its sum after attention holds nothing of the MLP
IDS = ["llama", "llama-attention", "gpt2", "gpt2-attention", "shared_norm"]
LENGTH = 9  # of the example, padded to 12
TOKENS = np.random.default_rng(0).integers(2, 50, 12).astype(np.int32)


@functools.cache
def params_of(config):
    """Random, and large enough that attention is far from uniform and biases matter."""
    rng = np.random.default_rng(1)
    at = np.zeros((1, 2), np.int32)
    shapes = jax.eval_shape(Decoder(config).init, jax.random.key(0), at, at)["params"]

    def draw(path, shape):
        noise = 0.3 * rng.standard_normal(shape.shape, np.float32)
        return noise + np.float32(path[-1].key == "scale")

    return jax.tree_util.tree_map_with_path(draw, shapes)


@functools.partial(jax.jit, static_argnums=(0, 5))
def ours(config, params, leaves, tokens, length, method):
    return finetune.gradients(Decoder(config), params, leaves, tokens, length, method)


def by_method(config, params, method):
    return ours(config, params, finetune.kv_params_of(params), TOKENS, LENGTH, method)


# ---- The reference -----------------------------------------------------------------------------


def normed(config, x, p):
    if config.norm == "layer":
        x = x - x.mean(-1, keepdims=True)
    x = x / jnp.sqrt((x**2).mean(-1, keepdims=True) + config.norm_eps)
    return x * p["scale"][None] + (p["bias"][None] if "bias" in p else 0.0)


def projected(x, p):
    kernel = p["kernel"].reshape(x.shape[-1], -1)
    return x @ kernel + (p["bias"].reshape(1, -1) if "bias" in p else 0.0)


def turned(x):
    """Rotary positions as a product of complex numbers: [U, heads, K]."""
    half = x.shape[-1] // 2
    angle = np.arange(len(x))[:, None] * 10_000.0 ** (-np.arange(half) / half)[None]
    z = (x[..., :half] + 1j * x[..., half:]) * np.exp(1j * angle)[:, None]
    return jnp.concatenate([z.real, z.imag], -1)


def attended(config, x, p):
    """Softmax attention in full: [U, D] -> [U, D], and the scaled queries [U, H * K]."""
    q, k, v = (projected(x, p[n]).reshape(len(x), -1, 6) for n in ("query", "key", "value"))
    q = queries = q / jnp.sqrt(6.0)
    if isinstance(config.positions, Rope):
        q, k = turned(q), turned(k)
    k, v = (jnp.repeat(a, config.num_heads // config.num_kv_heads, 1) for a in (k, v))
    scores = jnp.einsum("uhk,thk->hut", q, k)
    seen = np.tril(np.ones((len(x), len(x)), bool))[None]
    weights = jax.nn.softmax(jnp.where(seen, scores, -jnp.inf), -1)
    mixed = jnp.einsum("hut,thk->uhk", weights, v).reshape(len(x), -1)
    output = {**p["output"], "kernel": p["output"]["kernel"].reshape(-1, x.shape[-1])}
    return projected(mixed, output), queries.reshape(len(x), -1)


def fed(config, x, p):
    if config.mlp == "swiglu":
        return projected(jax.nn.silu(projected(x, p["gate"])) * projected(x, p["up"]), p["down"])
    return projected(jax.nn.gelu(projected(x, p["up"]), approximate=True), p["down"])


def one_layer(config, x, p):
    """[U, D] -> the sum with attention's output, the layer's output, scaled queries."""
    first = normed(config, x, p["attention_norm"])
    attention, queries = attended(config, first, p["attention"])
    after = x + attention
    second = first if config.block == "shared_norm" else normed(config, after, p["mlp_norm"])
    return after, after + fed(config, second, p["mlp"]), queries


def language_loss(config, x, params, tokens):
    x = normed(config, x, params["final_norm"])
    logits = x @ params["embed"]["embedding"].T if config.tied else projected(x, params["unembed"])
    logp = jax.nn.log_softmax(logits[:-1], -1)
    return -jnp.mean(logp[jnp.arange(len(tokens) - 1), tokens[1:]])


@functools.partial(jax.jit, static_argnums=(0, 5))
def local_gradient(config, params, layer, x, tokens, method):
    """One layer's: (gradient of its leaves, its output [U, D], queries [U, H * K], loss [])."""

    def loss(leaves):
        p = {**layer, "attention": {**layer["attention"], **leaves}}
        after, out, queries = one_layer(config, jax.lax.stop_gradient(x), p)
        read = after if method == "lcgd_attention" else out
        return language_loss(config, read, params, tokens), (out, queries)

    leaves = {name: layer["attention"][name] for name in ("key", "value")}
    gradient, (out, queries) = jax.grad(loss, has_aux=True)(leaves)
    return gradient, out, queries, language_loss(config, out, params, tokens)


def reference(config, params, tokens, method):
    """Layer after layer: (gradients, the model's loss, queries [L, U, H * K])."""
    x = params["embed"]["embedding"][tokens] * config.embed_scale
    if config.positions == "learned":
        x = x + params["embed_positions"]["embedding"][np.arange(len(tokens)) + 2]
    gradients, kept = [], []
    for number in range(config.num_layers):
        layer = jax.tree.map(lambda w, n=number: w[n], params["layers"])
        gradient, x, queries, loss = local_gradient(config, params, layer, x, tokens, method)
        gradients.append(gradient)
        kept.append(queries)
    return jax.tree.map(lambda *g: np.stack(g), *gradients), loss, np.stack(kept)


# ---- Tests -------------------------------------------------------------------------------------


def assert_close(got, expected):
    """To 1e-5 of each layer's largest number; the trees are the same."""
    assert jax.tree.structure(got) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        for layer, of in zip(np.asarray(a), np.asarray(b), strict=True):
            np.testing.assert_allclose(layer, of, rtol=0, atol=1e-5 * np.abs(of).max())


def differences(got, expected):
    """Of every layer, [L], how far two gradients are from one another, relative to the second's."""
    apart = [
        np.linalg.norm((a - b).reshape(len(b), -1), axis=1)
        / np.linalg.norm(np.asarray(b).reshape(len(b), -1), axis=1)
        for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True)
    ]
    return np.min(apart, 0), np.max(apart, 0)


@pytest.mark.parametrize(("config", "method"), CASES, ids=IDS)
def test_gradients_equal_autodiff_layer_by_layer(config, method):
    params = params_of(config)
    gradient, loss, queries = by_method(config, params, method)
    expected, final_loss, expected_queries = reference(config, params, TOKENS[:LENGTH], method)
    if config.positions == "learned":  # a key's bias moves all scores of a query alike: no gradient
        for tree in (gradient, expected):
            assert np.abs(tree["key"].pop("bias")).max() < 1e-6
    assert_close(gradient, expected)
    np.testing.assert_allclose(loss, final_loss, rtol=1e-5)
    np.testing.assert_allclose(queries[:, :LENGTH], expected_queries, atol=1e-5)


@pytest.mark.parametrize("method", ["gd", "lcgd"])
def test_later_layers_do_not_matter(method):
    params = params_of(LLAMA)
    changed = jax.tree.map(lambda w: np.concatenate([w[:2], 1.1 * w[2:]]), params["layers"])
    before, *_ = by_method(LLAMA, params, method)
    after, *_ = by_method(LLAMA, {**params, "layers": changed}, method)
    least, most = differences(after, before)
    if method == "lcgd":
        np.testing.assert_array_equal(most[:2], 0)
        assert least[2] > 0.01
    else:  # what the equality above would look like if layers were not on their own
        assert np.all(least > 0.01)


def test_only_the_last_layers_gradient_is_that_of_gradient_descent():
    params = params_of(LLAMA)
    (gd, gd_loss, gd_queries), (lcgd, loss, queries), (attention, *_) = (
        by_method(LLAMA, params, method) for method in finetune.METHODS
    )
    least, most = differences(lcgd, gd)
    assert np.all(least[:-1] > 0.1)
    assert most[-1] < 1e-5
    assert np.all(differences(attention, gd)[0] > 0.1)
    np.testing.assert_allclose(loss, gd_loss, rtol=1e-6)
    np.testing.assert_allclose(queries, gd_queries, atol=1e-6)


@pytest.mark.parametrize("method", LOCAL)
def test_finetuning_is_steps_one_after_the_other(method):
    train = np.random.default_rng(3).integers(2, 50, (2, 3, 12)).astype(np.int32)
    rates, lengths = np.array([0.05, 0.2], np.float32), np.array([[9, 9, 9], [9, 9, 0]])
    every = np.stack([np.arange(3 * 12)] * 2)
    tuned = jax.jit(finetune.finetune, static_argnums=(0, 7))(
        Decoder(LLAMA), params_of(LLAMA), rates, train, lengths, every, None, method
    )
    for r, steps in ((0, 3), (1, 2)):  # the second run has one demonstration less
        params = params_of(LLAMA)
        for e in range(steps):
            gradient, loss, queries = reference(LLAMA, params, train[r, e, :LENGTH], method)
            np.testing.assert_allclose(tuned.loss[r, e], loss, rtol=1e-5)
            got = tuned.queries[r, :, e * 12 : e * 12 + LENGTH]
            np.testing.assert_allclose(got, queries, atol=1e-5)
            leaves = finetune.kv_params_of(params)
            leaves = jax.tree.map(lambda w, g, rate=rates[r]: w - rate * g, leaves, gradient)
            params = finetune.with_kv_params(params, leaves)
        assert_close(jax.tree.map(lambda x, r=r: x[r], tuned.kv_params), leaves)
    assert tuned.loss[1, 2] == 0


def test_logits_of_one_layer_are_in_memory_at_a_time():
    def temporary(layers, method):
        config = dataclasses.replace(LLAMA, num_layers=layers, vocab_size=20_000)
        params = jax.eval_shape(lambda: params_of(config))
        leaves = finetune.kv_params_of(params)
        lowered = ours.lower(config, params, leaves, TOKENS, LENGTH, method)
        return lowered.compile().memory_analysis().temp_size_in_bytes

    logits = 4 * 11 * 20_000
    assert temporary(9, "lcgd") - temporary(3, "lcgd") < logits


def test_an_unknown_method_is_refused():
    message = r"finetune.method is 'sgd'; expected one of gd, lcgd, lcgd_attention"
    with pytest.raises(UserError, match=message):
        finetune.finetune(
            Decoder(LLAMA),
            params_of(LLAMA),
            np.ones(1),
            np.zeros((1, 1, 4), np.int32),
            np.full((1, 1), 4),
            np.zeros((1, 1), np.int32),
            method="sgd",
        )
