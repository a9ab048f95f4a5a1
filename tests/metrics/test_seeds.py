"""Estimates, tests and verdicts over seeds."""

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from icljax import metrics
from icljax.errors import UserError
from icljax.metrics import coverage

RNG = np.random.default_rng(0)


def test_one_query_is_the_plain_t_interval():
    values = np.asarray([0.2, 0.5, 0.1, 0.4])
    estimate = metrics.seed_estimate(values[:, None])
    expected = stats.t.interval(0.95, 3, values.mean(), stats.sem(values))
    np.testing.assert_allclose(estimate.interval(), expected)
    assert estimate.mean == pytest.approx(0.3)
    two_sided = stats.ttest_1samp(values, 0.0).pvalue
    assert estimate.p_above() == pytest.approx(two_sided)


def test_crossed_error_by_hand():
    # Two seeds, two queries: 0 2 / 4 10. Means of seeds 1 and 7, of queries 2 and 6, of all 4.
    # Seeds: variance 18, over 2: 9. Rest: +-1 each, 4 / 1 = 4 a cell. Queries: variance 8, minus
    # 4 / 2: 6, over 2: 3. In all 12, with 12^2 / (9^2 / 1 + 3^2 / 1) = 1.6 degrees of freedom.
    estimate = metrics.seed_estimate(np.asarray([[0, 2], [4, 10]]))
    assert estimate.mean == pytest.approx(4)
    assert estimate.error == pytest.approx(math.sqrt(12))
    assert estimate.df == pytest.approx(1.6)


def test_trailing_axes_are_separate():
    values = RNG.normal(size=(5, 7, 3, 2))
    whole = metrics.seed_estimate(values)
    assert whole.mean.shape == (3, 2)
    one = metrics.seed_estimate(values[:, :, 1, 0])
    for field in ("mean", "error", "df"):
        assert getattr(whole, field)[1, 0] == pytest.approx(getattr(one, field))


def test_entries_that_are_not_finite_are_left_out():
    values = RNG.normal(size=(4, 6))
    values[1, 2] = np.nan
    values[3] = np.nan
    estimate = metrics.seed_estimate(values)
    expected = np.mean([values[0].mean(), np.nanmean(values[1]), values[2].mean()])
    assert estimate.mean == pytest.approx(expected)
    assert np.isfinite(estimate.error)


def test_one_seed_has_no_error_and_no_claim():
    estimate = metrics.seed_estimate(RNG.normal(size=(1, 9)))
    assert np.isfinite(estimate.mean)
    assert np.isnan(estimate.error)
    assert np.isnan(estimate.interval()).all()
    assert metrics.verdict(float(estimate.p_above()), float(estimate.p_equal(0.1))) == "open"


def test_p_values_and_interval_agree():
    estimate = metrics.seed_estimate(RNG.normal(0.5, 1, size=(6, 10)))
    low, high = (float(x) for x in estimate.interval())
    assert estimate.p_above(low) == pytest.approx(0.05)
    reach = max(abs(low), abs(high))
    assert estimate.p_equal(reach) == pytest.approx(0.05, abs=1e-9)
    assert estimate.p_equal(reach * 1.01) < 0.05 < estimate.p_equal(reach * 0.99)


def test_own_minus_other_drops_rows_and_columns():
    seeds, ahead = 5, 0.3
    rows, columns = RNG.normal(size=(seeds, 1, 1)), RNG.normal(size=(1, seeds, 1))
    queries = RNG.normal(size=7)
    matrix = rows + columns + queries + ahead * np.eye(seeds)[:, :, None]
    np.testing.assert_allclose(metrics.own_minus_other(matrix), ahead, atol=1e-12)
    noisy = matrix + RNG.normal(size=matrix.shape)
    diagonal = np.eye(seeds, dtype=bool)
    difference = noisy[diagonal].mean(0) - noisy[~diagonal].mean(0)
    np.testing.assert_allclose(metrics.own_minus_other(noisy).mean(0), difference)
    assert metrics.own_estimate(noisy).mean == pytest.approx(difference.mean())


def test_own_estimate_error_against_its_true_spread():
    """Independent cells: the variance of diagonal minus rest is 1 / R + 1 / (R (R - 1))."""
    samples, seeds = 4000, 4
    matrix = RNG.normal(size=(seeds, seeds, 1, samples))
    estimate = metrics.own_estimate(matrix)
    true = 1 / (seeds - 1)
    assert estimate.mean.var() == pytest.approx(true, rel=0.1)
    assert (estimate.error**2).mean() == pytest.approx(true, rel=0.05)


@pytest.mark.parametrize("shape", [(2, 2, 5), (3, 4, 5), (4,)])
def test_own_minus_other_refuses(shape):
    with pytest.raises(UserError, match="at least 3 seeds"):
        metrics.own_minus_other(np.zeros(shape))


