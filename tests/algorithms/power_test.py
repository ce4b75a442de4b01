"""PoWER: one update in closed form, what it leads where, and how it is wired."""

import dataclasses
from functools import cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mbrl_jax import envs, rollout
from mbrl_jax.algorithms import power
from mbrl_jax.envs import point_mass, simulator
from mbrl_jax.local_policies import movement_primitives as primitives
from mbrl_jax.types import Array, Env, Metrics, PyTree

STEPS, SEEDS = 12, 3
BANDIT = envs.make("probe4")  # 1 - (action - 1/2)^2, in one step
CONFIG = power.Config(
    num_basis=2, num_rollouts=6, num_remembered=15, num_elites=5, init_std=4.0
)
LED = power.Config(
    positions=(0, 1),
    velocities=(2, 3),
    goal=(0.8, 0.7),
    stiffness=3.0,
    damping=2.0,
    num_basis=4,
    duration=10,
)


class Run(NamedTuple):
    """Before and after each step, and what it told, [SEEDS, STEPS, ...] in numpy."""

    before: power.State
    after: power.State
    metrics: Metrics


@cache
def run() -> Run:
    algorithm = power.make(BANDIT, CONFIG)

    @jax.jit
    @jax.vmap
    def go(key: Array) -> Run:
        def step(state: PyTree, key: Array) -> tuple[PyTree, Run]:
            after, metrics = algorithm.step(key, state)
            return after, Run(state, after, metrics)

        return jax.lax.scan(step, algorithm.init(key), jax.random.split(key, STEPS))[1]

    keys = jax.random.split(jax.random.key(0), SEEDS)
    return jax.tree.map(np.asarray, go(keys))


def test_an_update_is_the_weighted_mean_of_the_best():
    """Of all that is remembered, five count, by exp(5 (R - best) / (best - worst))."""
    before, after, _ = run()
    for i in np.ndindex(SEEDS, STEPS):
        valid = after.valid[i]
        best = np.argsort(-after.returns[i][valid])[:5]
        tried, returns = after.tried[i][valid][best], after.returns[i][valid][best]
        share = (returns.max() - returns) / (returns.max() - returns.min())
        weight = np.exp(-5.0 * share)
        theta = np.average(tried, axis=0, weights=weight)
        np.testing.assert_allclose(after.theta[i], theta, rtol=1e-4, atol=1e-6)
        away = tried - before.theta[i]
        std = np.sqrt(np.average(away**2, axis=0, weights=weight))
        std = np.clip(std, 0.4, 4.0)
        np.testing.assert_allclose(after.std[i], std, rtol=1e-4)
    assert (after.std == 4.0).any()
    assert ((after.std > 0.41) & (after.std < 3.9)).any()


def test_the_latest_rollouts_are_remembered():
    before, after, metrics = run()
    np.testing.assert_array_equal(after.valid.sum(axis=2)[0, :4], [6, 12, 15, 15])
    np.testing.assert_array_equal(after.tried[:, :, 6:], before.tried[:, :, :9])
    np.testing.assert_array_equal(after.returns[:, :, 6:], before.returns[:, :, :9])
    new = after.tried[:, :, :6] - before.theta[:, :, None]
    noise = new / before.std[:, :, None]
    assert abs(noise.mean()) < 0.2
    assert 0.9 < noise.std() < 1.1
    np.testing.assert_array_equal(metrics["env_steps"][0], 6 * np.arange(1, STEPS + 1))
    np.testing.assert_array_equal(
        metrics["search/best_return"], np.where(after.valid, after.returns, -9).max(2)
    )


def test_a_return_is_that_of_the_primitive_as_an_action():
    last = jax.tree.map(lambda x: x[0, -1], run().after)
    policy = power.make(BANDIT, CONFIG).policy

    @jax.jit
    @jax.vmap
    def action(theta: Array) -> Array:
        acting = policy(last._replace(theta=theta))
        return acting.act(jax.random.key(0), jnp.zeros(1), acting.init())[0][0]

    @jax.jit
    @jax.vmap
    def end(theta: Array) -> Array:
        nothing = jnp.zeros(1)
        shape = primitives.Shape(theta[None], nothing, jnp.ones(1), CONFIG.decay)
        return primitives.advance(shape, primitives.start(nothing), 1.0).position[0]

    done = np.asarray(action(last.tried))
    np.testing.assert_allclose(done, end(last.tried), rtol=1e-5)
    clipped = np.clip(done, -1, 1)
    np.testing.assert_allclose(last.returns, 1 - (clipped - 0.5) ** 2, rtol=1e-4)


def test_the_bandit_is_learned():
    """An action of 0 gets 0.75."""
    last = jax.tree.map(lambda x: x[:, -1], run().after)
    policy = power.make(BANDIT, CONFIG).policy

    @jax.jit
    @jax.vmap
    def value(state: PyTree) -> Array:
        found, _ = rollout.evaluate(jax.random.key(0), BANDIT, policy(state), 1)
        return found["eval/return_mean"]

    assert (value(last) > 0.99).all()


