"""Targets, errors and critics against values by hand."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mbrl_jax.envs import point_mass
from mbrl_jax.types import Act, Array, Key, Policy, PyTree, Transition
from mbrl_jax.value_learning import parts, sac
from mbrl_jax.value_learning.parts import Regression, Value, ValueLearner


def learner(bonus: float = 0.0, discount: float = 0.9) -> ValueLearner:
    """The action is twice the obs, and the critics say obs + action + state [K]."""

    def act(state: Array, key: Key, obs: Array) -> tuple[Array, Array]:
        return 2 * obs, jnp.full((), bonus)

    def values(state: Array, obs: Array, action: Array) -> Array:
        return obs + action + state

    def update(
        key: Key, state: PyTree, rows: Regression, obs: Array, objective: PyTree
    ) -> tuple:
        value = lambda obs, action: values(state, obs, action).max()
        at = lambda key, obs: (-obs, jnp.full((), bonus))
        return rows, {"objective": objective(key, obs, at, value).mean()}

    def next_value(state: Array, key: Key, obs: Array) -> Array:
        return values(state, obs, 2 * obs).min() + bonus

    def actor_objective(key: Key, obs: Array, act: Act, value: Value) -> Array:
        action, bonus = jax.vmap(act)(jax.random.split(key, len(obs)), obs)
        return 10 * jax.vmap(value)(obs, action) + bonus

    policy = lambda state: Policy(lambda: (), lambda key, obs, memory: (obs, memory))
    init = lambda key: jnp.array([3.0, 1.0, 2.0])
    return ValueLearner(
        init,
        act,
        values,
        next_value,
        actor_objective,
        update,
        policy,
        policy,
        discount,
    )


@partial(jax.jit, static_argnums=(0, 1))
def rows_of(bonus: float, discount: float, batch: Transition) -> Regression:
    method = learner(bonus, discount)
    return parts.one_step(method, CRITICS, jax.random.key(0), batch)


CRITICS = np.array([3.0, 1.0, 2.0])
BATCH = Transition(
    obs=np.array([[1.0], [2.0], [3.0], [4.0]]),
    action=np.array([[0.1], [0.2], [0.3], [0.4]]),
    reward=np.array([10.0, 20.0, 30.0, 40.0]),
    next_obs=np.array([[1.5], [2.5], [-3.5], [4.5]]),
    terminal=np.array([False, True, False, False]),
    truncated=np.array([False, False, False, True]),
)


def test_targets_look_one_step_ahead():
    """Beyond the end of the clock, not beyond that of the task."""
    rows = rows_of(0.5, 0.9, BATCH)
    follows = 3 * np.array([1.5, 2.5, -3.5, 4.5]) + 1 + 0.5  # the least of the critics
    expected = [
        10 + 0.9 * follows[0],
        20,
        30 + 0.9 * follows[2],
        40 + 0.9 * follows[3],
    ]
    np.testing.assert_allclose(rows.target, expected, rtol=1e-6)
    np.testing.assert_array_equal(rows.obs, BATCH.obs)
    np.testing.assert_array_equal(rows.action, np.float32(BATCH.action))
    np.testing.assert_array_equal(rows.weight, 1)


def test_a_terminal_hides_what_is_not_finite_behind_it():
    next_obs = np.where(BATCH.terminal[:, None], np.inf, BATCH.next_obs)
    rows = rows_of(0.5, 0.9, BATCH._replace(next_obs=next_obs))
    assert rows.target[1] == 20


def test_without_a_discount_the_reward_is_all():
    rows = rows_of(0.5, 0.0, BATCH)
    np.testing.assert_array_equal(rows.target, BATCH.reward)


def test_each_row_acts_by_a_key_of_its_own():
    follows = lambda state, key, obs: jax.random.normal(key, ())
    method = learner(discount=1.0)._replace(next_value=follows)
    same = jax.tree.map(lambda x: np.stack([x[0]] * 50), BATCH)
    one_step = jax.jit(partial(parts.one_step, method))
    rows = one_step(CRITICS, jax.random.key(0), same)
    assert len(np.unique(rows.target)) == 50


def test_the_published_method_goes_up_what_its_policy_is_worth():
    update = jax.jit(parts.learner(learner(0.5)).update)
    rows, metrics = update(jax.random.key(0), CRITICS, BATCH)
    one = rows_of(0.5, 0.9, BATCH)
    jax.tree.map(np.testing.assert_array_equal, rows, one)  # no keys in this one
    # ten times: action -obs leaves the greatest of the critics; and the bonus
    assert metrics["objective"] == pytest.approx(30.5)


def test_the_error_is_a_weighted_mean_over_rows_and_a_sum_over_critics():
    rng = np.random.default_rng(0)
    found, target, weight = rng.normal(size=(5, 3)), rng.normal(size=5), rng.random(5)
    weight[2] = 0
    rows = Regression(np.arange(5)[:, None], np.zeros((5, 1)), target, weight)
    apply = lambda obs, action: jnp.asarray(found)[obs[0]]
    error_of = jax.jit(partial(parts.error, apply))
    total = sum(
        weight[i] * sum((found[i, k] - target[i]) ** 2 for k in range(3))
        for i in range(5)
    )
    error = error_of(rows)
    assert error == pytest.approx(total / weight.sum(), rel=1e-5)
    other = rows._replace(target=rows.target + np.array([0, 0, 7.0, 0, 0]))
    assert error_of(other) == error  # it weighs nothing
    doubled = rows._replace(weight=2 * weight)
    assert error_of(doubled) == pytest.approx(float(error), rel=1e-6)


@pytest.mark.parametrize("bad", [np.inf, np.nan, 1e30])
def test_a_row_that_weighs_nothing_has_no_gradient(bad: float):
    """Whatever it holds."""
    ones = np.ones((3, 2), np.float32)
    rows = Regression(ones, ones[:, :1], ones[:, 0], np.array([1.0, 0.0, 1.0]))
    spoiled = jax.tree.map(lambda x: x.copy(), rows)
    for x in spoiled[:3]:
        x[1] = bad

    @jax.jit
    def slope(rows: Regression) -> Array:
        apply = lambda w, obs, action: jnp.array([jnp.sin(w * obs.sum()) + action[0]])
        return jax.grad(lambda w: parts.error(partial(apply, w), rows))(0.7)

    assert slope(rows) != 0
    assert slope(spoiled) == slope(rows)


def test_critics_see_actions_in_units_of_the_limit():
    """And are networks of their own."""
    env = point_mass.make()
    wide = env._replace(action_limit=7 * env.action_limit)
    narrow, wide = (parts.critics(x, (8,), 3) for x in (env, wide))
    obs, action = jnp.linspace(-1, 1, env.obs_size), np.array([0.3, -0.2])

    @jax.jit
    def both(key: Key) -> tuple[Array, Array]:
        params = narrow.init(key)
        return narrow.apply(params, obs, action), wide.apply(params, obs, 7 * action)

    found, of_wide = both(jax.random.key(0))
    assert found.shape == (3,)
    assert len(np.unique(found)) == 3
    np.testing.assert_allclose(of_wide, found, rtol=1e-5)


def test_a_policy_never_sees_what_is_not_finite():
    env = point_mass.make()
    method = sac.make(env, sac.Config(hidden_sizes=(8,)))

    @jax.jit
    def acts(obs: Array) -> list[Array]:
        state = method.init(jax.random.key(0))
        policies = method.explore(state), method.policy(state)
        return [x.act(jax.random.key(1), obs, x.init())[0] for x in policies]

    clean, bad = np.arange(env.obs_size, dtype=np.float32), [0, 2, 4]
    clean[bad] = 0
    lost = clean.copy()
    lost[bad] = np.nan, np.inf, -np.inf
    for found, expected in zip(acts(lost), acts(clean), strict=True):
        assert np.isfinite(found).all()
        np.testing.assert_array_equal(found, expected)


def test_the_memory_of_a_policy_is_passed_on():
    policy = parts.acting(lambda key, obs: obs)
    assert policy.init() == ()
    assert policy.act(jax.random.key(0), jnp.ones(2), "kept")[1] == "kept"
