"""Visual foresight: how it plans, follows the object, and what it learns of."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mbrl_jax import envs
from mbrl_jax.algorithms import visual_foresight
from mbrl_jax.envs import pixels, planar, simulator
from mbrl_jax.models import video
from mbrl_jax.ops import flow, raster
from mbrl_jax.planners import mpc
from mbrl_jax.types import Array, Env

SIZE = 12
PIXEL = 2 * (planar.RANGE + planar.SIZE) / SIZE  # m
SHORT = simulator.time_limit(planar.make(), 8)
CONFIG = visual_foresight.Config(
    capacity=60,
    num_episodes=3,
    num_updates=3,
    batch_size=4,
    length=3,
    colour=raster.INK,
    plan=mpc.Config(horizon=5, num_samples=40, num_elites=6),
    model=video.Config(num_channels=4, num_layers=2),
)
pictures = lambda env: pixels.make(env, pixels.Config(SIZE, 1, colour=True))


def known(shape: tuple[int, int, int], size: int, config: video.Config) -> video.Video:
    """All that is shown moves as `planar` says: by `STEP` m along x and up."""

    def towards(params: Array, scene: video.Scene, action: Array) -> video.Flow:
        right, up = planar.STEP / PIXEL * action
        from_there = flow_weights(jnp.stack([up, -right]))  # rows below, columns right
        kernels = jnp.broadcast_to(from_there, (*shape[:2], 25))
        masks = jnp.broadcast_to(jnp.array([1.0, 0.0, 0.0]), (*shape[:2], 3))
        return video.Flow(kernels, masks)

    return video.Video(
        init=lambda key: jnp.zeros(2),
        flow=towards,
        loss=lambda params, pictures, actions, valid: params.sum(),
    )


def flow_weights(place: Array) -> Array:
    """A kernel that draws from between the pixels next to `place` [2]."""
    near = lambda x: jnp.maximum(1 - jnp.abs(jnp.arange(-2, 3) - x), 0)
    return jnp.outer(near(place[0]), near(place[1])).reshape(-1)


def begins_at(env: Env, place: list[float]) -> Env:
    at = jnp.array(place)
    start = lambda key: env.reset(key)._replace(
        obs=at, sim=simulator.Sim(at, jnp.zeros(2))
    )
    return env._replace(reset=start)


@pytest.mark.parametrize("planner", ["icem", "cem"])
def test_plans_lead_the_object_to_the_goal(monkeypatch, planner: str):
    """From where nothing is in the way; actions are told in units of their limit, 2."""
    monkeypatch.setattr(video, "make", known)
    halved = lambda state, action: SHORT.step(state, action / 2)
    inner = begins_at(SHORT._replace(step=halved, action_limit=2.0), [0.1, 0.95])
    env = pictures(inner)
    algorithm = visual_foresight.make(env, dataclasses.replace(CONFIG, planner=planner))

    @jax.jit
    def go(key: Array) -> Array:
        policy = algorithm.policy(algorithm.init(key))
        state, memory = env.reset(key), policy.init()

        def step(carry: Any, key: Array) -> Any:
            state, memory = carry
            action, memory = policy.act(key, state.obs, memory)
            state = env.step(state, action)
            return (state, memory), state.sim.inner.obs

        return jax.lax.scan(step, (state, memory), jax.random.split(key, 8))[1]

    places = np.asarray(go(jax.random.key(0)))
    away = np.linalg.norm(places - planar.GOAL, axis=1)
    assert away[-1] < 0.7 * PIXEL
    assert away[2] > 0.14  # 0.6 along x, at 0.15 a step, and not less


def test_the_object_is_followed_where_it_is_hidden_and_the_skip_leads_to_the_last_sight(
    monkeypatch,
):
    """It is where its colour is; out of sight it goes where what is done moves it."""
    monkeypatch.setattr(video, "make", known)
    env = pictures(begins_at(SHORT, [-0.1, 0.1]))
    config = dataclasses.replace(CONFIG, plan=mpc.Config(2, num_samples=12))
    algorithm = visual_foresight.make(env, config)
    policy = algorithm.policy(algorithm.init(jax.random.key(0)))
    blank = jnp.full((SIZE, SIZE, 3), 240, jnp.uint8)
    act = jax.jit(policy.act)
    seen = env.reset(jax.random.key(0)).obs
    _, (sight, _) = memory = act(jax.random.key(1), seen, policy.init())
    row_and_column = lambda pixels: np.asarray(flow.centre(pixels[..., 0]))
    middle = (SIZE - 1) / 2
    expected = np.array([middle - 0.1 / PIXEL, middle - 0.1 / PIXEL])
    np.testing.assert_allclose(row_and_column(sight.pixels.now), expected, atol=0.1)
    np.testing.assert_allclose(sight.picture.now, seen / 255, rtol=1e-6)
    np.testing.assert_array_equal(*sight.picture)
    done = jnp.array([0.9, -0.4])  # in place of what was planned
    memory = (sight._replace(action=done), memory[1][1])
    _, (hidden, plan) = act(jax.random.key(2), blank, memory)
    start = expected
    expected = expected + planar.STEP / PIXEL * np.array([0.4, 0.9])
    # likeness alone says nothing here, and all of the pixels are a little likely
    np.testing.assert_allclose(row_and_column(hidden.pixels.now), expected, atol=0.1)
    np.testing.assert_array_equal(hidden.picture.first, sight.picture.now)
    np.testing.assert_array_equal(hidden.pixels.first, sight.pixels.now)
    np.testing.assert_allclose(hidden.picture.now, blank / 255, rtol=1e-6)
    _, (found, _) = act(jax.random.key(3), seen, (hidden, plan))
    np.testing.assert_array_equal(*found.picture)
    np.testing.assert_array_equal(*found.pixels)
    np.testing.assert_allclose(row_and_column(found.pixels.now), start, atol=0.1)
    assert float(found.pixels.now.sum()) == pytest.approx(1, abs=1e-5)


def _adding() -> Env:
    """A world whose pictures, 2 x 2 x 1, are four numbers; actions add to the second,
    and limits are 3."""
    env = simulator.make_env(
        "adding",
        initial=lambda key: jax.random.uniform(key, (4,), minval=0.4, maxval=0.6),
        dynamics=lambda state, action: state.at[1].add(0.03 * action[0]),
        observe=lambda state: state,
        reward=lambda obs, action, next_obs: next_obs[0],
        shapes=lambda state: [raster.disc((0.0, 0.0), 0.1, raster.INK)],
        view=raster.View((0.0, 0.0), 1.0),
        action_size=1,
        action_limit=3.0,
        episode_length=4,
        goal=lambda: jnp.ones(4),
    )
    show = lambda x: raster.to_uint8(x.obs.reshape(2, 2, 1))
    seen = lambda x: x._replace(obs=show(x), sim=x)
    return env._replace(
        reset=lambda key: seen(env.reset(key)),
        step=lambda state, action: seen(env.step(state.sim, action)),
        goal=lambda: seen(env.goal()),
        obs_size=0,
        obs_shape=(2, 2, 1),
    )


def test_sequences_are_pictures_in_order_with_the_actions_between_them(monkeypatch):
    """An error of nothing only for the right ones, in units of the action's limit, and
    not over the end of an episode."""

    def adding(shape: tuple[int, int, int], size: int, config: video.Config) -> Any:
        def loss(params: Array, seen: Array, actions: Array, valid: Array) -> Array:
            assert seen.shape == (4, 2, 2, 1)
            change = seen[1:, 0, 1, 0] - seen[:-1, 0, 1, 0] - 0.09 * actions[:, 0]
            change = jnp.maximum(jnp.abs(change) - 1 / 250, 0)  # they are bytes
            far = (jnp.abs(actions) > 1).any()
            return jnp.where(valid, change, 0).sum() + far + 0 * params.sum()

        return known(shape, size, config)._replace(loss=loss)

    monkeypatch.setattr(video, "make", adding)
    config = dataclasses.replace(CONFIG, colour=(0.5,), batch_size=64)
    algorithm = visual_foresight.make(_adding(), config)
    step = jax.jit(algorithm.step)
    state, metrics = step(jax.random.key(1), algorithm.init(jax.random.key(0)))
    assert metrics["env_steps"] == state.replay.size == 12
    assert float(metrics["video/loss"]) < 1e-5
    state, metrics = step(jax.random.key(2), state)
    assert metrics["env_steps"] == state.replay.size == 24
    assert float(metrics["video/loss"]) < 1e-5


@pytest.mark.parametrize("persistence", [0.0, 1.0])
def test_random_actions_are_held_as_long_as_is_likely(monkeypatch, persistence: float):
    monkeypatch.setattr(video, "make", known)
    config = dataclasses.replace(CONFIG, colour=(0.5,), persistence=persistence)
    algorithm = visual_foresight.make(_adding(), config)
    state, _ = jax.jit(algorithm.step)(
        jax.random.key(1), algorithm.init(jax.random.key(0))
    )
    actions = np.asarray(state.replay.data.action[:12, 0]).reshape(3, 4)
    held = np.diff(actions, axis=1) == 0
    assert held.all() if persistence else not held.any()


def test_an_iteration_goes_down_the_loss(monkeypatch):
    squared = lambda params, seen, actions, valid: jnp.square(params - 1).sum()
    changed = lambda *args: known(*args)._replace(loss=squared)
    monkeypatch.setattr(video, "make", changed)
    config = dataclasses.replace(CONFIG, colour=(0.5,), num_updates=60)
    config = dataclasses.replace(config, learning_rate=0.1)
    algorithm = visual_foresight.make(_adding(), config)
    state = algorithm.init(jax.random.key(0))
    state, metrics = jax.jit(algorithm.step)(jax.random.key(1), state)
    np.testing.assert_allclose(state.params, 1, atol=0.1)
    assert float(metrics["video/loss"]) < 0.02
    assert metrics["gradient/skipped_updates"] == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_updates": 0}, "num_updates is 0, must be at least 1"),
        ({"persistence": 1.5}, "persistence is 1.5, must be from 0 to 1"),
        ({"colour_std": 0.0}, "colour_std is 0.0, must be positive"),
        ({"capacity": 7}, "capacity is 7, less than the 8 steps of an episode"),
        ({"length": 25}, "length is 25, more than the 3 x 8 steps"),
        ({"colour": (0.5,)}, "colour has 1 channels, a picture of pixels/planar 3"),
        ({"colour": ()}, "colour has 0 channels, a picture of pixels/planar 3"),
        ({"planner": "lqr"}, "planner is 'lqr', must be one of"),
        ({"model": video.Config("sna")}, "model.kernels is 'sna', must be one of"),
    ],
)
def test_what_cannot_be_is_an_early_error(change: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        visual_foresight.make(pictures(SHORT), dataclasses.replace(CONFIG, **change))


def test_without_a_goal_there_is_nothing_to_plan_for():
    env = pictures(envs.make("pendulum"))
    with pytest.raises(ValueError, match="pixels/pendulum has no goal: visual foresi"):
        visual_foresight.make(env, CONFIG)


def test_vectors_are_an_early_error():
    with pytest.raises(ValueError, match="planar shows no pictures, as pixels/NAME"):
        visual_foresight.make(SHORT, CONFIG)


def test_what_is_foreseen_follows_from_the_first_picture_and_the_actions(monkeypatch):
    """By a model that moves all by a pixel to the right for an action along x."""
    monkeypatch.setattr(video, "make", known)
    env = pictures(SHORT)
    algorithm = visual_foresight.make(env, CONFIG)
    obs = np.random.default_rng(0).integers(0, 256, (3, SIZE, SIZE, 3)).astype(np.uint8)
    right = jnp.array([[PIXEL / planar.STEP, 0.0]] * 2)
    state = algorithm.init(jax.random.key(0))
    found = algorithm.foresee(state, jax.random.key(0), jnp.asarray(obs), right)
    assert set(found) == {"predicted"}
    frames = 255 * np.asarray(found["predicted"])
    assert frames.shape == (3, SIZE, SIZE, 3)
    for t in range(3):
        moved = obs[0, :, : SIZE - t]
        np.testing.assert_allclose(frames[t, :, t:], moved, atol=1e-3)