def test_positions_are_led_from_where_they_are_to_the_goal():
    """By springs: 3 (primitive - position) - 2 velocity."""
    env = point_mass.make()
    algorithm = power.make(env, LED)
    state = algorithm.init(jax.random.key(0))
    theta = 0.3 * jax.random.normal(jax.random.key(1), state.theta.shape)
    policy = algorithm.policy(state._replace(theta=theta))
    seen = jax.random.normal(jax.random.key(2), (12, env.obs_size))

    @jax.jit
    def act(seen: Array) -> Array:
        def one(memory: PyTree, obs: Array) -> tuple[PyTree, Array]:
            action, memory = policy.act(jax.random.key(0), obs, memory)
            return memory, action

        return jax.lax.scan(one, policy.init(), seen)[1]

    goal = jnp.array(LED.goal)
    away = goal - seen[0, :2]
    shape = primitives.Shape(theta.reshape(2, 4), goal, away, LED.decay)
    way = primitives.start(seen[0, :2])
    for obs, action in zip(seen, act(seen), strict=True):
        way = primitives.advance(shape, way, 1 / LED.duration)
        expected = 3.0 * (way.position - obs[:2]) - 2.0 * obs[2:4]
        np.testing.assert_allclose(action, expected, rtol=1e-3, atol=1e-4)


def test_several_episodes_are_averaged_and_a_broken_one_counts_for_nothing():
    """Half of the coin's sides pay action - 3, the others NaN: only parameters whose
    two episodes were both fine are learned from, though the others' zeros are more."""
    env = envs.make("probe2")

    def step(env_state: Any, action: Array) -> Any:
        after, good = env.step(env_state, action), env_state.obs[0] > 0
        pay = jnp.where(good, action[0] - 3.0, jnp.nan)
        return after._replace(reward=pay.astype(after.reward.dtype))

    config = dataclasses.replace(CONFIG, num_episodes=2, num_rollouts=15)
    algorithm = power.make(env._replace(step=step), config)
    state = jax.jit(algorithm.init)(jax.random.key(0))
    state, metrics = jax.jit(algorithm.step)(jax.random.key(1), state)
    assert 0 < state.valid.sum() < 8
    assert metrics["search/num_valid"] == state.valid.sum()
    assert metrics["env_steps"] == 30
    assert metrics["episode/non_finite"] > 0
    good, bad = state.returns[state.valid], state.returns[~state.valid]
    assert np.unique(good).size == good.size  # as different as the parameters
    assert (good > -4.5).all()  # the mean of action - 3, not the sum
    assert (good < -1.5).all()
    weight = np.exp(-5.0 * (good.max() - good) / (good.max() - good.min()))
    theta = np.average(state.tried[state.valid], axis=0, weights=weight)
    np.testing.assert_allclose(state.theta, theta, rtol=1e-4, atol=1e-6)
    assert np.isfinite(bad).all()
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(state))


@pytest.mark.slow
def test_it_learns_a_way_through_wind():
    """The least cost on the true dynamics is 60, the springs alone pay 200."""
    env = point_mass.windy()
    config = power.Config(
        positions=(0, 1),
        velocities=(2, 3),
        goal=(0.8, 0.8),
        duration=30,
        init_std=0.5,
        min_std=0.3,
    )
    algorithm = power.make(env, config)

    def value(key: Array, state: PyTree) -> Array:
        found, _ = rollout.evaluate(key, env, algorithm.policy(state), 10)
        return found["eval/return_mean"]

    @jax.jit
    @jax.vmap
    def learned(key: Array) -> tuple[Array, Array]:
        step = lambda state, key: (algorithm.step(key, state)[0], None)
        first, keys = algorithm.init(key), jax.random.split(key, 50)
        last, _ = jax.lax.scan(step, first, keys)
        return value(key, first), value(key, last)

    before, after = learned(jax.random.split(jax.random.key(0), 3))
    assert (before < -150).all()
    assert (after > -66).all()


def test_refusals():
    def refused(words: str, env: Env = point_mass.make(), **settings: Any) -> None:
        with pytest.raises(ValueError, match=words):
            power.make(env, dataclasses.replace(LED, **settings))

    refused("num_basis is 0, must be at least 1", num_basis=0)
    refused("num_elites is 1, must be at least 2", num_elites=1)
    refused("num_elites is 51, more than the 50 of num_remembered", num_elites=51)
    refused("num_rollouts is 51, more than the 50 of num_rem", num_rollouts=51)
    refused("init_std is 0, must be positive", init_std=0)
    refused("min_std is 1.5, must be from 0 to 1", min_std=1.5)
    refused("decay is -3, must be positive", decay=-3)
    refused("duration is -1, must be at least 0", duration=-1)
    refused("each must have one entry for each of the 2 actions", goal=(0.0,))
    refused("each must have one entry for each of the 2 actions", positions=())
    refused(r"positions is \(0, 6\), must be entries of the 6 obs", positions=(0, 6))
    refused(r"velocities is \(-1, 3\), must be entries", velocities=(-1, 3))
    refused("the actions of cartpole are discrete", envs.make("cartpole"))
    power.make(simulator.time_limit(point_mass.make(), 5), power.Config())
