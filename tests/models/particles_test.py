"""Returns of particles that grow, each at its own rate, and end beyond 5."""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mbrl_jax.models import outcomes, particles
from mbrl_jax.types import Array, Key

RATES, H = np.array([1.0, 1.5, 2.0, -1.0]), 4
ACTIONS = np.array([[0.5], [0.2], [-0.3], [1.0]])


def step(key: Key, obs: Array, action: Array, alive: Array) -> Array:
    return obs * RATES[:, None] + action[None]


def decode(obs: Array, action: Array, y: Array) -> outcomes.Outcome:
    return outcomes.Outcome(y, obs[0] + 10 * action[0] + 100 * y[0], jnp.abs(y[0]) > 5)


def reference(start: float) -> np.ndarray:
    returns = []
    for rate in RATES:
        x, total = start, 0.0
        for action in ACTIONS[:, 0]:
            old, x = x, x * rate + action
            total += old + 10 * action + 100 * x
            if abs(x) > 5:
                break
        returns.append(total)
    return np.array(returns)


def particle_returns(
    start: float, decode: Callable[..., outcomes.Outcome] = decode
) -> Array:
    return particles.particle_returns(
        jax.random.key(0), step, decode, jnp.array([start]), jnp.asarray(ACTIONS), 4
    )


@pytest.mark.parametrize("start", [0.1, 2.0, -3.0])
def test_returns_count_up_to_the_end_of_each_particle(start: float):
    """The reward of the step that ended it included."""
    np.testing.assert_allclose(particle_returns(start), reference(start), rtol=1e-5)


def test_what_follows_the_end_does_not_count_even_if_it_is_not_finite():
    def broken(obs: Array, action: Array, y: Array) -> outcomes.Outcome:
        known = decode(obs, action, y)
        return known._replace(
            reward=jnp.where(jnp.abs(obs[0]) > 5, jnp.nan, known.reward)
        )

    np.testing.assert_allclose(particle_returns(2.0, broken), reference(2.0), rtol=1e-5)
    assert (np.abs(reference(2.0)) > 0).all()


def test_steps_have_keys_of_their_own():
    draw = lambda key, obs, action, alive: jax.random.normal(key, obs.shape)
    decode = lambda obs, action, y: outcomes.Outcome(y, y[0], jnp.zeros((), bool))
    start, actions = jnp.zeros(1), jnp.zeros((H, 1))
    one = partial(particles.particle_returns, jax.random.key(0), draw, decode, start)
    variance = one(actions, 5000).var()  # H if the steps differ, H^2 if they do not
    assert variance == pytest.approx(H, rel=5 * (2 / 5000) ** 0.5)
