"""The wind that pushes the point mass about, and thrusters that are turned."""

import jax
import jax.numpy as jnp
import numpy as np

from mbrl_jax.envs import point_mass
from mbrl_jax.envs.point_mass import State


def test_wind_is_a_force_that_is_held_over_a_step():
    """0.4 N along x and y at (0, pi / 6), for 0.1 s on 1 kg; an action can undo it."""
    with jax.enable_x64(True):
        at = jnp.array([0.0, np.pi / 6])
        state = State(at, jnp.array([1.0, 0.0]), jnp.zeros(2))
        after = point_mass.windy_dynamics(state, jnp.zeros(2))
        np.testing.assert_allclose(after.velocity, [1.04, 0.04], rtol=1e-12)
        np.testing.assert_allclose(after.position - at, [0.102, 0.002], atol=1e-12)
        against = point_mass.windy_dynamics(state, jnp.full(2, -0.4))
        np.testing.assert_allclose(against.velocity, [1.0, 0.0], atol=1e-12)


def test_windy_starts_are_near_a_corner():
    starts = jax.vmap(point_mass.windy_initial)(jax.random.split(jax.random.key(0), 99))
    away = np.asarray(starts.position) + 0.8
    assert 0.04 < np.abs(away).max() <= 0.05
    np.testing.assert_allclose(starts.goal, 0.8)
    assert not starts.velocity.any()


def test_turned_thrusters_go_clockwise_where_the_goals_go_anticlockwise():
    push = {(1, 1): (1, 0), (-1, 1): (0, -1), (-1, -1): (-1, 0), (1, -1): (0, 1)}
    for goal, force in push.items():
        state = State(jnp.zeros(2), jnp.zeros(2), 0.8 * jnp.array(goal, float))
        after = point_mass.turned_dynamics(state, jnp.array([1.0, 0.0]))
        np.testing.assert_allclose(after.velocity, 0.1 * np.array(force), atol=1e-6)
        across = point_mass.turned_dynamics(state, jnp.array([0.0, 1.0]))
        left = -force[1], force[0]
        np.testing.assert_allclose(across.velocity, 0.1 * np.array(left), atol=1e-6)


def test_turned_starts_are_opposite_to_their_goals():
    starts = jax.vmap(point_mass.turned_initial)(
        jax.random.split(jax.random.key(0), 99)
    )
    away = np.asarray(starts.position + starts.goal)
    assert 0.04 < np.abs(away).max() <= 0.05
    corners, counts = np.unique(starts.goal, axis=0, return_counts=True)
    np.testing.assert_allclose(np.abs(corners), 0.8)
    assert len(corners) == 4
    assert counts.min() > 10
