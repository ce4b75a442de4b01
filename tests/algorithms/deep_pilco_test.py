"""How Deep PILCO is wired, on a mass."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mbrl_jax import envs, optimizers
from mbrl_jax.algorithms import deep_pilco
from mbrl_jax.envs import simulator
from mbrl_jax.gradients import swarm
from mbrl_jax.models import bnn
from mbrl_jax.types import Array, Env, Gaussian, Key, Metrics, Model
from tests import mass

KEY = jax.random.key(0)
P = 5


def at_rest() -> Env:
    """The mass, always begun at 0."""
    env = simulator.time_limit(mass.make(), 4)
    start = env.reset(KEY)
    still = start._replace(obs=jnp.zeros(2))
    return env._replace(reset=lambda key: still)


def drifting(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model whose member i moves by i / 10; a draw of members has 0 to P - 1."""

    def make(obs_size: int, action_size: int, config: bnn.Config) -> Model:
        return Model(
            init=lambda key: jnp.zeros(()),
            fit=lambda key, state, data: (state, {}),
            members=lambda state: state[None],
            predict=lambda member, obs, action: Gaussian(
                obs.at[0].add(member / 10), jnp.zeros(2)
            ),
        )

    def sample_members(key: Key, state: Array, number: int) -> Array:
        return jnp.arange(number) + 0 * state

    monkeypatch.setattr(bnn, "make", make)
    monkeypatch.setattr(bnn, "sample_members", sample_members)


def improvement(env: Env, **settings: Any) -> Metrics:
    """The metrics of a first episode and what follows it."""
    config = deep_pilco.Config(capacity=20, num_basis=3, num_particles=P, num_updates=1)
    algorithm = deep_pilco.make(env, dataclasses.replace(config, **settings))
    return jax.jit(algorithm.step)(KEY, algorithm.init(KEY))[1]


def earned(x: Any) -> float:
    return float(np.expm1(-((np.asarray(x) - 1) ** 2) / (2 * 0.5**2)).mean())


@pytest.mark.parametrize("horizon", [0, 2])
def test_a_particle_keeps_its_network_all_along(
    monkeypatch: pytest.MonkeyPatch, horizon: int
) -> None:
    drifting(monkeypatch)
    settings: dict = {"resample": False, "expected_reward": False}
    settings["horizon"] = horizon
    members = np.arange(P) / 10
    expected = sum(earned(members * t) for t in range(1, (horizon or 4) + 1))
    metrics = improvement(at_rest(), **settings)
    assert metrics["imagined/return"] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("resample", [True, False])
def test_particles_are_redrawn_at_every_step(
    monkeypatch: pytest.MonkeyPatch, resample: bool
) -> None:
    drifting(monkeypatch)
    monkeypatch.setattr(swarm, "gaussian", lambda key, particles: 1 + 0 * particles)
    settings = {"resample": resample, "expected_reward": False}
    metrics = improvement(at_rest(), **settings)
    still = sum(earned(np.arange(P) / 10 * t) for t in range(1, 5))
    expected = 0.0 if resample else still
    assert metrics["imagined/return"] == pytest.approx(expected, abs=1e-5)


def test_the_reward_is_what_a_gaussian_with_the_particles_moments_expects(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The integral of 1 - exp(-(x - 1)^2 / (2 w^2)) over a normal x, w = 0.5."""
    drifting(monkeypatch)
    metrics = improvement(at_rest(), resample=False)
    expected = 0.0
    for time in range(1, 5):
        x = np.arange(P) / 10 * time
        wide = 0.5**2 + x.var(ddof=1)
        expected += np.exp(-((x.mean() - 1) ** 2) / (2 * wide)) * 0.5 / wide**0.5 - 1
    assert metrics["imagined/return"] == pytest.approx(expected, rel=1e-5)


@pytest.mark.slow
def test_every_update_draws_masks_and_starts_anew(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = bnn.Config(kind="dropout", hidden_sizes=(8,), dropout=0.5, num_updates=1)
    seen: list = []

    def sample_members(key: Key, state: bnn.State, number: int) -> bnn.Member:
        found = original(key, state, number)
        jax.debug.callback(lambda mask: seen.append(np.array(mask)), found.masks[0])
        return found

    original = bnn.sample_members
    monkeypatch.setattr(bnn, "sample_members", sample_members)
    jax.block_until_ready(improvement(mass.make(), num_updates=2, model=model))
    first, second = seen
    assert first.shape == (P, 8)
    assert (first[0] != first[1]).any()
    assert (first != second).any()


def test_the_optimizer_is_that_of_the_configuration(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its learning rate falls over the updates of a trial."""
    asked: list = []

    def clipped_adam(*args: float, **options: Any) -> Any:
        asked.append((*args, options))
        return original(*args, **options)

    original = optimizers.clipped_adam
    monkeypatch.setattr(optimizers, "clipped_adam", clipped_adam)
    settings = {"learning_rate": 0.2, "max_norm": 3.0, "num_updates": 7}
    config = deep_pilco.Config(capacity=20, **settings)
    deep_pilco.make(mass.make(), config)
    assert asked == [(0.2, 3.0, {"decay_steps": 7})]


@pytest.mark.slow
def test_it_learns_in_a_few_trials() -> None:
    model = bnn.Config(
        kind="concrete_dropout", hidden_sizes=(32,), length_scale=1.0, num_updates=1000
    )
    config = deep_pilco.Config(
        capacity=100, policy="linear", num_particles=30, num_updates=100, model=model
    )
    algorithm = deep_pilco.make(mass.make(), config)
    step, state = jax.jit(algorithm.step), algorithm.init(jax.random.key(0))
    returns = []
    for key in jax.random.split(jax.random.key(1), 5):
        state, metrics = step(key, state)
        returns.append(float(metrics["episode/return"]))
    idle = 15 * float(jnp.expm1(-2.0))  # -13; the best possible is some -5
    assert min(returns[3:]) > idle + 5
    assert metrics["gradient/skipped_updates"] == 0


def test_refusals() -> None:
    env, config = mass.make(), deep_pilco.Config(capacity=20)
    with pytest.raises(ValueError, match=r"no `belief`.*deep_pilco needs"):
        deep_pilco.make(envs.make("pendulum"), deep_pilco.Config())
    with pytest.raises(ValueError, match="num_particles is 2, must be above 2"):
        deep_pilco.make(env, dataclasses.replace(config, num_particles=2))
    for field, value in (("angles", (0,)), ("learn_reward", True)):
        model = dataclasses.replace(bnn.Config(), **{field: value})
        with pytest.raises(ValueError, match=f"model.{field} is .* for deep_pilco"):
            deep_pilco.make(env, dataclasses.replace(config, model=model))
    with pytest.raises(ValueError, match="capacity is 3, less than the 15 steps"):
        deep_pilco.make(env, dataclasses.replace(config, capacity=3))
