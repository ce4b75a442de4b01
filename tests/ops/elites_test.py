import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mbrl_jax.ops import elites

SAMPLES = jnp.asarray(np.random.default_rng(0).normal(size=(8, 3, 2)), jnp.float32)
MEAN, VAR = jnp.full((3, 2), 7.0), jnp.full((3, 2), 2.0)
LOST = -jnp.inf


def test_the_best_come_first():
    returns = jnp.array([0.0, 5.0, LOST, -3.0, 9.0, LOST, 1.0, 2.0])
    best, best_returns = elites.best(SAMPLES, returns, 3)
    np.testing.assert_array_equal(best, SAMPLES[jnp.array([4, 1, 7])])
    np.testing.assert_array_equal(best_returns, [9.0, 5.0, 2.0])


def test_ties_give_different_samples():
    best, _ = elites.best(SAMPLES, jnp.zeros(8), 4)
    assert len(np.unique(best, axis=0)) == 4


@pytest.mark.parametrize("momentum", [0.0, 0.3, 1.0])
def test_refit_is_the_moments_of_the_elites(momentum: float):
    mean, var = elites.refit(MEAN, VAR, SAMPLES, jnp.arange(8.0), momentum)
    new = np.asarray(SAMPLES)
    np.testing.assert_allclose(
        mean, momentum * 7 + (1 - momentum) * new.mean(axis=0), rtol=1e-5
    )
    np.testing.assert_allclose(
        var, momentum * 2 + (1 - momentum) * new.var(axis=0), rtol=1e-5
    )


def test_lost_elites_have_no_weight():
    returns = jnp.array([1.0, LOST, 2.0, LOST, LOST, 0.0, LOST, 5.0])
    good = jnp.array([0, 2, 5, 7])
    found = elites.refit(MEAN, VAR, SAMPLES, returns, 0.1)
    expected = elites.refit(MEAN, VAR, SAMPLES[good], returns[good], 0.1)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), found, expected
    )


def test_where_all_are_lost_nothing_moves():
    mean, var = elites.refit(MEAN, VAR, SAMPLES, jnp.full(8, LOST), 0.1)
    np.testing.assert_array_equal(mean, MEAN)
    np.testing.assert_array_equal(var, VAR)


def test_reward_weighted_is_the_weighted_mean_of_what_is_away():
    returns = jnp.array([3.0, -1.0, 1.0, 2.5, 0.0, -0.5, 2.0, 2.9])
    mean, var = elites.reward_weighted(MEAN, VAR, SAMPLES, returns, 2.0)
    weight = np.exp(-2.0 * (3.0 - np.asarray(returns)) / 4.0)
    away = np.asarray(SAMPLES) - 7.0
    expected = 7.0 + np.average(away, axis=0, weights=weight)
    np.testing.assert_allclose(mean, expected, rtol=1e-5)
    expected = np.average(away**2, axis=0, weights=weight)
    np.testing.assert_allclose(var, expected, rtol=1e-5)
    # whatever the unit of the returns, and where they are counted from
    again = elites.reward_weighted(MEAN, VAR, SAMPLES, 100 * returns - 50, 2.0)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4), again, (mean, var)
    )


def test_reward_weighted_without_a_difference_is_the_mean():
    mean, _ = elites.reward_weighted(MEAN, VAR, SAMPLES, jnp.full(8, 2.0), 5.0)
    np.testing.assert_allclose(mean, SAMPLES.mean(axis=0), atol=1e-5)


def test_reward_weighted_is_blind_to_what_is_lost():
    lost = jnp.array([jnp.nan, LOST, jnp.inf])
    both = jnp.concatenate([jnp.arange(8.0), lost])
    more = jnp.concatenate([SAMPLES, jnp.full((3, 3, 2), 1e9)])
    expected = elites.reward_weighted(MEAN, VAR, SAMPLES, both[:8], 5.0)
    found = elites.reward_weighted(MEAN, VAR, more, both, 5.0)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), found, expected
    )
    stayed = elites.reward_weighted(MEAN, VAR, more[8:], lost, 5.0)
    jax.tree.map(np.testing.assert_array_equal, stayed, (MEAN, VAR))
