"""NAF: its maximum against a search, its targets by hand, bandits."""

from collections.abc import Callable
from functools import cache, partial
from typing import Any

import jax
import numpy as np
import pytest

from mbrl_jax.envs import point_mass
from mbrl_jax.types import Array, Env, Key, Transition
from mbrl_jax.value_learning import naf, parts
from mbrl_jax.value_learning.parts import Regression

pytestmark = pytest.mark.usefixtures("double")

SIZES = pytest.mark.parametrize("size", [1, 2])
SMALL = naf.Config(hidden_sizes=(16,))


def env_of(size: int, limit: float = 2.0) -> Env:
    return point_mass.make()._replace(obs_size=3, action_size=size, action_limit=limit)


def rough(learner: parts.ValueLearner, seed: int) -> naf.State:
    """With networks that are far from flat, and two different ones."""
    shapes = jax.eval_shape(learner.init, jax.random.key(0))
    rng = np.random.default_rng(seed)
    state = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), shapes)
    draw = lambda x: (0.4 * rng.normal(size=x.shape)).astype(x.dtype)
    params = jax.tree.map(draw, (state.params, state.target))
    return state._replace(params=params[0], target=params[1])


def search(value: Callable[[Array], Array], size: int, limit: float) -> np.ndarray:
    """Where a concave function of [N, A] is largest, by grids that close in."""
    centre, width = np.zeros(size), limit
    while width > 1e-8 * limit:
        ticks = [x + np.linspace(-width, width, 21) for x in centre]
        grid = np.stack(np.meshgrid(*ticks, indexing="ij"), axis=-1).reshape(-1, size)
        centre, width = grid[np.argmax(value(grid))], 0.7 * width
    return centre


@cache
def compiled(size: int) -> tuple[parts.ValueLearner, Callable, Callable]:
    """A learner, what it does (state, obs), and values of (state, obs, [N, A])."""
    learner, key = naf.make(env_of(size), SMALL), jax.random.key(0)

    @jax.jit
    def act(state: naf.State, obs: Array) -> tuple[Array, Array, Array, Array]:
        action, bonus = learner.act(state, key, obs)
        follows = learner.next_value(state, key, obs)
        return action, bonus, follows, learner.values(state, obs, action).max()

    value = lambda state, obs, action: learner.values(state, obs, action)[0]
    return learner, act, jax.jit(jax.vmap(value, (None, None, 0)))


@SIZES
@pytest.mark.parametrize("seed", range(3))
def test_the_analytic_maximum_is_what_a_search_finds(size: int, seed: int):
    learner, act, values = compiled(size)
    state, obs = rough(learner, seed), np.random.default_rng(9).normal(size=3)
    best, *_ = act(state, obs)
    found = search(partial(values, state, obs), size, 3.0)
    np.testing.assert_allclose(best, found, atol=1e-6)
    assert (np.abs(best) < 2).all()


