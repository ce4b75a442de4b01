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
