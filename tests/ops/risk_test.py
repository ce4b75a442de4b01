from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mbrl_jax.ops import risk

RETURNS = np.random.default_rng(0).normal(size=7).astype(np.float32)


@pytest.mark.parametrize("coefficient", [0.0, 0.5, 3.0])
def test_mean_minus_std(coefficient: float):
    found = risk.mean_minus_std(coefficient)(jnp.asarray(RETURNS))
    np.testing.assert_allclose(
        found, RETURNS.mean() - coefficient * RETURNS.std(), rtol=1e-5
    )


def brute_force_cvar(returns: np.ndarray, fraction: float) -> float:
    """Rockafellar and Uryasev (2000): max over t of t - E[(t - return)+] / fraction.

    A concave, piecewise linear function of t; its corners are the returns.
    """
    below = np.maximum(returns[:, None] - returns[None], 0).mean(axis=1)
    return float((returns - below / fraction).max())


@pytest.mark.parametrize("fraction", [0.01, 1 / 7, 0.2, 0.5, 3 / 7, 0.93, 1.0])
def test_cvar(fraction: float):
    found = risk.cvar(fraction)(jnp.asarray(RETURNS))
    np.testing.assert_allclose(
        found, brute_force_cvar(RETURNS, fraction), rtol=1e-4, atol=1e-5
    )


def test_cvar_between_the_worst_and_the_mean():
    returns = jnp.asarray(RETURNS)
    found = jax.vmap(lambda fraction: risk.cvar(fraction)(returns))(
        jnp.array([1e-3, 1 / 7, 0.3, 0.6, 1.0])
    )
    np.testing.assert_allclose(found[:2], RETURNS.min(), rtol=1e-5)
    np.testing.assert_allclose(found[-1], RETURNS.mean(), rtol=1e-4)
    assert (np.diff(found)[1:] > 0).all()


@pytest.mark.parametrize(
    "of_returns", [jnp.mean, risk.mean_minus_std(1.0), risk.cvar(0.3)]
)
@pytest.mark.parametrize("bad", [jnp.nan, jnp.inf, -jnp.inf])
def test_a_particle_that_is_not_finite_is_not_forgotten(
    of_returns: Callable, bad: float
):
    """Even where it would not be among the worst: its candidate has to lose."""
    assert not jnp.isfinite(of_returns(jnp.asarray(RETURNS).at[2].set(bad)))
