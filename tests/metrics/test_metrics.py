import functools
import json
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads
from scipy import stats

from icljax import metrics
from icljax.errors import UserError

GOLDEN = pathlib.Path(__file__).parent / "golden"  # its README names the origin


@pytest.fixture(autouse=True)
def _no_rank_promotion():
    with jax.numpy_rank_promotion("raise"):
        yield


def _rng(seed=0):
    return np.random.default_rng(seed)


# --------------------------------------------------------------------------------------- golden


def _compute_golden(records, example_ids):
    """All golden figures, per layer, from one pytree of records."""
    r = records
    right = {s: r[f"pred_{s}"] == r["label"] for s in ("zsl", "ft", "icl")}
    outputs = [r[f"attn_out_{s}"] for s in ("zsl", "ft", "icl")]
    maps = {s: r[f"scores_query_{s}"] for s in ("zsl", "ft", "icl")}
    mask = r["query_mask"][:, None, :]
    ft = metrics.finetuning_attention(r["q_train"], r["q_test"])
    icl = r["scores_demo"]
    by_example = functools.partial(
        metrics.example_attention, example_ids=example_ids, num_examples=24
    )
    per_example = {
        "sim_aou": metrics.sim_aou(*outputs),
        "sim_am_before": metrics.sim_am(maps["icl"], maps["zsl"], mask),
        "sim_am_after": metrics.sim_am(maps["icl"], maps["ft"], mask),
        "kendall_token": metrics.kendall_tau(icl, ft),
        "kendall_example": metrics.kendall_tau(by_example(icl), by_example(ft)),
        "topk_recall_token_100": metrics.topk_recall(icl, ft, 100),
        "topk_recall_example_5": metrics.topk_recall(by_example(icl), by_example(ft), 5),
    }
    figures = {name: jnp.mean(value, axis=0) for name, value in per_example.items()}
    return figures | {"rec2ftp": metrics.rec2ftp(right["zsl"], right["ft"], right["icl"])}


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "jit"])
@pytest.mark.parametrize(("x64", "tolerance"), [(True, 1e-6), (False, 1e-4)], ids=["f64", "f32"])
def test_golden_values_of_the_reference_code(x64, tolerance, compiled):
    records = dict(np.load(GOLDEN / "records.npz"))
    expected = json.loads((GOLDEN / "expected.json").read_text())
    lengths = records.pop("demo_lengths")
    example_ids = np.repeat(np.arange(24), lengths)
    compute = jax.jit(_compute_golden) if compiled else _compute_golden
    with jax.enable_x64(x64):
        figures = compute(jax.tree.map(jnp.asarray, records), example_ids)
    assert figures["sim_aou"].dtype == (np.float64 if x64 else np.float32)
    assert figures.keys() == expected.keys()
    for name, value in expected.items():
        allowed = 0.02 if name.startswith("topk") else tolerance * max(1, np.max(value))
        np.testing.assert_allclose(figures[name], value, rtol=0, atol=allowed, err_msg=name)


# ---------------------------------------------------------------------------- accuracy, Rec2FTP


def test_accuracy_by_hand():
    pred = np.array([[0, 1, 1, 0], [1, 1, 1, 1]])
    np.testing.assert_allclose(metrics.accuracy(pred, np.array([0, 1, 0, 0])), [0.75, 0.25])


def test_accuracy_of_misfitting_labels_names_both_shapes():
    with pytest.raises(UserError, match=r"\(3,\).*\(2, 4\)"):
        metrics.accuracy(np.zeros((2, 4), int), np.zeros(3, int))


ZSL = np.array([False, False, False, True, False])
FT = np.array([True, True, False, True, True])
ICL = np.array([True, False, True, True, True])


def test_rec2ftp_by_hand():
    recovered, ft_only = metrics.rec2ftp_counts(ZSL, FT, ICL)
    assert (recovered, ft_only) == (2, 3)
    np.testing.assert_allclose(metrics.rec2ftp(ZSL, FT, ICL), 200 / 3, rtol=1e-6)