@SIZES
def test_the_value_is_that_of_the_best_action(size: int):
    """And of `V` alone: the first output of the network, in units of the scale."""
    rng = np.random.default_rng(size)
    outputs = rng.normal(size=1 + size + size * (size + 1) // 2)
    others = rng.uniform(-1, 1, (1000, size))

    @jax.jit
    def compared(outputs: Array) -> tuple[Array, Array, Array]:
        q = naf.shape(outputs, size, 7.0)
        return q.value, q(q.mean), jax.vmap(q)(others)

    value, of_mean, of_others = compared(outputs)
    assert value == of_mean == 7 * outputs[0]
    assert (of_others < value).all()
    learner, act, _ = compiled(size)
    _, bonus, follows, judged = act(rough(learner, 0), np.ones(3))
    assert follows == judged
    assert bonus == 0


shape = jax.jit(naf.shape, static_argnums=1)


@pytest.mark.parametrize("size", [1, 2, 4])
@pytest.mark.parametrize("magnitude", [1.0, 1e4])
def test_the_factor_is_lower_triangular_with_a_positive_diagonal(size, magnitude):
    number = 1 + size + size * (size + 1) // 2
    outputs = magnitude * np.random.default_rng(size).normal(size=number)
    factor = np.asarray(shape(outputs, size, 2.0).factor)
    np.testing.assert_array_equal(factor, np.tril(factor))
    assert (np.diag(factor) > 0).all()
    assert np.isfinite(factor).all()
    below = np.tril_indices(size, -1)
    assert np.unique(factor[below]).size == below[0].size  # each entry is its own


def test_q_falls_off_as_equation_3_says():
    """Of two actions: the rows of L are (e^0.2, 0) and (0.7, e^-0.5)."""
    outputs = np.array([3.0, 0.1, -0.4, 0.2, 0.7, -0.5])
    L = np.array([[np.exp(0.2), 0.0], [0.7, np.exp(-0.5)]])
    unit = np.array([0.6, -0.3])
    off = unit - np.tanh([0.1, -0.4])
    expected = 5 * (3 - 0.5 * off @ L @ L.T @ off)
    found = jax.jit(lambda x, unit: naf.shape(x, 2, 5.0)(unit))(outputs, unit)
    np.testing.assert_allclose(found, expected, rtol=1e-9)


def bandit(optimum: np.ndarray, best: float, steep: float = 2.0) -> Regression:
    """A concave quadratic in units of the limit, 2, whose axes are not the action's."""
    rng, size, num_rows = np.random.default_rng(0), len(optimum), 256
    root = np.eye(size) + 0.5 * np.tril(np.ones((size, size)), -1)
    unit = rng.uniform(-1, 1, (num_rows, size))
    target = best - steep * np.square((unit - optimum) @ root).sum(axis=1)
    obs = np.ones((num_rows, 3))
    rows = Regression(obs, 2 * unit, target, np.ones(num_rows))
    return jax.tree.map(lambda x: x.astype(np.float32), rows)


def fitted(
    config: naf.Config, rows: Regression, num_updates: int
) -> tuple[Array, Array]:
    """The best action in units of the limit [A], and what it is worth []."""
    learner = naf.make(env_of(rows.action.shape[1]), config)

    def update(state: naf.State, key: Key) -> tuple[naf.State, None]:
        args = key, state, rows, rows.obs, None
        return learner.update(*args)[0], None

    @jax.jit
    def run(key: Key) -> tuple[Array, Array]:
        keys = jax.random.split(key, num_updates)
        state = jax.lax.scan(update, learner.init(key), keys)[0]
        action, _ = learner.policy(state).act(key, rows.obs[0], ())
        return action / 2, learner.values(state, rows.obs[0], action)[0]

    return run(jax.random.key(0))


@SIZES
def test_fixed_targets_lead_to_the_optimum(size: int):
    optimum = np.array([0.4, -0.6])[:size]
    config = naf.Config(hidden_sizes=(16,), learning_rate=3e-3, target_rate=0.02)
    action, value = fitted(config, bandit(optimum, 3.0), 2000)
    np.testing.assert_allclose(action, optimum, atol=0.02)
    np.testing.assert_allclose(value, 3.0, atol=0.05)


def test_targets_are_of_what_follows_unless_nothing_does():
    """r + discount (1 - terminal) V'(s'), by hand; the clock running out is no end."""
    config = naf.Config(hidden_sizes=(16,), discount=0.9)
    learner = naf.make(env_of(2), config)
    state, rng = rough(learner, 1), np.random.default_rng(0)
    flags = np.array([[False, False], [True, False], [False, True]])
    batch = Transition(
        rng.normal(size=(3, 3)),
        rng.normal(size=(3, 2)),
        np.array([1.0, 2.0, 3.0]),
        rng.normal(size=(3, 3)),
        *flags.T,
    )
    one_step = jax.jit(partial(parts.one_step, learner))
    rows = one_step(state, jax.random.key(0), batch)
    layers = jax.tree.map(np.asarray, state.target["params"])
    first, last = layers["Dense_0"], layers["Dense_1"]
    hidden = np.maximum(batch.next_obs @ first["kernel"] + first["bias"], 0)
    value = config.value_scale * (hidden @ last["kernel"] + last["bias"])[:, 0]
    expected = [1 + 0.9 * value[0], 2, 3 + 0.9 * value[2]]
    np.testing.assert_allclose(rows.target, expected, rtol=1e-12)


def test_an_update_reports_the_error_and_moves_the_target_a_little():
    config = naf.Config(hidden_sizes=(16,), target_rate=0.25, value_scale=30.0)
    learner, rows = naf.make(env_of(2), config), bandit(np.zeros(2), 1.0)
    state = rough(learner, 0)

    @jax.jit
    def update(state: naf.State) -> tuple:
        q = partial(learner.values, state._replace(target=state.params))
        found = jax.vmap(q)(rows.obs, rows.action)[:, 0]
        return *learner.update(jax.random.key(0), state, rows, rows.obs, None), found

    new, metrics, found = update(state)
    errors = np.asarray(found) - rows.target
    np.testing.assert_allclose(metrics["critic/mse"], np.square(errors).mean())
    mix = lambda old, new: 0.75 * old + 0.25 * np.asarray(new)
    expected = jax.tree.map(mix, state.target, new.params)
    jax.tree.map(np.testing.assert_allclose, new.target, expected)


def test_exploration_is_noise_around_the_best_action_within_the_limit():
    learner = naf.make(env_of(1), naf.Config(hidden_sizes=(16,), exploration_std=0.3))
    obs = np.ones(3)

    @jax.jit
    def acts(key: Key) -> tuple[Array, Array]:
        state = learner.init(key)
        draw = lambda key: learner.explore(state).act(key, obs, ())[0][0]
        best = learner.policy(state).act(key, obs, ())[0][0]
        return best, jax.vmap(draw)(jax.random.split(key, 4000))

    best, actions = map(np.asarray, acts(jax.random.key(0)))
    assert np.abs(best) < 0.5
    np.testing.assert_allclose(actions.mean(), best, atol=0.05)
    np.testing.assert_allclose(actions.std(), 0.6, atol=0.05)
    assert (np.abs(actions) <= 2).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"value_scale": 0.0}, "value_scale is 0.0, must be positive"),
        ({"discount": 1.5}, "discount is 1.5, must be from 0 to 1"),
        ({"exploration_std": -1.0}, "exploration_std is -1.0, must be at least 0"),
    ],
)
def test_what_cannot_be_is_an_early_error(change: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        naf.make(env_of(1), naf.Config(**change))
