"""What `apg`, `shac`, `bptt` and `svg` have of their own: what they learn, and how."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mbrl_jax import envs, rollout
from mbrl_jax.algorithms import apg, bptt, shac, svg
from mbrl_jax.envs import pendulum, probes
from mbrl_jax.models import ensemble
from mbrl_jax.types import Array, Env, EnvState, Key, Metrics

SMALL = ensemble.Config(num_members=2, hidden_sizes=(16,), num_epochs=30)
QUICK = {
    "apg": apg.Config(num_envs=16, horizon=2, learning_rate=1e-2, hidden_sizes=(16,)),
    "shac": shac.Config(
        num_envs=16,
        horizon=2,
        num_updates=50,
        learning_rate=1e-2,
        hidden_sizes=(16,),
        critic_sizes=(16,),
    ),
    "bptt": bptt.Config(
        capacity=64,
        num_updates=10,
        num_rollouts=20,
        horizon=2,
        learning_rate=1e-2,
        hidden_sizes=(16,),
        model=SMALL,
    ),
    "svg": svg.Config(
        capacity=256,
        num_updates=20,
        batch_size=16,
        learning_rate=1e-2,
        hidden_sizes=(16,),
        critic_sizes=(16,),
        std=0.1,  # so that the limits of the action do not matter
        model=dataclasses.replace(SMALL, num_members=1, num_epochs=5),
    ),
}
MODULES = {"apg": apg, "shac": shac, "bptt": bptt, "svg": svg}
SMOOTH = ("probe4", "probe5")  # which have a gradient
NUM_STEPS = {"apg": 4, "shac": 4, "bptt": 40, "svg": 40}


def train(name: str, env: Env, num_steps: int, **changes: Any) -> tuple[Any, Metrics]:
    """The policy after so many steps, and all metrics."""
    config = dataclasses.replace(QUICK[name], **changes)
    algorithm = MODULES[name].make(env, config)

    @jax.jit
    def run(key: Key) -> tuple[Any, Metrics]:
        step = lambda state, key: algorithm.step(key, state)
        return jax.lax.scan(step, algorithm.init(key), jax.random.split(key, num_steps))

    state, metrics = run(jax.random.key(0))
    return algorithm.policy(state), metrics


@pytest.mark.slow
@pytest.mark.parametrize("name", QUICK)
@pytest.mark.parametrize("probe", SMOOTH)
def test_the_policy_goes_where_the_reward_is_best(
    state_of: Callable, name: str, probe: str
):
    """At action 1/2, or at half the obs; a return of 1 - 0.1^2 is 0.1 off."""
    env, module, config = envs.make(probe), MODULES[name], QUICK[name]
    state = state_of(probe, module, config, NUM_STEPS[name], SMOOTH)
    policy = module.make(env, config).policy(state)
    evaluate = jax.jit(lambda key: rollout.evaluate(key, env, policy, 8)[0])
    assert evaluate(jax.random.key(1))["eval/return_min"] > 0.99


@pytest.mark.slow
@pytest.mark.parametrize(
    ("horizon", "num_updates", "num_steps"), [(0, 20, 100), (-1, 1, 300)]
)
def test_svg_with_a_q_or_with_whole_episodes(
    horizon: int, num_updates: int, num_steps: int
):
    """SVG(0) finds out the reward from its critic; SVG(inf) has an episode each time,
    to which its policy must belong."""
    env = envs.make("probe5")
    policy, _ = train("svg", env, num_steps, horizon=horizon, num_updates=num_updates)
    evaluate = jax.jit(lambda key: rollout.evaluate(key, env, policy, 8)[0])
    assert evaluate(jax.random.key(1))["eval/return_min"] > 0.98


@pytest.mark.slow
@pytest.mark.parametrize("name", ["apg", "shac"])
def test_the_pendulum_swings_up(name: str):
    """At least -300 of 0; random is about -1200, hanging -2000."""
    env = pendulum.make()
    module = MODULES[name]
    algorithm, key = module.make(env), jax.random.key(0)
    step, state = jax.jit(algorithm.step), jax.jit(algorithm.init)(key)
    for i in range(8):
        state, _ = step(jax.random.fold_in(key, i), state)
    policy = algorithm.policy(state)
    evaluate = jax.jit(lambda key: rollout.evaluate(key, env, policy, 16)[0])
    assert evaluate(key)["eval/return_mean"] > -300


@pytest.mark.slow
def test_the_critic_of_shac_learns_the_value():
    """Of a reward of about 1 in each of three steps, then the end; discount 0.5."""
    env = lasting(3)
    config = dataclasses.replace(QUICK["shac"], discount=0.5, horizon=3)
    algorithm, key = shac.make(env, config), jax.random.key(0)
    step, state = jax.jit(algorithm.step), jax.jit(algorithm.init)(key)
    for i in range(3):
        state, metrics = step(jax.random.fold_in(key, i), state)
    assert metrics["critic/mse"] < 0.01
    np.testing.assert_allclose(state.scale.mean, (1.75 + 1.5 + 1) / 3, rtol=0.05)


def lasting(num_steps: int) -> Env:
    """probe4, its state counts steps; the end comes after `num_steps`."""
    env = probes.probe4()

    def step(env_state: EnvState, action: Array) -> EnvState:
        after = env.step(env_state, action)
        count = env_state.obs + 1
        ended = count[0] >= num_steps
        sim = after.sim._replace(state=count)
        return after._replace(
            obs=count, sim=sim, terminal=ended, truncated=~ended & after.truncated
        )

    return env._replace(step=step, episode_length=100)


@pytest.mark.parametrize("name", ["apg", "shac"])
def test_no_gradient_is_an_error_before_anything_runs(name: str):
    with pytest.raises(ValueError, match="probe2 is exactly 0"):
        MODULES[name].make(probes.probe2())


@pytest.mark.parametrize(
    ("name", "changes", "fault"),
    [
        ("apg", {"segment": 3}, "segment is 3, must divide horizon, 2"),
        ("apg", {"num_envs": 0}, "num_envs is 0"),
        ("shac", {"num_minibatches": 5}, "num_minibatches is 5, must divide"),
        ("shac", {"trace_decay": 1.5}, "trace_decay is 1.5"),
        (
            "bptt",
            {"num_rollouts": 21},
            "num_rollouts is 21, must be a multiple of the 2",
        ),
        ("bptt", {"capacity": 0}, "capacity is 0, less than the 1 steps"),
        ("svg", {"horizon": -2}, "horizon is -2"),
        ("svg", {"horizon": 300}, "horizon is 300, more than the 256 of capacity"),
        ("svg", {"discount": 1.0}, "discount is 1.0"),
        (
            "svg",
            {"model": dataclasses.replace(SMALL, learn_terminal=True)},
            "learn_terminal",
        ),
    ],
)
def test_a_configuration_that_cannot_be(name: str, changes: dict, fault: str):
    config = dataclasses.replace(QUICK[name], **changes)
    with pytest.raises(ValueError, match=fault):
        MODULES[name].make(probes.probe4(), config)


@pytest.mark.slow
def test_a_model_that_breaks_leaves_the_policy_alone():
    """The imagined rewards are not finite: all rollouts are counted, none used."""
    env = probes.probe4()
    spoiled = env._replace(reward=lambda obs, action, next_obs: jnp.nan * action[0])
    config = QUICK["bptt"]
    algorithm, key = bptt.make(spoiled, config), jax.random.key(0)
    state = jax.jit(algorithm.init)(key)
    after, metrics = jax.jit(algorithm.step)(key, state)
    jax.tree.map(np.testing.assert_array_equal, after.params, state.params)
    assert (
        metrics["gradient/num_non_finite"] == config.num_updates * config.num_rollouts
    )
