"""Targets, errors and critics against values by hand."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mbrl_jax import value_learning
from mbrl_jax.envs import point_mass
from mbrl_jax.learners import sac
from mbrl_jax.types import Array, Key, Policy, PyTree, Transition
from mbrl_jax.value_learning import Rows, ValueLearner


def learner(bonus: float = 0.0, discount: float = 0.9) -> ValueLearner:
    """The action is twice the obs, and the critics say obs + action + state [K]."""

    def act(state: Array, key: Key, obs: Array) -> tuple[Array, Array]:
        return 2 * obs, jnp.full((), bonus)

    def values(state: Array, obs: Array, action: Array) -> Array:
        return obs + action + state

    def update(key: Key, state: PyTree, rows: Rows, obs: Array, worth: PyTree) -> tuple:
        value = lambda obs, action: values(state, obs, action).max()
        at = lambda key, obs: (-obs, jnp.full((), bonus))
        return rows, {"worth": worth(key, obs, at, value).mean()}

    policy = lambda state: Policy(lambda: (), lambda key, obs, memory: (obs, memory))
    init = lambda key: jnp.array([3.0, 1.0, 2.0])
    return ValueLearner(init, act, values, update, policy, policy, discount)


CRITICS = jnp.array([3.0, 1.0, 2.0])
BATCH = Transition(
    obs=jnp.array([[1.0], [2.0], [3.0], [4.0]]),
    action=jnp.array([[0.1], [0.2], [0.3], [0.4]]),
    reward=jnp.array([10.0, 20.0, 30.0, 40.0]),
    next_obs=jnp.array([[1.5], [2.5], [-3.5], [4.5]]),
    terminal=jnp.array([False, True, False, False]),
    truncated=jnp.array([False, False, False, True]),
)


def test_targets_look_one_step_ahead():
    """Beyond the end of the clock, not beyond that of the task."""
    rows = value_learning.one_step(learner(0.5), CRITICS, jax.random.key(0), BATCH)
    follows = 3 * np.array([1.5, 2.5, -3.5, 4.5]) + 1 + 0.5  # the least of the critics
    expected = [
        10 + 0.9 * follows[0],
        20,
        30 + 0.9 * follows[2],
        40 + 0.9 * follows[3],
    ]
    np.testing.assert_allclose(rows.target, expected, rtol=1e-6)
    np.testing.assert_array_equal(rows.obs, BATCH.obs)
    np.testing.assert_array_equal(rows.action, BATCH.action)
    np.testing.assert_array_equal(rows.weight, 1)


def test_a_terminal_hides_what_is_not_finite_behind_it():
    bad = BATCH._replace(next_obs=BATCH.next_obs.at[1].set(jnp.inf))
    rows = value_learning.one_step(learner(), CRITICS, jax.random.key(0), bad)
    assert rows.target[1] == 20


def test_without_a_discount_the_reward_is_all():
    parts = learner(0.5, discount=0.0)
    rows = value_learning.one_step(parts, CRITICS, jax.random.key(0), BATCH)
    np.testing.assert_array_equal(rows.target, BATCH.reward)


def test_each_row_acts_by_a_key_of_its_own():
    def act(state: Array, key: Key, obs: Array) -> tuple[Array, Array]:
        return jax.random.normal(key, obs.shape), jnp.zeros(())

    parts = learner(discount=1.0)._replace(act=act)
    same = jax.tree.map(lambda x: jnp.stack([x[0]] * 50), BATCH)
    rows = value_learning.one_step(parts, CRITICS, jax.random.key(0), same)
    assert len(np.unique(rows.target)) == 50


def test_the_published_method_goes_up_what_its_policy_is_worth():
    update = value_learning.learner(learner(0.5)).update
    rows, metrics = update(jax.random.key(0), CRITICS, BATCH)
    one = value_learning.one_step(learner(0.5), CRITICS, jax.random.key(1), BATCH)
    jax.tree.map(np.testing.assert_array_equal, rows, one)  # no keys in this one
    # action -obs leaves the greatest of the critics, and the bonus
    assert metrics["worth"] == pytest.approx(3.5)


def test_the_error_is_a_weighted_mean_over_rows_and_a_sum_over_critics():
    rng = np.random.default_rng(0)
    found, target, weight = rng.normal(size=(5, 3)), rng.normal(size=5), rng.random(5)
    weight[2] = 0
    rows = Rows(jnp.arange(5)[:, None], jnp.zeros((5, 1)), target, weight)
    apply = lambda obs, action: jnp.asarray(found)[obs[0]]
    total = sum(
        weight[i] * sum((found[i, k] - target[i]) ** 2 for k in range(3))
        for i in range(5)
    )
    error = value_learning.error(apply, rows)
    assert error == pytest.approx(total / weight.sum(), rel=1e-5)
    other = rows._replace(target=rows.target + np.array([0, 0, 7.0, 0, 0]))
    assert value_learning.error(apply, other) == error  # it weighs nothing
    doubled = rows._replace(weight=2 * weight)
    assert value_learning.error(apply, doubled) == pytest.approx(float(error), rel=1e-6)


def test_critics_see_actions_in_units_of_the_limit():
    """And are networks of their own."""
    env = point_mass.make()
    wide = env._replace(action_limit=7 * env.action_limit)
    narrow, wide = (value_learning.critics(x, (8,), 3) for x in (env, wide))
    params = narrow.init(jax.random.key(0))
    obs, action = jnp.linspace(-1, 1, env.obs_size), jnp.array([0.3, -0.2])
    found = narrow.apply(params, obs, action)
    assert found.shape == (3,)
    assert len(np.unique(found)) == 3
    np.testing.assert_allclose(wide.apply(params, obs, 7 * action), found, rtol=1e-5)


@pytest.mark.parametrize("kind", ["explore", "policy"])
def test_a_policy_never_sees_what_is_not_finite(kind: str):
    env = point_mass.make()
    parts = sac.make(env, sac.Config(hidden_sizes=(8,)))
    policy = getattr(parts, kind)(parts.init(jax.random.key(0)))
    act = lambda obs: policy.act(jax.random.key(1), obs, policy.init())[0]
    clean = jnp.arange(env.obs_size, dtype=float).at[jnp.array([0, 2, 4])].set(0)
    bad = clean.at[0].set(jnp.nan).at[2].set(jnp.inf).at[4].set(-jnp.inf)
    assert np.isfinite(act(bad)).all()
    np.testing.assert_array_equal(act(bad), act(clean))


def test_the_memory_of_a_policy_is_passed_on():
    policy = value_learning.acting(lambda key, obs: obs)
    assert policy.init() == ()
    assert policy.act(jax.random.key(0), jnp.ones(2), "kept")[1] == "kept"


def test_a_state_value_is_differentiable_through_the_action():
    worth = partial(value_learning.state_value, learner(), CRITICS, jax.random.key(0))
    np.testing.assert_allclose(jax.grad(worth)(jnp.array([2.0])), [3.0])
