"""The five probes by SAC, TD3 and NAF; a small grid by DQN, and by Dyna with it."""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mbrl_jax import envs, rollout
from mbrl_jax.algorithms import dqn, dyna, naf, sac, td3
from mbrl_jax.envs import grid
from mbrl_jax.models import by_name as models
from mbrl_jax.models import ensemble
from mbrl_jax.value_learning import branching, by_name, off_policy
from mbrl_jax.value_learning import dqn as dqn_learner
from mbrl_jax.value_learning import naf as naf_learner
from mbrl_jax.value_learning import sac as sac_learner
from mbrl_jax.value_learning import td3 as td3_learner

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


def what(name: str) -> tuple[Any, Any, int]:
    return MODULES[name], config_of(name), NUM_STEPS


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
def test_the_critics_know_the_value(
    state_of: Callable, name: str, probe: str, values: dict
):
    """Whatever the action is."""
    make = {"sac": sac_learner.make, "td3": td3_learner.make}[name]
    method = make(envs.make(probe), config_of(name).learn)
    state = state_of(probe, *what(name)).learner
    for obs, value in values.items():
        for action in (-0.5, 0.5):
            found = method.values(state, jnp.array([obs]), jnp.array([action]))
            np.testing.assert_allclose(found, value, atol=0.1)


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


@pytest.mark.slow
@pytest.mark.parametrize(
    ("probe", "values", "actions"),
    [
        ("probe1", {0.0: 1.0}, {}),
        ("probe2", {-1.0: -1.0, 1.0: 1.0}, {}),
        ("probe3", {0.0: DISCOUNT, 1.0: 1.0}, {}),
        ("probe4", {0.0: 1.0}, {0.0: 0.5}),
        ("probe5", {-1.0: 1.0, 1.0: 1.0}, {-1.0: -0.5, 1.0: 0.5}),
    ],
)
def test_naf_knows_values_and_best_actions(
    state_of: Callable, probe: str, values: dict, actions: dict
):
    config = naf.Config(
        off_policy.Config(capacity=1000, warmup=100, interval=800, batch_size=64),
        naf_learner.Config(
            hidden_sizes=(16,),
            discount=DISCOUNT,
            learning_rate=5e-3,
            target_rate=0.05,
            value_scale=1.0,
        ),
    )
    learner = naf_learner.make(envs.make(probe), config.learn)
    state = state_of(probe, naf, config, 2).learner
    value = partial(learner.next_value, state, jax.random.key(0))
    for obs, expected in values.items():
        np.testing.assert_allclose(value(jnp.array([obs])), expected, atol=0.1)
    for obs, expected in actions.items():
        action, _ = learner.policy(state).act(jax.random.key(0), jnp.array([obs]), ())
        np.testing.assert_allclose(action, expected, atol=0.1)


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


@pytest.mark.slow
def test_dqn_finds_a_shortest_way():
    collect = dataclasses.replace(COLLECT, num_envs=1, warmup=100)
    algorithm = dqn.make(HALL, dqn.Config(collect, DQN))
    state, _ = after(algorithm, 10)
    assert steps_to_the_goal(algorithm, state) == 4


@pytest.mark.slow
def test_dyna_plans_a_shortest_way_with_a_network_for_discrete_actions():
    """From two hundred real steps; its model sees actions one-hot."""
    config = dyna.Config(
        actions="uniform",
        collect=off_policy.Config(
            capacity=200, warmup=100, interval=100, updates_per_step=4, batch_size=32
        ),
        learner=by_name.Config(name="dqn", dqn=DQN),
        imagine=branching.Config(num_rollouts=200, real_share=0.5, retain=1),
        model=models.Config(
            ensemble=ensemble.Config(num_members=1, hidden_sizes=(32,), num_epochs=50)
        ),
    )
    algorithm = dyna.make(HALL, config)
    state, metrics = after(algorithm, 3)
    assert steps_to_the_goal(algorithm, state) == 4
    imagined = state.model_state.imagined.data
    assert imagined.action.dtype == jnp.int32
    np.testing.assert_array_equal(np.unique(imagined.action), np.arange(4))
    assert algorithm.predict is not None
    eye, move = jnp.eye(9), jnp.array(3, jnp.int32)  # to the right from the start
    mean, std = algorithm.predict(state, eye[0], move)
    assert mean.shape == std.shape == (1, 9)
    assert int(mean[0].argmax()) == 1
    assert metrics["imagined/transitions"][-1] == 200
