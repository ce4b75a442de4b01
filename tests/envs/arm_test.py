"""The arm that reaches one point."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mbrl_jax import envs
from mbrl_jax.envs import arm, reacher
from mbrl_jax.ops import two_link

pytestmark = pytest.mark.usefixtures("double")


def test_the_hand_is_where_the_links_end():
    np.testing.assert_allclose(arm.hand(jnp.zeros(4)), [1.0, 0.0], atol=1e-12)
    np.testing.assert_allclose(
        arm.hand(jnp.array([np.pi / 2, -np.pi / 2, 3.0, 4.0])), [0.5, 0.5], atol=1e-12
    )


def test_the_reward_is_largest_at_rest_at_the_goal():
    """Of 0; the angles by the law of cosines."""
    distance = np.hypot(*arm.GOAL)
    elbow = np.arccos((distance**2 - 0.5) / 0.5)
    shoulder = np.arctan2(arm.GOAL[1], arm.GOAL[0]) - elbow / 2
    there, still = jnp.array([shoulder, elbow, 0.0, 0.0]), jnp.zeros(2)
    reward = lambda obs, action: arm.reward(there, action, obs)
    assert reward(there, still) == pytest.approx(0, abs=1e-12)
    gradients = jax.grad(reward, (0, 1))(there, still)
    for gradient in gradients:
        np.testing.assert_allclose(gradient, 0, atol=1e-12)
    moving = there.at[2:].set(jnp.array([2.0, -1.0]))
    assert reward(moving, jnp.array([0.5, -1.0])) == pytest.approx(-0.05 - 0.0125)
    away = reward(jnp.array([0.0, 0.0, 0.0, 0.0]), still)
    assert away == pytest.approx(-((1 - 0.3) ** 2 + 0.6**2))


def test_a_step_has_the_derivative_of_finite_differences():
    state, action = jnp.array([-0.4, 1.1, 0.7, -1.3]), jnp.array([0.3, -0.6])
    found = np.concatenate(jax.jacobian(arm.dynamics, (0, 1))(state, action), axis=1)
    both, size = np.concatenate([state, action]), 1e-6
    step = lambda z: np.asarray(arm.dynamics(jnp.asarray(z[:4]), jnp.asarray(z[4:])))
    expected = [
        (step(both + size * e) - step(both - size * e)) / (2 * size) for e in np.eye(6)
    ]
    np.testing.assert_allclose(found, np.transpose(expected), atol=1e-8)


def test_what_the_motors_do_becomes_energy():
    """But for what the joints take: the kinetic energy of both rods changes by the
    integral of 2 action . speeds - 0.1 |speeds|^2 over a step."""
    state, action = jnp.array([-0.4, 1.1, 0.7, -1.3]), jnp.array([0.3, -0.6])
    after = arm.dynamics(state, action)

    def power(state: jax.Array) -> jax.Array:
        return 2 * action @ state[2:] - 0.1 * state[2:] @ state[2:]

    middle = _halfway(state, action)
    work = (power(state) + 4 * power(middle) + power(after)) * reacher.DT / 6
    gained = _kinetic_energy(after) - _kinetic_energy(state)
    assert abs(float(gained)) > 0.01
    assert float(gained) == pytest.approx(float(work), rel=1e-3)


def _halfway(state: jax.Array, action: jax.Array) -> jax.Array:
    """After half a step, by steps of Euler too short to matter."""
    size, small = 200, reacher.DT / 400

    def euler(_: int, state: jax.Array) -> jax.Array:
        torques = 2 * action - 0.1 * state[2:]
        links, angles, speeds = reacher.LINKS, state[:2], state[2:]
        acceleration = two_link.acceleration(links, angles, speeds, torques)
        return state + small * jnp.concatenate([speeds, acceleration])

    return jax.lax.fori_loop(0, size, euler, state)


def _kinetic_energy(state: jax.Array) -> jax.Array:
    """J, of two rods of 1 kg and 0.5 m, by the velocities of their centres."""
    first, second = state[0], state[0] + state[1]
    spin = jnp.stack([state[2], state[2] + state[3]])
    direction = lambda angle: jnp.stack([-jnp.sin(angle), jnp.cos(angle)])
    inner = 0.25 * spin[0] * direction(first)
    outer = 2 * inner + 0.25 * spin[1] * direction(second)
    return (inner @ inner + outer @ outer + 0.5**2 / 12 * spin @ spin) / 2


def test_starts_are_at_rest_near_a_posture():
    env = envs.make("arm")
    starts = np.asarray(
        jax.vmap(env.reset)(jax.random.split(jax.random.key(0), 200)).obs
    )
    assert not starts[:, 2:].any()
    away = np.abs(starts[:, :2] - np.array(arm.POSTURE))
    assert 0.55 < away.max() <= arm.SPREAD
