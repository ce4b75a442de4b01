"""What is read from a prediction, and what is computed instead."""

from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mbrl_jax import replay
from mbrl_jax.envs import cartpole, grid, point_mass
from mbrl_jax.models import by_name as models
from mbrl_jax.models import ensemble, outcomes
from mbrl_jax.types import Array, Env, Model, Transition


def known(
    env: Env, learn_reward: bool, learn_terminal: bool, y: Array
) -> outcomes.Outcome:
    obs, action = jnp.full(env.obs_size, 0.1), jnp.full(env.action_size, 0.2)
    return outcomes.decoder(env, learn_reward, learn_terminal)(obs, action, y)


NEXT = jnp.array([0.1, 0.2, 0.3, 0.4])  # a pole this far off has fallen


@pytest.mark.parametrize("logit", [-0.1, 0.1])
def test_what_is_learned_is_read_and_what_is_known_is_computed(logit: float):
    env = cartpole.balance()
    both = known(env, True, True, jnp.append(NEXT, jnp.array([7.0, logit])))
    assert both.reward == 7
    assert both.terminal == (logit > 0)
    reward = known(env, True, False, jnp.append(NEXT, 7.0))
    assert reward.reward == 7
    assert reward.terminal
    terminal = known(env, False, True, jnp.append(NEXT, logit))
    assert terminal.reward == 1
    assert terminal.terminal == (logit > 0)
    neither = known(env, False, False, NEXT)
    assert neither.reward == 1
    assert neither.terminal
    for found in (both, reward, terminal, neither):
        np.testing.assert_array_equal(found.next_obs, NEXT)


def test_a_known_reward_is_of_the_obs_the_action_and_the_prediction():
    env, y = point_mass.make(), jnp.arange(6.0)
    obs, action = jnp.full(6, 0.1), jnp.full(2, 0.2)
    assert env.reward is not None
    assert known(env, False, False, y).reward == env.reward(obs, action, y)


def test_actions_are_seen_within_their_limits():
    """When it is fitted, and when it predicts."""
    env, seen = point_mass.make(), []

    def fit(key, state, data):
        seen.append(data.data.action)
        return state, {}

    predict = lambda member, obs, action: action
    stub = Model(lambda key: (), fit, lambda state: state, predict)
    config = models.Config(ensemble=ensemble.Config(hidden_sizes=(4,)))
    with mock.patch.object(ensemble, "make", return_value=stub):
        model, _ = outcomes.learned(env, config)
    action = env.action_limit * jnp.array([[3.0, -0.5], [0.2, -7.0]])
    within = env.action_limit * np.array([[1.0, -0.5], [0.2, -1.0]])
    obs, flags = jnp.zeros((2, env.obs_size)), jnp.zeros(2, bool)
    rows = Transition(obs, action, jnp.zeros(2), obs, flags, flags)
    data = replay.init(env.obs_size, env.action_size, 2)
    model.fit(jax.random.key(0), (), replay.insert(data, rows, ~flags))
    np.testing.assert_allclose(seen[0], within)
    np.testing.assert_allclose(model.predict((), obs[0], action[0]), within[0])


@pytest.mark.slow
def test_numbers_of_actions_are_shown_to_the_model_as_ones_and_zeros():
    """A network learns a move that depends on the action in no linear way."""
    env = grid.make("hall", grid.parse("S..G"), episode_length=5)
    config = models.Config(
        ensemble=ensemble.Config(
            num_members=1,
            hidden_sizes=(16,),
            probabilistic=False,
            learning_rate=1e-2,
            batch_size=30,
        )
    )
    model, decode = outcomes.learned(env, config)
    cells = jnp.arange(120) % 3
    move = (jnp.arange(120) * 7 // 3) % 4
    after = jnp.where(move == 3, cells + 1, jnp.where(move == 2, cells - 1, cells))
    eye = jnp.eye(4)
    after = after.clip(0)
    rows = Transition(
        eye[cells],
        move.astype(jnp.int32),
        (after == 3).astype(float),
        eye[after],
        after == 3,
        jnp.zeros(120, bool),
    )
    data = replay.init(4, 0, 120, discrete=True)
    data = replay.insert(data, rows, jnp.ones(120, bool))
    state, _ = jax.jit(model.fit)(
        jax.random.key(0), jax.jit(model.init)(jax.random.key(1)), data
    )
    member = jax.tree.map(lambda x: x[0], model.members(state))
    y = jax.vmap(lambda obs, action: model.predict(member, obs, action).mean)(
        rows.obs, rows.action
    )
    np.testing.assert_array_equal(y[:, :4].argmax(axis=1), after)
    found = jax.vmap(decode)(rows.obs, rows.action, y)
    np.testing.assert_array_equal(found.terminal, after == 3)
    np.testing.assert_allclose(found.reward, after == 3, atol=0.2)