def test_rec2ftp_weights_are_repeats():
    times = np.array([3, 1, 2, 0, 1])
    repeated = metrics.rec2ftp(*(np.repeat(a, times) for a in (ZSL, FT, ICL)))
    np.testing.assert_allclose(metrics.rec2ftp(ZSL, FT, ICL, times), repeated, rtol=1e-6)
    np.testing.assert_allclose(repeated, 80.0, rtol=1e-6)


def test_rec2ftp_is_nan_where_finetuning_repairs_nothing():
    right = np.array([[True, False], [False, False]])
    ft = np.array([[True, False], [True, False]])
    np.testing.assert_array_equal(metrics.rec2ftp(right, ft, ft), [np.nan, 100.0])


def test_rec2ftp_refuses_predictions():
    with pytest.raises(UserError, match="ft_correct is int32; expected bool"):
        metrics.rec2ftp(ZSL, FT.astype(np.int32), ICL)


# --------------------------------------------------------------------------------- similarities


def _cosine(a, b):
    return np.dot(a, b) / np.linalg.norm(a) / np.linalg.norm(b)


@pytest.mark.parametrize("normalize", [True, False])
def test_sim_aou_against_plain_numpy(normalize):
    zsl, ft, icl = _rng().normal(size=(3, 2, 5, 8))
    out = metrics.sim_aou(zsl, ft, icl, normalize=normalize)
    assert out.shape == (2, 5)
    if normalize:
        zsl, ft, icl = (a / np.linalg.norm(a, axis=-1, keepdims=True) for a in (zsl, ft, icl))
    expected = [
        [_cosine(icl[i, j] - zsl[i, j], ft[i, j] - zsl[i, j]) for j in range(5)] for i in (0, 1)
    ]
    np.testing.assert_allclose(out, expected, atol=1e-5)


@pytest.mark.parametrize("delta", [False, True])
def test_sim_am_ignores_masked_tokens_and_averages_heads(delta):
    zsl, ft, icl = _rng(1).normal(size=(3, 2, 3, 6))  # [N, H, S]
    mask = np.arange(6) < np.array([[4], [6]])
    for scores in (zsl, ft, icl):
        scores[0, :, 4:] = -np.inf  # as padding in the logits may be
    if delta:
        out = metrics.sim_am_delta(zsl, ft, icl, mask)
    else:
        out = metrics.sim_am(icl, ft, mask)
        zsl = np.zeros_like(zsl)
    expected = [
        np.mean(
            [_cosine(icl[n, h, m] - zsl[n, h, m], ft[n, h, m] - zsl[n, h, m]) for h in range(3)]
        )
        for n, m in enumerate(mask)
    ]
    np.testing.assert_allclose(out, expected, atol=1e-5)


def test_sim_am_mask_with_a_missing_layer_axis_is_refused():
    scores = np.ones((4, 4, 2, 6))  # N = L: a mask [N, S] would broadcast, wrongly
    with pytest.raises(UserError, match=r"\(4, 6\).*\(4, 4, 2, 6\)"):
        metrics.sim_am(scores, scores, np.ones((4, 6), bool))


def test_similarity_shapes_must_agree():
    with pytest.raises(UserError, match=r"zsl \(2, 4\), ft \(4,\)"):
        metrics.sim_aou(np.ones((2, 4)), np.ones(4), np.ones((2, 4)))


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_cosines_neither_overflow_nor_vanish(scale):
    a, b = _rng(2).normal(size=(2, 1, 6)).astype(np.float32)
    expected = metrics.sim_am(a, b, np.ones(6, bool))
    out = metrics.sim_am(a * scale, b * scale, np.ones(6, bool))
    np.testing.assert_allclose(out, expected, atol=1e-6)


