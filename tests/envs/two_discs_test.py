"""Two discs, of which one can be pushed."""

import jax
import jax.numpy as jnp
import numpy as np

from mbrl_jax import envs
from mbrl_jax.envs import two_discs
from mbrl_jax.envs.two_discs import State

step = jax.jit(two_discs.dynamics)


def state(*rows: tuple[float, float]) -> State:
    return State(*(jnp.array(row) for row in rows))


def test_one_is_pushed_and_glides_and_the_other_drifts():
    before = state((0.1, -0.2), (0.05, 0.0), (0.0, 0.3), (0.03, -0.04))
    after = step(before, jnp.array([1.0, -0.5]))
    velocity = np.array([0.8 * 0.05 + 0.04, -0.02])
    np.testing.assert_allclose(after.velocity, velocity, rtol=1e-6)
    np.testing.assert_allclose(after.position, np.add(velocity, [0.1, -0.2]), rtol=1e-6)
    np.testing.assert_allclose(after.other, [0.03, 0.26], rtol=1e-6)
    np.testing.assert_array_equal(after.drift, before.drift)


def test_at_an_edge_one_stops_and_the_other_turns_back():
    before = state((0.79, 0.0), (0.1, 0.1), (0.0, -0.79), (0.03, -0.04))
    after = step(before, jnp.zeros(2))
    np.testing.assert_allclose(after.position, [0.8, 0.08], rtol=1e-6)
    np.testing.assert_allclose(after.velocity, [0.0, 0.08], rtol=1e-6)
    np.testing.assert_allclose(after.other, [0.03, -0.8], rtol=1e-6)
    np.testing.assert_allclose(after.drift, [0.03, 0.04], rtol=1e-6)


def test_the_reward_is_of_the_pushed_disc_after_the_step():
    env = envs.make("two_discs")
    start = env.reset(jax.random.key(3))
    np.testing.assert_allclose(jnp.linalg.norm(start.obs[6:]), 0.05, rtol=1e-5)
    after = env.step(start, jnp.array([0.3, 2.0]))
    away = np.asarray(after.obs[:2]) - [0.5, 0.5]
    expected = -np.square(away).sum() - 0.01 * (0.09 + 1.0)
    np.testing.assert_allclose(after.reward, expected, rtol=1e-5)
    assert env.goal is not None
    np.testing.assert_allclose(env.goal().obs[:4], [0.5, 0.5, 0.0, 0.0])