def test_permutation_by_counting():
    matrix = np.asarray([[3.0, 1, 0], [0, 3, 1], [1, 0, 2]])
    sums = [sum(matrix[i, p[i]] for i in range(3)) for p in itertools.permutations(range(3))]
    assert metrics.permutation_p(matrix) == pytest.approx(np.mean(np.asarray(sums) >= 8))
    assert metrics.permutation_p(matrix) == pytest.approx(1 / 6)
    assert metrics.permutation_p(np.ones((4, 4))) == 1
    many = np.eye(12) * 5 + RNG.normal(size=(12, 12))
    assert metrics.permutation_p(many) < 1e-3
    assert 0.02 < metrics.permutation_p(RNG.normal(size=(12, 12))) <= 1


def test_holm_by_hand():
    adjusted = metrics.holm({"a": 0.04, "b": 0.01, "c": 0.03, "d": math.nan})
    assert adjusted["b"] == pytest.approx(0.03)
    assert adjusted["c"] == pytest.approx(0.06)
    assert adjusted["a"] == pytest.approx(0.06)  # never below a smaller one's
    assert math.isnan(adjusted["d"])
    assert list(adjusted) == ["a", "b", "c", "d"]


@pytest.mark.parametrize(
    ("p_above", "p_equal", "expected"),
    [
        (0.01, 0.5, "above"),
        (0.5, 0.01, "equal"),
        (0.001, 0.001, "equal"),  # surely not 0, and surely within the margin
        (0.2, 0.2, "open"),
        (math.nan, math.nan, "open"),
    ],
)
def test_verdict(p_above, p_equal, expected):
    assert metrics.verdict(p_above, p_equal) == expected


def test_seeds_needed_by_simulation():
    seeds = metrics.seeds_needed(spread=0.05, margin=0.03)
    drawn = RNG.normal(0, 0.05, size=(seeds, 1, 4000))
    shown = np.mean(metrics.seed_estimate(drawn).p_equal(0.03) < 0.05)
    assert shown == pytest.approx(0.8, abs=0.06)
    assert metrics.seeds_needed(0.0, 0.03) == 2
    assert metrics.seeds_needed(10.0, 0.03) is None


def test_ratio_by_hand():
    above, below = np.asarray([[1.0, 0], [1, 1]]), np.asarray([[1.0, 1], [1, 1]])
    estimate = metrics.ratio_estimate(above, below)
    assert estimate.mean == pytest.approx(0.75)
    plain = metrics.seed_estimate(above)  # a denominator that is the same everywhere
    assert estimate.error == pytest.approx(plain.error)
    assert np.isnan(metrics.ratio_estimate(np.zeros((3, 4)), np.zeros((3, 4))).mean)


@pytest.mark.parametrize("level", [0, 1, 1.5])
def test_level_out_of_range(level):
    with pytest.raises(UserError, match="between 0 and 1"):
        metrics.seed_estimate(np.zeros((3, 4))).interval(level)


def test_margin_out_of_range():
    with pytest.raises(UserError, match="above 0"):
        metrics.seed_estimate(np.ones((3, 4))).p_equal(0)


# The bounds are those of the claim, 93 to 97 % and 6 %, and two standard errors of the simulation.


def test_coverage_of_intervals():
    kinds = {k: v for k, v in coverage.INTERVALS.items() if "estimate" in k}
    found = coverage.rates(kinds, (3, 5, 8), 1500)
    for case, rate in found.items():
        slack = 2 * math.sqrt(0.05 * 0.95 / (400 if "own" in case[0] else 1500))
        assert 0.93 - slack <= rate <= 0.97 + slack, (case, rate)


def test_errors_of_tests():
    found = coverage.rates(coverage.TESTS, (3, 5), 2000)
    for case, rate in found.items():
        slack = 2 * math.sqrt(0.06 * 0.94 / (400 if "own" in case[0] else 2000))
        assert rate <= 0.06 + slack, (case, rate)


def test_few_seeds_are_too_sure_without_the_queries_part():
    """The simulation can fail: two intervals that are known to be too narrow are found out."""
    kinds = {k: coverage.INTERVALS[k] for k in ("t over seeds alone", "percentile bootstrap")}
    found = coverage.rates(kinds, (3,), 500)
    assert found["t over seeds alone", "queries differ", 3] < 0.92
    assert found["percentile bootstrap", "seeds differ", 3] < 0.85


def test_command_prints_both_tables(capsys):
    coverage.main(["20"])
    out = capsys.readouterr().out
    assert "Intervals at 95 %" in out
    assert "Tests at 5 %" in out
    assert len(out.splitlines()) > 40