def test_zero_updates_have_zero_similarity_and_finite_gradients():
    x, zero, mask = np.ones((1, 4), np.float32), np.zeros((1, 4), np.float32), np.ones(4, bool)
    cases = {
        "no update": (metrics.sim_aou, (x, 2 * x, 3 * x)),
        "all zero": (metrics.sim_aou, (zero, zero, zero)),
        "zero head": (lambda a, b: metrics.sim_am(a, b, mask), (x, zero)),
        "all masked": (lambda a, b: metrics.sim_am(a, b, ~mask), (x, x)),
        "unchanged": (lambda *a: metrics.sim_am_delta(*a, mask), (x, x, 2 * x)),
    }
    for name, (function, arguments) in cases.items():
        np.testing.assert_array_equal(function(*arguments), 0, err_msg=name)
        gradients = jax.grad(lambda a, f=function: jnp.sum(f(*a)))(arguments)
        assert all(np.isfinite(g).all() for g in gradients), name


@pytest.mark.parametrize("normalize", [True, False])
def test_sim_aou_gradient_against_finite_differences(normalize):
    with jax.enable_x64(True):
        arrays = tuple(jnp.asarray(a) for a in _rng(3).normal(size=(3, 2, 5)))
        function = functools.partial(metrics.sim_aou, normalize=normalize)
        check_grads(function, arrays, order=1, modes=["rev"], atol=1e-5, rtol=1e-5)


# ------------------------------------------------------------------------- attention to examples


def test_finetuning_attention_is_the_product_summed_over_heads():
    q_train, q_test = _rng(4).normal(size=(2, 3, 8)), _rng(5).normal(size=(5, 2, 8))
    out = metrics.finetuning_attention(q_train, q_test)
    heads_train, heads_test = q_train.reshape(2, 3, 4, 2), q_test.reshape(5, 2, 4, 2)
    expected = np.zeros((5, 2, 3))
    for n, layer, t in np.ndindex(expected.shape):
        by_head = [heads_train[layer, t, h] @ heads_test[n, layer, h] for h in range(4)]
        expected[n, layer, t] = sum(by_head)
    np.testing.assert_allclose(out, expected, atol=1e-5)


def test_finetuning_attention_names_misfitting_shapes():
    with pytest.raises(UserError, match=r"\(2, 3, 8\).*\(5, 3, 8\)"):
        metrics.finetuning_attention(np.ones((2, 3, 8)), np.ones((5, 3, 8)))


def test_example_attention_by_hand():
    weights = np.array([1, 2, 3, 4, 6], np.float32)  # their logarithms are the scores
    ids = np.array([0, 0, 2, -1, 2])
    out = metrics.example_attention(np.log(weights)[None], ids, 4)
    np.testing.assert_allclose(out, [[3 / 12, 0, 9 / 12, 0]], rtol=1e-6)


def test_example_attention_with_nothing_left_or_huge_left_out_scores():
    scores = np.array([1e30, 0.0, 0.0], np.float32)
    out = metrics.example_attention(scores, np.full(3, -1), 2)
    np.testing.assert_array_equal(out, [0, 0])
    ids = np.array([-1, 0, 1])
    first = jax.grad(lambda s: metrics.example_attention(s, ids, 2)[0])(scores)
    np.testing.assert_allclose(first, [0, 0.25, -0.25], atol=1e-6)


def test_example_attention_wants_an_id_for_each_token():
    with pytest.raises(UserError, match=r"\(2,\).*\(5, 3\)"):
        metrics.example_attention(np.ones((5, 3)), np.zeros(2, int), 2)


# -------------------------------------------------------------------------------------- Kendall


def _scipy_tau(x, y):
    if len(x) < 2:  # SciPy gives NaN and warns
        return np.nan
    return stats.kendalltau(x, y).statistic


def _rankings(items, batch=5, levels=None, seed=0):
    """Correlated scores; `levels` rounds them, to make ties."""
    x, noise = _rng(seed).normal(size=(2, batch, items))
    y = x + noise
    if levels is not None:
        x, y = np.round(x * levels), np.round(y * levels)
    return x.astype(np.float32), y.astype(np.float32)


