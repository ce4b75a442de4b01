"""The five probes by SAC and TD3, and a small grid by DQN and by Dyna with it."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mbrl_jax import branching, envs, off_policy, rollout, value_learners
from mbrl_jax.algorithms import dqn, dyna, sac, td3
from mbrl_jax.envs import grid
from mbrl_jax.learners import dqn as dqn_learner
from mbrl_jax.learners import sac as sac_learner
from mbrl_jax.learners import td3 as td3_learner
from mbrl_jax.models import ensemble
from mbrl_jax.types import Array, Env, Key

PROBES = tuple(f"probe{i}" for i in range(1, 6))
DISCOUNT = 0.8
MODULES = {"sac": sac, "td3": td3}
LEARN: dict[str, Any] = {
    # a temperature of almost nothing: values are those of the rewards
    "sac": sac_learner.Config(init_temperature=1e-3, temperature_rate=0.0),
    "td3": td3_learner.Config(exploration_std=0.5),
}
COLLECT = off_policy.Config(
    capacity=1000, warmup=200, interval=100, num_envs=4, batch_size=32
)
NUM_STEPS = 12
LEARNERS = pytest.mark.parametrize("name", MODULES)


def config_of(name: str) -> Any:
    learn = dataclasses.replace(
        LEARN[name],
        hidden_sizes=(32,),
        discount=DISCOUNT,
        learning_rate=5e-3,
        target_rate=0.1,
    )
    return MODULES[name].Config(COLLECT, learn)


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
        keys = jax.random.split(key, NUM_STEPS)
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
def test_the_critics_know_the_value(name: str, probe: str, values: dict):
    """Whatever the action is."""
    make = {"sac": sac_learner.make, "td3": td3_learner.make}[name]
    parts = make(envs.make(probe), config_of(name).learn)
    state = state_of(name, probe).learner
    for obs, value in values.items():
        for action in (-0.5, 0.5):
            found = parts.values(state, jnp.array([obs]), jnp.array([action]))
            np.testing.assert_allclose(found, value, atol=0.1)


@LEARNERS
@pytest.mark.parametrize("probe", ["probe4", "probe5"])
def test_the_policy_goes_where_the_reward_is_best(name: str, probe: str):
    """At action 1/2, or at half the obs; a return of 0.99 is 0.1 off.  Actions of 0
    get 0.75."""
    env, state = envs.make(probe), state_of(name, probe)
    policy = MODULES[name].make(env, config_of(name)).policy(state)
    evaluate = jax.jit(lambda key: rollout.evaluate(key, env, policy, 8)[0])
    assert evaluate(jax.random.key(1))["eval/return_min"] > 0.99


HALL = grid.make("hall", grid.parse("S..\n.#.\n..G"), episode_length=12)
DQN = dqn_learner.Config(
    hidden_sizes=(16,),
    discount=DISCOUNT,
    learning_rate=1e-2,
    target_rate=0.1,
    exploration=0.3,
)


def after(algorithm: Any, num_steps: int) -> Any:
    keys = jax.random.split(jax.random.key(1), num_steps)
    step = lambda state, key: algorithm.step(key, state)
    run = lambda: jax.lax.scan(step, algorithm.init(jax.random.key(0)), keys)
    return jax.jit(run)()


def steps_to_the_goal(algorithm: Any, state: Any) -> int:
    """Of the greedy policy; the episode's length if it never arrives."""
    run = lambda key: rollout.episode(key, HALL, algorithm.policy(state))
    found = jax.jit(run)(jax.random.key(0))
    return int(found.valid.sum())


def test_dqn_finds_a_shortest_way():
    collect = dataclasses.replace(COLLECT, num_envs=1, warmup=100)
    algorithm = dqn.make(HALL, dqn.Config(collect, DQN))
    state, _ = after(algorithm, 10)
    assert steps_to_the_goal(algorithm, state) == 4


def test_dyna_plans_a_shortest_way_with_a_network_for_discrete_actions():
    """From two hundred real steps; its model sees actions one-hot."""
    config = dyna.Config(
        actions="uniform",
        collect=off_policy.Config(
            capacity=200, warmup=100, interval=100, updates_per_step=4, batch_size=32
        ),
        learner=value_learners.Config(name="dqn", dqn=DQN),
        imagine=branching.Config(num_rollouts=200, real_share=0.5, retain=1),
        model=ensemble.Config(num_members=1, hidden_sizes=(32,), num_epochs=50),
    )
    algorithm = dyna.make(HALL, config)
    state, metrics = after(algorithm, 3)
    assert steps_to_the_goal(algorithm, state) == 4
    imagined = state.world.imagined.data
    assert imagined.action.dtype == jnp.int32
    np.testing.assert_array_equal(np.unique(imagined.action), np.arange(4))
    assert algorithm.predict is not None
    eye, move = jnp.eye(9), jnp.array(3, jnp.int32)  # to the right from the start
    mean, std = algorithm.predict(state, eye[0], move)
    assert mean.shape == std.shape == (1, 9)
    assert int(mean[0].argmax()) == 1
    assert metrics["imagined/transitions"][-1] == 200
