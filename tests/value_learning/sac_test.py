"""One update against a plain second implementation; the temperature; a bandit."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mbrl_jax.envs import point_mass, probes
from mbrl_jax.types import Act, Array, Key, Metrics, Params, Transition
from mbrl_jax.value_learning import parts, sac
from mbrl_jax.value_learning.parts import Regression, Value

ENV = point_mass.make()._replace(action_limit=2.0)
CONFIG = sac.Config(
    hidden_sizes=(8, 6),
    num_critics=3,
    discount=0.8,
    learning_rate=1e-2,
)
B, TEMPERATURE = 7, 0.3


def random_batch(seed: int) -> Transition:
    rng = np.random.default_rng(seed)
    obs = rng.normal(size=(2, B, ENV.obs_size))
    action = rng.uniform(-2, 2, size=(B, ENV.action_size))
    ends = np.arange(B) % 3 == 0
    return Transition(
        obs[0], action, rng.normal(size=B), obs[1], ends, np.zeros(B, bool)
    )


def forward(params: Params, x: Array) -> Array:
    *hidden, last = [layer for _, layer in sorted(params["params"].items())]
    for layer in hidden:
        x = jnp.maximum(x @ layer["kernel"] + layer["bias"], 0)
    return x @ last["kernel"] + last["bias"]


def q_values(critics: Params, obs: Array, action: Array) -> Array:
    """Of each of the critics, [3]."""
    x = jnp.append(obs, action / 2.0)
    return jax.vmap(lambda one: forward(one, x)[0])(critics)


def drawn(actor: Params, obs: Array, noise: Array) -> tuple[Array, Array]:
    """The action of the environment, and log pi of tanh(u), by the textbook."""
    outputs = forward(actor, obs)
    mean, log_std = outputs[:2], -5 + 3.5 * (1 + jnp.tanh(outputs[2:]))
    u = mean + jnp.exp(log_std) * noise
    normal = -0.5 * noise**2 - log_std - 0.5 * jnp.log(2 * jnp.pi)
    return 2.0 * jnp.tanh(u), (normal - jnp.log(1 - jnp.tanh(u) ** 2)).sum()


def noises(key: Key) -> Array:
    return jax.vmap(lambda key: jax.random.normal(key, (2,)))(jax.random.split(key, B))


def critic_loss(critics: Params, state: sac.State, batch: Transition, noise: Array):
    def one(row: Transition, noise: Array) -> Array:
        action, log_prob = drawn(state.actor, row.next_obs, noise)
        judged = q_values(state.target_critics, row.next_obs, action)
        follows = judged.min() - TEMPERATURE * log_prob
        target = row.reward + 0.8 * jnp.where(row.terminal, 0, follows)
        return ((q_values(critics, row.obs, row.action) - target) ** 2).sum()

    return jax.vmap(one)(batch, noise).mean()


def actor_loss(actor: Params, critics: Params, batch: Transition, noise: Array):
    """And the entropy."""

    def one(obs: Array, noise: Array) -> tuple[Array, Array]:
        action, log_prob = drawn(actor, obs, noise)
        lowest = q_values(critics, obs, action).min()
        return TEMPERATURE * log_prob - lowest, -log_prob

    loss, entropy = jax.vmap(one)(batch.obs, noise)
    return loss.mean(), entropy.mean()


def start() -> tuple[Any, sac.State]:
    """A learner, and a state with target critics and a temperature of their own."""
    method, rng = sac.make(ENV, CONFIG), np.random.default_rng(0)
    shapes = jax.eval_shape(method.init, jax.random.key(0))
    state = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), shapes)
    draw = lambda x: (0.4 * rng.normal(size=x.shape)).astype(x.dtype)
    names = ("actor", "critics", "target_critics")
    networks = {name: jax.tree.map(draw, getattr(shapes, name)) for name in names}
    log_temperature = np.log(TEMPERATURE).astype(state.log_temperature.dtype)
    return method, state._replace(log_temperature=log_temperature, **networks)


@jax.jit
def updated(
    key: Key, state: sac.State, batch: Transition, floats: dict[str, Any]
) -> tuple[sac.State, Metrics]:
    """Compiled once for all `floats` of the configuration."""
    method = sac.make(ENV, dataclasses.replace(CONFIG, **floats))
    return parts.learner(method).update(key, state, batch)


def floats_of(**changes: float) -> dict[str, float]:
    names = ("target_entropy", "temperature_rate")
    return {name: getattr(CONFIG, name) for name in names} | changes


@jax.jit
def second(key: Key, state: sac.State, batch: Transition, critics: Params) -> Any:
    """The losses and their gradients; the actor's with the critics as they are now."""
    target_key, actor_key = jax.random.split(key)
    of_critics = jax.value_and_grad(critic_loss)
    of_actor = jax.value_and_grad(actor_loss, has_aux=True)
    return (
        of_critics(state.critics, state, batch, noises(target_key)),
        of_actor(state.actor, critics, batch, noises(actor_key)),
    )


def one_adam(gradient: Params, params: Params) -> Params:
    """Its first step, by the formula."""
    one = lambda g, x: x - 1e-2 * np.asarray(g) / (np.abs(g) + 1e-8)
    return jax.tree.map(one, gradient, params)


def assert_close(a: Any, b: Any) -> None:
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-7, atol=1e-9), a, b
    )


