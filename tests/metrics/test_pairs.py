"""Contrasts of prompts and updates, and agreement in behaviour."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.spatial.distance import jensenshannon
from scipy.stats import pearsonr

from icljax import metrics
from icljax.errors import UserError

RNG = np.random.default_rng(0)


def test_pairs_equal_separate_similarities():
    """Every pair of the matrix is SimAOU, not normalised, of that prompt and that update."""
    zsl = RNG.normal(size=(4, 3, 8)).astype(np.float32)
    icl = RNG.normal(size=(2, 4, 3, 8)).astype(np.float32)
    ft = RNG.normal(size=(3, 4, 3, 8)).astype(np.float32)
    matrix = jax.jit(metrics.pairwise_cosine)(icl - zsl, ft - zsl)
    assert matrix.shape == (2, 3, 4, 3)
    for p in range(2):
        for u in range(3):
            expected = metrics.sim_aou(zsl, ft[u], icl[p], normalize=False)
            np.testing.assert_allclose(matrix[p, u], expected, atol=1e-6)


def test_pairs_of_maps_equal_separate_similarities():
    zsl = RNG.normal(size=(4, 3, 2, 6)).astype(np.float32)
    icl = RNG.normal(size=(2, 4, 3, 2, 6)).astype(np.float32)
    ft = RNG.normal(size=(3, 4, 3, 2, 6)).astype(np.float32)
    mask = RNG.random((4, 1, 6)) < 0.7
    matrix = metrics.pairwise_map_cosine(icl - zsl, ft - zsl, mask)
    for p in range(2):
        for u in range(3):
            expected = metrics.sim_am_delta(zsl, ft[u], icl[p], mask)
            np.testing.assert_allclose(matrix[p, u], expected, atol=1e-6)


def test_pairs_by_hand():
    prompts = jnp.asarray([[3.0, 0], [0, 2]])
    updates = jnp.asarray([[1.0, 1], [0, -5], [0, 0]])
    half = 0.5**0.5
    expected = [[half, 0, 0], [half, -1, 0]]
    np.testing.assert_allclose(metrics.pairwise_cosine(prompts, updates), expected, atol=1e-6)


def test_pairs_refuse_other_queries():
    with pytest.raises(UserError, match="the same after the first axis"):
        metrics.pairwise_cosine(np.zeros((2, 3, 4)), np.zeros((2, 5, 4)))


def test_demonstration_specific_sums_to_zero():
    changes = RNG.normal(size=(4, 5, 6))
    part = metrics.demonstration_specific(changes)
    np.testing.assert_allclose(jnp.sum(part, 0), 0, atol=1e-5)
    np.testing.assert_allclose(part[1] - part[0], changes[1] - changes[0], atol=1e-5)


def test_movement_correlation_of_two_labels_is_pearsons():
    zsl, ft, icl = RNG.normal(size=(3, 20, 2))

    def margin(x):
        return x[:, 0] - x[:, 1]

    expected = pearsonr(margin(icl) - margin(zsl), margin(ft) - margin(zsl)).statistic
    got = metrics.movement_correlation(zsl, ft, icl)
    assert float(got) == pytest.approx(expected, abs=1e-5)


def test_movement_correlation_ignores_what_all_queries_share():
    zsl, ft, icl = RNG.normal(size=(3, 20, 4))
    shifted = ft + RNG.normal(size=4) + RNG.normal(size=(20, 1))
    got, expected = (metrics.movement_correlation(zsl, x, icl) for x in (shifted, ft))
    assert float(got) == pytest.approx(float(expected), abs=1e-5)
    assert float(metrics.movement_correlation(zsl, icl, icl)) == pytest.approx(1, abs=1e-5)
    assert np.isnan(metrics.movement_correlation(zsl, zsl, icl))


def test_js_divergence_against_scipy():
    p, q = RNG.normal(size=(2, 7, 3))

    def share(x):
        return np.exp(x) / np.exp(x).sum(-1, keepdims=True)

    expected = jensenshannon(share(p), share(q), axis=-1) ** 2
    np.testing.assert_allclose(metrics.js_divergence(p, q), expected, atol=1e-6)
    sure = metrics.js_divergence(np.asarray([0.0, -200]), np.asarray([-200, 0.0]))
    assert float(sure) == pytest.approx(np.log(2))


def test_js_divergence_with_a_missing_candidate():
    p, q = np.asarray([0.3, -np.inf, 0.9]), np.asarray([0.1, -np.inf, 0.2])
    got, expected = metrics.js_divergence(p, q), metrics.js_divergence(p[[0, 2]], q[[0, 2]])
    assert float(got) == pytest.approx(float(expected))


def test_error_consistency_by_hand():
    one = np.asarray([1, 1, 1, 0], bool)
    other = np.asarray([1, 1, 0, 1], bool)
    # Both right with .75: by chance .5625 + .0625 = .625 alike, seen .5.
    assert float(metrics.error_consistency(one, other)) == pytest.approx((0.5 - 0.625) / 0.375)
    assert float(metrics.error_consistency(one, one)) == pytest.approx(1)
    assert np.isnan(metrics.error_consistency(np.ones(3, bool), np.ones(3, bool)))
    with pytest.raises(UserError, match="expected bool"):
        metrics.error_consistency(one.astype(int), other.astype(int))
