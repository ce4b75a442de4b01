"""The five probes by every learner of policy gradients, all five in one program."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mbrl_jax import envs, optimizers, rollout
from mbrl_jax.algorithms import a2c, npg, ppo, reinforce, trpo
from mbrl_jax.ops import normalize
from mbrl_jax.policy_gradient import actor_critic
from mbrl_jax.policy_gradient.experience import CriticConfig

DISCOUNT = 0.8
NET = actor_critic.Config(hidden_sizes=(16,), init_std=0.3)
CRITIC = CriticConfig(learning_rate=1e-2, num_epochs=5, num_minibatches=4)
WINDOWS: dict[str, Any] = {"num_envs": 16, "window": 8, "net": NET}
MODULES = {"reinforce": reinforce, "npg": npg, "trpo": trpo, "a2c": a2c, "ppo": ppo}
LEARN: dict[str, dict[str, Any]] = {
    "reinforce": {"critic": CRITIC},
    "npg": {"critic": CRITIC},
    "trpo": {"critic": CRITIC},
    "a2c": {"learning_rate": 5e-3, "decay_steps": 1000},  # all that there are
    "ppo": {"learning_rate": 5e-3, "num_epochs": 4, "num_minibatches": 4},
}
NUM_STEPS = {"reinforce": 200, "npg": 100, "trpo": 100, "a2c": 10, "ppo": 60}
LEARNERS = pytest.mark.parametrize("name", MODULES)


def config_of(name: str) -> Any:
    config = MODULES[name].Config()
    sizes = {"net": NET, "num_envs": 64} if name == "reinforce" else WINDOWS
    learn = dataclasses.replace(config.learn, discount=DISCOUNT, **LEARN[name])
    return dataclasses.replace(config, learn=learn, **sizes)


def what(name: str) -> tuple[Any, Any, int]:
    return MODULES[name], config_of(name), NUM_STEPS[name]


@pytest.mark.slow
@LEARNERS
@pytest.mark.parametrize(
    ("probe", "values"),
    [
        ("probe1", {0.0: 1.0}),
        ("probe2", {-1.0: -1.0, 1.0: 1.0}),
        ("probe3", {0.0: DISCOUNT, 1.0: 1.0}),
    ],
)
def test_the_critic_knows_the_value(
    state_of: Callable, name: str, probe: str, values: dict
):
    net = actor_critic.make(envs.make(probe), NET)
    agent = state_of(probe, *what(name)).learner.agent
    stats, scale = normalize.so_far(agent.obs), normalize.so_far(agent.returns)
    for obs, value in values.items():
        seen = actor_critic.normalise_obs(stats, jnp.array([obs]))
        found = net.value(agent.critic, (), seen)[1] * scale.std[0] + scale.mean[0]
        assert float(found) == pytest.approx(value, abs=0.05)


@LEARNERS
@pytest.mark.parametrize("probe", ["probe4", "probe5"])
def test_the_policy_goes_where_the_reward_is_best(
    state_of: Callable, name: str, probe: str
):
    """At action 1/2, or at half the obs; a return of 0.99 is 0.1 off.  Actions of 0
    get 0.75."""
    env, state = envs.make(probe), state_of(probe, *what(name))
    policy = MODULES[name].make(env, config_of(name)).policy(state)
    evaluate = jax.jit(lambda key: rollout.evaluate(key, env, policy, 8)[0])
    assert evaluate(jax.random.key(1))["eval/return_min"] > 0.99


@LEARNERS
def test_what_does_not_matter_is_left_alone(state_of: Callable, name: str):
    """Where every action is as good, the policy does what it did at first: on average
    nothing, with as much noise; a reward for entropy is one for more of it.

    REINFORCE does not standardise its advantages: it moves until its critic knows."""
    net = actor_critic.make(envs.make("probe1"), NET)
    agent = state_of("probe1", *what(name)).learner.agent
    mean, log_std = net.act(agent.actor, (), jnp.zeros(1))[1]
    off = 0.1 if name == "reinforce" else 1e-3
    assert abs(mean) < off
    if name == "a2c":
        assert config_of(name).learn.entropy_weight > 0
        assert np.exp(log_std) > 2 * NET.init_std
    else:
        np.testing.assert_allclose(np.exp(log_std), NET.init_std, rtol=off)


@LEARNERS
def test_steps_and_episodes_are_counted(state_of: Callable, name: str):
    state, config = state_of("probe1", *what(name)), config_of(name)
    assert float(state.counters.last_return) == 1
    each = config.num_envs * getattr(config, "window", 1)
    each *= getattr(config, "num_updates", 1)
    assert (
        state.counters.env_steps
        == state.counters.num_episodes
        == NUM_STEPS[name] * each
    )
    assert state.counters.num_non_finite == 0


@pytest.mark.parametrize(
    ("name", "optimizer"), [("a2c", "clipped_rmsprop"), ("ppo", "clipped_adam")]
)
def test_the_learning_rate_falls_as_the_configuration_says(
    monkeypatch: pytest.MonkeyPatch, name: str, optimizer: str
):
    seen, make = [], getattr(optimizers, optimizer)

    def recorded(*args: float, **options: Any) -> Any:
        seen.append((*args, options["decay_steps"]))
        return make(*args, **options)

    monkeypatch.setattr(optimizers, optimizer, recorded)
    changes: dict[str, Any] = {"learning_rate": 0.2, "max_norm": 3.0, "decay_steps": 7}
    config = config_of(name)
    learn = dataclasses.replace(config.learn, **changes)
    MODULES[name].make(envs.make("probe1"), dataclasses.replace(config, learn=learn))
    assert seen == [(0.2, 3.0, 7)]
