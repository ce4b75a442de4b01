"""Statistics of few runs, against scipy, loops and simulated data."""

import itertools
from collections.abc import Callable

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from experiments.reports import statistics
from experiments.reports.statistics import Curve, Estimate

NUMBERS = st.lists(st.integers(-5, 5).map(float), min_size=2, max_size=9).map(np.array)


def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@given(st.lists(NUMBERS, min_size=1, max_size=3))
def test_the_iqm_is_scipys_trimmed_mean(scores: list[np.ndarray]) -> None:
    expected = scipy.stats.trim_mean(np.concatenate(scores), 0.25)
    np.testing.assert_allclose(statistics.iqm(scores), expected, atol=1e-12)


def test_the_iqm_by_hand() -> None:
    scores = [np.array([100.0, 1, 2, 3]), np.array([-100.0, 4, 5, 6])]
    assert statistics.iqm(scores) == (2 + 3 + 4 + 5) / 4
    assert statistics.iqm([np.array([7.0])]) == 7


@given(NUMBERS, NUMBERS)
def test_improvement_is_mann_whitneys(x: np.ndarray, y: np.ndarray) -> None:
    u = scipy.stats.mannwhitneyu(x, y, method="asymptotic", use_continuity=False)
    expected = u.statistic / (len(x) * len(y))
    np.testing.assert_allclose(statistics.improvement([x], [y]), expected)
    reverse = statistics.improvement([y], [x])
    np.testing.assert_allclose(statistics.improvement([x], [y]) + reverse, 1)


def test_improvement_is_a_mean_over_tasks_of_all_pairs() -> None:
    x = [np.array([1.0, 2, 3]), np.array([0.0, 0])]
    y = [np.array([2.0, 2.5]), np.array([0.0, -1, 5])]
    by_hand = []
    for xs, ys in zip(x, y, strict=True):
        wins = [1.0 if a > b else 0.5 if a == b else 0 for a in xs for b in ys]
        by_hand.append(sum(wins) / len(wins))
    np.testing.assert_allclose(statistics.improvement(x, y), np.mean(by_hand))


def test_aggregates_are_vectorised() -> None:
    x, y = [rng().normal(size=(4, n)) for n in (5, 7)], [rng().normal(size=(4, 3))] * 2
    for aggregate, sets in [
        (statistics.iqm, (x,)),
        (statistics.median, (x,)),
        (lambda x: statistics.fraction_above(x, 0.1), (x,)),
        (statistics.improvement, (x, y)),
    ]:
        alone = [aggregate(*[[z[i] for z in s] for s in sets]) for i in range(4)]
        np.testing.assert_allclose(aggregate(*sets), alone)


def test_the_bootstrap_is_that_of_all_resamples() -> None:
    """Of three and two runs there are 27 x 4 resamples: all can be enumerated."""
    scores = [np.array([1.0, 2, 4]), np.array([10.0, 20])]
    all_values = [
        statistics.iqm([scores[0][list(i)], scores[1][list(j)]])
        for i in itertools.product(range(3), repeat=3)
        for j in itertools.product(range(2), repeat=2)
    ]
    estimate = statistics.bootstrap(rng(), statistics.iqm, scores)
    tail = statistics.expanded_tail([3, 2])
    expected = np.quantile(all_values, [tail, 1 - tail], method="inverted_cdf")
    np.testing.assert_allclose([estimate.low, estimate.high], expected)
    assert estimate.value == statistics.iqm(scores)


def test_runs_are_resampled_within_their_task() -> None:
    """Tasks that differ a lot, runs that do not: nothing to be uncertain about."""
    scores = [np.full(3, 1.0), np.full(5, 100.0)]
    estimate = statistics.bootstrap(rng(), statistics.iqm, scores)
    assert estimate.low == estimate.value == estimate.high


@pytest.mark.parametrize(
    ("kind", "num_tasks", "num_runs", "expected"),
    [
        ("normal", 1, 3, 0.74),
        ("normal", 1, 4, 0.88),
        ("normal", 1, 5, 0.945),
        ("normal", 1, 10, 0.975),
        ("normal", 1, 20, 0.96),
        ("normal", 2, 15, 0.955),
        ("exponential", 1, 5, 0.935),
        ("exponential", 1, 10, 0.96),
        ("exponential", 1, 20, 0.96),
    ],
)
def test_the_interval_covers(
    kind: str, num_tasks: int, num_runs: int, expected: float
) -> None:
    """Of 400 sets of runs, so many hold the mean IQM of such sets in their interval.

    The standard error over 400 is 1.2 %, of three runs 2.2 %; three are allowed.  Plain
    percentiles cover 89 % of five runs.
    """
    draw = getattr(rng(), kind)
    data = draw(size=(400, num_tasks, num_runs))
    many = draw(size=(50_000, num_tasks * num_runs))
    truth = 0.0 if kind == "normal" else statistics.iqm([many]).mean()
    estimates = [
        statistics.bootstrap(rng(), statistics.iqm, list(x), num_samples=2000)
        for x in data
    ]
    covered = np.mean([x.low <= truth <= x.high for x in estimates])
    error = (expected * (1 - expected) / 400) ** 0.5
    assert abs(covered - expected) < 3 * error + 0.005


