"""Double Q-learning: targets by hand, one update, and a corridor's optimal values."""

import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mbrl_jax.envs import grid, point_mass
from mbrl_jax.types import Array, Key, Metrics, Params, Transition
from mbrl_jax.value_learning import dqn, parts

pytestmark = pytest.mark.usefixtures("double")

CORRIDOR = grid.make("corridor", grid.parse("S.G"), episode_length=10)
CONFIG = dqn.Config(
    hidden_sizes=(), discount=0.8, learning_rate=1e-2, target_rate=0.1
)  # linear: Q is the kernel's row of the cell, plus the bias
Q = np.array([[1.0, 2, 4, 3], [7, 5, 6, 8], [1, 1, 1, 1]], np.float32)
SLOW = np.array([[10.0, 20, 30, 40], [50, 60, 70, 80], [0, 0, 0, 90]], np.float32)


def linear(table: np.ndarray) -> Params:
    """The network whose values [3, 4] are these."""
    layer = {"kernel": table, "bias": np.zeros(4)}
    return {"params": {"Dense_0": layer}}


def batch(rows: list[tuple[int, int, float, int, bool]]) -> Transition:
    """(cell, action, reward, next cell, terminal)"""
    cell, action, reward, after, terminal = map(np.array, zip(*rows, strict=True))
    eye = np.eye(3, dtype=np.float32)
    never = np.zeros_like(terminal)
    action = action.astype(np.int32)
    return Transition(eye[cell], action, reward, eye[after], terminal, never)


ROWS = batch([(0, 3, 0.5, 1, False), (1, 2, -1.0, 0, False), (1, 3, 1.0, 2, True)])


def start(config: dqn.Config = CONFIG) -> tuple[Any, dqn.State]:
    method = dqn.make(CORRIDOR, config)
    shapes = jax.eval_shape(method.init, jax.random.key(0))
    state = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), shapes)
    return method, state._replace(params=linear(Q), target=linear(SLOW))


def test_the_fast_network_chooses_and_the_slow_one_judges():
    method, state = start()
    one_step = jax.jit(partial(parts.one_step, method))
    rows = one_step(state, jax.random.key(0), ROWS)
    # best by Q: action 3 in cell 1, action 2 in cell 0
    expected = [0.5 + 0.8 * 80, -1 + 0.8 * 30, 1.0]
    np.testing.assert_allclose(rows.target, expected, rtol=1e-6)
    assert rows.action.dtype == jnp.int32


@jax.jit
def updated(max_norm: float) -> tuple[dqn.State, Metrics]:
    method, state = start(dataclasses.replace(CONFIG, max_norm=max_norm))
    return parts.learner(method).update(jax.random.key(0), state, ROWS)


def test_an_update_steps_the_squared_error_down():
    """Gradients by what Adam has averaged of them: a tenth after one step, and scaled
    down to the greatest norm."""
    new, metrics = jax.tree.map(np.asarray, updated(1e9))
    error = np.array([3 - 64.5, 6 - 23.0, 8 - 1.0])
    gradient = np.zeros((3, 4))
    gradient[0, 3], gradient[1, 2], gradient[1, 3] = 2 * error / 3
    averaged = optax.tree_utils.tree_get(new.opt_state, "mu")["params"]["Dense_0"]
    np.testing.assert_allclose(averaged["kernel"], 0.1 * gradient, rtol=1e-5)
    np.testing.assert_allclose(averaged["bias"], 0.1 * gradient.sum(axis=0), rtol=1e-5)
    assert metrics["critic/mse"] == pytest.approx((error**2).mean())
    table = new.params["params"]["Dense_0"]["kernel"]
    np.testing.assert_allclose(table, Q - 0.01 * np.sign(gradient), rtol=1e-5)
    slow = new.target["params"]["Dense_0"]["kernel"]
    np.testing.assert_allclose(slow, 0.9 * SLOW + 0.1 * table, rtol=1e-5)
    new, _ = jax.tree.map(np.asarray, updated(2.0))
    averaged = optax.tree_utils.tree_get(new.opt_state, "mu")
    norm = sum((x**2).sum() for x in jax.tree.leaves(averaged)) ** 0.5
    assert norm == pytest.approx(0.2, rel=1e-5)


@jax.jit
def acts(exploration: float) -> tuple[Array, Array]:
    """Many in the first cell: exploring, and not."""
    method, state = start(dataclasses.replace(CONFIG, exploration=exploration))
    keys, obs = jax.random.split(jax.random.key(0), 4000), jnp.eye(3)[0]
    at = lambda policy: jax.vmap(lambda key: policy.act(key, obs, ())[0])(keys)
    return at(method.explore(state)), at(method.policy(state))


@pytest.mark.parametrize("exploration", [0.0, 0.4, 1.0])
def test_exploration_is_random_as_often_as_it_says(exploration: float):
    explored, best = acts(exploration)
    found = np.bincount(explored, minlength=4) / 4000
    expected = exploration / 4 + (1 - exploration) * (np.arange(4) == 2)
    np.testing.assert_allclose(found, expected, atol=5 * 0.5 / 4000**0.5)
    np.testing.assert_array_equal(best, 2)


def test_a_corridor_is_solved():
    """All its transitions again and again: Q is optimal everywhere, by hand."""
    step_of = [(0, 0, 0, 1), (1, 1, 0, 2)]  # where up, down, left, right lead
    rows = [
        (cell, action, float(after == 2), after, after == 2)
        for cell, afters in enumerate(step_of)
        for action, after in enumerate(afters)
    ]
    config = dqn.Config(
        hidden_sizes=(16,), discount=0.8, learning_rate=1e-2, target_rate=0.1
    )
    method = dqn.make(CORRIDOR, config)
    learner, data = parts.learner(method), batch(rows)
    one = lambda state, key: (learner.update(key, state, data)[0], None)

    @jax.jit
    def run(key: Key) -> tuple[Array, Array]:
        keys = jax.random.split(key, 1000)
        state = jax.lax.scan(one, learner.init(key), keys)[0]
        pairs = jax.vmap(lambda obs, a: method.values(state, obs, a)[0])
        policy = method.policy(state)
        best = jax.vmap(lambda obs: policy.act(key, obs, ())[0])(jnp.eye(3)[:2])
        return pairs(data.obs, data.action), best

    found, best = run(jax.random.key(0))
    expected = [0.64, 0.64, 0.64, 0.8, 0.8, 0.8, 0.64, 1.0]
    np.testing.assert_allclose(found, expected, atol=0.02)
    np.testing.assert_array_equal(best, 3)


def test_it_is_for_discrete_actions():
    with pytest.raises(ValueError, match="the actions of point_mass are continuous"):
        dqn.make(point_mass.make(), CONFIG)
    with pytest.raises(ValueError, match=r"exploration is 1\.5, must be from 0 to 1"):
        dqn.make(CORRIDOR, dqn.Config(exploration=1.5))


def test_the_policy_tells_its_values_and_what_they_are_made_of():
    """Those that it acts by, not the ones that move slowly."""
    method, state = start()
    policy = method.policy(state)
    for cell, obs in enumerate(jnp.eye(3, dtype=jnp.float32)):
        np.testing.assert_allclose(policy.values(obs), Q[cell])
        np.testing.assert_allclose(policy.features(obs), obs)  # no hidden layer
        assert policy.act(jax.random.key(0), obs, ())[0] == Q[cell].argmax()
