"""LQR-FLM: what it comes to where the optimum is known, and how it is wired."""

import dataclasses
from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mbrl_jax import envs, rollout
from mbrl_jax.algorithms import lqr_flm
from mbrl_jax.envs import linear_quadratic, point_mass, simulator
from mbrl_jax.local_policies import kl_lqr
from mbrl_jax.planners.ilqr import ilqr
from mbrl_jax.types import Algorithm, Array, Env, Key, Metrics, PyTree
from tests import compiling

pytestmark = pytest.mark.usefixtures("double")

T, N, SEEDS, STEPS = 8, 10, 3, 6
PROBLEM = linear_quadratic.TWO_MASSES
ENV = linear_quadratic.make(PROBLEM)
CONFIG = lqr_flm.Config(
    num_episodes=N,
    horizon=T,
    strength=500.0,
    num_clusters=1,
    num_remembered=25,
)


class Run(NamedTuple):
    """After each step, [SEEDS, STEPS, ...] in numpy."""

    state: lqr_flm.State
    metrics: Metrics


class Floats(NamedTuple):
    temperature: float
    init_std: float
    noise_std: float  # of the system


NOISY = Floats(temperature=1.0, init_std=0.1, noise_std=0.01)
EAGER = Floats(temperature=0.0, init_std=0.01, noise_std=0.0)


@cache
def run(floats: Floats, **settings: Any) -> Run:
    return jax.tree.map(np.asarray, program(**settings)(floats))


@cache
def program(**settings: Any) -> Callable[[Floats], Run]:
    @jax.jit
    def go(floats: Floats) -> Run:
        traced = floats._asdict()
        noisy = PROBLEM._replace(noise_std=traced.pop("noise_std"))
        config = dataclasses.replace(CONFIG, **settings, **traced)
        env = linear_quadratic.make(noisy)
        return trained(lqr_flm.make(env, config), SEEDS, STEPS)

    return go


def trained(algorithm: Algorithm, num_seeds: int, num_steps: int) -> Run:
    def one(key: Key) -> Run:
        init_key, key = jax.random.split(key)

        def step(state: PyTree, key: Key) -> tuple[PyTree, Run]:
            state, metrics = algorithm.step(key, state)
            return state, Run(state, metrics)

        keys = jax.random.split(key, num_steps)
        return jax.lax.scan(step, algorithm.init(init_key), keys)[1]

    return jax.vmap(one)(jax.random.split(jax.random.key(0), num_seeds))


@pytest.mark.parametrize(
    "settings",
    [
        {},
        pytest.param({"prior": "none", "num_episodes": 500}, marks=pytest.mark.slow),
    ],
)
def test_it_comes_to_the_gains_of_riccati(settings: dict):
    """Within 5 %, with noise."""
    best = -np.asarray(linear_quadratic.optimum(PROBLEM, T).gains)
    found = run(NOISY, **settings).state.controller.K[:, -1]
    least = 0.05 * np.abs(best).max()
    np.testing.assert_allclose(found, np.stack([best] * SEEDS), atol=least)


def test_each_step_goes_as_far_as_it_may():
    state, metrics = run(EAGER)
    bound, kl = metrics["controller/max_kl"], metrics["controller/kl"]
    np.testing.assert_allclose(kl[:, :3], bound[:, :3], rtol=0.1)
    assert (kl <= 1.1 * bound).all()
    np.testing.assert_allclose(bound, 0.2 * T * state.size)
    assert (state.size[:, 0] == 1).all()
    actual = metrics["imagined/last_improvement"][:, 1:]
    adapted = kl_lqr.adapted(state.size[:, :-1], state.predicted[:, :-1], actual)
    np.testing.assert_allclose(state.size[:, 1:], adapted)
    # what the first step promised came true, wherever the episodes of the second began
    np.testing.assert_allclose(actual[:, 0], state.predicted[:, 0], rtol=1e-3)
    np.testing.assert_allclose(state.size[:, 1], 5.0)
    promised = state.cost + metrics["imagined/return"]
    np.testing.assert_allclose(state.predicted, promised, atol=1e-9)
    assert not state.num_kept.any()


def test_the_latest_episodes_are_remembered():
    (state, metrics), steps = run(EAGER), T * N * np.arange(1, STEPS + 1)
    np.testing.assert_array_equal(metrics["env_steps"], np.stack([steps] * SEEDS))
    obs, valid = state.episodes.obs, state.episodes.valid
    assert obs.shape == (SEEDS, STEPS, 25, T, 4)
    np.testing.assert_array_equal(obs[:, 1:, N:], obs[:, :-1, : 25 - N])
    assert (obs[:, 1:, :N] != obs[:, :-1, :N]).any(axis=(2, 3, 4)).all()
    numbers = valid.all(axis=3).sum(axis=2)
    np.testing.assert_array_equal(numbers[:, :4], [[10, 20, 25, 25]] * SEEDS)


