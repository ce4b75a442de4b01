"""Embed to Control: how it plans in a code, and what it learns that from."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mbrl_jax import envs, rollout
from mbrl_jax.algorithms import e2c
from mbrl_jax.envs import pixels, planar, simulator
from mbrl_jax.models import latent
from mbrl_jax.planners import mpc
from mbrl_jax.types import Array, Gaussian

SHORT = simulator.time_limit(planar.make(), 15)
TINY = latent.Config(2, (8,), (8,), (8,))
CONFIG = e2c.Config(
    capacity=60,
    num_episodes=3,
    num_updates=5,
    batch_size=4,
    action_cost=1e-4,
    plan=mpc.Config(horizon=6, num_samples=5),
    model=TINY,
)


def known(obs_size: int, action_size: int, config: latent.Config) -> latent.Latent:
    """The code is the place, turned by a quarter and doubled; an action is in units of
    its limit, and goes `planar.STEP` far."""
    turned = jnp.array([[0.0, -2.0], [2.0, 0.0]])
    still = jnp.zeros(2)
    return latent.Latent(
        init=lambda key: still,
        encode=lambda params, pixels, obs: Gaussian(turned @ obs, jnp.ones(2)),
        decode=lambda params, z: z,
        transition=lambda params, z: latent.Step(
            still, still, planar.STEP * turned, still
        ),
        loss=lambda params, pixels, key, obs, action, next_obs: (params.sum(), {}),
    )


@pytest.mark.parametrize("planner", ["ilqr", "cem"])
def test_plans_lead_to_the_code_of_the_goal(monkeypatch, planner: str):
    """From where nothing is in the way; actions are told in units of their limit, 2."""
    monkeypatch.setattr(latent, "make", known)
    halved = lambda state, action: SHORT.step(state, action / 2)
    env = SHORT._replace(
        reset=lambda key: SHORT.reset(key)._replace(
            obs=jnp.array([0.1, 0.98]),
            sim=simulator.Sim(jnp.array([0.1, 0.98]), jnp.zeros(2)),
        ),
        step=halved,
        action_limit=2.0,
    )
    plan = mpc.Config(horizon=6, num_samples=60, num_elites=6)
    config = dataclasses.replace(CONFIG, planner=planner, plan=plan)
    algorithm = e2c.make(env, config)

    @jax.jit
    def go(key: Array) -> Array:
        policy = algorithm.policy(algorithm.init(key))
        return rollout.episode(key, env, policy).transitions.next_obs

    places = np.asarray(go(jax.random.key(0)))
    away = np.linalg.norm(places - planar.GOAL, axis=1)
    assert away[-1] < (0.02 if planner == "ilqr" else 0.1)
    # 0.6 along x, at 0.15 a step, and not less
    assert away[2] > 0.14
    assert away[3] < (0.03 if planner == "ilqr" else 0.2)


def test_an_iteration_learns_from_all_episodes_so_far():
    env = pixels.make(SHORT, pixels.Config(size=5, num_frames=1, vector=True))
    algorithm = e2c.make(env, CONFIG)
    first = jax.jit(algorithm.init)(jax.random.key(0))
    step = jax.jit(algorithm.step)
    state, metrics = step(jax.random.key(1), first)
    assert metrics["env_steps"] == state.replay.size == 45
    again, metrics = step(jax.random.key(2), state)
    assert metrics["env_steps"] == 90
    assert again.replay.size == 60
    rows = jax.tree.map(np.asarray, again.replay.data)
    assert rows.obs.min() >= 0
    assert rows.obs.max() <= 1
    assert np.abs(rows.action).max() > 0.8  # at random
    assert np.ptp(rows.action) > 1.5
    changed = jax.tree.map(lambda x, y: bool((x != y).any()), first, state).params
    assert all(jax.tree.leaves(changed))


def test_what_is_foreseen_follows_the_codes_from_the_first_picture():
    """Of a model whose code is the picture, and moves by its actions."""
    seen = pixels.make(SHORT, pixels.Config(size=2, num_frames=1, vector=True))

    make = latent.make

    def shifts(obs_size: int, action_size: int, config: latent.Config) -> Any:
        plain = make(obs_size, action_size, config)
        zero, B = jnp.zeros(4), jnp.eye(4, 2)
        return plain._replace(
            encode=lambda params, pixels, obs: Gaussian(obs, jnp.ones(4)),
            decode=lambda params, z: z,
            transition=lambda params, z: latent.Step(zero, zero, B, zero),
        )

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(latent, "make", shifts)
        algorithm = e2c.make(seen, CONFIG)
    state = algorithm.init(jax.random.key(0))
    obs = np.random.default_rng(0).uniform(0, 1, (3, 4)).astype(np.float32)
    action = jnp.array([[0.1, 0.2], [0.3, -0.1]])
    found = algorithm.foresee(state, jax.random.key(0), jnp.asarray(obs), action)
    np.testing.assert_allclose(found["reconstructed"].reshape(3, 4), obs, rtol=1e-6)
    moved = np.array([[0, 0, 0, 0], [0.1, 0.2, 0, 0], [0.4, 0.1, 0, 0]])
    expected = obs[:1] + moved
    np.testing.assert_allclose(found["predicted"].reshape(3, 4), expected, rtol=1e-5)


def test_the_model_of_the_least_loss_acts(monkeypatch):
    """Of three whose loss is the square of what they begin with, the second: it alone
    takes moves for going the other way."""

    def squared(obs_size: int, action_size: int, config: latent.Config) -> Any:
        def loss(params: Array, *rest: Array) -> tuple[Array, dict[str, Array]]:
            return (params**2).sum(), {"prior": (params**2).sum()}

        plain = known(obs_size, action_size, config)

        def transition(params: Array, z: Array) -> latent.Step:
            step = plain.transition(params, z)
            return step._replace(B=jnp.sign(params[1]) * step.B)

        return plain._replace(loss=loss, transition=transition)

    monkeypatch.setattr(latent, "make", squared)
    config = dataclasses.replace(CONFIG, num_models=3, learning_rate=1e-6)
    algorithm = e2c.make(SHORT, config)
    first = algorithm.init(jax.random.key(0))
    begun = jnp.array([[0.5, 0.5], [0.1, -0.1], [-0.4, 2.0]])
    step = jax.jit(algorithm.step)
    state, metrics = step(jax.random.key(1), first._replace(params=begun))
    assert state.best == 1
    assert metrics["latent/prior"] == pytest.approx(0.02, rel=1e-3)
    policy = algorithm.policy(state)
    action, _ = policy.act(jax.random.key(0), jnp.zeros(2), policy.init())
    assert (np.asarray(action) < -0.5).all()  # the goal is at (0.7, 0.7)
    broken = begun.at[1].set(jnp.nan)
    state, _ = step(jax.random.key(1), first._replace(params=broken))
    assert state.best == 0


def test_learning_lowers_the_loss():
    """From what a code that says nothing costs, for pictures of 8 by 8."""
    env = envs.make("pixels/planar/size=8,num_frames=1,vector=1")
    config = dataclasses.replace(
        CONFIG,
        capacity=400,
        num_episodes=10,
        num_updates=400,
        batch_size=32,
        model=latent.Config(2, (32,), (16,), (32,)),
    )
    algorithm = e2c.make(env, config)
    step = jax.jit(algorithm.step)
    state, before = step(jax.random.key(1), jax.jit(algorithm.init)(jax.random.key(0)))
    for i in range(3):
        state, after = step(jax.random.key(i), state)
    assert after["latent/reconstruction"] < before["latent/reconstruction"]
    assert after["gradient/skipped_updates"] == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_updates": 0}, "num_updates is 0, must be at least 1"),
        ({"action_cost": -1.0}, "action_cost is -1.0, must be at least 0"),
        ({"capacity": 14}, "capacity is 14, less than the 15 steps of an episode"),
        ({"planner": "lqr"}, "planner is 'lqr', must be one of"),
        (
            {"model": dataclasses.replace(TINY, latent_size=0)},
            "model.latent_size is 0, must be at least 1",
        ),
    ],
)
def test_what_cannot_be_is_an_early_error(change: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        e2c.make(SHORT, dataclasses.replace(CONFIG, **change))


def test_without_a_goal_there_is_nothing_to_plan_for():
    with pytest.raises(ValueError, match="pendulum has no goal to be brought to"):
        e2c.make(envs.make("pendulum"), CONFIG)
