"""sim_update against the matrices that it never forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from icljax.comparison import pairs
from icljax.comparison.forward import Records
from icljax.models.config import DecoderConfig, Rope
from icljax.models.decoder import AttentionRecord, State
from icljax.models.rotary import rotate

L, B, S, G, K, A = 2, 2, 9, 3, 4, 2


def records(seed, near=None, by=1.0):
    """Random keys and values of a batch, or those of `near` moved a little."""
    rng = np.random.default_rng(seed)
    keys, values = (jnp.asarray(rng.standard_normal((L, B, S, G, K)), jnp.float32) for _ in "kv")
    if near is not None:
        keys, values = near.keys + by * keys, near.values + by * values
    empty = jnp.zeros(0)
    return Records(empty, AttentionRecord(empty, empty, empty, empty), empty, keys, values)


def slot_mask():
    slots = np.array([[0, 0, 0, 0, 1, 1, 1, 1, -1], [0, 0, 1, 1, 1, 1, 1, -1, -1]])
    return jnp.asarray((slots[:, None] == np.arange(A)[:, None]).reshape(B * A, 1, S))


def dense(r, mask, dtype=np.float64):
    """sum_j v_j k_j^T of each slot: [N, L, G, V, K]."""
    per_row = np.asarray(mask, dtype).reshape(B, A, S)
    keys, values = np.asarray(r.keys, dtype), np.asarray(r.values, dtype)
    out = np.einsum("LBSGV,LBSGK,BAS->BALGVK", values, keys, per_row)
    return out.reshape(B * A, L, G, K, K)


@pytest.mark.parametrize("by", [1.0, 1e-4], ids=["far", "near"])
def test_update_similarity_equals_the_matrices(by):
    zsl, mask = records(0), slot_mask()
    ft = records(1, zsl, by)
    update = jnp.asarray(np.random.default_rng(2).standard_normal((L, G, K, K)), jnp.float32)
    got = pairs._update_similarity(zsl, ft, update, mask, jax.random.key(0))
    base, change = dense(zsl, mask), dense(ft, mask) - dense(zsl, mask)
    size = np.linalg.norm(change, axis=(-1, -2))
    of_icl = np.linalg.norm(update, axis=(-1, -2))
    of_zsl = np.linalg.norm(base, axis=(-1, -2))
    cosine = np.sum(change * np.asarray(update), (-1, -2)) / (size * of_icl)
    # float32 keys themselves carry the small change with a relative error of 1e-3.
    np.testing.assert_allclose(got["update.cosine"], cosine, atol=2e-3 if by < 1 else 1e-5)
    np.testing.assert_allclose(got["update.share_ft"], size / (size + of_zsl), rtol=2e-3)
    np.testing.assert_allclose(got["update.share_icl"], of_icl / (of_icl + of_zsl), rtol=1e-5)
    assert got["update.cosine_random"].shape == (B * A, L, G)
    assert np.abs(got["update.cosine_random"]).mean() < 0.6


def test_the_same_update_has_cosine_one():
    zsl, mask = records(0), slot_mask()
    ft = records(1, zsl, 0.1)
    change = (dense(ft, mask) - dense(zsl, mask))[1]
    got = pairs._update_similarity(
        zsl, ft, jnp.asarray(change, jnp.float32), mask, jax.random.key(0)
    )
    np.testing.assert_allclose(got["update.cosine"][1], 1, atol=1e-4)
    assert np.abs(got["update.cosine"][0]).max() < 0.99


def test_demonstration_update_stands_in_the_zero_shot_frame():
    """A query late in the long prompt sees what it would with keys `shift` tokens earlier."""
    rng = np.random.default_rng(3)
    raw = jnp.asarray(rng.standard_normal((L, 6, G, K)), jnp.float32)
    values = jnp.asarray(rng.standard_normal((L, 6, G, K)), jnp.float32)
    at, rope = jnp.broadcast_to(jnp.arange(6), (L, 6)), Rope(100.0, 2, interleaved=True, factor=2.0)
    config = DecoderConfig(9, L, K, K, G, G, K, 64, positions=rope)

    def turned(x, at):
        return rotate(x, at, (rope,), np.zeros(1, int))

    state = State(turned(raw, at), values, jnp.ones(6, bool), jnp.int32(6))
    columns, compared = np.array([1, 2, 4, 0]), jnp.array([True, True, True, False])
    update = pairs.demonstration_update(state, columns, compared, jnp.int32(5), config)
    query = jnp.asarray(rng.standard_normal((1, 1, K)), jnp.float32)
    late, early = (turned(query, jnp.full((1, 1), p))[0, 0] for p in (8, 3))
    chosen = columns[:3]
    expected = jnp.einsum("LTGV,LTGK,K->LGV", values[:, chosen], turned(raw, at)[:, chosen], late)
    np.testing.assert_allclose(jnp.einsum("LGVK,K->LGV", update, early), expected, atol=1e-5)
