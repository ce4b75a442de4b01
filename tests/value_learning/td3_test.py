"""Updates against a plain second implementation; smoothing, delay and DDPG."""

import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mbrl_jax.envs import point_mass
from mbrl_jax.types import Array, Key, Metrics, Params, Transition
from mbrl_jax.value_learning import parts, td3
from mbrl_jax.value_learning.parts import ValueLearner

LIMIT = 2.0
ENV = point_mass.make()._replace(action_limit=LIMIT)
CONFIG = td3.Config(
    hidden_sizes=(8, 6),
    discount=0.8,
    learning_rate=1e-2,
    delay=1,
    target_rate=0.1,
)
B = 7


def random_batch(seed: int) -> Transition:
    rng = np.random.default_rng(seed)
    obs = rng.normal(size=(2, B, ENV.obs_size))
    action = rng.uniform(-LIMIT, LIMIT, size=(B, ENV.action_size))
    ends = np.arange(B) % 3 == 0
    return Transition(
        obs[0], action, rng.normal(size=B), obs[1], ends, np.zeros(B, bool)
    )


def start(config: td3.Config = CONFIG) -> tuple[ValueLearner, td3.State]:
    """A learner, and a state of four different networks, all without biases."""
    method, rng = td3.make(ENV, config), np.random.default_rng(0)
    shapes = jax.eval_shape(method.init, jax.random.key(0))
    state = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), shapes)

    def draw(path: tuple, x: jax.ShapeDtypeStruct) -> np.ndarray:
        scale = 0.0 if path[-1].key == "bias" else 0.4
        return (scale * rng.normal(size=x.shape)).astype(x.dtype)

    return method, state._replace(
        **{
            name: jax.tree.map_with_path(draw, getattr(shapes, name))
            for name in ("actor", "critics", "target_actor", "target_critics")
        }
    )


@jax.jit
def updated(
    key: Key, state: td3.State, batch: Transition, changes: dict[str, Any]
) -> tuple[td3.State, Metrics]:
    """Compiled once for all `changes`, of numbers that fix no shape."""
    method = td3.make(ENV, dataclasses.replace(CONFIG, **changes))
    return parts.learner(method).update(key, state, batch)


def changes_of(config: td3.Config, **changes: Any) -> dict[str, Any]:
    names = ("delay", "smoothing_std", "smoothing_limit")
    return {name: getattr(config, name) for name in names} | changes


def forward(params: Params, x: Array) -> Array:
    *hidden, last = [layer for _, layer in sorted(params["params"].items())]
    for layer in hidden:
        x = jnp.maximum(x @ layer["kernel"] + layer["bias"], 0)
    return x @ last["kernel"] + last["bias"]


def q_values(critics: Params, obs: Array, action: Array) -> Array:
    """Of each of the critics, [2]."""
    x = jnp.append(obs, action / LIMIT)
    return jax.vmap(lambda one: forward(one, x)[0])(critics)


def critic_loss(critics: Params, state: td3.State, batch: Transition, noise: Array):
    """By Algorithm 1 of the paper; `noise` [B, A] is of unit variance."""

    def one(row: Transition, noise: Array) -> Array:
        cut = jnp.minimum(jnp.maximum(0.2 * LIMIT * noise, -0.5 * LIMIT), 0.5 * LIMIT)
        action = LIMIT * jnp.tanh(forward(state.target_actor, row.next_obs)) + cut
        action = jnp.minimum(jnp.maximum(action, -LIMIT), LIMIT)
        judged = q_values(state.target_critics, row.next_obs, action)
        target = row.reward + 0.8 * jnp.where(row.terminal, 0, jnp.minimum(*judged))
        return ((q_values(critics, row.obs, row.action) - target) ** 2).sum()

    return jax.vmap(one)(batch, noise).mean()


def actor_loss(actor: Params, critics: Params, batch: Transition) -> Array:
    """By the mean of the critics, the deviation that the module names."""

    def one(obs: Array) -> Array:
        action = LIMIT * jnp.tanh(forward(actor, obs))
        one, other = q_values(critics, obs, action)
        return -(one + other) / 2

    return jax.vmap(one)(batch.obs).mean()


@jax.jit
def second(key: Key, state: td3.State, batch: Transition, critics: Params) -> Any:
    """The losses' gradients; the actor's with the critics as they are now."""
    keys = jax.random.split(jax.random.split(key)[0], B)
    noise = jax.vmap(lambda key: jax.random.normal(key, (2,)))(keys)
    return (
        jax.value_and_grad(critic_loss)(state.critics, state, batch, noise),
        jax.grad(actor_loss)(state.actor, critics, batch),
    )


def one_adam(gradient: Params, params: Params) -> Params:
    """Its first step, by the formula."""
    one = lambda g, x: x - 1e-2 * np.asarray(g) / (np.abs(g) + 1e-8)
    return jax.tree.map(one, gradient, params)


def assert_close(a: Any, b: Any) -> None:
    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-7, atol=1e-9)
    jax.tree.map(close, a, b)