# Around the odd lengths that a step (33, 65) and a round (481) fill exactly, and far from them.
@pytest.mark.parametrize("items", [2, 3, 7, 32, 33, 34, 65, 100, 480, 481, 482, 700])
@pytest.mark.parametrize("levels", [None, 3, 0.5], ids=["no ties", "ties", "many ties"])
def test_kendall_equals_scipy(items, levels):
    x, y = _rankings(items, levels=levels)
    expected = [_scipy_tau(a, b) for a, b in zip(x, y, strict=True)]
    np.testing.assert_allclose(metrics.kendall_tau(x, y), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("items", [33, 481, 1500])
def test_kendall_extremes_do_not_overflow_the_packed_counts(items, sign):
    x = _rng(items).permutation(items).astype(np.float32)
    np.testing.assert_allclose(metrics.kendall_tau(x, sign * x), sign, atol=1e-6)


@pytest.mark.parametrize("levels", [None, 2], ids=["no ties", "ties"])
def test_kendall_leaves_masked_items_out(levels):
    x, y = _rankings(90, levels=levels, seed=1)
    mask = _rng(2).random(x.shape) < np.array([[1.0], [0.8], [0.5], [0.1], [0.0]])
    expected = [_scipy_tau(a[m], b[m]) for a, b, m in zip(x, y, mask, strict=True)]
    x[~mask] = np.nan  # whatever stands there
    np.testing.assert_allclose(metrics.kendall_tau(x, y, mask), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16, jnp.int32, jnp.bool_])
def test_kendall_of_other_dtypes(dtype):
    x, y = (jnp.asarray(5 * a).astype(dtype) for a in _rankings(60, seed=3))
    expected = [_scipy_tau(a, b) for a, b in zip(np.float64(x), np.float64(y), strict=True)]
    out = metrics.kendall_tau(x, y)
    assert out.dtype == np.float32
    np.testing.assert_allclose(out, expected, rtol=0, atol=1e-6)


def test_kendall_in_float64_sees_differences_below_float32():
    x = 1 + 1e-12 * np.arange(40.0)
    y = x[_rng(4).permutation(40)]
    with jax.enable_x64(True):
        out = metrics.kendall_tau(x, y)
    assert out.dtype == np.float64
    np.testing.assert_allclose(out, _scipy_tau(x, y), rtol=0, atol=1e-12)


UNDEFINED = {
    "no item": ([], []),
    "one item": ([1.0], [2.0]),
    "x constant": ([1.0, 1.0, 1.0], [1.0, 2.0, 3.0]),
    "both constant": ([1.0, 1.0], [2.0, 2.0]),
    "a NaN": ([1.0, np.nan, 3.0], [1.0, 2.0, 3.0]),
}


@pytest.mark.parametrize(("x", "y"), UNDEFINED.values(), ids=UNDEFINED)
def test_kendall_is_nan_where_undefined(x, y):
    assert np.isnan(metrics.kendall_tau(np.array(x), np.array(y)))


def test_kendall_orders_infinities_and_signed_zeros_as_scipy_does():
    x = np.array([-np.inf, -0.0, 0.0, 1.0, np.inf, np.inf])
    y = np.array([0.0, 2.0, 1.0, 1.0, np.inf, 5.0])
    np.testing.assert_allclose(metrics.kendall_tau(x, y), _scipy_tau(x, y), atol=1e-6)


@pytest.mark.parametrize("chunk", [1, 4, 6, 1000])
def test_kendall_does_not_depend_on_the_chunk(chunk):
    x, y = (a.reshape(2, 3, 50) for a in _rankings(50, batch=6, levels=2))
    out = metrics.kendall_tau(x, y, chunk=chunk)
    assert out.shape == (2, 3)
    expected = [[_scipy_tau(x[i, j], y[i, j]) for j in range(3)] for i in range(2)]
    np.testing.assert_allclose(out, expected, rtol=0, atol=1e-6)


def test_kendall_memory_is_bounded_by_the_chunk():
    shape = jax.ShapeDtypeStruct((4096, 700), np.float32)
    tau = jax.jit(metrics.kendall_tau, static_argnames="chunk")
    analysis = tau.lower(shape, shape, chunk=64).compile().memory_analysis()
    inputs = 2 * 4096 * 700 * 4  # marked and padded copies; all pairs would take 700 times as much
    assert analysis.temp_size_in_bytes < 3 * inputs