def test_an_update_is_that_of_a_second_implementation(double):
    """Gradients by what Adam has averaged of them: a tenth after one step."""
    (_, state), batch, key = start(), random_batch(0), jax.random.key(5)
    new, metrics = updated(key, state, batch, floats_of())
    found = second(key, state, batch, new.critics)
    (mse, gradient), ((lost, entropy), going_up) = jax.tree.map(np.asarray, found)
    averaged = optax.tree_utils.tree_get(new.critics_opt, "mu")
    assert_close(averaged, jax.tree.map(lambda x: 0.1 * x, gradient))
    assert_close(new.critics, one_adam(gradient, state.critics))
    averaged = optax.tree_utils.tree_get(new.actor_opt, "mu")
    assert_close(averaged, jax.tree.map(lambda x: 0.1 * x, going_up))
    assert_close(new.actor, one_adam(going_up, state.actor))
    averaged = optax.tree_utils.tree_get(new.temperature_opt, "mu")
    assert_close(averaged, 0.1 * (entropy - CONFIG.target_entropy * 2))
    mix = lambda x, y: 0.995 * x + 0.005 * np.asarray(y)
    mixed = jax.tree.map(mix, state.target_critics, new.critics)
    assert_close(new.target_critics, mixed)
    assert metrics["critic/mse"] == pytest.approx(mse / 3)
    assert metrics["policy/objective"] == pytest.approx(-lost)
    assert metrics["policy/entropy"] == pytest.approx(entropy)
    assert metrics["gradient/skipped_updates"] == 0


@pytest.mark.parametrize(("target", "grows"), [(5.0, True), (-50.0, False)])
def test_the_temperature_goes_where_entropy_is_missing(
    double, target: float, grows: bool
):
    _, state = start()
    floats = floats_of(target_entropy=target, temperature_rate=3e-4)
    new, metrics = updated(jax.random.key(0), state, random_batch(0), floats)
    assert (metrics["policy/temperature"] > TEMPERATURE) == grows
    change = float(new.log_temperature) - state.log_temperature  # of Adam's first step
    assert abs(change) == pytest.approx(3e-4, rel=1e-2)


def test_without_a_rate_the_temperature_stays(double):
    _, state = start()
    new = state
    for i in range(3):
        floats = floats_of(temperature_rate=0.0)
        new, _ = updated(jax.random.key(i), new, random_batch(i), floats)
    assert new.log_temperature == state.log_temperature


def test_the_bonus_is_for_entropy(double):
    method, state = start()
    obs, key = np.linspace(-1, 1, ENV.obs_size), jax.random.key(3)

    @jax.jit
    def both(state: sac.State) -> tuple:
        """What the learner says, and what the textbook does."""
        action, bonus = method.act(state, key, obs)
        noise = jax.random.normal(key, (2,))
        expected, log_prob = drawn(state.actor, obs, noise)
        judged = q_values(state.target_critics, obs, action)
        mean, std = method.noise(state, obs)
        policies = method.policy(state), method.explore(state)
        found = (
            action,
            bonus,
            method.values(state, obs, action),
            method.next_value(state, key, obs),
            2.0 * jnp.tanh(mean + std * noise),
            [x.act(key, obs, ())[0] for x in policies],
        )
        worth = judged.min() - TEMPERATURE * log_prob
        mode = 2.0 * jnp.tanh(forward(state.actor, obs)[:2])
        return found, (
            expected,
            -TEMPERATURE * log_prob,
            judged,
            worth,
            expected,
            [mode, expected],
        )

    assert_close(*both(state))


def test_the_next_value_is_differentiable_through_the_action(double):
    method, state = start()
    obs, key = np.linspace(-1, 1, ENV.obs_size), jax.random.key(3)
    follows = lambda obs: method.next_value(state, key, obs)
    slope = jax.jit(jax.grad(follows))(obs)
    far, near = jax.jit(jax.vmap(follows))(np.stack([obs + 1e-5, obs - 1e-5]))
    along = (float(far) - float(near)) / 2e-5
    assert float(slope.sum()) == pytest.approx(along, rel=1e-6)


@pytest.fixture(scope="module")
def bandit() -> tuple[sac.State, Metrics]:
    """After learning what to do where action a earns -10 (a - 1/2)^2, and that is
    known."""
    config = sac.Config(hidden_sizes=(8,), learning_rate=1e-2, temperature_rate=1e-2)
    method = sac.make(probes.probe4(), config)
    zero = jnp.zeros((64, 1))
    rows = Regression(zero, zero, zero[:, 0], jnp.ones(64))

    def objective(key: Key, obs: Array, act: Act, value: Value) -> Array:
        earns = lambda obs, action: -10 * (action[0] - 0.5) ** 2
        return method.actor_objective(key, obs, act, earns)

    def update(state: sac.State, key: Key) -> tuple[sac.State, Metrics]:
        return method.update(key, state, rows, zero, objective)

    keys = jax.random.split(jax.random.key(1), 1500)
    run = jax.jit(lambda: jax.lax.scan(update, method.init(jax.random.key(0)), keys))
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
    method = sac.make(probes.probe4(), sac.Config(hidden_sizes=(8,)))
    act = jax.jit(method.policy(bandit[0]).act)
    action, _ = act(jax.random.key(0), jnp.zeros(1), ())
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