def test_tails_are_those_of_student() -> None:
    """Of 5 runs t = 2.776 at 97.5 %, times sqrt(5 / 4); of many the normal's."""
    assert statistics.expanded_tail([5]) == pytest.approx(
        scipy.stats.norm.sf(2.7764 * 1.25**0.5), rel=1e-3
    )
    assert statistics.expanded_tail([10**6]) == pytest.approx(0.025, rel=1e-4)


def test_the_difference_is_found_where_there_is_one() -> None:
    x, y = [rng().normal(size=20)], [rng().normal(size=20) + 3]
    estimate = statistics.difference(rng(), x, y)
    assert estimate.value == statistics.iqm(x) - statistics.iqm(y)
    assert estimate.low < estimate.value < estimate.high < 0
    reverse = statistics.difference(rng(), y, x)
    assert reverse.low > 0
    same = statistics.difference(rng(), x, x)
    assert same.low < same.value == 0 < same.high


def test_the_same_generator_gives_the_same_interval() -> None:
    scores = [rng().normal(size=6)]
    assert statistics.bootstrap(rng(), statistics.iqm, scores) == statistics.bootstrap(
        rng(), statistics.iqm, scores
    )


def test_one_run_has_no_interval() -> None:
    for scores in ([np.array([2.0])], [np.array([2.0]), np.array([2.0, 2.0])]):
        estimate = statistics.bootstrap(rng(), statistics.iqm, scores)
        assert estimate.value == 2
        assert np.isnan([estimate.low, estimate.high]).all()


@pytest.mark.parametrize("scores", [[], [np.array([])], [np.ones(2), np.array([])]])
def test_no_runs_are_an_error(scores: list[np.ndarray]) -> None:
    with pytest.raises(ValueError, match="each must have a run"):
        statistics.bootstrap(rng(), statistics.iqm, scores)


def test_the_profile_falls_from_one_to_nothing() -> None:
    scores = [np.array([0.0, 1, 1, 2]), np.array([1.0, 3])]
    profile = statistics.profile(rng(), scores, [-1, 0, 0.5, 1, 2.5, 3])
    expected = [1, (0.75 + 1) / 2, (0.75 + 1) / 2, (0.25 + 0.5) / 2, 0.25, 0]
    np.testing.assert_allclose(profile.value, expected)
    assert (profile.low <= profile.value).all()
    assert (profile.value <= profile.high).all()
    assert (np.diff(profile.low) <= 0).all()
    assert (np.diff(profile.high) <= 0).all()


def test_sample_efficiency_interpolates_each_run() -> None:
    steps = np.array([100.0, 150, 200])
    first = Curve(np.array([100.0, 200]), np.array([0.0, 10]))
    second = Curve(np.array([50.0, 150, 250]), np.array([0.0, 4, 4]))
    other = Curve(np.array([0.0, 1000]), np.array([0.0, 1000]))
    curve = statistics.sample_efficiency(rng(), [[first, second], [other]], steps)
    values = np.array([[0, 5, 10], [2, 4, 4], [100, 150, 200.0]])
    np.testing.assert_allclose(curve.value, values.mean(axis=0))  # 3 are not trimmed
    assert np.isnan(curve.low).all()  # the other task has one run
    alone = statistics.sample_efficiency(rng(), [[first, second]], steps)
    np.testing.assert_allclose(alone.low, values[:2].min(axis=0))
    np.testing.assert_allclose(alone.high, values[:2].max(axis=0))
    assert statistics.shared_range([first, second]) == (100, 200)
    with pytest.raises(ValueError, match="not all curves reach"):
        statistics.sample_efficiency(rng(), [[first, second]], np.array([100.0, 201]))


def test_time_to_threshold() -> None:
    steps = np.array([10.0, 20, 30])
    curves = [Curve(steps, np.array(x)) for x in ([0, 1, 2.0], [1, 1, 1.0], [0, 0, 1])]
    assert [statistics.steps_to(curve, 1) for curve in curves] == [20, 10, 30]
    assert statistics.steps_to(curves[0], 2.1) == np.inf
    estimate, reached = statistics.time_to_threshold(rng(), curves, 1)
    assert (estimate, reached) == (Estimate(20, 10, 30), 3)
    estimate, reached = statistics.time_to_threshold(rng(), curves, 1.5)
    assert (estimate.value, estimate.high, reached) == (np.inf, np.inf, 1)
    estimate, reached = statistics.time_to_threshold(rng(), curves[:1], 1)
    assert (estimate.value, reached) == (20, 1)
    assert np.isnan(estimate.low)


@pytest.mark.parametrize(
    "measure",
    [
        lambda x: statistics.bootstrap(rng(), statistics.iqm, x),
        lambda x: statistics.difference(rng(), x, x),
        lambda x: statistics.bootstrap(rng(), statistics.improvement, x, x),
        lambda x: statistics.profile(rng(), x, [0.0, 0.3, 1.0]),
    ],
)
def test_constant_scores_leave_no_doubt(
    measure: Callable[[list[np.ndarray]], Estimate],
) -> None:
    estimate = measure([np.full(4, 0.3), np.full(7, 0.3)])
    np.testing.assert_array_equal(estimate.low, estimate.value)
    np.testing.assert_array_equal(estimate.high, estimate.value)