def test_kendall_refuses_what_would_overflow():
    with pytest.raises(UserError, match=r"70000 items.*at most 65536"):
        metrics.kendall_tau(np.zeros(70_000, np.float32), np.zeros(70_000, np.float32))


# ---------------------------------------------------------------------------------- top-k recall


def test_topk_recall_by_hand():
    x = np.array([[9, 8, 7, 0, 0, 1], [9, 8, 7, 0, 0, 1]])
    y = np.array([[9, 0, 8, 7, 0, 1], [0, 1, 0, 9, 8, 7]])
    np.testing.assert_allclose(metrics.topk_recall(x, y, 3), [2 / 3, 0], rtol=1e-6)


def test_topk_recall_masks_and_shrinks_k():
    x = np.array([9.0, 8.0, 7.0, 1.0])
    y = np.array([9.0, 1.0, 7.0, 8.0])
    mask = np.array([[False, True, True, True], [False, False, True, True], [False] * 4])
    out = metrics.topk_recall(np.tile(x, (3, 1)), np.tile(y, (3, 1)), 2, mask)
    np.testing.assert_array_equal(out, [0.5, 1.0, np.nan])
    np.testing.assert_array_equal(metrics.topk_recall(x, y, 100), 1.0)


def test_topk_recall_refuses_no_items():
    with pytest.raises(UserError, match="k is 0; expected at least 1"):
        metrics.topk_recall(np.ones(3), np.ones(3), 0)


# --------------------------------------------------------------------- baselines and calibration


def test_random_baselines_are_seeded_and_only_the_uniform_ones_correlate():
    keys = jax.random.split(jax.random.key(0), 2)
    mask = np.ones(4096, bool)
    cosine = {}
    for kind in ("gaussian", "uniform"):
        a, b = (metrics.random_update(key, (1, 4096), kind) for key in keys)
        np.testing.assert_array_equal(a, metrics.random_update(keys[0], (1, 4096), kind))
        cosine[kind] = float(metrics.sim_am(a, b, mask))
    assert abs(cosine["gaussian"]) < 0.06
    np.testing.assert_allclose(cosine["uniform"], 0.75, atol=0.03)  # (1/2)^2 / (1/3)


def test_random_baseline_of_unknown_kind():
    with pytest.raises(UserError, match="'normal'; expected 'gaussian' or 'uniform'"):
        metrics.random_update(jax.random.key(0), (2,), "normal")


def test_calibration_removes_a_constant_preference():
    logprob = _rng(6).normal(size=(3, 10, 2)).astype(np.float32)
    shifted = logprob + np.array([[[5.0, -1.0]]], np.float32)
    out = metrics.calibrate(shifted)
    np.testing.assert_allclose(out, logprob - logprob.mean(1, keepdims=True), atol=1e-5)


# ------------------------------------------------------------------------------------- bootstrap


def test_bootstrap_weights_are_multinomial_counts():
    weights = np.asarray(metrics.bootstrap_weights(jax.random.key(0), 50, 4000))
    assert weights.dtype == np.float32
    assert (weights == weights.round()).all()
    np.testing.assert_array_equal(weights.sum(1), 50)
    np.testing.assert_allclose(weights.mean(0), 1, atol=0.08)
    np.testing.assert_allclose(weights.var(), 1 - 1 / 50, atol=0.03)


def test_bootstrap_interval_agrees_with_scipy():
    values = _rng(7).exponential(size=(60, 2)).astype(np.float32)
    weights = metrics.bootstrap_weights(jax.random.key(1), 60, 8000)
    expected = stats.bootstrap(
        (values,), np.mean, axis=0, method="percentile", n_resamples=8000, rng=_rng(8)
    ).confidence_interval
    low, high = metrics.bootstrap_interval(weights, values)
    np.testing.assert_allclose([low, high], [expected.low, expected.high], atol=0.02)