@pytest.mark.parametrize(
    "controller", ["open_loop", pytest.param("feedback", marks=pytest.mark.slow)]
)
def test_versions_without_a_covariance_of_their_own_keep_the_first(controller: str):
    state, metrics = run(NOISY, controller=controller)
    np.testing.assert_allclose(state.controller.cov, 1.0)  # of a limit of 10
    assert (run(EAGER).state.controller.cov[:, -1] < 0.5 * 0.01).any()
    assert bool(state.controller.K.any()) == (controller == "feedback")
    assert state.controller.k.any()
    assert (metrics["controller/kl"] <= 1.1 * metrics["controller/max_kl"]).all()


def test_what_is_evaluated_has_no_noise():
    algorithm = lqr_flm.make(ENV, CONFIG)
    state = jax.tree.map(lambda x: x[0, -1], run(EAGER).state)
    policy, obs = algorithm.policy(state), jnp.ones(4)
    for memory in (0, T - 1, T + 5):
        actions = [policy.act(jax.random.key(i), obs, memory)[0] for i in range(2)]
        time = min(memory, T - 1)
        expected = state.controller.K[time] @ obs + state.controller.k[time]
        np.testing.assert_allclose(actions, np.stack([expected] * 2))


def test_a_cost_that_is_not_finite_keeps_the_controller():
    def reward(obs: Array, action: Array, next_obs: Array) -> Array:
        return jnp.where(action[0] < 1e9, jnp.nan, 0.0) + obs.sum()

    algorithm = lqr_flm.make(ENV._replace(reward=reward), CONFIG)
    start = algorithm.init(jax.random.key(0))
    state, metrics = jax.jit(algorithm.step)(jax.random.key(1), start)
    jax.tree.map(np.testing.assert_array_equal, state.controller, start.controller)
    assert state.num_kept == metrics["controller/num_kept"] == 1
    assert all(np.isfinite(x).all() for x in jax.tree.leaves((state, metrics)))


@pytest.mark.slow
def test_it_learns_to_go_through_wind():
    """Within 1.1 times the least cost on the true dynamics, from 40 episodes; a prior
    is worth three quarters of the episodes of regression without one."""
    env = point_mass.windy()
    key, few = jax.random.key(9), lqr_flm.Config(num_episodes=5)
    least = optimum(env, key)

    def cost(config: lqr_flm.Config) -> float:
        algorithm = lqr_flm.make(env, config)
        states = jax.jit(lambda: trained(algorithm, 3, 8))().state
        last = jax.tree.map(lambda x: x[:, -1], states)

        def one(state: PyTree) -> Array:
            found, _ = rollout.evaluate(key, env, algorithm.policy(state), 5)
            return -found["eval/return_mean"]

        return float(jax.jit(jax.vmap(one))(last).max())

    with_prior = cost(few)
    assert with_prior < 1.1 * least
    assert with_prior < 1.02 * cost(lqr_flm.Config(num_episodes=20, prior="none"))


def optimum(env: Env, key: Key) -> float:
    """The least mean cost of five episodes that are known from the start on."""

    def one(key: Key) -> Array:
        start = env.reset(jax.random.split(key)[0])  # as `rollout.episode` does
        goal = start.sim.state.goal

        def dynamics(x: Array, u: Array, t: Array) -> Array:
            now = point_mass.State(x[:2], x[2:], goal)
            after = point_mass.windy_dynamics(now, u)
            return jnp.concatenate([after.position, after.velocity])

        def cost(x: Array, u: Array, t: Array) -> Array:
            obs = jnp.concatenate([dynamics(x, u, t), goal])
            return -point_mass.reward(obs, u, obs)

        nothing = jnp.zeros((env.episode_length, 2))
        limits = -jnp.ones(2), jnp.ones(2)
        end = lambda x: jnp.zeros(())
        return ilqr(dynamics, cost, end, start.obs[:4], nothing, limits=limits).cost

    every = jax.jit(jax.vmap(one), compiler_options=compiling.WELL)
    return float(every(jax.random.split(key, 5)).mean())


def test_refusals():
    def refused(words: str, env: Env = ENV, **settings: Any) -> None:
        with pytest.raises(ValueError, match=words):
            lqr_flm.make(env, dataclasses.replace(CONFIG, **settings))

    refused("max_kl is 0, must be positive", max_kl=0)
    refused("init_std is 0, must be positive", init_std=0)
    refused("strength is -1, must be positive", strength=-1)
    refused("controller is 'lqr', must be one of: open_loop", controller="lqr")
    refused("prior is 'gmm', must be one of: mixture, none", prior="gmm")
    refused("num_episodes is 1, must be at least 2", num_episodes=1)
    refused(
        "num_episodes is 5, must be at least 6 for prior 'none': there are 4 obs",
        num_episodes=5,
        prior="none",
    )
    refused("horizon is 51, more than the 50 steps of an episode of linear", horizon=51)
    refused("temperature is -1, must be at least 0", temperature=-1)
    refused("horizon is -1, must be at least 0", horizon=-1)
    refused("num_clusters is 0, must be at least 1", num_clusters=0)
    blind = envs.make("pendulum_no_velocity")
    refused("simulator of pendulum_no_velocity knows its reward", blind)
    constant = envs.make("cartpole_balance")
    refused("reward of cartpole_balance does not change with what is seen", constant)
    refused("the actions of cartpole are discrete", envs.make("cartpole"))
    short = simulator.time_limit(ENV, 4)
    refused("horizon is 8, more than the 4 steps", short)
