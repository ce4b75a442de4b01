"""Environments seen as pictures: frames, colours, distractors, and what is refused."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mbrl_jax import envs
from mbrl_jax.envs import pixels, planar
from mbrl_jax.ops import raster
from mbrl_jax.types import Env, EnvState


def run(env: Env, num_steps: int = 4) -> tuple[EnvState, Any]:
    """The states of an episode, stacked, the first of them included; in numpy, and
    their `sim`."""

    def step(state: EnvState, _: None) -> tuple[EnvState, EnvState]:
        after = env.step(state, jnp.full(env.action_size, 0.7))
        return after, after

    def go() -> EnvState:
        first = env.reset(jax.random.key(1))
        rest = jax.lax.scan(step, first, None, length=num_steps)[1]
        return jax.tree.map(lambda x, y: jnp.concatenate([x[None], y]), first, rest)

    states = jax.jit(go)()
    return jax.tree.map(np.asarray, states._replace(sim=None)), states.sim


def test_the_frames_are_the_last_pictures_and_the_newest_is_last():
    env = envs.make("pixels/pendulum/size=12,num_frames=3,vector=1")
    assert env.name == "pixels/pendulum"
    assert env.obs_size == 3 * 12 * 12
    states, sim = run(env)
    frames = states.obs.reshape(5, 3, 12, 12)
    np.testing.assert_array_equal(frames[0, 0], frames[0, 2])  # the first, repeated
    for i in range(1, 5):
        np.testing.assert_array_equal(frames[i, :2], frames[i - 1, 1:])
        assert np.abs(frames[i, 2] - frames[i, 1]).max() > 0.01  # it moves
    inner = jax.tree.map(lambda x: x[4], sim.inner)
    picture = np.asarray(envs.make("pendulum").picture(inner, 12, 12))
    grey = picture @ np.array([0.299, 0.587, 0.114])
    np.testing.assert_allclose(frames[4, 2], grey, atol=1e-6)


def test_a_picture_is_the_vector_in_bytes_channels_last():
    """Of both the same numbers, rounded; the newest frame's channels are the last."""
    settings = "size=9,num_frames=2,colour=1"
    vector, _ = run(envs.make(f"pixels/pendulum/{settings},vector=1"))
    env = envs.make(f"pixels/pendulum/{settings}")
    picture, _ = run(env)
    assert (env.obs_size, env.obs_shape, env.num_frames) == (0, (9, 9, 6), 2)
    assert picture.obs.dtype == np.uint8
    frames = vector.obs.reshape(5, 2, 9, 9, 3)
    for i, channels in enumerate([slice(3), slice(3, 6)]):
        bytes_ = 255 * frames[:, i]
        np.testing.assert_allclose(picture.obs[..., channels], bytes_, atol=0.51)
    blank = env.blank_obs()
    assert (blank.shape, blank.dtype) == (picture.obs.shape[1:], picture.obs.dtype)


def test_a_camera_stands_elsewhere_in_each_episode_and_there_all_the_time():
    plain, _ = run(envs.make("pixels/planar/size=16,num_frames=1"))
    env = envs.make("pixels/planar/size=16,num_frames=1,camera_shift=3")
    found, sim = run(env)
    down, right = np.asarray(sim.clutter.shift)[0]
    np.testing.assert_array_equal(np.asarray(sim.clutter.shift), [[down, right]] * 5)
    wide = np.pad(plain.obs, ((0, 0), (3, 3), (3, 3), (0, 0)), mode="edge")
    moved = wide[:, 3 - down :, 3 - right :][:, :16, :16]
    np.testing.assert_array_equal(found.obs, moved)
    reset = jax.jit(jax.vmap(lambda key: env.reset(key).sim.clutter.shift))
    shifts = np.asarray(reset(jax.random.split(jax.random.key(0), 200)))
    assert set(shifts.ravel()) == set(range(-3, 4))


def test_occluders_hide_what_is_behind_them_and_stay():
    env = envs.make("pixels/planar/size=32,num_frames=1,num_occluders=2,colour=1")
    found, sim = run(env, 10)
    places = np.asarray(sim.clutter.occluders)
    np.testing.assert_array_equal(places, places[:1].repeat(11, axis=0))
    for x, y in places[0]:
        row, column = int((1 - y) * 16), int((1 + x) * 16)
        colours = found.obs[:, min(row, 31), min(column, 31)]
        np.testing.assert_array_equal(colours, colours[:1].repeat(11, axis=0))
        np.testing.assert_allclose(colours[0] / 255, raster.STEEL, atol=0.01)


