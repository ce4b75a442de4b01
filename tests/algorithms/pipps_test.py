"""How PIPPS is wired, on a mass."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mbrl_jax import envs
from mbrl_jax.algorithms import pipps
from mbrl_jax.envs import simulator
from mbrl_jax.gradients import by_name
from mbrl_jax.models import gaussian_process
from mbrl_jax.types import Array, EnvState, Gaussian, Key, Metrics, Model, PyTree
from tests import mass

pytestmark = pytest.mark.usefixtures("double")

KEY = jax.random.key(0)


def imagined(monkeypatch: pytest.MonkeyPatch, std: float, **settings: Any) -> Metrics:
    """In a process that says: 0.1 further and with the action, with this std."""
    make = gaussian_process.make

    def other(*args: Any) -> Model:
        predict = lambda member, obs, action: Gaussian(
            obs.at[0].add(0.1 + action[0]), jnp.array([std, 0.0])
        )
        return make(*args)._replace(predict=predict)

    monkeypatch.setattr(gaussian_process, "make", other)
    one = simulator.time_limit(mass.make(), 4)

    def reset(key: Key) -> EnvState:
        start = one.reset(key)
        return start._replace(obs=start.obs + 0.3)

    env = one._replace(reset=reset)
    config = pipps.Config(
        capacity=20,
        policy="linear",
        num_updates=1,
        num_particles=20_000,
        estimator="pathwise",
        model=gaussian_process.Config(max_exact=8),
    )
    algorithm = pipps.make(env, dataclasses.replace(config, **settings))
    state = algorithm.init(KEY)
    idle = state._replace(params=jax.tree.map(jnp.zeros_like, state.params))
    return jax.jit(algorithm.step)(KEY, idle)[1]


@pytest.mark.parametrize(("std", "horizon"), [(0.0, 0), (0.3, 2)])
def test_particles_are_drawn_from_what_is_predicted(
    monkeypatch: pytest.MonkeyPatch, std: float, horizon: int
) -> None:
    """E of the reward at N(mean, var) of x: 1 / sqrt(1 + 4 var) exp(..) - 1."""
    expected = 0.0
    for t in range(1, (horizon or 4) + 1):
        var, away = 0.05**2 + t * std**2, 0.7 - 0.1 * t
        kept = np.exp(-(away**2) / (2 * (0.25 + var))) / np.sqrt(1 + 4 * var)
        expected += kept - 1
    metrics = imagined(monkeypatch, std, horizon=horizon)
    assert float(metrics["imagined/return"]) == pytest.approx(expected, abs=0.02)


def test_the_setting_names_the_estimator(monkeypatch: pytest.MonkeyPatch) -> None:
    args = []

    def other(key: Key, ready: PyTree, *rest: Any) -> tuple[PyTree, Array]:
        args.append(rest)
        return ready, jnp.array(42.0)

    monkeypatch.setitem(by_name.ESTIMATORS, "batch_importance", other)
    settings: dict = {"estimator": "batch_importance", "num_particles": 7}
    metrics = imagined(monkeypatch, 0.3, horizon=2, **settings)
    assert metrics["imagined/return"] == 42
    assert (args[0][0].horizon, args[0][1]) == (2, 7)


@pytest.mark.slow
def test_it_learns_in_two_trials() -> None:
    model = gaussian_process.Config(max_exact=64, num_restarts=1, max_evaluations=50)
    config = pipps.Config(
        capacity=64,
        policy="linear",
        num_particles=50,
        num_updates=100,
        model=model,
    )
    algorithm = pipps.make(mass.make(), config)
    step, state = jax.jit(algorithm.step), algorithm.init(jax.random.key(0))
    told, earned = [], []
    for key in jax.random.split(jax.random.key(1), 4):
        state, metrics = step(key, state)
        told.append(float(metrics["imagined/return"]))
        earned.append(float(metrics["episode/return"]))
    idle = 15 * float(jnp.expm1(-2.0))  # -13; the best possible is some -5
    assert min(earned[2:]) > idle + 5
    np.testing.assert_allclose(earned[3], told[2], atol=1.0)


def test_refusals() -> None:
    env, config = mass.make(), pipps.Config(capacity=20)
    with pytest.raises(ValueError, match=r"no `belief`.*pipps needs"):
        pipps.make(envs.make("pendulum"), pipps.Config())
    with pytest.raises(ValueError, match="estimator is 'score', must be one of"):
        pipps.make(env, dataclasses.replace(config, estimator="score"))
    with pytest.raises(ValueError, match="num_particles is 2, must be above 2"):
        pipps.make(env, dataclasses.replace(config, num_particles=2))
    with jax.enable_x64(False), pytest.raises(ValueError, match="needs float64"):
        pipps.make(env, config)
