"""A car among pillars: its rays, its moves, its collisions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mbrl_jax import envs
from mbrl_jax.envs import driving
from mbrl_jax.envs.driving import State

pytestmark = pytest.mark.usefixtures("double")

sights = jax.jit(jax.vmap(driving.sight))
clearances = jax.jit(jax.vmap(driving.clearance))


def marched(position: np.ndarray, angle: float) -> float:
    """Along the ray in steps too short to matter, until something is there."""
    ahead = np.array([np.cos(angle), np.sin(angle)])
    for distance in np.arange(0, 3, 1e-3):
        x = position + distance * ahead
        away = np.linalg.norm(np.array(driving.PILLARS) - x, axis=1)
        if (np.abs(x) >= driving.ROOM).any() or (away <= driving.RADIUS).any():
            return distance
    raise AssertionError("there are walls all around")


def test_rays_end_where_something_is():
    np.testing.assert_allclose(
        sights(
            jnp.array([[-0.45, -0.1], [0.3, -0.8], [0.3, -0.8]]),
            jnp.array([np.pi / 2, 0.0, -np.pi / 2]),
        ),
        [0.36, 0.7, 0.2],  # a pillar's rim, the walls
        rtol=1e-9,
    )
    rng = np.random.default_rng(0)
    places = rng.uniform(-0.9, 0.9, (60, 2))
    places = places[np.asarray(clearances(places)) > 0]
    angles = rng.uniform(-np.pi, np.pi, len(places))
    expected = [marched(x, angle) for x, angle in zip(places, angles, strict=True)]
    np.testing.assert_allclose(sights(places, angles), expected, atol=2e-3)


def test_it_goes_on_where_it_heads_and_turns_by_the_wheel():
    state = State(jnp.array([0.1, 0.2]), jnp.array(0.3))
    after = driving.dynamics(state, jnp.array([-1.0]))
    heading = 0.3 - driving.MAX_TURN
    assert after.heading == pytest.approx(heading)
    moved = np.array([0.1, 0.2]) + 0.08 * np.array([np.cos(heading), np.sin(heading)])
    np.testing.assert_allclose(after.position, moved, rtol=1e-9)


def test_the_rays_go_from_right_to_left():
    """With a wall near to its right, heading up: far, unless over there."""
    obs = driving.observe(State(jnp.array([0.85, -0.05]), jnp.array(np.pi / 2)))
    assert obs[0] == pytest.approx(0.15 - driving.CAR)
    assert obs[-1] > 0.5
    assert obs.shape == (9,)


def test_a_collision_is_seen_ends_the_episode_and_pays_nothing():
    env = envs.make("driving")
    start = env.reset(jax.random.key(0))
    near = State(jnp.array([0.88, -0.05]), jnp.array(0.0))
    before = start._replace(
        obs=driving.observe(near), sim=start.sim._replace(state=near)
    )
    after = jax.jit(env.step)(before, jnp.zeros(1))
    assert after.terminal
    assert after.reward == 0
    assert not np.asarray(after.obs).any()
    away = near._replace(heading=jnp.array(np.pi))
    before = before._replace(
        obs=driving.observe(away), sim=start.sim._replace(state=away)
    )
    after = jax.jit(env.step)(before, jnp.zeros(1))
    assert not after.terminal
    assert after.reward == 1
    assert (np.asarray(after.obs) > 0).all()


def test_starts_are_free():
    keys = jax.random.split(jax.random.key(0), 500)
    starts = jax.jit(jax.vmap(driving.initial))(keys)
    assert (np.asarray(clearances(starts.position)) > driving.MARGIN).all()
    assert np.ptp(np.asarray(starts.heading)) > 6
    assert (np.ptp(np.asarray(starts.position), axis=0) > 1.2).all()
