"""Updates against a plain second implementation; smoothing, delay and DDPG."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mbrl_jax import value_learning
from mbrl_jax.envs import point_mass
from mbrl_jax.learners import td3
from mbrl_jax.types import Array, Params, Transition
from mbrl_jax.value_learning import ValueLearner

LIMIT = 2.0
ENV = point_mass.make()._replace(action_limit=LIMIT)
CONFIG = td3.Config(
    hidden_sizes=(8, 6), discount=0.8, learning_rate=1e-2, delay=1, target_rate=0.1
)
B = 7


@pytest.fixture
def double():
    with jax.enable_x64(True):
        yield


def random_batch(seed: int) -> Transition:
    rng = np.random.default_rng(seed)
    obs = rng.normal(size=(2, B, ENV.obs_size))
    action = rng.uniform(-LIMIT, LIMIT, size=(B, ENV.action_size))
    ends = np.arange(B) % 3 == 0
    batch = Transition(
        obs[0], action, rng.normal(size=B), obs[1], ends, np.zeros(B, bool)
    )
    return jax.tree.map(jnp.asarray, batch)


def start(config: td3.Config) -> tuple[ValueLearner, td3.State]:
    """A learner whose targets are networks of their own."""
    parts = td3.make(ENV, config)
    init = jax.jit(parts.init)
    state, other = (init(jax.random.key(i)) for i in (0, 1))
    return parts, state._replace(target_actor=other.actor, target_critics=other.critics)


def forward(params: Params, x: Array) -> Array:
    *hidden, last = [layer for _, layer in sorted(params["params"].items())]
    for layer in hidden:
        x = jnp.maximum(x @ layer["kernel"] + layer["bias"], 0)
    return x @ last["kernel"] + last["bias"]


def q(critics: Params, k: int, obs: Array, action: Array) -> Array:
    one = jax.tree.map(lambda x: x[k], critics)
    return forward(one, jnp.append(obs, action / LIMIT))[0]


def critic_loss(critics: Params, state: td3.State, batch: Transition, noise: Array):
    """By Algorithm 1 of the paper; `noise` [B, A] is of unit variance."""

    def one(row: Transition, noise: Array) -> Array:
        cut = jnp.minimum(jnp.maximum(0.2 * LIMIT * noise, -0.5 * LIMIT), 0.5 * LIMIT)
        action = LIMIT * jnp.tanh(forward(state.target_actor, row.next_obs)) + cut
        action = jnp.minimum(jnp.maximum(action, -LIMIT), LIMIT)
        judged = [q(state.target_critics, k, row.next_obs, action) for k in range(2)]
        target = row.reward + 0.8 * jnp.where(row.terminal, 0, jnp.minimum(*judged))
        return sum((q(critics, k, row.obs, row.action) - target) ** 2 for k in range(2))

    return jax.vmap(one)(batch, noise).mean()


def actor_loss(actor: Params, critics: Params, batch: Transition) -> Array:
    """By the mean of the critics, the deviation that the module names."""

    def one(obs: Array) -> Array:
        action = LIMIT * jnp.tanh(forward(actor, obs))
        return -(q(critics, 0, obs, action) + q(critics, 1, obs, action)) / 2

    return jax.vmap(one)(batch.obs).mean()


@jax.jit
def one_adam(gradient: Params, params: Params) -> Params:
    optimizer = optax.adam(1e-2)
    updates, _ = optimizer.update(gradient, optimizer.init(params))
    return optax.apply_updates(params, updates)


def assert_close(a: Any, b: Any) -> None:
    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-7, atol=1e-9)
    jax.tree.map(close, a, b)


def test_an_update_is_that_of_a_second_implementation(double):
    """Gradients by what Adam has averaged of them: a tenth after one step."""
    parts, state = start(CONFIG)
    batch, key = random_batch(0), jax.random.key(5)
    new, metrics = jax.jit(value_learning.learner(parts).update)(key, state, batch)
    keys = jax.random.split(jax.random.split(key)[0], B)
    noise = jnp.stack([jax.random.normal(key, (2,)) for key in keys])
    mse, gradient = jax.jit(jax.value_and_grad(critic_loss))(
        state.critics, state, batch, noise
    )
    averaged = optax.tree_utils.tree_get(new.critics_opt, "mu")
    assert_close(averaged, jax.tree.map(lambda x: 0.1 * x, gradient))
    assert_close(new.critics, one_adam(gradient, state.critics))
    gradient = jax.jit(jax.grad(actor_loss))(state.actor, new.critics, batch)
    averaged = optax.tree_utils.tree_get(new.actor_opt, "mu")
    assert_close(averaged, jax.tree.map(lambda x: 0.1 * x, gradient))
    assert_close(new.actor, one_adam(gradient, state.actor))
    mix = lambda old, new: jax.tree.map(lambda x, y: 0.9 * x + 0.1 * y, old, new)
    assert_close(new.target_actor, mix(state.target_actor, new.actor))
    assert_close(new.target_critics, mix(state.target_critics, new.critics))
    assert metrics["critic/mse"] == pytest.approx(mse / 2)
    assert metrics["gradient/skipped_updates"] == 0


def units(config: td3.Config, kind: str) -> np.ndarray:
    """Many actions [N, A] at one obs, in units of the limit."""
    parts, state = start(config)
    keys = jax.random.split(jax.random.key(0), 5000)
    obs = jnp.zeros(ENV.obs_size)  # where all networks without biases say 0
    if kind == "target":
        actions = jax.vmap(lambda key: parts.act(state, key, obs)[0])(keys)
    else:
        policy = getattr(parts, kind)(state)
        actions = jax.vmap(lambda key: policy.act(key, obs, ())[0])(keys)
    return np.asarray(actions) / LIMIT


def test_smoothing_is_cut_at_its_limit():
    config = dataclasses.replace(CONFIG, smoothing_std=0.3, smoothing_limit=0.4)
    found = units(config, "target")
    assert np.abs(found).max() == pytest.approx(0.4)
    share = (np.abs(found) > 0.3999).mean()
    beyond = 0.1824  # 2 (1 - Phi(4 / 3))
    assert share == pytest.approx(beyond, abs=5 * (0.15 / found.size) ** 0.5)


def test_targets_stay_within_the_limit():
    wild = dataclasses.replace(CONFIG, smoothing_std=2.0, smoothing_limit=9.0)
    found = units(wild, "target")
    assert np.abs(found).max() == 1
    assert (np.abs(found) == 1).mean() == pytest.approx(0.617, abs=0.03)


def test_exploration_is_noisy_and_the_policy_is_not():
    found = units(dataclasses.replace(CONFIG, exploration_std=0.2), "explore")
    assert found.std() == pytest.approx(0.2, rel=0.05)
    assert np.ptp(found[:, 0] * found[:, 1]) > 0
    np.testing.assert_array_equal(units(CONFIG, "policy"), 0)
    still = units(dataclasses.replace(CONFIG, exploration_std=0.0), "explore")
    np.testing.assert_array_equal(still, 0)


@pytest.mark.parametrize("delay", [1, 3])
def test_the_policy_and_the_targets_wait(delay: int):
    parts, state = start(dataclasses.replace(CONFIG, delay=delay))
    update = jax.jit(value_learning.learner(parts).update)
    for i in range(1, 7):
        new, _ = update(jax.random.key(i), state, random_batch(i))
        assert changed(new.critics, state.critics)
        for name in ("actor", "target_actor", "target_critics"):
            due = i % delay == 0
            assert changed(getattr(new, name), getattr(state, name)) == due
        state = new


def changed(a: Params, b: Params) -> bool:
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return any((x != y).any() for x, y in pairs)


def test_ddpg_has_one_critic_and_targets_without_noise():
    config = dataclasses.replace(td3.DDPG, hidden_sizes=(8,))
    np.testing.assert_array_equal(units(config, "target"), 0)
    parts, state = start(config)
    obs = jnp.linspace(-1, 1, ENV.obs_size)
    action, bonus = parts.act(state, jax.random.key(0), obs)
    np.testing.assert_allclose(
        action, LIMIT * jnp.tanh(forward(state.target_actor, obs)), rtol=1e-5
    )
    assert bonus == 0
    assert parts.values(state, obs, action).shape == (1,)
    update = jax.jit(value_learning.learner(parts).update)
    new, _ = update(jax.random.key(0), state, random_batch(0))
    assert changed(new.actor, state.actor)  # at the first update already
    other, _ = update(jax.random.key(7), state, random_batch(0))
    assert not changed(other, new)  # there is nothing random in it


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
