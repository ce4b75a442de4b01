"""One update against a plain second implementation; the temperature; a bandit."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mbrl_jax import value_learning
from mbrl_jax.envs import point_mass, probes
from mbrl_jax.learners import sac
from mbrl_jax.types import Array, Key, Metrics, Params, Transition
from mbrl_jax.value_learning import Act, Rows, Value

ENV = point_mass.make()._replace(action_limit=2.0)
CONFIG = sac.Config(
    hidden_sizes=(8, 6), num_critics=3, discount=0.8, learning_rate=1e-2
)
B, TEMPERATURE = 7, 0.3


@pytest.fixture
def double():
    with jax.enable_x64(True):
        yield


def random_batch(seed: int) -> Transition:
    rng = np.random.default_rng(seed)
    obs = rng.normal(size=(2, B, ENV.obs_size))
    action = rng.uniform(-2, 2, size=(B, ENV.action_size))
    ends = np.arange(B) % 3 == 0
    batch = Transition(
        obs[0], action, rng.normal(size=B), obs[1], ends, np.zeros(B, bool)
    )
    return jax.tree.map(jnp.asarray, batch)


def forward(params: Params, x: Array) -> Array:
    *hidden, last = [layer for _, layer in sorted(params["params"].items())]
    for layer in hidden:
        x = jnp.maximum(x @ layer["kernel"] + layer["bias"], 0)
    return x @ last["kernel"] + last["bias"]


def q(critics: Params, k: int, obs: Array, action: Array) -> Array:
    one = jax.tree.map(lambda x: x[k], critics)
    return forward(one, jnp.append(obs, action / 2.0))[0]


def drawn(actor: Params, obs: Array, noise: Array) -> tuple[Array, Array]:
    """The action of the environment, and log pi of tanh(u), by the textbook."""
    outputs = forward(actor, obs)
    mean, log_std = outputs[:2], -5 + 3.5 * (1 + jnp.tanh(outputs[2:]))
    u = mean + jnp.exp(log_std) * noise
    normal = -0.5 * noise**2 - log_std - 0.5 * jnp.log(2 * jnp.pi)
    return 2.0 * jnp.tanh(u), (normal - jnp.log(1 - jnp.tanh(u) ** 2)).sum()


def noises(key: Key) -> Array:
    return jnp.stack([jax.random.normal(key, (2,)) for key in jax.random.split(key, B)])


def critic_loss(critics: Params, state: sac.State, batch: Transition, noise: Array):
    def one(row: Transition, noise: Array) -> Array:
        action, log_prob = drawn(state.actor, row.next_obs, noise)
        judged = [q(state.targets, k, row.next_obs, action) for k in range(3)]
        follows = jnp.stack(judged).min() - TEMPERATURE * log_prob
        target = row.reward + 0.8 * jnp.where(row.terminal, 0, follows)
        return sum((q(critics, k, row.obs, row.action) - target) ** 2 for k in range(3))

    return jax.vmap(one)(batch, noise).mean()


def actor_loss(actor: Params, critics: Params, batch: Transition, noise: Array):
    """And the entropy."""

    def one(obs: Array, noise: Array) -> tuple[Array, Array]:
        action, log_prob = drawn(actor, obs, noise)
        judged = [q(critics, k, obs, action) for k in range(3)]
        return TEMPERATURE * log_prob - jnp.stack(judged).min(), -log_prob

    loss, entropy = jax.vmap(one)(batch.obs, noise)
    return loss.mean(), entropy.mean()


def start(config: sac.Config) -> tuple[Any, sac.State]:
    """A learner with target critics and a temperature of their own."""
    parts = sac.make(ENV, config)
    init = jax.jit(parts.init)
    state, other = (init(jax.random.key(i)) for i in (0, 1))
    log_temperature = jnp.log(TEMPERATURE) + jnp.zeros(())
    return parts, state._replace(targets=other.critics, log_temperature=log_temperature)


@jax.jit
def one_adam(rate: float, gradient: Params, params: Params) -> Params:
    optimizer = optax.adam(rate)
    updates, _ = optimizer.update(gradient, optimizer.init(params))
    return optax.apply_updates(params, updates)


def assert_close(a: Any, b: Any) -> None:
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-7, atol=1e-9), a, b
    )


def test_an_update_is_that_of_a_second_implementation(double):
    """Gradients by what Adam has averaged of them: a tenth after one step."""
    parts, state = start(CONFIG)
    batch, key = random_batch(0), jax.random.key(5)
    new, metrics = jax.jit(value_learning.learner(parts).update)(key, state, batch)
    target_key, actor_key = jax.random.split(key)
    mse, gradient = jax.jit(jax.value_and_grad(critic_loss))(
        state.critics, state, batch, noises(target_key)
    )
    averaged = optax.tree_utils.tree_get(new.critics_opt, "mu")
    assert_close(averaged, jax.tree.map(lambda x: 0.1 * x, gradient))
    assert_close(new.critics, one_adam(1e-2, gradient, state.critics))
    going_up = jax.jit(jax.value_and_grad(actor_loss, has_aux=True))
    (lost, entropy), gradient = going_up(
        state.actor, new.critics, batch, noises(actor_key)
    )
    averaged = optax.tree_utils.tree_get(new.actor_opt, "mu")
    assert_close(averaged, jax.tree.map(lambda x: 0.1 * x, gradient))
    assert_close(new.actor, one_adam(1e-2, gradient, state.actor))
    averaged = optax.tree_utils.tree_get(new.temperature_opt, "mu")
    assert_close(averaged, 0.1 * (entropy - CONFIG.target_entropy * 2))
    mixed = jax.tree.map(lambda x, y: 0.995 * x + 0.005 * y, state.targets, new.critics)
    assert_close(new.targets, mixed)
    assert metrics["critic/mse"] == pytest.approx(mse / 3)
    assert metrics["policy/worth"] == pytest.approx(-lost)
    assert metrics["policy/entropy"] == pytest.approx(entropy)
    assert metrics["gradient/skipped_updates"] == 0


@pytest.mark.parametrize(("target", "grows"), [(5.0, True), (-50.0, False)])
def test_the_temperature_goes_where_entropy_is_missing(target: float, grows: bool):
    parts, state = start(sac.Config(hidden_sizes=(8,), target_entropy=target))
    new, metrics = jax.jit(value_learning.learner(parts).update)(
        jax.random.key(0), state, random_batch(0)
    )
    assert (metrics["policy/temperature"] > TEMPERATURE) == grows
    change = new.log_temperature - state.log_temperature  # of Adam's first step
    assert abs(change) == pytest.approx(3e-4, rel=1e-2)


def test_without_a_rate_the_temperature_stays():
    config = sac.Config(hidden_sizes=(8,), temperature_rate=0.0)
    parts, state = start(config)
    update = jax.jit(value_learning.learner(parts).update)
    new = state
    for i in range(3):
        new, _ = update(jax.random.key(i), new, random_batch(i))
    assert new.log_temperature == state.log_temperature


def test_the_bonus_is_for_entropy(double):
    parts, state = start(CONFIG)
    obs, key = jnp.linspace(-1, 1, ENV.obs_size), jax.random.key(3)
    action, bonus = parts.act(state, key, obs)
    noise = jax.random.normal(key, (2,))
    expected, log_prob = drawn(state.actor, obs, noise)
    assert_close(action, expected)
    assert_close(bonus, -TEMPERATURE * log_prob)
    found = parts.values(state, obs, action)
    assert_close(found, jnp.stack([q(state.targets, k, obs, action) for k in range(3)]))
    mean, std = parts.noise(state, obs)
    assert_close(action, 2.0 * jnp.tanh(mean + std * noise))
    assert_close(parts.policy(state).act(key, obs, ())[0], 2.0 * jnp.tanh(mean))
    assert_close(parts.explore(state).act(key, obs, ())[0], action)


@pytest.fixture(scope="module")
def bandit() -> tuple[sac.State, Metrics]:
    """After learning what to do where action a earns -10 (a - 1/2)^2, and that is
    known."""
    config = sac.Config(hidden_sizes=(8,), learning_rate=1e-2, temperature_rate=1e-2)
    parts = sac.make(probes.probe4(), config)
    zero = jnp.zeros((64, 1))
    rows = Rows(zero, zero, zero[:, 0], jnp.ones(64))

    def worth(key: Key, obs: Array, act: Act, value: Value) -> Array:
        earns = lambda obs, action: -10 * (action[0] - 0.5) ** 2
        return value_learning.greedy(key, obs, act, earns)

    def update(state: sac.State, key: Key) -> tuple[sac.State, Metrics]:
        return parts.update(key, state, rows, zero, worth)

    keys = jax.random.split(jax.random.key(1), 1500)
    run = jax.jit(lambda: jax.lax.scan(update, parts.init(jax.random.key(0)), keys))
    return run()


def test_the_entropy_comes_to_its_target(bandit):
    entropy = np.asarray(bandit[1]["policy/entropy"])
    assert entropy[:20].mean() > -0.5  # it starts elsewhere
    assert entropy[-300:].mean() == pytest.approx(-1, abs=0.05)


def test_the_temperature_is_that_of_the_best_policy_of_this_entropy(bandit):
    """Which is proportional to exp(reward / temperature), nearly a Gaussian of
    variance temperature / 20, of entropy 1/2 log(2 pi e temperature / 20)."""
    expected = 20 * np.exp(-2.0) / (2 * np.pi * np.e)
    found = np.asarray(bandit[1]["policy/temperature"])[-300:].mean()
    assert found == pytest.approx(expected, rel=0.1)


def test_the_policy_comes_to_the_best_action(bandit):
    parts = sac.make(probes.probe4(), sac.Config(hidden_sizes=(8,)))
    action, _ = parts.policy(bandit[0]).act(jax.random.key(0), jnp.zeros(1), ())
    assert float(action[0]) == pytest.approx(0.5, abs=0.05)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_critics": 0}, "num_critics is 0, must be at least 1"),
        ({"init_temperature": 0.0}, "init_temperature is 0.0, must be positive"),
        ({"temperature_rate": -1.0}, "temperature_rate is -1.0, must be at least 0"),
        ({"discount": 1.5}, "discount is 1.5, must be from 0 to 1"),
    ],
)
def test_impossible_configurations_are_refused(change: dict, message: str):
    with pytest.raises(ValueError, match=message):
        sac.make(ENV, sac.Config(**change))
