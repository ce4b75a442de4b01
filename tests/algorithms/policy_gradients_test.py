"""The five probes by every learner of policy gradients, all five in one program."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mbrl_jax import actor_critic, envs, rollout
from mbrl_jax.algorithms import a2c, npg, ppo, reinforce, trpo
from mbrl_jax.experience import CriticConfig
from mbrl_jax.ops import normalize
from mbrl_jax.types import Array, Env, Key

PROBES = tuple(f"probe{i}" for i in range(1, 6))
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


def one_of_all(which: Array) -> Env:
    """The probe of an index that may be traced."""
    probes = [envs.make(name) for name in PROBES]

    def switch(kind: str) -> Callable[..., Any]:
        branches = [getattr(probe, kind) for probe in probes]
        return lambda *args: jax.lax.switch(which, branches, *args)

    return probes[2]._replace(  # whose episodes are the longest
        reset=switch("reset"), step=switch("step"), reward=None, terminal=None
    )


@functools.cache
def trained(name: str) -> Any:
    """The states after training, [5, ...]."""

    def run(which: Array, key: Key) -> Any:
        algorithm = MODULES[name].make(one_of_all(which), config_of(name))
        keys = jax.random.split(key, NUM_STEPS[name])
        step = lambda state, key: (algorithm.step(key, state)[0], None)
        return jax.lax.scan(step, algorithm.init(key), keys)[0]

    keys = jax.random.split(jax.random.key(0), len(PROBES))
    return jax.jit(jax.vmap(run))(jnp.arange(len(PROBES)), keys)


def state_of(name: str, probe: str) -> Any:
    return jax.tree.map(lambda x: x[PROBES.index(probe)], trained(name))


@LEARNERS
@pytest.mark.parametrize(
    ("probe", "values"),
    [
        ("probe1", {0.0: 1.0}),
        ("probe2", {-1.0: -1.0, 1.0: 1.0}),
        ("probe3", {0.0: DISCOUNT, 1.0: 1.0}),
    ],
)
def test_the_critic_knows_the_value(name: str, probe: str, values: dict):
    net, agent = actor_critic.make(envs.make(probe), NET), state_of(name, probe)
    agent = agent.learner.agent
    stats, scale = normalize.so_far(agent.obs), normalize.so_far(agent.returns)
    for obs, value in values.items():
        seen = actor_critic.look(stats, jnp.array([obs]))
        found = net.value(agent.critic, (), seen)[1] * scale.std[0] + scale.mean[0]
        assert float(found) == pytest.approx(value, abs=0.05)


@LEARNERS
@pytest.mark.parametrize("probe", ["probe4", "probe5"])
def test_the_policy_goes_where_the_reward_is_best(name: str, probe: str):
    """At action 1/2, or at half the obs; a return of 0.99 is 0.1 off.  Actions of 0
    get 0.75."""
    env, state = envs.make(probe), state_of(name, probe)
    policy = MODULES[name].make(env, config_of(name)).policy(state)
    evaluate = jax.jit(lambda key: rollout.evaluate(key, env, policy, 8)[0])
    assert evaluate(jax.random.key(1))["eval/return_min"] > 0.99


@LEARNERS
def test_what_does_not_matter_is_left_alone(name: str):
    """Where every action is as good, steps are counted as they are anywhere."""
    state, config = state_of(name, "probe1"), config_of(name)
    assert np.isfinite(state.tally.last_return)
    assert float(state.tally.last_return) == 1
    each = config.num_envs * getattr(config, "window", 1)
    each *= getattr(config, "num_updates", 1)
    assert state.tally.env_steps == state.tally.num_episodes == NUM_STEPS[name] * each
    assert state.tally.num_non_finite == 0
