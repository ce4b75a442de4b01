"""Our `cartpole` is Gymnasium's CartPole-v1: step for step, and for a policy."""

import gymnasium as gym
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mbrl_jax import envs
from mbrl_jax.algorithms import ppo
from mbrl_jax.envs import cartpole
from mbrl_jax.training import train
from mbrl_jax.types import EnvState


def moved(start: EnvState, state: np.ndarray) -> EnvState:
    """With the cart and pole in `state` [4]."""
    state = jnp.asarray(state, start.obs.dtype)
    return start._replace(obs=state, sim=start.sim._replace(state=state))


def upright(state: np.ndarray) -> int:
    """An action that keeps the pole up and the cart on the track."""
    x, x_dot, th, th_dot = state
    return int(0.1 * x + 0.3 * x_dot + 3 * th + th_dot > 0)


def random(rng: np.random.Generator) -> int:
    return int(rng.integers(2))


@pytest.mark.parametrize("balanced", [False, True])
@pytest.mark.parametrize("seed", range(2))
def test_it_is_cartpole_v1_step_for_step(seed: int, balanced: bool):
    """Random actions drop the pole; others keep it up until the clock runs out.

    Each step starts from their state: over 500, differences in rounding grow.
    """
    rng, theirs = np.random.default_rng(seed), gym.make("CartPole-v1")
    obs, _ = theirs.reset(seed=seed)
    with jax.enable_x64(True):
        env = envs.make("cartpole")
        step, state = jax.jit(env.step), env.reset(jax.random.key(0))
        for _ in range(500):
            action = upright(obs) if balanced else random(rng)
            state = step(moved(state, theirs.unwrapped.state), jnp.int32(action))
            obs, reward, terminated, truncated, _ = theirs.step(action)
            physical = theirs.unwrapped.state
            np.testing.assert_allclose(
                state.sim.state, physical, rtol=1e-12, atol=1e-13
            )
            np.testing.assert_allclose(state.obs, obs, atol=1e-6)  # theirs is float32
            assert state.reward == reward
            assert bool(state.terminal) == terminated
            assert bool(state.truncated) == truncated
            if terminated or truncated:
                break
    assert (terminated, truncated) == (not balanced, balanced)
    assert state.time == 500 or not balanced


def test_it_starts_where_cartpole_v1_does():
    """Uniform within +-0.05 in all four coordinates."""
    env, theirs = envs.make("cartpole"), gym.make("CartPole-v1")
    assert env.episode_length == theirs.spec.max_episode_steps
    assert env.num_actions == theirs.action_space.n
    ours = jax.vmap(env.reset)(jax.random.split(jax.random.key(0), 4000)).obs
    low, high = np.full(4, -cartpole.BALANCE_START), np.full(4, cartpole.BALANCE_START)
    starts = np.stack([theirs.reset(seed=seed)[0] for seed in range(200)])
    assert ((low <= starts) & (starts <= high)).all()
    for found in (ours, starts):
        np.testing.assert_allclose(found.mean(axis=0), 0, atol=0.01)
        np.testing.assert_allclose(found.std(axis=0), 0.1 / 12**0.5, rtol=0.1)


@pytest.mark.slow
def test_a_policy_trained_on_ours_solves_theirs():
    """PPO with its defaults, on our environment; 20 episodes of Gymnasium's."""
    env, key = envs.make("cartpole"), jax.random.key(0)
    algorithm = ppo.make(env)
    state = train.run(key, algorithm, env, 60, eval_episodes=0).state
    policy = algorithm.policy(state)
    act = jax.jit(lambda obs: policy.act(key, obs, policy.init())[0])
    returns = []
    for seed in range(20):
        theirs, total, over = gym.make("CartPole-v1"), 0.0, False
        obs, _ = theirs.reset(seed=seed)
        while not over:
            obs, reward, terminated, truncated, _ = theirs.step(int(act(obs)))
            total, over = total + float(reward), terminated or truncated
        returns.append(total)
    assert np.mean(returns) >= 475, returns
