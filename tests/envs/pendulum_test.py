import jax
import jax.numpy as jnp
import numpy as np
from gymnasium.envs.classic_control.pendulum import PendulumEnv

from mbrl_jax.envs import pendulum


def test_equals_gymnasium_step_for_step():
    """Full torque along the motion, so that the speed is cut too, then random."""
    with jax.enable_x64(True):
        env, theirs = pendulum.make(), PendulumEnv()
        step = jax.jit(env.step)
        ours = env.reset(jax.random.key(0))
        theirs.state = np.asarray(ours.sim.state)
        rng, fastest = np.random.default_rng(0), 0.0
        for t in range(200):
            along = 2 * np.sign(theirs.state[1:])
            action = along if t < 100 else rng.uniform(-3, 3, 1)
            ours = step(ours, jnp.array(action))
            obs, reward, *_ = theirs.step(action)
            fastest = max(fastest, abs(obs[2]))
            np.testing.assert_allclose(ours.sim.state, theirs.state, atol=1e-9)
            np.testing.assert_allclose(ours.obs, obs, rtol=1e-6, atol=1e-6)
            np.testing.assert_allclose(ours.reward, reward, atol=1e-9)
        assert fastest == theirs.max_speed
        assert ours.truncated


def test_starts_as_in_gymnasium():
    env = pendulum.make()
    states = jax.vmap(env.reset)(jax.random.split(jax.random.key(0), 2000)).sim.state
    limit = np.array([np.pi, 1.0])
    np.testing.assert_array_less(np.abs(states), np.broadcast_to(limit, (2000, 2)))
    np.testing.assert_allclose(states.std(axis=0), limit / 3**0.5, rtol=0.05)
    np.testing.assert_allclose(states.mean(axis=0), 0, atol=0.15)
