"""Blobs on a table: contact, friction, starts, and what is seen of them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mbrl_jax import envs
from mbrl_jax.envs import pushing
from mbrl_jax.envs.pushing import State

step = jax.jit(pushing.dynamics)


def pushed(pusher: list, blobs: list, *actions: list) -> tuple[np.ndarray, np.ndarray]:
    state = State(jnp.array(pusher), jnp.array(blobs))
    for action in actions:
        state = step(state, jnp.array(action))
    return np.asarray(state.pusher), np.asarray(state.blobs)


def test_what_is_not_touched_stays_and_the_pusher_goes_where_it_is_told():
    blobs = [[0.5, 0.5], [-0.5, 0.5]]
    pusher, after = pushed([0.0, -0.4], blobs, [0.5, -1.0])
    np.testing.assert_allclose(pusher, [0.1, -0.6], rtol=1e-5)
    np.testing.assert_array_equal(after, np.asarray(blobs, np.float32))
    pusher, _ = pushed([0.65, -0.4], blobs, [1.0, 0.0])
    np.testing.assert_allclose(pusher, [pushing.RANGE, -0.4], rtol=1e-6)


def test_a_blob_is_pushed_ahead_and_left_where_it_is():
    reach = pushing.PUSHER + pushing.BLOB
    _, after = pushed([-0.6, 0.2], [[-0.15, 0.2]], [1.0, 0.0], [1.0, 0.0])
    assert after[0, 0] == pytest.approx(-0.2 + reach, abs=0.1)  # overlap is short
    assert after[0, 0] < -0.2 + reach
    assert after[0, 1] == pytest.approx(0.2)
    _, later = pushed([-0.2, 0.2], after.tolist(), [-1.0, 0.0], [-1.0, 0.0])
    _, again = pushed([-0.6, 0.2], later.tolist(), [0.0, 0.0])
    np.testing.assert_array_equal(later, again)
    _, above = pushed([-0.3, 0.0], [[0.05, 0.15]], [1.0, 0.0])
    assert above[0, 1] > 0.17  # aside, too
    assert above[0, 0] > 0.1


def test_one_blob_pushes_another_and_both_give_way():
    _, after = pushed([-0.65, 0.0], [[-0.25, 0.0], [0.25, 0.0]], [1.0, 0.0], [1.0, 0.0])
    assert after[1, 0] > 0.3
    _, apart = pushed([0.6, 0.6], [[-0.1, 0.0], [0.1, 0.0]], [0.0, 0.0])
    np.testing.assert_allclose(apart[0], -apart[1], atol=1e-6)
    assert apart[1, 0] > 0.15


def test_a_blob_does_not_leave_the_table():
    _, after = pushed([0.2, 0.0], [[0.65, 0.0]], *4 * [[1.0, 0.0]])
    assert after[0, 0] == np.float32(pushing.RANGE)


def test_starts_are_apart_and_away_from_the_goal():
    """The pusher near the blob, on any side of it."""
    keys = jax.random.split(jax.random.key(0), 2000)
    starts = jax.jit(jax.vmap(pushing.initial))(keys)
    blob, pusher = np.asarray(starts.blobs)[:, 0], np.asarray(starts.pusher)
    gap = np.linalg.norm(pusher - blob, axis=-1) - pushing.PUSHER - pushing.BLOB
    assert gap.min() > 0
    assert gap.max() < pushing.NEAR
    away = np.linalg.norm(blob - np.array(pushing.GOAL), axis=-1)
    assert away.min() > pushing.LEAST_WAY
    assert np.abs(pusher).max() < pushing.RANGE
    assert (np.histogram2d(*blob.T, bins=2)[0] > 400).all()
    assert (np.histogram2d(*(pusher - blob).T, bins=2)[0] > 300).all()


def test_the_reward_is_the_squared_distance_of_the_designated_blob():
    env = envs.make("pushing")
    state = jax.jit(env.step)(env.reset(jax.random.key(3)), jnp.array([0.3, 0.2]))
    expected = -np.square(np.asarray(state.sim.state.blobs[0])).sum()
    np.testing.assert_allclose(state.reward, expected, rtol=1e-6)
    goal = env.goal().obs
    np.testing.assert_allclose(env.reward(goal, jnp.zeros(2), goal), 0)


def test_the_arm_hides_what_it_passes_over_and_does_not_touch_it():
    """Whole and in sight to the right of it, in the same place under it."""
    seen = {}
    for name in ("pushing", "pushing_occluded"):
        env = envs.make(name)
        paint = jax.jit(lambda state, env=env: env.picture(state, 44, 44))
        start = env.reset(jax.random.key(0))
        for x in (-0.6, 0.0):
            world = State(jnp.array([x, 0.4]), jnp.array([[0.0, -0.3]]))
            state = start._replace(sim=start.sim._replace(state=world))
            amber = np.abs(np.asarray(paint(state)) - pushing.DESIGNATED) < 0.1
            seen[name, x] = int(amber.all(axis=-1).sum())
            after = env.step(state, jnp.zeros(2)).sim.state
            np.testing.assert_array_equal(after.blobs, world.blobs)
    assert seen["pushing", 0.0] == seen["pushing", -0.6] > 30
    assert seen["pushing_occluded", -0.6] == seen["pushing", -0.6]
    assert seen["pushing_occluded", 0.0] < 0.2 * seen["pushing", 0.0]