def test_an_update_is_that_of_a_second_implementation(double):
    """Gradients by what Adam has averaged of them: a tenth after one step."""
    (_, state), batch, key = start(), random_batch(0), jax.random.key(5)
    new, metrics = updated(key, state, batch, changes_of(CONFIG))
    found = second(key, state, batch, new.critics)
    (mse, gradient), going_up = jax.tree.map(np.asarray, found)
    averaged = optax.tree_utils.tree_get(new.critics_opt, "mu")
    assert_close(averaged, jax.tree.map(lambda x: 0.1 * x, gradient))
    assert_close(new.critics, one_adam(gradient, state.critics))
    averaged = optax.tree_utils.tree_get(new.actor_opt, "mu")
    assert_close(averaged, jax.tree.map(lambda x: 0.1 * x, going_up))
    assert_close(new.actor, one_adam(going_up, state.actor))
    blend = lambda x, y: 0.9 * x + 0.1 * np.asarray(y)
    mix = partial(jax.tree.map, blend)
    assert_close(new.target_actor, mix(state.target_actor, new.actor))
    assert_close(new.target_critics, mix(state.target_critics, new.critics))
    assert metrics["critic/mse"] == pytest.approx(mse / 2)
    assert metrics["gradient/skipped_updates"] == 0


def units(kind: str, **floats: float) -> np.ndarray:
    """Many actions [N, A] at one obs, in units of the limit."""
    names = ("smoothing_std", "smoothing_limit", "exploration_std")
    known = {name: getattr(CONFIG, name) for name in names}
    return np.asarray(_units(start()[1], known | floats)[kind]) / LIMIT


@jax.jit
def _units(state: td3.State, floats: dict[str, Any]) -> dict[str, Array]:
    method = td3.make(ENV, dataclasses.replace(CONFIG, **floats))
    keys = jax.random.split(jax.random.key(0), 5000)
    obs = jnp.zeros(ENV.obs_size)  # where all networks without biases say 0
    draws = {
        "target": lambda key: method.act(state, key, obs)[0],
        "explore": lambda key: method.explore(state).act(key, obs, ())[0],
        "policy": lambda key: method.policy(state).act(key, obs, ())[0],
    }
    return {kind: jax.vmap(draw)(keys) for kind, draw in draws.items()}


def test_smoothing_is_cut_at_its_limit():
    found = units("target", smoothing_std=0.3, smoothing_limit=0.4)
    assert np.abs(found).max() == pytest.approx(0.4)
    share = (np.abs(found) > 0.3999).mean()
    beyond = 0.1824  # 2 (1 - Phi(4 / 3))
    assert share == pytest.approx(beyond, abs=5 * (0.15 / found.size) ** 0.5)


def test_targets_stay_within_the_limit():
    found = units("target", smoothing_std=2.0, smoothing_limit=9.0)
    assert np.abs(found).max() == 1
    assert (np.abs(found) == 1).mean() == pytest.approx(0.617, abs=0.03)


def test_exploration_is_noisy_and_the_policy_is_not():
    found = units("explore", exploration_std=0.2)
    assert found.std() == pytest.approx(0.2, rel=0.05)
    assert np.ptp(found[:, 0] * found[:, 1]) > 0
    np.testing.assert_array_equal(units("policy"), 0)
    still = units("explore", exploration_std=0.0)
    np.testing.assert_array_equal(still, 0)


@pytest.mark.parametrize("delay", [1, 3])
def test_the_policy_and_the_targets_wait(double, delay: int):
    _, state = start()
    changes = changes_of(CONFIG, delay=delay)
    for i in range(1, 7):
        new, _ = updated(jax.random.key(i), state, random_batch(i), changes)
        assert changed(new.critics, state.critics)
        for name in ("actor", "target_actor", "target_critics"):
            due = i % delay == 0
            assert changed(getattr(new, name), getattr(state, name)) == due
        state = new


def changed(a: Params, b: Params) -> bool:
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return any((np.asarray(x) != np.asarray(y)).any() for x, y in pairs)


def test_ddpg_has_one_critic_and_targets_without_noise(double):
    config = dataclasses.replace(td3.DDPG, hidden_sizes=(8,))
    method, state = start(config)
    obs, key = np.linspace(-1, 1, ENV.obs_size), jax.random.key(0)

    @jax.jit
    def seen(state: td3.State) -> tuple:
        action, bonus = method.act(state, key, obs)
        expected = LIMIT * jnp.tanh(forward(state.target_actor, obs))
        return action, bonus, expected, method.values(state, obs, action)

    action, bonus, expected, judged = seen(state)
    np.testing.assert_allclose(action, expected, rtol=1e-5)
    assert bonus == 0
    assert judged.shape == (1,)
    changes, (_, state) = changes_of(td3.DDPG), start()
    new, _ = updated(key, state, random_batch(0), changes)
    assert changed(new.actor, state.actor)  # at the first update already
    other, _ = updated(jax.random.key(7), state, random_batch(0), changes)
    assert not changed(other, new)  # there is nothing random in it
    other, _ = updated(jax.random.key(7), state, random_batch(0), changes_of(CONFIG))
    assert changed(other, new)  # as there is in TD3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"delay": 0}, "delay is 0, must be at least 1"),
        ({"smoothing_std": -0.1}, "smoothing_std is -0.1, must be at least 0"),
        ({"target_rate": 2.0}, "target_rate is 2.0, must be from 0 to 1"),
    ],
)
def test_impossible_configurations_are_refused(change: dict, message: str):
    with pytest.raises(ValueError, match=message):
        td3.make(ENV, td3.Config(**change))