def test_bootstrap_interval_leaves_missing_entries_out():
    values = _rng(9).normal(size=30).astype(np.float32)
    holes = np.stack([values, np.where(np.arange(30) < 20, values, np.nan), np.full(30, np.nan)], 1)
    weights = metrics.bootstrap_weights(jax.random.key(2), 30, 500)
    low, high = metrics.bootstrap_interval(weights, holes, level=0.8)
    counts = np.asarray(weights)
    means = counts @ values / 30, counts[:, :20] @ values[:20] / counts[:, :20].sum(1)
    np.testing.assert_allclose(low[:2], [np.quantile(m, 0.1) for m in means], atol=1e-5)
    np.testing.assert_allclose(high[:2], [np.quantile(m, 0.9) for m in means], atol=1e-5)
    assert np.isnan([low[2], high[2]]).all()


def test_bootstrap_ratio_interval_equals_rec2ftp_of_each_resample():
    zsl, ft, icl = _rng(10).random((3, 40)) < np.array([[0.4], [0.6], [0.7]])
    weights = metrics.bootstrap_weights(jax.random.key(3), 40, 300)
    ft_only = ~zsl & ft
    interval = metrics.bootstrap_ratio_interval(weights, ft_only & icl, ft_only)
    resamples = jax.vmap(functools.partial(metrics.rec2ftp, zsl, ft, icl))(weights)
    expected = np.quantile(resamples, [0.025, 0.975])
    np.testing.assert_allclose(100 * np.array(interval), expected, rtol=1e-5)


def _crossed_weights():
    """Of 30 examples and of 4 seeds; one shape for all that use them, to compile once."""
    keys = jax.random.split(jax.random.key(4))
    sizes = zip(keys, (30, 4), strict=True)
    return [metrics.bootstrap_weights(key, count, 300) for key, count in sizes]


@pytest.mark.parametrize("missing", [False, True])
def test_bootstrap_over_seeds_draws_the_same_examples_in_every_seed(missing):
    """Against resamples made one by one, with and without holes."""
    values = _rng(13).normal(size=(4, 30)).astype(np.float32)
    values += _rng(14).normal(size=(4, 1)).astype(np.float32)
    if missing:
        values[_rng(15).random(values.shape) < 0.2] = np.nan
    weights, seeds = _crossed_weights()
    interval = metrics.bootstrap_interval(weights, values, seed_weights=seeds)
    means = []
    for of_examples, of_seeds in zip(np.asarray(weights, int), np.asarray(seeds, int), strict=True):
        drawn = values.repeat(of_seeds, 0).repeat(of_examples, 1)
        means.append(np.nanmean(drawn))
    np.testing.assert_allclose(interval, np.quantile(means, [0.025, 0.975]), atol=1e-5)


def test_bootstrap_over_seeds_is_wider_where_seeds_differ_and_the_same_for_one():
    values = _rng(16).normal(size=(4, 30)).astype(np.float32)
    weights, seeds = _crossed_weights()

    def width(values, seeds=None):
        low, high = metrics.bootstrap_interval(weights, values, seed_weights=seeds)
        return float(high - low)

    apart = values + 3 * np.arange(4, dtype=np.float32)[:, None]
    assert width(apart, seeds) > 3 * width(apart.mean(0))
    one = np.ones((300, 1), np.float32)
    assert width(values[:1], one) == pytest.approx(width(values[0]), rel=1e-5)


def test_bootstrap_of_a_value_that_all_seeds_share_is_over_examples_alone():
    values = _rng(17).normal(size=30).astype(np.float32)
    weights, seeds = _crossed_weights()
    shared = metrics.bootstrap_interval(weights, np.tile(values, (4, 1)), seed_weights=seeds)
    alone = metrics.bootstrap_interval(weights, values)
    np.testing.assert_allclose(shared, alone, atol=1e-5)