def test_what_is_seen_changes_nothing_else():
    """Rewards, ends and times are those of the environment itself."""
    seen, _ = run(envs.make("pixels/pendulum/size=8,num_distractors=2"))
    plain = envs.make("pendulum")
    inner = plain._replace(reset=lambda key: plain.reset(jax.random.split(key)[0]))
    own, _ = run(inner)
    np.testing.assert_allclose(seen.reward, own.reward, rtol=1e-6)
    for name in ("terminal", "truncated", "time"):
        np.testing.assert_array_equal(getattr(seen, name), getattr(own, name))


def test_distractors_wander_within_the_picture_and_are_seen():
    env = envs.make("pixels/planar/size=24,num_frames=1,num_distractors=3,colour=1")
    _, sim = run(env, 300)
    places = np.asarray(sim.clutter.distractors)[:, :, :2]
    assert (np.abs(places) <= 1).all()
    moved = np.linalg.norm(np.diff(places, axis=0), axis=2)
    assert ((moved < 1e-6) | (np.abs(moved - pixels.PACE) < 1e-4)).all()
    assert (moved > 0).mean() > 0.8
    assert np.ptp(places, axis=0).min() > 0.5
    without = jax.vmap(lambda state: envs.make("planar").picture(state, 24, 24))
    there = np.asarray(sim.frames)[:, 0] - np.asarray(without(sim.inner))
    dark = (there < -0.2).any(axis=3).sum(axis=(1, 2))
    assert np.median(dark) > 6  # pixels, of three discs of some five each


def test_a_picture_has_the_gradient_of_finite_differences(double):
    env = envs.make("planar")
    state = env.reset(jax.random.key(0))
    weights = jnp.asarray(np.random.default_rng(0).normal(size=(16, 16, 3)))

    @jax.jit
    def brightness(place: jax.Array) -> jax.Array:
        moved = state._replace(sim=state.sim._replace(state=place))
        return (weights * env.picture(moved, 16, 16)).sum()

    place, size = np.array([0.31, -0.22]), 1e-6
    found = jax.jit(jax.grad(brightness))(place)
    expected = [
        (brightness(place + size * e) - brightness(place - size * e)) / (2 * size)
        for e in np.eye(2)
    ]
    assert np.abs(expected).max() > 0.1
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_the_goal_is_seen_from_where_it_is():
    env = envs.make("pixels/planar/size=16,num_frames=1")
    shown = np.asarray(env.goal().obs).reshape(16, 16)
    there = np.asarray(env.goal().sim.inner.sim.state)
    np.testing.assert_allclose(there, planar.GOAL)
    row, column = np.unravel_index(shown.argmin(), shown.shape)
    pixel = 2 * (planar.RANGE + planar.SIZE) / 16
    at = np.array([(column + 0.5 - 8) * pixel, (8 - row - 0.5) * pixel])
    assert np.abs(at - planar.GOAL).max() < pixel


def test_a_square_picture_shows_all_of_a_wide_one():
    """Of 300 x 200: what is at its right edge is in the square one, too."""
    env = envs.make("probe2")
    wide = np.asarray(env.picture(env.reset(jax.random.key(0)), 120, 180))
    square = np.asarray(env.picture(env.reset(jax.random.key(0)), 120, 120))
    differs = lambda picture: np.abs(picture - picture[0, 0]).max(axis=(0, 2)) > 0.05
    left, right = np.flatnonzero(differs(wide))[[0, -1]] / 180
    assert left < 0.15
    assert right > 0.85
    np.testing.assert_allclose(
        np.flatnonzero(differs(square))[[0, -1]] / 120, [left, right], atol=0.05
    )


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("pixels/planar/size=0", "size is 0, must be at least 1"),
        ("pixels/planar/sise=3", "'sise=3' is no setting of pixels; these are"),
        ("pixels/planar/size=big", "'size=big' is no setting of pixels"),
        ("pixels/penduum", "unknown environment 'penduum'; did you mean 'pendulum'"),
    ],
)
def test_what_cannot_be_is_an_early_error(name: str, message: str):
    with pytest.raises(ValueError, match=message):
        envs.make(name)


def test_without_a_picture_there_are_no_pixels():
    with pytest.raises(ValueError, match="planar has no picture"):
        pixels.make(planar.make()._replace(picture=None))
