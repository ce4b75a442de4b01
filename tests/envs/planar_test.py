"""A point among obstacles."""

import jax
import jax.numpy as jnp
import numpy as np

from mbrl_jax import envs
from mbrl_jax.envs import planar

step = jax.jit(planar.dynamics)


def test_it_moves_where_it_is_free_and_stays_where_it_is_not():
    start = jnp.array([-0.1, 0.1])
    moved = step(start, jnp.array([0.4, -0.8]))
    np.testing.assert_allclose(moved, [-0.04, -0.02], rtol=1e-5)
    beside = jnp.array([-0.55, 0.4])  # above the centre of an obstacle
    np.testing.assert_allclose(step(beside, jnp.array([0.0, -1.0])), beside)
    np.testing.assert_allclose(step(beside, jnp.array([0.0, 1.0])), [-0.55, 0.55])
    below = jnp.array([-0.55, 0.31])
    np.testing.assert_allclose(step(below, jnp.array([0.0, -0.1])), below)
    edge = jnp.array([0.95, -0.9])
    np.testing.assert_allclose(step(edge, jnp.array([1.0, 0.0])), edge)


def test_starts_are_free_and_everywhere():
    keys = jax.random.split(jax.random.key(0), 2000)
    starts = np.asarray(jax.jit(jax.vmap(planar.initial))(keys))
    assert np.asarray(jax.vmap(planar.free)(starts)).all()
    counts, _, _ = np.histogram2d(*starts.T, bins=2, range=[[-1, 1], [-1, 1]])
    assert (counts > 400).all()


def test_the_reward_is_the_squared_distance_to_the_goal_after_the_step():
    env = envs.make("planar")
    state = env.step(env.reset(jax.random.key(3)), jnp.array([0.3, 0.2]))
    expected = -np.square(np.asarray(state.obs) - [0.7, 0.7]).sum()
    np.testing.assert_allclose(state.reward, expected, rtol=1e-6)
    assert planar.free(jnp.array(planar.GOAL))