def test_bootstrap_refuses_misfits():
    weights = np.ones((5, 4), np.float32)
    with pytest.raises(UserError, match=r"\(5, 4\).*\(3,\)"):
        metrics.bootstrap_interval(weights, np.ones(3))
    with pytest.raises(UserError, match=r"\(5, 2\) and \(5, 4\).*\(3, 4\)"):
        metrics.bootstrap_interval(weights, np.ones((3, 4)), seed_weights=np.ones((5, 2)))
    with pytest.raises(UserError, match="level is 95"):
        metrics.bootstrap_interval(weights, np.ones(4), level=95)


# ---------------------------------------------------------------------- every function, together

_A, _B, _C = _rng(11).normal(size=(3, 4, 3, 6)).astype(np.float32)
_MASK = _rng(12).random((4, 6)) < 0.8
_BOOL = _A > 0
TRANSFORMED = {
    "accuracy": (lambda a, b: metrics.accuracy(a, b), (_BOOL, _B > 0)),
    "rec2ftp": (metrics.rec2ftp, (_BOOL, _B > 0, _C > 0)),
    "sim_aou": (metrics.sim_aou, (_A, _B, _C)),
    "sim_am": (metrics.sim_am, (_A, _B, _MASK)),
    "sim_am_delta": (metrics.sim_am_delta, (_A, _B, _C, _MASK)),
    "finetuning_attention": (metrics.finetuning_attention, (_A[:, None], _B[:, :, None])),
    "example_attention": (
        lambda a: metrics.example_attention(a, np.array([0, 0, 1, -1, 1, 2]), 3),
        (_A,),
    ),
    "kendall_tau": (metrics.kendall_tau, (_A, _B)),
    "topk_recall": (lambda a, b: metrics.topk_recall(a, b, 2), (_A, _B)),
    "calibrate": (metrics.calibrate, (_A,)),
}


@pytest.mark.parametrize(("function", "arguments"), TRANSFORMED.values(), ids=TRANSFORMED)
def test_vmap_and_jit_equal_a_loop(function, arguments):
    one_by_one = np.stack([function(*row) for row in zip(*arguments, strict=True)])
    out = jax.jit(jax.vmap(function))(*arguments)
    np.testing.assert_allclose(out, one_by_one, atol=1e-6)


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
@pytest.mark.parametrize("name", ["sim_aou", "sim_am_delta", "example_attention", "calibrate"])
def test_narrow_floats_are_raised_to_float32(name, dtype):
    function, arguments = TRANSFORMED[name]
    narrow = [a if a.dtype == bool else jnp.asarray(a, dtype) for a in arguments]
    out = function(*narrow)
    wide = function(*(a if a.dtype == bool else np.float32(a) for a in narrow))
    assert out.dtype == np.float32
    np.testing.assert_array_equal(out, wide)


def test_importing_the_metrics_brings_in_nothing_heavier_than_jax():
    code = "import sys, icljax.metrics; print(*sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    heavy = {"flax", "optax", "scipy", "torch", "tensorflow_datasets", "ml_collections"}
    assert "jax" in (modules := set(loaded.stdout.split()))
    assert not heavy & modules


# ------------------------------------------------------------------------------------------ steps


def test_relative_change_is_the_step_beside_the_start():
    start, end = np.array([[3.0, 4.0], [0.0, 0.0]]), np.array([[3.0, 1.0], [1.0, 0.0]])
    np.testing.assert_allclose(metrics.relative_change(start, end), [3 / 5, np.nan])
    with pytest.raises(UserError, match="shapes differ"):
        metrics.relative_change(start, end[:1])


def test_kl_divergence_is_scipys_and_passes_over_missing_candidates():
    rng = np.random.default_rng(0)
    scores = rng.normal(size=(2, 5, 4))
    p, q = np.exp(scores) / np.exp(scores).sum(-1, keepdims=True)
    expected = stats.entropy(p, q, axis=-1)
    np.testing.assert_allclose(metrics.kl_divergence(*scores), expected, rtol=1e-5)
    np.testing.assert_allclose(metrics.kl_divergence(scores[0], scores[0]), 0, atol=1e-6)
    padded = np.concatenate([scores, np.full((2, 5, 1), -np.inf)], -1)
    np.testing.assert_allclose(metrics.kl_divergence(*padded), expected, rtol=1e-5)
